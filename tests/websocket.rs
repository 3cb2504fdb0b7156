//! WebSockets (RFC 6455) and other HTTP upgrades through the built binary, with tungstenite at both ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use std::io::{Read, Write};
use tests::client::PATIENCE;
use tests::message;
use tests::origin::{Connection, Origin};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, skip};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tungstenite::{Error, Message, WebSocket};

const CROWD: usize = 1000;
/// Each tunnel takes two descriptors in the data plane and two in the test.
const DESCRIPTORS: u64 = 4 * CROWD as u64 + 500;
/// The most memory of the data plane that an idle tunnel may take, in bytes: both streams, its task, its row,
/// and the allocator's share.
const IDLE_BYTES_MAX: u64 = 6 << 10;

fn failed(error: impl std::fmt::Display) -> std::io::Error {
    std::io::Error::other(error.to_string())
}

/// An endpoint that sends back each message. "bye" makes it close; "parts" makes it answer in fragments.
fn echo() -> Origin {
    Origin::raw(|connection: &mut Connection| {
        let mut socket = tungstenite::accept(connection).map_err(failed)?;
        loop {
            let answer = match socket.read() {
                Ok(Message::Text(text)) if text.as_str() == "bye" => {
                    let frame = CloseFrame { code: CloseCode::Library(4321), reason: "as you wish".into() };
                    socket.close(Some(frame)).map_err(failed)?;
                    continue;
                }
                Ok(Message::Text(text)) if text.as_str() == "parts" => {
                    for (part, opcode, last) in [
                        ("in ", Data::Text, false),
                        ("three ", Data::Continue, false),
                        ("parts", Data::Continue, true),
                    ] {
                        let frame = Frame::message(part, OpCode::Data(opcode), last);
                        socket.send(Message::Frame(frame)).map_err(failed)?;
                    }
                    continue;
                }
                Ok(message @ (Message::Text(_) | Message::Binary(_))) => message,
                Ok(_) => continue,
                Err(_) => return Ok(()),
            };
            socket.send(answer).map_err(failed)?;
        }
    })
}

fn connect(sluice: &Sluice) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(sluice.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (socket, response) =
        tungstenite::client(format!("ws://{}/chat?room=1", sluice.address()), stream).unwrap();
    assert_eq!(response.status(), 101);
    assert!(
        response.headers().get("via").is_some_and(|via| via.to_str().unwrap().contains("sluice")),
        "{response:?}"
    );
    socket
}

fn expect(socket: &mut WebSocket<TcpStream>, message: &Message) {
    assert_eq!(&socket.read().unwrap(), message);
}

#[test]
fn text_binary_fragments_and_pings_pass_both_ways() {
    let origin = echo();
    let sluice = Setup::to(origin.address()).start();
    let mut socket = connect(&sluice);
    for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let binary = Message::binary((0..length).map(|at| (at * 7 + length) as u8).collect::<Vec<u8>>());
        socket.send(binary.clone()).unwrap();
        expect(&mut socket, &binary);
        let text = Message::text("ü".repeat(length / 2));
        socket.send(text.clone()).unwrap();
        expect(&mut socket, &text);
    }
    // The client sends a message in fragments, with a ping between them.
    socket.send(Message::Frame(Frame::message("frag", OpCode::Data(Data::Text), false))).unwrap();
    socket.send(Message::Ping("between".into())).unwrap();
    socket.send(Message::Frame(Frame::message("ments", OpCode::Data(Data::Continue), true))).unwrap();
    expect(&mut socket, &Message::Pong("between".into()));
    expect(&mut socket, &Message::text("fragments"));
    socket.send(Message::text("parts")).unwrap();
    expect(&mut socket, &Message::text("in three parts"));
    let metrics = sluice.metrics();
    assert_eq!((metrics.sum("sluice_tunnels_open"), metrics.sum("sluice_tunnels_total")), (1.0, 1.0));
    assert_eq!(metrics.sum("sluice_responses_1xx_total"), 1.0);
    assert!(
        metrics.sum("sluice_downstream_received_bytes_total") > 2e6
            && metrics.sum("sluice_downstream_sent_bytes_total") > 2e6
    );
    assert_eq!(metrics.sum("sluice_requests_active"), 0.0, "the exchange ended with its answer");
}

#[test]
fn close_codes_pass_both_ways() {
    let origin = echo();
    let sluice = Setup::to(origin.address()).start();
    let mut socket = connect(&sluice);
    let frame = CloseFrame { code: CloseCode::Away, reason: "off".into() };
    socket.close(Some(frame.clone())).unwrap();
    expect(&mut socket, &Message::Close(Some(frame)));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    drop(socket);
    let mut socket = connect(&sluice);
    socket.send(Message::text("bye")).unwrap();
    let frame = CloseFrame { code: CloseCode::Library(4321), reason: "as you wish".into() };
    expect(&mut socket, &Message::Close(Some(frame)));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    drop(socket);
    let closed = |reason| sluice.metrics().labelled("sluice_connections_closed_total", "reason", reason);
    eventually(Duration::from_secs(5), "both ended in order", || {
        (closed("tunnel_closed") == 2.0).then_some(())
    });
}

#[test]
fn a_thousand_websockets_at_once_echo_and_cost_little() {
    if skip::without_descriptors(DESCRIPTORS) {
        return;
    }
    let origin = echo();
    let sluice = Setup::to(origin.address()).workers(2).start();
    drop(connect(&sluice));
    let open = || sluice.metrics().sum("sluice_tunnels_open");
    eventually(PATIENCE, "the first is gone", || (open() == 0.0).then_some(()));
    let before = sluice.holdings();
    let at_first = sluice.memory();
    let mut sockets: Vec<_> = (0..CROWD).map(|_| connect(&sluice)).collect();
    assert_eq!(open(), CROWD as f64);
    let each = sluice.memory().saturating_sub(at_first) / CROWD as u64;
    eprintln!("{each} bytes for an idle WebSocket");
    assert!(each <= IDLE_BYTES_MAX, "{each} bytes for an idle WebSocket");
    for (number, socket) in sockets.iter_mut().enumerate() {
        socket.send(Message::text(format!("from {number}"))).unwrap();
    }
    for (number, socket) in sockets.iter_mut().enumerate() {
        expect(socket, &Message::text(format!("from {number}")));
    }
    for socket in &mut sockets {
        socket.close(None).unwrap();
    }
    for socket in &mut sockets {
        expect(socket, &Message::Close(None));
    }
    drop(sockets);
    sluice.expect_back_to(before);
}

#[test]
fn bytes_that_come_with_request_or_answer_are_not_lost_and_each_end_is_passed_on() {
    // The endpoint sends data in one write with its head, reads to the end, and then sends more.
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.write_all(
            b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: greeting\r\n\r\nwelcome ",
        )?;
        let mut heard = String::new();
        connection.read_to_string(&mut heard)?;
        connection.write_all(format!("you said: {heard}").as_bytes())
    });
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: greeting\r\n\r\nhello");
    let head = client.response("GET");
    assert_eq!(
        (head.status, head.field("upgrade"), head.field("connection")),
        (101, Some("greeting"), Some("Upgrade"))
    );
    client.send(" world");
    client.socket().shutdown(Shutdown::Write).unwrap();
    assert_eq!(String::from_utf8(client.until_closed()).unwrap(), "welcome you said: hello world");
    let request = origin.recorded_text();
    assert!(request.contains("\r\nUpgrade: greeting\r\nConnection: Upgrade\r\n\r\nhello world"), "{request}");
    assert_eq!(sluice.metrics().sum("sluice_upstream_connections_idle"), 0.0, "a tunnel is not pooled");
}

/// Go's clients send `Content-Length: 0` with each POST (`kubectl exec`, `docker attach`), and `docker exec`
/// sends a body.
#[test]
fn an_upgrade_beside_a_body_begins_behind_it() {
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")?;
        let mut heard = String::new();
        connection.read_to_string(&mut heard)?;
        connection.write_all(heard.as_bytes())
    });
    let sluice = Setup::to(origin.address()).start();
    // Without a body, the first bytes of the tunnel stand in its place.
    for (start, framing, body) in [
        ("GET /attach HTTP/1.1", "Content-Length: 0", "tunn"),
        ("POST /attach HTTP/1.1", "Content-Length: 0", "tunn"),
        ("POST /exec HTTP/1.1", "Content-Length: 4", "body"),
    ] {
        let mut client = sluice.client();
        client.send(format!(
            "{start}\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n{framing}\r\n\r\n{body}"
        ));
        let head = client.response("GET");
        assert_eq!((head.status, head.field("upgrade")), (101, Some("tcp")), "{start} {framing}");
        client.send("more");
        client.finish();
        assert_eq!(String::from_utf8(client.until_closed()).unwrap(), format!("{body}more"));
    }
    assert_eq!(sluice.metrics().sum("sluice_tunnels_total"), 3.0);
}

#[test]
fn what_is_no_upgrade_stays_an_ordinary_exchange() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).start();
    let mut client = sluice.client();
    let upgrade = |fields: &str| format!("Host: h\r\nConnection: Upgrade, HTTP2-Settings\r\n{fields}");
    for (start, fields, body, forwarded) in [
        ("GET / HTTP/1.1", "Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n", "", None),
        ("GET / HTTP/1.1", "Upgrade: h2c, websocket\r\n", "", Some("websocket")),
        ("POST / HTTP/1.1", "Upgrade: websocket\r\nContent-Length: 2\r\n", "ab", Some("websocket")),
        ("GET / HTTP/1.0", "Upgrade: websocket\r\nConnection: keep-alive\r\n", "", None),
    ] {
        client.send(format!("{start}\r\n{}\r\n{body}", upgrade(fields)));
        let response = client.response("GET");
        assert_eq!(response.status, 200, "{fields}");
        let shown = response.json();
        let fields: Vec<(String, String)> = serde_json::from_value(shown["fields"].clone()).unwrap();
        assert_eq!(message::field(&fields, "upgrade"), forwarded, "{shown}");
        assert_eq!(message::field(&fields, "connection"), forwarded.map(|_| "Upgrade"), "{shown}");
        assert_eq!(message::field(&fields, "http2-settings"), None);
    }
    let mut client = sluice.client();
    client.send("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n");
    assert_eq!(client.response("CONNECT").status, 501);
}

#[test]
fn an_idle_websocket_is_closed_and_a_draining_proxy_gives_it_time() {
    let origin = echo();
    let sluice = Setup::to(origin.address()).with("listener.timeouts", "tunnel_idle = \"1s\"").start();
    let mut socket = connect(&sluice);
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(500));
        socket.send(Message::text("here")).unwrap();
        expect(&mut socket, &Message::text("here"));
    }
    let idle = Instant::now();
    assert!(socket.read().is_err());
    assert!(
        (Duration::from_millis(900)..Duration::from_secs(8)).contains(&idle.elapsed()),
        "{:?}",
        idle.elapsed()
    );
    assert_eq!(sluice.metrics().labelled("sluice_connections_closed_total", "reason", "tunnel_idle"), 1.0);

    let mut sluice = Setup::to(origin.address()).with("process", "drain_timeout = \"2s\"").start();
    let mut socket = connect(&sluice);
    sluice.signal(nix::sys::signal::Signal::SIGTERM);
    let begun = Instant::now();
    eventually(Duration::from_secs(5), "nobody is accepted any more", || {
        TcpStream::connect(sluice.address()).is_err().then_some(())
    });
    socket.send(Message::text("still here")).unwrap();
    expect(&mut socket, &Message::text("still here"));
    assert!(socket.read().is_err(), "cut");
    assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
    sluice.wait_end(Duration::from_secs(10));
}
