//! Clients that could take everything that a worker has, over the simulated ring: honest ones beside them are
//! served all the same.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::secure::{self, NAME, Seen, converse, post};
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, Crowded, HandshakeFailure, HandshakeKind, ShedReason};
use crate::io::simulated::{Faults, Memory, Peer, SimListener};
use crate::listen::{Listener, ListenerId, Protocol};
use crate::time::Time;
use crate::worker::listener_tag;
use crate::worker::testing::{self, Bench, origin_address};

const HOSTILE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 66);

/// Bytes come in one piece.
fn whole() -> Faults {
    Faults { short: false, ..Faults::mild() }
}

fn honest(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, index)
}

/// A worker whose https listener gives handshakes ten seconds.
fn bench(max_handshakes: usize, connections_max: usize) -> (Bench, Arc<ClientConfig>) {
    let (mut config, trust) = secure::config(max_handshakes);
    patient(&mut config.listeners[0]);
    let bench = Bench::holding(connections_max, 1, whole(), config, Memory::default());
    secure::serve(&bench);
    (bench, trust)
}

fn patient(listener: &mut Arc<Listener>) {
    let listener = Arc::make_mut(listener);
    let tls = listener.tls.as_mut().expect("https");
    Arc::get_mut(tls).expect("nobody else has it").handshake_timeout = Duration::from_secs(10);
}

fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut client =
        ClientConnection::new(Arc::clone(config), ServerName::try_from(NAME).expect("name")).expect("client");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("memory");
    hello
}

/// A client that sends this and nothing more, and comes again when it is reset.
fn attack(bench: &Bench, source: Ipv4Addr, bytes: &[u8]) -> Peer {
    let peer = bench.sim.connect_from(source, bench.listener);
    peer.write(bytes);
    peer
}

fn ask(bench: &Bench, source: Ipv4Addr, config: &Arc<ClientConfig>) -> Rc<RefCell<Seen>> {
    converse(&bench.sim.connect_from(source, bench.listener), config, post(b"x"), 20, b"\r\n\r\nx")
}

fn is_served(seen: &Rc<RefCell<Seen>>) -> bool {
    seen.borrow().plain.ends_with(b"\r\n\r\nx")
}

fn settle(bench: &mut Bench, milliseconds: u64) {
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(milliseconds));
}

fn gave_way(bench: &Bench, kind: Crowded) -> u64 {
    bench.value(Counter::GaveWay(kind))
}

fn failed(bench: &Bench, reason: HandshakeFailure) -> u64 {
    bench.value(Counter::HandshakeFailed(reason))
}

fn end(mut bench: Bench, peers: &[Peer]) {
    peers.iter().for_each(Peer::close);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_hello_that_is_not_whole_holds_no_place() {
    let (mut bench, config) = bench(2, 100);
    let hello = hello(&config);
    // A byte each, and all but one byte.
    let peers: Vec<_> = (0..60)
        .map(|index| attack(&bench, HOSTILE, &hello[..if index % 2 == 0 { 1 } else { hello.len() - 1 }]))
        .collect();
    settle(&mut bench, 1500);
    assert_eq!((bench.events.worker().crowd.handshakes(), bench.value(Plain::Open)), (0, 60));
    let seen = ask(&bench, honest(1), &config);
    settle(&mut bench, 200);
    assert!(is_served(&seen), "{}", bench.counted());
    assert_eq!(bench.value(Plain::HandshakesWaited), 0);
    end(bench, &peers);
}

#[test]
fn one_source_that_holds_every_place_gives_way_to_others() {
    let (mut bench, config) = bench(4, 100);
    let hello = hello(&config);
    let peers: Vec<_> = (0..60).map(|_| attack(&bench, HOSTILE, &hello)).collect();
    settle(&mut bench, 500);
    assert_eq!(bench.events.worker().crowd.handshakes(), 4);
    assert!(bench.events.worker().crowd.waiting() > 40);
    // The hostile clients behind the first four wait, so that an honest one passes them.
    for index in 1..=20 {
        let seen = ask(&bench, honest(index), &config);
        settle(&mut bench, 1000);
        assert!(is_served(&seen), "{index}: {}", bench.counted());
    }
    assert!(gave_way(&bench, Crowded::Handshakes) >= 4);
    assert_eq!(failed(&bench, HandshakeFailure::GaveWay), gave_way(&bench, Crowded::Handshakes));
    assert_eq!(bench.value(Plain::Responses2xx), 20);
    end(bench, &peers);
}

#[test]
fn who_shares_its_address_with_an_attacker_is_served_too() {
    let (mut bench, config) = bench(4, 100);
    let hello = hello(&config);
    let peers: Vec<_> = (0..30).map(|_| attack(&bench, HOSTILE, &hello)).collect();
    settle(&mut bench, 500);
    let seen = ask(&bench, HOSTILE, &config);
    settle(&mut bench, 8000);
    assert!(is_served(&seen), "{}", bench.counted());
    end(bench, &peers);
}

#[test]
fn as_many_sources_as_there_are_hostile_connections_hold_up_nobody_for_long() {
    let (mut bench, config) = bench(4, 1000);
    let hello = hello(&config);
    let source = |index: u8| Ipv4Addr::new(198, 51, 100, index);
    let mut peers: Vec<_> = (0..200).map(|index| (index, attack(&bench, source(index), &hello))).collect();
    settle(&mut bench, 500);
    let mut seen = Vec::new();
    for index in 0..30 {
        seen.push(ask(&bench, honest(index), &config));
        settle(&mut bench, 200);
        // Whoever is reset comes again.
        for (index, peer) in &mut peers {
            if peer.is_reset() {
                peer.close();
                *peer = attack(&bench, source(*index), &hello);
            }
        }
    }
    settle(&mut bench, 6000);
    let served = seen.iter().filter(|seen| is_served(seen)).count();
    assert_eq!(served, 30, "{}", bench.counted());
    end(bench, &peers.into_iter().map(|(_, peer)| peer).collect::<Vec<_>>());
}

#[test]
fn a_storm_of_honest_clients_waits_and_is_served() {
    for sources in [1, 200] {
        let (mut bench, config) = bench(4, 1000);
        let seen: Vec<_> = (0..200_u8).map(|index| ask(&bench, honest(index % sources), &config)).collect();
        bench.run_out();
        assert!(seen.iter().all(is_served), "{sources}: {}", bench.counted());
        assert_eq!(bench.value(Counter::Handshake(HandshakeKind::Full13)), 200);
        assert!(bench.value(Plain::HandshakesWaited) > 0);
        assert_eq!(gave_way(&bench, Crowded::Handshakes), 0);
        bench.check_freed("");
    }
}

#[test]
fn who_waits_in_vain_is_counted_and_who_leaves_the_queue_is_forgotten() {
    let (mut config, trust) = secure::config(1);
    let listener = Arc::make_mut(&mut config.listeners[0]);
    let tls = Arc::get_mut(listener.tls.as_mut().expect("https")).expect("nobody else has it");
    tls.handshake_timeout = Duration::from_millis(500);
    let mut bench = Bench::new(1, whole(), config);
    let hello = hello(&trust);
    let late = bench.sim.connect(bench.listener);
    settle(&mut bench, 100);
    let holds = attack(&bench, HOSTILE, &hello);
    settle(&mut bench, 100);
    late.write(&hello);
    let closes = attack(&bench, honest(2), &hello);
    let resets = attack(&bench, honest(3), &hello);
    settle(&mut bench, 100);
    assert_eq!(bench.events.worker().crowd.waiting(), 3);
    closes.close();
    resets.reset();
    settle(&mut bench, 50);
    assert_eq!(bench.events.worker().crowd.waiting(), 1);
    assert_eq!(failed(&bench, HandshakeFailure::ClientClosed), 2);
    settle(&mut bench, 200);
    assert!(late.is_reset() && !holds.is_reset());
    assert_eq!(failed(&bench, HandshakeFailure::TooMany), 1);
    end(bench, &[late, holds]);
}

#[test]
fn a_listener_has_its_own_places() {
    let (mut config, trust) = secure::config(2);
    let mut other = (*config.listeners[0]).clone();
    other.name = "other".to_owned();
    config.listeners.push(other.into());
    let mut bench = Bench::new(1, whole(), config);
    secure::serve(&bench);
    let second: SimListener = bench.sim.listener();
    let id = ListenerId::from_bits(1);
    assert!(bench.traffic.load().listeners.get(id).is_some(), "it has this number");
    bench.engine.add_listener(second, listener_tag(id));
    let hello = hello(&trust);
    let peers: Vec<_> = (0..20).map(|_| attack(&bench, HOSTILE, &hello)).collect();
    settle(&mut bench, 300);
    // From the same source, and at once.
    let seen = converse(&bench.sim.connect_from(HOSTILE, second), &trust, post(b"x"), 20, b"\r\n\r\nx");
    settle(&mut bench, 300);
    assert!(is_served(&seen), "{}", bench.counted());
    end(bench, &peers);
}

#[test]
fn sources_are_those_that_a_trusted_proxy_names() {
    let (mut config, trust) = secure::config(4);
    patient(&mut config.listeners[0]);
    let listener = Arc::make_mut(&mut config.listeners[0]);
    listener.proxy_protocol = true;
    listener.trusted_proxies = vec!["203.0.113.0/24".parse().expect("a network")];
    let mut bench = Bench::new(1, whole(), config);
    secure::serve(&bench);
    let hello = hello(&trust);
    let proxy = Ipv4Addr::new(203, 0, 113, 1);
    let through = |bench: &Bench, client: &str| {
        let peer = bench.sim.connect_from(proxy, bench.listener);
        peer.write(format!("PROXY TCP4 {client} 198.51.100.1 1000 443\r\n").as_bytes());
        peer
    };
    let peers: Vec<_> = (0..40)
        .map(|_| {
            let peer = through(&bench, "198.51.100.66");
            peer.write(&hello);
            peer
        })
        .collect();
    settle(&mut bench, 500);
    for index in 0..5 {
        let peer = through(&bench, &format!("192.0.2.{index}"));
        let seen = converse(&peer, &trust, post(b"x"), 20, b"\r\n\r\nx");
        settle(&mut bench, 1000);
        assert!(is_served(&seen), "{index}: {}", bench.counted());
    }
    end(bench, &peers);
}

/// A worker that holds so many connections of plain HTTP, with an origin that answers after this time.
fn plain(connections_max: usize, answers_after: Duration) -> Bench {
    let mut config = testing::config(&[origin_address(1)]);
    let listener = Arc::make_mut(&mut config.listeners[0]);
    listener.proxy_protocol = true;
    listener.trusted_proxies = vec!["203.0.113.0/24".parse().expect("a network")];
    let bench = Bench::holding(connections_max, 1, whole(), config, Memory::default());
    bench.sim.serve(origin_address(1), move || {
        let (mut received, mut due) = (Vec::new(), None::<Time>);
        Box::new(move |peer: &Peer| {
            received.extend(peer.read());
            if received.ends_with(b"\r\n\r\n") {
                received.clear();
                due = Some(peer.now() + answers_after);
                peer.wake_at(peer.now() + answers_after);
            }
            if due.take_if(|due| *due <= peer.now()).is_some() {
                peer.write(super::simulated::RESPONSE);
            }
            if peer.is_ended() {
                peer.close();
            }
        })
    });
    bench
}

fn get(bench: &mut Bench, source: Ipv4Addr) -> (Peer, bool) {
    let peer = attack(bench, source, super::simulated::REQUEST);
    settle(bench, 200);
    let is_served = peer.read().ends_with(b"\r\n\r\nok");
    (peer, is_served)
}

#[test]
fn what_is_not_begun_or_not_whole_gives_way_at_max_connections() {
    // Partial heads, PROXY headers that are not whole, and nothing at all.
    let proxy = Ipv4Addr::new(203, 0, 113, 1);
    for (source, begun) in [
        (HOSTILE, &b"GET / HTTP/1.1\r\nHost: a\r\n"[..]),
        (HOSTILE, b""),
        (proxy, b"PROXY TCP4 "),
        (proxy, b""),
    ] {
        let mut bench = plain(20, Duration::ZERO);
        let peers: Vec<_> = (0..20).map(|_| attack(&bench, source, begun)).collect();
        settle(&mut bench, 500);
        assert_eq!(bench.value(Plain::Open), 20);
        let mut kept = Vec::new();
        for index in 0..6 {
            let (peer, is_served) = get(&mut bench, honest(index));
            assert!(is_served, "{index}, {begun:?}: {}", bench.counted());
            kept.push(peer);
        }
        assert_eq!(gave_way(&bench, Crowded::Connections), 6);
        assert_eq!(bench.value(Counter::Closed(CloseReason::GaveWay)), 6);
        assert_eq!(bench.value(Counter::Shed(ShedReason::MaxConnections)), 0);
        assert!(peers.iter().take(6).all(Peer::is_reset), "the longest waiting");
        assert_eq!(bench.value(Plain::Open), 20);
        // The honest ones are idle now, and the hostile source has more.
        let again: Vec<_> = (0..10).map(|_| attack(&bench, source, begun)).collect();
        settle(&mut bench, 500);
        assert!(kept.iter().all(|peer| !peer.is_ended()));
        kept.extend(again);
        kept.extend(peers);
        end(bench, &kept);
    }
}

#[test]
fn who_was_accepted_a_moment_ago_does_not_give_way() {
    let mut bench = plain(10, Duration::ZERO);
    let mut peers: Vec<_> = (0..9).map(|_| attack(&bench, HOSTILE, b"")).collect();
    settle(&mut bench, 100);
    // Nine may give way, then nobody may: the others may have asked already.
    peers.extend((0..20).map(|index| attack(&bench, honest(index), b"")));
    let start = bench.sim.now();
    bench.run_until(|events| events.worker().counters.value(Plain::Accepted) == 29);
    if bench.sim.now().since(start) < Duration::from_millis(20) {
        assert!(gave_way(&bench, Crowded::Connections) <= 9);
        assert!(bench.value(Counter::Shed(ShedReason::MaxConnections)) >= 10);
    }
    settle(&mut bench, 100);
    assert!(peers[..9].iter().all(Peer::is_reset));
    end(bench, &peers);
}

#[test]
fn idle_connections_give_way_in_order_and_busy_ones_never() {
    let mut bench = plain(10, Duration::ZERO);
    let mut idle: Vec<_> = (0..10).map(|_| get(&mut bench, honest(1)).0).collect();
    let (newcomer, is_served) = get(&mut bench, honest(2));
    assert!(is_served && idle[0].is_ended() && !idle[0].is_reset(), "{}", bench.counted());
    assert!(idle[1..].iter().all(|peer| !peer.is_ended()));
    idle.push(newcomer);
    end(bench, &idle);

    let mut bench = plain(10, Duration::from_millis(800));
    let mut busy: Vec<_> = (0..10).map(|_| attack(&bench, HOSTILE, super::simulated::REQUEST)).collect();
    settle(&mut bench, 200);
    busy.extend((0..5).map(|index| attack(&bench, honest(index), super::simulated::REQUEST)));
    settle(&mut bench, 200);
    assert_eq!(bench.value(Counter::Shed(ShedReason::MaxConnections)), 5);
    settle(&mut bench, 1000);
    assert!(busy[..10].iter().all(|peer| peer.read().ends_with(b"ok")));
    end(bench, &busy);
}

#[test]
fn a_second_head_that_is_not_whole_gives_way_too() {
    let mut bench = plain(10, Duration::ZERO);
    let mut peers: Vec<_> = (0..10).map(|_| get(&mut bench, HOSTILE).0).collect();
    for peer in &peers {
        peer.write(b"GET / HT");
    }
    settle(&mut bench, 100);
    let (newcomer, is_served) = get(&mut bench, honest(1));
    assert!(is_served && peers[0].is_reset(), "{}", bench.counted());
    // A head that is whole in time is served as ever.
    peers[9].write(b"TP/1.1\r\nHost: a\r\n\r\n");
    settle(&mut bench, 100);
    assert!(peers[9].read().ends_with(b"ok"));
    peers.push(newcomer);
    end(bench, &peers);
}

#[test]
fn beginnings_hold_no_more_than_their_share_and_the_greediest_gives_way() {
    let mut config = testing::config(&[origin_address(1)]);
    let listener = Arc::make_mut(&mut config.listeners[0]);
    listener.protocol =
        Protocol::TlsPassthrough { upstream: Some(0), handshake_timeout: Duration::from_secs(10) };
    // The least that they have is 4 MiB.
    let memory = Memory { budget: 1 << 20, ..Memory::default() };
    let mut bench = Bench::holding(1000, 1, whole(), config, memory);
    bench.sim.origin(origin_address(1));
    let (_, trust) = secure::config(1);
    let hello = hello(&trust);
    let first = attack(&bench, honest(1), &hello[..200]);
    settle(&mut bench, 50);
    // A hello of 15 KiB, but for its last byte.
    let mut large = vec![22, 3, 1, 60, 4, 1, 0, 60, 0];
    large.resize(15 << 10, 0);
    let mut peers = Vec::new();
    for _ in 0..300 {
        peers.push(attack(&bench, HOSTILE, &large));
        settle(&mut bench, 20);
    }
    let gone = gave_way(&bench, Crowded::Beginnings);
    assert!((20..60).contains(&gone), "{gone}: {}", bench.counted());
    assert_eq!(bench.value(Counter::Closed(CloseReason::GaveWay)), gone);
    assert!(peers.iter().take(gone as usize).all(Peer::is_reset), "the longest waiting");
    first.write(&hello[200..]);
    settle(&mut bench, 100);
    let server = bench.sim.accept(origin_address(1)).expect("connected");
    assert_eq!(server.read(), hello);
    server.close();
    peers.push(first);
    end(bench, &peers);
}
