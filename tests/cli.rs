//! The commands, their exit codes, and the messages of `check` for a wrong configuration.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use tests::origin::{Origin, Response};
use tests::process::{self, Output};
use tests::sluice::{self, Setup, binary};

const LIMIT: Duration = Duration::from_secs(30);

fn nowhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 9))
}

fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checked.toml");
    std::fs::write(&path, text).unwrap();
    sluice::command(&["check", "--config", path.to_str().unwrap()])
}

/// The number, from 1, of the line of `text` that contains `needle`.
fn line_of(text: &str, needle: &str) -> usize {
    text.lines().position(|line| line.contains(needle)).unwrap_or_else(|| panic!("{needle} in {text}")) + 1
}

#[test]
fn check_accepts_what_runs() {
    let text = Setup::to(nowhere()).text();
    let checked = check(&text);
    assert_eq!(checked.code(), 0, "{}", checked.all());
}

#[test]
fn check_accepts_the_files_of_the_repository() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("config");
    // The demo makes its certificate when it starts.
    let made = tempfile::tempdir().unwrap();
    let into = made.path().join("dev-tls");
    for _ in 0..2 {
        assert_eq!(sluice::command(&["demo-certificate", into.to_str().unwrap()]).code(), 0);
    }
    std::fs::copy(folder.join("dev.toml"), made.path().join("dev.toml")).unwrap();
    for (folder, name) in [(made.path(), "dev.toml"), (&folder, "proxy.toml")] {
        let path = folder.join(name);
        let checked = sluice::command(&["check", "--config", path.to_str().unwrap()]);
        assert_eq!(checked.code(), 0, "{name}: {}", checked.all());
    }
}

#[test]
fn check_names_file_line_key_and_what_to_write() {
    let good = Setup::to(nowhere()).text();
    // Each case: the right text, the wrong text that replaces it, and every word that the message must
    // contain.
    let wrong: &[(&str, &str, &[&str])] = &[
        ("level = \"info\"", "levle = \"info\"", &["levle", "level"]),
        ("count = 1", "coutn = 1", &["coutn", "count"]),
        ("count = 1", "count = \"some\"", &["count"]),
        ("[log]", "[lgo]", &["lgo", "log"]),
        ("level = \"info\"", "level = \"loud\"", &["level", "loud", "warn"]),
        ("level = \"info\"", "level = 3", &["level"]),
        (
            "[listener.limits]",
            "[listener.limits]\nheader_bytes = \"32 parsecs\"",
            &["header_bytes", "32 parsecs"],
        ),
        ("[listener.timeouts]", "[listener.timeouts]\nkeep_alive = \"soon\"", &["keep_alive", "soon"]),
        ("[listener.timeouts]", "[listener.timeouts]\nkeepalive = \"5s\"", &["keepalive", "keep_alive"]),
        ("upstream = \"app\"", "upstream = \"ap\"", &["ap", "app"]),
        ("endpoints = [", "endpoints = [\"10.0.0.1:99999\", ", &["endpoints", "99999"]),
        ("[guard]", "[guard]\ndeny = [\"10.0.0.0/33\"]", &["deny", "10.0.0.0/33"]),
        ("[steering]", "[steering]\npolicy = \"leest-loaded\"", &["policy", "leest-loaded", "least-loaded"]),
        ("[ring]", "[ring]\nentries = 1000", &["entries"]),
        ("level = \"info\"", "level = \"info\"\nlevel = \"info\"", &["level"]),
        ("level = \"info\"", "level = \"info", &[]),
    ];
    for (right, instead, words) in wrong {
        let text = good.replacen(right, instead, 1);
        assert_ne!(&text, &good, "{right}");
        let checked = check(&text);
        let said = checked.all();
        assert_eq!(checked.code(), 1, "{instead}: {said}");
        assert!(said.contains("checked.toml"), "{instead}: the file: {said}");
        let line = line_of(&text, instead.lines().last().unwrap());
        assert!(
            said.contains(&format!(":{line}")) || said.contains(&format!("{line} │")),
            "{instead}: line {line}: {said}"
        );
        for word in *words {
            assert!(said.contains(word), "{instead}: {word:?}: {said}");
        }
    }
}

#[test]
fn check_reports_every_mistake_it_finds() {
    let text = Setup::to(nowhere())
        .text()
        .replace("count = 1", "coutn = 1")
        .replace("level = \"info\"", "levle = \"info\"");
    let said = check(&text).all();
    assert!(said.contains("coutn") && said.contains("levle"), "{said}");
}

#[test]
fn check_refuses_what_is_not_built_yet() {
    let good = Setup::to(nowhere()).text();
    for (right, instead, key) in [
        ("name = \"main\"", "name = \"main\"\nalpn = [\"h2\"]", "alpn"),
        ("name = \"app\"", "name = \"app\"\nbalance = \"maglev\"", "balance"),
    ] {
        let checked = check(&good.replacen(right, instead, 1));
        let said = checked.all();
        assert_eq!(checked.code(), 1, "{instead} must not be ignored: {said}");
        assert!(said.contains(key) && said.to_lowercase().contains("not built"), "{instead}: {said}");
    }
}

#[test]
fn a_missing_file_is_named() {
    for command in ["check", "run", "plan"] {
        let done = sluice::command(&[command, "--config", "/nonexistent/sluice.toml"]);
        assert_ne!(done.code(), 0, "{command}");
        assert!(done.all().contains("/nonexistent/sluice.toml"), "{command}: {}", done.all());
    }
}

#[test]
fn nothing_starts_with_a_wrong_configuration() {
    let setup = Setup::to(nowhere());
    let path = setup.write();
    std::fs::write(&path, setup.text().replace("[log]", "[lgo]")).unwrap();
    let run = sluice::command(&["run", "--config", path.to_str().unwrap()]);
    assert_ne!(run.code(), 0);
    assert!(run.all().contains("lgo"), "{}", run.all());
    assert!(std::net::TcpStream::connect(setup.address()).is_err());
}

#[test]
fn an_address_in_use_is_named() {
    let setup = Setup::to(nowhere());
    let _taken = std::net::TcpListener::bind(setup.address()).unwrap();
    let path = setup.write();
    let run = sluice::command(&["run", "--config", path.to_str().unwrap()]);
    assert_ne!(run.code(), 0);
    assert!(run.all().contains(&setup.address().to_string()), "{}", run.all());
}

#[test]
fn commands_that_are_not_built_say_so() {
    for command in ["upgrade", "top"] {
        let done = sluice::command(&[command]);
        assert_eq!(done.code(), 2, "{command}: {}", done.all());
        assert!(!done.errors().trim().is_empty(), "{command}");
    }
}

#[test]
fn a_wrong_ban_is_a_usage_error_that_says_what_to_write() {
    for (arguments, words) in [
        (&["ban", "example.com"][..], "not an address"),
        (&["ban", "192.0.2.0/24"], "guard.deny"),
        (&["ban", "2001:db8::7:8:9:a/128"], "/64"),
        (&["ban", "0.0.0.0"], "unspecified"),
        (&["ban", "192.0.2.1", "--for", "soon"], "soon"),
        (&["ban", "192.0.2.1", "--for", "10ms"], "1s to 365d"),
        (&["ban"], "ADDR"),
        (&["unban", "ff02::1"], "multicast"),
    ] {
        let done = sluice::command(arguments);
        assert_eq!(done.code(), 2, "{arguments:?}: {}", done.all());
        assert!(done.errors().contains(words), "{arguments:?}: {words}: {}", done.errors());
    }
}

#[test]
fn a_ban_without_a_guard_or_without_a_proxy_says_so() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).start();
    for (command, arguments) in [("ban", &["192.0.2.1"][..]), ("unban", &["192.0.2.1"]), ("bans", &[])] {
        let done = sluice.command_with(command, arguments);
        assert_eq!(done.code(), 1, "{}", done.all());
        assert!(done.errors().contains("guard.interfaces is empty"), "{command}: {}", done.errors());
    }
    let folder = tempfile::tempdir().unwrap();
    let nobody = sluice::command(&["ban", "192.0.2.1", "--run-dir", folder.path().to_str().unwrap()]);
    assert_eq!(nobody.code(), 1, "{}", nobody.all());
    assert!(nobody.errors().contains("no sluice runs"), "{}", nobody.errors());
}

#[test]
fn an_unknown_command_is_a_usage_error() {
    let done = sluice::command(&["frobnicate"]);
    assert_eq!(done.code(), 2, "{}", done.all());
    assert!(done.errors().contains("frobnicate"), "{}", done.all());
    let help = sluice::command(&["--help"]);
    assert_eq!(help.code(), 0);
    for command in ["run", "check", "plan", "stop", "status"] {
        assert!(help.text().contains(command), "{command}: {}", help.text());
    }
}

#[test]
fn plan_says_what_would_run_here() {
    let setup = Setup::to(nowhere()).with("guard", "interfaces = [\"lo\"]");
    let path = setup.write();
    let plan = sluice::command(&["plan", "--config", path.to_str().unwrap()]);
    assert_eq!(plan.code(), 0, "{}", plan.all());
    let said = plan.text().to_lowercase();
    for word in ["worker", "cpu", "node", "lo", "xdp", "generic", "descriptor", "locked memory", "io_uring"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    assert!(std::net::TcpStream::connect(setup.address()).is_err(), "it only plans");
}

#[test]
fn plan_places_workers_on_a_big_machine() {
    let setup = Setup::to(nowhere());
    let path = setup.write();
    std::fs::write(&path, setup.text().replace("count = 1", "count = \"auto\"")).unwrap();
    let mut command = Command::new(binary());
    command.args(["plan", "--config", path.to_str().unwrap()]);
    command.env("HWLOC_SYNTHETIC", "numa:2 core:16 pu:2").env("HWLOC_THISSYSTEM", "0");
    let plan = process::run(&mut command, LIMIT);
    assert_eq!(plan.code(), 0, "{}", plan.all());
    let said = plan.text();
    // The table below "workers", up to the next line without a number. Columns: worker, CPU, core, node.
    let rows = said
        .lines()
        .map(|line| line.split_whitespace().map_while(|word| word.parse().ok()).collect::<Vec<usize>>());
    let rows: Vec<Vec<usize>> =
        rows.skip_while(|row| row.len() < 4).take_while(|row| row.len() >= 4).collect();
    assert_eq!(rows.len(), 31, "32 cores: a worker on each but one, which the control thread has: {said}");
    let cores: BTreeSet<usize> = rows.iter().map(|row| row[2]).collect();
    assert_eq!(cores.len(), rows.len(), "a physical core each: {said}");
    assert!(rows.iter().all(|row| row[1] / 2 == row[2]), "two CPUs a core: {said}");
    for node in 0..2 {
        assert!(rows.iter().filter(|row| row[3] == node).count() >= 15, "spread over the nodes: {said}");
    }
    assert!(rows.iter().all(|row| row[2] / 16 == row[3]), "sixteen cores a node: {said}");
}

/// The rows of the table below "workers". Columns: worker, CPU, core, node.
fn placed(plan: &str) -> Vec<Vec<usize>> {
    let rows = plan
        .lines()
        .map(|line| line.split_whitespace().map_while(|word| word.parse().ok()).collect::<Vec<usize>>());
    rows.skip_while(|row| row.len() < 4).take_while(|row| row.len() >= 4).collect()
}

/// Each case is a machine that hwloc simulates, the keys in `[workers]`, how many workers each node gets, and
/// the CPUs of the control threads.
#[test]
fn plan_fits_machines_of_every_shape() {
    for (machine, workers, per_node, control) in [
        ("numa:2 core:32 pu:2", "", &[31, 32][..], "0-1"),
        ("numa:2 core:32 pu:2", "count = 4", &[2, 2], "0-1"),
        ("numa:2 core:32 pu:2", "cpus = \"64-127\"\ncount = 8", &[0, 8], "0-1"),
        ("numa:2 core:32 pu:2", "control_cpus = \"126-127\"", &[32, 31], "126-127"),
        ("numa:4 core:8 pu:1", "", &[7, 8, 8, 8], "0"),
        ("numa:1 core:2 pu:1", "", &[2], "0-1"),
        ("numa:1 core:1 pu:2", "", &[1], "1"),
        ("numa:8 core:8 pu:2", "numa = \"off\"", &[7, 8, 8, 8, 8, 8, 8, 8], "0-1"),
    ] {
        let setup = Setup::to(nowhere());
        let path = setup.write();
        std::fs::write(&path, setup.text().replace("count = 1", workers)).unwrap();
        let mut command = Command::new(binary());
        command.args(["plan", "--config", path.to_str().unwrap()]);
        command.env("HWLOC_SYNTHETIC", machine).env("HWLOC_THISSYSTEM", "0");
        let plan = process::run(&mut command, LIMIT);
        let said = plan.text();
        let rows = placed(&said);
        let on = |node| rows.iter().filter(|row| row[3] == node).count();
        let found: Vec<usize> = (0..per_node.len()).map(on).collect();
        assert_eq!(found, per_node, "{machine} {workers}: {said}");
        assert!(
            said.contains(&format!("control and log threads: CPUs {control}\n")),
            "{machine} {workers}: {said}"
        );
        let bound = said.matches("not bound").count();
        assert_eq!(
            bound,
            if workers.contains("off") { rows.len() } else { 0 },
            "{machine} {workers}: {said}"
        );
    }
}

/// A card with four queues on the far node of a two-socket machine, as /sys and /proc describe it.
#[test]
fn plan_shows_a_cards_interrupts_and_what_to_change() {
    let root = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = root.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let device = "sys/devices/pci0000:80/0000:81:00.0";
    write(&format!("{device}/numa_node"), "1\n");
    std::fs::create_dir_all(root.path().join("sys/class/net")).unwrap();
    let net = format!("{device}/net/eth0");
    write(&format!("{net}/flags"), "0x1003\n");
    let mut interrupts = String::from("            CPU0       CPU1\n");
    // The interrupts go to two CPUs of the other node, two queues to each.
    for (queue, cpu) in [0, 1, 0, 1].into_iter().enumerate() {
        let number = 100 + queue;
        write(&format!("{device}/msi_irqs/{number}"), "msix\n");
        write(&format!("{net}/queues/rx-{queue}/rps_cpus"), "00000000,00000000\n");
        write(&format!("{net}/queues/tx-{queue}/tx_timeout"), "0\n");
        write(&format!("proc/irq/{number}/effective_affinity_list"), &format!("{cpu}\n"));
        interrupts.push_str(&format!(
            " {number}:     17     0   IR-PCI-MSI 1-edge      mlx5_comp{queue}@pci:0000:81:00.0\n"
        ));
    }
    write("proc/interrupts", &interrupts);
    std::os::unix::fs::symlink("../../../0000:81:00.0", root.path().join(&net).join("device")).unwrap();
    std::os::unix::fs::symlink(format!("../../../{net}"), root.path().join("sys/class/net/eth0")).unwrap();
    let setup = Setup::to(nowhere());
    let path = setup.write();
    std::fs::write(&path, setup.text().replace("count = 1", "count = 4")).unwrap();
    let mut command = Command::new(binary());
    command.args(["plan", "--config", path.to_str().unwrap(), "--root", root.path().to_str().unwrap()]);
    command.env("HWLOC_SYNTHETIC", "numa:2 core:4 pu:1").env("HWLOC_THISSYSTEM", "0");
    let plan = process::run(&mut command, LIMIT);
    assert_eq!(plan.code(), 0, "{}", plan.all());
    let said = plan.text();
    for line in [
        "eth0: driver virtual, NUMA node 1, 4 receive and 4 transmit queues, 4 workers",
        "interrupt 100 mlx5_comp0@pci:0000:81:00.0: CPU 0 (control threads, node 0)",
        "advice: 2 of 4 queue interrupts arrive at CPU 1, while other CPUs have none",
        "advice: queue interrupts arrive at CPUs without a worker: 0",
        "advice: queue interrupts arrive at CPUs of another NUMA node than the card's: 0-1",
        "for m in 100:4 101:5 102:1 103:2; do",
    ] {
        assert!(said.contains(line), "{line:?} is missing in\n{said}");
    }
}

#[test]
fn status_shows_both_halves() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).start();
    assert_eq!(sluice.get("/").status, 200);
    let shown = sluice.command("status");
    assert_eq!(shown.code(), 0, "{}", shown.all());
    let said = shown.text();
    for word in [sluice.pid().to_string(), sluice.data_plane_pid().to_string(), sluice.address().to_string()]
    {
        assert!(said.contains(&word), "{word}: {said}");
    }
    let status = sluice.status();
    assert_eq!(status["supervisor"]["pid"], sluice.pid());
    assert_eq!(status["data_plane"]["pid"], sluice.data_plane_pid());
    assert_eq!(status["data_plane"]["listeners"][0]["address"], sluice.address().to_string());
    assert_eq!(status["data_plane"]["upstreams"][0]["endpoints"][0]["address"], origin.address().to_string());
    assert_eq!(status["data_plane"]["workers"][0]["state"], "live");
}

#[test]
fn status_of_nobody_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["status", "stop"] {
        let done = sluice::command(&[command, "--run-dir", folder.path().to_str().unwrap()]);
        assert_ne!(done.code(), 0, "{command}");
        assert!(done.errors().contains(folder.path().to_str().unwrap()), "{command}: {}", done.all());
    }
}

#[test]
fn the_admin_endpoints_answer() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).start();
    for path in ["/healthz", "/readyz", "/metrics", "/status"] {
        assert_eq!(sluice.admin(path).unwrap().status, 200, "{path}");
    }
    assert_eq!(sluice.admin("/nothing").unwrap().status, 404);
    let metrics = sluice.metrics();
    let names = metrics.names();
    assert!(names.len() > 30 && names.iter().all(|name| name.starts_with("sluice_")), "{names:?}");
    let served = sluice.admin("/metrics").unwrap();
    assert!(served.field("content-type").is_some_and(|kind| kind.contains("text")), "{served:?}");
}

/// Applies the rules of promtool, after the counters have counted something.
#[test]
fn the_metrics_keep_the_rules_of_their_format() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).workers(2).with("log", "access = \"stdout\"").start();
    for _ in 0..5 {
        assert_eq!(sluice.get("/").status, 200);
    }
    let mut malformed = sluice.client();
    malformed.send("NONSENSE\r\n\r\n");
    assert_eq!(malformed.response("GET").status, 400);
    malformed.until_closed();
    tests::eventually(LIMIT, "they are counted", || {
        (sluice.metrics().sum("sluice_connections_open") < 0.5).then_some(())
    });
    let text = sluice.admin("/metrics").unwrap().text();
    assert_eq!(tests::openmetrics::complaints(&text), Vec::<String>::new(), "{text}");
    let metrics = sluice.metrics();
    assert!((metrics.sum("sluice_request_duration_seconds_count") - 5.0).abs() < 0.5, "{text}");
    assert!(metrics.labelled("sluice_request_duration_seconds_bucket", "le", "+Inf") >= 5.0, "{text}");

    // `sluice status` shows the same numbers.
    let status = sluice.status();
    let reasons = &status["data_plane"]["reasons"];
    assert_eq!(
        (&reasons["closed"]["bad_request"], &reasons["refused"]["malformed"]),
        (&1.into(), &1.into()),
        "{status}"
    );
    assert_eq!(status["data_plane"]["logs"]["access"], "stdout");
    assert_eq!(status["data_plane"]["snapshot"], 1);
    // The log's thread writes at intervals, so the records may come late.
    let shown = tests::eventually(LIMIT, "six records are written", || {
        let shown = sluice.command("status").text();
        shown.contains("access log: stdout, 6 records written").then_some(shown)
    });
    for line in ["malformed", "bad_request", "main", ", up "] {
        assert!(shown.contains(line), "{line:?} is missing in\n{shown}");
    }
}

/// A pipeline has neither keys nor users, and pipes the file in.
#[test]
fn check_reads_standard_input_without_files_and_writes_json() {
    let text = Setup::to(nowhere()).text().replace("[guard]", "[guard]\ninterfaces = [\"none0\"]");
    let text = text.replace("user = \"", "user = \"no-such-user-");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("piped.toml");
    let piped = |text: &str, arguments: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(binary());
        command.args(arguments).args(["--config", "-"]);
        process::run_with(&mut command, std::fs::File::open(&path).unwrap().into(), LIMIT)
    };
    let json = |output: &Output| serde_json::from_str::<serde_json::Value>(&output.text()).unwrap();

    let alone = piped(&text, &["check", "--no-files"]);
    assert_eq!(alone.code(), 0, "{}", alone.all());
    let here = piped(&text, &["check", "--json"]);
    assert_eq!(here.code(), 1, "{}", here.all());
    let found = json(&here)["findings"].as_array().unwrap().clone();
    let keys: BTreeSet<&str> = found.iter().map(|finding| finding["key"].as_str().unwrap()).collect();
    assert_eq!(keys, BTreeSet::from(["guard.interfaces", "process.user"]), "{found:?}");
    let planned = piped(&text, &["plan", "--json"]);
    assert_eq!((planned.code(), &json(&planned)["would_start"]), (1, &false.into()), "{}", planned.all());
    let wrong = piped(&text.replace("[log]", "[lgo]"), &["check", "--no-files", "--json"]);
    assert_eq!(wrong.code(), 1, "{}", wrong.all());
    let first = &json(&wrong)["diagnostics"][0];
    assert_eq!((first["key"].as_str(), first["severity"].as_str()), (Some("lgo"), Some("error")), "{first}");
    assert!(first["line"].as_u64().unwrap() > 1 && first["expected"].is_string(), "{first}");
}

#[test]
fn a_start_that_fails_is_a_line_of_the_log() {
    let setup = Setup::to(nowhere());
    let path = setup.write();
    let _taken = std::net::TcpListener::bind(setup.address()).unwrap();
    let run = || sluice::command(&["run", "--config", path.to_str().unwrap()]).errors();
    let is_json = |text: &str| {
        text.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
            && text.lines().last().is_some_and(|line| line.contains("\"level\":\"ERROR\""))
    };
    let said = run();
    assert!(is_json(&said) && said.contains("in use by another process"), "{said}");
    std::fs::write(&path, setup.text().replace("[log]", "[lgo]")).unwrap();
    let said = run();
    assert!(is_json(&said) && said.contains("no such key"), "{said}");
    std::fs::write(&path, setup.text().replace("[log]", "[log]\nformat = \"text\"")).unwrap();
    let said = run();
    assert!(!said.contains("{\"") && said.contains("ERROR") && !said.contains('\u{1b}'), "{said}");
}
