//! HTTP/1 sessions over the simulated ring, where it matters when something happens and what it makes of
//! either connection.

use std::sync::Arc;
use std::time::Duration;

use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, RefusalReason};
use crate::io::simulated::{Faults, Peer};
use crate::listen::{Listener, Timeouts};
use crate::route::model::Route;
use crate::worker::testing::{self, Bench, origin_address};

const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";

/// A world without faults, in which times are exact.
const CALM: Faults = Faults { short: false, delay: 0, window: 1 << 20, ..Faults::mild() };

struct Scene {
    bench: Bench,
    client: Peer,
}

impl Scene {
    /// A client that is connected, and an origin that only accepts.
    fn new(route: impl FnOnce(&mut Route), listener: impl FnOnce(&mut Listener)) -> Self {
        Self::within(CALM, route, listener)
    }

    fn within(faults: Faults, route: impl FnOnce(&mut Route), listener: impl FnOnce(&mut Listener)) -> Self {
        let mut config = testing::config(&[origin_address(1)]);
        let mut made = (*config.routes.routes()[0]).clone();
        route(&mut made);
        config.routes = crate::route::RouteTable::new(vec![Arc::new(made)]);
        let mut made = testing::listener();
        listener(&mut made);
        config.listeners = vec![Arc::new(made)];
        let bench = Bench::new(1, faults, config);
        bench.sim.origin(origin_address(1));
        let client = bench.sim.connect(bench.listener);
        Self { bench, client }
    }

    fn usual() -> Self {
        Self::new(|_| {}, |_| {})
    }

    fn pass(&mut self, time: Duration) {
        let Bench { engine, sim, events, .. } = &mut self.bench;
        sim.settle(engine, events, time);
    }

    /// The origin's side of the next connection, which must be there.
    fn origin(&mut self) -> Peer {
        self.pass(10 * MILLISECOND);
        self.bench.sim.accept(origin_address(1)).expect("a connection to the origin")
    }

    fn is_asked(&mut self) -> bool {
        self.pass(10 * MILLISECOND);
        self.bench.value(Plain::UpstreamConnects) > 0
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.bench.value(Counter::Closed(reason))
    }

    fn refused(&self, reason: RefusalReason) -> u64 {
        self.bench.value(Counter::Refused(reason))
    }

    fn end(mut self) {
        self.client.close();
        self.bench.run_out();
        self.bench.check_freed("");
    }
}

fn text(peer: &Peer) -> String {
    String::from_utf8(peer.read()).expect("text")
}

fn post(length: usize, more: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n{more}\r\n")
}

#[test]
fn a_client_that_resets_while_it_waits_is_seen_at_once() {
    // On its first request and on a later one, before the head and within the body.
    for (later, within_body) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut scene = Scene::usual();
        let origin = if later {
            scene.client.write(GET);
            let origin = scene.origin();
            assert!(text(&origin).starts_with("GET"));
            origin.write(OK);
            scene.pass(10 * MILLISECOND);
            scene.client.write(GET);
            scene.pass(10 * MILLISECOND);
            origin
        } else {
            scene.client.write(GET);
            scene.origin()
        };
        if within_body {
            origin.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        }
        scene.pass(2 * SECOND);
        assert_eq!(scene.bench.value(Plain::Active), 1);
        scene.client.reset();
        scene.pass(10 * MILLISECOND);
        assert_eq!(
            scene.closed(CloseReason::ClientAborted),
            1,
            "later {later}, within the body {within_body}"
        );
        assert_eq!(scene.bench.value(Plain::Active), 0);
        assert!(origin.is_reset(), "the endpoint is told");
        scene.bench.run_out();
        scene.bench.check_freed("");
    }
}

#[test]
fn a_client_that_resets_before_it_is_watched_is_seen_soon() {
    let mut scene = Scene::usual();
    scene.client.write(GET);
    let origin = scene.origin();
    scene.client.reset();
    scene.pass(200 * MILLISECOND);
    assert_eq!(scene.closed(CloseReason::ClientAborted), 1);
    assert!(origin.is_reset());
    scene.bench.run_out();
    scene.bench.check_freed("");
}

#[test]
fn a_client_that_has_nothing_more_to_say_is_still_answered_for_as_long_as_half_close_says() {
    for (half_close, wait) in [(None, 3 * SECOND), (Some(2 * SECOND), 1900 * MILLISECOND)] {
        let mut scene = Scene::new(|_| {}, |listener| listener.half_close = half_close);
        scene.client.write(GET);
        scene.client.shutdown_write();
        let origin = scene.origin();
        scene.pass(wait);
        assert!(!origin.is_reset());
        origin.write(OK);
        scene.pass(10 * MILLISECOND);
        assert!(text(&scene.client).ends_with("\r\n\r\nok"));
        assert_eq!(scene.closed(CloseReason::ClientClosed), 1);
        origin.close();
        scene.end();
    }
}

/// The client is watched 100 ms after its request, so an end before that is seen then.
#[test]
fn a_client_that_ended_its_side_is_let_go_in_time_and_its_endpoint_told() {
    let pipelined = [GET, GET].concat();
    for (bytes, half_close, before) in [
        (GET, 2 * SECOND, Duration::ZERO),
        (GET, 2 * SECOND, SECOND),
        (GET, Duration::ZERO, SECOND),
        // A whole body, and requests that nobody reads before this one is answered.
        (&*(post(3, "") + "abc").into_bytes(), 2 * SECOND, Duration::ZERO),
        (&*pipelined, 2 * SECOND, Duration::ZERO),
        (&*pipelined, 2 * SECOND, SECOND),
    ] {
        let mut scene = Scene::new(|_| {}, |listener| listener.half_close = Some(half_close));
        scene.client.write(bytes);
        let origin = scene.origin();
        scene.pass(before);
        scene.client.shutdown_write();
        if !half_close.is_zero() {
            scene.pass(half_close - 50 * MILLISECOND);
            assert_eq!((origin.is_reset(), scene.bench.value(Plain::Active)), (false, 1), "{half_close:?}");
        }
        scene.pass(200 * MILLISECOND);
        assert!(origin.is_reset(), "the endpoint is told: {half_close:?} {before:?}");
        assert!(scene.client.is_ended() && text(&scene.client).is_empty(), "{half_close:?}");
        assert_eq!(scene.closed(CloseReason::ClientClosed), 1);
        assert_eq!(scene.bench.value(Plain::UpstreamConnects), 1, "no further request is served");
        scene.bench.run_out();
        scene.bench.check_freed("");
    }
}

#[test]
fn no_time_is_left_for_a_client_that_ended_its_side_where_half_close_is_zero() {
    let mut scene = Scene::new(|_| {}, |listener| listener.half_close = Some(Duration::ZERO));
    scene.client.write(GET);
    scene.client.shutdown_write();
    scene.pass(20 * MILLISECOND);
    assert_eq!((scene.closed(CloseReason::ClientClosed), scene.bench.value(Plain::Active)), (1, 0));
    scene.bench.run_out();
    scene.bench.check_freed("");
}

#[test]
fn a_response_that_goes_on_is_cut_for_a_client_that_ended_its_side() {
    let mut scene = Scene::usual();
    scene.client.write(GET);
    let origin = scene.origin();
    origin.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    scene.client.shutdown_write();
    for event in 1..=40 {
        origin.write(b"1\r\nx\r\n");
        scene.pass(50 * MILLISECOND);
        assert!(!origin.is_reset() || event > 36, "after {event} events");
    }
    scene.pass(200 * MILLISECOND);
    assert!(origin.is_reset());
    let response = text(&scene.client);
    assert!(response.ends_with("1\r\nx\r\n"), "it looks cut: {response}");
    assert_eq!(scene.closed(CloseReason::ClientClosed), 1);
    scene.bench.run_out();
    scene.bench.check_freed("");
}

#[test]
fn an_endpoint_that_half_closes_after_its_answer_is_no_failure() {
    let mut scene = Scene::usual();
    scene.client.write(GET);
    let origin = scene.origin();
    origin.write(OK);
    origin.shutdown_write();
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("\r\n\r\nok"));
    scene.client.write(GET);
    let next = scene.origin();
    next.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("\r\n\r\nok"), "over another connection");
    origin.close();
    next.close();
    scene.end();
}

#[test]
fn the_endpoint_decides_about_100_continue() {
    let mut scene = Scene::usual();
    scene.client.write(post(5, "Expect: 100-continue\r\n").as_bytes());
    let origin = scene.origin();
    assert!(text(&origin).contains("\r\nExpect: 100-continue\r\n"));
    scene.pass(500 * MILLISECOND);
    assert_eq!(text(&scene.client), "", "the endpoint has not said anything yet");
    origin.write(CONTINUE.as_bytes());
    scene.pass(10 * MILLISECOND);
    let said = text(&scene.client);
    assert!(said.starts_with("HTTP/1.1 100 Continue\r\n") && said.ends_with("\r\n\r\n"), "{said:?}");
    scene.client.write(b"hello");
    scene.pass(10 * MILLISECOND);
    assert_eq!(text(&origin), "hello");
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).starts_with("HTTP/1.1 200 OK\r\n"), "one 100 and no more");
    assert_eq!(scene.bench.value(Plain::Responses1xx), 1);
    // The connection goes on.
    scene.client.write(GET);
    scene.pass(10 * MILLISECOND);
    assert!(text(&origin).starts_with("GET"));
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("ok"));
    origin.close();
    scene.end();
}

#[test]
fn an_endpoint_may_refuse_before_the_body_is_sent() {
    let mut scene = Scene::usual();
    scene.client.write(post(5, "Expect: 100-continue\r\n").as_bytes());
    let origin = scene.origin();
    origin.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno");
    scene.pass(10 * MILLISECOND);
    let said = text(&scene.client);
    assert!(
        said.starts_with("HTTP/1.1 401")
            && said.contains("\r\nConnection: close\r\n")
            && said.ends_with("no"),
        "{said}"
    );
    // Whether the client sends the body now or not, nothing of it is taken for a request.
    scene.client.write(b"hello");
    scene.pass(10 * MILLISECOND);
    assert_eq!((text(&scene.client), scene.bench.value(Plain::Requests)), (String::new(), 1));
    scene.end();
}

#[test]
fn an_endpoint_that_knows_no_100_continue_gets_the_body_after_a_second() {
    let mut scene = Scene::usual();
    scene.client.write(post(5, "Expect: 100-continue\r\n").as_bytes());
    let origin = scene.origin();
    assert!(text(&origin).starts_with("POST"));
    scene.pass(900 * MILLISECOND);
    assert_eq!(text(&scene.client), "");
    scene.pass(150 * MILLISECOND);
    assert_eq!(text(&scene.client), CONTINUE);
    scene.client.write(b"hello");
    scene.pass(10 * MILLISECOND);
    assert_eq!(text(&origin), "hello");
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("ok"));
    origin.close();
    scene.end();
}

#[test]
fn a_client_that_does_not_wait_for_100_continue_gets_none() {
    // With the head, or a moment later.
    for later in [false, true] {
        let mut scene = Scene::usual();
        let head = post(5, "Expect: 100-continue\r\n");
        let origin = if later {
            scene.client.write(head.as_bytes());
            let origin = scene.origin();
            scene.client.write(b"hello");
            origin
        } else {
            scene.client.write(format!("{head}hello").as_bytes());
            scene.origin()
        };
        scene.pass(10 * MILLISECOND);
        let asked = text(&origin);
        assert!(asked.ends_with("\r\n\r\nhello"), "{asked}");
        assert_eq!(asked.contains("Expect"), later, "{asked}");
        origin.write(OK);
        scene.pass(10 * MILLISECOND);
        assert!(text(&scene.client).starts_with("HTTP/1.1 200 OK\r\n"));
        origin.close();
        scene.end();
    }
}

#[test]
fn a_body_that_is_read_whole_is_asked_for_by_us() {
    let mut scene = Scene::new(|route| route.buffer_request = 1000, |_| {});
    scene.client.write(post(10, "Expect: 100-continue\r\n").as_bytes());
    assert!(!scene.is_asked());
    assert_eq!(text(&scene.client), CONTINUE);
    scene.client.write(b"hello");
    assert!(!scene.is_asked(), "half of it is not all of it");
    scene.pass(2 * SECOND);
    scene.client.write(b"world");
    let origin = scene.origin();
    let asked = text(&origin);
    assert!(asked.ends_with("\r\n\r\nhelloworld") && !asked.contains("Expect"), "{asked}");
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).starts_with("HTTP/1.1 200 OK\r\n"));
    origin.close();
    scene.end();
}

#[test]
fn a_refusal_of_ours_comes_instead_of_100_continue() {
    let mut scene = Scene::new(|_| {}, |listener| listener.limits.body_bytes = 100);
    scene.client.write(post(101, "Expect: 100-continue\r\n").as_bytes());
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).starts_with("HTTP/1.1 413"));
    assert_eq!((scene.refused(RefusalReason::BodyTooLarge), scene.bench.value(Plain::Responses1xx)), (1, 0));
    assert!(!scene.is_asked());
    scene.end();
}

#[test]
fn bodies_of_known_length_are_read_whole_before_an_endpoint_is_asked() {
    let body = vec![b'x'; 100_000];
    // Shorter than the limit, longer, and of unknown length.
    for (limit, chunked, waits) in [(100_000, false, true), (99_999, false, false), (100_000, true, false)] {
        let mut scene = Scene::new(|route| route.buffer_request = limit, |_| {});
        if chunked {
            scene.client.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n");
        } else {
            scene.client.write(post(body.len(), "").as_bytes());
        }
        scene.client.write(&body[1..]);
        assert_eq!(scene.is_asked(), !waits, "limit {limit}, chunked {chunked}");
        scene.client.write(b"x");
        if chunked {
            scene.client.write(b"\r\n0\r\n\r\n");
        }
        let origin = scene.origin();
        let asked = text(&origin);
        assert_eq!(
            asked.matches('x').count(),
            body.len() + asked.split("\r\n\r\n").next().unwrap_or("").matches('x').count()
        );
        origin.write(OK);
        scene.pass(10 * MILLISECOND);
        assert!(text(&scene.client).ends_with("ok"));
        assert_eq!(scene.bench.value(Plain::BodiesUnbuffered), 0);
        origin.close();
        scene.end();
    }
}

#[test]
fn a_body_that_finds_no_room_in_the_budget_streams() {
    // The simulated ring's budget is 4 MiB, of which such bodies may take half.
    let mut scene = Scene::new(|route| route.buffer_request = 10 << 20, |_| {});
    scene.client.write(post(3 << 20, "").as_bytes());
    let mut origin = None;
    let mut taken = 0;
    for sent in 0..48 {
        scene.client.write(&[b'y'; 64 << 10]);
        scene.pass(10 * MILLISECOND);
        origin = origin.or_else(|| {
            let accepted = scene.bench.sim.accept(origin_address(1));
            if accepted.is_some() {
                assert!((30..34).contains(&sent), "asked after {sent} of 48 parts");
            }
            accepted
        });
        taken +=
            origin.as_ref().map_or(0, |origin| origin.read().iter().filter(|&&byte| byte == b'y').count());
    }
    let origin = origin.expect("asked");
    scene.pass(10 * MILLISECOND);
    taken += origin.read().iter().filter(|&&byte| byte == b'y').count();
    assert_eq!(taken, 3 << 20);
    assert_eq!(scene.bench.value(Plain::BodiesUnbuffered), 1);
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("ok"));
    origin.close();
    scene.end();
}

#[test]
fn a_buffered_body_is_sent_again_where_a_streamed_one_could_not_be() {
    // The pooled connection turns out to be dead when the request is written to it: nothing of it was sent.
    let mut scene = Scene::new(|route| route.buffer_request = 1 << 20, |_| {});
    scene.client.write(GET);
    let origin = scene.origin();
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    scene.client.write(post(100_000, "").replace("POST", "PUT").as_bytes());
    scene.client.write(&[b'x'; 100_000]);
    scene.pass(10 * MILLISECOND);
    assert!(text(&origin).contains("PUT"));
    origin.reset();
    let second = scene.origin();
    assert_eq!(text(&second).matches("xxxxxxxxxx").count(), 10_000);
    second.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("ok"));
    assert_eq!(scene.bench.value(Plain::UpstreamRetries), 1);
    second.close();
    scene.end();
}

#[test]
fn an_early_answer_survives_a_client_that_keeps_sending() {
    // Ours, and an endpoint's.
    for ours in [true, false] {
        let limit = if ours { 1000 } else { 0 };
        let mut scene = Scene::new(|_| {}, |listener| listener.limits.body_bytes = limit);
        scene.client.write(post(1 << 30, "").as_bytes());
        if !ours {
            scene.origin().write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
        }
        // Far longer than the quiet time of a linger, and it has not read a byte by then.
        for _ in 0..50 {
            scene.client.write(&[b'x'; 200_000]);
            scene.pass(200 * MILLISECOND);
            assert!(!scene.client.is_reset());
        }
        assert!(text(&scene.client).starts_with("HTTP/1.1 413"), "ours {ours}");
        // Quiet at last: closed after a second.
        scene.pass(2 * SECOND);
        assert!(scene.client.is_closed());
        scene.end();
    }
}

#[test]
fn lingering_is_bounded_in_bytes_and_time() {
    let refused = || {
        let mut scene = Scene::new(|_| {}, |listener| listener.limits.body_bytes = 1000);
        scene.client.write(post(1 << 30, "").as_bytes());
        scene.pass(10 * MILLISECOND);
        scene
    };
    let mut scene = refused();
    let mut sent = 0;
    while !scene.client.is_closed() {
        scene.client.write(&[b'x'; 1 << 20]);
        sent += 1;
        scene.pass(10 * MILLISECOND);
        assert!(sent < 70, "MiB and no end");
    }
    assert!(sent >= 64, "{sent} MiB");
    scene.bench.run_out();
    scene.bench.check_freed("");
    let mut scene = refused();
    let start = scene.bench.sim.now();
    while !scene.client.is_closed() {
        scene.client.write(b"x");
        scene.pass(300 * MILLISECOND);
        assert!(scene.bench.sim.now().since(start) < 35 * SECOND);
    }
    assert!(scene.bench.sim.now().since(start) > 29 * SECOND);
    scene.bench.run_out();
    scene.bench.check_freed("");
}

#[test]
fn max_forwards_counts_down_and_ends_here() {
    let ask = |method: &str, value: &str| {
        let mut scene = Scene::usual();
        scene.client.write(format!("{method} /x HTTP/1.1\r\nHost: a\r\n{value}\r\n").as_bytes());
        let asked = if scene.is_asked() {
            let origin = scene.origin();
            let asked = text(&origin);
            origin.write(OK);
            scene.pass(10 * MILLISECOND);
            origin.close();
            Some(asked)
        } else {
            None
        };
        let answer = text(&scene.client);
        scene.end();
        (asked, answer)
    };
    let (asked, answer) = ask("OPTIONS", "Max-Forwards: 0\r\n");
    assert!(asked.is_none() && answer.starts_with("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), "{answer}");
    assert!(answer.contains("\r\nX-Request-Id: "), "{answer}");
    let (asked, answer) = ask("TRACE", "Max-Forwards: 0\r\n");
    assert!(asked.is_none() && answer.starts_with("HTTP/1.1 501"), "{answer}");
    for (method, value, forwarded) in [
        ("OPTIONS", "Max-Forwards: 10\r\n", Some("9")),
        ("TRACE", "max-forwards: 1\r\n", Some("0")),
        ("TRACE", "Max-Forwards: 99999999999999\r\n", Some("4294967294")),
        ("OPTIONS", "", None),
        ("GET", "Max-Forwards: 0\r\n", Some("0")),
    ] {
        let asked = ask(method, value).0.expect("forwarded");
        let found = asked.lines().find_map(|line| line.strip_prefix("Max-Forwards: "));
        assert_eq!(found, forwarded, "{method} {value}");
    }
    for value in [
        "Max-Forwards: x\r\n",
        "Max-Forwards:\r\n",
        "Max-Forwards: -1\r\n",
        "Max-Forwards: 1\r\nMax-Forwards: 1\r\n",
    ] {
        let (asked, answer) = ask("OPTIONS", value);
        assert!(asked.is_none() && answer.starts_with("HTTP/1.1 400"), "{value} {answer}");
    }
}

/// A rate, and time limits that are not what ends anything.
fn paced(listener: &mut Listener) {
    let minute = 60 * SECOND;
    let timeouts = listener.timeouts;
    listener.timeouts =
        Timeouts { request_body: minute, send: minute, min_rate: std::num::NonZero::new(100), ..timeouts };
}

#[test]
fn a_body_below_the_rate_is_408() {
    // Nobody has to wait long for one who sends next to nothing.
    let mut scene = Scene::new(|_| {}, paced);
    scene.client.write(post(4400, "").as_bytes());
    let start = scene.bench.sim.now();
    while scene.closed(CloseReason::MinRate) == 0 {
        scene.client.write(b"x");
        scene.pass(SECOND);
        assert!(scene.bench.sim.now().since(start) < 15 * SECOND);
    }
    assert!(scene.bench.sim.now().since(start) >= 10 * SECOND);
    let said = text(&scene.client);
    assert!(
        said.starts_with("HTTP/1.1 408 Request Timeout\r\n") && said.ends_with("request_too_slow\n"),
        "{said}"
    );
    assert_eq!(scene.refused(RefusalReason::RequestTooSlow), 1);
    scene.end();
}

#[test]
fn a_body_at_the_rate_is_fine_and_a_pause_after_a_burst_too() {
    let mut scene = Scene::new(|_| {}, paced);
    scene.client.write(post(14_400, "").as_bytes());
    let origin = scene.origin();
    for _ in 0..40 {
        scene.client.write(&[b'x'; 110]);
        scene.pass(SECOND);
    }
    scene.client.write(&[b'x'; 9_999]);
    scene.pass(50 * SECOND);
    scene.client.write(b"x");
    scene.pass(10 * MILLISECOND);
    assert!(text(&origin).ends_with("xxxx"));
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("ok"));
    origin.close();
    scene.end();
}

#[test]
fn what_is_saved_up_by_a_burst_does_not_last_for_ever() {
    let mut scene = Scene::new(|_| {}, paced);
    scene.client.write(post(100_000, "").as_bytes());
    scene.client.write(&[b'x'; 50_000]);
    let start = scene.bench.sim.now();
    while scene.closed(CloseReason::MinRate) == 0 {
        scene.client.write(b"x");
        scene.pass(5 * SECOND);
        assert!(scene.bench.sim.now().since(start) < 75 * SECOND);
    }
    assert!(scene.bench.sim.now().since(start) >= 60 * SECOND);
    scene.end();
}

#[test]
fn a_client_is_not_blamed_for_a_slow_endpoint() {
    // The endpoint takes nothing for 40 seconds, so the body of a client that would send it is not read; then
    // it takes all.
    let faults = Faults { window: 1000, ..CALM };
    let mut scene = Scene::within(faults, |route| route.timeout = 60 * SECOND, paced);
    scene.client.write(post(2_000_000, "").as_bytes());
    scene.client.write(&vec![b'x'; 2_000_000]);
    let origin = scene.origin();
    scene.pass(40 * SECOND);
    let mut taken = 0;
    while taken < 2_000_000 {
        taken += origin.read().iter().filter(|&&byte| byte == b'x').count();
        scene.pass(MILLISECOND);
    }
    // Neither for the time that the endpoint thinks.
    scene.pass(40 * SECOND);
    origin.write(OK);
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("ok"), "{:?}", scene.closed(CloseReason::MinRate));
    origin.close();
    scene.end();
}

/// A response that is larger than all that is read ahead, and what a client took of it a second at a time,
/// until the end.
fn read_slowly(per_second: usize, seconds: u32) -> (Scene, u32) {
    let faults = Faults { window: 10_000, ..CALM };
    let mut scene = Scene::within(faults, |_| {}, paced);
    scene.client.write(GET);
    let origin = scene.origin();
    origin.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n");
    origin.write(&vec![b'x'; 4_000_000]);
    let mut passed = 0;
    while passed < seconds && scene.closed(CloseReason::MinRate) == 0 {
        let _ = scene.client.read_at_most(per_second);
        scene.pass(SECOND);
        passed += 1;
    }
    (scene, passed)
}

#[test]
fn a_client_that_reads_below_the_rate_is_closed_with_a_reason() {
    let (mut scene, passed) = read_slowly(10, 60);
    assert!((10..=14).contains(&passed), "{passed} s");
    assert_eq!(scene.closed(CloseReason::MinRate), 1);
    assert!(scene.client.is_reset());
    scene.bench.run_out();
    scene.bench.check_freed("");
    // At the rate it may take as long as it likes, though its socket has room only now and then.
    let (mut scene, passed) = read_slowly(110, 120);
    assert_eq!((passed, scene.closed(CloseReason::MinRate)), (120, 0));
    scene.client.reset();
    scene.bench.run_out();
    scene.bench.check_freed("");
}

#[test]
fn a_client_that_reads_is_not_blamed_for_a_response_that_pauses() {
    let mut scene = Scene::new(|route| route.body_timeout = 60 * SECOND, paced);
    scene.client.write(GET);
    let origin = scene.origin();
    origin.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    for _ in 0..4 {
        scene.pass(30 * SECOND);
        origin.write(b"x");
    }
    scene.pass(10 * MILLISECOND);
    assert!(text(&scene.client).ends_with("\r\n\r\nxxxx"));
    origin.close();
    scene.end();
}

#[test]
fn as_much_of_a_response_is_read_ahead_as_the_route_says() {
    // Beside it what the sockets of this world take, and what one stream may have received before anybody
    // looks at it.
    const SLACK: usize = 800_000;
    for ahead in [4096, 64 << 10, 1 << 20] {
        let faults = Faults { window: 10_000, ..CALM };
        let mut scene = Scene::within(faults, |route| route.buffer_response = ahead, |_| {});
        scene.client.write(GET);
        let origin = scene.origin();
        origin.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n");
        origin.write(&vec![b'x'; 4_000_000]);
        scene.pass(SECOND);
        let taken = 4_000_000 - origin.unsent();
        assert!((ahead..ahead + SLACK).contains(&taken), "{taken} taken, {ahead} to be read ahead");
        // All of it arrives.
        let mut arrived = 0;
        while arrived < 4_000_000 {
            arrived += scene.client.read().iter().filter(|&&byte| byte == b'x').count();
            scene.pass(MILLISECOND);
        }
        origin.close();
        scene.end();
    }
}

#[test]
fn an_endpoint_that_never_comes_to_the_point_is_502() {
    for (interim, status) in [(100, "200"), (101, "502")] {
        let mut scene = Scene::usual();
        scene.client.write(GET);
        let origin = scene.origin();
        origin.write("HTTP/1.1 103 Early Hints\r\n\r\n".repeat(interim).as_bytes());
        origin.write(OK);
        scene.pass(SECOND);
        let said = text(&scene.client);
        assert_eq!(said.matches("HTTP/1.1 103 Early Hints\r\n").count(), 100);
        assert!(said.contains(&format!("HTTP/1.1 {status} ")), "{interim}");
        origin.close();
        scene.end();
    }
}
