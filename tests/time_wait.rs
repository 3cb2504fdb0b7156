//! The end that closes first keeps the connection's ports for a minute (TIME_WAIT, RFC 9293 §3.6). That end
//! is Sluice: FIN comes with the last bytes of a response, so that no client can read them and close before.
//! A client with one address would else run out of ports.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use tests::cable::{Cable, SERVER};
use tests::client::Client;
use tests::origin::{Body, Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::tls::{self, Authority, Kind, https};
use tests::{eventually, skip};

const NAME: &str = "edge.example";
/// Connections of a case, and how many are open at once.
const CONNECTIONS: usize = 400;
const THREADS: usize = 8;
/// More than one send takes, so that the last bytes are a rest.
const LARGE: u64 = 300 << 10;

/// A Sluice at one end of the cable, with every way to answer.
fn sluice(cable: &Cable, endpoint: SocketAddr) -> Setup {
    Setup::to(endpoint).inside(&cable.server, SERVER).append(
        "\n[[route]]\npath_prefix = \"/redirect\"\n\
         redirect = { to = \"https://{host}{uri}\", status = 308 }\n\
         [[route]]\npath_prefix = \"/respond\"\nrespond = { status = 200, body = \"ok\" }\n",
    )
}

fn origin(cable: &Cable) -> Origin {
    cable.server.run(|| {
        Origin::http(|request| match &*request.target {
            "/large" => Response::with(Body::Pattern(LARGE)),
            "/chunked" => Response::with(Body::Chunks(vec![b"one".to_vec(), b"two".to_vec()], Vec::new())),
            "/slow" => Response::ok("slow").after(Duration::from_millis(700)),
            _ => Response::ok("fine"),
        })
    })
}

/// Connections to this address that are in TIME_WAIT at the clients' end (proc_pid_net(5)).
fn waiting(cable: &Cable, address: SocketAddr) -> usize {
    const TIME_WAIT: &str = "06";
    let table = cable.clients.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
    let remote = format!(":{:04X}", address.port());
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 3 && fields[2].ends_with(&remote) && fields[3] == TIME_WAIT)
        .count()
}

/// Runs `ask`, which ends one connection, many times from the clients' end.
fn many(cable: &Cable, ask: impl Fn() + Sync) {
    let next = AtomicUsize::new(0);
    cable.clients.run(|| {
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while next.fetch_add(1, Ordering::Relaxed) < CONNECTIONS {
                        ask();
                    }
                });
            }
        });
    });
}

/// Sends a request on a connection of its own, reads the response and closes at once.
fn ask(address: SocketAddr, request: &str, status: u16) {
    let mut client = Client::connect(address);
    client.send(request);
    assert_eq!(client.response("GET").status, status, "{request}");
}

/// Hardly anybody waits at the clients' end: after each of these, Sluice closes.
fn assert_closes_first(cable: &Cable, sluice: &Sluice, what: &str) {
    assert_few_wait(cable, sluice, what, CONNECTIONS / 200);
}

fn assert_few_wait(cable: &Cable, sluice: &Sluice, what: &str, most: usize) {
    let waiting = waiting(cable, sluice.address());
    assert!(waiting <= most, "{what}: {waiting} clients of {CONNECTIONS} closed first");
}

#[test]
fn the_end_of_a_plain_connection_comes_with_the_last_bytes() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let origin = origin(&cable);
    let sluice = sluice(&cable, origin.address()).start();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\nHost: h\r\n\r\n", 200),
        ("POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbody", 200),
        ("GET /large HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200),
        ("GET /chunked HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200),
        ("GET /redirect HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 308),
        ("GET /respond HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 200),
        // Refused as a request, and as something that is none.
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("none\r\n\r\n", 400),
    ] {
        many(&cable, || ask(sluice.address(), request, status));
        assert_closes_first(&cable, &sluice, request);
    }
}

#[test]
fn the_last_request_of_a_connection_ends_it_with_the_last_bytes() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let origin = origin(&cable);
    let setup = sluice(&cable, origin.address()).with("listener.limits", "requests_per_connection = 2");
    let sluice = setup.start();
    many(&cable, || {
        let mut client = Client::connect(sluice.address());
        assert_eq!(client.get("/").status, 200);
        assert_eq!(client.get("/").field("connection"), Some("close"));
    });
    assert_closes_first(&cable, &sluice, "requests_per_connection");
}

#[test]
fn a_drain_ends_connections_with_the_last_bytes() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let origin = origin(&cable);
    let sluice = sluice(&cable, origin.address()).start();
    let (sluice, cable) = (&sluice, &cable);
    cable.clients.run(|| {
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    let mut client = Client::connect(sluice.address());
                    assert_eq!(client.get("/slow").field("connection"), Some("close"));
                });
            }
            eventually(Duration::from_secs(10), "all are asked", || (origin.requests() == 64).then_some(()));
            let _ = sluice.command("drain");
        });
    });
    assert_closes_first(cable, sluice, "drain");
}

#[test]
fn the_end_of_a_secure_connection_comes_with_the_last_record() {
    if skip::without_root() {
        return;
    }
    let cable = Cable::new();
    let origin = origin(&cable);
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &[NAME]);
    let sluice = https(sluice(&cable, origin.address()), &authority, &[leaf], "").start();
    for (version, versions) in [("TLS 1.3", &TLS13), ("TLS 1.2", &TLS12)] {
        let config = Arc::new(authority.config(&[versions]));
        for (target, status) in [("/", 200), ("/redirect", 308), ("/large", 200)] {
            many(&cable, || {
                let socket = std::net::TcpStream::connect(sluice.address()).unwrap();
                let mut client = Client::new(tls::handshake(socket, &config, NAME).unwrap());
                client.send(format!("GET {target} HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\n\r\n"));
                assert_eq!(client.response("GET").status, status);
            });
            // If a full segment happens to end with a large response, its client may read the response before
            // the end comes: at most 7 of 400 did on a busy machine.
            let most = if target == "/large" { CONNECTIONS / 20 } else { CONNECTIONS / 200 };
            assert_few_wait(&cable, &sluice, &format!("{version} {target}"), most);
        }
        // Refused, with a redirect or without.
        many(&cable, || ask_in_plain(sluice.address()));
        assert_closes_first(&cable, &sluice, "plain HTTP to an https listener");
    }
}

fn ask_in_plain(address: SocketAddr) {
    ask(address, "GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400);
}
