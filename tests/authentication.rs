//! NTLM and Negotiate authenticate a connection to an endpoint. Sluice keeps it for the client's connection
//! that began the scheme, so that nobody is served as another user.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{self, Read, Write};
use std::process::Command;
use std::time::Duration;

use tests::client::{Client, Response};
use tests::origin::{Connection, Origin};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, process, skip};

/// The second message of NTLM: NTLMSSP, type 2, no target, flags, a nonce.
const CHALLENGE: &str = "TlRMTVNTUAACAAAAAAAAADgAAAABAoIAASNFZ4mrze8AAAAAAAAAAAAAAAA4AAAA";

/// An endpoint that authenticates a connection, as NTLM does, with this scheme. It answers with the user's
/// name, or with 401.
fn authenticating(scheme: &'static str) -> Origin {
    Origin::raw(move |connection| {
        let mut user = None;
        loop {
            let head = read_head(connection)?;
            let closes = head.starts_with("GET /close ");
            let credentials = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                let (of, value) = value.split_once(' ')?;
                (name.eq_ignore_ascii_case("authorization") && of.eq_ignore_ascii_case(scheme))
                    .then_some(value)
            });
            let mut offer = format!("WWW-Authenticate: {scheme}\r\n");
            match credentials.map(message) {
                Some(Message::Begin) => offer = format!("WWW-Authenticate: {scheme} {CHALLENGE}\r\n"),
                Some(Message::User(name)) => user = Some(name),
                None => {}
            }
            let (status, offer, body) = match &user {
                Some(name) => ("200 OK", "", name.as_str()),
                None => ("401 Unauthorized", offer.as_str(), "nobody"),
            };
            let length = body.len();
            let answer = format!("HTTP/1.1 {status}\r\n{offer}Content-Length: {length}\r\n\r\n{body}");
            connection.socket().write_all(answer.as_bytes())?;
            if closes {
                return Ok(());
            }
        }
    })
}

enum Message {
    Begin,
    User(String),
}

/// A message of NTLM, or `hello` and then a name, for tests that need no real one.
fn message(text: &str) -> Message {
    let bytes = decode(text);
    if !bytes.starts_with(b"NTLMSSP\0") {
        return if text == "hello" { Message::Begin } else { Message::User(text.to_owned()) };
    }
    if bytes[8] == 1 {
        return Message::Begin;
    }
    // The user's name: its length, and where it lies.
    let number = |at: usize| usize::from(bytes[at]) | usize::from(bytes[at + 1]) << 8;
    let name = &bytes[number(40)..][..number(36)];
    Message::User(name.iter().filter(|byte| **byte != 0).map(|&byte| char::from(byte)).collect())
}

/// Base64 (RFC 4648), as far as it goes.
fn decode(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for letter in text.bytes() {
        let Some(value) = ALPHABET.iter().position(|&known| known == letter) else { break };
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}

fn read_head(connection: &mut Connection) -> io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if connection.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn ask(client: &mut Client, target: &str, credentials: &str) -> Response {
    client.send(format!("GET {target} HTTP/1.1\r\nHost: h\r\n{credentials}\r\n"));
    client.response("GET")
}

fn log_in(client: &mut Client, scheme: &str, name: &str) {
    assert_eq!(ask(client, "/", &format!("Authorization: {scheme} hello\r\n")).status, 401);
    assert_eq!(ask(client, "/", &format!("Authorization: {scheme} {name}\r\n")).text(), name);
}

fn closed(sluice: &Sluice, reason: &str) -> f64 {
    sluice.metrics().labelled("sluice_upstream_connections_closed_total", "reason", reason)
}

#[test]
fn no_client_is_served_as_another_user() {
    for scheme in ["NTLM", "Negotiate", "Nego2", "Kerberos", "CredSSP"] {
        let origin = authenticating(scheme);
        let sluice = Setup::to(origin.address()).start();
        let (mut alice, mut bob) = (sluice.client(), sluice.client());
        log_in(&mut alice, scheme, "alice");
        // The scheme works: the connection is hers, over many requests and a pause that parks her session.
        for pause in [0, 0, 1500] {
            std::thread::sleep(Duration::from_millis(pause));
            assert_eq!(ask(&mut alice, "/", "").text(), "alice");
            for _ in 0..3 {
                assert_eq!(ask(&mut sluice.client(), "/", "").text(), "nobody", "{scheme}");
            }
        }
        log_in(&mut bob, scheme, "bob");
        for _ in 0..3 {
            assert_eq!(ask(&mut bob, "/", "").text(), "bob");
            assert_eq!(ask(&mut alice, "/", "").text(), "alice");
        }
        drop((alice, bob));
        let pinned = || (closed(&sluice, "pinned") > 1.5).then_some(());
        eventually(Duration::from_secs(10), "both connections went with their clients", pinned);
        for _ in 0..3 {
            assert_eq!(ask(&mut sluice.client(), "/", "").text(), "nobody", "{scheme}");
        }
    }
}

/// A client whose connection to the endpoint died begins anew, as nobody.
#[test]
fn a_pinned_connection_that_died_is_no_one_elses() {
    let origin = authenticating("NTLM");
    let sluice = Setup::to(origin.address()).start();
    let (mut alice, mut bob) = (sluice.client(), sluice.client());
    log_in(&mut alice, "NTLM", "alice");
    log_in(&mut bob, "NTLM", "bob");
    assert_eq!(ask(&mut alice, "/close", "").text(), "alice");
    let died = || (origin.open() == 1).then_some(());
    eventually(Duration::from_secs(10), "her connection is closed", died);
    assert_eq!(ask(&mut alice, "/", "").text(), "nobody");
    assert_eq!(ask(&mut bob, "/", "").text(), "bob");
    log_in(&mut alice, "NTLM", "alice");
    assert_eq!(ask(&mut alice, "/", "").text(), "alice");
}

#[test]
fn curl_speaks_ntlm_through_sluice() {
    if skip::without_tool("curl") {
        return;
    }
    let curl = |arguments: &[&str]| {
        process::run(Command::new("curl").args(arguments), Duration::from_secs(30)).success().text()
    };
    if !curl(&["-V"]).contains("NTLM") {
        skip::skip(skip::Reason::PackageMissing, "curl without NTLM");
        return;
    }
    let origin = authenticating("NTLM");
    let sluice = Setup::to(origin.address()).start();
    let url = sluice.url("/");
    for user in ["alice", "bob"] {
        let credentials = format!("{user}:secret");
        let arguments = ["-sS", "--max-time", "20", "--ntlm", "-u", &credentials, &url, &url];
        assert_eq!(curl(&arguments), format!("{user}{user}"));
        assert_eq!(sluice.client().get("/").text(), "nobody");
    }
}
