//! Bodies from zero bytes to a gigabyte between curl and nginx, both ways. Their checksums are taken outside
//! of Sluice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use tests::curl::Curl;
use tests::nginx::Nginx;
use tests::origin::{Body, Origin, Response};
use tests::pattern::{self, Pattern};
use tests::skip;
use tests::sluice::Setup;

const SMALL: [u64; 7] = [0, 1, 4095, 16 << 10, 65_537, 1 << 20, (8 << 20) + 1];
const GIGABYTE: u64 = 1 << 30;
/// The time limit for a gigabyte in one direction.
const LIMIT: Duration = Duration::from_secs(60);

fn without_tools() -> bool {
    skip::without_tool("curl") || skip::without_tool("nginx")
}

#[test]
fn curl_and_nginx_exchange_bodies_of_every_size() {
    if without_tools() {
        return;
    }
    let nginx = Nginx::start();
    let sluice = Setup::to(nginx.address()).start();
    let before = sluice.holdings();
    for length in SMALL {
        for chunked in [false, true] {
            let name = format!("body-{length}-{chunked}");
            Curl::upload(&[], &sluice.url(&format!("/{name}")), length, chunked);
            let stored = pattern::digest(File::open(nginx.file(&name)).unwrap()).unwrap();
            assert_eq!(stored, (length, pattern::expected(length)), "up {name}");
            assert_eq!(Curl::download(&[], &sluice.url(&format!("/{name}"))), stored, "down {name}");
        }
    }
    sluice.expect_back_to(before);
}

#[test]
fn curl_gets_a_gigabyte_from_nginx() {
    if without_tools() {
        return;
    }
    let nginx = Nginx::start();
    io::copy(
        &mut io::BufReader::with_capacity(256 << 10, Pattern::new(GIGABYTE)),
        &mut File::create(nginx.file("big")).unwrap(),
    )
    .unwrap();
    let sluice = Setup::to(nginx.address()).start();
    let start = Instant::now();
    assert_eq!(Curl::download(&[], &sluice.url("/big")), (GIGABYTE, pattern::expected(GIGABYTE)));
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
}

#[test]
fn curl_puts_a_gigabyte_on_nginx() {
    if without_tools() {
        return;
    }
    let nginx = Nginx::start();
    let sluice = Setup::to(nginx.address()).start();
    let start = Instant::now();
    Curl::upload(&[], &sluice.url("/big"), GIGABYTE, false);
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    assert_eq!(
        pattern::digest(File::open(nginx.file("big")).unwrap()).unwrap(),
        (GIGABYTE, pattern::expected(GIGABYTE))
    );
}

#[test]
fn a_chunked_gigabyte_streams_both_ways_in_little_memory() {
    if skip::without_tool("curl") {
        return;
    }
    let origin = Origin::http(|request| match request.method.as_str() {
        "PUT" => Response::ok(format!("{} {}", request.length, request.sha256)),
        _ => Response::with(Body::ChunkedPattern(GIGABYTE)),
    });
    let sluice = Setup::to(origin.address()).start();
    let expected = pattern::expected(GIGABYTE);
    assert_eq!(Curl::download(&[], &sluice.url("/")), (GIGABYTE, expected.clone()));
    assert_eq!(Curl::upload(&[], &sluice.url("/"), GIGABYTE, true), format!("{GIGABYTE} {expected}"));
    // The peak holds 64 MiB of budget, 16 MiB of ring buffers, and a little more. It never holds the body.
    let peak = tests::threads::status_field(sluice.data_plane_pid(), "VmHWM").unwrap();
    let peak: u64 = peak.trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 256 << 10, "{peak} KiB at the peak");
}

#[test]
fn many_bodies_at_once_stay_apart() {
    let origin = Origin::http(|request| {
        let length: u64 = request.target.trim_start_matches('/').parse().unwrap();
        assert_eq!((request.length, request.sha256.as_str()), (length, pattern::expected(length).as_str()));
        Response::with(if length.is_multiple_of(2) {
            Body::Pattern(length)
        } else {
            Body::ChunkedPattern(length)
        })
    });
    let sluice = Setup::to(origin.address()).workers(2).start();
    let before = sluice.holdings();
    let address = sluice.address();
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            scope.spawn(move || {
                let mut client = tests::client::Client::connect(address);
                for round in 0..10_u64 {
                    let length = (thread * 7919 + round * 104_729) % 700_000;
                    let mut body = Vec::new();
                    io::copy(&mut Pattern::new(length), &mut body).unwrap();
                    client.send(format!(
                        "POST /{length} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n"
                    ));
                    client.socket().write_all(&body).unwrap();
                    let response = client.response("POST");
                    assert_eq!((response.status, response.body == body), (200, true), "length {length}");
                }
            });
        }
    });
    sluice.expect_back_to(before);
}
