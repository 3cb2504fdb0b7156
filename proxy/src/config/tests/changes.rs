//! Changes by a reload, key by key, and how a new configuration succeeds the one that runs.

use std::sync::Arc;

use super::super::changes::Changes;
use super::*;
use crate::tls::testing::Authority;

const MAIN: &str = r#"
[process]
run_dir = "/run/sluice"
[[listener]]
name = "web"
address = "127.0.0.1:8080"
defer_accept = false
[[listener]]
name = "db"
address = "127.0.0.1:5432"
protocol = "tcp"
upstream = "db"
[[route]]
path_prefix = "/"
upstream = "app"
[[route]]
path_prefix = "/old"
upstream = "app"
[[upstream]]
name = "app"
endpoints = ["127.0.0.1:9000"]
[[upstream]]
name = "db"
endpoints = ["127.0.0.1:9001"]
[guard]
[log]
"#;

fn changes(text: &str) -> Changes {
    let (old, new) =
        (resolve_text(MAIN).expect("valid"), resolve_text(text).unwrap_or_else(|errors| panic!("{errors}")));
    Changes::between(&old, &new)
}

/// The main text with one part of it replaced.
fn with(what: &str, by: &str) -> String {
    assert!(MAIN.contains(what), "{what}");
    MAIN.replacen(what, by, 1)
}

#[test]
fn what_is_the_same_has_no_changes() {
    assert_eq!(changes(MAIN), Changes::default());
    assert_eq!(changes(&format!("# a comment\n{MAIN}")), Changes::default());
}

#[test]
fn each_key_that_takes_a_restart_is_named() {
    let process =
        |line: &str| with("run_dir = \"/run/sluice\"", &format!("run_dir = \"/run/sluice\"\n{line}"));
    let table = |header: &str, line: &str| format!("{MAIN}\n[{header}]\n{line}\n");
    let guard = |line: &str| with("[guard]", &format!("[guard]\n{line}"));
    let log = |line: &str| with("[log]", &format!("[log]\n{line}"));
    let web =
        |line: &str| with("address = \"127.0.0.1:8080\"", &format!("address = \"127.0.0.1:8080\"\n{line}"));
    let cases = [
        (with("/run/sluice", "/run/other"), "process.run_dir"),
        (process("user = \"www-data\""), "process.user"),
        (process("max_connections = 9"), "process.max_connections"),
        (process("buffer_budget = \"8MiB\""), "process.buffer_budget"),
        (process("sandbox = \"off\""), "process.sandbox"),
        (table("workers", "count = 2"), "workers.count"),
        (table("workers", "cpus = \"0-3\""), "workers.cpus"),
        (table("workers", "control_cpus = \"0\""), "workers.control_cpus"),
        (table("workers", "numa = \"off\""), "workers.numa"),
        (table("workers", "stuck_after = \"1s\""), "workers.stuck_after"),
        (table("ring", "entries = 128"), "ring.entries"),
        (table("ring", "buffers = 128"), "ring.buffers"),
        (table("ring", "buffer_size = \"8KiB\""), "ring.buffer_size"),
        (table("steering", "policy = \"hash\""), "steering.policy"),
        (guard("interfaces = [\"lo\"]"), "guard.interfaces"),
        (guard("mode = \"generic\""), "guard.mode"),
        (guard("dry_run = true"), "guard.dry_run"),
        (guard("allow = [\"10.0.0.0/8\"]"), "guard.allow"),
        (guard("syn_rate_per_ip = \"off\""), "guard.syn_rate_per_ip"),
        (guard("syn_burst_per_ip = 3"), "guard.syn_burst_per_ip"),
        (guard("connections_per_ip = 0"), "guard.connections_per_ip"),
        (guard("syn_cookies = \"off\""), "guard.syn_cookies"),
        (guard("ban_for = \"5s\""), "guard.ban_for"),
        (table("admin", "address = \"127.0.0.1:9902\""), "admin.address"),
        (log("access = \"/var/log/a\""), "log.access"),
        (log("query = true"), "log.query"),
        (with("127.0.0.1:8080", "127.0.0.1:8081"), "listener \"web\": address"),
        (web("backlog = 9"), "listener \"web\": backlog"),
        (with("defer_accept = false", "defer_accept = true"), "listener \"web\": defer_accept"),
        (web("protocol = \"tcp\"\nupstream = \"app\""), "listener \"web\": protocol"),
    ];
    for (text, key) in cases {
        assert_eq!(changes(&text).fixed, [key], "{text}");
    }
}

#[test]
fn all_of_them_are_named_at_once_beside_what_could_change() {
    let text = with("\"127.0.0.1:9000\"", "\"127.0.0.1:9009\"").replace("name = \"web\"", "name = \"edge\"")
        + "[ring]\nentries = 128\n";
    let changes = changes(&text);
    assert_eq!(changes.fixed, ["ring.entries", "listener \"web\" (removed)", "listener \"edge\" (new)"]);
    assert!(!changes.live.is_empty());
}

#[test]
fn what_can_change_is_told() {
    let web = |lines: &str| with("defer_accept = false", &format!("defer_accept = false\n{lines}"));
    let upstream = "[[upstream]]\nname = \"new\"\nendpoints = [\"127.0.0.1:9002\"]\n";
    let cases = [
        (with("[log]", "[log]\nlevel = \"debug\""), vec!["log.level changed"]),
        (
            with("[guard]", "[guard]\ndeny = [\"10.0.0.0/8\"]"),
            vec!["guard.deny changed (1 networks now, guard.deny_file included)"],
        ),
        (
            with("/run/sluice\"", "/run/sluice\"\ndrain_timeout = \"1s\""),
            vec!["process.drain_timeout changed"],
        ),
        (with("/run/sluice\"", "/run/sluice\"\ndrain_delay = \"1s\""), vec!["process.drain_delay changed"]),
        (with("/run/sluice\"", "/run/sluice\"\nwatchdog = \"off\""), vec!["process.watchdog changed"]),
        (web("[listener.timeouts]\nsend = \"1s\""), vec!["listeners changed: \"web\""]),
        (web("[listener.limits]\nheaders = 7"), vec!["listeners changed: \"web\""]),
        (web("half_close = \"off\""), vec!["listeners changed: \"web\""]),
        (web("trusted_proxies = [\"10.0.0.0/8\"]"), vec!["listeners changed: \"web\""]),
        (
            web("proxy_protocol = \"accept\"\ntrusted_proxies = [\"10.0.0.0/8\"]"),
            vec!["listeners changed: \"web\""],
        ),
        (with("upstream = \"db\"", "upstream = \"app\""), vec!["listeners changed: \"db\""]),
        (
            with("path_prefix = \"/old\"", "path_prefix = \"/new\""),
            vec!["routes: 1 added, 1 removed (2 now)"],
        ),
        (
            with("path_prefix = \"/old\"", "path_prefix = \"/old\"\ntimeout = \"1s\""),
            vec!["routes: 1 changed (2 now)"],
        ),
        (
            with("path_prefix = \"/old\"\nupstream = \"app\"", "path_prefix = \"/old\"\nupstream = \"db\""),
            vec!["routes: 1 changed (2 now)"],
        ),
        (with("127.0.0.1:9000", "127.0.0.1:9009"), vec!["upstreams changed: \"app\""]),
        (format!("{MAIN}{upstream}"), vec!["upstreams added: \"new\""]),
        // The others' numbers change, which changes nothing.
        (with("[[upstream]]", &format!("{upstream}[[upstream]]")), vec!["upstreams added: \"new\""]),
    ];
    for (text, live) in cases {
        let live = live.into_iter().map(str::to_owned).collect();
        assert_eq!(changes(&text), Changes { fixed: Vec::new(), live }, "{text}");
    }
    let many: String = (0..20).map(|number| upstream.replace("new", &format!("new{number}"))).collect();
    assert!(changes(&format!("{MAIN}{many}")).live[0].ends_with("\"new7\" and 12 more"));
}

#[test]
fn a_successor_shares_what_is_the_same_wherever_it_stands() {
    let running = resolve_text(MAIN).expect("valid");
    let (web, db) = MAIN.split_once("[[listener]]\nname = \"db\"").expect("two");
    let (db, rest) = db.split_once("[[route]]").expect("a route");
    let (head, web) = web.split_once("[[listener]]").expect("one");
    let turned = format!("{head}[[listener]]\nname = \"db\"{db}[[listener]]{web}[[route]]{rest}");
    let turned = turned.replace("127.0.0.1:9000", "127.0.0.1:9009");
    let new = resolve_text(&turned).expect("valid");
    let new = new.succeed(&running);
    assert_eq!((&*new.listeners[0].name, &*running.listeners[0].name), ("db", "web"));
    assert!(new.listeners.iter().rev().zip(&running.listeners).all(|(new, old)| Arc::ptr_eq(new, old)));
    assert!(!Arc::ptr_eq(&new.upstreams[0], &running.upstreams[0]), "another endpoint");
    assert!(Arc::ptr_eq(&new.upstreams[1], &running.upstreams[1]));
    assert_eq!(new.upstreams[0].endpoints[0].label, "127.0.0.1:9009".into());
}

#[test]
fn a_watched_reload_keeps_the_main_file_and_reads_the_guards_list() {
    let folder = tempfile::tempdir().expect("a folder");
    let (main, list) = (folder.path().join("proxy.toml"), folder.path().join("deny.txt"));
    let write = |path: &Path, text: &str| std::fs::write(path, text).expect("written");
    write(&main, &with("[guard]", "[guard]\ndeny_file = \"deny.txt\""));
    write(&list, "192.0.2.0/24\n");
    let loaded = load(&main).expect("valid");
    assert_eq!(loaded.watched, std::slice::from_ref(&list));
    write(&main, "half a fi");
    let again = load_watched(&loaded.files).expect("nothing that counts has changed");
    assert_eq!((&again.config, &again.files), (&loaded.config, &loaded.files));
    write(&list, "192.0.2.0/24\n198.51.100.0/24\n");
    let again = load_watched(&loaded.files).expect("a list");
    assert_eq!(
        Changes::between(&loaded.config, &again.config).live,
        ["guard.deny changed (2 networks now, guard.deny_file included)"]
    );
    write(&list, "not a network\n");
    assert!(load_watched(&loaded.files).is_err());
    assert!(load(&main).is_err());
}

#[test]
fn certificates_are_watched_and_a_renewed_one_is_named() {
    let authority = Authority::new("CA");
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    let put = |file: &str, names: &[&str]| {
        let pair = authority.leaf(names);
        write(&format!("{file}.pem"), &pair.chain);
        write(&format!("{file}.key"), &pair.key);
    };
    put("a", &["a.example"]);
    put("b", &["b.example"]);
    let certificate =
        |file: &str| format!("[[listener.certificate]]\nchain = \"{file}.pem\"\nkey = \"{file}.key\"\n");
    let https = with(
        "defer_accept = false",
        &format!("protocol = \"https\"\n{}{}", certificate("a"), certificate("b")),
    );
    write("proxy.toml", &https.replace("[guard]", "[guard]\ndeny_file = \"deny.txt\""));
    write("deny.txt", "");
    let loaded = load(&folder.path().join("proxy.toml")).unwrap_or_else(|errors| panic!("{errors}"));
    let watched: Vec<PathBuf> =
        ["deny.txt", "a.pem", "a.key", "b.pem", "b.key"].map(|name| folder.path().join(name)).to_vec();
    assert_eq!(loaded.watched, watched);

    // Renewed, while the main file is being edited.
    put("b", &["b.example", "www.b.example"]);
    write("proxy.toml", "half a fi");
    let again = load_watched(&loaded.files).unwrap_or_else(|errors| panic!("{errors}"));
    let live = [
        "listeners changed: \"web\"",
        "certificates taken: \"b.example\"",
        "certificates let go: \"b.example\"",
    ];
    assert_eq!(
        Changes::between(&loaded.config, &again.config),
        Changes { fixed: Vec::new(), live: live.map(str::to_owned).to_vec() }
    );
    let tls = |config: &model::Config| Arc::clone(config.listeners[0].tls.as_ref().expect("https"));
    assert_eq!(tls(&again.config).certificates[0], tls(&loaded.config).certificates[0]);

    // With other limits it is the same TLS, whose tickets go on.
    write(
        "proxy.toml",
        &https.replacen("[[listener.certificate]]", "limits = { headers = 9 }\n[[listener.certificate]]", 1),
    );
    let limited = load(&folder.path().join("proxy.toml"))
        .unwrap_or_else(|errors| panic!("{errors}"))
        .config
        .succeed(&again.config);
    assert_eq!(limited.listeners[0].limits.headers, 9);
    assert!(Arc::ptr_eq(&tls(&limited), &tls(&again.config)));

    // The chain without its key yet: an error, and the files in force stay as they were.
    write("a.pem", &authority.leaf(&["a.example"]).chain);
    let errors = load_watched(&again.files).expect_err("it does not match").to_string();
    assert!(errors.contains("a.key") || errors.contains("a.pem"), "{errors}");
    std::fs::remove_file(folder.path().join("a.key")).expect("removed");
    assert!(load_watched(&again.files).expect_err("gone").to_string().contains("no such file"));
}
