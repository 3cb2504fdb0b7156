//! The duties of client, Sluice and endpoint while an exchange runs, through the built binary (RFC 9110,
//! 9112): interim responses, trailers, early answers, and bodies that are read whole. Also clients and
//! endpoints that close one direction, reset, or are too slow.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::client::{Client, Dial};
use tests::message;
use tests::origin::{Body, Connection, Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, process, skip};

const LIMIT: Duration = Duration::from_secs(15);

fn closed(sluice: &Sluice, reason: &str) -> f64 {
    sluice.metrics().labelled("sluice_connections_closed_total", "reason", reason)
}

fn post(length: usize, more: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n{more}\r\n")
}

#[test]
fn an_endpoint_refuses_a_streamed_body_before_it_is_sent() {
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")?;
        connection.drain();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send(post(100 << 20, "Expect: 100-continue\r\n"));
    let response = client.try_any_response("POST").unwrap();
    assert_eq!((response.status, response.field("connection")), (401, Some("close")), "no 100 before it");
    assert!(origin.recorded_text().contains("\r\nExpect: 100-continue\r\n"));
    assert!(client.until_closed().is_empty());
}

#[test]
fn an_endpoint_asks_for_a_streamed_body() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("route", "buffer_request = \"0\"").start();
    let mut client = sluice.client();
    client.send(post(5, "Expect: 100-continue\r\n"));
    // The endpoint sends its own 100, since Sluice passes the expectation on.
    assert_eq!(client.try_any_response("POST").unwrap().status, 100);
    client.send("hello");
    let response = client.try_any_response("POST").unwrap();
    assert_eq!(
        (response.status, response.json()["body"].as_str()),
        (200, Some("hello")),
        "one 100 and no more"
    );
}

#[test]
fn curl_waits_for_100_continue_and_is_asked() {
    if skip::without_tool("curl") {
        return;
    }
    let origin = Origin::http(|request| Response::ok(format!("{} bytes", request.length)));
    let sluice = Setup::to(origin.address()).start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    // The short body is read whole, the long one is streamed.
    for length in [500_000, 3_000_000] {
        std::fs::write(&file, vec![b'x'; length]).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--verbose", "--max-time", "20", "--expect100-timeout", "15"]);
        curl.arg("--data-binary").arg(format!("@{}", file.display())).args([
            "--header",
            "Expect: 100-continue",
            &sluice.url("/"),
        ]);
        let start = Instant::now();
        let output = process::run(&mut curl, LIMIT).success();
        assert_eq!(output.text(), format!("{length} bytes"));
        assert!(output.errors().contains("< HTTP/1.1 100 Continue"), "{}", output.errors());
        assert!(start.elapsed() < Duration::from_secs(10), "curl did not have to give up waiting");
    }
}

#[test]
fn an_interim_response_after_a_long_one_does_not_stop_the_receive() {
    // After a long response, the endpoint's connection receives into blocks. Sluice must not take the rest of
    // one block for all the room that there is.
    let origin = Origin::http(|request| match request.method.as_str() {
        "GET" => Response::with(Body::Pattern(1 << 20)),
        _ => Response::ok(request.length.to_string()),
    });
    let sluice = Setup::to(origin.address()).with("route", "timeout = \"5s\"").start();
    let mut client = sluice.client();
    for _ in 0..5 {
        assert_eq!(client.get("/").body.len(), 1 << 20);
        client
            .send("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(client.try_any_response("PUT").unwrap().status, 100);
        client.send("5\r\nhello\r\n0\r\n\r\n");
        let response = client.response("PUT");
        assert_eq!((response.status, response.text().as_str()), (200, "5"), "{response:?}");
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn every_interim_response_is_passed_on_but_none_to_http_1_0() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
        HTTP/1.1 103 Early Hints\r\nLink: </b>\r\n\r\n\
                  HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let origin = Origin::scripted(answer);
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let said: Vec<_> = (0..4).map(|_| client.try_any_response("GET").unwrap()).collect();
    let statuses: Vec<_> = said.iter().map(|response| response.status).collect();
    assert_eq!(statuses, [103, 102, 103, 200], "nobody waits for the 100");
    assert_eq!((said[0].field("link"), said[2].field("link")), (Some("</a>"), Some("</b>")));
    let mut old = sluice.client();
    old.send("GET / HTTP/1.0\r\nHost: h\r\n\r\n");
    let response = old.try_any_response("GET").unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "ok"));
}

#[test]
fn trailers_pass_both_ways_without_what_they_must_not_carry() {
    let origin = Origin::http(|request| {
        let came: Vec<String> =
            request.trailers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let trailers = [
            ("X-Sum", "1"),
            ("Content-Length", "3"),
            ("Set-Cookie", "a=b"),
            ("Transfer-Encoding", "chunked"),
        ];
        let trailers = trailers.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Response::with(Body::Chunks(vec![came.join(" ").into_bytes()], trailers)).field("Trailer", "X-Sum")
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send(
        "POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\
         X-Checksum: 7\r\nHost: evil\r\n\
         Content-Length: 9\r\nTransfer-Encoding: gzip\r\nX-Forwarded-For: 6.6.6.6\r\nAuthorization: root\r\n\
         \r\n",
    );
    let response = client.response("POST");
    assert_eq!(response.text(), "X-Checksum=7");
    assert_eq!(response.trailers.len(), 1, "{:?}", response.trailers);
    assert_eq!(message::field(&response.trailers, "x-sum"), Some("1"));
    // HTTP/1.0 has no trailers.
    let mut old = sluice.client();
    old.send("POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
    let response = old.response("POST");
    assert!(response.trailers.is_empty() && response.field("transfer-encoding").is_none(), "{response:?}");
}

#[test]
fn endpoints_may_speak_http_1_0() {
    for (answer, body, reused) in [
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nsized", "sized", false),
        ("HTTP/1.0 200 OK\r\n\r\nuntil the end", "until the end", false),
        ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nsized", "sized", true),
    ] {
        let origin = Origin::raw(move |connection| {
            loop {
                connection.read_head()?;
                connection.write_all(answer.as_bytes())?;
                if !reused {
                    connection.close();
                    return Ok(());
                }
            }
        });
        let sluice = Setup::to(origin.address()).start();
        let mut client = sluice.client();
        for _ in 0..2 {
            let response = client.get("/");
            assert_eq!((response.status, response.text().as_str()), (200, body));
            assert_eq!(response.version, "HTTP/1.1");
            assert_eq!(response.field("via"), Some("1.0 sluice"));
        }
        assert_eq!(origin.connections(), if reused { 1 } else { 2 }, "{answer:?}");
    }
    // HTTP/1.0 has no chunks.
    let origin = Origin::scripted("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!(Setup::to(origin.address()).start().get("/").status, 502);
}

#[test]
fn an_early_answer_is_seen_by_a_client_that_writes_a_lot_before_it_reads() {
    let refuse = |connection: &mut Connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")?;
        // The endpoint reads no byte of the body.
        std::thread::sleep(Duration::from_millis(300));
        connection.close();
        Ok(())
    };
    // Sluice refuses before it forwards anything, Sluice refuses within a chunked body whose length it learns
    // only as it comes, and the endpoint refuses.
    for case in ["known", "chunked", "endpoint"] {
        let origin = Origin::raw(refuse);
        let limit = if case == "endpoint" { "0" } else { "1MiB" };
        let sluice =
            Setup::to(origin.address()).with("listener.limits", &format!("body_bytes = \"{limit}\"")).start();
        let mut client = sluice.client();
        let length: usize = 40 << 20;
        if case == "chunked" {
            client.send(format!(
                "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{length:x}\r\n"
            ));
        } else {
            client.send(post(length, ""));
        }
        let part = vec![b'x'; 64 << 10];
        for number in 0..length / part.len() {
            client
                .socket()
                .write_all(&part)
                .unwrap_or_else(|error| panic!("{case}: after {number} parts: {error}"));
        }
        let response = client.response("POST");
        assert_eq!(response.status, 413, "{case}: {response:?}");
        assert!(client.until_closed().is_empty());
        sluice.expect_back_to(tests::sluice::Holdings {
            pooled: 0.0,
            connections: 0.0,
            requests: 0.0,
            buffers: 0.0,
            budget: 0.0,
            ..sluice.holdings()
        });
    }
}

#[test]
fn curl_sees_an_early_413() {
    if skip::without_tool("curl") {
        return;
    }
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("listener.limits", "body_bytes = \"1MiB\"").start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    std::fs::write(&file, vec![b'x'; 30 << 20]).unwrap();
    for chunked in [false, true] {
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--max-time",
            "20",
            "--header",
            "Expect:",
            "--write-out",
            "%{http_code}",
        ]);
        curl.args([
            "--header",
            if chunked { "Transfer-Encoding: chunked" } else { "X: y" },
            "--output",
            "/dev/null",
        ]);
        curl.arg("--data-binary").arg(format!("@{}", file.display())).arg(sluice.url("/"));
        let output = process::run(&mut curl, LIMIT);
        assert_eq!(output.text(), "413", "chunked {chunked}: {}", output.errors());
    }
}

#[test]
fn short_bodies_are_read_whole_before_an_endpoint_is_asked() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("route", "buffer_request = \"10KiB\"").start();
    let mut slow = sluice.client();
    slow.send(post(10_000, ""));
    slow.send("x".repeat(9_999));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(origin.connections(), 0, "a slow client holds no endpoint");
    assert!(sluice.holdings().budget >= 9_999.0, "what came is copied out");
    slow.send("x");
    assert_eq!(slow.response("POST").json()["length"], 10_000);
    assert!((sluice.holdings().budget).abs() < f64::EPSILON);
    // A longer body is streamed.
    let mut long = sluice.client();
    long.send(post(10_241, ""));
    eventually(LIMIT, "the endpoint gets the head", || {
        (origin.recorded_text().matches("10241").count() == 1).then_some(())
    });
    long.send("x".repeat(10_241));
    assert_eq!(long.response("POST").json()["length"], 10_241);
}

#[test]
fn bodies_beyond_the_budget_stream() {
    let origin = Origin::http(|request| Response::ok(request.length.to_string()));
    // Half of the budget is for such bodies: the fourth finds no room.
    let sluice = Setup::to(origin.address()).with("process", "buffer_budget = \"4MiB\"").start();
    let length = (1 << 20) - 100;
    let part = "x".repeat(length - 1);
    let mut clients: Vec<_> = (0..4).map(|_| sluice.client()).collect();
    for client in &mut clients {
        client.send(post(length, ""));
        client.send(&part);
    }
    eventually(LIMIT, "some stream", || {
        (sluice.metrics().sum("sluice_request_bodies_unbuffered_total") >= 1.0).then_some(())
    });
    assert!(sluice.holdings().budget <= f64::from(4 << 20));
    for client in &mut clients {
        client.send("x");
        assert_eq!(client.response("POST").text(), length.to_string());
    }
}

#[test]
fn an_endpoint_learns_at_once_that_its_client_is_gone() {
    for first in [true, false] {
        let origin = Origin::raw(|connection| {
            connection.read_head()?;
            // If a connection carries two requests, the first is answered. The last request is never
            // answered.
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            connection.read_head()?;
            connection.drain();
            Ok(())
        });
        let silent = Origin::raw(|connection| {
            connection.read_head()?;
            connection.drain();
            Ok(())
        });
        let origin = if first { silent } else { origin };
        let sluice = Setup::to(origin.address()).start();
        let mut client = sluice.client();
        if !first {
            assert_eq!(client.get("/").status, 200);
        }
        client.send("GET /slow HTTP/1.1\r\nHost: h\r\n\r\n");
        eventually(LIMIT, "the request arrives", || origin.recorded_text().contains("/slow").then_some(()));
        std::thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        client.reset();
        eventually(LIMIT, "the endpoint is let go", || (origin.open() == 0).then_some(()));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        eventually(LIMIT, "it is counted", || (closed(&sluice, "client_aborted") >= 1.0).then_some(()));
    }
}

#[test]
fn either_end_may_end_its_half() {
    // With its answer, the endpoint closes its sending direction while the request body is still on its way.
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\nhalf")?;
        connection.socket().shutdown(std::net::Shutdown::Write)?;
        connection.drain();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).with("route", "buffer_request = \"0\"").start();
    let mut client = sluice.client();
    client.send(post(10, ""));
    assert_eq!(client.response("POST").text(), "half");
    // A client closes its sending direction after its body, and its answer comes later.
    let origin =
        Origin::http(|request| Response::ok(request.length.to_string()).after(Duration::from_millis(400)));
    let sluice = Setup::to(origin.address()).start();
    for body in ["3\r\nabc\r\n0\r\n\r\n", ""] {
        let mut client = sluice.client();
        match body {
            "" => client.send(post(3, "") + "abc"),
            body => {
                client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"))
            }
        }
        client.finish();
        assert_eq!(client.response("POST").text(), "3");
        assert!(client.until_closed().is_empty());
    }
    // A client that closes within its body has sent no request.
    let mut client = sluice.client();
    client.send(post(10, "") + "abc");
    client.finish();
    assert!(client.until_closed().is_empty());
    assert_eq!(origin.requests(), 2);
}

#[test]
fn clients_below_the_rate_are_let_go_with_a_reason() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/big" => Response::with(Body::Pattern(64 << 20)),
        _ => Response::ok(request.length.to_string()),
    });
    let sluice = Setup::to(origin.address()).with("listener.timeouts", "min_rate = \"2KiB/s\"").start();
    let address = sluice.address();
    let start = Instant::now();
    std::thread::scope(|scope| {
        // A client sends one byte at a time: of a body that is read whole, and of a body that is streamed.
        for length in [100_000, 10 << 20] {
            scope.spawn(move || {
                let mut client = Client::connect(address);
                client.send(post(length, ""));
                while client.try_send("x").is_ok() && client.stays_silent(Duration::from_millis(500)) {}
                assert!(start.elapsed() > Duration::from_secs(9), "{:?}", start.elapsed());
            });
        }
        // A client sends the first of these requests and waits for the answer.
        scope.spawn(move || {
            let mut client = Client::connect(address);
            client.send(post(100_000, "") + "x");
            let response = client.response("POST");
            assert_eq!(response.status, 408, "{response:?}");
            assert!(
                response.text().ends_with("request_too_slow\n") && response.field("x-request-id").is_some()
            );
        });
        // A client reads a few bytes of a response now and then.
        scope.spawn(move || {
            let mut stream =
                Dial { source: None, receive_buffer: Some(4096) }.connect(address, LIMIT).unwrap();
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            while start.elapsed() < Duration::from_secs(25) && matches!(stream.read(&mut [0; 64]), Ok(1..)) {
                std::thread::sleep(Duration::from_millis(100));
            }
            assert!(
                start.elapsed() > Duration::from_secs(9) && start.elapsed() < Duration::from_secs(25),
                "{:?}",
                start.elapsed()
            );
        });
        // Two clients are four times as fast as the rate. They are served.
        scope.spawn(move || {
            let mut client = Client::connect(address);
            client.send(post(8192 * 13, ""));
            for _ in 0..13 {
                client.send("x".repeat(8192));
                std::thread::sleep(Duration::from_secs(1));
            }
            assert_eq!(client.response("POST").text(), (8192 * 13).to_string());
        });
        scope.spawn(move || {
            let mut stream =
                Dial { source: None, receive_buffer: Some(4096) }.connect(address, LIMIT).unwrap();
            stream.write_all(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
            for _ in 0..130 {
                assert!(matches!(stream.read(&mut [0; 1024]), Ok(1..)));
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    });
    eventually(LIMIT, "each has its reason", || (closed(&sluice, "min_rate") >= 4.0).then_some(()));
    assert!((closed(&sluice, "min_rate") - 4.0).abs() < f64::EPSILON);
    let refused = sluice.metrics().labelled("sluice_requests_refused_total", "reason", "request_too_slow");
    assert!((refused - 3.0).abs() < f64::EPSILON, "{refused}");
}

/// The data plane stands still while clients ask and an endpoint speaks on idle connections. It finds both
/// when it goes on. A client got the endpoint's bytes.
#[test]
fn bytes_on_an_idle_connection_are_no_clients_answer() {
    let sockets = Arc::new(Mutex::new(Vec::<TcpStream>::new()));
    let noted = Arc::clone(&sockets);
    let origin = Origin::raw(move |connection| {
        noted.lock().unwrap().push(connection.socket().try_clone()?);
        loop {
            connection.read_head()?;
            connection.socket().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    });
    let sluice = Setup::to(origin.address()).start();
    let data_plane = Pid::from_raw(sluice.data_plane_pid().cast_signed());
    let unasked = [
        &b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 5\r\n\r\nstale"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale",
        b"",
    ];
    let idle = || (sluice.metrics().sum("sluice_upstream_connections_idle") > 0.5).then_some(());
    let stands_still = || {
        let threads = std::fs::read_dir(format!("/proc/{data_plane}/task")).unwrap().flatten();
        let mut states = threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap());
        states.all(|status| status.contains("\nState:\tT")).then_some(())
    };
    // The kernel hands over 20 completions for an enter. More clients than that ask before the endpoint
    // speaks.
    let mut clients: Vec<Client> = (0..30).map(|_| sluice.client()).collect();
    clients.iter_mut().for_each(|client| assert_eq!(client.get("/").text(), "ok"));
    for round in 0..12 {
        assert_eq!(clients[0].get("/").text(), "ok");
        eventually(Duration::from_secs(10), "a connection is idle", idle);
        kill(data_plane, Signal::SIGSTOP).unwrap();
        eventually(Duration::from_secs(10), "every thread stands still", stands_still);
        clients.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        let speak = |mut socket: &TcpStream| match unasked[round % 3] {
            b"" => drop(socket.shutdown(std::net::Shutdown::Write)),
            bytes => drop(socket.write_all(bytes)),
        };
        sockets.lock().unwrap().drain(..).for_each(|socket| speak(&socket));
        // Bytes that arrive after the request could be its answer: these are to arrive before.
        std::thread::sleep(Duration::from_millis(200));
        kill(data_plane, Signal::SIGCONT).unwrap();
        for client in &mut clients {
            let response = client.response("GET");
            assert_eq!((response.status, response.text().as_str()), (200, "ok"), "round {round}");
        }
    }
}
