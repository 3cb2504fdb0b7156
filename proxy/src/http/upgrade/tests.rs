//! Tests of `http::upgrade`.

use super::*;
use crate::http::forward::{Origin, RequestId};
use crate::http::h1::{Parsed, Recipient, RequestDecoder, ResponseDecoder, encode};
use crate::http::limits::Limits;
use crate::http::message::Method;
use crate::http::path::Rules;
use crate::http::underscores::Underscores;

const LIMITS: Limits = Limits { header_bytes: 64 << 10, fields: 100, uri_bytes: 1024, paths: Rules::KEEP };

fn request(start: &str, fields: &str) -> RequestHead {
    let input = format!("{start}\r\nHost: app\r\n{fields}\r\n");
    let Ok(Parsed::Head { mut head, .. }) = RequestDecoder::new().parse(input.as_bytes(), &LIMITS) else {
        panic!("{input}")
    };
    let origin = Origin {
        client: [192, 0, 2, 7].into(),
        is_trusted: false,
        scheme: "http",
        identity: None,
        is_early: false,
        underscores: Underscores::DropColliding,
        keeps_request_id: false,
        new_request_id: RequestId::from_bits(1),
    };
    forward::request(&mut head, &origin);
    head
}

fn response(fields: &str) -> ResponseHead {
    let input = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n");
    match ResponseDecoder::new().parse(input.as_bytes(), &Method::Get, &Limits::UPSTREAM) {
        Ok(Parsed::Head { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

fn encoded(head: &RequestHead) -> String {
    let mut out = Vec::new();
    encode::request(head, &mut out);
    String::from_utf8(out).expect("text")
}

#[test]
fn an_upgrade_is_forwarded_with_its_connection_option() {
    let asked = request(
        "GET /chat HTTP/1.1",
        "connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: a\r\n",
    );
    assert!(is_asked_for(&asked));
    let sent = encoded(&asked);
    assert!(sent.contains("\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n\r\n"), "{sent}");
    assert!(sent.contains("\r\nSec-WebSocket-Key: a\r\n"), "{sent}");
    let with_te = request("GET / HTTP/1.1", "Connection: te, upgrade\r\nTE: trailers\r\nUpgrade: a/1, b\r\n");
    let sent = encoded(&with_te);
    assert!(
        sent.contains("\r\nUpgrade: a/1, b\r\n") && sent.ends_with("\r\nConnection: TE, Upgrade\r\n\r\n"),
        "{sent}"
    );
}

#[test]
fn what_is_no_upgrade_is_not_forwarded() {
    for (start, fields) in [
        ("GET / HTTP/1.1", "Upgrade: websocket\r\n"),
        ("GET / HTTP/1.1", "Connection: close\r\nUpgrade: websocket\r\n"),
        ("GET / HTTP/1.1", "Connection: upgrade\r\n"),
        ("GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: ,\r\n"),
        ("GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: web socket\r\n"),
        ("GET / HTTP/1.1", "Connection: upgrade\r\nUpgrade: a/\r\n"),
        ("GET / HTTP/1.0", "Connection: upgrade\r\nUpgrade: websocket\r\n"),
        ("GET / HTTP/1.1", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n"),
        ("GET / HTTP/1.1", "Connection: Upgrade\r\nUpgrade: H2C, HTTP/2.0, TLS/1.2\r\n"),
    ] {
        let head = request(start, fields);
        assert!(!is_asked_for(&head), "{start} {fields}");
        assert!(!encoded(&head).to_lowercase().contains("upgrade"), "{start} {fields}");
    }
    let mixed = request("GET / HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n");
    assert!(encoded(&mixed).contains("\r\nUpgrade: websocket\r\n"));
}

/// As `kubectl exec`, `docker attach` and `docker exec` ask, and Go's clients for a POST without a body.
#[test]
fn a_request_with_a_body_may_ask_too() {
    for (start, framing) in [
        ("GET / HTTP/1.1", "Content-Length: 0\r\n"),
        ("POST / HTTP/1.1", "Content-Length: 0\r\n"),
        ("POST / HTTP/1.1", "Content-Length: 1\r\n"),
        ("POST / HTTP/1.1", "Transfer-Encoding: chunked\r\n"),
    ] {
        let asked = request(start, &format!("Connection: Upgrade\r\nUpgrade: tcp\r\n{framing}"));
        let sent = encoded(&asked);
        assert!(is_asked_for(&asked) && sent.contains("\r\nUpgrade: tcp\r\n"), "{sent}");
        assert!(sent.contains(&format!("\r\n{framing}")), "{sent}");
    }
}

#[test]
fn other_answers_say_which_protocols_there_are() {
    for (fields, version, keep_alive, kept) in [
        ("Upgrade: websocket\r\n", Version::Http11, true, "Upgrade: websocket|Connection: Upgrade"),
        (
            "Connection: Upgrade\r\nUpgrade: a/1, b\r\n",
            Version::Http11,
            false,
            "Upgrade: a/1, b|Connection: close, Upgrade",
        ),
        // Not those that nobody gets through us, and not to a client that cannot ask.
        (
            "Connection: Upgrade\r\nUpgrade: h2, h2c, c\r\n",
            Version::Http11,
            true,
            "Upgrade: c|Connection: Upgrade",
        ),
        ("Connection: Upgrade\r\nUpgrade: h2,h2c\r\n", Version::Http11, true, ""),
        ("Upgrade: websocket\r\n", Version::Http10, true, "Connection: keep-alive"),
        ("Upgrade: websocket\r\n", Version::Http10, false, "Connection: close"),
    ] {
        let input = format!("HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n{fields}\r\n");
        let parsed = ResponseDecoder::new().parse(input.as_bytes(), &Method::Get, &Limits::UPSTREAM);
        let Ok(Parsed::Head { mut head, .. }) = parsed else { panic!("{parsed:?}") };
        super::response(&mut head);
        let mut out = Vec::new();
        encode::response(&head, Recipient { version, is_head: false, keep_alive }, &mut out);
        let sent = String::from_utf8(out).expect("text");
        let said: Vec<_> = sent
            .split("\r\n")
            .filter(|line| line.starts_with("Upgrade:") || line.starts_with("Connection:"))
            .collect();
        assert_eq!(said.join("|"), kept, "{fields}");
    }
}

#[test]
fn only_what_was_offered_is_switched_to() {
    let asked = request("GET / HTTP/1.1", "Connection: Upgrade\r\nUpgrade: websocket, other/2\r\n");
    let mut head = response(
        "Connection: upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: b\r\n",
    );
    assert!(switch(&mut head, &asked));
    let mut out = Vec::new();
    encode::switching(&head, &mut out);
    let sent = String::from_utf8(out).expect("text");
    assert!(sent.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{sent}");
    assert!(
        sent.contains("\r\nUpgrade: WebSocket\r\n") && sent.contains("\r\nSec-WebSocket-Accept: b\r\n"),
        "{sent}"
    );
    assert!(sent.ends_with("\r\nConnection: Upgrade\r\n\r\n") && !sent.contains("X-Hop"), "{sent}");
    for fields in
        ["", "Upgrade: third\r\n", "Upgrade: websocket, third\r\n", "Upgrade: ,\r\n", "Upgrade: other\r\n"]
    {
        assert!(!switch(&mut response(fields), &asked), "{fields}");
    }
    let plain = request("GET / HTTP/1.1", "");
    assert!(!switch(&mut response("Upgrade: websocket\r\n"), &plain));
}
