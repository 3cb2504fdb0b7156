//! Tests of `load::hold`.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::thread;

use super::*;

fn settings(target: SocketAddr) -> Settings {
    Settings {
        target,
        count: 40,
        sources: ["127.1.0.1", "127.1.0.2"].map(|text| text.parse().unwrap()).to_vec(),
        path: "/idle".into(),
        requests: 2,
        at_once: 8,
    }
}

/// A server that answers `requests` requests of a connection, then keeps it open for `keep(number)`.
fn serve(
    requests: usize,
    keep: impl Fn(usize) -> Duration + Copy + Send + 'static,
) -> (SocketAddr, thread::JoinHandle<Vec<IpAddr>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let mut peers = Vec::new();
        for number in 0..40 {
            let (mut stream, peer) = listener.accept().unwrap();
            peers.push(peer.ip());
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                for _ in 0..requests {
                    let count = stream.read(&mut buffer).unwrap();
                    assert!(buffer[..count].starts_with(b"GET /idle HTTP/1.1\r\n"));
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                }
                thread::sleep(keep(number));
            });
        }
        peers
    });
    (address, thread)
}

#[test]
fn counts_those_that_stand() {
    let (address, server) =
        serve(2, |number| Duration::from_millis(if number % 4 == 0 { 2000 } else { 60_000 }));
    let held = open(&settings(address)).unwrap();
    let peers = server.join().unwrap();
    assert_eq!(peers.iter().filter(|peer| peer.to_string() == "127.1.0.1").count(), 20);
    let (reader, writer) = std::io::pipe().unwrap();
    let end = thread::spawn(move || {
        thread::sleep(Duration::from_millis(3000));
        drop(writer);
    });
    assert_eq!(held.hold(reader.as_fd()).unwrap(), 30);
    end.join().unwrap();
}

#[test]
fn one_that_fails_is_an_error() {
    let (address, _server) = serve(1, |_| Duration::ZERO);
    assert!(open(&settings(address)).is_err(), "the second request has no answer");
}
