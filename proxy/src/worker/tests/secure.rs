//! https connections over the simulated ring: rustls' own client at the other end, short reads and writes in
//! between.

use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore};

use crate::config::model;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, HandshakeFailure, HandshakeKind, RefusalReason};
use crate::io::simulated::{Faults, Memory, Peer};
use crate::listen::Protocol;
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::server::{MinVersion, ServerTls, Settings};
use crate::tls::testing::Authority;
use crate::worker::testing::{self, Bench, origin_address};

pub(super) const NAME: &str = "edge.test";
const TIMEOUT: Duration = Duration::from_secs(2);

/// A worker whose listener speaks https, and what its clients trust.
pub(super) fn bench(seed: u64, faults: Faults, max_handshakes: usize) -> (Bench, Arc<ClientConfig>) {
    bench_with_memory(seed, faults, max_handshakes, Memory::default())
}

fn bench_with_memory(
    seed: u64,
    faults: Faults,
    max_handshakes: usize,
    memory: Memory,
) -> (Bench, Arc<ClientConfig>) {
    let (config, trust) = config(max_handshakes);
    let bench = Bench::with_memory(seed, faults, config, memory);
    serve(&bench);
    (bench, trust)
}

/// A configuration whose listener speaks https, and what its clients trust.
pub(super) fn config(max_handshakes: usize) -> (model::Config, Arc<ClientConfig>) {
    let authority = Authority::new("Test CA");
    let mut config = testing::config(&[origin_address(1)]);
    let listener = Arc::make_mut(&mut config.listeners[0]);
    listener.protocol = Protocol::Https;
    listener.tls = Some(server(&authority, max_handshakes));
    (config, trust(&authority))
}

/// An origin that echoes bodies.
pub(super) fn serve(bench: &Bench) {
    bench.sim.serve(origin_address(1), || {
        let mut received = Vec::new();
        Box::new(move |peer: &Peer| {
            received.extend(peer.read());
            while let Some(at) = received.windows(4).position(|end| end == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&received[..at]).into_owned();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("Content-Length: ")?.parse().ok())
                    .unwrap_or(0);
                if received.len() < at + 4 + length {
                    break;
                }
                assert!(head.contains("X-Forwarded-Proto: https"), "{head}");
                let body: Vec<u8> = received.drain(..at + 4 + length).skip(at + 4).collect();
                peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes());
                peer.write(&body);
            }
            if peer.is_ended() {
                peer.close();
            }
        })
    });
}

/// A server with a certificate of this authority.
pub(super) fn server(authority: &Authority, max_handshakes: usize) -> Arc<ServerTls> {
    let tls = ServerTls::new(Settings {
        certificates: vec![authority.leaf(&[NAME]).compiled()],
        min_version: MinVersion::Tls12,
        alpn: vec!["http/1.1".into()],
        client_auth: None,
        session_tickets: false,
        early_data: true,
        ticket_keys: vec![],
        handshake_timeout: TIMEOUT,
        max_handshakes,
    });
    Arc::new(tls.expect("settings"))
}

/// A client that believes this authority.
pub(super) fn trust(authority: &Authority) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("a CA")).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions");
    Arc::new(client.with_root_certificates(roots).with_no_client_auth())
}

#[derive(Default)]
pub(super) struct Seen {
    pub(super) plain: Vec<u8>,
    is_over: bool,
    /// It said that it sends nothing more.
    is_announced: bool,
}

/// A client that says this, reads, and closes once it has seen so many bytes, and last the body `last`.
pub(super) fn converse(
    peer: &Peer,
    config: &Arc<ClientConfig>,
    bytes: Vec<u8>,
    until: usize,
    last: &'static [u8],
) -> Rc<RefCell<Seen>> {
    converse_in_pieces(peer, config, bytes, until, last, usize::MAX)
}

/// The same, of what is sealed so many bytes a millisecond.
fn converse_in_pieces(
    peer: &Peer,
    config: &Arc<ClientConfig>,
    mut bytes: Vec<u8>,
    until: usize,
    last: &'static [u8],
    piece: usize,
) -> Rc<RefCell<Seen>> {
    let mut tls =
        ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME).expect("name")).expect("client");
    // Where an earlier session allows it, as much as may be of it at once.
    if let Some(mut early) = tls.early_data() {
        let n = early.write(&bytes).expect("memory");
        bytes.drain(..n);
    }
    let seen = Rc::new(RefCell::new(Seen::default()));
    let shared = Rc::clone(&seen);
    let (mut out, mut due) = (Vec::new(), peer.now());
    peer.script(move |peer| {
        let mut seen = shared.borrow_mut();
        let received = peer.read();
        let mut rest = &received[..];
        while !rest.is_empty() {
            tls.read_tls(&mut rest).expect("memory");
            let state = tls.process_new_packets().expect("records");
            seen.is_announced |= state.peer_has_closed();
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            tls.reader().read_exact(&mut plain).expect("plaintext");
            seen.plain.extend(plain);
        }
        if !bytes.is_empty() && !tls.is_handshaking() {
            let n = tls.writer().write(&bytes).expect("memory");
            bytes.drain(..n);
        }
        if seen.plain.len() >= until && seen.plain.ends_with(last) && !seen.is_over {
            seen.is_over = true;
            tls.send_close_notify();
        }
        while tls.wants_write() {
            tls.write_tls(&mut out).expect("memory");
        }
        if peer.now() >= due {
            let n = piece.min(out.len());
            peer.write(&out[..n]);
            out.drain(..n);
            due = peer.now() + Duration::from_millis(u64::from(piece != usize::MAX));
        }
        if seen.is_over || peer.is_ended() {
            peer.close();
        } else if !bytes.is_empty() || !out.is_empty() {
            peer.wake_at(peer.now() + Duration::from_millis(1));
        }
    });
    seen
}

pub(super) fn post(body: &[u8]) -> Vec<u8> {
    [format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body]
        .concat()
}

#[test]
fn requests_and_bodies_pass_whatever_the_pieces() {
    for seed in 0..20 {
        let faults =
            if seed % 2 == 0 { Faults::mild() } else { Faults { short: false, delay: 0, ..Faults::mild() } };
        let (mut bench, config) = bench(seed, faults, 4);
        let body: Vec<u8> =
            (0..100_000 + seed as usize * 1000).map(|index| (index * 31 + index / 255) as u8).collect();
        let small = post(b"small");
        let seen = converse(
            &bench.sim.connect(bench.listener),
            &config,
            [&small[..], &post(&body), &small].concat(),
            body.len() + 300,
            b"\r\n\r\nsmall",
        );
        bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 3);
        bench.run_out();
        let seen = seen.borrow();
        assert!(seen.plain.ends_with(b"\r\n\r\nsmall"), "seed {seed}");
        assert!(seen.plain.windows(body.len()).any(|window| window == body), "seed {seed}");
        assert_eq!(bench.value(Counter::Handshake(HandshakeKind::Full13)), 1);
        bench.check_freed("");
    }
}

#[test]
fn early_data_passes_whatever_the_pieces() {
    for seed in 0..20 {
        let faults =
            if seed % 2 == 0 { Faults::mild() } else { Faults { short: false, delay: 0, ..Faults::mild() } };
        let (mut bench, mut config) = bench(seed, faults, 4);
        Arc::make_mut(&mut config).enable_early_data = true;
        let body: Vec<u8> =
            (0..60_000 + seed as usize * 1000).map(|index| (index * 31 + index / 255) as u8).collect();
        let get = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n").into_bytes();
        let _whole = converse(&bench.sim.connect(bench.listener), &config, post(b"first"), 5, b"first");
        bench.run_until(|events| {
            events.worker().counters.value(Plain::Open) == 0
                && events.worker().counters.value(Plain::Requests) == 1
        });
        // A request that may be served early, then one that may not, with a part of its body that arrives
        // early too.
        let bytes = if seed % 4 < 2 {
            [&get[..], &post(&body), &post(b"last")].concat()
        } else {
            [post(&body), post(b"last")].concat()
        };
        let seen =
            converse(&bench.sim.connect(bench.listener), &config, bytes, body.len() + 100, b"\r\n\r\nlast");
        bench.run_out();
        let seen = seen.borrow();
        assert!(seen.plain.ends_with(b"\r\n\r\nlast"), "seed {seed}: {}", bench.counted());
        assert!(seen.plain.windows(body.len()).any(|window| window == body), "seed {seed}");
        assert_eq!(bench.value(Counter::Handshake(HandshakeKind::Full13)), 1);
        assert_eq!(bench.value(Counter::Handshake(HandshakeKind::Resumed13)), 1, "seed {seed}");
        assert!(bench.value(Plain::EarlyRequests) <= u64::from(seed % 4 < 2), "seed {seed}");
        bench.check_freed("");
    }
}

#[test]
fn a_connection_that_idles_is_ended_with_a_word() {
    let (mut bench, config) = bench(1, Faults::mild(), 4);
    let seen = converse(&bench.sim.connect(bench.listener), &config, post(b"x"), usize::MAX, b"");
    bench.run_out();
    assert_eq!(bench.value(Counter::Closed(CloseReason::KeepAliveTimeout)), 1);
    assert!(seen.borrow().is_announced);
    bench.check_freed("");
}

#[test]
fn a_handshake_has_its_time_and_no_more() {
    // Nothing at all, and a beginning.
    for said in [&b""[..], &[22, 3, 1, 0, 200, 1, 0]] {
        let (mut bench, _) = bench(1, Faults::mild(), 4);
        let client = bench.sim.connect(bench.listener);
        client.write(said);
        let begun = bench.sim.now();
        bench.run_until(|events| {
            events.worker().counters.value(Counter::Closed(CloseReason::TlsHandshake)) == 1
        });
        let took = bench.sim.now().since(begun);
        assert!((TIMEOUT..TIMEOUT + Duration::from_secs(1)).contains(&took), "{took:?}");
        assert_eq!(bench.value(Counter::HandshakeFailed(HandshakeFailure::Timeout)), 1);
        assert_eq!(bench.events.worker().crowd.handshakes(), 0);
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn a_crowd_of_handshakes_takes_turns_and_all_get_through() {
    let (mut bench, config) = bench(3, Faults { short: false, ..Faults::mild() }, 40);
    let seen: Vec<_> = (0..40)
        .map(|_| converse(&bench.sim.connect(bench.listener), &config, post(b"x"), 20, b"\r\n\r\nx"))
        .collect();
    bench.run_out();
    assert!(seen.iter().all(|seen| seen.borrow().plain.ends_with(b"x")));
    assert_eq!(bench.value(Counter::Handshake(HandshakeKind::Full13)), 40);
    bench.check_freed("");
}

#[test]
fn who_was_silent_over_a_reload_is_shown_the_new_certificate() {
    let (mut bench, _) = bench(1, Faults::mild(), 4);
    let client = bench.sim.connect(bench.listener);
    bench.run_until(|events| events.worker().sessions.open() == 1);
    let mut config = (*bench.config.load_full()).clone();
    let authority = Authority::new("Another CA");
    Arc::make_mut(&mut config.listeners[0]).tls = Some(server(&authority, 4));
    bench.publish(config);
    let seen = converse(&client, &trust(&authority), post(b"x"), 20, b"\r\n\r\nx");
    bench.run_out();
    assert!(seen.borrow().plain.ends_with(b"x"));
    bench.check_freed("");
}

#[test]
fn what_is_not_tls_is_told_so() {
    let (mut bench, _) = bench(1, Faults { short: false, ..Faults::mild() }, 4);
    let plain = bench.sim.connect(bench.listener);
    plain.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let garbage = bench.sim.connect(bench.listener);
    garbage.write(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
    bench.run_until(|events| events.worker().counters.value(Counter::Closed(CloseReason::TlsHandshake)) == 2);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert!(plain.read().starts_with(b"HTTP/1.1 400 "));
    assert_eq!(garbage.read()[..2], [21, 3], "an alert");
    assert_eq!(bench.value(Counter::Refused(RefusalReason::PlainHttp)), 1);
    assert_eq!(bench.value(Counter::HandshakeFailed(HandshakeFailure::NotTls)), 1);
    assert_eq!(bench.value(Counter::HandshakeFailed(HandshakeFailure::Malformed)), 1);
    plain.close();
    garbage.close();
    bench.run_out();
    bench.check_freed("");
}

/// A client that shakes hands and then breaks a record; `then` is called whenever the world moves after that,
/// and says whether it reads. The alert it has read.
fn offend(
    client: &Peer,
    config: Arc<ClientConfig>,
    mut then: impl FnMut(&Peer) -> bool + 'static,
) -> Rc<Cell<Option<AlertDescription>>> {
    let mut tls = ClientConnection::new(config, ServerName::try_from(NAME).expect("name")).expect("client");
    let heard = Rc::new(Cell::new(None));
    let shared = Rc::clone(&heard);
    // Not with the end of the handshake.
    let (mut due, mut is_sent) = (None, false);
    client.script(move |peer| {
        let received = if is_sent && !then(peer) { Vec::new() } else { peer.read() };
        let mut rest = &received[..];
        while !rest.is_empty() {
            tls.read_tls(&mut rest).expect("memory");
            if let Err(rustls::Error::AlertReceived(alert)) = tls.process_new_packets() {
                shared.set(Some(alert));
            }
        }
        let mut out = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut out).expect("memory");
        }
        if !tls.is_handshaking() && due.is_none() {
            due = Some(peer.now() + Duration::from_millis(50));
            peer.wake_at(peer.now() + Duration::from_millis(50));
        }
        if due.is_some_and(|due| due <= peer.now()) && !is_sent {
            is_sent = true;
            out.extend_from_slice(&[23, 3, 3, 0, 20]);
            out.extend_from_slice(&[7; 20]);
        }
        peer.write(&out);
        if peer.is_ended() {
            peer.close();
        }
    });
    heard
}

/// Sends so many bytes again and again, at most so often, once the last were taken.
fn send_on(sent: &Rc<Cell<usize>>, size: usize, pause: Duration) -> impl FnMut(&Peer) + use<> {
    let (sent, mut due) = (Rc::clone(sent), Time::default());
    move |peer| {
        if peer.unsent() == 0 && peer.now() >= due {
            peer.write(&vec![9; size]);
            sent.set(sent.get() + size);
            due = peer.now() + pause;
            peer.wake_at(due);
        }
    }
}

#[test]
fn a_broken_record_ends_the_connection_with_an_alert() {
    let (mut bench, config) = bench(1, Faults { short: false, ..Faults::mild() }, 4);
    let client = bench.sim.connect(bench.listener);
    let heard = offend(&client, config, |_| true);
    bench.run_out();
    assert_eq!(heard.get(), Some(AlertDescription::BadRecordMac), "they were told");
    assert_eq!(bench.value(Counter::Closed(CloseReason::TlsBroken)), 1, "{}", bench.counted());
    assert_eq!(bench.value(Counter::AlertSent(Alert::of(20))), 1);
    bench.check_freed("");
}

#[test]
fn who_goes_on_sending_after_it_broke_the_rules_still_reads_the_alert() {
    for seed in 0..10 {
        let (mut bench, config) = bench(seed, Faults::mild(), 4);
        let begun = bench.sim.now();
        // For a while they only send, both after the handshake and in place of one.
        let sending = || {
            let mut send = send_on(&Rc::default(), 500, Duration::from_millis(50));
            move |peer: &Peer| {
                let is_over = peer.now().since(begun) > Duration::from_millis(1500);
                if !is_over {
                    send(peer);
                }
                is_over
            }
        };
        let offender = bench.sim.connect(bench.listener);
        let heard = offend(&offender, config, sending());
        let stranger = bench.sim.connect(bench.listener);
        stranger.write(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
        let said = Rc::new(RefCell::new(Vec::new()));
        let (shared, mut send) = (Rc::clone(&said), sending());
        stranger.script(move |peer| {
            if send(peer) {
                shared.borrow_mut().extend(peer.read());
            }
            if peer.is_ended() {
                peer.close();
            }
        });
        bench.run_out();
        assert_eq!(heard.get(), Some(AlertDescription::BadRecordMac), "seed {seed}");
        assert_eq!(said.borrow()[..2], [21, 3], "an alert, seed {seed}");
        assert!(!offender.is_reset() && !stranger.is_reset(), "seed {seed}");
        assert_eq!(bench.value(Counter::Closed(CloseReason::TlsBroken)), 1);
        assert_eq!(bench.value(Counter::Closed(CloseReason::TlsHandshake)), 1);
        bench.check_freed("");
    }
}

#[test]
fn who_never_stops_after_it_broke_the_rules_is_cut_soon() {
    let settings = crate::io::Settings::default();
    // Little by little, and as much as we take.
    for (size, pause) in [(1, Duration::from_millis(300)), (1 << 20, Duration::from_millis(10))] {
        let (mut bench, config) = bench(2, Faults { short: false, delay: 0, ..Faults::mild() }, 4);
        let begun = bench.sim.now();
        let sent = Rc::new(Cell::new(0));
        let offender = bench.sim.connect(bench.listener);
        let mut send = send_on(&sent, size, pause);
        let _heard = offend(&offender, config, move |peer| {
            send(peer);
            true
        });
        let stranger = bench.sim.connect(bench.listener);
        stranger.write(&[22, 3, 1, 0, 5, 1, 0, 0, 1, 0]);
        stranger.script(send_on(&sent, size, pause));
        // A session is over at once; the time that its connection takes to close is bounded.
        bench.run_until(|events| {
            events.worker().counters.value(Plain::Open) == 0
                && events.worker().counters.value(Plain::Accepted) == 2
        });
        bench.sim.run(&mut bench.engine, &mut bench.events, |_| offender.is_closed() && stranger.is_closed());
        let took = bench.sim.now().since(begun);
        assert!(took < settings.refused_max + Duration::from_millis(1500), "{took:?}");
        assert!(sent.get() < 2 * settings.refused_bytes + (2 << 20), "{} bytes were taken", sent.get());
        assert!(
            size == 1 || sent.get() > settings.refused_bytes,
            "the bound was reached: {} bytes",
            sent.get()
        );
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn part_of_a_record_keeps_nobody_from_the_rest() {
    // So little comes at a time that a record would need all buffers several times over; without budget for
    // copies there is no way.
    for (budget, is_served) in [(4 << 10, false), (24 << 10, true), (64 << 10, true)] {
        let memory = Memory { buffers: 16, buffer_size: 4096, budget };
        let (mut bench, config) = bench_with_memory(1, Faults { short: false, ..Faults::mild() }, 4, memory);
        let client = bench.sim.connect(bench.listener);
        let seen = converse_in_pieces(&client, &config, post(&[7; 40_000]), 40_000, b"7", 300);
        let begun = bench.sim.now();
        bench.run_until(|events| {
            let counters = &events.worker().counters;
            counters.value(Plain::Responses2xx) == 1
                || counters.value(Counter::Closed(CloseReason::Overloaded)) == 1
        });
        assert_eq!(bench.value(Plain::Responses2xx) == 1, is_served, "budget {budget}: {}", bench.counted());
        let took = bench.sim.now().since(begun);
        assert!(is_served || took < Duration::from_secs(3), "{took:?}");
        bench.run_out();
        assert!(!is_served || seen.borrow().plain.ends_with(&[7; 40_000]));
        bench.check_freed("");
    }
}

#[test]
fn what_memory_runs_out_for_at_the_handshakes_end_is_reset() {
    // A record after the other, and the only one together with the end.
    for (length, piece, buffer_size) in [(30_000, 4000, 4096), (14_000, 8000, 64 << 10)] {
        let memory = Memory { buffers: 64, buffer_size, budget: 8 << 10 };
        let (mut bench, mut config) =
            bench_with_memory(1, Faults { short: false, delay: 0, ..Faults::mild() }, 4, memory);
        Arc::make_mut(&mut config).enable_early_data = true;
        let _whole = converse(&bench.sim.connect(bench.listener), &config, post(b"first"), 5, b"first");
        bench.run_until(|events| {
            events.worker().counters.value(Plain::Open) == 0
                && events.worker().counters.value(Plain::Requests) == 1
        });
        // Answered without the request's body, which finds no room once it counts.
        let refused = format!(
            "OPTIONS * HTTP/1.1\r\nHost: {NAME}\r\nMax-Forwards: 0\r\nContent-Length: {length}\r\n\r\n"
        );
        let client = bench.sim.connect(bench.listener);
        let bytes = [refused.as_bytes(), &vec![7; length]].concat();
        let seen = converse_in_pieces(&client, &config, bytes, usize::MAX, b"", piece);
        bench.run_out();
        assert!(client.is_reset() && !seen.borrow().is_announced, "{length}: {}", bench.counted());
        assert_eq!(bench.value(Counter::Handshake(HandshakeKind::Resumed13)), 1);
        bench.check_freed("");
    }
}
