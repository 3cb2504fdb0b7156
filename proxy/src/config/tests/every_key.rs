//! Every key of config/proxy.toml with a value of a wrong type and with a wrong one. Each gives exactly one
//! error, at the value, that names the expected form, with the line shown and the value marked. Keys of
//! features that are not built say so.

use super::*;

/// One key of the file, written or commented out.
struct Key {
    /// From 1.
    line: usize,
    /// `[listener.tls]`, `[[route]]`; empty at the top level.
    table: String,
    /// The line of the table's header, if that is commented out too.
    hidden_table: Option<usize>,
    name: String,
    value: String,
    comment: String,
    is_written: bool,
}

impl Key {
    fn dotted(&self) -> String {
        format!("{}.{}", self.table.trim_matches(['[', ']']), self.name)
    }

    fn is_built(&self, lines: &[&str]) -> bool {
        let of_table = self.hidden_table.is_none_or(|line| !lines[line - 1].contains("not built yet"));
        of_table && (self.is_written || !self.comment.contains("not built yet"))
    }

    /// The file with this value, the key and its table written.
    fn with(&self, lines: &[&str], value: &str) -> String {
        let mut lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        if let Some(header) = self.hidden_table {
            lines[header - 1] = self.table.clone();
            // Its built keys are written too: some keys need others.
            let of_table = lines[header..]
                .iter_mut()
                .take_while(|line| line.starts_with("# ") && !line.starts_with("# ["));
            for line in of_table.filter(|line| !line.contains("not built yet")) {
                *line = line.trim_start_matches("# ").to_owned();
            }
        }
        lines[self.line - 1] = format!("{} = {value}", self.name);
        lines.join("\n")
    }
}

/// The value before its comment.
fn split_comment(rest: &str) -> (&str, &str) {
    let mut quoted = false;
    for (at, letter) in rest.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            '#' if !quoted => return (rest[..at].trim(), &rest[at..]),
            _ => {}
        }
    }
    (rest.trim(), "")
}

fn keys(lines: &[&str]) -> Vec<Key> {
    let mut keys = Vec::new();
    let (mut table, mut hidden_table) = (String::new(), None);
    for (index, line) in lines.iter().enumerate() {
        let (text, is_written) = match line.strip_prefix("# ") {
            Some(text) => (text, false),
            None => (*line, true),
        };
        if text.starts_with('[') {
            let (header, _) = split_comment(text);
            table = header.to_owned();
            hidden_table = (!is_written).then_some(index + 1);
        } else if let Some((name, rest)) = text.split_once(" = ")
            && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            let (value, comment) = split_comment(rest);
            keys.push(Key {
                line: index + 1,
                table: table.clone(),
                hidden_table,
                name: name.to_owned(),
                value: value.to_owned(),
                comment: comment.to_owned(),
                is_written,
            });
        }
    }
    keys
}

fn shipped() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/proxy.toml"))
        .expect("readable")
}

/// On a system that has roots: the error within `[upstream.tls]` has to be the only one.
fn resolve_where_roots_are(text: &str) -> Result<model::Config, Diagnostics> {
    let roots = crate::tls::testing::Authority::new("CA").pem().as_bytes().to_vec();
    resolve(&[
        (PathBuf::from("etc/test.toml"), text.as_bytes().to_vec().into()),
        (SYSTEM_ROOTS.into(), roots.into()),
    ])
}

/// The one error that a file has; at the value of `key`, with its words, and shown with the value marked.
fn check(key: &Key, text: &str, words: &str) {
    let dotted = key.dotted();
    let errors = resolve_where_roots_are(text).map(drop).expect_err(&dotted);
    let context = format!("{dotted}\n{}", errors.render(false));
    // Beside `path_prefix`, `path` is one more mistake, and so is every key that excludes another; the file's
    // listener is of "http".
    let beside = |error: &&Diagnostic| {
        !error.message.starts_with("is beside") && error.message != "is for protocol = \"https\" alone"
    };
    let found: Vec<&Diagnostic> = errors.iter().filter(beside).collect();
    assert_eq!(found.len(), 1, "{context}");
    let error = found[0];
    assert!(error.key == dotted || error.key.starts_with(&format!("{dotted}.")), "{context}");
    assert_eq!(error.line(), key.line, "{context}");
    // Some keys have values that are not built: which those are, their comment says.
    let not_built = key.comment.contains("not built yet") && error.message.contains("not built yet");
    assert!(not_built || error.message.contains(words), "lacks {words:?}: {context}");
    assert!(
        error.expected.is_some() || error.help.is_some(),
        "says nothing of what would be right: {context}"
    );
    let line = text.lines().nth(key.line - 1).expect("the line");
    let shown = error.to_string();
    assert!(
        shown.starts_with(&format!("etc/test.toml:{}:{}: error: `{dotted}", key.line, error.column())),
        "{shown}"
    );

    // The line is there, and under it a mark that begins where the error does.
    let rendered = errors.render(false);
    let place = format!("[etc/test.toml:{}:{}]", key.line, error.column());
    let report = rendered.lines().skip_while(|shown| !shown.contains(&place));
    let mut below =
        report.skip_while(|shown| !(shown.contains(&format!("{} │ ", key.line)) && shown.contains(line)));
    let excerpt = below.next().unwrap_or_else(|| panic!("no excerpt: {context}"));
    let start = excerpt.chars().take_while(|&letter| letter != '│').count() + 2;
    let mark =
        below.next().expect("a mark below").chars().position(|letter| matches!(letter, '─' | '┬' | '╰'));
    assert_eq!(mark, Some(start + error.column() - 1), "{context}");
    assert!((not_built && error.column() == 1) || error.column() > key.name.len() + " = ".len(), "{context}");
}

#[test]
fn a_wrong_type_is_marked_and_says_what_is_expected() {
    let text = shipped();
    let lines: Vec<&str> = text.lines().collect();
    let keys = keys(&lines);
    assert!(keys.len() > 80, "the file's keys are found");
    for key in keys.iter().filter(|key| key.is_built(&lines)) {
        let is_boolean = matches!(key.value.as_str(), "true" | "false");
        let (value, words) = if is_boolean { ("7", "is an integer") } else { ("true", "is a boolean") };
        check(key, &key.with(&lines, value), words);
    }
}

/// A wrong value of a key that has no unit and no bounds, and the words of its error.
const WRONG: &[(&str, &str, &str)] = &[
    ("process.run_dir", "\"run\"", "not an absolute path"),
    ("process.user", "\"a b\"", "not a user's name"),
    ("workers.count", "\"all\"", "unknown"),
    ("workers.cpus", "\"3-1\"", "runs backwards"),
    ("workers.control_cpus", "\"x\"", "is not a CPU number"),
    ("guard.interfaces", "[\"a/b\"]", "not an interface's name"),
    ("guard.allow", "[\"10.1.0.0/8\"]", "bits set beyond its prefix"),
    ("guard.deny", "[\"x\"]", "not an address"),
    ("guard.deny_file", "\"\"", "is not a path"),
    ("listener.name", "\"a b\"", "is not a name"),
    ("listener.address", "\"127.0.0.1\"", "has no port"),
    ("listener.timeouts.min_rate", "\"100B\"", "is not per second"),
    ("listener.upstream", "\"app\"", "is for protocol = \"tcp\" and \"tls-passthrough\" alone"),
    ("listener.trusted_proxies", "[\"x\"]", "not an address"),
    ("listener.alpn", "[\"http/2\"]", "is unknown"),
    ("listener.certificate.chain", "\"\"", "is not a path"),
    ("listener.certificate.key", "\"\"", "is not a path"),
    ("listener.certificate.ocsp", "\"a\\u0000b\"", "is not a path"),
    ("listener.tls.client_ca", "\"a\\u0000b\"", "is not a path"),
    ("listener.tls.client_crl", "[\"\"]", "is not a path"),
    ("listener.tls.ticket_keys", "[\"\"]", "is not a path"),
    ("route.host", "\"a.example:80\"", "has a port"),
    ("route.path_prefix", "\"x\"", "does not begin with '/'"),
    ("route.path", "\"/a/../b\"", "dot segment"),
    ("route.listener", "[\"wep\"]", "there is no listener"),
    ("route.upstream", "\"ap\"", "there is no upstream"),
    ("route.client_cert", "\"optional\"", "is unknown"),
    ("route.redirect", "{ to = \"{uri}\" }", "could lead to whatever host"),
    ("route.respond", "{ status = 204, body = \"x\" }", "has none"),
    ("route.request_headers", "{ remove = [\"Host\"] }", "exactly once"),
    ("route.response_headers", "{ set = { Connection = \"close\" } }", "belongs to one connection"),
    ("upstream.name", "\"a b\"", "is not a name"),
    ("upstream.endpoints", "[\"10.0.0.1\"]", "has no port"),
    ("upstream.source", "[\"10.0.0.1:1\"]", "is not an IP address"),
    ("upstream.tls.server_name", "\"a b\"", "is not a host name"),
    ("upstream.tls.ca", "\"a\\u0000b\"", "is not a path"),
    ("upstream.tls.certificate", "\"a\\u0000b\"", "is not a path"),
    ("upstream.tls.key", "\"a\\u0000b\"", "is not a path"),
    ("upstream.retry.on", "[\"503\"]", "not built yet"),
    ("admin.address", "\"9901\"", "not an address with a port"),
];

/// Keys that take every string.
const ANYTHING: &[&str] = &["log.access"];

#[test]
fn a_wrong_value_is_marked_and_says_what_is_expected() {
    let text = shipped();
    let lines: Vec<&str> = text.lines().collect();
    for key in keys(&lines).iter().filter(|key| key.is_built(&lines)) {
        let dotted = key.dotted();
        let known = WRONG.iter().find(|(name, ..)| *name == dotted).map(|(_, value, words)| (*value, *words));
        let inner = key.value.trim_matches('"');
        let (value, words) = match key.value.as_str() {
            _ if ANYTHING.contains(&dotted.as_str()) => continue,
            _ if known.is_some() => known.expect("one"),
            "true" | "false" => continue,
            number if number.parse::<u64>().is_ok() => ("-1", "out of bounds"),
            _ if units::duration(inner).is_ok() => ("\"7 parsecs\"", "is not a unit of time"),
            _ if units::size(inner).is_ok() => ("\"7 parsecs\"", "is not a unit of size"),
            _ if inner.contains("/s") => ("\"7 parsecs\"", "is not a unit of"),
            // One of some words.
            word if word.starts_with('"') => ("\"zzzz\"", "is unknown"),
            other => panic!("say in WRONG what a wrong value of {dotted} is, other than {other}"),
        };
        check(key, &key.with(&lines, value), words);
    }
}

#[test]
fn keys_that_are_not_built_say_so() {
    let text = shipped();
    let lines: Vec<&str> = text.lines().collect();
    for key in keys(&lines).iter().filter(|key| !key.is_built(&lines)) {
        let value = match key.value.as_str() {
            "false" => "true".to_owned(),
            "true" => "false".to_owned(),
            number if number.parse::<f64>().is_ok() => "77".to_owned(),
            list if list.starts_with('[') => "[\"other\"]".to_owned(),
            table if table.starts_with('{') => table.to_owned(),
            _ => "\"17ms\"".to_owned(),
        };
        let errors = resolve_where_roots_are(&key.with(&lines, &value)).map(drop).expect_err(&key.dotted());
        let said = errors.iter().any(|error| {
            let of_table = key.hidden_table == Some(error.line()) && key.dotted().starts_with(&error.key);
            error.message.contains("is not built yet")
                && (of_table || (error.line() == key.line && error.key == key.dotted()))
        });
        assert!(said, "{}\n{}", key.dotted(), errors.render(false));
    }
}
