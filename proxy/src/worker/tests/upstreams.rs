//! A worker over the simulated ring, and what it does with the connections to its endpoints: which it keeps,
//! how it closes them, where they come from, and who is tried after a failure.

use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::simulated::{REQUEST, fetch, serve};
use crate::config::model::Config;
use crate::counters::{Counter, Plain};
use crate::error::{PoolCloseReason, RefusalReason};
use crate::io::simulated::{Faults, Peer};
use crate::upstream::model::{RetryOn, Upstream};
use crate::worker::testing::{self, Bench, origin_address};

/// Everything comes whole and at once.
const PLAIN: Faults = Faults { short: false, delay: 0, ..Faults::mild() };

/// A configuration whose upstream has these endpoints and settings.
fn with(origins: &[u8], change: impl FnOnce(&mut Upstream)) -> Config {
    let addresses: Vec<_> = origins.iter().map(|&origin| origin_address(origin)).collect();
    let mut config = testing::config(&addresses);
    change(Arc::make_mut(&mut config.upstreams[0]));
    config
}

/// One request, and the status of its answer.
fn ask(bench: &mut Bench) -> String {
    ask_with(bench, REQUEST)
}

fn ask_with(bench: &mut Bench, request: &[u8]) -> String {
    let client = bench.sim.connect(bench.listener);
    client.write(request);
    let answered = |bench: &Bench| {
        [Plain::Responses2xx, Plain::Responses5xx].into_iter().map(|plain| bench.value(plain)).sum::<u64>()
    };
    let before = answered(bench);
    while answered(bench) == before {
        bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(10));
    }
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(10));
    let answer = String::from_utf8_lossy(&client.read()).into_owned();
    client.close();
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(10));
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

/// How the origin's end of a connection saw it end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    InOrder,
    ByReset,
}

/// An exchange over an upstream with these settings, whose endpoint answers with these fields. How the
/// connection then ended at the endpoint.
fn end_after(fields: &str, keeps_word: bool, change: impl FnOnce(&mut Upstream)) -> Ended {
    let mut bench = Bench::new(1, PLAIN, with(&[1], change));
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    let origin = bench.sim.accept(origin_address(1)).expect("a connection");
    assert!(origin.read().ends_with(b"\r\n\r\n"));
    origin.write(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nok").as_bytes());
    if keeps_word {
        origin.shutdown_write();
    }
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 1);
    // Longer than any close takes, and than an idle connection stays.
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(40));
    let ended = if origin.is_reset() { Ended::ByReset } else { Ended::InOrder };
    assert!(origin.is_reset() || origin.is_ended(), "it lives");
    client.close();
    origin.close();
    bench.run_out();
    bench.check_freed("");
    ended
}

/// The end that closes first keeps the connection's port for a minute.
#[test]
fn a_connection_that_is_given_up_leaves_nothing_behind() {
    let unchanged = |_: &mut Upstream| {};
    assert_eq!(end_after("", false, |upstream| upstream.pool.max_idle = 0), Ended::ByReset, "surplus");
    assert_eq!(end_after("", false, unchanged), Ended::ByReset, "idle for too long");
    assert_eq!(end_after("", false, |upstream| upstream.send_proxy = true), Ended::ByReset, "of one client");
    assert_eq!(end_after("Connection: close\r\n", true, unchanged), Ended::InOrder, "the endpoint was first");
    assert_eq!(end_after("Connection: close\r\n", false, unchanged), Ended::ByReset, "it broke its word");
}

#[test]
fn connections_above_max_idle_stay_while_they_are_in_use_of_late() {
    let mut bench = Bench::new(1, Faults::mild(), with(&[1], |upstream| upstream.pool.max_idle = 2));
    serve(&bench, 1);
    let ask_all = |bench: &mut Bench, clients: &[Peer]| {
        let answered = bench.value(Plain::Responses2xx) + clients.len() as u64;
        clients.iter().for_each(|client| client.write(REQUEST));
        bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == answered);
        bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    };
    let clients: Vec<_> = (0..8).map(|_| bench.sim.connect(bench.listener)).collect();
    ask_all(&mut bench, &clients);
    let connects = bench.value(Plain::UpstreamConnects);
    assert!(connects > 2, "{connects} at once");
    for _ in 0..20 {
        ask_all(&mut bench, &clients);
    }
    let more = bench.value(Plain::UpstreamConnects);
    assert!(more <= 8, "{more} connects for 8 clients");
    assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::MaxIdle)), 0);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(12));
    assert_eq!(bench.value(Plain::UpstreamIdle), 2);
    assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::MaxIdle)), more - 2);
    clients.iter().for_each(Peer::close);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_worker_without_room_keeps_no_more_than_max_idle() {
    let config = with(&[1], |upstream| upstream.pool.max_idle = 1);
    let mut bench = Bench::holding(4, 1, Faults::mild(), config, crate::io::simulated::Memory::default());
    serve(&bench, 1);
    let clients: Vec<_> = (0..4).map(|_| bench.sim.connect(bench.listener)).collect();
    clients.iter().for_each(|client| client.write(REQUEST));
    bench.run_until(|events| events.worker().counters.value(Plain::Responses2xx) == 4);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(100));
    assert_eq!(bench.value(Plain::UpstreamIdle), 1);
    assert!(bench.value(Counter::PoolClosed(PoolCloseReason::MaxIdle)) > 0);
    clients.iter().for_each(Peer::close);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn connections_come_from_the_configured_addresses_in_turn() {
    let [first, second, foreign] = [1, 2, 3].map(|last| IpAddr::from([192, 0, 2, last]));
    let config = with(&[1], |upstream| {
        upstream.source = vec![first, foreign, second];
        upstream.pool.max_idle = 0;
    });
    let mut bench = Bench::new(1, PLAIN, config);
    bench.sim.lacks(foreign);
    serve(&bench, 1);
    for _ in 0..4 {
        assert_eq!(ask(&mut bench), "200");
    }
    assert_eq!(
        bench.sim.bound(),
        [first, second, first, second],
        "an address of another host is passed over"
    );
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_request_without_a_local_port_is_refused_and_the_next_ones_do_not_search() {
    let mut bench = Bench::new(1, PLAIN, with(&[1, 2], |upstream| upstream.retry.attempts = 1));
    bench.sim.spend_ports(origin_address(1));
    bench.sim.spend_ports(origin_address(2));
    for _ in 0..6 {
        assert_eq!(ask(&mut bench), "503");
    }
    assert_eq!(bench.value(Counter::Refused(RefusalReason::NoPort)), 6);
    // Another endpoint has its own ports.
    serve(&bench, 2);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(2));
    let answers: Vec<_> = (0..4).map(|_| ask(&mut bench)).collect();
    assert!(answers.contains(&"200".to_owned()), "{answers:?}");
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn an_exchange_over_a_new_connection_is_seen_whole() {
    let mut bench = Bench::new(1, Faults::mild(), with(&[1], |upstream| upstream.send_proxy = true));
    bench.sim.serve(origin_address(1), || {
        let mut received = Vec::new();
        Box::new(move |peer: &Peer| {
            received.extend(peer.read());
            if received.ends_with(b"\r\n\r\n") {
                received.clear();
                peer.write(super::simulated::RESPONSE);
            }
            if peer.is_ended() || peer.is_reset() {
                peer.close();
            }
        })
    });
    for _ in 0..20 {
        fetch(&mut bench).close();
    }
    assert_eq!(bench.value(Plain::UpstreamConnects), 20);
    bench.run_out();
    bench.check_freed("");
}

/// The connects that end in nothing while an endpoint drops SYNs.
#[test]
fn an_endpoint_that_drops_syns_is_tried_last() {
    let mut bench = Bench::new(1, PLAIN, with(&[1, 2], |upstream| upstream.pool.max_idle = 0));
    serve(&bench, 1);
    bench.sim.silence(origin_address(2));
    let begun = bench.sim.now();
    for _ in 0..40 {
        assert_eq!(ask(&mut bench), "200");
    }
    let took = bench.sim.now().since(begun);
    let failures = bench.value(Plain::UpstreamConnectFailures);
    // It is tried again after 1 s, 2 s, 4 s … of virtual time.
    assert!((1..=4).contains(&failures), "{failures} requests of 40 waited for it, {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    // It is found to be back by itself.
    serve(&bench, 2);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_secs(10));
    let before = bench.value(Plain::UpstreamConnects);
    let reached = |bench: &Bench| bench.sim.connections_to(origin_address(2));
    for _ in 0..10 {
        assert_eq!(ask(&mut bench), "200");
    }
    assert_eq!(bench.value(Plain::UpstreamConnects), before + 10);
    assert_eq!(reached(&bench), 5, "it has its share again");
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn one_endpoint_is_tried_though_it_fails_if_there_is_no_other() {
    let mut bench = Bench::new(1, PLAIN, with(&[1], |upstream| upstream.retry.attempts = 3));
    for expected in [3, 6] {
        assert_eq!(ask(&mut bench), "502");
        assert_eq!(bench.value(Plain::UpstreamConnectFailures), expected);
    }
    serve(&bench, 1);
    assert_eq!(ask(&mut bench), "200");
    bench.run_out();
    bench.check_freed("");
}

/// What becomes of the first request that comes over a connection that served one before. Later connections
/// answer everything.
#[derive(Clone, Copy, Debug)]
enum Second {
    /// The endpoint reads it, then resets.
    CutAfterIt,
    /// The endpoint answers it.
    Answered,
}

/// An endpoint whose connections do so. Says how often a request came.
fn reset_second(bench: &Bench, origin: u8, second: Second) -> Rc<Cell<usize>> {
    let requests = Rc::new(Cell::new(0));
    let (counted, made) = (Rc::clone(&requests), Cell::new(0));
    bench.sim.serve(origin_address(origin), move || {
        let (mut received, mut served) = (Vec::new(), 0);
        let is_first = made.replace(made.get() + 1) == 0;
        let counted = Rc::clone(&counted);
        Box::new(move |peer: &Peer| {
            received.extend(peer.read());
            if received.ends_with(b"\r\n\r\n") {
                received.clear();
                counted.set(counted.get() + 1);
                served += 1;
                match second {
                    Second::CutAfterIt if is_first && served == 2 => return peer.reset(),
                    _ => peer.write(super::simulated::RESPONSE),
                }
            }
            if peer.is_ended() || peer.is_reset() {
                peer.close();
            }
        })
    });
    requests
}

#[test]
fn a_reused_connection_that_dies_with_the_request_was_an_attempt() {
    for (attempts, status, requests) in [(1, "502", 2), (2, "200", 3), (3, "200", 3)] {
        let config = with(&[1], |upstream| upstream.retry.attempts = attempts);
        let mut bench = Bench::new(1, PLAIN, config);
        let seen = reset_second(&bench, 1, Second::CutAfterIt);
        assert_eq!(ask(&mut bench), "200");
        assert_eq!((ask(&mut bench), seen.get()), (status.to_owned(), requests), "{attempts} attempts");
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn after_a_reused_connection_died_the_next_is_new_and_elsewhere() {
    let mut bench = Bench::new(1, PLAIN, with(&[1, 2], |_| {}));
    let seen = [1, 2].map(|origin| reset_second(&bench, origin, Second::CutAfterIt));
    // Each endpoint has an idle connection then, which dies with its second request.
    assert_eq!([ask(&mut bench), ask(&mut bench)], ["200", "200"]);
    assert_eq!(bench.value(Plain::UpstreamIdle), 2);
    assert_eq!(ask(&mut bench), "200", "not over the other idle connection, which is as dead");
    assert_eq!(bench.value(Plain::UpstreamConnects), 3);
    let mut requests = seen.map(|seen| seen.get());
    requests.sort_unstable();
    assert_eq!(requests, [2, 2], "the endpoint whose connection died did not get it again");
    bench.run_out();
    bench.check_freed("");
}

/// A connection that dies before it takes a byte costs no attempt, even if nothing else may be tried again.
#[test]
fn a_dead_connection_is_no_attempt() {
    let config = with(&[1], |upstream| {
        upstream.retry.attempts = 1;
        upstream.retry.on = RetryOn { connect_failure: false, reset_before_response: false };
    });
    let mut bench = Bench::new(1, PLAIN, config);
    bench.sim.origin(origin_address(1));
    let first = bench.sim.connect(bench.listener);
    first.write(REQUEST);
    bench.run_until(|events| events.worker().counters.value(Plain::UpstreamConnects) == 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(10));
    let origin = bench.sim.accept(origin_address(1)).expect("a connection");
    let _ = origin.read();
    origin.write(super::simulated::RESPONSE);
    bench.run_until(|events| events.worker().counters.value(Plain::UpstreamIdle) == 1);
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(10));
    reset_second(&bench, 1, Second::Answered);
    // The connection is reset when the request is on its way into it.
    let is_sending = Rc::new(Cell::new(false));
    let seen = Rc::clone(&is_sending);
    bench.sim.observe(Box::new(move |_, what| {
        if what.to_string().contains(": send ") {
            seen.set(true);
        }
    }));
    origin.script(move |peer| {
        if is_sending.get() {
            peer.reset();
        }
    });
    let second = bench.sim.connect(bench.listener);
    // If a byte had been written, a POST could not be sent again.
    second.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    bench.run_until(|events| {
        let counters = &events.worker().counters;
        counters.value(Plain::Responses2xx) + counters.value(Plain::Responses5xx) == 2
    });
    assert_eq!(bench.value(Plain::Responses2xx), 2, "{}", bench.counted());
    assert_eq!((bench.value(Plain::UpstreamRetries), bench.value(Plain::UpstreamConnects)), (1, 2));
    [&first, &second].into_iter().for_each(Peer::close);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn failures_that_are_not_listed_are_not_retried() {
    let nothing = RetryOn { connect_failure: false, reset_before_response: false };
    for (on, failures) in
        [(nothing, 1), (RetryOn { connect_failure: true, ..nothing }, 3), (RetryOn::default(), 3)]
    {
        let config = with(&[1], |upstream| (upstream.retry.attempts, upstream.retry.on) = (3, on));
        let mut bench = Bench::new(1, PLAIN, config);
        assert_eq!(ask(&mut bench), "502");
        assert_eq!(bench.value(Plain::UpstreamConnectFailures), failures, "{on:?}");
        bench.run_out();
    }
    let config = with(&[1], |upstream| {
        upstream.retry.on = RetryOn { reset_before_response: false, ..RetryOn::default() };
    });
    let mut bench = Bench::new(1, PLAIN, config);
    let seen = reset_second(&bench, 1, Second::CutAfterIt);
    assert_eq!([ask(&mut bench), ask(&mut bench)], ["200", "502"]);
    assert_eq!(seen.get(), 2);
    bench.run_out();
    bench.check_freed("");
}
