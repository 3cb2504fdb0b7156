//! A worker over the simulated ring: draining, new configurations, panics, and clients that stop reading.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::control::commands::Command;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, PoolCloseReason, ShedReason};
use crate::io::StreamError;
use crate::io::simulated::{Faults, Peer};
use crate::session::context::Worker;
use crate::time::Time;
use crate::upstream::model::{Endpoint, Upstream};
use crate::worker::drain::Phase;
use crate::worker::events::Events;
use crate::worker::testing::{self, Bench, origin_address};

pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
pub(super) const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// A bench whose only origin answers every request at once.
pub(super) fn bench() -> Bench {
    let bench = Bench::new(1, Faults::mild(), testing::config(&[origin_address(1)]));
    serve(&bench, 1);
    bench
}

pub(super) fn serve(bench: &Bench, origin: u8) {
    bench.sim.serve(origin_address(origin), || {
        // Short I/O may cut a request anywhere.
        let mut received = Vec::new();
        Box::new(move |peer: &Peer| {
            received.extend(peer.read());
            while let Some(at) = received.windows(4).position(|end| end == b"\r\n\r\n") {
                received.drain(..at + 4);
                peer.write(RESPONSE);
            }
            if peer.is_ended() {
                peer.close();
            }
        })
    });
}

/// One exchange; its connection stays open.
pub(super) fn fetch(bench: &mut Bench) -> Peer {
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    let answered = bench.value(Plain::Responses2xx) + 1;
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == answered);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert!(client.read().ends_with(b"\r\n\r\nok"));
    client
}

/// Turns until the phase is over.
fn finish(bench: &mut Bench, phase: &mut Phase) {
    let worker = Rc::clone(bench.events.worker());
    for _ in 0..100_000 {
        bench.engine.turn(&mut bench.events).expect("a turn");
        if phase.advance(&worker, &mut bench.engine) {
            bench.events.publish(bench.engine.stats());
            return;
        }
    }
    panic!("the worker does not end");
}

fn obey(bench: &mut Bench, phase: &mut Phase, command: Command) {
    let worker = Rc::clone(bench.events.worker());
    phase.obey(command, &worker, &mut bench.engine, bench.events.steering());
}

#[test]
fn a_client_that_asked_for_the_close_is_not_waited_for() {
    // The request comes in one piece.
    let faults = Faults { short: false, ..Faults::mild() };
    let mut bench = Bench::new(1, faults, testing::config(&[origin_address(1)]));
    serve(&bench, 1);
    let client = bench.sim.connect(bench.listener);
    client.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 1);
    // Far below the second that other connections get for their own end.
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert!(client.read().ends_with(b"\r\n\r\nok"));
    assert!(client.is_ended() && !client.is_reset());
    assert_eq!(bench.engine.streams(), 1, "the pooled upstream connection");
    assert_eq!(bench.value(Counter::Closed(CloseReason::NotKeptAlive)), 1);
}

/// A client's side: sends all of it, a piece whenever the world moves, and reads. `true`: the end came in
/// order; `false`: a reset came.
pub(super) fn converse(
    peer: &Peer,
    bytes: Vec<u8>,
    piece: usize,
    take: usize,
) -> Rc<std::cell::RefCell<(Vec<u8>, Option<bool>)>> {
    let seen = Rc::new(std::cell::RefCell::new((Vec::new(), None)));
    let (shared, mut at) = (Rc::clone(&seen), 0);
    peer.script(move |peer| {
        let (received, end) = &mut *shared.borrow_mut();
        received.extend(peer.read_at_most(take));
        let n = piece.min(bytes.len() - at);
        peer.write(&bytes[at..at + n]);
        at += n;
        if peer.is_reset() || peer.is_ended() {
            *end = Some(!peer.is_reset());
            peer.close();
        }
    });
    seen
}

/// Seeds 0x17d and 0x216 of the simulation: such a connection was closed at once, and the unread bytes made
/// that close a reset.
#[test]
fn a_client_that_did_not_ask_for_the_close_sees_its_answer_though_it_sends_on() {
    let early = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let until_close = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok";
    let mut upload = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n".to_vec();
    upload.resize(upload.len() + 50_000, b'x');
    let pipelined = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".repeat(3);
    for (request, answer) in [(upload, &early[..]), (pipelined, &until_close[..])] {
        for seed in 0..20 {
            let mut bench = Bench::new(seed, Faults::mild(), testing::config(&[origin_address(1)]));
            bench.sim.serve(origin_address(1), move || {
                let (mut head, mut answered) = (Vec::new(), false);
                Box::new(move |peer: &Peer| {
                    head.extend(peer.read());
                    if !answered && head.windows(4).any(|end| end == b"\r\n\r\n") {
                        answered = true;
                        peer.write(answer);
                        peer.shutdown_write();
                    }
                    if peer.is_ended() {
                        peer.close();
                    }
                })
            });
            let seen = converse(&bench.sim.connect(bench.listener), request.clone(), 2000, usize::MAX);
            bench.run_out();
            let (received, ended) = &*seen.borrow();
            assert!(received.ends_with(b"\r\n\r\nok"), "seed {seed}: {}", received.escape_ascii());
            assert_eq!(*ended, Some(true), "seed {seed}: reset");
            bench.check_freed("");
        }
    }
}

/// Seed 0x202 of the simulation: bytes queued for the client were thrown away, because its idle time began
/// when they were queued.
#[test]
fn a_client_is_idle_only_after_it_has_taken_its_response() {
    for drains in [false, true] {
        let faults = Faults { window: 256, delay: 0, ..Faults::mild() };
        let mut bench = Bench::new(1, faults, testing::config(&[origin_address(1)]));
        let body = vec![b'x'; 60_000];
        let response = [b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n", &body[..]].concat();
        bench.sim.serve(origin_address(1), move || {
            let (response, mut head) = (response.clone(), Vec::new());
            Box::new(move |peer: &Peer| {
                head.extend(peer.read());
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    peer.write(&response);
                }
                if peer.is_ended() {
                    peer.close();
                }
            })
        });
        let client = bench.sim.connect(bench.listener);
        client.write(REQUEST);
        let taken = Rc::new(std::cell::RefCell::new((Vec::new(), Time::default(), None)));
        let shared = Rc::clone(&taken);
        // 256 bytes twice a second: two minutes for the response, ten seconds of idleness.
        client.script(move |peer| {
            let (received, next, end) = &mut *shared.borrow_mut();
            if peer.now() >= *next {
                received.extend(peer.read_at_most(256));
                *next = peer.now() + Duration::from_millis(500);
            }
            if peer.is_reset() || peer.is_ended() {
                *end = Some((!peer.is_reset(), peer.now()));
                peer.close();
            } else {
                peer.wake_at(*next);
            }
        });
        bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 1);
        if drains {
            let mut phase = Phase::Serving;
            let deadline = bench.sim.now() + Duration::from_secs(600);
            obey(&mut bench, &mut phase, Command::Drain { deadline });
            finish(&mut bench, &mut phase);
        } else {
            bench.run_out();
        }
        let (received, _, end) = &*taken.borrow();
        let (in_order, _) = end.expect("an end");
        assert!(in_order && received.ends_with(&body), "{} bytes", received.len());
        let reason = if drains { CloseReason::Draining } else { CloseReason::KeepAliveTimeout };
        assert_eq!(bench.value(Counter::Closed(reason)), 1);
        bench.check_freed("");
    }
}

/// A client that takes nothing more of its last response is given up after `send`, with that as the reason.
#[test]
fn a_client_that_does_not_take_its_last_response_meets_the_send_timeout() {
    let mut bench =
        Bench::new(1, Faults { window: 8, ..Faults::mild() }, testing::config(&[origin_address(1)]));
    serve(&bench, 1);
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 1);
    let answered = bench.sim.now();
    bench.run_until(|events| events.worker().counters.value(Counter::Closed(CloseReason::SendTimeout)) == 1);
    let took = bench.sim.now().since(answered);
    assert!((Duration::from_secs(2)..Duration::from_secs(4)).contains(&took), "{took:?}");
    bench.run_out();
    assert!(client.is_reset());
    bench.check_freed("");
}

/// The response is always still on its way when its connection begins to wait for the next request.
#[test]
fn an_idle_client_meets_the_keep_alive_timeout_however_long_it_may_take_over_a_response() {
    let mut config = testing::config(&[origin_address(1)]);
    let keep_alive = Duration::from_millis(400);
    for (window, slow) in [(1 << 20, false), (8, true)] {
        let listener = Arc::make_mut(&mut config.listeners[0]);
        listener.timeouts.keep_alive = keep_alive;
        let mut bench = Bench::new(1, Faults { window, ..Faults::mild() }, config.clone());
        serve(&bench, 1);
        let client = bench.sim.connect(bench.listener);
        client.write(REQUEST);
        let next = std::cell::Cell::new(Time::default());
        let taken = Rc::new(std::cell::Cell::new(Time::default()));
        let shared = Rc::clone(&taken);
        // The slow one takes more than a second over its response, in steps that are within `send`.
        client.script(move |peer| {
            if peer.now() >= next.get()
                && !(slow && peer.read_at_most(4).is_empty() || !slow && peer.read().is_empty())
            {
                shared.set(peer.now());
                next.set(peer.now() + if slow { Duration::from_millis(50) } else { Duration::ZERO });
            }
            if !peer.is_ended() {
                peer.wake_at(next.get());
            }
        });
        bench.run_until(|events| {
            events.worker().counters.value(Counter::Closed(CloseReason::KeepAliveTimeout)) == 1
        });
        let took = bench.sim.now().since(taken.get());
        // A slow client is looked at once a second.
        let late = Duration::from_millis(if slow { 1100 } else { 100 });
        assert!((keep_alive / 2..keep_alive + late).contains(&took), "{took:?}");
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn a_drain_closes_the_idle_and_resets_the_stuck_at_its_deadline() {
    let mut bench = bench();
    let idle = fetch(&mut bench);
    // A second endpoint that takes requests and never answers.
    let mut config = (**bench.config.load()).clone();
    let silent = Endpoint { address: origin_address(2), label: "silent".into(), weight: 1 };
    bench.sim.origin(silent.address);
    config.upstreams = vec![Arc::new(Upstream { endpoints: vec![silent], ..(*config.upstreams[0]).clone() })];
    bench.publish(config);
    let stuck = bench.sim.connect(bench.listener);
    stuck.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Plain::Active) == 1);
    let fresh = bench.sim.connect(bench.listener);
    bench.run_until(|events| events.worker().sessions.open() == 3);

    let mut phase = Phase::Serving;
    let begun = bench.sim.now();
    obey(&mut bench, &mut phase, Command::Drain { deadline: begun + Duration::from_secs(3) });
    fresh.write(REQUEST);
    finish(&mut bench, &mut phase);
    assert!(idle.is_ended() && !idle.is_reset(), "closed in order");
    assert!(stuck.is_reset());
    let took = bench.sim.now().since(begun);
    assert!((Duration::from_secs(3)..Duration::from_secs(4)).contains(&took), "{took:?}");
    assert_eq!(bench.value(Counter::Closed(CloseReason::Draining)), 1);
    assert_eq!(bench.value(Counter::Closed(CloseReason::Stopped)), 2, "those that were cut");
    bench.check_freed("");
}

#[test]
fn a_drain_with_nothing_to_do_ends_at_once_and_a_stop_too() {
    for stop in [false, true] {
        let mut bench = bench();
        let client = fetch(&mut bench);
        client.close();
        let idle = fetch(&mut bench);
        let mut phase = Phase::Serving;
        let begun = bench.sim.now();
        let command =
            if stop { Command::Stop } else { Command::Drain { deadline: begun + Duration::from_secs(600) } };
        obey(&mut bench, &mut phase, command);
        idle.close();
        finish(&mut bench, &mut phase);
        assert!(bench.sim.now().since(begun) < Duration::from_secs(2));
        bench.check_freed("");
    }
}

#[test]
fn a_request_that_arrives_while_draining_is_served_and_told_to_close() {
    let mut bench = bench();
    let fresh = bench.sim.connect(bench.listener);
    bench.run_until(|events| events.worker().sessions.open() == 1);
    let mut phase = Phase::Serving;
    let deadline = bench.sim.now() + Duration::from_secs(30);
    obey(&mut bench, &mut phase, Command::Drain { deadline });
    fresh.write(REQUEST);
    let reader = fresh.clone();
    let received = Rc::new(std::cell::RefCell::new(Vec::new()));
    let into = Rc::clone(&received);
    fresh.script(move |peer| {
        into.borrow_mut().extend(peer.read());
        if peer.is_ended() {
            peer.close();
        }
    });
    finish(&mut bench, &mut phase);
    let received = String::from_utf8(received.borrow().clone()).expect("text");
    assert!(received.contains("Connection: close\r\n") && received.ends_with("ok"), "{received}");
    assert!(!reader.is_reset());
    bench.check_freed("");
}

#[test]
fn a_new_configuration_serves_the_next_request_and_closes_what_it_dropped() {
    let mut bench = bench();
    serve(&bench, 2);
    let client = fetch(&mut bench);
    assert_eq!(bench.value(Plain::UpstreamIdle), 1);
    let mut config = (**bench.config.load()).clone();
    let other = Endpoint { address: origin_address(2), label: "other".into(), weight: 1 };
    config.upstreams = vec![Arc::new(Upstream { endpoints: vec![other], ..(*config.upstreams[0]).clone() })];
    bench.publish(config);
    client.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 2);
    assert_eq!(bench.value(Plain::UpstreamConnects), 2, "the pooled connection's endpoint is gone");
    assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::EndpointRemoved)), 1);
    assert_eq!(bench.value(Plain::Accepted), 1, "the client's connection lives on");
    client.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn pooled_connections_end_by_idleness() {
    let mut bench = bench();
    let client = fetch(&mut bench);
    client.close();
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(29));
    assert_eq!(bench.value(Plain::UpstreamIdle), 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(2));
    assert_eq!(bench.value(Plain::UpstreamIdle), 0);
    assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::IdleTimeout)), 1);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn an_idle_connection_that_speaks_or_closes_leaves_the_pool() {
    for (speaks, reason) in
        [(true, PoolCloseReason::UnsolicitedBytes), (false, PoolCloseReason::ClosedByUpstream)]
    {
        // The request is sent whole before it is answered.
        let faults = Faults { short: false, delay: 0, ..Faults::mild() };
        let mut bench = Bench::new(1, faults, testing::config(&[origin_address(1)]));
        bench.sim.origin(origin_address(1));
        let client = bench.sim.connect(bench.listener);
        client.write(REQUEST);
        bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 1);
        bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
        let origin = bench.sim.accept(origin_address(1)).expect("a connection");
        origin.write(RESPONSE);
        bench.run_until(|events| events.worker().counters.value(Plain::UpstreamIdle) == 1);
        if speaks {
            origin.write(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        } else {
            origin.close()
        }
        bench.run_until(|events| events.worker().counters.value(Plain::UpstreamIdle) == 0);
        assert_eq!(bench.value(Counter::PoolClosed(reason)), 1, "{reason:?}");
        client.close();
        origin.close();
        bench.run_out();
        bench.check_freed("");
    }
}

/// What an endpoint says on an idle connection is never the answer to a request that comes at the same time,
/// whichever of both the ring delivers first.
#[test]
fn bytes_on_an_idle_connection_are_nobodys_answer() {
    const UNASKED: [&[u8]; 3] = [
        b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 5\r\n\r\nstale",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale",
        b"",
    ];
    for seed in 0..120 {
        let unasked = UNASKED[seed as usize % 3];
        // The request is sent whole before it is answered.
        let faults = Faults { short: false, delay: 0, ..Faults::mild() };
        let mut bench = Bench::new(seed, faults, testing::config(&[origin_address(1)]));
        bench.sim.origin(origin_address(1));
        let first = bench.sim.connect(bench.listener);
        first.write(REQUEST);
        bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 1);
        bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
        let origin = bench.sim.accept(origin_address(1)).expect("a connection");
        origin.write(RESPONSE);
        bench.run_until(|events| events.worker().counters.value(Plain::UpstreamIdle) == 1);
        bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
        let _ = origin.read();

        bench.sim.set_faults(Faults { delay: 500, portion: 1, ..faults });
        serve(&bench, 1);
        let second = bench.sim.connect(bench.listener);
        second.write(REQUEST);
        if unasked.is_empty() {
            origin.close()
        } else {
            origin.write(unasked)
        }
        bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 2);
        bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
        let answer = second.read();
        assert!(answer.ends_with(b"\r\n\r\nok"), "seed {seed}: {:?}", String::from_utf8_lossy(&answer));
        assert_eq!(origin.read(), b"", "seed {seed}: a request went where nobody reads");
        [&first, &second, &origin].into_iter().for_each(Peer::close);
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn a_client_that_stops_reading_is_given_up_and_holds_back_its_origin() {
    let mut bench =
        Bench::new(1, Faults { window: 4096, ..Faults::mild() }, testing::config(&[origin_address(1)]));
    let written = Rc::new(std::cell::Cell::new(0_usize));
    let counted = Rc::clone(&written);
    bench.sim.serve(origin_address(1), move || {
        let counted = Rc::clone(&counted);
        let mut asked = false;
        Box::new(move |peer: &Peer| {
            if !asked && !peer.read().is_empty() {
                asked = true;
                peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            }
            if asked && peer.unsent() == 0 {
                peer.write(&[b'x'; 10_000]);
                counted.set(counted.get() + 10_000);
            }
        })
    });
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Counter::Closed(CloseReason::SendTimeout)) == 1);
    // The bytes that are read ahead are bounded: buffer_response, the engine's inbound queue, one send in
    // flight.
    assert!(written.get() < 2_000_000, "{} bytes were taken from the origin", written.get());
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert!(client.is_reset());
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_panic_ends_one_session_and_is_counted() {
    let mut bench = bench();
    let client = bench.sim.connect(bench.listener);
    bench.run_until(|events| events.worker().sessions.open() == 1);
    let worker = Rc::clone(bench.events.worker());
    crate::session::table::panic_within_only_session(&worker);
    bench.run_until(|events| events.worker().sessions.open() == 0);
    assert!(client.is_reset() || !client.is_ended());
    assert_eq!(bench.value(Counter::Closed(CloseReason::Panicked)), 1);
    let other = fetch(&mut bench);
    other.close();
    bench.run_out();
    assert_eq!(bench.value(Plain::Panics), 1);
    assert_eq!(bench.value(Plain::Open), 0);
}

#[test]
fn a_client_that_vanishes_is_a_socket_error() {
    for idle in [true, false] {
        let mut bench = Bench::new(1, Faults::mild(), testing::config(&[origin_address(1)]));
        bench.sim.origin(origin_address(1));
        let client = bench.sim.connect(bench.listener);
        if idle {
            bench.run_until(|events| events.worker().sessions.open() == 1);
        } else {
            client.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab");
            bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 1);
        }
        client.vanish();
        bench.run_until(|events| events.worker().sessions.open() == 0);
        assert_eq!(bench.value(Counter::Closed(CloseReason::SocketError)), 1);
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn connections_above_the_bound_take_the_places_of_silent_ones() {
    let mut bench = bench();
    let mut clients: Vec<_> = (0..100).map(|_| bench.sim.connect(bench.listener)).collect();
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    clients.extend((0..5).map(|_| bench.sim.connect(bench.listener)));
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert_eq!(bench.events.worker().sessions.open(), 100);
    assert_eq!(bench.value(Counter::Shed(ShedReason::MaxConnections)), 0);
    assert_eq!(bench.value(Counter::Closed(CloseReason::GaveWay)), 5);
    assert_eq!(clients.iter().filter(|client| client.is_reset()).count(), 5);
    clients.iter().for_each(Peer::close);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_client_that_pipelines_and_never_reads_is_bounded() {
    let mut bench =
        Bench::new(1, Faults { window: 4096, ..Faults::mild() }, testing::config(&[origin_address(1)]));
    serve(&bench, 1);
    let client = bench.sim.connect(bench.listener);
    for _ in 0..20_000 {
        client.write(REQUEST);
    }
    bench.run_until(|events: &Events| ended(events.worker()) == 1);
    assert_eq!(bench.value(Counter::Closed(CloseReason::SendTimeout)), 1);
    assert!(bench.value(Plain::Requests) < 2000, "{} requests were served", bench.value(Plain::Requests));
    bench.run_out();
    bench.check_freed("");
}

fn ended(worker: &Worker) -> u64 {
    CloseReason::ALL.iter().map(|&reason| worker.counters.value(Counter::Closed(reason))).sum()
}

#[test]
fn a_connection_that_breaks_ends_for_what_broke_it() {
    for (error, reason) in [
        (StreamError::Reset, CloseReason::ClientAborted),
        (StreamError::Evicted, CloseReason::Overloaded),
        (StreamError::GaveWay, CloseReason::GaveWay),
        (StreamError::Os(libc::EHOSTUNREACH), CloseReason::SocketError),
    ] {
        assert_eq!(crate::session::table::broken(error, CloseReason::ClientAborted), reason);
    }
}

/// However an exchange ends, the log has one record for each request whose head was read, and one for each
/// answer to a request whose head was not.
#[test]
fn every_exchange_of_a_hostile_world_leaves_one_record() {
    let (mut with_head, mut without, mut cut) = (0, 0, 0);
    for seed in 0..40 {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (log, mut senders) =
            AccessLog::start(file.reopen().expect("open").into(), 1, true).expect("a thread");
        let faults = Faults::hostile();
        let config = testing::config(&[origin_address(1), origin_address(2)]);
        let mut bench = Bench::logged(seed, faults, config, senders.pop());
        serve(&bench, 1);
        serve(&bench, 2);
        for client in 0..6 {
            let peer = bench.sim.connect(bench.listener);
            let last: &[u8] = [
                &b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"[..],
                b"NONSENSE\r\n\r\n",
                b"GET / HT",
            ][client % 3];
            peer.write(&[REQUEST, REQUEST, last].concat());
            if client % 3 == 2 {
                peer.shutdown_write();
            }
            peer.script(|peer| {
                let _ = peer.read();
                if peer.is_ended() {
                    peer.close();
                }
            });
        }
        bench.run_out();
        let requests = bench.value(Plain::Requests);
        drop(bench);
        drop(log);
        let text = std::fs::read_to_string(file.path()).expect("text");
        let records: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let heads = records.iter().filter(|record| !record["method"].is_null()).count();
        assert_eq!(heads as u64, requests, "seed {seed}: {text}");
        for record in &records {
            let ends = record["closed"].is_string();
            assert!(ends || record["status"].is_u64(), "seed {seed}: neither answered nor ended: {record}");
            assert!(ends || !record["method"].is_null(), "seed {seed}: goes on without a head: {record}");
            cut += usize::from(record["status"].is_null());
        }
        with_head += heads;
        without += records.len() - heads;
    }
    assert!(with_head > 300 && without > 50 && cut > 10, "{with_head} {without} {cut}");
}
