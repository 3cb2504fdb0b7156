//! slowhttptest in each of its modes, with a thousand connections, beside one well-behaved client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::client::Client;
use tests::origin::{Body, Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, process, skip};

const CONNECTIONS: usize = 1_000;
/// Per connection: the attacker's, two for the proxied connection, the origin's, and some room.
const DESCRIPTORS: u64 = 6 * CONNECTIONS as u64;
/// How long each attack lasts, in seconds. The default timeouts are all longer, so none ends an attacking
/// connection meanwhile.
const SECONDS: u64 = 12;
/// Below this, a p99 and its double cannot be told apart on a machine that other tests share.
const NOISE: Duration = Duration::from_millis(5);
/// What a busy machine adds: as many times the p99 of requests that go directly to the origin meanwhile.
const WAKEUPS: u32 = 4;

/// The attacker; ended on drop.
struct Attack(Child);

impl Attack {
    fn start(mode: &[&str], sluice: &Sluice, path: &str) -> Self {
        let mut command = Command::new("slowhttptest");
        let (count, seconds) = (CONNECTIONS.to_string(), SECONDS.to_string());
        command
            .args(["-c", &count, "-r", "500", "-l", &seconds, "-v", "1", "-p", "5", "-u", &sluice.url(path)])
            .args(mode);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("slowhttptest starts"))
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sends a request and returns how long the answer took.
fn request(client: &mut Client) -> Duration {
    let start = Instant::now();
    assert_eq!(client.get("/small").status, 200);
    start.elapsed()
}

/// The time that 99 of 100 requests stay below.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Sends requests one after the other and returns their p99. The machine may be busy with other programs, so
/// as many requests go directly to the origin in turn with them, and the second p99 is theirs.
fn both_p99(client: &mut Client, direct: &mut Client, requests: usize) -> (Duration, Duration) {
    let (times, direct_times) = (0..requests).map(|_| (request(client), request(direct))).unzip();
    (p99(times), p99(direct_times))
}

/// Checks that the normal client stays quick while `mode` runs. It measures once `reached` is true.
fn survives(name: &str, mode: &[&str], path: &str, reached: impl Fn(&Sluice) -> bool) {
    if skip::without_tool("slowhttptest") || skip::without_descriptors(DESCRIPTORS) {
        return;
    }
    tests::raise_descriptor_limit();
    let origin = Origin::http(|request| match request.target.as_str() {
        "/big" => Response::with(Body::Pattern(2 << 20)),
        _ => Response::ok("small"),
    })
    .send_buffer(64 << 10);
    let sluice = Setup::to(origin.address())
        .with("process", "max_connections = 3000")
        .with("guard", "connections_per_ip = 0")
        .start();
    let mut client = sluice.client();
    let mut direct = Client::connect(origin.address());
    both_p99(&mut client, &mut direct, 200);
    let (idle, _) = both_p99(&mut client, &mut direct, 1_000);
    let before = sluice.holdings();
    let mut attack = Attack::start(mode, &sluice, path);
    eventually(Duration::from_secs(SECONDS), "the attack has begun", || reached(&sluice).then_some(()));
    // The first seconds are not measured: a thousand connections are made and their buffers filled, which
    // slows all clients.
    std::thread::sleep(Duration::from_secs(2));
    let (attacked, direct) = both_p99(&mut client, &mut direct, 3_000);
    eprintln!(
        "{name}: p99 {attacked:?} under attack ({direct:?} directly), {idle:?} without, ratio {:.2}",
        attacked.as_secs_f64() / idle.as_secs_f64()
    );
    assert!(
        attacked < (2 * idle).max(NOISE) + WAKEUPS * direct,
        "p99 {attacked:?}, {direct:?} directly, {idle:?} without the attack"
    );
    assert!(sluice.holdings().budget <= f64::from(64 << 20));
    let ended = process::wait(&mut attack.0, Duration::from_secs(SECONDS + 20));
    assert!(ended.is_some(), "slowhttptest ends by itself");
    assert_eq!(client.get("/small").status, 200, "the client's connection lived through it");
    sluice.expect_back_to(before);
}

#[expect(clippy::cast_precision_loss, reason = "a thousand")]
fn all_open(sluice: &Sluice) -> bool {
    sluice.metrics().sum("sluice_connections_open") >= CONNECTIONS as f64
}

#[test]
fn slow_heads() {
    survives("slow heads (-H)", &["-H", "-i", "2", "-x", "24"], "/", all_open);
}

#[test]
fn slow_bodies() {
    survives("slow bodies (-B)", &["-B", "-i", "2", "-s", "8192", "-x", "10"], "/upload", all_open);
}

#[test]
fn ranges_without_end() {
    // Each connection sends one request and is answered at once.
    let begun = |sluice: &Sluice| sluice.metrics().sum("sluice_requests_total") >= 1_250.0;
    survives("ranges (-R)", &["-R", "-t", "HEAD", "-a", "10", "-b", "3000"], "/", begun);
}

#[test]
fn slow_reads() {
    let mode = ["-X", "-w", "512", "-y", "1024", "-n", "2", "-z", "32", "-k", "3"];
    survives("slow reads (-X)", &mode, "/big", all_open);
}
