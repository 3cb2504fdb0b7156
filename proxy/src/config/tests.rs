//! Every diagnostic with its line and key, defaults, the files of `config/`, and that nothing panics.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// What every file needs; cases put their own tables before or after it.
const BASE: &str = r#"
[[listener]]
name = "web"
address = "127.0.0.1:8080"
[[route]]
upstream = "app"
[[upstream]]
name = "app"
endpoints = ["127.0.0.1:9000"]
"#;

fn resolve_text(text: &str) -> Result<model::Config, Diagnostics> {
    resolve(&[(PathBuf::from("etc/test.toml"), text.as_bytes().to_vec())])
}

fn warnings(text: &str) -> Vec<String> {
    let parsed = Parsed::new(Path::new("etc/test.toml"), text.as_bytes());
    let (config, errors, warnings) = parsed.resolve(&[], &Unread::new());
    assert!(config.is_some(), "{errors}");
    warnings.iter().map(ToString::to_string).collect()
}

/// A file, with the line of its only error marked `# <-`, the key, and words of the report.
struct Case {
    toml: &'static str,
    /// Whether `BASE` follows.
    base: bool,
    key: &'static str,
    words: &'static [&'static str],
}

const fn case(toml: &'static str, key: &'static str, words: &'static [&'static str]) -> Case {
    Case { toml, base: true, key, words }
}

const fn whole(toml: &'static str, key: &'static str, words: &'static [&'static str]) -> Case {
    Case { toml, base: false, key, words }
}

#[test]
fn each_error_names_its_line_and_key() {
    let not_built = &["not built yet"];
    let cases = [
        // Unknown keys and the nearest known one.
        case("[proces] # <-\n", "proces", &["no such key at the top level", "did you mean `process`?"]),
        case(
            "[process]\n\nrun_dri = 1 # <-\n",
            "process.run_dri",
            &["no such key in `process`", "did you mean `run_dir`?", "drain_timeout"],
        ),
        case("[ring]\nzzzzzzzz = 1 # <-\n", "ring.zzzzzzzz", &["expected one of entries, buffers, buffer_size"]),
        case("[workers]\nbusy_pol = \"0us\" # <-\n", "workers.busy_pol", &["did you mean `busy_poll`?"]),
        // Wrong types.
        case("[process]\nuser = 65534 # <-\n", "process.user", &["is an integer", "a user's name"]),
        case(
            "[process]\ndrain_timeout = 30 # <-\n",
            "process.drain_timeout",
            &["is an integer", "expected a duration", "as a string with its unit"],
        ),
        case(
            "[process]\nmax_connections = \"many\" # <-\n",
            "process.max_connections",
            &["is a string", "a whole number, 0 or more"],
        ),
        case("[guard]\ndry_run = \"yes\" # <-\n", "guard.dry_run", &["is a string", "true or false"]),
        case("[guard]\nallow = \"10.0.0.0/8\" # <-\n", "guard.allow", &["is a string", "a list of strings"]),
        case("[guard]\nallow = [\"10.0.0.0/8\",\n  7, # <-\n]\n", "guard.allow", &["is an integer", "only strings"]),
        case("[steering]\npolicy = [] # <-\n", "steering.policy", &["is a list", "least-loaded"]),
        case("log = 3 # <-\n", "log", &["is an integer", "a table, [log]"]),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\n[upstream] # <-\nname = \"a\"\n",
            "upstream",
            &["is a table", "[[upstream]]"],
        ),
        case("[log]\nlevel = 1979-05-27 # <-\n", "log.level", &["is a date"]),
        // Units and bounds.
        case("[process]\ndrain_timeout = \"30x\" # <-\n", "process.drain_timeout", &["\"x\" is not a unit of time", "\"250ms\""]),
        case("[process]\ndrain_timeout = \"0s\" # <-\n", "process.drain_timeout", &["must not be zero", "1ms to 1d"]),
        case("[process]\ndrain_timeout = \"2d\" # <-\n", "process.drain_timeout", &["out of bounds", "1ms to 1d"]),
        case("[process]\nbuffer_budget = \"512KiB\" # <-\n", "process.buffer_budget", &["out of bounds", "1MiB to 64GiB"]),
        case("[process]\nmax_connections = -1 # <-\n", "process.max_connections", &["out of bounds"]),
        case("[process]\nrun_dir = \"run\" # <-\n", "process.run_dir", &["not an absolute path"]),
        case("[process]\nrun_dir = \"/\" # <-\n", "process.run_dir", &["not an absolute path with a last component"]),
        case("[process]\nuser = \"\" # <-\n", "process.user", &["not a user's name"]),
        case("[ring]\nentries = 1000 # <-\n", "ring.entries", &["1000 is not a power of two", "512 or 1024"]),
        case("[ring]\nbuffers = 65536 # <-\n", "ring.buffers", &["out of bounds", "16 to 32768"]),
        case("[ring]\nbuffer_size = \"5KiB\" # <-\n", "ring.buffer_size", &["5KiB is not a power of two", "4KiB or 8KiB"]),
        case("[workers]\ncount = \"all\" # <-\n", "workers.count", &["\"all\" is unknown", "\"auto\" or a whole number"]),
        case("[workers]\ncount = 0 # <-\n", "workers.count", &["out of bounds", "1 to 128"]),
        case("[workers]\ncount = 3 # <-\ncpus = \"0-1\"\n", "workers.count", &["3 workers do not fit on 2 CPUs"]),
        case("[workers]\ncpus = \"0-128\" # <-\n", "workers.cpus", &["129 CPUs", "at most 128"]),
        case("[workers]\ncpus = \"3-1\" # <-\n", "workers.cpus", &["runs backwards", "\"2-15,18\""]),
        case("[workers]\nnuma = \"locale\" # <-\n", "workers.numa", &["\"locale\" is unknown", "did you mean \"local\"?"]),
        case("[workers]\nstuck_after = \"0s\" # <-\n", "workers.stuck_after", &["must not be zero"]),
        case("[steering]\npolicy = \"lest-loaded\" # <-\n", "steering.policy", &["did you mean \"least-loaded\"?"]),
        case("[log]\nlevel = \"inof\" # <-\n", "log.level", &["did you mean \"info\"?"]),
        // Guard.
        case("[guard]\nallow = [\"10.0.0.0/33\"] # <-\n", "guard.allow", &["\"33\" is not a prefix length from 0 to 32"]),
        case("[guard]\ndeny = [\n\"10.0.0.0/8\",\n\"10.1.2.3/8\", # <-\n]\n", "guard.deny", &["write 10.0.0.0/8 or 10.1.2.3"]),
        case(
            "[guard]\nmode = \"native\" # <-\n",
            "guard.mode",
            &["\"native\" is unknown", "\"auto\" or \"driver\" or \"generic\""],
        ),
        case("[guard]\ninterfaces = [\"a-name-that-is-too-long\"] # <-\n", "guard.interfaces", &["not an interface's name"]),
        case("[guard]\ninterfaces = [\"lo\", \"lo\"] # <-\n", "guard.interfaces", &["\"lo\" is listed twice"]),
        case(
            "[guard]\nsyn_rate_per_ip = \"0/s\" # <-\n",
            "guard.syn_rate_per_ip",
            &["lets nothing through", "\"off\" or a rate"],
        ),
        case("[guard]\nsyn_rate_per_ip = 1000 # <-\n", "guard.syn_rate_per_ip", &["is an integer"]),
        case("[guard]\nsyn_burst_per_ip = 0 # <-\n", "guard.syn_burst_per_ip", &["out of bounds"]),
        case("[guard]\ndeny_file = \"none.txt\" # <-\n", "guard.deny_file", &["none.txt\" cannot be read"]),
        case("[process]\nrun_dir = \"/run/a.b\" # <-\n[guard]\ninterfaces = [\"lo\"]\n", "process.run_dir", &["dot"]),
        // Listeners.
        whole(
            "[[route]]\nupstream=\"a\"\n[[upstream]]\nname=\"a\"\nendpoints=[\"127.0.0.1:1\"]\n",
            "listener",
            &["at least one [[listener]]"],
        ),
        case("[[listener]] # <-\naddress = \"127.0.0.1:1\"\n", "listener.name", &["is missing"]),
        case("[[listener]] # <-\nname = \"a\"\n", "listener.address", &["is missing", "\"127.0.0.1:8080\""]),
        case("[[listener]] # <-\nname = \"a\"\naddress = []\n", "listener.address", &["is missing"]),
        case("[[listener]]\nname = \"a b\" # <-\naddress = \"127.0.0.1:1\"\n", "listener.name", &["\"a b\" is not a name"]),
        case("[[listener]]\nname = \"a\"\naddress = \"127.0.0.1\" # <-\n", "listener.address", &["has no port"]),
        case("[[listener]]\nname = \"a\"\naddress = \"127.0.0.1:0\" # <-\n", "listener.address", &["has port 0"]),
        case(
            "[[listener]]\nname = \"a\"\naddress = \"localhost:80\" # <-\n",
            "listener.address",
            &["not an address with a port"],
        ),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:80\"\n[[listener]]\nname=\"b\"\naddress=\"[::]:80\" # <-\n",
            "listener.address",
            &["listener \"a\" already"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=[\"127.0.0.1:80\",\n\"[::ffff:127.0.0.1]:80\"] # <-\n",
            "listener.address",
            &["127.0.0.1:80 is an address of listener \"a\""],
        ),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:80\"\n[[listener]]\nname=\"a\" # <-\naddress=\"[::]:81\"\n",
            "listener.name",
            &["\"a\" is taken"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"0.0.0.0:9901\" # <-\n",
            "listener.address",
            &["taken by admin.address, 127.0.0.1:9901"],
        ),
        case("[admin]\naddress = \"127.0.0.1:8080\" # <-\n", "admin.address", &["taken by listener \"web\""]),
        case("[admin]\naddress = \"9901\" # <-\n", "admin.address", &["not an address with a port"]),
        case("[admin]\naddress = 9901 # <-\n", "admin.address", &["is an integer"]),
        case("[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nbacklog = 0 # <-\n", "listener.backlog", &["out of bounds"]),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\ntrusted_proxies = [\"x\"] # <-\n",
            "listener.trusted_proxies",
            &["\"x\" is not an address"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\n[listener.timeouts]\nsend = \"0s\" # <-\n",
            "listener.timeouts.send",
            &["must not be zero"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\ntimeouts.sent = \"1s\" # <-\n",
            "listener.timeouts.sent",
            &["did you mean `send`?"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { header_bytes = \"10MiB\" } # <-\n",
            "listener.limits.header_bytes",
            &["1KiB to 1MiB"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { uri_bytes = \"64KiB\" } # <-\n",
            "listener.limits.uri_bytes",
            &["at most header_bytes, 32KiB"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { header_bytes = \"4KiB\" } # <-\n",
            "listener.limits.header_bytes",
            &["cannot be longer than the head"],
        ),
        case(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\nlimits = { headers = 0 } # <-\n",
            "listener.limits.headers",
            &["out of bounds"],
        ),
        // Routes.
        case("[[route]] # <-\npath_prefix = \"/a\"\n", "route.upstream", &["is missing"]),
        case(
            "[[route]]\npath_prefix = \"/a\"\nupstream = \"ap\" # <-\n",
            "route.upstream",
            &["no upstream \"ap\"", "did you mean \"app\"?"],
        ),
        case("[[route]]\npath_prefix = \"/a\"\nupstream = \"\" # <-\n", "route.upstream", &["no upstream \"\""]),
        case("[[route]]\npath_prefix = \"a\" # <-\nupstream = \"app\"\n", "route.path_prefix", &["does not begin with '/'"]),
        case("[[route]]\npath_prefix = \"/a?b\" # <-\nupstream = \"app\"\n", "route.path_prefix", &["contains '?'"]),
        case("[[route]]\npath_prefix = \"/a/%2E./b\" # <-\nupstream = \"app\"\n", "route.path_prefix", &["dot segment"]),
        case("[[route]]\npath_prefix = \"/a%2\" # <-\nupstream = \"app\"\n", "route.path_prefix", &["percent-encoding"]),
        whole(
            "[[listener]]\nname=\"a\"\naddress=\"[::]:1\"\n[[upstream]]\nname=\"u\"\nendpoints=[\"127.0.0.1:2\"]\n\
             [[route]]\nupstream=\"u\"\n[[route]] # <-\nupstream=\"u\"\n",
            "route.path_prefix",
            &["an earlier route takes \"/\""],
        ),
        case(
            "[[route]]\npath_prefix = \"/a\"\nupstream = \"app\"\ntimeout = \"0s\" # <-\n",
            "route.timeout",
            &["must not be zero"],
        ),
        case(
            "[[route]]\npath_prefix = \"/a\"\nupstream = \"app\"\nbuffer_response = \"1GiB\" # <-\n",
            "route.buffer_response",
            &["process.buffer_budget", "at most 64MiB"],
        ),
        // Upstreams.
        case("[[upstream]] # <-\nname = \"u\"\n", "upstream.endpoints", &["is missing"]),
        case("[[upstream]] # <-\nname = \"u\"\nendpoints = []\n", "upstream.endpoints", &["at least one address"]),
        whole(
            "[[listener]]
name=\"a\"
address=\"[::]:1\"
[[upstream]]
name=\"u\"
endpoints=[\"127.0.0.1:2\"]
\
             [[upstream]]
name=\"u\" # <-
endpoints=[\"127.0.0.1:2\"]
",
            "upstream.name",
            &["\"u\" is taken already"],
        ),
        case("[[upstream]]\nname = \"u\"\nendpoints = [\"10.0.0.1\"] # <-\n", "upstream.endpoints", &["has no port"]),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [\"app.internal:80\"] # <-\n",
            "upstream.endpoints",
            &["host name, which is not built yet"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [\"10.0.0.1:1\",\n\"10.0.0.1:1\"] # <-\n",
            "upstream.endpoints",
            &["listed twice"],
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [{ address = \"10.0.0.1:1\", weight = 2 }] # <-\n",
            "upstream.endpoints.weight",
            not_built,
        ),
        case(
            "[[upstream]]\nname = \"u\"\nendpoints = [{ adress = \"10.0.0.1:1\", address = \"10.0.0.2:1\" }] # <-\n",
            "upstream.endpoints.adress",
            &["did you mean `address`?"],
        ),
        case("[[upstream]]\nname = \"u\"\nendpoints = [{}] # <-\n", "upstream.endpoints.address", &["is missing"]),
        case("[[upstream]]\nname = \"u\"\nendpoints = [7] # <-\n", "upstream.endpoints", &["is an integer"]),
        case("[[upstream]]\nname = \"u\"\nendpoints = \"10.0.0.1:1\" # <-\n", "upstream.endpoints", &["is a string"]),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nretry.attempts = 0 # <-\n",
            "upstream.retry.attempts",
            &["1 to 16"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\npool.idle_timeout = \"0s\" # <-\n",
            "upstream.pool.idle_timeout",
            &["must not be zero"],
        ),
        case(
            "[[upstream]]\nname=\"u\"\nendpoints=[\"10.0.0.1:1\"]\nconnect_timeout = \"1h\" # <-\n",
            "upstream.connect_timeout",
            &["1ms to 5m"],
        ),
        // Syntax.
        case("[process]\nuser = \"a # <-\n", "", &["invalid basic string"]),
        case("[process]\nuser = \"a\"\nuser = \"b\" # <-\n", "user", &["duplicate key"]),
    ];
    for case in &cases {
        let base = if case.base { BASE } else { "" };
        let text = format!("{}{base}", case.toml);
        let errors = resolve_text(&text).expect_err(case.toml);
        assert_eq!(errors.len(), 1, "{}\n{errors}", case.toml);
        let error = errors.iter().next().expect("one");
        assert_eq!(error.key, case.key, "{errors}");
        let line = case.toml.lines().position(|line| line.contains("# <-")).map_or(1, |index| index + 1);
        assert_eq!(error.line(), line, "{errors}");
        assert_eq!(error.path(), Path::new("etc/test.toml"));
        let shown = error.to_string();
        assert!(shown.starts_with(&format!("etc/test.toml:{line}:")), "{shown}");
        for words in case.words {
            assert!(shown.contains(words), "{shown:?} lacks {words:?}");
        }
        let rendered = errors.render(false);
        for words in [case.key, &error.message] {
            assert!(rendered.replace("\n  │ ", " ").contains(words), "{rendered}");
        }
    }
}

#[test]
fn features_that_are_not_built_say_so() {
    let listener = [
        "protocol = \"https\"",
        "protocol = \"tcp\"",
        "protocol = \"tls-passthrough\"",
        "upstream = \"app\"",
        "proxy_protocol = \"accept\"",
        "alpn = [\"h2\"]",
        "certificate = [{ chain = \"a\", key = \"b\" }]",
        "tls.min_version = \"1.2\"",
        "timeouts.tunnel_idle = \"1m\"",
        "timeouts.min_rate = \"1B/s\"",
    ];
    let route = [
        "host = \"example.com\"",
        "path = \"/exact\"",
        "listener = [\"web\"]",
        "redirect = { to = \"/\" }",
        "respond = { status = 200 }",
        "request_headers.set = { a = \"b\" }",
        "response_headers = { remove = [\"server\"] }",
        "buffer_request = \"2MiB\"",
    ];
    let upstream = [
        "endpoints_file = \"a\"",
        "balance = \"maglev\"",
        "hash_on = \"uri\"",
        "slow_start = \"1s\"",
        "protocol = \"h2\"",
        "send_proxy = true",
        "tls = {}",
        "health = {}",
        "pool.max_connections = 1",
        "pool.queue = 1",
        "pool.queue_timeout = \"2s\"",
        "passive.failures = 1",
        "passive.open_for = \"1s\"",
        "passive.outlier = \"on\"",
        "passive.max_ejected = 0.1",
        "retry.on = [\"502\"]",
        "retry.per_try_timeout = \"1s\"",
        "retry.budget = 0.1",
        "fallback.stale = \"1m\"",
        "fallback.respond = { status = 503 }",
        "fallback.redirect = \"/\"",
    ];
    let top = [
        ("workers", "busy_poll = \"50us\""),
        ("guard", "connections_per_ip = 1024"),
        ("guard", "syn_cookies = \"auto\""),
        ("guard", "ban_for = \"60s\""),
        ("log", "access = \"stdout\""),
    ];
    let in_table = |table: &'static str, head: &'static str| move |line: &&'static str| (table, head, *line);
    let cases = listener
        .iter()
        .map(in_table("listener", "[[listener]]\nname = \"x\"\naddress = \"[::]:1\"\n"))
        .chain(route.iter().map(in_table("route", "[[route]]\nupstream = \"app\"\npath_prefix = \"/x\"\n")))
        .chain(upstream.iter().map(in_table("upstream", "[[upstream]]\nname = \"x\"\nendpoints = [\"10.0.0.1:1\"]\n")))
        .map(|(table, head, line)| (table, head.to_owned(), line))
        .chain(top.iter().map(|(table, line)| (*table, format!("[{table}]\n"), *line)));
    for (table, head, line) in cases {
        let text = format!("{head}{line}\n{BASE}");
        let errors = resolve_text(&text).expect_err(line);
        assert_eq!(errors.len(), 1, "{errors}");
        let error = errors.iter().next().expect("one");
        // `request_headers.set = …` is reported at request_headers, the table that is not built.
        let written = format!("{table}.{}", line.split(" =").next().expect("a key"));
        assert!(written.starts_with(&error.key) && error.key.len() > table.len(), "{errors}");
        assert_eq!(error.line(), head.lines().count() + 1, "{errors}");
        assert!(error.message.contains("is not built yet"), "{errors}");
        if line.starts_with("tls.") && table == "listener" {
            assert_eq!(errors.to_string(), "etc/test.toml:4:1: error: `listener.tls` is not built yet; leave it out");
        }
    }
}

/// The interface's full file with every default that asks for nothing: accepted, silently or with a warning.
#[test]
fn defaults_of_features_that_are_not_built_may_be_written() {
    let text = r#"
        [workers]
        busy_poll = "0ms"
        [guard]
        connections_per_ip = 0
        syn_cookies = "off"
        [[listener]]
        name = "web"
        address = "127.0.0.1:8080"
        upstream = ""
        proxy_protocol = "off"
        alpn = ["http/1.1"]
        certificate = []
        [listener.timeouts]
        tunnel_idle = "600s"
        min_rate = "100B/s"
        [[route]]
        listener = []
        request_headers = { set = {}, add = {}, remove = [] }
        response_headers = { set = {}, add = {}, remove = [] }
        buffer_request = "1MiB"
        upstream = "app"
        [[upstream]]
        name = "app"
        endpoints = [{ address = "127.0.0.1:9000", weight = 1 }]
        endpoints_file = ""
        hash_on = "client-ip"
        slow_start = "0s"
        send_proxy = false
        [upstream.pool]
        max_connections = 0
        queue = 1024
        queue_timeout = "1s"
        [upstream.passive]
        failures = 5
        open_for = "10s"
        outlier = "off"
        max_ejected = 0.5
        [upstream.retry]
        on = ["connect-failure", "reset-before-response"]
        per_try_timeout = "0s"
        budget = 0.2
        [upstream.fallback]
        stale = "0s"
        [log]
        access = "off"
    "#;
    assert_eq!(resolve_text(text), resolve_text(BASE));
    let warned = warnings(text);
    let keys = [
        "timeouts.tunnel_idle",
        "timeouts.min_rate",
        "route.buffer_request",
        "passive.failures",
        "passive.open_for",
        "retry.budget",
    ];
    assert_eq!(warned.len(), keys.len(), "{warned:#?}");
    for (warning, key) in warned.iter().zip(keys) {
        assert!(warning.contains(key) && warning.contains("has no effect"), "{warned:#?}");
    }
}

#[test]
fn defaults_are_those_of_the_interface() {
    let config = resolve_text(BASE).expect("valid");
    let seconds = Duration::from_secs;
    let expected = model::Config {
        process: model::Process {
            run_dir: PathBuf::from("/run/sluice"),
            user: "nobody".to_owned(),
            drain_timeout: seconds(30),
            max_connections: 0,
            buffer_budget: 64 << 20,
        },
        workers: model::Workers {
            count: None,
            cpus: None,
            control_cpus: None,
            numa_local: true,
            busy_poll: Duration::ZERO,
            stuck_after: seconds(5),
        },
        ring: model::Ring { entries: 4096, buffers: 4096, buffer_size: 4096 },
        steering: model::Steering { policy: model::SteeringPolicy::LeastLoaded },
        guard: model::Guard {
            interfaces: vec![],
            mode: model::GuardMode::Auto,
            dry_run: false,
            allow: vec![],
            deny: vec![],
            syn_rate_per_ip: Some(1000),
            syn_burst_per_ip: 2000,
        },
        listeners: vec![
            model::Listener {
                name: "web".to_owned(),
                addresses: vec!["127.0.0.1:8080".parse().expect("address")],
                backlog: 4096,
                timeouts: model::Timeouts {
                    request_header: seconds(30),
                    request_body: seconds(120),
                    keep_alive: seconds(75),
                    send: seconds(60),
                },
                limits: model::Limits {
                    header_bytes: 32 << 10,
                    headers: 100,
                    uri_bytes: 8 << 10,
                    body_bytes: 0,
                    requests_per_connection: 0,
                },
                trusted_proxies: vec![],
            }
            .into(),
        ],
        routes: vec![
            model::Route {
                path_prefix: "/".to_owned(),
                upstream: 0,
                timeout: seconds(60),
                body_timeout: seconds(60),
                buffer_response: 64 << 10,
            }
            .into(),
        ],
        upstreams: vec![
            model::Upstream {
                name: "app".to_owned(),
                endpoints: vec![model::Endpoint {
                    address: "127.0.0.1:9000".parse().expect("address"),
                    label: "127.0.0.1:9000".to_owned(),
                }],
                connect_timeout: seconds(1),
                pool: model::Pool { max_idle: 256, idle_timeout: seconds(60), max_lifetime: seconds(3600) },
                retry: model::Retry { attempts: 2 },
            }
            .into(),
        ],
        admin: model::Admin { address: Some("127.0.0.1:9901".parse().expect("address")) },
        log: model::Log { level: "info".to_owned() },
    };
    assert_eq!(config, expected);
}

#[test]
fn values_other_than_the_defaults_are_taken() {
    let text = r#"
        process = { run_dir = "/run/edge", user = "web", drain_timeout = "1m", max_connections = 0x10, buffer_budget = "1MiB" }
        workers = { count = 2, cpus = "2-3,6", control_cpus = "0", numa = "off", stuck_after = "250ms" }
        ring = { entries = 64, buffers = 32768, buffer_size = "16KiB" }
        steering.policy = "numa-local"
        admin.address = ""
        log.level = "trace"
        [guard]
        interfaces = ["eth0"]
        mode = "driver"
        dry_run = true
        allow = ["::1"]
        deny = ["10.0.0.0/8", "10.0.0.0/8", "::ffff:192.0.2.1"]
        syn_rate_per_ip = "off"
        syn_burst_per_ip = 7
        [[listener]]
        name = "both"
        address = ["[::]:80", "0.0.0.0:80"]
        trusted_proxies = ["10.0.0.0/8"]
        limits = { body_bytes = "1GiB", requests_per_connection = 9 }
        [[upstream]]
        name = "a"
        endpoints = ["10.0.0.1:1"]
        [[upstream]]
        name = "b"
        endpoints = ["[::ffff:10.0.0.2]:1", { address = "[2001:db8::1]:8080" }]
        pool = { max_idle = 0, idle_timeout = "1s", max_lifetime = "2h" }
        [[route]]
        path_prefix = "/b/"
        upstream = "b"
        timeout = "1ms"
        [[route]]
        upstream = "a"
    "#;
    let config = resolve_text(text).map_err(|errors| errors.to_string()).expect("valid");
    assert_eq!(config.process.max_connections, 16);
    assert_eq!(config.workers.cpus, Some(vec![2, 3, 6]));
    assert_eq!((config.workers.count, config.workers.control_cpus), (Some(2), Some(vec![0])));
    assert!(!config.workers.numa_local);
    assert_eq!(config.ring, model::Ring { entries: 64, buffers: 32768, buffer_size: 16384 });
    assert_eq!(config.steering.policy, model::SteeringPolicy::NumaLocal);
    assert_eq!(config.admin.address, None);
    assert_eq!(config.log.level, "trace");
    assert_eq!(config.guard.syn_rate_per_ip, None);
    let deny: Vec<String> = config.guard.deny.iter().map(ToString::to_string).collect();
    assert_eq!(deny, ["10.0.0.0/8", "192.0.2.1/32"]);
    assert_eq!(config.listeners[0].addresses.len(), 2);
    assert_eq!(config.listeners[0].limits.body_bytes, 1 << 30);
    assert_eq!(config.routes.iter().map(|route| route.upstream).collect::<Vec<_>>(), [1, 0]);
    let endpoints: Vec<String> = config.upstreams[1].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(endpoints, ["10.0.0.2:1", "[2001:db8::1]:8080"]);
    assert_eq!(config.upstreams[1].endpoints[0].label, "[::ffff:10.0.0.2]:1");
}

#[test]
fn suspicious_files_get_warnings() {
    let with = |before: &str| warnings(&format!("{before}{BASE}"));
    assert_eq!(with(""), Vec::<String>::new());
    for (toml, words) in [
        ("[process]\nuser = \"root\"\n", "3:8: warning: `process.user`: the data plane".replace("3:", "2:")),
        ("[workers]\ncpus = \"1-2\"\ncontrol_cpus = \"0,2\"\n", "3:16: warning: `workers.control_cpus`: CPU 2".to_owned()),
        ("[guard]\ndeny = [\"10.0.0.0/8\"]\n", "2:9: warning: `guard.interfaces`: no interface is guarded".to_owned()),
        (
            "[guard]\ninterfaces = [\"lo\"]\nallow = [\"::1\"]\ndeny = [\"::1/128\"]\n",
            "4:9: warning: `guard.deny`: ::1/128 is on the allow list".to_owned(),
        ),
        (
            "[[upstream]]\nname = \"u\"\nendpoints = [\"127.0.0.1:1\"]\n",
            "2:8: warning: `upstream.name`: no route leads to \"u\"".to_owned(),
        ),
    ] {
        let warned = with(toml);
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(warned[0].starts_with(&format!("etc/test.toml:{words}")), "{warned:?}");
    }
    for (endpoint, words) in [
        ("127.0.0.1:8080", "is listener \"web\" itself"),
        ("0.0.0.0:8080", ""),
        ("127.0.0.1:9901", "is admin.address"),
        ("127.0.0.2:8080", ""),
        ("127.0.0.1:8081", "is listener \"all\" itself"),
    ] {
        let text = BASE.replace("127.0.0.1:9000", endpoint) + "[[listener]]\nname = \"all\"\naddress = \"[::]:8081\"\n";
        let warned = warnings(&text);
        assert_eq!(warned.len(), usize::from(!words.is_empty()), "{endpoint}: {warned:?}");
        assert!(warned.iter().all(|warning| warning.contains(words)), "{warned:?}");
    }
}

#[test]
fn all_errors_are_reported_at_once_in_the_order_of_the_file() {
    let text = format!("[process]\nusr = 1\n[ring]\nentries = 3\n[workers]\nnuma = 7\n{BASE}[log]\nlevel = \"x\"\n");
    let errors = resolve_text(&text).expect_err("four errors");
    let found: Vec<(usize, &str)> = errors.iter().map(|error| (error.line(), error.key.as_str())).collect();
    assert_eq!(found, [(2, "process.usr"), (4, "ring.entries"), (6, "workers.numa"), (17, "log.level")]);
    assert_eq!(errors.to_string().lines().count(), 4);
}

#[test]
fn many_errors_are_counted_and_not_kept() {
    let text: String = (0..1000).map(|number| format!("unknown_{number} = 1\n")).collect();
    let errors = resolve_text(&(text + BASE)).expect_err("a thousand errors");
    assert_eq!(errors.len(), 1000);
    assert_eq!(errors.iter().count(), diagnostics::DIAGNOSTICS_MAX);
    assert!(errors.to_string().ends_with(&format!("and {} more", 1000 - diagnostics::DIAGNOSTICS_MAX)));
}

#[test]
fn the_excerpt_underlines_the_value() {
    let text = format!("[process]\nuser = \"nobody\"\nrun_dri = \"/run/x\"\n{BASE}");
    let rendered = resolve_text(&text).expect_err("an unknown key").render(false);
    assert!(rendered.contains("etc/test.toml:3:1"), "{rendered}");
    assert!(rendered.contains("3 │ run_dri = \"/run/x\""), "{rendered}");
    assert!(rendered.contains("help: did you mean `run_dir`?"), "{rendered}");
    let underline = rendered.lines().skip_while(|line| !line.contains("run_dri = ")).nth(1).expect("a line below");
    assert_eq!(underline.matches(['─', '┬']).count(), "run_dri".len(), "{rendered}");
    assert!(!rendered.contains('\u{1b}'));
    assert!(resolve_text(&text).expect_err("an unknown key").render(true).contains('\u{1b}'));
}

#[test]
fn columns_count_characters() {
    let errors = resolve_text(&format!("process = {{ user = \"äöü\", usr = 1 }}\n{BASE}")).expect_err("an unknown key");
    let error = errors.iter().next().expect("one");
    assert_eq!((error.line(), error.column()), (1, 27));
}

#[test]
fn a_file_that_is_not_utf8_is_refused_where_it_is_not() {
    let errors = resolve(&[(PathBuf::from("a.toml"), b"[log]\nlevel = \"\xff\"\n".to_vec())]).expect_err("not UTF-8");
    assert_eq!(errors.to_string(), "a.toml:2:10: error: is not UTF-8 here; expected a TOML file");
    assert!(resolve(&[]).is_err());
}

#[test]
fn a_deny_file_is_read_beside_the_main_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let main = folder.path().join("proxy.toml");
    let list = folder.path().join("deny.txt");
    let text = format!("[guard]\ninterfaces = [\"lo\"]\ndeny = [\"10.0.0.0/8\"]\ndeny_file = \"deny.txt\"\n{BASE}");
    std::fs::write(&main, text).expect("written");

    let errors = load(&main).expect_err("no list");
    assert!(errors.to_string().starts_with(&format!("{}:4:13: error: `guard.deny_file`: ", main.display())), "{errors}");
    assert!(errors.to_string().contains("no such file"), "{errors}");

    std::fs::write(&list, "# bad ones\n192.0.2.0/24 # whole\r\n\n  2001:db8::1\n10.0.0.0/8").expect("written");
    let loaded = load(&main).map_err(|errors| errors.to_string()).expect("valid");
    let deny: Vec<String> = loaded.config.guard.deny.iter().map(ToString::to_string).collect();
    assert_eq!(deny, ["10.0.0.0/8", "192.0.2.0/24", "2001:db8::1/128"]);
    assert_eq!(loaded.files.iter().map(|(path, _)| path).collect::<Vec<_>>(), [&main, &list]);
    // The data plane sees the bytes only.
    std::fs::remove_file(&list).expect("removed");
    assert_eq!(resolve(&loaded.files), Ok(loaded.config));
    assert!(resolve(&loaded.files[..1]).is_err());

    std::fs::write(&list, "192.0.2.0/24\n  10.0.0.300 # no\n\x07\n").expect("written");
    let errors = load(&main).expect_err("a wrong line").to_string();
    let lines: Vec<&str> = errors.lines().collect();
    assert!(
        lines[0].starts_with(&format!("{}:2:3: error: `guard.deny_file`: \"10.0.0.300\" is not an address", list.display())),
        "{errors}"
    );
    assert!(lines[1].contains(":3:1:") && lines[1].contains("\"\\u{7}\""), "{errors}");

    std::fs::remove_file(&list).expect("removed");
    std::fs::create_dir(&list).expect("a folder in its place");
    assert!(load(&main).expect_err("a folder").to_string().contains("not a regular file"));
}

#[test]
fn a_missing_main_file_is_named() {
    let errors = load(Path::new("/nonexistent/proxy.toml")).expect_err("missing");
    assert_eq!(errors.to_string(), "/nonexistent/proxy.toml:1:1: error: the configuration cannot be read: no such file");
    assert!(errors.render(false).contains("/nonexistent/proxy.toml"), "{}", errors.render(false));
}

/// The files of the repository, as users find them.
#[test]
fn shipped_files_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let load_shipped = |name: &str| load(&folder.join(name)).map_err(|errors| errors.render(false)).expect(name);

    let full = load_shipped("proxy.toml");
    assert!(full.warnings.is_empty(), "{}", full.warnings);
    let base = resolve_text(BASE).expect("valid");
    assert_eq!(full.config, base, "proxy.toml documents the defaults");

    let dev = load_shipped("dev.toml");
    assert!(dev.warnings.is_empty(), "{}", dev.warnings);
    assert_eq!(dev.config.process.run_dir, Path::new("/run/sluice-dev"));
    assert_eq!((&*dev.config.guard.interfaces, dev.config.guard.mode), (&["lo".to_owned()][..], model::GuardMode::Generic));
    assert_eq!(dev.config.listeners[0].addresses, ["127.0.0.1:8080".parse().expect("address")]);
    assert_eq!(dev.config.upstreams[0].endpoints[0].label, "127.0.0.1:9000");
}

/// Every key that the schema knows is in proxy.toml, commented out or not.
#[test]
fn the_full_file_has_every_key() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/proxy.toml")).expect("readable");
    let mentions = |key: &str| {
        text.lines()
            .map(|line| line.trim_start_matches("# "))
            .any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = ")))
    };
    // An unknown key's report lists the known ones.
    for table in ["process", "workers", "ring", "steering", "guard", "admin", "log"] {
        check_mentions(&format!("[{table}]\nzzzzzzzzzzzzzzzzzzzzzzzz = 1\n{BASE}"), &mentions);
    }
    for table in [
        "listener",
        "listener.timeouts",
        "listener.limits",
        "route",
        "upstream",
        "upstream.pool",
        "upstream.passive",
        "upstream.retry",
    ] {
        let outer = table.split('.').next().expect("a name");
        let header = format!("[[{outer}]]\n");
        let key = table.strip_prefix(outer).expect("a prefix").trim_start_matches('.');
        let dot = if key.is_empty() { "" } else { "." };
        check_mentions(&format!("{header}{key}{dot}zzzzzzzzzzzzzzzzzzzzzzzz = 1\n{BASE}"), &mentions);
    }
}

fn check_mentions(text: &str, mentions: &dyn Fn(&str) -> bool) {
    let errors = resolve_text(text).expect_err("an unknown key");
    let error = errors.iter().find(|error| error.key.contains("zzzz")).expect("the unknown key");
    let known = error.expected.as_deref().and_then(|list| list.strip_prefix("one of ")).expect("a list");
    for key in known.split(", ").filter(|key| {
        !["timeouts", "limits", "tls", "certificate", "pool", "health", "passive", "retry", "fallback"].contains(key)
    }) {
        assert!(mentions(key), "proxy.toml lacks {key}");
    }
}

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
    let line =
        prop_oneof![1 => header.prop_map(str::to_owned), 4 => (key, value).prop_map(|(key, value)| format!("{key} = {value}"))];
    prop::collection::vec(line, 0..24).prop_map(|lines| lines.join("\n"))
}

/// Resolves and shows whatever comes out of it.
fn exercise(bytes: Vec<u8>) {
    let files = [(PathBuf::from("a.toml"), bytes)];
    let parsed = Parsed::new(&files[0].0, &files[0].1);
    parsed.references();
    let (config, errors, warnings) = parsed.resolve(&files, &Unread::new());
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
