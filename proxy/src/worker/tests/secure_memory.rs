//! Memory that is held for slow peers, where a connection carries TLS: no more than without TLS, and all of
//! it counted.

use std::cell::{Cell, RefCell};
use std::io::{Read as _, Write as _};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::secure::{NAME, server, trust};
use crate::counters::Plain;
use crate::io::settings::BLOCK_BYTES;
use crate::io::simulated::{Faults, Memory, Peer};
use crate::listen::Protocol;
use crate::time::Time;
use crate::tls::testing::Authority;
use crate::worker::testing::{self, Bench, origin_address};

const CROWD: usize = 40;
const BODY: usize = 160 << 10;
/// With one block beside the buffers.
const MEMORY: Memory = Memory { buffers: 64, buffer_size: 4096, budget: 512 << 10 };
/// All bytes that may wait: budget, buffers and block, and for each connection a head and a little more.
const MOST: usize =
    MEMORY.budget + MEMORY.buffers as usize * MEMORY.buffer_size + BLOCK_BYTES + CROWD * (4 << 10);
/// A slow peer takes so much.
const STEP: usize = 4096;
const PAUSE: Duration = Duration::from_millis(20);

fn pattern(seed: usize) -> Vec<u8> {
    (0..BODY).map(|index| (index * 31 + index / 255 + seed) as u8).collect()
}

/// Reads little by little.
fn sip() -> impl FnMut(&Peer) -> Vec<u8> {
    let mut due = Time::default();
    move |peer| {
        if peer.now() < due {
            return Vec::new();
        }
        due = peer.now() + PAUSE;
        peer.wake_at(due);
        peer.read_at_most(STEP)
    }
}

/// Where the bytes of a client's connection are made and understood.
enum Wire {
    Plain { sent: Vec<u8> },
    Tls(Box<ClientConnection>),
}

impl Wire {
    fn new(config: Option<&Arc<ClientConfig>>) -> Self {
        config.map_or(Self::Plain { sent: Vec::new() }, |config| {
            let name = ServerName::try_from(NAME).expect("name");
            let mut client = ClientConnection::new(Arc::clone(config), name).expect("client");
            client.set_buffer_limit(None);
            Self::Tls(Box::new(client))
        })
    }

    fn write(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain { sent } => sent.extend_from_slice(bytes),
            Self::Tls(tls) => tls.writer().write_all(bytes).expect("memory"),
        }
    }

    /// What these hold.
    fn read(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Self::Tls(tls) = self else { return bytes };
        let (mut rest, mut plain) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            tls.read_tls(&mut rest).expect("memory");
            let start = plain.len();
            plain.resize(start + tls.process_new_packets().expect("records").plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut plain[start..]).expect("plaintext");
        }
        plain
    }

    fn take_sent(&mut self) -> Vec<u8> {
        match self {
            Self::Plain { sent } => std::mem::take(sent),
            Self::Tls(tls) => {
                let mut out = Vec::new();
                while tls.wants_write() {
                    tls.write_tls(&mut out).expect("memory");
                }
                out
            }
        }
    }
}

/// A worker with little memory, and what its clients trust if they come by TLS.
fn bench(is_secure: bool, short: bool) -> (Bench, Option<Arc<ClientConfig>>) {
    let authority = Authority::new("Test CA");
    let mut config = testing::config(&[origin_address(1)]);
    let listener = Arc::make_mut(&mut config.listeners[0]);
    if is_secure {
        listener.protocol = Protocol::Https;
        listener.tls = Some(server(&authority, CROWD));
    }
    let faults = Faults { window: 8 << 10, short, ..Faults::mild() };
    (Bench::with_memory(1, faults, config, MEMORY), is_secure.then(|| trust(&authority)))
}

/// A client that sends this and takes what comes with `read`. All that it got.
fn client(
    bench: &Bench,
    config: Option<&Arc<ClientConfig>>,
    request: &[u8],
    mut read: impl FnMut(&Peer) -> Vec<u8> + 'static,
) -> Rc<RefCell<Vec<u8>>> {
    let (peer, mut wire) = (bench.sim.connect(bench.listener), Wire::new(config));
    wire.write(request);
    let got = Rc::new(RefCell::new(Vec::new()));
    let shared = Rc::clone(&got);
    peer.script(move |peer| {
        let plain = wire.read(read(peer));
        shared.borrow_mut().extend(plain);
        peer.write(&wire.take_sent());
        if peer.is_ended() {
            peer.close();
        }
    });
    got
}

/// Runs it until so many are answered and have all; the most that waited at a time.
fn most_unsent(bench: &mut Bench, all_have: impl Fn() -> bool) -> usize {
    let (most, due) = (Cell::new(0), bench.sim.now() + Duration::from_secs(60));
    bench.run_until(|events| {
        most.set(most.get().max(events.worker().io.unsent()));
        all_have() || events.worker().io.now() > due
    });
    assert!(all_have(), "not yet: {}", bench.counted());
    assert_eq!(bench.engine.stats().evicted, 0);
    most.get()
}

#[test]
fn slow_readers_over_tls_hold_no_more_than_memory_allows() {
    for (is_secure, short) in [(false, false), (true, false), (true, true)] {
        let (mut bench, config) = bench(is_secure, short);
        bench.sim.serve(origin_address(1), || {
            let mut head = Vec::new();
            Box::new(move |peer: &Peer| {
                head.extend(peer.read());
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").as_bytes());
                    peer.write(&pattern(0));
                }
                if peer.is_ended() {
                    peer.close();
                }
            })
        });
        let request = b"GET / HTTP/1.1\r\nHost: edge.test\r\n\r\n";
        let crowd: Vec<_> = (0..CROWD).map(|_| client(&bench, config.as_ref(), request, sip())).collect();
        let most = most_unsent(&mut bench, || crowd.iter().all(|got| got.borrow().len() > BODY));
        assert!((MOST / 4..=MOST).contains(&most), "secure: {is_secure}: {most} bytes waited, {MOST} may");
        assert!(crowd.iter().all(|got| got.borrow().ends_with(&pattern(0))));
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn uploads_over_tls_to_a_slow_endpoint_hold_no_more_than_memory_allows() {
    for (is_secure, short) in [(false, false), (true, false), (true, true)] {
        let (mut bench, config) = bench(is_secure, short);
        let whole = Rc::new(Cell::new(0));
        let shared = Rc::clone(&whole);
        bench.sim.serve(origin_address(1), move || {
            let (mut got, mut read, whole, wanted) = (Vec::new(), sip(), Rc::clone(&shared), pattern(7));
            Box::new(move |peer: &Peer| {
                got.extend(read(peer));
                if got.len() > BODY && got.ends_with(&wanted) {
                    got.clear();
                    whole.set(whole.get() + 1);
                    peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
                if peer.is_ended() {
                    peer.close();
                }
            })
        });
        let head = format!("POST / HTTP/1.1\r\nHost: edge.test\r\nContent-Length: {BODY}\r\n\r\n");
        let request = [head.as_bytes(), &pattern(7)].concat();
        let crowd: Vec<_> =
            (0..CROWD).map(|_| client(&bench, config.as_ref(), &request, Peer::read)).collect();
        let most = most_unsent(&mut bench, || crowd.iter().all(|got| got.borrow().ends_with(b"\r\n\r\n")));
        assert!((MOST / 4..=MOST).contains(&most), "secure: {is_secure}: {most} bytes waited, {MOST} may");
        assert_eq!(whole.get(), CROWD);
        assert_eq!(bench.value(Plain::Responses2xx), CROWD as u64);
        bench.run_out();
        bench.check_freed("");
    }
}
