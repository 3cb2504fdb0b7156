//! Many clients at once, idle, slow and fast, and whether all resources are free again afterwards.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::version::TLS13;
use tests::client::{Client, Dial, PATIENCE};
use tests::origin::{Body, Origin, Request, Response};
use tests::slow::{Crowd, Habit};
use tests::sluice::{Setup, Sluice};
use tests::tls::{self, Authority, Kind, https};
use tests::{eventually, skip, threads};

const IDLE: usize = 5_000;
const SLOW: usize = 1_000;
/// An idle client that was served once may also hold an upstream connection: two descriptors in Sluice, one
/// in the client, and one in the origin.
const DESCRIPTORS: u64 = 4 * SLOW as u64 + 2 * IDLE as u64 + 1_000;
/// No limit per source, since all clients have the same address.
const UNLIMITED: &str = "connections_per_ip = 0";
/// The bound for the 99th percentile of the fast client's small requests while all slow clients are at work.
/// Without load a request takes well below a millisecond. A worker that waits for any client shows as
/// hundreds of milliseconds.
const P99_MAX: Duration = Duration::from_millis(100);
/// What a busy machine adds: as many times the 99th percentile of requests that go directly to the origin.
const WAKEUPS: u32 = 4;

/// The duration that 99 of 100 requests stay below.
fn p99(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() * 99 / 100]
}

/// Sends a request and returns how long it took.
fn request(client: &mut Client) -> Duration {
    let start = Instant::now();
    let answer = client.get("/small");
    let took = start.elapsed();
    assert_eq!(answer.status, 200, "{} after {took:?}", answer.text());
    took
}

/// Sends `count` requests by each client. The machine may be busy with other programs, so as many requests go
/// directly to the origin in turn with them, and the clients' 99th percentile is judged beside theirs.
fn expect_fast(clients: &mut [Client], count: usize, origin: &Origin) {
    let mut direct = Client::connect(origin.address());
    let (mut times, mut direct_times) = (Vec::new(), Vec::new());
    for client in clients {
        for _ in 0..count {
            times.push(request(client));
            direct_times.push(request(&mut direct));
        }
    }
    let (p99, direct) = (p99(times), p99(direct_times));
    assert!(p99 < P99_MAX + WAKEUPS * direct, "p99 of the fast clients: {p99:?}, directly {direct:?}");
}

/// The resources held after one client has been served, when pools and lazily made objects exist.
fn warmed(sluice: &Sluice) -> tests::sluice::Holdings {
    assert_eq!(sluice.get("/small").status, 200);
    let open = || sluice.metrics().sum("sluice_connections_open");
    eventually(Duration::from_secs(10), "the first client is gone", || (open() == 0.0).then_some(()));
    sluice.holdings()
}

#[test]
fn thousands_of_idle_clients_cost_the_busy_ones_nothing() {
    if skip::without_descriptors(DESCRIPTORS) {
        return;
    }
    let origin = Origin::http(|_| Response::ok("small"));
    let sluice = Setup::to(origin.address()).workers(2).with("guard", UNLIMITED).start();
    let before = warmed(&sluice);
    // Half of the clients are served and stay; the other half never send anything.
    let mut idle: Vec<Client> = (0..IDLE).map(|_| sluice.client()).collect();
    for client in idle.iter_mut().take(IDLE / 2) {
        assert_eq!(client.get("/small").status, 200);
    }
    eventually(Duration::from_secs(20), "all are accepted", || {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        (sluice.metrics().sum("sluice_connections_open") >= IDLE as f64).then_some(())
    });
    let held = sluice.holdings();
    assert_eq!(
        (held.buffers, held.budget),
        (before.buffers, before.budget),
        "an idle connection holds no buffer"
    );
    let mut busy: Vec<Client> = (0..8).map(|_| sluice.client()).collect();
    expect_fast(&mut busy, 250, &origin);
    // The idle clients are still served.
    for client in idle.iter_mut().step_by(100) {
        assert_eq!(client.get("/small").status, 200);
    }
    drop((idle, busy));
    sluice.expect_back_to(before);
}

/// An origin with 4 MiB at `/big`, whose socket holds little of it.
fn big_and_small() -> Origin {
    let answer = |request: &Request| match request.target.as_str() {
        "/big" => Response::with(Body::Pattern(4 << 20)),
        _ => Response::ok("small"),
    };
    Origin::http(answer).send_buffer(64 << 10)
}

#[test]
fn slow_uploaders_and_readers_leave_a_fast_client_fast() {
    if skip::without_descriptors(DESCRIPTORS) {
        return;
    }
    let origin = big_and_small();
    // There is one worker: if it waits for one client, all clients wait.
    let sluice = Setup::to(origin.address())
        .with("process", "max_connections = 4000")
        .with("guard", UNLIMITED)
        .start();
    let before = warmed(&sluice);
    let mut fast = sluice.client();
    assert_eq!(fast.get("/small").status, 200);
    let tick = Duration::from_millis(100);
    let uploaders =
        Crowd::start(sluice.address(), SLOW, "/upload", Habit::Upload { length: 1 << 30, step: 50 }, tick);
    let readers = Crowd::start(sluice.address(), SLOW, "/big", Habit::Read { step: 500 }, tick);
    // A request counts as active while its connect is still under way, so used upstream connections are
    // counted.
    eventually(Duration::from_secs(30), "all of them are served", || {
        let metrics = sluice.metrics();
        let used =
            metrics.sum("sluice_upstream_connections_open") - metrics.sum("sluice_upstream_connections_idle");
        #[expect(clippy::cast_precision_loss, reason = "two thousand")]
        (used >= 2.0 * SLOW as f64).then_some(())
    });
    let (uploaded, read) = (uploaders.moved(), readers.moved());
    expect_fast(std::slice::from_mut(&mut fast), 1_000, &origin);
    eventually(Duration::from_secs(10), "the slow ones move too", || {
        let moved =
            uploaders.moved() - uploaded > SLOW as u64 * 50 && readers.moved() - read > SLOW as u64 * 50;
        moved.then_some(())
    });
    assert_eq!((uploaders.ended(), readers.ended()), (0, 0), "none of the slow ones was thrown out");
    let held = sluice.holdings();
    let budget = f64::from(64 << 20);
    assert!(held.budget <= budget, "{held:?}");
    drop((uploaders, readers));
    drop(fast);
    sluice.expect_back_to(before);
    eventually(Duration::from_secs(15), "the origin is let go", || (origin.open() <= 256).then_some(()));
}

/// Records sealed for a slow client take memory too. The budget and the receive buffers bound it, as they do
/// without TLS.
#[test]
fn slow_readers_over_tls_are_held_in_the_memory_that_there_is() {
    if skip::without_descriptors(DESCRIPTORS) {
        return;
    }
    let origin = big_and_small();
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &["edge.example"]);
    let config = Arc::new(authority.config(&[&TLS13]));
    let setup =
        Setup::to(origin.address()).with("process", "max_connections = 4000\nbuffer_budget = \"16MiB\"");
    let setup = setup.with("ring", "buffers = 4096").with("guard", UNLIMITED);
    // The first clients do not read until the last has connected, so the minimal rate is off.
    let sluice =
        https(setup, &authority, &[leaf], "").with("listener.timeouts", "min_rate = \"off\"").start();
    let mut fast = sluice.secured(&config, "edge.example");
    assert_eq!(fast.get("/small").status, 200);
    let at_first = sluice.memory();

    let slow = |_| {
        let dial = Dial { source: None, receive_buffer: Some(4096) };
        let socket = dial.connect(sluice.address(), PATIENCE).unwrap();
        let mut secured = tls::handshake(socket, &config, "edge.example").unwrap();
        secured.write_all(b"GET /big HTTP/1.1\r\nHost: slow.example\r\n\r\n").unwrap();
        secured.sock
    };
    let crowd =
        Crowd::of((0..SLOW).map(slow).collect(), Habit::Read { step: 500 }, Duration::from_millis(100));
    let moved = crowd.moved();
    eventually(PATIENCE, "all of them are served, and move", || {
        (crowd.moved() > moved + SLOW as u64 * 1000).then_some(())
    });
    assert_eq!(fast.get("/small").status, 200, "the fast one is served beside them");
    let (held, grown) = (sluice.holdings(), (sluice.memory() - at_first) >> 10);
    eprintln!("{grown} KiB for {SLOW} slow readers; {held:?}");
    // The limit in MiB and KiB: 16 MiB of budget, 16 MiB of buffers, and the same once more for records made
    // of them. Blocks are not in use at such a time. Each connection adds 24 KiB of its own.
    assert!(held.budget <= f64::from(16 << 20), "{held:?}");
    assert!(grown < (16 + 2 * 16 + 24) << 10, "{grown} KiB for {SLOW} slow readers; {held:?}");
    // As without TLS, Sluice may end connections that hold the most and have not moved for a second.
    assert!(held.connections > SLOW as f64 * 0.9, "too many were thrown out: {held:?}");
}

#[test]
fn a_storm_of_connections_leaves_nothing_behind() {
    let origin = Origin::http(|_| Response::ok("small"));
    let sluice = Setup::to(origin.address()).workers(2).with("guard", UNLIMITED).start();
    let before = warmed(&sluice);
    let accepted = sluice.metrics().sum("sluice_connections_accepted_total");
    let address = sluice.address();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..250 {
                    let mut client = Client::connect(address);
                    match (thread + round) % 4 {
                        0 => drop(client),
                        1 => {
                            client.send("GET /sma");
                            client.reset();
                        }
                        2 => {
                            client.send("GET /small HTTP/1.1\r\nHost: h\r\n\r\n");
                            client.reset();
                        }
                        _ => assert_eq!(client.get("/small").status, 200),
                    }
                }
            });
        }
    });
    sluice.expect_back_to(before);
    let metrics = sluice.metrics();
    let accepted = metrics.sum("sluice_connections_accepted_total") - accepted;
    let gone = metrics.labelled("sluice_connections_shed_total", "reason", "client_gone");
    assert!(
        (accepted + gone - 2_000.0).abs() < 0.5,
        "each is seen, {gone} of them reset before they were looked at: {accepted}"
    );
    assert!(metrics.sum("sluice_session_panics_total") < 0.5);
}

#[test]
fn too_many_clients_are_shed_and_counted() {
    // Busy connections give way to nobody.
    let origin = Origin::http(|request| {
        if request.target == "/slow" {
            std::thread::sleep(Duration::from_secs(3));
        }
        Response::ok("small")
    });
    let sluice = Setup::to(origin.address()).with("process", "max_connections = 50").start();
    // Sluice may shed a connection before the client's connect returns.
    let ask = |_| {
        let mut client = Client::try_connect(sluice.address()).ok()?;
        client.try_send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").ok()?;
        Some(client)
    };
    let mut clients: Vec<Client> = (0..80).filter_map(ask).collect();
    let served = clients
        .iter_mut()
        .filter_map(|client| client.try_response("GET").ok())
        .filter(|answer| answer.status == 200)
        .count();
    assert!((40..=50).contains(&served), "{served} of 80 were served, 50 are allowed");
    // A worker that comes late to a request may not know yet that the connection is busy.
    let metrics = sluice.metrics();
    let turned_away = metrics.labelled("sluice_connections_shed_total", "reason", "max_connections")
        + metrics.labelled("sluice_connections_gave_way_total", "reason", "connections");
    assert!(turned_away >= 30.0, "{turned_away}");
    drop(clients);
    eventually(Duration::from_secs(10), "there is room again", || {
        let answer = Client::try_connect(sluice.address()).and_then(|mut client| client.try_get("/small"));
        answer.is_ok_and(|answer| answer.status == 200).then_some(())
    });
}

#[test]
fn an_idle_proxy_does_nothing() {
    let origin = Origin::http(|_| Response::ok("small"));
    let sluice = Setup::to(origin.address()).workers(2).with("guard", UNLIMITED).start();
    // Sluice is idle but not unused: it holds client connections and pooled upstream connections.
    let mut clients: Vec<Client> = (0..50).map(|_| sluice.client()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/small").status, 200);
    }
    let pid = sluice.data_plane_pid();
    let workers: Vec<(u32, String)> =
        threads::threads(pid).into_iter().filter(|(_, name)| name.contains("worker")).collect();
    assert_eq!(workers.len(), 2, "{:?}", threads::threads(pid));
    let sleeps = || workers.iter().map(|(tid, _)| threads::sleeps(pid, *tid)).collect::<Vec<_>>();
    // By now all work of the last request and the last scrape is done. No session lingers (one second), and
    // no receive is checked again (at most two seconds).
    std::thread::sleep(Duration::from_millis(2500));
    let before = (threads::cpu_ticks(pid), threads::cpu_ticks(sluice.pid()), sleeps());
    std::thread::sleep(Duration::from_secs(2));
    let after = (threads::cpu_ticks(pid), threads::cpu_ticks(sluice.pid()), sleeps());
    assert_eq!(after.2, before.2, "an idle worker sleeps and is not woken");
    // One tick is 10 ms. A thread that runs when the kernel samples may be charged a whole tick.
    assert!(after.0 - before.0 <= 1 && after.1 - before.1 <= 1, "CPU time while idle: {before:?} {after:?}");
}
