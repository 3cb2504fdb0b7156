//! Clients that break the rules of TLS, through the built binary. Each ends only its own connection, gets the
//! alert that is due, and is counted once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, SupportedProtocolVersion};
use tests::client::{Client, PATIENCE};
use tests::metrics::Metrics;
use tests::origin::Origin;
use tests::sluice::{Setup, Sluice};
use tests::tls::{self, Authority, Ending, Forger, Kind, https};
use tests::{eventually, skip};

const NAME: &str = "edge.example";
const GET: &str = "GET / HTTP/1.1\r\nHost: edge.example\r\n\r\n";

const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;

/// A Sluice with one worker, and the CA of its certificate.
struct Edge {
    sluice: Sluice,
    authority: Authority,
    config: Arc<ClientConfig>,
    _origin: Origin,
}

impl Edge {
    fn start(lines: &str) -> Self {
        let (origin, authority) = (Origin::echo(), Authority::default());
        let leaf = authority.leaf(Kind::P256, &[NAME]);
        let setup = Setup::to(origin.address()).with("guard", "connections_per_ip = 0");
        let sluice = https(setup, &authority, &[leaf], lines).start();
        let config = Arc::new(authority.config(&[&TLS13, &TLS12]));
        Self { sluice, authority, config, _origin: origin }
    }

    fn socket(&self) -> TcpStream {
        let socket = TcpStream::connect(self.sluice.address()).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn forger(&self, version: &'static SupportedProtocolVersion) -> Forger {
        Forger::connect(self.sluice.address(), &self.authority, NAME, version)
    }

    /// Checks that Sluice still serves and that all broken connections are closed.
    fn serves(&self) {
        assert_eq!(self.sluice.secured(&self.config, NAME).get("/").status, 200);
        let open = || self.sluice.metrics().sum("sluice_connections_open");
        eventually(PATIENCE, "everything is closed", || (open() == 0.0).then_some(()));
    }

    /// A valid ClientHello of rustls, in one record.
    fn hello(&self) -> Vec<u8> {
        let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }
}

/// The metrics at one moment, to compare the counters of [`TALLIED`] with later.
struct Tally(Metrics);

const TALLIED: [&str; 4] = [
    "sluice_tls_handshakes_failed_total",
    "sluice_connections_closed_total",
    "sluice_tls_alerts_sent_total",
    "sluice_tls_alerts_received_total",
];

impl Tally {
    fn of(sluice: &Sluice) -> Self {
        Self(sluice.metrics())
    }

    /// Waits until each expected series has grown by one. Metrics that are not expected must not have grown.
    #[track_caller]
    fn grew(&self, sluice: &Sluice, expected: &[(&str, &str)], what: &str) {
        let label = |metric: &str| if metric.contains("alerts") { "alert" } else { "reason" };
        let start = Instant::now();
        loop {
            let now = sluice.metrics();
            let grown = |metric: &str| now.sum(metric) - self.0.sum(metric);
            let one = |&(metric, value): &(&str, &str)| {
                now.labelled(metric, label(metric), value) - self.0.labelled(metric, label(metric), value)
                    == 1.0
            };
            let named = |metric: &&str| expected.iter().any(|(named, _)| named == metric);
            let is_right = expected.iter().all(one)
                && TALLIED.iter().all(|metric| grown(metric) == if named(metric) { 1.0 } else { 0.0 });
            if is_right {
                return;
            }
            let all: Vec<_> = TALLIED.iter().map(|metric| (metric, grown(metric))).collect();
            assert!(start.elapsed() < Duration::from_secs(5), "{what}: not {expected:?} but {all:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const FAILED: &str = TALLIED[0];
const CLOSED: &str = TALLIED[1];
const SENT: &str = TALLIED[2];
const RECEIVED: &str = TALLIED[3];

/// All bytes that come until the connection ends.
fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    match socket.read_to_end(&mut heard) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => panic!("still open: {error}"),
        _ => heard,
    }
}

#[test]
fn what_is_no_handshake_gets_one_alert_at_once_and_is_counted_once() {
    let edge = Edge::start("handshake_timeout = \"30s\"");
    let hello = edge.hello();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = hello.clone();
        change(&mut bytes);
        bytes
    };
    let alert = |description| vec![21, 3, 3, 0, 2, 2, description];
    let record =
        |kind: u8, body: &[u8]| [&[kind, 3, 1][..], &(body.len() as u16).to_be_bytes(), body].concat();
    for (what, bytes, description, name) in [
        ("zeros", vec![0; 64], UNEXPECTED_MESSAGE, "unexpected_message"),
        ("an unknown kind", vec![200, 3, 1, 1, 0], UNEXPECTED_MESSAGE, "unexpected_message"),
        ("high bytes", vec![0xff; 64], UNEXPECTED_MESSAGE, "unexpected_message"),
        (
            "SSL 2",
            vec![0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10],
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
        ("another version", with(&|bytes| bytes[1] = 9), PROTOCOL_VERSION, "protocol_version"),
        ("an empty record", vec![22, 3, 1, 0, 0], DECODE_ERROR, "decode_error"),
        ("an oversized record", vec![22, 3, 1, 0xff, 0xff], RECORD_OVERFLOW, "record_overflow"),
        ("data first", record(23, b"hello"), UNEXPECTED_MESSAGE, "unexpected_message"),
        ("a heartbeat", record(24, &[1, 0xff, 0xff]), UNEXPECTED_MESSAGE, "unexpected_message"),
        ("a key exchange first", record(22, &[16, 0, 0, 1, 0]), UNEXPECTED_MESSAGE, "unexpected_message"),
        ("a message of 16 MiB", record(22, &[1, 0xff, 0xff, 0xff, 3, 3]), DECODE_ERROR, "decode_error"),
        ("an empty hello", record(22, &[1, 0, 0, 0]), DECODE_ERROR, "decode_error"),
        (
            "a hello cut short",
            with(&|bytes| {
                let at = bytes.len() - 1;
                bytes.truncate(at);
                bytes[4] -= 1;
                bytes[8] -= 1;
            }),
            DECODE_ERROR,
            "decode_error",
        ),
        ("a hello that is another message", with(&|bytes| bytes[5] = 2), DECODE_ERROR, "decode_error"),
    ] {
        let tally = Tally::of(&edge.sluice);
        let mut socket = edge.socket();
        let begun = Instant::now();
        socket.write_all(&bytes).unwrap();
        assert_eq!(rest(&mut socket), alert(description), "{what}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{what}: {:?}", begun.elapsed());
        tally.grew(&edge.sluice, &[(FAILED, "malformed"), (CLOSED, "tls_handshake"), (SENT, name)], what);
    }
    // Sluice answers a client's alert with no alert.
    for (what, bytes, name) in [
        ("a fatal alert", record(21, &[2, 48]), "unknown_ca"),
        (
            "a fatal alert behind the hello",
            [hello.clone(), record(21, &[2, 40])].concat(),
            "handshake_failure",
        ),
    ] {
        let tally = Tally::of(&edge.sluice);
        let mut socket = edge.socket();
        socket.write_all(&bytes).unwrap();
        let heard = rest(&mut socket);
        assert!(heard.first() != Some(&21), "{what}: {heard:?}");
        tally.grew(&edge.sluice, &[(FAILED, "alert"), (CLOSED, "tls_handshake"), (RECEIVED, name)], what);
    }
    // The client ends within a record, within a message, or between two flights, with FIN and with a reset.
    for (what, bytes) in [("2 bytes", &hello[..2]), ("half a hello", &hello[..90]), ("a hello", &hello[..])] {
        for is_reset in [false, true] {
            let tally = Tally::of(&edge.sluice);
            let mut client = edge.sluice.client();
            client.send(bytes);
            std::thread::sleep(Duration::from_millis(20));
            if is_reset {
                client.reset()
            } else {
                drop(client)
            }
            tally.grew(&edge.sluice, &[(FAILED, "client_closed"), (CLOSED, "tls_handshake")], what);
        }
    }
    edge.serves();
}

#[test]
fn what_breaks_an_established_connection_gets_one_alert_and_is_counted_once() {
    let edge = Edge::start("");
    let overlong = vec![b'x'; (16 << 10) + 1];
    type Attack<'a> = &'a dyn Fn(&mut Forger) -> Vec<u8>;
    let flipped: Attack = &|forger| {
        let mut record = forger.seal(23, GET.as_bytes());
        *record.last_mut().unwrap() ^= 1;
        record
    };
    let twice: Attack = &|forger| {
        let record = forger.seal(23, b"GET / ");
        [record.clone(), record].concat()
    };
    let skipped: Attack = &|forger| {
        let _ = forger.seal(23, b"GET / ");
        forger.seal(23, b"HTTP")
    };
    let both: [(&str, Attack, u8, &str); 12] = [
        ("a changed tag", flipped, BAD_RECORD_MAC, "bad_record_mac"),
        ("a record twice", twice, BAD_RECORD_MAC, "bad_record_mac"),
        ("a record left out", skipped, BAD_RECORD_MAC, "bad_record_mac"),
        ("an empty record", &|_| vec![23, 3, 3, 0, 0], BAD_RECORD_MAC, "bad_record_mac"),
        (
            "garbage in a record",
            &|_| [&[23, 3, 3, 0, 64][..], &[7; 64]].concat(),
            BAD_RECORD_MAC,
            "bad_record_mac",
        ),
        ("plain HTTP", &|_| GET.into(), UNEXPECTED_MESSAGE, "unexpected_message"),
        ("zeros", &|_| vec![0; 100], UNEXPECTED_MESSAGE, "unexpected_message"),
        ("a change of ciphers", &|_| vec![20, 3, 3, 0, 1, 1], UNEXPECTED_MESSAGE, "unexpected_message"),
        ("another version", &|_| vec![23, 3, 9, 0, 5], DECODE_ERROR, "decode_error"),
        ("an oversized record", &|_| vec![23, 3, 3, 0xff, 0xff], RECORD_OVERFLOW, "record_overflow"),
        ("an empty alert", &|forger| forger.seal(21, &[]), DECODE_ERROR, "decode_error"),
        ("empty handshake data", &|forger| forger.seal(22, &[]), UNEXPECTED_MESSAGE, "unexpected_message"),
    ];
    let only_13: [(&str, Attack, u8, &str); 9] = [
        (
            "more than a record holds",
            &|forger| forger.seal(23, &overlong),
            RECORD_OVERFLOW,
            "record_overflow",
        ),
        (
            "nothing but padding",
            &|forger| forger.seal_inside(&[0; 100]),
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
        ("a kind of its own", &|forger| forger.seal(99, b"what"), UNEXPECTED_MESSAGE, "unexpected_message"),
        (
            "a sealed change of ciphers",
            &|forger| forger.seal(20, &[1]),
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
        ("a hello", &|forger| forger.seal(22, &[1, 0, 0, 2, 3, 3]), UNEXPECTED_MESSAGE, "unexpected_message"),
        (
            "a ticket for a server",
            &|forger| forger.seal(22, &[4, 0, 0, 1, 0]),
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
        (
            "a key update to nothing known",
            &|forger| forger.seal(22, &[24, 0, 0, 1, 2]),
            ILLEGAL_PARAMETER,
            "illegal_parameter",
        ),
        (
            "a key update and more",
            &|forger| forger.seal(22, &[24, 0, 0, 1, 0, 1]),
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
        (
            "an old key after an update",
            &|forger| {
                let update = forger.seal(22, &[24, 0, 0, 1, 0]);
                [update, forger.seal(23, GET.as_bytes())].concat()
            },
            BAD_RECORD_MAC,
            "bad_record_mac",
        ),
    ];
    let only_12: [(&str, Attack, u8, &str); 2] = [
        (
            "another handshake message",
            &|forger| forger.seal(22, &[16, 0, 0, 1, 0]),
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
        (
            "data within a message",
            &|forger| {
                let part = forger.seal(22, &[1, 0, 0, 9, 3]);
                [part, forger.seal(23, b"data")].concat()
            },
            UNEXPECTED_MESSAGE,
            "unexpected_message",
        ),
    ];
    let cases = both.iter().map(|case| (&TLS13, case)).chain(both.iter().map(|case| (&TLS12, case)));
    let cases = cases
        .chain(only_13.iter().map(|case| (&TLS13, case)))
        .chain(only_12.iter().map(|case| (&TLS12, case)));
    for (version, (what, attack, description, name)) in cases {
        // The attack comes as the first bytes, after a request on an idle connection, and in the middle of a
        // body.
        for (place, begin) in [
            ("first", ""),
            ("idle", GET),
            ("body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000000\r\n\r\nx"),
        ] {
            let what = format!("{what}, {place}, {:?}", version.version);
            let tally = Tally::of(&edge.sluice);
            let mut forger = edge.forger(version);
            if !begin.is_empty() {
                let record = forger.seal(23, begin.as_bytes());
                forger.send(record);
            }
            if place == "idle" {
                assert!(
                    forger
                        .record()
                        .is_some_and(|(kind, data)| kind == 23 && data.starts_with(b"HTTP/1.1 200")),
                    "{what}"
                );
            }
            let bytes = attack(&mut forger);
            forger.send(&bytes);
            // Further bytes change nothing.
            forger.send(&bytes);
            let (data, others, ending) = forger.until_closed();
            assert_eq!(
                (others, ending),
                (vec![], Ending::Alert(*description)),
                "{what}: {}",
                String::from_utf8_lossy(&data)
            );
            tally.grew(&edge.sluice, &[(CLOSED, "tls_broken"), (SENT, name)], &what);
        }
    }
    // A client's fatal alert ends the connection without an alert from Sluice.
    for version in [&TLS13, &TLS12] {
        let tally = Tally::of(&edge.sluice);
        let mut forger = edge.forger(version);
        let record = forger.seal(21, &[2, 80]);
        forger.send(record);
        assert_eq!(forger.until_closed(), (vec![], vec![], Ending::Cut));
        tally.grew(&edge.sluice, &[(CLOSED, "tls_broken"), (RECEIVED, "internal_error")], "their alert");
    }
    edge.serves();
}

/// Sends for a while without reading, more than the buffers of both ends hold.
fn send_on(socket: &mut TcpStream) {
    for _ in 0..60 {
        socket.write_all(&[9; 64 << 10]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn who_goes_on_sending_after_it_broke_the_rules_reads_the_alert_and_no_reset() {
    let edge = Edge::start("");
    for version in [&TLS13, &TLS12] {
        let mut forger = edge.forger(version);
        forger.send([&[23, 3, 3, 0, 64][..], &[7; 64]].concat());
        send_on(&mut forger.socket);
        let (kind, alert) = forger.record().expect("an alert");
        assert_eq!((kind, &*alert), (21, &[2, BAD_RECORD_MAC][..]));
        assert_eq!(forger.socket.read(&mut [0]).unwrap(), 0, "an end in order");
    }
    // The bad bytes come in place of a hello.
    let mut socket = edge.socket();
    socket.write_all(&[0; 64]).unwrap();
    send_on(&mut socket);
    let mut heard = Vec::new();
    socket.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, [21, 3, 3, 0, 2, 2, UNEXPECTED_MESSAGE]);
    edge.serves();
}

#[test]
fn who_never_stops_sending_after_it_broke_the_rules_is_cut() {
    let edge = Edge::start("");
    // One client sends a byte from time to time, the other as fast as it can.
    for (size, pause) in [(1, Duration::from_millis(200)), (256 << 10, Duration::ZERO)] {
        let mut forger = edge.forger(&TLS13);
        let begun = Instant::now();
        forger.send([&[23, 3, 3, 0, 64][..], &[7; 64]].concat());
        let mut sent = 0;
        while begun.elapsed() < Duration::from_secs(20) && forger.socket.write_all(&vec![9; size]).is_ok() {
            sent += size;
            std::thread::sleep(pause);
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{sent} bytes in {:?}", begun.elapsed());
        // The limit covers the bytes that Sluice reads and the bytes in the kernel's buffers at both ends.
        assert!(sent < 32 << 20, "{sent} bytes");
    }
    edge.serves();
}

#[test]
fn floods_of_records_that_say_nothing_end() {
    let edge = Edge::start("");
    for (version, kind, content) in [
        (&TLS13, 23, &[][..]),
        (&TLS12, 23, &[]),
        (&TLS13, 21, &[1, 90]),
        (&TLS12, 21, &[1, 90]),
        (&TLS12, 22, &[0, 0, 0]),
    ] {
        let tally = Tally::of(&edge.sluice);
        let mut forger = edge.forger(version);
        // Sluice accepts this many such records before a request.
        let mut bytes = Vec::new();
        for _ in 0..16 {
            if kind != 22 {
                bytes.extend(forger.seal(kind, content));
            }
        }
        bytes.extend(forger.seal(23, GET.as_bytes()));
        forger.send(&bytes);
        assert!(forger.record().is_some_and(|(kind, data)| kind == 23 && data.starts_with(b"HTTP/1.1 200")));
        for _ in 0..2000 {
            let record = forger.seal(kind, content);
            forger.send(record);
        }
        let (_, others, ending) = forger.until_closed();
        assert!(others.is_empty(), "one alert: {others:?}");
        assert_eq!(ending, Ending::Alert(UNEXPECTED_MESSAGE), "{kind} {content:?}");
        tally.grew(&edge.sluice, &[(CLOSED, "tls_broken"), (SENT, "unexpected_message")], "a flood");
    }
    // A flood of key updates, each of which Sluice must answer.
    let tally = Tally::of(&edge.sluice);
    let mut stream =
        tls::handshake(edge.socket(), &Arc::new(edge.authority.config(&[&TLS13])), NAME).unwrap();
    for _ in 0..200 {
        stream.conn.refresh_traffic_keys().unwrap();
        if stream.conn.write_tls(&mut stream.sock).is_err() {
            break;
        }
    }
    // The client only reads: Sluice may have closed the connection, so rustls could not send its reply.
    let error = loop {
        assert!(stream.conn.read_tls(&mut stream.sock).unwrap() > 0, "an end without an alert");
        if let Err(error) = stream.conn.process_new_packets() {
            break error;
        }
    };
    assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::UnexpectedMessage));
    tally.grew(&edge.sluice, &[(CLOSED, "tls_broken"), (SENT, "unexpected_message")], "key updates");
    edge.serves();
}

#[test]
fn hellos_in_pieces_of_any_size_are_understood() {
    let edge = Edge::start("");
    for (version, versions) in tls::VERSIONS {
        let config = Arc::new(edge.authority.config(versions));
        // Each segment has one byte.
        let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::clone(&config), name).unwrap();
        let mut socket = edge.socket();
        while connection.is_handshaking() || connection.wants_write() {
            let mut bytes = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut bytes).unwrap();
            }
            for byte in bytes {
                socket.write_all(&[byte]).unwrap();
            }
            if connection.is_handshaking() {
                connection.read_tls(&mut socket).unwrap();
                connection.process_new_packets().unwrap();
            }
        }
        let mut client = Client::new(rustls::StreamOwned::new(connection, socket));
        assert_eq!(client.get("/").status, 200, "{version}");
        // Records of only 32 bytes sent at once, and records of 64 bytes sent apart.
        for (size, pause) in [(32, 0), (64, 3)] {
            let mut config = edge.authority.config(versions);
            config.max_fragment_size = Some(size);
            let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
            let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
            let mut socket = edge.socket();
            let mut hello = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut hello).unwrap();
            }
            assert!(hello.len() > 2 * size, "several records: {}", hello.len());
            let step = if pause == 0 { hello.len() } else { size };
            for piece in hello.chunks(step) {
                socket.write_all(piece).unwrap();
                std::thread::sleep(Duration::from_millis(pause));
            }
            while connection.is_handshaking() {
                connection.complete_io(&mut socket).unwrap();
            }
            let mut client = Client::new(rustls::StreamOwned::new(connection, socket));
            assert_eq!(client.get("/").status, 200, "{version}");
        }
    }
    // Each record has one byte, so a byte takes six on the wire.
    let hello = edge.hello();
    let records: Vec<u8> = hello[5..].iter().flat_map(|&byte| [22, 3, 1, 0, 1, byte]).collect();
    let mut socket = edge.socket();
    socket.write_all(&records).unwrap();
    let mut answer = [0; 6];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello");
    drop(socket);
    edge.serves();
}

#[test]
fn slow_handshakes_are_cut() {
    let edge = Edge::start("handshake_timeout = \"700ms\"");
    let hello = edge.hello();
    // The client stops after one byte, after half a hello, and after a hello.
    let tally = Tally::of(&edge.sluice);
    for bytes in [&hello[..1], &hello[..90], &hello[..]] {
        let mut socket = edge.socket();
        let begun = Instant::now();
        socket.write_all(bytes).unwrap();
        let _ = rest(&mut socket);
        let time = begun.elapsed();
        assert!(
            (Duration::from_millis(600)..Duration::from_secs(4)).contains(&time),
            "{} bytes: {time:?}",
            bytes.len()
        );
    }
    // A byte from time to time does not extend the timeout.
    let mut socket = edge.socket();
    let begun = Instant::now();
    while socket.write_all(&hello[..1]).is_ok() && begun.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(100));
        socket.set_nonblocking(true).unwrap();
        match socket.read(&mut [0; 99]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => break,
        }
        socket.set_nonblocking(false).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let grown = |metric, value: &str| {
        edge.sluice.metrics().labelled(metric, "reason", value) - tally.0.labelled(metric, "reason", value)
    };
    eventually(PATIENCE, "each was counted", || {
        (grown(FAILED, "timeout") + grown(FAILED, "malformed") == 4.0).then_some(())
    });
    edge.serves();
}

#[test]
fn no_more_than_max_handshakes_are_under_way() {
    // It is over before anybody has to give way.
    let edge = Edge::start("max_handshakes = 8\nhandshake_timeout = \"1500ms\"");
    let hello = edge.hello();
    // A finished handshake does not count, nor does a hello that is not whole.
    let mut done = edge.sluice.secured(&edge.config, NAME);
    let mut crowd: Vec<TcpStream> = (0..21).map(|_| edge.socket()).collect();
    let (partial, rest) = crowd.split_at_mut(8);
    partial.iter_mut().for_each(|socket| socket.write_all(&hello[..90]).unwrap());
    // Eight are answered; five wait for their places.
    rest.iter_mut().for_each(|socket| socket.write_all(&hello).unwrap());
    let waited = || edge.sluice.metrics().sum("sluice_tls_handshakes_waited_total");
    eventually(PATIENCE, "five wait", || (waited() == 5.0).then_some(()));
    assert_eq!(done.get("/").status, 200);
    let failed = |reason| edge.sluice.metrics().labelled(FAILED, "reason", reason);
    eventually(PATIENCE, "each ends in its time", || {
        (failed("timeout") + failed("too_many") == 21.0).then_some(())
    });
    assert!(failed("timeout") >= 16.0 && failed("gave_way") == 0.0);
    drop((crowd, done));
    edge.serves();
}

#[test]
fn thousands_that_stop_after_their_hello_are_bounded_and_leave_nothing() {
    const CROWD: usize = 2000;
    if skip::without_descriptors(3 * CROWD as u64) {
        return;
    }
    let edge = Edge::start("handshake_timeout = \"20s\"\nmax_handshakes = 4096");
    edge.serves();
    let before = edge.sluice.holdings();
    let (hello, at_first) = (edge.hello(), edge.sluice.memory());
    let mut crowd: Vec<TcpStream> = (0..CROWD).map(|_| edge.socket()).collect();
    for socket in &mut crowd {
        socket.write_all(&hello).unwrap();
    }
    // Another client is served beside the crowd.
    let mut client = edge.sluice.secured(&edge.config, NAME);
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    drop(client);
    let each = edge.sluice.memory().saturating_sub(at_first) / CROWD as u64;
    eprintln!("{each} bytes for a handshake under way");
    assert!(each < 40 << 10, "{each} bytes for a handshake under way");
    drop(crowd);
    edge.sluice.expect_back_to(before);
}

/// Makes `count` handshakes from four threads. Every second handshake fails, in one of several ways.
fn shake(edge: &Edge, count: u64) {
    let (hello, next) = (edge.hello(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let mut socket = edge.socket();
                    match number % 8 {
                        1 => drop(tls::handshake(socket, &edge.config, "other.example")),
                        3 => {
                            // The handshake must be under way before the reset.
                            let _ = socket.write_all(&hello).and_then(|()| socket.read_exact(&mut [0; 100]));
                            Client::over(socket).unwrap().reset();
                        }
                        5 => {
                            let _ = socket.write_all(&[22, 3, 1, 0xff, 0xff]);
                            let _ = rest(&mut socket);
                        }
                        7 => {
                            let _ = socket.write_all(&hello[..hello.len() / 2]);
                        }
                        // Some of the clients whose handshake succeeds also send a request.
                        _ => {
                            let mut client = Client::new(tls::handshake(socket, &edge.config, NAME).unwrap());
                            if number % 8 == 2 {
                                assert_eq!(client.get("/").status, 200);
                            }
                        }
                    }
                }
            });
        }
    });
}

/// The number of handshakes from `SLUICE_HANDSHAKES`, for runs that are longer than a test's.
fn handshakes() -> Option<u64> {
    std::env::var("SLUICE_HANDSHAKES").ok().map(|count| count.parse().expect("a number"))
}

#[test]
fn handshakes_of_which_half_fail_leave_nothing_behind() {
    let edge = Edge::start("");
    shake(&edge, 1000);
    edge.serves();
    let (before, at_first) = (edge.sluice.holdings(), edge.sluice.memory());
    let count = handshakes().unwrap_or(3000);
    let metrics = edge.sluice.metrics();
    shake(&edge, count);
    edge.serves();
    edge.sluice.expect_back_to(before);
    let now = edge.sluice.memory();
    eprintln!("{count} handshakes: {} KiB before, {} KiB after", at_first >> 10, now >> 10);
    assert!(now < at_first + (2 << 20), "grown from {at_first} to {now} bytes by {count} handshakes");
    let grown = |metric| edge.sluice.metrics().sum(metric) - metrics.sum(metric);
    let half = count as f64 / 2.0;
    assert_eq!(grown("sluice_tls_handshakes_failed_total"), half);
    assert_eq!(grown("sluice_tls_handshakes_total"), half + 1.0);
}

#[test]
fn a_storm_of_aborted_handshakes_disturbs_nobody() {
    let edge = Edge::start("");
    let hello = edge.hello();
    let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut clients: Vec<_> = (0..4).map(|_| edge.sluice.secured(&edge.config, NAME)).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(client.get("/").status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // On a slow machine the storm lasts longer.
        let mut aborted = 0;
        while aborted < 2000 || (served.load(Ordering::Relaxed) < 40 && aborted < 20_000) {
            let mut socket = edge.socket();
            socket.write_all(&hello).unwrap();
            Client::over(socket).unwrap().reset();
            aborted += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("{served:?} requests served beside 2,000 aborted handshakes");
    assert!(served.load(Ordering::Relaxed) >= 40, "{served:?} served");
    drop(clients);
    edge.serves();
}
