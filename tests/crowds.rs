//! Crowds of clients, hostile and honest, that could take every place of Sluice: those for handshakes, for
//! connections, and for what has only begun. Honest clients are served beside them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::version::TLS13;
use tests::client::{Client, Dial, PATIENCE};
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::tls::{self, Authority, Kind, https};
use tests::{eventually, skip};

const NAME: &str = "edge.example";
const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A Sluice with https, and what its clients need.
struct Edge {
    sluice: Sluice,
    config: Arc<ClientConfig>,
    hello: Vec<u8>,
    _origin: Origin,
}

impl Edge {
    fn start(workers: usize, change: impl FnOnce(Setup) -> Setup, lines: &str) -> Self {
        let (origin, authority) = (Origin::http(|_| Response::ok("inside")), Authority::default());
        let leaf = authority.leaf(Kind::P256, &[NAME]);
        let setup = change(Setup::to(origin.address()).workers(workers));
        let sluice = https(setup, &authority, &[leaf], lines).start();
        let config = Arc::new(authority.config(&[&TLS13]));
        let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        Self { sluice, config, hello, _origin: origin }
    }

    /// Shakes hands and asks once. The error says how far it came.
    fn serves(&self, source: IpAddr) -> Result<(), String> {
        self.serves_over(dial(&self.sluice, source)?)
    }

    fn serves_over(&self, socket: TcpStream) -> Result<(), String> {
        let secured = shake_hands(socket, &self.config).map_err(|error| format!("handshake: {error}"))?;
        let response = Client::new(secured).try_get("/").map_err(|error| format!("request: {error}"))?;
        if response.status == 200 { Ok(()) } else { Err(format!("status {}", response.status)) }
    }
}

/// Shakes hands, however long that takes on a busy machine.
fn shake_hands(mut socket: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<tls::Secured> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
    let mut client =
        rustls::ClientConnection::new(Arc::clone(config), name).map_err(std::io::Error::other)?;
    while client.is_handshaking() || client.wants_write() {
        client.complete_io(&mut socket)?;
    }
    Ok(tls::Secured::new(client, socket))
}

fn dial(sluice: &Sluice, source: IpAddr) -> Result<TcpStream, String> {
    let dial = Dial { source: Some(source), receive_buffer: None };
    dial.connect(sluice.address(), PATIENCE).map_err(|error| format!("connect: {error}"))
}

/// Connections that say this and nothing more, the sources in turn.
fn hold(sluice: &Sluice, count: usize, sources: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let hold = |index: usize| {
        let [high, low] = u16::try_from(index % sources).unwrap().to_be_bytes();
        let mut socket = dial(sluice, Ipv4Addr::new(127, 66, high, low.max(1)).into()).unwrap();
        socket.write_all(bytes).unwrap();
        socket
    };
    (0..count).map(hold).collect()
}

fn gave_way(sluice: &Sluice, reason: &str) -> f64 {
    sluice.metrics().labelled("sluice_connections_gave_way_total", "reason", reason)
}

/// Waits until `count` handshakes are under way or wait.
#[expect(clippy::cast_precision_loss, reason = "a few thousand")]
fn opened(sluice: &Sluice, count: usize) {
    let open = || sluice.metrics().sum("sluice_connections_open");
    eventually(Duration::from_secs(30), "all are open", || (open() >= count as f64).then_some(()));
}

#[test]
fn one_address_does_not_stop_https() {
    let edge = Edge::start(1, |setup| setup, "");
    // Both below `connections_per_ip`.
    let bytes = hold(&edge.sluice, 300, 1, &edge.hello[..1]);
    let hellos = hold(&edge.sluice, 600, 1, &edge.hello);
    opened(&edge.sluice, bytes.len() + hellos.len());
    let failed: Vec<_> = (0..100).filter_map(|_| edge.serves(HONEST).err()).collect();
    assert!(failed.len() <= 1, "{failed:?}");
    assert!(gave_way(&edge.sluice, "handshakes") >= 1.0);
    let lines = edge.sluice.log().matches("crowded").count();
    assert_eq!(lines, 1, "said once: {}", edge.sluice.log());
}

#[test]
fn many_addresses_do_not_stop_https() {
    if skip::without_descriptors(12_000) {
        return;
    }
    // With more places, clients that share this machine with other tests have longer to answer.
    for (count, sources) in [(1_024, 64), (4_096, 4_096)] {
        let places = if count > 2_000 { 1_024 } else { 256 };
        let edge =
            Edge::start(1, |setup| setup, &format!("max_handshakes = {places}\nhandshake_timeout = \"60s\""));
        let hellos = hold(&edge.sluice, count, sources, &edge.hello);
        // They come over some seconds, as an attack does that goes on.
        let failed: Vec<_> = std::thread::scope(|scope| {
            let asked: Vec<_> = (0..50)
                .map(|_| {
                    std::thread::sleep(Duration::from_millis(50));
                    scope.spawn(|| edge.serves(HONEST))
                })
                .collect();
            asked.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
        });
        assert!(failed.len() <= 1, "{sources} sources: {failed:?}");
        drop(hellos);
    }
}

#[test]
fn a_trusted_proxy_s_clients_are_told_apart() {
    let trusts = |setup: Setup| {
        setup
            .with("guard", "connections_per_ip = 0")
            .with("listener", "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.0/8\"]")
    };
    let edge = Edge::start(1, trusts, "");
    let header = |client: &str| format!("PROXY TCP4 {client} 192.0.2.1 1000 443\r\n").into_bytes();
    let hostile = [header("198.51.100.66"), edge.hello.clone()].concat();
    let hellos = hold(&edge.sluice, 600, 1, &hostile);
    let headers = hold(&edge.sluice, 300, 1, b"PROXY TCP4 ");
    opened(&edge.sluice, hellos.len() + headers.len());
    for index in 0..50 {
        let mut socket = dial(&edge.sluice, HONEST).unwrap();
        socket.write_all(&header(&format!("198.51.100.{index}"))).unwrap();
        let secured = tls::handshake(socket, &edge.config, NAME).unwrap();
        assert_eq!(Client::new(secured).get("/").status, 200);
    }
}

#[test]
fn a_storm_of_honest_clients_is_served() {
    const CLIENTS: usize = 1_000;
    if skip::without_descriptors(6_000) {
        return;
    }
    let unlimited = |setup: Setup| setup.with("guard", "connections_per_ip = 0");
    // A busy machine may need long for a thousand handshakes.
    let edge = Edge::start(2, unlimited, "handshake_timeout = \"60s\"");
    edge.serves(HONEST).unwrap();
    let barrier = Barrier::new(CLIENTS);
    let start = Instant::now();
    let failed: Vec<_> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let client = || {
                    let socket = dial(&edge.sluice, HONEST)?;
                    // All hellos come at once.
                    barrier.wait();
                    edge.serves_over(socket)
                };
                std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, client).unwrap()
            })
            .collect();
        clients.into_iter().filter_map(|thread| thread.join().unwrap().err()).collect()
    });
    eprintln!("{CLIENTS} clients in {:?}, {} failed", start.elapsed(), failed.len());
    assert!(failed.len() <= CLIENTS / 100, "{} failed: {:?}", failed.len(), failed.first());
}

#[test]
fn heads_that_are_not_whole_give_way_at_max_connections() {
    let origin = Origin::http(|_| Response::ok("inside"));
    let sluice = Setup::to(origin.address()).with("process", "max_connections = 64").start();
    let serves = || Client::over(dial(&sluice, HONEST).unwrap()).unwrap().try_get("/").map(|got| got.status);
    for begun in ["GET / HTTP/1.1\r\nHost: a\r\nX-", ""] {
        let held = hold(&sluice, 64, 1, begun.as_bytes());
        opened(&sluice, 64);
        // A connection that is only just open gets a moment before it has to give way.
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..6 {
            assert_eq!(serves().unwrap(), 200);
        }
        drop(held);
    }
    assert!(gave_way(&sluice, "connections") >= 2.0);
    assert_eq!(sluice.metrics().labelled("sluice_connections_shed_total", "reason", "max_connections"), 0.0);
}

/// Issue 12: these held their places for ten seconds, and one address could take them again and again.
#[test]
fn clients_that_are_slow_within_a_message_give_way_at_max_connections() {
    let large = vec![b'x'; 8 << 20];
    let origin = Origin::http(move |request| match request.target.as_str() {
        "/large" => Response::ok(large.clone()),
        _ => Response::ok("inside"),
    });
    let sluice = Setup::to(origin.address()).with("process", "max_connections = 32").start();
    let serves = || Client::over(dial(&sluice, HONEST).unwrap()).unwrap().try_get("/").map(|got| got.status);
    let body = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n";
    let chunks = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5";
    for (begun, trickles) in
        [(body, false), (body, true), (chunks, false), ("GET /large HTTP/1.1\r\nHost: a\r\n\r\n", false)]
    {
        let held = hold(&sluice, 32, 1, begun.as_bytes());
        opened(&sluice, 32);
        // Longer than a client may be slow, and well below the time after which `min_rate` ends it.
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(100));
            if trickles {
                for mut socket in &held {
                    socket.write_all(b"x").unwrap();
                }
            }
        }
        for _ in 0..6 {
            assert_eq!(serves().unwrap(), 200, "{begun}");
        }
        drop(held);
    }
    assert!(gave_way(&sluice, "connections") >= 4.0);
}
