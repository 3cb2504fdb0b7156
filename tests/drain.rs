//! How Sluice ends: a drain under load cuts no admitted connection before the timeout, the receipt counts the
//! connections that it cut, and signals may come twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::client::Client;
use tests::eventually;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};

const LIMIT: Duration = Duration::from_secs(15);

fn origin() -> Origin {
    Origin::http(|request| match request.target.strip_prefix("/after/") {
        Some(milliseconds) => {
            Response::ok("late").after(Duration::from_millis(milliseconds.parse().unwrap()))
        }
        None => Response::ok("ok"),
    })
}

fn wait_for_requests(origin: &Origin, count: u64) {
    eventually(LIMIT, "the requests are at the origin", || (origin.requests() == count).then_some(()));
}

/// The numbers of "connections: N ended by themselves, M were cut".
fn counted(receipt: &str) -> (u64, u64) {
    let numbers = receipt.split_once("connections: ").unwrap_or_else(|| panic!("no count in {receipt}")).1;
    let mut numbers = numbers.split(' ').filter_map(|word| word.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// A client that gets a connection gets an answer, at any moment of the drain. Afterwards no client gets a
/// connection.
#[test]
fn under_load_a_drain_breaks_no_connection_that_it_took() {
    let origin = origin();
    let mut sluice =
        Setup::to(origin.address()).workers(2).with("process", "drain_timeout = \"10s\"").start();
    let address = sluice.address();
    let (served, refused, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let broken = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    let mut broken = Vec::new();
                    // Every request has a new connection, so that many connections are in the accept queues
                    // at any moment.
                    while !over.load(Ordering::SeqCst) {
                        let mut client = match Client::try_connect(address) {
                            Ok(client) => client,
                            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                                refused.fetch_add(1, Ordering::SeqCst);
                                break;
                            }
                            Err(error) => panic!("connect: {error}"),
                        };
                        match client.try_get("/") {
                            Ok(response) if response.status == 200 => served.fetch_add(1, Ordering::SeqCst),
                            Ok(response) => panic!("{response:?}"),
                            Err(error) => {
                                broken.push(error.to_string());
                                0
                            }
                        };
                    }
                    broken
                })
            })
            .collect();
        eventually(LIMIT, "load", || (served.load(Ordering::SeqCst) > 200).then_some(()));
        sluice.signal(Signal::SIGTERM);
        assert!(sluice.wait_end(LIMIT).success());
        over.store(true, Ordering::SeqCst);
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(refused.load(Ordering::SeqCst), 6, "each client went on until nobody listened");
    // Between its handshake and its first bytes, a connection belongs to the kernel's listening socket. When
    // the socket closes in that very moment, the client is reset. All other clients are served.
    assert!(broken.len() <= 6, "{broken:?}");
    assert!(sluice.log().contains(", 0 were cut"), "{}", sluice.log());
}

/// Load balancers see `/readyz` before they see a refusal.
#[test]
fn a_delay_serves_on_after_readyz_turned_and_a_second_signal_ends_it() {
    let origin = origin();
    let delayed = |delay: &str| {
        let process = format!("drain_delay = \"{delay}\"\ndrain_timeout = \"5s\"");
        Setup::to(origin.address()).with("process", &process).start()
    };
    let readyz = |sluice: &Sluice| sluice.admin("/readyz").map(|response| response.status).ok();
    let mut sluice = delayed("2s");
    let mut kept = sluice.client();
    assert_eq!(kept.get("/").status, 200);
    let begun = Instant::now();
    sluice.signal(Signal::SIGTERM);
    eventually(LIMIT, "/readyz turns", || (readyz(&sluice) == Some(503)).then_some(()));
    let turned = begun.elapsed();
    // A new connection and an old one, none of which hears of the drain.
    while begun.elapsed() < Duration::from_millis(1_500) {
        assert_eq!(sluice.get("/").status, 200);
        let response = kept.get("/");
        assert_eq!((response.status, response.field("connection")), (200, None));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(sluice.wait_end(LIMIT).success());
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(turned < Duration::from_millis(1_500), "{turned:?}");
    assert!(TcpStream::connect(sluice.address()).is_err());

    let mut sluice = delayed("1h");
    sluice.signal(Signal::SIGTERM);
    eventually(LIMIT, "/readyz turns", || (readyz(&sluice) == Some(503)).then_some(()));
    assert_eq!(sluice.get("/").status, 200);
    sluice.signal(Signal::SIGTERM);
    assert!(sluice.wait_end(LIMIT).success());
}

#[test]
fn the_receipt_says_how_many_ended_and_how_many_were_cut() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).with("process", "drain_timeout = \"1s\"").start();
    let mut idle: Vec<Client> = (0..3).map(|_| sluice.client()).collect();
    for client in &mut idle {
        assert_eq!(client.get("/").status, 200);
    }
    let mut busy = sluice.client();
    busy.send("GET /after/400 HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut stuck: Vec<Client> = (0..2).map(|_| sluice.client()).collect();
    for client in &mut stuck {
        client.send("GET /after/9000 HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    wait_for_requests(&origin, 6);
    let drained = sluice.command("drain");
    assert_eq!(drained.code(), 0, "{}", drained.all());
    assert_eq!(counted(&drained.text()), (4, 2), "{}", drained.text());
    assert!(drained.text().contains("process.drain_timeout (1s)"), "{}", drained.text());
    let response = busy.response("GET");
    assert_eq!((response.text().as_str(), response.field("connection")), ("late", Some("close")));
    assert!(stuck.iter_mut().all(|client| client.until_closed().is_empty()));
    assert!(sluice.wait_end(LIMIT).success());
}

#[test]
fn a_stop_cuts_and_says_so() {
    let origin = origin();
    let mut sluice = Setup::to(origin.address()).start();
    let mut busy = sluice.client();
    busy.send("GET /after/9000 HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut idle = sluice.client();
    assert_eq!(idle.get("/").status, 200);
    wait_for_requests(&origin, 2);
    let stopped = sluice.command("stop");
    assert_eq!(stopped.code(), 0, "{}", stopped.all());
    assert_eq!(counted(&stopped.text()), (0, 2), "{}", stopped.text());
    assert!(sluice.wait_end(LIMIT).success());
}

fn draining(drain_timeout: &str) -> (Origin, Sluice, Client) {
    let origin = origin();
    let sluice =
        Setup::to(origin.address()).with("process", &format!("drain_timeout = \"{drain_timeout}\"")).start();
    let mut busy = sluice.client();
    busy.send("GET /after/1500 HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for_requests(&origin, 1);
    sluice.signal(Signal::SIGTERM);
    eventually(LIMIT, "nobody listens any more", || {
        TcpStream::connect(sluice.address()).is_err().then_some(())
    });
    (origin, sluice, busy)
}

#[test]
fn a_drain_is_announced_and_a_second_signal_to_drain_changes_nothing() {
    let (_origin, mut sluice, mut busy) = draining("30s");
    let ready = sluice.admin("/readyz").unwrap();
    assert_eq!((ready.status, sluice.admin("/healthz").unwrap().status), (503, 200));
    assert_eq!(sluice.status()["data_plane"]["draining"], true);
    assert!(sluice.metrics().sum("sluice_draining") > 0.5 && sluice.metrics().sum("sluice_ready") < 0.5);
    let shown = sluice.command("status").text();
    assert!(shown.contains("draining"), "{shown}");
    sluice.signal(Signal::SIGTERM);
    sluice.signal(Signal::SIGQUIT);
    assert_eq!(busy.response("GET").text(), "late");
    assert!(sluice.wait_end(LIMIT).success());
}

#[test]
fn a_stop_ends_a_drain() {
    for command in [false, true] {
        let (_origin, mut sluice, mut busy) = draining("30s");
        let begun = Instant::now();
        if command {
            let stopped = sluice.command("stop");
            assert_eq!(stopped.code(), 0, "{}", stopped.all());
            assert_eq!(counted(&stopped.text()).1, 1, "{}", stopped.text());
        } else {
            sluice.signal(Signal::SIGINT);
        }
        assert!(sluice.wait_end(LIMIT).success());
        assert!(begun.elapsed() < Duration::from_millis(1400), "{:?}", begun.elapsed());
        assert!(busy.until_closed().is_empty());
    }
}

#[test]
fn a_data_plane_that_dies_while_it_drains_is_a_failure_with_a_count() {
    let (_origin, mut sluice, mut busy) = draining("30s");
    sluice.kill_data_plane();
    assert!(!sluice.wait_end(LIMIT).success());
    assert!(busy.until_closed().is_empty());
    let log = sluice.log();
    assert!(log.contains("crashed; connections: ") && log.contains(", 1 were cut\""), "{log}");
}
