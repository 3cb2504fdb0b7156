//! A worker over the simulated ring, where a client or an endpoint is slow: the right side is waited for, and
//! the right side is blamed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::simulated::{REQUEST, converse};
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, RefusalReason};
use crate::io::simulated::{Faults, Memory, Peer};
use crate::route::RouteTable;
use crate::route::model::{Action, Route};
use crate::time::Time;
use crate::worker::testing::{self, Bench, origin_address};

/// Seed 0x102a of the simulation: memory was short, and the client's receive was held because its endpoint
/// took nothing. Each side was excused by the other, for ever.
#[test]
fn an_endpoint_that_takes_nothing_is_too_slow_though_its_client_is_held() {
    // Pieces large enough to stay in the buffers they came in.
    let faults = Faults { window: 1024, delay: 0, short: false, ..Faults::mild() };
    let memory = Memory { buffers: 16, buffer_size: 4096, budget: 4096 };
    let mut bench = Bench::with_memory(1, faults, testing::config(&[origin_address(1)]), memory);
    bench.sim.origin(origin_address(1));
    let mut upload = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n".to_vec();
    upload.resize(upload.len() + 200_000, b'x');
    let seen = converse(&bench.sim.connect(bench.listener), upload, 4000, usize::MAX);
    let begun = bench.sim.now();
    bench.run_until(|events| {
        events.worker().counters.value(Counter::Refused(RefusalReason::UpstreamTimeout)) == 1
    });
    // Twice the route's 5 s at most.
    let took = bench.sim.now().since(begun);
    assert!((Duration::from_secs(5)..Duration::from_secs(11)).contains(&took), "{took:?}");
    bench.run_out();
    assert!(seen.borrow().0.starts_with(b"HTTP/1.1 504 "));
    bench.check_freed("");
}

/// Seed 0x419e of the simulation: a pooled connection received nothing for one client while another held what
/// it had received before.
#[test]
fn a_slow_client_does_not_hold_back_the_next_exchange_on_its_connection() {
    let faults = Faults { window: 1024, delay: 0, short: false, ..Faults::mild() };
    let mut bench = Bench::new(1, faults, testing::config(&[origin_address(1)]));
    bench.sim.serve(origin_address(1), || {
        let mut head = Vec::new();
        Box::new(move |peer: &Peer| {
            head.extend(peer.read());
            if head.ends_with(b"\r\n\r\n") {
                head.clear();
                peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 800000\r\n\r\n");
                peer.write(&[b'x'; 800_000]);
            }
            if peer.is_ended() {
                peer.close();
            }
        })
    });
    let slow = bench.sim.connect(bench.listener);
    slow.write(REQUEST);
    let next = std::cell::Cell::new(Time::default());
    slow.script(move |peer| {
        if peer.now() >= next.get() {
            drop(peer.read_at_most(1024));
            next.set(peer.now() + Duration::from_millis(10));
        }
        peer.wake_at(next.get());
    });
    // The connection is in the pool again, and the slow client has the rest to take.
    bench.run_until(|events| events.worker().counters.value(Plain::UpstreamIdle) == 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(20));
    assert!(bench.engine.stats().buffers_loaned > 0);
    let quick = bench.sim.connect(bench.listener);
    quick.write(REQUEST);
    let asked = bench.sim.now();
    bench.run_until(|_| !quick.read().is_empty());
    assert_eq!(bench.value(Plain::UpstreamReuses), 1);
    assert!(bench.engine.stats().buffers_loaned > 0, "the slow client still holds its own");
    assert!(bench.sim.now().since(asked) < Duration::from_millis(100), "{:?}", bench.sim.now().since(asked));
    slow.reset();
    quick.reset();
    bench.run_out();
    bench.check_freed("");
}

/// Seed 0x1b217 of the simulation: two blocks that a slow client had yet to take held the receive, and the
/// endpoint was blamed for silence.
#[test]
fn an_endpoint_is_not_too_slow_while_it_is_held_back_for_a_slow_client() {
    let faults = Faults { window: 1024, delay: 0, short: false, ..Faults::mild() };
    let body = 1_500_000;
    for takes_all in [true, false] {
        let mut bench = Bench::new(1, faults, testing::config(&[origin_address(1)]));
        bench.sim.serve(origin_address(1), move || {
            let mut head = Vec::new();
            Box::new(move |peer: &Peer| {
                head.extend(peer.read());
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n").as_bytes());
                    peer.write(&vec![b'x'; body]);
                }
                if peer.is_ended() {
                    peer.close();
                }
            })
        });
        let slow = bench.sim.connect(bench.listener);
        slow.write(REQUEST);
        let taken = Rc::new(std::cell::Cell::new(0));
        let (shared, next) = (Rc::clone(&taken), std::cell::Cell::new(Time::default()));
        // 20 KB a second: a block lasts 13 s, the route's limit between two reads is 5 s.
        slow.script(move |peer| {
            if peer.now() >= next.get() && (takes_all || shared.get() < body / 2) {
                shared.set(shared.get() + peer.read_at_most(1024).len());
                next.set(peer.now() + Duration::from_millis(50));
            }
            if peer.is_ended() {
                peer.close();
            } else {
                peer.wake_at(next.get());
            }
        });
        bench.run_out();
        let (whole, reason) =
            if takes_all { (1, CloseReason::KeepAliveTimeout) } else { (0, CloseReason::SendTimeout) };
        assert_eq!(bench.value(Plain::Responses2xx), whole);
        assert_eq!(bench.value(Counter::Closed(reason)), 1);
        assert_eq!(taken.get() > body, takes_all, "{} bytes", taken.get());
        bench.check_freed("");
    }
}

/// Its endpoint was held back for it, and its own limit waited for the endpoint's longer one.
#[test]
fn a_client_that_takes_nothing_meets_its_limit_before_its_endpoint_does() {
    const FAST: usize = 600_000;
    let faults = Faults { window: 1024, delay: 0, short: false, ..Faults::mild() };
    let mut config = testing::config(&[origin_address(1)]);
    let route = Route {
        timeout: Duration::from_secs(60),
        body_timeout: Duration::from_secs(60),
        ..Route::new(Action::Upstream(0))
    };
    config.routes = RouteTable::new(vec![Arc::new(route)]);
    let send = config.listeners[0].timeouts.send;
    let mut bench = Bench::new(1, faults, config);
    // Fast until it is received in blocks, then a little at a time: two blocks hold less than may be queued
    // for a client.
    bench.sim.serve(origin_address(1), || {
        let (mut left, next) = (1_500_000, std::cell::Cell::new(Time::default()));
        Box::new(move |peer: &Peer| {
            let piece = if !peer.read().is_empty() {
                peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1500000\r\n\r\n");
                FAST
            } else if left < 1_500_000 && peer.now() >= next.get() {
                20_000.min(left)
            } else {
                0
            };
            if piece > 0 {
                peer.write(&vec![b'x'; piece]);
                left -= piece;
                next.set(peer.now() + Duration::from_millis(10));
            }
            if left > 0 {
                peer.wake_at(next.get());
            }
        })
    });
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    let asked = bench.sim.now();
    let mut taken = 0;
    client.script(move |peer| {
        if taken < FAST {
            taken += peer.read().len();
        }
    });
    bench.run_until(|events| events.worker().counters.value(Counter::Closed(CloseReason::SendTimeout)) == 1);
    let took = bench.sim.now().since(asked);
    assert!((send..send + Duration::from_secs(1)).contains(&took), "{took:?}");
    bench.run_out();
    assert!(client.is_reset());
    bench.check_freed("");
}
