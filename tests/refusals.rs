//! Responses that Sluice makes itself. No byte of a malformed request may reach an origin (RFC 9112, sections
//! 2 to 7 and 11.2). The other causes are limits, timeouts, and upstreams that are missing, broken or slow.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::time::{Duration, Instant};

use tests::client::{Client, Dial, Response};
use tests::eventually;
use tests::origin::{Body, Origin, Response as Answer};
use tests::ports::Port;
use tests::sluice::{Setup, Sluice};

const LIMIT: Duration = Duration::from_secs(15);

/// Appended to every malformed request. It must neither be answered nor reach the origin.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

/// Checks a refusal's short body and its request id. Responses of the upstream are not checked here.
fn assert_refused(response: &Response, status: u16, what: &str) {
    assert_eq!(response.status, status, "{what}: {response:?}");
    assert!(!response.body.is_empty() && response.body.len() < 1024, "{what}: a short body: {response:?}");
    assert!(response.field("x-request-id").is_some_and(|id| !id.is_empty()), "{what}: an id: {response:?}");
    assert!(
        response.field("date").is_some_and(|date| date.ends_with(" GMT") && !date.contains("1970")),
        "{what}: {response:?}"
    );
}

fn refused(sluice: &Sluice, reason: &str) -> f64 {
    sluice.metrics().labelled("sluice_requests_refused_total", "reason", reason)
}

/// Sends a malformed request and [`SMUGGLED`] after it. One response of that status must come, then the
/// close.
fn send_malformed(sluice: &Sluice, request: &[u8], status: u16) -> Client {
    let what = String::from_utf8_lossy(request).into_owned();
    let mut client = sluice.client();
    client.send([request, SMUGGLED.as_bytes()].concat());
    let response = client.try_response("GET").unwrap_or_else(|error| panic!("{what:?}: {error}"));
    assert_refused(&response, status, &what);
    let rest = client.until_closed();
    assert!(rest.is_empty(), "{what:?} was followed by {:?}", String::from_utf8_lossy(&rest));
    client
}

const MALFORMED: &[&str] = &[
    // Framing that two parsers could understand differently.
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 6\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5a\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n",
    "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    // Line ends and white space.
    "GET / HTTP/1.1\nHost: h\n\n",
    "GET / HTTP/1.1\r\nHost: h\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\rC: d\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\tc\r\n\r\n",
    "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
    "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
    // Bytes that are allowed in no field or target.
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\x01c\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA: b\x7fc\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA\0: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA b: c\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nA(b): c\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
    // The Host field.
    "GET / HTTP/1.1\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a:port\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n",
    // The request line.
    "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /  HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
    "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n",
    " GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET / http/1.1\r\nHost: h\r\n\r\n",
    "GET / HTTP/1.1x\r\nHost: h\r\n\r\n",
    "GET /\r\nHost: h\r\n\r\n",
    "GET\r\nHost: h\r\n\r\n",
    "G(T / HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET path HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /a\0b HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /% HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /%4 HTTP/1.1\r\nHost: h\r\n\r\n",
    // Another protocol.
    "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

#[test]
fn nothing_of_a_malformed_request_reaches_the_origin() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    for request in MALFORMED {
        let status = if request.contains("HTTP/2.0") { 505 } else { 400 };
        send_malformed(&sluice, request.as_bytes(), status);
    }
    let recorded = origin.recorded_text();
    assert!(recorded.is_empty(), "the origin received {recorded:?}");
    assert_eq!(origin.requests(), 0);
    assert_eq!(sluice.get("/good").status, 200);
    assert!(sluice.metrics().sum("sluice_session_panics_total") < 0.5);
}

#[test]
fn a_malformed_request_is_refused_however_it_is_split() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    for request in MALFORMED.iter().step_by(9) {
        let mut client = sluice.client();
        // Once Sluice has refused the request, the rest may meet a closed connection.
        for byte in request.as_bytes() {
            if client.try_send([*byte]).is_err() {
                break;
            }
        }
        let response = client.response("GET");
        assert!(response.status == 400, "{request:?}: {response:?}");
        assert!(client.until_closed().is_empty());
    }
    assert!(origin.recorded_text().is_empty());
}

#[test]
fn other_versions_are_refused() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    send_malformed(&sluice, b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505);
    send_malformed(&sluice, b"GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505);
    assert!(origin.recorded_text().is_empty());
}

#[test]
fn broken_chunks_never_complete_a_request() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    for body in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\n\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        "FFFFFFFFFFFFFFFFF\r\nhello",
        "g\r\n\r\n",
        "\r\n0\r\n\r\n",
        "5;a=b\nc\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nBad Name: x\r\n\r\n",
        "5\r\nhello\r\n0\r\nX: y\n\r\n",
        "5\r\nhello\r\n0\n\n",
    ] {
        let request =
            format!("POST /chunked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        send_malformed(&sluice, request.as_bytes(), 400);
    }
    assert_eq!(origin.requests(), 0, "no origin saw the end of such a request: {}", origin.recorded_text());
    assert!(!origin.recorded_text().contains("smuggled"));
}

#[test]
fn an_unknown_path_is_404() {
    let origin = Origin::echo();
    let route = "\n[[route]]\npath_prefix = \"/here\"\nupstream = \"app\"\n";
    let sluice = Setup::to(origin.address()).without_route().append(route).start();
    let mut client = sluice.client();
    assert_refused(&client.get("/there"), 404, "no route");
    // Sluice understood the request, so the connection stays open.
    assert_eq!(client.get("/here").status, 200);
    client.send(
        "POST /there HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET /here HTTP/1.1\r\n\
        Host: h\r\n\r\n",
    );
    assert_refused(&client.response("POST"), 404, "no route for a body");
    let counted = refused(&sluice, "no_route");
    assert!((counted - 2.0).abs() < f64::EPSILON, "{counted}");
}

#[test]
fn sizes_are_limited() {
    let origin = Origin::echo();
    let limits = "header_bytes = \"2KiB\"\nheaders = 10\nuri_bytes = \"256B\"\nbody_bytes = \"1KiB\"";
    let sluice = Setup::to(origin.address()).with("listener.limits", limits).start();
    let request = |head: &str| format!("GET / HTTP/1.1\r\nHost: h\r\n{head}\r\n").into_bytes();
    send_malformed(&sluice, &request(&format!("A: {}\r\n", "x".repeat(3000))), 431);
    send_malformed(&sluice, &request(&"A: b\r\n".repeat(20)), 431);
    send_malformed(&sluice, format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "x".repeat(300)).as_bytes(), 414);
    // A head without an end is refused as soon as it reaches the limit.
    let mut client = sluice.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nA: {}", "x".repeat(4000)));
    assert_refused(&client.response("GET"), 431, "an endless head");
    let mut client = sluice.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n{}", "x".repeat(100)));
    assert_refused(&client.response("POST"), 413, "a long body");
    assert_eq!(origin.connections(), 0, "all of these are known before an upstream is asked");
    // The length of a chunked body shows only as it comes: the origin must not see the body end.
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..5 {
        if client.try_send(format!("190\r\n{}\r\n", "x".repeat(400))).is_err() {
            break;
        }
    }
    assert_refused(&client.response("POST"), 413, "a long chunked body");
    assert_eq!(origin.requests(), 0);
    for (reason, count) in [("head_too_large", 3.0), ("uri_too_long", 1.0), ("body_too_large", 2.0)] {
        let counted = refused(&sluice, reason);
        assert!((counted - count).abs() < f64::EPSILON, "{reason}: {counted}");
    }
    // These two are just within the limits.
    assert_eq!(sluice.get(&format!("/{}", "x".repeat(250))).status, 200);
    let mut client = sluice.client();
    client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1024\r\n\r\n{}", "x".repeat(1024)));
    assert_eq!(client.response("POST").json()["length"], 1024);
}

#[test]
fn slow_heads_and_bodies_are_408() {
    let origin = Origin::echo();
    let timeouts = "request_header = \"700ms\"\nrequest_body = \"700ms\"";
    let sluice = Setup::to(origin.address()).with("listener.timeouts", timeouts).start();
    let timed = |start: Instant, what: &str| {
        let took = start.elapsed();
        assert!(took > Duration::from_millis(500) && took < Duration::from_secs(5), "{what} after {took:?}");
    };
    // A head that keeps trickling in is cut off too: the limit is for the whole head.
    let mut client = sluice.client();
    let start = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n");
    for number in 0..40 {
        if client.try_send(format!("X-{number}: y\r\n")).is_err() || start.elapsed() > Duration::from_secs(2)
        {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Bytes that arrive after the refusal may reset the connection; then only the counter shows the refusal.
    if let Ok(response) = client.try_response("GET") {
        assert_refused(&response, 408, "a trickling head");
    }
    let start = Instant::now();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.1\r\nHo");
    assert_refused(&client.response("GET"), 408, "half a head");
    timed(start, "half a head");
    assert!(client.until_closed().is_empty());
    let start = Instant::now();
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf");
    assert_refused(&client.response("POST"), 408, "half a body");
    timed(start, "half a body");
    assert!(client.until_closed().is_empty());
    // The connection of a client that sends nothing is closed.
    let start = Instant::now();
    sluice.client().until_closed();
    timed(start, "a silent client");
    let counted = refused(&sluice, "request_timeout");
    assert!(counted >= 3.0, "{counted}");
    assert!(
        sluice.metrics().labelled("sluice_connections_closed_total", "reason", "request_header_timeout")
            >= 2.0
    );
    assert!(
        sluice.metrics().labelled("sluice_connections_closed_total", "reason", "request_body_timeout") >= 1.0
    );
}

#[test]
fn a_slow_body_that_moves_is_fine() {
    let origin = Origin::echo();
    // Each pause is a fraction of the limit, so that a busy machine cannot stretch it to the limit. The sum
    // of the pauses is longer than the limit.
    let sluice = Setup::to(origin.address()).with("listener.timeouts", "request_body = \"2s\"").start();
    let mut client = sluice.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n");
    for _ in 0..10 {
        client.send("x");
        std::thread::sleep(Duration::from_millis(250));
    }
    assert_eq!(client.response("POST").json()["length"], 10);
}

#[test]
fn idle_clients_are_let_go() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("listener.timeouts", "keep_alive = \"2s\"").start();
    let mut client = sluice.client();
    for _ in 0..4 {
        assert_eq!(client.get("/").status, 200);
        std::thread::sleep(Duration::from_millis(600));
    }
    assert_eq!(client.get("/").status, 200);
    let start = Instant::now();
    assert!(client.until_closed().is_empty(), "closed without a word");
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1300) && took < Duration::from_secs(6), "{took:?}");
    assert!(
        sluice.metrics().labelled("sluice_connections_closed_total", "reason", "keep_alive_timeout") >= 1.0
    );
}

#[test]
fn one_that_asked_once_is_let_go_as_soon() {
    let sluice =
        Setup::to(Origin::echo().address()).with("listener.timeouts", "keep_alive = \"300ms\"").start();
    for _ in 0..2 {
        let mut client = sluice.client();
        client.get("/");
        let start = Instant::now();
        assert!(client.until_closed().is_empty());
        let took = start.elapsed();
        assert!(took > Duration::from_millis(200) && took < Duration::from_secs(3), "{took:?}");
    }
}

#[test]
fn a_client_that_takes_nothing_is_let_go() {
    let origin = Origin::http(|_| Answer::with(Body::Pattern(200 << 20)));
    let sluice = Setup::to(origin.address()).with("listener.timeouts", "send = \"700ms\"").start();
    let before = sluice.holdings();
    let stream = Dial { source: None, receive_buffer: Some(4096) }.connect(sluice.address(), LIMIT).unwrap();
    let mut client = Client::over(stream).unwrap();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let closed = || sluice.metrics().labelled("sluice_connections_closed_total", "reason", "send_timeout");
    eventually(LIMIT, "the client is let go", || (closed() >= 1.0).then_some(()));
    sluice.expect_back_to(before);
    eventually(LIMIT, "the origin is let go", || (origin.open() == 0).then_some(()));
}

#[test]
fn a_missing_upstream_is_502() {
    let nobody = Port::lease();
    let sluice = Setup::to(nobody.loopback()).start();
    let mut client = sluice.client();
    assert_refused(&client.get("/"), 502, "nobody listens");
    assert_refused(&client.get("/"), 502, "and the connection goes on");
    let counted = refused(&sluice, "connect_failed");
    assert!((counted - 2.0).abs() < f64::EPSILON, "{counted}");
}

#[test]
fn a_broken_upstream_is_502() {
    for (answer, reason) in [
        ("", "upstream_reset"),
        ("HTTP/1.1 200 OK\r\nContent-Le", "upstream_reset"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "upstream_malformed"),
        ("HTTP/1.1 20 OK\r\n\r\n", "upstream_malformed"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "upstream_malformed"),
        ("HTTP/2.0 200 OK\r\n\r\n", "upstream_malformed"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "upstream_malformed",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nab", "upstream_malformed"),
        ("HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nA: b\0\r\nContent-Length: 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "upstream_malformed"),
        ("HTTP/1.1 200 OK\r\n no field\r\n\r\n", "upstream_malformed"),
        ("\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "upstream_malformed"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "upstream_malformed"),
        (&format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(70_000)), "upstream_malformed"),
        (&format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(300)), "upstream_malformed"),
    ] {
        let origin = Origin::scripted(answer);
        let sluice = Setup::to(origin.address()).start();
        let response = sluice.get("/");
        assert_refused(&response, 502, answer);
        assert!(refused(&sluice, reason) >= 1.0, "{answer:?} is {reason}: {:?}", sluice.metrics());
    }
}

#[test]
fn a_response_cut_short_is_not_passed_off_as_whole() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nBad Name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\nhalf\r\n0\r\n\r\n",
    ] {
        let origin = Origin::scripted(answer);
        let sluice = Setup::to(origin.address()).start();
        let mut client = sluice.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        match client.try_response("GET") {
            Ok(response) => assert_eq!(response.status, 502, "{answer:?} came back whole: {response:?}"),
            Err(error) => {
                assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{answer:?}: left hanging")
            }
        }
    }
}

#[test]
fn bytes_after_a_response_are_never_the_next_ones() {
    // An origin that sends one response too many. The surplus must not become the answer to another client.
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        let one = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        connection
            .write_all(format!("{one}HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned").as_bytes())?;
        connection.drain();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    for _ in 0..20 {
        assert_eq!(client.get("/").text(), "ok");
    }
}

#[test]
fn a_slow_upstream_is_504() {
    let origin = Origin::http(|request| {
        Answer::ok("late").after(if request.target == "/slow" {
            Duration::from_secs(8)
        } else {
            Duration::ZERO
        })
    });
    let sluice = Setup::to(origin.address()).with("route", "timeout = \"2s\"").start();
    let start = Instant::now();
    let mut client = sluice.client();
    assert_refused(&client.get("/slow"), 504, "no head in time");
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1800) && took < Duration::from_secs(6), "{took:?}");
    assert_eq!(sluice.get("/quick").status, 200);
    assert!(refused(&sluice, "upstream_timeout") >= 1.0);
}

#[test]
fn a_response_body_that_stalls_is_cut_off() {
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")?;
        connection.drain();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).with("route", "body_timeout = \"500ms\"").start();
    let start = Instant::now();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let error = client.try_response("GET").expect_err("half a body is no response");
    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "left hanging");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn an_upstream_that_does_not_answer_a_connect_is_504() {
    // The listener's queue is full. The kernel drops further SYNs, so a connect neither succeeds nor fails.
    let listener = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let port = Port::lease();
    let raw = std::os::fd::AsRawFd::as_raw_fd(&listener);
    nix::sys::socket::bind(raw, &nix::sys::socket::SockaddrStorage::from(port.loopback())).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _fill: Vec<_> = (0..3).map(|_| Dial::default().start(port.loopback()).unwrap()).collect();
    let sluice = Setup::to(port.loopback()).with("upstream", "connect_timeout = \"500ms\"").start();
    let start = Instant::now();
    assert_refused(&sluice.get("/"), 504, "no connection in time");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(refused(&sluice, "connect_timeout") >= 1.0);
}
