//! The test harness itself, tried here without Sluice, so that a fault of the harness is not taken for a
//! fault of the proxy.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use tests::client::{Client, Dial};
use tests::metrics::Metrics;
use tests::netns::Netns;
use tests::nginx::Nginx;
use tests::origin::{Body, Origin, Response};
use tests::pattern::{self, Pattern};
use tests::slow::{Crowd, Habit};
use tests::{eventually, process, skip, threads};

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn origins_answer_count_and_record() {
    let origin = Origin::echo();
    let mut client = Client::connect(origin.address());
    client.send(
        "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nT: v\r\n\r\n",
    );
    let shown = client.response("POST").json();
    assert_eq!((shown["method"].as_str(), shown["body"].as_str()), (Some("POST"), Some("abc")));
    assert_eq!(shown["trailers"][0][1], "v");
    assert_eq!(client.get("/b").json()["place"], 2);
    assert_eq!((origin.connections(), origin.requests(), origin.open()), (1, 2, 1));
    assert!(origin.recorded_text().starts_with("POST /a HTTP/1.1\r\n"));
    drop(client);
    eventually(LIMIT, "the connection ends", || (origin.open() == 0).then_some(()));
}

#[test]
fn origins_send_every_kind_of_body() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/pattern" => Response::with(Body::Pattern(100_000)),
        "/chunked" => Response::with(Body::ChunkedPattern(100_000)),
        "/none" => Response::with(Body::None).status("304 Not Modified"),
        _ => Response::with(Body::UntilClose(b"end".to_vec())),
    });
    let mut client = Client::connect(origin.address());
    for target in ["/pattern", "/chunked"] {
        assert_eq!(
            pattern::digest(client.get(target).body.as_slice()).unwrap().1,
            pattern::expected(100_000)
        );
    }
    assert_eq!(client.get("/none").status, 304);
    assert_eq!(client.get("/close").body, b"end");
    assert!(client.until_closed().is_empty());
}

#[test]
fn a_pattern_never_repeats_a_page() {
    let mut bytes = Vec::new();
    std::io::copy(&mut Pattern::new(10_001), &mut bytes).unwrap();
    assert_eq!(bytes.len(), 10_001);
    assert_ne!(bytes[..4096], bytes[4096..8192]);
    assert_eq!(pattern::digest(bytes.as_slice()).unwrap(), (10_001, pattern::expected(10_001)));
}

#[test]
fn nginx_takes_what_it_serves() {
    if skip::without_tool("nginx") {
        return;
    }
    let nginx = Nginx::start();
    let mut client = Client::connect(nginx.address());
    client.send("PUT /f HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.response("PUT").status, 201);
    assert_eq!(client.get("/f").body, b"hello");
    assert_eq!(std::fs::read(nginx.file("f")).unwrap(), b"hello");
}

#[test]
fn namespaces_are_apart_and_joined_by_veth() {
    if skip::without_root() {
        return;
    }
    let (one, two) = (Netns::new(), Netns::new());
    one.join(("left", "10.99.0.1/24"), &two, ("right", "10.99.0.2/24"));
    two.ip(&["address", "add", "10.99.0.3/24", "dev", "right"]);
    let listener = one.run(|| TcpListener::bind("10.99.0.1:80").unwrap());
    assert!(TcpListener::bind("10.99.0.1:80").is_err(), "the address must exist inside only");
    let dial = Dial { source: Some("10.99.0.3".parse().unwrap()), receive_buffer: None };
    let _stream = two.run(|| dial.connect("10.99.0.1:80".parse().unwrap(), LIMIT).unwrap());
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), "10.99.0.3");
    let inside = two.run(|| process::run(Command::new("ip").args(["-br", "link"]), LIMIT).text());
    assert!(inside.contains("right"), "{inside}");
    assert_eq!(one.xdp("left"), None);
}

#[test]
fn a_crowd_is_slow_but_moves() {
    let origin = Origin::http(|_| Response::with(Body::Pattern(64 << 10)));
    let tick = Duration::from_millis(10);
    let uploaders =
        Crowd::start(origin.address(), 20, "/", Habit::Upload { length: 1 << 20, step: 10 }, tick);
    let readers = Crowd::start(origin.address(), 20, "/", Habit::Read { step: 10 }, tick);
    eventually(LIMIT, "both move", || (uploaders.moved() > 1000 && readers.moved() > 1000).then_some(()));
    assert_eq!((uploaders.ended(), readers.ended(), origin.open()), (0, 0, 40));
}

#[test]
fn one_thread_is_held_while_the_others_run() {
    if skip::without_root() {
        return;
    }
    // nginx has one thread. It calls epoll_wait, and accept4 when a connection comes.
    let nginx = Nginx::start();
    let address = nginx.address();
    let tid = nginx.pid();
    let mut clients = Vec::new();
    let held = threads::Held::at_work(tid, LIMIT, || clients.push(Client::connect(address)));
    let mut client = Client::connect(address);
    client.send("GET /none HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.stays_silent(Duration::from_millis(300)), "the thread must stand still");
    drop(held);
    assert_eq!(client.response("GET").status, 404);
}

#[test]
fn metrics_are_read() {
    let metrics = Metrics::parse("# HELP a b\na_total{x=\"1\"} 2\na_total{x=\"2\"} 3\nb 4\n# EOF\n");
    assert!((metrics.sum("a_total") - 5.0).abs() < f64::EPSILON);
    assert!((metrics.labelled("a_total", "x", "2") - 3.0).abs() < f64::EPSILON);
    assert_eq!(metrics.names(), ["a_total", "b"]);
}

#[test]
fn a_program_past_its_time_is_killed() {
    let sleep =
        std::panic::catch_unwind(|| process::run(Command::new("sleep").arg("60"), Duration::from_millis(50)));
    assert!(sleep.is_err());
}

#[test]
fn skips_that_root_must_not_meet_fail() {
    if skip::without_root() {
        return;
    }
    let skipped =
        std::panic::catch_unwind(|| skip::skip(skip::Reason::ToolMissing, "the harness tries itself"));
    assert!(skipped.is_err());
}

#[test]
fn an_origin_that_stops_frees_its_port() {
    let origin = Origin::raw(|connection| connection.write_all(b"x"));
    let address = origin.address();
    drop(origin);
    eventually(LIMIT, "the port is free", || TcpListener::bind(address).ok());
}
