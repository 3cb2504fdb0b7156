//! A whole worker on the kernel's ring, between a client and origins made of std sockets.

mod crowd;
mod patience;
mod reload;
mod secure;
mod secure_memory;
mod simulated;
mod upstream_tls;
mod upstreams;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use super::{Prepared, WorkerError, WorkerSeed, testing};
use crate::config::model;
use crate::control::commands::{self, Command, CommandSender};
use crate::control::slots::SteeringSlot;
use crate::counters::Counters;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, PoolCloseReason, RefusalReason, ShedReason};
use crate::listen::{ListenKey, ListenerId, Transport};
use crate::route::model::{Route, RoutePath};
use crate::time::Time;

/// An origin: a thread for each connection, which answers each request with the result of `respond`.
struct Origin {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

struct Request {
    line: String,
    head: String,
    body: Vec<u8>,
}

/// The step of an origin after a response.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Stay,
    Close,
}

impl Origin {
    fn start(respond: impl Fn(&Request, &mut TcpStream) -> Then + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let respond = Arc::new(respond);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                // Tests write in pieces; each would wait for the peer's delayed acknowledgement.
                stream.set_nodelay(true).expect("an option");
                let respond = Arc::clone(&respond);
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
                    let mut stream = stream;
                    while let Some(request) = read_message(&mut reader) {
                        if respond(&request, &mut stream) == Then::Close {
                            return;
                        }
                    }
                });
            }
        });
        Self { address, connections }
    }

    /// Echoes the request's body, or says hello.
    fn echo() -> Self {
        Self::start(|request, stream| {
            let body = if request.body.is_empty() { b"hello".as_slice() } else { &request.body };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body))
                .map_or(Then::Close, |()| Then::Stay)
        })
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// Reads a request or response with a Content-Length or chunked body.
fn read_message(reader: &mut impl BufRead) -> Option<Request> {
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if let Some((_, rest)) = lower.split_once("content-length:") {
        let length = rest.lines().next()?.trim().parse().ok()?;
        body.resize(length, 0);
        reader.read_exact(&mut body).ok()?;
    } else if lower.contains("transfer-encoding: chunked") {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let size = usize::from_str_radix(line.trim(), 16).ok()?;
            let at = body.len();
            body.resize(at + size + 2, 0);
            reader.read_exact(&mut body[at..]).ok()?;
            body.truncate(at + size);
            if size == 0 {
                break;
            }
        }
    }
    let line = head.lines().next().unwrap_or_default().to_owned();
    Some(Request { line, head, body })
}

/// A worker on a thread of its own.
struct Running {
    address: SocketAddr,
    /// As the supervisor holds it.
    listener: TcpListener,
    counters: Counters,
    commands: CommandSender,
    thread: Option<JoinHandle<Result<(), WorkerError>>>,
}

impl Running {
    fn start(config: model::Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let counters = Counters::private();
        let (sender, receiver) = commands::channel().expect("eventfd");
        let key = ListenKey { listener: ListenerId::FIRST, address, transport: Transport::Tcp };
        let seed = WorkerSeed {
            index: 0,
            cpu: None,
            node: None,
            listeners: vec![(key, listener.try_clone().expect("dup").into())],
            ring: config.ring,
            buffer_budget: config.process.buffer_budget,
            stuck_after: config.workers.stuck_after,
            traffic: Arc::new(ArcSwap::from_pointee(testing::traffic(&config))),
            counters: counters.clone(),
            steering: SteeringSlot::private(),
            commands: receiver,
            connections_max: 1000,
            access: None,
            sources: None,
        };
        let (ready, is_ready) = mpsc::channel();
        let thread =
            std::thread::spawn(move || Prepared::new(seed)?.run(move || ready.send(()).expect("test waits")));
        is_ready.recv_timeout(Duration::from_secs(10)).expect("ready");
        Self { address, listener, counters, commands: sender, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("connect");
        stream.set_nodelay(true).expect("an option");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        stream
    }

    /// Sends raw bytes and reads until the end of the stream.
    fn converse(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).expect("write");
        let mut response = Vec::new();
        stream.read_to_end(&mut response).expect("read");
        String::from_utf8_lossy(&response).into_owned()
    }

    fn value(&self, counter: impl Into<Counter>) -> u64 {
        self.counters.value(counter)
    }

    /// Waits for a counter that changes just after a client sees its response.
    fn wait_for(&self, counter: impl Into<Counter>, value: u64) {
        let counter = counter.into();
        let start = Instant::now();
        while self.value(counter) != value {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{counter:?} is {} not {value}",
                self.value(counter)
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(mut self) {
        self.commands.send(Command::Stop).expect("room");
        self.thread.take().expect("runs").join().expect("no panic").expect("no error");
        self.check_freed();
    }

    fn check_freed(&self) {
        for gauge in [
            Plain::Open,
            Plain::Active,
            Plain::UpstreamOpen,
            Plain::UpstreamIdle,
            Plain::BuffersLoaned,
            Plain::Panics,
        ] {
            assert_eq!(self.value(gauge), 0, "{gauge:?}");
        }
    }
}

#[test]
fn a_thousand_requests_share_one_upstream_connection() {
    let origin = Origin::echo();
    let worker = Running::start(testing::config(&[origin.address]));
    let mut stream = worker.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    for request in 0..1000 {
        if request % 3 == 0 {
            let body = format!("body {request}");
            write!(
                stream,
                "POST /{request} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .expect("write");
            assert_eq!(read_message(&mut reader).expect("a response").body, body.as_bytes());
        } else {
            write!(stream, "GET /{request} HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
            let response = read_message(&mut reader).expect("a response");
            assert_eq!((response.line.as_str(), &*response.body), ("HTTP/1.1 200 OK", &b"hello"[..]));
            assert!(response.head.contains("Via: 1.1 sluice\r\n"), "{}", response.head);
        }
    }
    assert_eq!(origin.connections(), 1);
    assert_eq!(worker.value(Plain::Requests), 1000);
    assert_eq!(worker.value(Plain::Responses2xx), 1000);
    assert_eq!(worker.value(Plain::UpstreamConnects), 1);
    assert_eq!(worker.value(Plain::UpstreamReuses), 999);
    assert_eq!(worker.value(Plain::Accepted), 1);
    worker.stop();
}

#[test]
fn large_bodies_arrive_whole_in_both_directions_and_framings() {
    let origin = Origin::echo();
    let worker = Running::start(testing::config(&[origin.address]));
    let body: Vec<u8> =
        (0..5_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut stream = worker.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    write!(stream, "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len()).expect("write");
    stream.write_all(&body).expect("write");
    assert!(read_message(&mut reader).expect("a response").body == body);
    write!(stream, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").expect("write");
    for chunk in body.chunks(70_001) {
        write!(stream, "{:x}\r\n", chunk.len()).expect("write");
        stream.write_all(chunk).expect("write");
        stream.write_all(b"\r\n").expect("write");
    }
    stream.write_all(b"0\r\n\r\n").expect("write");
    assert!(read_message(&mut reader).expect("a response").body == body);
    assert_eq!(origin.connections(), 1);
    worker.stop();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::start(|request, stream| {
        let body = request.line.clone();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).map_or(Then::Close, |()| Then::Stay)
    });
    let worker = Running::start(testing::config(&[origin.address]));
    let mut requests = String::new();
    for index in 0..100 {
        requests.push_str(&format!("GET /{index} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }
    let mut stream = worker.connect();
    stream.write_all(requests.as_bytes()).expect("write");
    let mut reader = BufReader::new(stream);
    for index in 0..100 {
        let response = read_message(&mut reader).expect("a response");
        assert_eq!(response.body, format!("GET /{index} HTTP/1.1").as_bytes());
    }
    worker.stop();
}

#[test]
fn refusals_carry_their_status_and_close() {
    let origin = Origin::echo();
    let mut config = testing::config(&[origin.address]);
    let mut listener = testing::listener();
    listener.limits.body_bytes = 100;
    listener.limits.header_bytes = 2048;
    listener.limits.uri_bytes = 512;
    config.listeners = vec![Arc::new(listener)];
    let route = Route { path: RoutePath::Prefix("/app".into()), ..(*config.routes.routes()[0]).clone() };
    config.routes = crate::route::RouteTable::new(vec![Arc::new(route)]);
    let worker = Running::start(config);
    let long = "x".repeat(5000);
    let cases = [
        ("GET /app HTTP/1.1\r\n\r\n".to_owned(), "400", RefusalReason::BadHost),
        ("GET /app HTTP/1.1\r\nHost: a\r\nBad Field: x\r\n\r\n".to_owned(), "400", RefusalReason::Malformed),
        (format!("GET /app{long} HTTP/1.1\r\nHost: a\r\n\r\n"), "414", RefusalReason::UriTooLong),
        (format!("GET /app HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), "431", RefusalReason::HeadTooLarge),
        (
            format!("POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n{long}"),
            "413",
            RefusalReason::BodyTooLarge,
        ),
        (
            format!(
                "POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{long}\r\n0\r\n\
                 \r\n"
            ),
            "413",
            RefusalReason::BodyTooLarge,
        ),
        (
            "POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
            "404",
            RefusalReason::NoRoute,
        ),
    ];
    for (request, status, reason) in cases {
        let response = worker.converse(request.as_bytes());
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {response}");
        assert!(response.contains("X-Request-Id: "), "{response}");
        assert!(response.contains("Connection: close\r\n"), "{response}");
        assert!(worker.value(Counter::Refused(reason)) > 0, "{reason:?}");
    }
    // Without a body left to read, the connection goes on after a 404.
    let mut stream = worker.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    for _ in 0..3 {
        stream.write_all(b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
        assert!(read_message(&mut reader).expect("a response").line.contains("404"));
    }
    worker.stop();
}

#[test]
fn slow_clients_are_answered_408_and_closed() {
    let origin = Origin::echo();
    let mut config = testing::config(&[origin.address]);
    let mut listener = testing::listener();
    listener.timeouts.request_header = Duration::from_millis(200);
    listener.timeouts.request_body = Duration::from_millis(200);
    listener.timeouts.keep_alive = Duration::from_millis(300);
    config.listeners = vec![Arc::new(listener)];
    let worker = Running::start(config);
    assert_eq!(worker.converse(b""), "");
    worker.wait_for(Counter::Closed(CloseReason::RequestHeaderTimeout), 1);
    assert!(worker.converse(b"GET / HT").starts_with("HTTP/1.1 408 "));
    worker.wait_for(Counter::Closed(CloseReason::RequestHeaderTimeout), 2);
    assert!(
        worker
            .converse(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf")
            .starts_with("HTTP/1.1 408 ")
    );
    worker.wait_for(Counter::Closed(CloseReason::RequestBodyTimeout), 1);
    assert!(worker.converse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("hello"));
    worker.wait_for(Counter::Closed(CloseReason::KeepAliveTimeout), 1);
    worker.stop();
}

#[test]
fn upstream_trouble_becomes_502_and_504() {
    let silent = Origin::start(|_, _| {
        std::thread::sleep(Duration::from_secs(2));
        Then::Close
    });
    let broken = Origin::start(|_, stream| {
        let _ = stream.write_all(b"SSH-2.0-nonsense\r\n\r\n");
        Then::Close
    });
    let closing = Origin::start(|_, _| Then::Close);
    let refusing =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("address");
    let cases = [
        (silent.address, "504", RefusalReason::UpstreamTimeout),
        (broken.address, "502", RefusalReason::UpstreamMalformed),
        (closing.address, "502", RefusalReason::UpstreamReset),
        (refusing, "502", RefusalReason::ConnectFailed),
    ];
    for (address, status, reason) in cases {
        let mut config = testing::config(&[address]);
        let route = Route { timeout: Duration::from_millis(300), ..(*config.routes.routes()[0]).clone() };
        config.routes = crate::route::RouteTable::new(vec![Arc::new(route)]);
        let worker = Running::start(config);
        let response = worker.converse(b"GET / HTTP/1.0\r\n\r\n");
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{reason:?}: {response}");
        assert_eq!(worker.value(Counter::Refused(reason)), 1, "{reason:?}");
        worker.stop();
    }
    assert_eq!(closing.connections(), 2, "an idempotent request is tried once more");
}

#[test]
fn a_dead_pooled_connection_is_replaced_unnoticed() {
    // Says keep-alive, then closes after a moment: in some rounds the proxy has noticed, in others the
    // request meets the reset.
    let origin = Origin::start(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        std::thread::sleep(Duration::from_millis(5));
        Then::Close
    });
    let worker = Running::start(testing::config(&[origin.address]));
    let mut stream = worker.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    for round in 0..40 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
        let response = read_message(&mut reader).expect("a response");
        assert_eq!(response.line, "HTTP/1.1 200 OK", "round {round}");
        std::thread::sleep(Duration::from_millis(round % 10));
    }
    let closed = worker.value(Counter::PoolClosed(PoolCloseReason::ClosedByUpstream));
    assert!(closed > 0, "no idle connection was seen closing");
    assert_eq!(origin.connections(), worker.value(Plain::UpstreamConnects) as usize);
    worker.stop();
}

#[test]
fn a_connect_failure_moves_on_to_the_next_endpoint() {
    let refusing =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("address");
    let origin = Origin::echo();
    let worker = Running::start(testing::config(&[refusing, origin.address]));
    for _ in 0..10 {
        assert!(worker.converse(b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc").ends_with("\r\n\r\nabc"));
    }
    assert!(worker.value(Plain::UpstreamConnectFailures) >= 1);
    assert_eq!(worker.value(Plain::UpstreamConnectFailures), worker.value(Plain::UpstreamRetries));
    worker.stop();
}

#[test]
fn an_early_response_reaches_a_client_that_still_uploads() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 64];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nstop");
            // It never reads the rest.
            std::thread::sleep(Duration::from_secs(2));
        }
    });
    let worker = Running::start(testing::config(&[address]));
    let mut stream = worker.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n").expect("write");
    stream.write_all(&[b'x'; 10_000]).expect("write");
    let mut response = String::new();
    stream.read_to_string(&mut response).expect("read");
    assert!(response.starts_with("HTTP/1.1 403 "), "{response}");
    assert!(response.contains("Connection: close\r\n") && response.ends_with("stop"), "{response}");
    worker.stop();
}

#[test]
fn a_client_that_ended_its_side_still_gets_its_answers() {
    let origin = Origin::start(|request, stream| {
        std::thread::sleep(Duration::from_millis(50));
        let body = request.line.clone();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).map_or(Then::Close, |()| Then::Stay)
    });
    let worker = Running::start(testing::config(&[origin.address]));
    let mut stream = worker.connect();
    stream.write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
    stream.shutdown(std::net::Shutdown::Write).expect("half-close");
    let mut responses = String::new();
    stream.read_to_string(&mut responses).expect("closed in order");
    assert!(responses.contains("GET /1 ") && responses.ends_with("GET /2 HTTP/1.1"), "{responses}");
    worker.wait_for(Counter::Closed(CloseReason::ClientClosed), 1);
    worker.stop();
}

#[test]
fn expect_head_and_http10_are_served() {
    let origin = Origin::start(|request, stream| {
        let response: &[u8] = if request.line.starts_with("HEAD") {
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        } else if request.line.contains("/none") {
            b"HTTP/1.1 204 No Content\r\n\r\n"
        } else if request.line.contains("/unchanged") {
            b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 7\r\n\r\n"
        } else if request.line.contains("/interim") {
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        } else if request.line.contains("/chunked") {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\
              \r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody"
        };
        stream.write_all(response).map_or(Then::Close, |()| Then::Stay)
    });
    let worker = Running::start(testing::config(&[origin.address]));
    let mut stream = worker.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        .expect("write");
    assert_eq!(read_message(&mut reader).expect("interim").line, "HTTP/1.1 100 Continue");
    stream.write_all(b"abc").expect("write");
    assert_eq!(read_message(&mut reader).expect("final").body, b"body");
    stream.write_all(b"GET /interim HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
    assert_eq!(read_message(&mut reader).expect("interim").line, "HTTP/1.1 103 Early Hints");
    assert_eq!(read_message(&mut reader).expect("final").body, b"ok");
    drop((stream, reader));

    let close =
        |line: &str| worker.converse(format!("{line}\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes());
    let head = close("HEAD / HTTP/1.1");
    assert!(head.contains("Content-Length: 1000\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(close("GET /none HTTP/1.1").ends_with("\r\n\r\n"));
    assert!(close("GET /unchanged HTTP/1.1").ends_with("\r\n\r\n"));
    let chunked = close("GET /chunked HTTP/1.1");
    assert!(
        chunked.contains("Transfer-Encoding: chunked\r\n") && chunked.ends_with("0\r\nX-Sum: 1\r\n\r\n"),
        "{chunked}"
    );
    let old = close("GET /chunked HTTP/1.0");
    assert!(!old.contains("chunked") && old.ends_with("\r\n\r\nabcde"), "{old}");
    let mut stream = worker.connect();
    let mut reader = BufReader::new(stream.try_clone().expect("clone"));
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("write");
        let response = read_message(&mut reader).expect("a response");
        assert!(response.head.contains("Connection: keep-alive\r\n"), "{}", response.head);
    }
    worker.stop();
}

#[test]
fn a_drain_finishes_what_is_active_and_closes_what_is_idle() {
    let origin = Origin::start(|_, stream| {
        std::thread::sleep(Duration::from_millis(300));
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")
            .map_or(Then::Close, |()| Then::Stay)
    });
    let mut worker = Running::start(testing::config(&[origin.address]));
    let mut idle = worker.connect();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
    let mut idle = BufReader::new(idle);
    assert_eq!(read_message(&mut idle).expect("a response").body, b"late");
    let mut active = worker.connect();
    active.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("write");
    worker.wait_for(Plain::Active, 1);
    let deadline = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("clock");
    let deadline = Time::from_nanos((deadline.tv_sec() as u64 + 5) * 1_000_000_000);
    worker.commands.send(Command::Drain { deadline }).expect("room");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("closed in order");
    assert!(rest.is_empty());
    let mut response = String::new();
    active.read_to_string(&mut response).expect("read");
    assert!(response.contains("Connection: close\r\n") && response.ends_with("late"), "{response}");
    drop(active);
    worker.thread.take().expect("runs").join().expect("no panic").expect("no error");
    worker.check_freed();
    assert_eq!(worker.value(Counter::Closed(CloseReason::Draining)), 2);
}

/// Between the command and the shutdown of the socket connections are served; the shutdown itself ends the
/// accept and is no failure.
#[test]
fn a_drain_serves_what_comes_until_the_socket_is_shut_down() {
    let origin = Origin::echo();
    let mut worker = Running::start(testing::config(&[origin.address]));
    assert!(
        worker
            .converse(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 200")
    );
    let begun = Instant::now();
    worker.commands.send(Command::Drain { deadline: Time::from_nanos(u64::MAX) }).expect("room");
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..3 {
        let response = worker.converse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(
            response.starts_with("HTTP/1.1 200") && response.contains("Connection: close\r\n"),
            "{response}"
        );
    }
    nix::sys::socket::shutdown(
        std::os::fd::AsRawFd::as_raw_fd(&worker.listener),
        nix::sys::socket::Shutdown::Both,
    )
    .expect("shutdown");
    worker.thread.take().expect("runs").join().expect("no panic").expect("no error");
    assert!(begun.elapsed() < Duration::from_millis(900), "it does not wait for more: {:?}", begun.elapsed());
    for &reason in ShedReason::ALL {
        assert_eq!(worker.value(Counter::Shed(reason)), 0, "{reason:?}");
    }
    worker.check_freed();
}
