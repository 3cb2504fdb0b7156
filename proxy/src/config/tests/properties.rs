//! Nothing that a file can contain panics.

use proptest::prelude::*;

use super::*;

/// Fragments of TOML, so that random files get past the syntax.
fn toml_like() -> impl Strategy<Value = String> {
    let header = prop::sample::select(vec![
        "[process]",
        "[workers]",
        "[ring]",
        "[steering]",
        "[guard]",
        "[[listener]]",
        "[listener.timeouts]",
        "[listener.limits]",
        "[[route]]",
        "[[upstream]]",
        "[upstream.pool]",
        "[upstream.retry]",
        "[admin]",
        "[log]",
        "[listener]",
        "[[guard]]",
    ]);
    let key = prop::sample::select(vec![
        "run_dir",
        "user",
        "count",
        "cpus",
        "entries",
        "buffers",
        "buffer_size",
        "interfaces",
        "deny",
        "deny_file",
        "name",
        "address",
        "timeouts",
        "limits",
        "header_bytes",
        "path_prefix",
        "upstream",
        "endpoints",
        "pool",
        "max_idle",
        "level",
        "send",
        "host",
        "policy",
        "buffer_response",
        "syn_rate_per_ip",
        "listener",
        "drain_timeout",
        "drain_delay",
        "watchdog",
        "half_close",
        "stuck_after",
        "x",
    ]);
    let value = prop_oneof![
        prop::sample::select(vec![
            "\"auto\"",
            "\"0s\"",
            "\"9999999d\"",
            "\"1KiB\"",
            "\"[::]:80\"",
            "[]",
            "{}",
            "true",
            "-1",
            "9223372036854775807",
            "1e400",
            "nan",
            "\"/\"",
            "\"/%\"",
            "[\"10.0.0.0/8\"]",
            "[\"127.0.0.1:1\"]",
            "[{}]",
            "[[[]]]",
            "1979-05-27",
            "\"0-8191\"",
            "\"1/s\"",
            "''",
            "0xff",
        ])
        .prop_map(str::to_owned),
        "\"[^\"\\\\\\x00-\\x1f]{0,12}\"",
        "[0-9]{1,25}",
    ];
    let line = prop_oneof![
        1 => header.prop_map(str::to_owned),
        4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}")),
    ];
    prop::collection::vec(line, 0..24).prop_map(|lines| lines.join("\n"))
}

/// Resolves, and shows the outcome.
fn exercise(bytes: Vec<u8>) {
    let files = [(PathBuf::from("a.toml"), Bytes::new(bytes))];
    let parsed = Parsed::new(&files[0].0, &files[0].1);
    parsed.references();
    let (config, errors, warnings) = parsed.resolve(&files, &Facts::default());
    assert_eq!(config.is_none(), !errors.is_empty());
    for problems in [errors, warnings] {
        let _ = (problems.to_string(), problems.render(true));
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        exercise(bytes);
    }

    #[test]
    fn arbitrary_toml_never_panics(text in toml_like()) {
        exercise(text.clone().into_bytes());
        exercise((text + BASE).into_bytes());
    }

    #[test]
    fn a_damaged_file_never_panics(at in 0..BASE.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = BASE.as_bytes().to_vec();
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        exercise(bytes);
    }
}
