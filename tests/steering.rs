//! Steering through the built binary: flows go to the worker with less to do, and a worker that hangs gets
//! none. A request can be followed from the packet that XDP judged to the worker that served it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tests::client::Client;
use tests::netns::Netns;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::threads::Held;
use tests::{eventually, process, skip, threads};

const LIMIT: Duration = Duration::from_secs(15);

fn cannot_compare_workers() -> bool {
    skip::without_root() || skip::without_two_cpus()
}

/// Opens a connection, waits until it is served, and returns the worker that took it.
fn placed(sluice: &Sluice) -> (usize, Client) {
    let before = sluice.per_worker("accepted");
    let mut client = sluice.client();
    assert_eq!(client.get("/").status, 200);
    let worker = eventually(LIMIT, "a worker counts the connection", || {
        let now = sluice.per_worker("accepted");
        now.iter().zip(&before).position(|(now, before)| now > before)
    });
    (worker, client)
}

#[test]
fn flows_go_to_the_worker_with_less_to_do() {
    if cannot_compare_workers() {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).workers(2).with("steering", "policy = \"least-loaded\"").start();
    assert_eq!(sluice.status()["supervisor"]["steering"]["policy"], "least-loaded");
    let (mut here, mut there): (Vec<Client>, Vec<Client>) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let (worker, client) = placed(&sluice);
        if worker == 0 { here.push(client) } else { there.push(client) }
    }
    let spread = (here.len(), there.len());
    assert!(spread.0.abs_diff(spread.1) <= 4, "forty idle connections are spread evenly: {spread:?}");
    // All connections of the first worker end, so it gets the next connections.
    here.clear();
    eventually(LIMIT, "the first worker is empty", || {
        (sluice.per_worker("connections")[0] == 0).then_some(())
    });
    let mut taken = [0; 2];
    let mut kept = Vec::new();
    for _ in 0..spread.1 - 2 {
        let (worker, client) = placed(&sluice);
        taken[worker] += 1;
        kept.push(client);
    }
    assert_eq!(taken[1], 0, "none goes to the worker that has {}: {taken:?}", spread.1);
}

#[test]
fn every_flow_is_steered_and_counted() {
    if cannot_compare_workers() {
        return;
    }
    for policy in ["least-loaded", "numa-local", "hash"] {
        let origin = Origin::http(|_| Response::ok("ok"));
        let sluice = Setup::to(origin.address())
            .workers(2)
            .with("steering", &format!("policy = \"{policy}\""))
            .start();
        let before = sluice.selected();
        let clients: Vec<Client> = (0..100)
            .map(|_| {
                let mut client = sluice.client();
                assert_eq!(client.get("/").status, 200);
                client
            })
            .collect();
        let after = sluice.selected();
        let grown = |worker: &str| after.get(worker).unwrap_or(&0) - before.get(worker).unwrap_or(&0);
        assert_eq!(grown("0") + grown("1"), 100, "{policy}: {after:?}");
        assert_eq!(
            sluice.per_worker("accepted"),
            [grown("0"), grown("1")],
            "{policy}: what was steered is what was accepted"
        );
        assert!(grown("0") >= 20 && grown("1") >= 20, "{policy}: both take part: {after:?}");
        drop(clients);
    }
}

#[test]
fn a_worker_that_hangs_gets_no_new_flows() {
    if cannot_compare_workers() {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let sluice = Setup::to(origin.address()).workers(2).with("workers", "stuck_after = \"1s\"").start();
    let pid = sluice.data_plane_pid();
    let named: BTreeMap<String, u32> =
        threads::threads(pid).into_iter().map(|(tid, name)| (name, tid)).collect();
    let workers: Vec<(&String, &u32)> = named.iter().filter(|(name, _)| name.contains("worker")).collect();
    assert_eq!(workers.len(), 2, "{named:?}");
    // Clients of both workers are connected already: at least one waits for the worker that hangs.
    let address = sluice.address();
    let mut provoking = Vec::new();
    let held = Held::at_work(*workers[0].1, LIMIT, || {
        for _ in 0..2 {
            let mut client = Client::connect(address);
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            provoking.push(client);
        }
    });
    std::thread::sleep(Duration::from_millis(1500));
    let before = sluice.selected();
    let mut clients: Vec<Client> = (0..40).map(|_| sluice.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200, "the other worker serves them all");
    }
    let after = sluice.selected();
    let grown: Vec<u64> =
        ["0", "1"].map(|worker| after.get(worker).unwrap_or(&0) - before.get(worker).unwrap_or(&0)).into();
    assert!(grown.contains(&0) && grown.contains(&40), "the worker that hangs got none: {grown:?}");
    drop(held);
    // The worker goes on where it was held: its waiting clients are answered, and it takes new flows.
    for client in &mut provoking {
        assert_eq!(client.response("GET").status, 200);
    }
    let hung = grown.iter().position(|count| *count == 0).unwrap();
    drop(clients);
    let mut kept = Vec::new();
    eventually(LIMIT, "it takes new flows again", || {
        let (worker, client) = placed(&sluice);
        kept.push(client);
        (worker == hung).then_some(())
    });
}

#[test]
fn a_request_raises_the_counters_of_xdp_and_of_the_worker_that_served_it() {
    if skip::without_root() || skip::without_tool("curl") {
        return;
    }
    // XDP runs on the loopback, as in config/dev.toml. In a namespace of its own, no other packets are
    // counted.
    let namespace = Arc::new(Netns::new());
    let origin = namespace.run(|| Origin::http(|_| Response::ok("ok")));
    let setup = Setup::to(origin.address()).workers(2).inside(&namespace, IpAddr::V4(Ipv4Addr::LOCALHOST));
    let sluice = setup.with("guard", "interfaces = [\"lo\"]").start();
    assert_eq!(
        sluice.status()["supervisor"]["guard"]["interfaces"]["lo"],
        "generic",
        "lo takes no other mode"
    );
    for _ in 0..4 {
        let (verdicts, selected, accepted) =
            (sluice.verdicts(), sluice.selected(), sluice.per_worker("accepted"));
        let requests = sluice.per_worker("requests");
        let metrics = sluice.metrics();
        let curl =
            || process::run(Command::new("curl").args(["-s", "--max-time", "10", &sluice.url("/")]), LIMIT);
        assert_eq!(sluice.inside(curl).success().text(), "ok");
        let worker = eventually(LIMIT, "the connection is counted", || {
            let now = sluice.per_worker("accepted");
            now.iter().zip(&accepted).position(|(now, before)| now > before)
        });
        let after = sluice.verdicts();
        let grown = |label: &str| after.get(label).unwrap_or(&0) - verdicts.get(label).unwrap_or(&0);
        assert_eq!(grown("syn"), 1, "one SYN of ours was judged: {verdicts:?} {after:?}");
        assert!(grown("established") >= 2, "and the packets after it: {verdicts:?} {after:?}");
        let chosen = sluice.selected();
        for other in 0..2 {
            let grown =
                chosen.get(&other.to_string()).unwrap_or(&0) - selected.get(&other.to_string()).unwrap_or(&0);
            assert_eq!(grown, u64::from(other == worker), "steering chose the worker that served it");
        }
        assert_eq!(sluice.per_worker("requests")[worker], requests[worker] + 1);
        // `/metrics` shows the same numbers.
        let scraped = sluice.metrics();
        let named = |metrics: &tests::metrics::Metrics| {
            metrics.labelled("sluice_steering_selected_total", "worker", &worker.to_string())
        };
        assert!((named(&scraped) - named(&metrics) - 1.0).abs() < f64::EPSILON);
        let judged = |metrics: &tests::metrics::Metrics| {
            metrics.labelled("sluice_guard_packets_total", "reason", "syn")
        };
        assert!((judged(&scraped) - judged(&metrics) - 1.0).abs() < f64::EPSILON);
    }
}
