//! Defaults and values, warnings, how diagnostics look, and the files of `config/`.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::io::settings::Ring;
use crate::kernel::guard::{Fragments, Guard, GuardMode, SynCookies};
use crate::kernel::steering::{Steering, SteeringPolicy};
use crate::listen::{Listener, ListenerLimits, Protocol, Reading, Timeouts};
use crate::route::RouteTable;
use crate::route::model::{Action, Route, RoutePath};
use crate::sandbox::Sandbox;
use crate::upstream::model::{Endpoint, PoolLimits, Retry, RetryOn, Upstream};

mod advice;
mod changes;
mod errors;
mod every_key;
mod passthrough;
mod properties;
mod routes;
mod tls;

/// Tables that every file needs; cases put their own tables before or after them.
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
    resolve(&[(PathBuf::from("etc/test.toml"), text.as_bytes().to_vec().into())])
}

fn warnings(text: &str) -> Vec<String> {
    let parsed = Parsed::new(Path::new("etc/test.toml"), text.as_bytes());
    let (config, errors, warnings) = parsed.resolve(&[], &Facts::default());
    assert!(config.is_some(), "{errors}");
    warnings.iter().map(ToString::to_string).collect()
}

/// The interface's full file with every default that asks for nothing: accepted, silently or with a warning.
#[test]
fn defaults_of_features_that_are_not_built_may_be_written() {
    let text = r#"
        [workers]
        busy_poll = "0ms"
        [[listener]]
        name = "web"
        address = "127.0.0.1:8080"
        upstream = ""
        proxy_protocol = "off"
        alpn = ["http/1.1"]
        certificate = []
        [listener.timeouts]
        tunnel_idle = "600s"
        [[route]]
        listener = []
        request_headers = { set = {}, add = {}, remove = [] }
        response_headers = { set = {}, add = {}, remove = [] }
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
    let keys = ["passive.failures", "passive.open_for", "retry.budget"];
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
            drain_delay: seconds(0),
            watchdog: Some(seconds(15)),
            max_connections: 0,
            buffer_budget: 64 << 20,
            sandbox: Sandbox::Auto,
        },
        workers: model::Workers {
            count: None,
            cpus: None,
            control_cpus: None,
            numa_local: true,
            busy_poll: Duration::ZERO,
            stuck_after: seconds(5),
        },
        ring: Ring { entries: 4096, buffers: 4096, buffer_size: 4096 },
        steering: Steering { policy: SteeringPolicy::LeastLoaded },
        guard: Guard {
            interfaces: vec![],
            mode: GuardMode::Auto,
            dry_run: false,
            allow: vec![],
            deny: vec![],
            syn_rate_per_ip: Some(1000),
            syn_burst_per_ip: 2000,
            ban_for: seconds(60),
            connections_per_ip: Some(1024),
            syn_cookies: SynCookies::Auto,
            syn_cookies_rate: 100_000,
            fragments: Fragments::Judge,
        },
        listeners: vec![
            Listener {
                name: "web".to_owned(),
                addresses: vec!["127.0.0.1:8080".parse().expect("address")],
                protocol: Protocol::Http,
                tls: None,
                proxy_protocol: false,
                backlog: 4096,
                defer_accept: true,
                freebind: false,
                timeouts: Timeouts {
                    request_header: seconds(30),
                    request_body: seconds(120),
                    keep_alive: seconds(75),
                    send: seconds(60),
                    tunnel_idle: seconds(600),
                    min_rate: NonZero::new(100),
                },
                half_close: Some(seconds(2)),
                limits: ListenerLimits {
                    header_bytes: 32 << 10,
                    headers: 100,
                    uri_bytes: 8 << 10,
                    body_bytes: 0,
                    requests_per_connection: 0,
                },
                reading: Reading::default(),
                trusted_proxies: vec![],
            }
            .into(),
        ],
        routes: RouteTable::new(vec![
            Route {
                hosts: vec![],
                path: RoutePath::Prefix("/".into()),
                listeners: vec![],
                label: "/".into(),
                action: Action::Upstream(0),
                client_cert: false,
                request_headers: None,
                response_headers: None,
                timeout: seconds(60),
                body_timeout: seconds(60),
                buffer_request: 1 << 20,
                buffer_response: 64 << 10,
            }
            .into(),
        ]),
        upstreams: vec![
            Upstream {
                name: "app".to_owned().into(),
                endpoints: vec![Endpoint {
                    address: "127.0.0.1:9000".parse().expect("address"),
                    label: "127.0.0.1:9000".to_owned().into(),
                    weight: 1,
                }],
                connect_timeout: seconds(1),
                source: Vec::new(),
                send_proxy: false,
                tls: None,
                pool: PoolLimits { max_idle: 256, idle_timeout: seconds(60), max_lifetime: seconds(3600) },
                retry: Retry { attempts: 2, on: RetryOn::default() },
            }
            .into(),
        ],
        admin: model::Admin { address: Some("127.0.0.1:9901".parse().expect("address")) },
        log: model::Log {
            level: "info".to_owned(),
            format: model::LogFormat::Auto,
            access: model::AccessLog::Off,
            with_query: false,
        },
    };
    assert_eq!(config, expected);
}

#[test]
fn values_other_than_the_defaults_are_taken() {
    let text = r#"
        process.run_dir = "/run/edge"
        process.user = "web"
        process.drain_timeout = "1m"
        process.watchdog = "off"
        process.max_connections = 0x10
        process.buffer_budget = "1MiB"
        process.sandbox = "require"
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
        connections_per_ip = 0
        syn_cookies = "always"
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
        source = ["192.0.2.1", "2001:db8::9", "::ffff:192.0.2.2"]
        pool = { max_idle = 0, idle_timeout = "1s", max_lifetime = "2h" }
        retry = { attempts = 1, on = [] }
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
    assert_eq!(config.process.sandbox, Sandbox::Require);
    assert_eq!(config.ring, Ring { entries: 64, buffers: 32768, buffer_size: 16384 });
    assert_eq!(config.steering.policy, SteeringPolicy::NumaLocal);
    assert_eq!(config.admin.address, None);
    assert_eq!(config.log.level, "trace");
    assert_eq!(config.process.watchdog, None);
    assert_eq!((config.guard.syn_rate_per_ip, config.guard.connections_per_ip), (None, None));
    assert_eq!(config.guard.syn_cookies, SynCookies::Always);
    let deny: Vec<String> = config.guard.deny.iter().map(ToString::to_string).collect();
    assert_eq!(deny, ["10.0.0.0/8", "192.0.2.1/32"]);
    assert_eq!(config.listeners[0].addresses.len(), 2);
    assert_eq!(config.listeners[0].limits.body_bytes, 1 << 30);
    let actions: Vec<_> = config.routes.routes().iter().map(|route| route.action.clone()).collect();
    assert_eq!(actions, [Action::Upstream(1), Action::Upstream(0)]);
    let endpoints: Vec<String> =
        config.upstreams[1].endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect();
    assert_eq!(endpoints, ["10.0.0.2:1", "[2001:db8::1]:8080"]);
    assert_eq!(config.upstreams[1].endpoints[0].label, "[::ffff:10.0.0.2]:1".into());
    let source: Vec<String> = config.upstreams[1].source.iter().map(ToString::to_string).collect();
    assert_eq!(source, ["192.0.2.1", "2001:db8::9", "192.0.2.2"]);
}

#[test]
fn suspicious_files_get_warnings() {
    let with = |before: &str| warnings(&format!("{before}{BASE}"));
    assert_eq!(with(""), Vec::<String>::new());
    for loopback in ["127.0.0.9:9901", "[::1]:9901", "[::ffff:127.0.0.1]:9901", ""] {
        assert_eq!(with(&format!("[admin]\naddress = \"{loopback}\"\n")), Vec::<String>::new());
    }
    for (toml, words) in [
        ("[process]\nuser = \"root\"\n", "3:8: warning: `process.user`: the data plane".replace("3:", "2:")),
        (
            "[workers]\ncpus = \"1-2\"\ncontrol_cpus = \"0,2\"\n",
            "3:16: warning: `workers.control_cpus`: CPU 2".to_owned(),
        ),
        (
            "[guard]\ndeny = [\"10.0.0.0/8\"]\n",
            "2:9: warning: `guard.interfaces`: no interface is guarded".to_owned(),
        ),
        (
            "[admin]\naddress = \"[::]:9901\"\n",
            "2:11: warning: `admin.address`: [::]:9901 is beyond loopback".to_owned(),
        ),
        (
            "[admin]\naddress = \"192.0.2.1:9901\"\n",
            "2:11: warning: `admin.address`: 192.0.2.1:9901 is beyond loopback".to_owned(),
        ),
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
        let text = BASE.replace("127.0.0.1:9000", endpoint)
            + "[[listener]]\nname = \"all\"\naddress = \"[::]:8081\"\n";
        let warned = warnings(&text);
        assert_eq!(warned.len(), usize::from(!words.is_empty()), "{endpoint}: {warned:?}");
        assert!(warned.iter().all(|warning| warning.contains(words)), "{warned:?}");
    }
}

#[test]
fn all_errors_are_reported_at_once_in_the_order_of_the_file() {
    let text =
        format!("[process]\nusr = 1\n[ring]\nentries = 3\n[workers]\nnuma = 7\n{BASE}[log]\nlevel = \"x\"\n");
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
    let underline =
        rendered.lines().skip_while(|line| !line.contains("run_dri = ")).nth(1).expect("a line below");
    assert_eq!(underline.matches(['─', '┬']).count(), "run_dri".len(), "{rendered}");
    assert!(!rendered.contains('\u{1b}'));
    assert!(resolve_text(&text).expect_err("an unknown key").render(true).contains('\u{1b}'));
}

#[test]
fn columns_count_characters() {
    let errors = resolve_text(&format!("process = {{ user = \"äöü\", usr = 1 }}\n{BASE}"))
        .expect_err("an unknown key");
    let error = errors.iter().next().expect("one");
    assert_eq!((error.line(), error.column()), (1, 27));
}

#[test]
fn a_file_that_is_not_utf8_is_refused_where_it_is_not() {
    let errors = resolve(&[(PathBuf::from("a.toml"), b"[log]\nlevel = \"\xff\"\n".to_vec().into())])
        .expect_err("not UTF-8");
    assert_eq!(errors.to_string(), "a.toml:2:10: error: is not UTF-8 here; expected a TOML file");
    assert!(resolve(&[]).is_err());
}

#[test]
fn a_deny_file_is_read_beside_the_main_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let main = folder.path().join("proxy.toml");
    let list = folder.path().join("deny.txt");
    let text =
        format!("[guard]\ninterfaces = [\"lo\"]\ndeny = [\"10.0.0.0/8\"]\ndeny_file = \"deny.txt\"\n{BASE}");
    std::fs::write(&main, text).expect("written");

    let errors = load(&main).expect_err("no list");
    assert!(
        errors.to_string().starts_with(&format!("{}:4:13: error: `guard.deny_file`: ", main.display())),
        "{errors}"
    );
    assert!(errors.to_string().contains("no such file"), "{errors}");

    std::fs::write(&list, "# bad ones\n192.0.2.0/24 # whole\r\n\n  2001:db8::1\n10.0.0.0/8")
        .expect("written");
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
        lines[0].starts_with(&format!(
            "{}:2:3: error: `guard.deny_file`: \"10.0.0.300\" is not an address",
            list.display()
        )),
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
    assert_eq!(
        errors.to_string(),
        "/nonexistent/proxy.toml:1:1: error: the configuration cannot be read: no such file"
    );
    assert!(errors.render(false).contains("/nonexistent/proxy.toml"), "{}", errors.render(false));
}

/// The files of the repository, as users find them.
#[test]
fn shipped_files_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    let load_shipped =
        |name: &str| load(&folder.join(name)).map_err(|errors| errors.render(false)).expect(name);

    let full = load_shipped("proxy.toml");
    assert!(full.warnings.is_empty(), "{}", full.warnings);
    let base = resolve_text(BASE).expect("valid");
    assert_eq!(full.config, base, "proxy.toml documents the defaults");

    // Its certificate is made at its start.
    let made = tempfile::tempdir().expect("a folder");
    let copy = made.path().join("dev.toml");
    std::fs::copy(folder.join("dev.toml"), &copy).expect("a copy");
    crate::demo::certificate(&made.path().join("dev-tls"), std::time::SystemTime::now())
        .expect("a certificate");
    let dev = load(&copy).map_err(|errors| errors.render(false)).expect("dev.toml");
    assert!(dev.warnings.is_empty(), "{}", dev.warnings);
    assert_eq!(dev.config.process.run_dir, Path::new("/run/sluice-dev"));
    assert_eq!(
        (&*dev.config.guard.interfaces, dev.config.guard.mode),
        (&["lo".to_owned()][..], GuardMode::Generic)
    );
    assert_eq!(dev.config.listeners[0].addresses, ["127.0.0.1:8080".parse().expect("address")]);
    assert_eq!(dev.config.upstreams[0].endpoints[0].label, "127.0.0.1:9000".into());
}

/// Every key that the schema knows is in proxy.toml, commented out or not.
#[test]
fn the_full_file_has_every_key() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/proxy.toml"))
        .expect("readable");
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
        !["timeouts", "limits", "tls", "certificate", "pool", "health", "passive", "retry", "fallback"]
            .contains(key)
    }) {
        assert!(mentions(key), "proxy.toml lacks {key}");
    }
}

#[test]
fn retries_follow_any_of_the_failures_in_any_order() {
    let [connect, reset] = ["connect-failure", "reset-before-response"];
    for (words, expected) in [
        (vec![], (false, false)),
        (vec![connect], (true, false)),
        (vec![reset], (false, true)),
        (vec![connect, reset], (true, true)),
        (vec![reset, connect], (true, true)),
    ] {
        let text = format!("{BASE}\n[upstream.retry]\non = {words:?}\n");
        let config = resolve_text(&text).map_err(|errors| errors.to_string()).expect("valid");
        let on = config.upstreams[0].retry.on;
        assert_eq!((on.connect_failure, on.reset_before_response), expected, "{words:?}");
    }
}
