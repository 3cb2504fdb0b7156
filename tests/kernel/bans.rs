//! `sluice ban`, `unban` and `bans` on a running proxy with XDP: their effect on clients, refused commands,
//! and the output.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use tests::cable::{CLIENTS, Cable};
use tests::client::Client;
use tests::sluice::Sluice;
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(15);

const ONE: IpAddr = CLIENTS[0];
const OTHER: IpAddr = CLIENTS[1];

/// A cable, and a Sluice with XDP on it.
struct Net {
    cable: Cable,
    sluice: Sluice,
}

impl Net {
    fn new(guard: &str) -> Self {
        let cable = Cable::new();
        let sluice = cable.setup(guard).start();
        Self { cable, sluice }
    }

    fn dial(&self, source: IpAddr) -> std::io::Result<Client> {
        self.cable.dial(source, self.sluice.address())
    }

    fn is_served(&self, source: IpAddr) -> bool {
        self.cable.is_served(source, &self.sluice)
    }

    /// The receipt of a command that must succeed.
    fn receipt(&self, name: &str, arguments: &[&str]) -> String {
        let done = self.sluice.command_with(name, arguments);
        assert_eq!(done.code(), 0, "{}", done.all());
        done.text()
    }

    /// The error of a command that must fail.
    fn refusal(&self, name: &str, arguments: &[&str]) -> String {
        let done = self.sluice.command_with(name, arguments);
        assert_eq!(done.code(), 1, "{}", done.all());
        done.errors()
    }
}

#[test]
fn a_ban_cuts_a_source_at_once_and_unban_lets_it_back() {
    if skip::without_root() {
        return;
    }
    let net = Net::new("");
    let mut standing = net.dial(ONE).unwrap();
    assert_eq!(standing.get("/").text(), "inside");
    let mut other = net.dial(OTHER).unwrap();
    let receipt = net.receipt("ban", &["10.77.0.2", "--for", "10m"]);
    assert!(
        receipt.contains("10.77.0.2 is banned for 10m") && receipt.contains("a connection of it was ended"),
        "{receipt}"
    );
    // The ban ends the worker's session now, before any timeout does.
    eventually(LIMIT, "one connection is left", || {
        (net.sluice.metrics().sum("sluice_connections_open") < 1.5).then_some(())
    });
    let _ = standing.try_send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(standing.try_response("GET").is_err(), "nothing of its connection lives");
    assert!(!net.is_served(ONE));
    assert_eq!(other.get("/").text(), "inside", "another source's connection lives");
    assert!(net.is_served(OTHER));

    let shown = net.receipt("bans", &[]);
    assert!(
        shown.lines().any(|line| line.contains("10.77.0.2") && (line.contains("9m") || line.contains("10m"))),
        "{shown}"
    );
    let json: serde_json::Value = serde_json::from_str(&net.receipt("bans", &["--json"])).unwrap();
    assert_eq!(json[0]["address"], "10.77.0.2");
    let left = json[0]["remaining_ms"].as_u64().unwrap();
    assert!((500_000..=600_000).contains(&left), "{left}");
    assert_eq!(net.sluice.status()["supervisor"]["guard"]["bans"], 1);
    let metrics = net.sluice.metrics();
    assert!((metrics.sum("sluice_guard_bans") - 1.0).abs() < f64::EPSILON);
    assert!(net.sluice.verdicts()["banned"] >= 1);

    let receipt = net.receipt("unban", &["10.77.0.2"]);
    assert!(receipt.contains("10.77.0.2"), "{receipt}");
    assert!(net.is_served(ONE));
    assert!(net.refusal("unban", &["10.77.0.2"]).contains("10.77.0.2 is not banned"));
    assert_eq!(net.receipt("bans", &[]), "no bans\n");
}

#[test]
fn a_ban_holds_for_its_time_and_by_default_for_ban_for() {
    if skip::without_root() {
        return;
    }
    let net = Net::new("ban_for = \"2s\"");
    let start = Instant::now();
    let receipt = net.receipt("ban", &["10.77.0.2"]);
    assert!(receipt.contains("for 2s"), "{receipt}");
    let again = net.receipt("ban", &["10.77.0.3", "--for", "1h"])
        + &net.receipt("ban", &["10.77.0.3", "--for", "2h"]);
    assert!(again.contains("instead of the 1h"), "{again}");
    assert!(!net.is_served(ONE));
    eventually(LIMIT, "the ban is over", || net.is_served(ONE).then_some(()));
    assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    // The supervisor sweeps the expired ban and logs that.
    eventually(LIMIT, "it is swept", || net.sluice.log().contains("bans are over").then_some(()));
    assert_eq!(net.sluice.status()["supervisor"]["guard"]["bans"], 1);
    assert!(!net.is_served(OTHER));
}

#[test]
fn bans_are_refused_or_noted_with_the_reason() {
    if skip::without_root() {
        return;
    }
    let net = Net::new("allow = [\"10.77.0.2/32\", \"2001:db8:7:7::7/128\"]");
    let refused = net.refusal("ban", &["10.77.0.2"]);
    assert!(refused.contains("not banned") && refused.contains("guard.allow"), "{refused}");
    assert!(net.is_served(ONE));
    for (address, words) in
        [("127.0.0.1", "loopback"), ("10.77.0.1", "listener"), ("2001:db8:7:7::1", "2001:db8:7:7::7/128")]
    {
        let receipt = net.receipt("ban", &[address, "--for", "5s"]);
        assert!(receipt.contains("note:") && receipt.contains(words), "{address}: {receipt}");
    }
    assert!(net.is_served(OTHER));
}

#[test]
fn a_dry_run_counts_banned_packets_and_cuts_nothing() {
    if skip::without_root() {
        return;
    }
    let net = Net::new("dry_run = true");
    let mut standing = net.dial(ONE).unwrap();
    let receipt = net.receipt("ban", &["10.77.0.2"]);
    assert!(receipt.contains("dry_run"), "{receipt}");
    assert_eq!(standing.get("/").text(), "inside");
    assert!(net.is_served(ONE));
    assert!(net.sluice.verdicts()["banned"] >= 3, "{:?}", net.sluice.verdicts());
}

#[test]
fn bans_outlive_a_data_plane() {
    if skip::without_root() {
        return;
    }
    let mut net = Net::new("");
    net.receipt("ban", &["10.77.0.2", "--for", "1h"]);
    net.sluice.kill_data_plane();
    net.sluice.wait_ready();
    assert!(!net.is_served(ONE) && net.is_served(OTHER));
}
