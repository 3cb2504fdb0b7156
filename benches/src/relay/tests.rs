//! The relay over loopback. Bytes arrive whole and in order, ends and resets are passed on, and any shortage
//! (buffers, places, the reader's speed) only slows it down. RELAY_TEST_MIB=1024 makes the large transfers
//! larger.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{setsockopt, sockopt};
use tests::pattern::Pattern;

use super::{Counts, Relay, Settings};

const DEADLINE: Duration = Duration::from_secs(60);

/// A relay on its own thread, and the listener behind it.
struct Running {
    address: SocketAddr,
    origin: TcpListener,
    control: Option<std::io::PipeWriter>,
    thread: Option<JoinHandle<Counts>>,
}

impl Running {
    fn start(settings: Settings) -> Self {
        let origin = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = origin.local_addr().unwrap();
        Self::start_before(origin, upstream, settings)
    }

    fn start_before(origin: TcpListener, upstream: SocketAddr, settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        setsockopt(&listener, sockopt::TcpNoDelay, &true).unwrap();
        let address = listener.local_addr().unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let thread = thread::spawn(move || {
            let mut relay = Relay::new(settings, &listener, upstream).unwrap();
            relay.run(reader.as_fd(), |_| ControlFlow::Break(())).unwrap()
        });
        Self { address, origin, control: Some(writer), thread: Some(thread) }
    }

    /// The client's end and the origin's end of one relayed connection. Tries again if the relay has no free
    /// place.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let (client, (origin, _)) = (0..100)
            .find_map(|_| {
                let client = TcpStream::connect(self.address).unwrap();
                let mut wanted = [PollFd::new(self.origin.as_fd(), PollFlags::POLLIN)];
                let came = poll(&mut wanted, 500_u16).unwrap();
                (came > 0).then(|| (client, self.origin.accept().unwrap()))
            })
            .expect("a relayed connection");
        for stream in [&client, &origin] {
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            stream.set_write_timeout(Some(DEADLINE)).unwrap();
        }
        (client, origin)
    }

    fn stop(mut self) -> Counts {
        drop(self.control.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

fn large() -> u64 {
    std::env::var("RELAY_TEST_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(32) << 20
}

fn write_pattern(mut stream: TcpStream, length: u64) -> JoinHandle<()> {
    thread::spawn(move || {
        std::io::copy(&mut Pattern::new(length), &mut stream).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    })
}

/// Reads to the end, pauses after every `pause_bytes`, and compares each byte.
fn read_pattern(mut stream: TcpStream, length: u64, pause_bytes: usize) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut expected = Pattern::new(length);
        let (mut got, mut want) = (vec![0; 64 << 10], vec![0; 64 << 10]);
        let (mut total, mut since_pause) = (0, 0);
        loop {
            let count = stream.read(&mut got).unwrap();
            if count == 0 {
                break;
            }
            expected.read_exact(&mut want[..count]).unwrap();
            assert!(got[..count] == want[..count], "bytes {total} to {} differ", total + count as u64);
            total += count as u64;
            since_pause += count;
            if since_pause >= pause_bytes {
                since_pause = 0;
                thread::sleep(Duration::from_millis(5));
            }
        }
        assert_eq!(total, length);
    })
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Sends the pattern in both directions of one connection at a time, each to its end.
fn exchange(client: &TcpStream, origin: &TcpStream, length: u64, pause_bytes: usize) -> Vec<JoinHandle<()>> {
    let clone = |stream: &TcpStream| stream.try_clone().unwrap();
    vec![
        write_pattern(clone(client), length),
        read_pattern(clone(origin), length, pause_bytes),
        write_pattern(clone(origin), length),
        read_pattern(clone(client), length, pause_bytes),
    ]
}

#[test]
fn one_end_leaves_the_other_direction_open() {
    let relay = Running::start(Settings::default());
    let (mut client, mut origin) = relay.connect();
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    origin.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    thread::sleep(Duration::from_millis(50));
    origin.write_all(b"answer").unwrap();
    drop(origin);
    text.clear();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "answer");
    let counts = relay.stop();
    assert_eq!((counts.accepted, counts.aborted), (1, 0));
}

#[test]
fn large_transfers_both_ways_past_slow_readers_are_exact() {
    let relay = Running::start(Settings::default());
    let (client, origin) = relay.connect();
    join(exchange(&client, &origin, large(), 8 << 20));
    let counts = relay.stop();
    assert_eq!(counts.aborted, 0);
    assert!(counts.paused > 0, "the readers were slower than the writers: {counts:?}");
}

#[test]
fn a_reader_that_stops_stops_its_writer() {
    let relay = Running::start(Settings { queue_bytes_max: 64 << 10, ..Settings::default() });
    let (mut client, origin) = relay.connect();
    // The socket buffers have a fixed size, so that it is known how much the kernel takes.
    setsockopt(&client, sockopt::SndBuf, &(64 << 10)).unwrap();
    setsockopt(&origin, sockopt::RcvBuf, &(64 << 10)).unwrap();
    client.set_nonblocking(true).unwrap();
    let mut source = Pattern::new(1 << 30);
    let mut piece = vec![0; 16 << 10];
    let (mut written, mut quiet) = (0_u64, 0);
    source.read_exact(&mut piece).unwrap();
    let mut at = 0;
    while quiet < 20 {
        match client.write(&piece[at..]) {
            Ok(count) => {
                quiet = 0;
                written += count as u64;
                at += count;
                if at == piece.len() {
                    source.read_exact(&mut piece).unwrap();
                    at = 0;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                quiet += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(error) => panic!("{error}"),
        }
        assert!(written < 128 << 20, "the relay takes without end");
    }
    client.shutdown(Shutdown::Write).unwrap();
    read_pattern(origin, written, usize::MAX).join().unwrap();
    let counts = relay.stop();
    assert_eq!(counts.aborted, 0);
    assert!(counts.paused > 0, "{counts:?}");
}

#[test]
fn a_lack_of_buffers_only_slows() {
    let relay = Running::start(Settings { buffers: 8, buffer_size: 512, entries: 8, ..Settings::default() });
    let pairs: Vec<_> = (0..24).map(|_| relay.connect()).collect();
    let threads = pairs.iter().flat_map(|(client, origin)| exchange(client, origin, 300_000, 60_000));
    join(threads.collect::<Vec<_>>());
    drop(pairs);
    let counts = relay.stop();
    assert_eq!((counts.accepted, counts.aborted), (24, 0));
    assert!(counts.starved > 0, "{counts:?}");
}

#[test]
fn places_are_used_again_and_one_too_many_is_closed() {
    let relay = Running::start(Settings { connections: 2, ..Settings::default() });
    for _ in 0..50 {
        let first = relay.connect();
        let second = relay.connect();
        let mut third = TcpStream::connect(relay.address).unwrap();
        third.set_read_timeout(Some(DEADLINE)).unwrap();
        // The third is closed at once. The moment decides whether the client sees an end or a reset.
        assert_eq!(third.read(&mut [0]).unwrap_or(0), 0);
        for (client, origin) in [first, second] {
            join(exchange(&client, &origin, 5_000, usize::MAX));
        }
    }
    assert_eq!(relay.stop().aborted, 0);
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let relay = Running::start(Settings::default());
    for client_resets in [true, false] {
        let (client, origin) = relay.connect();
        let (from, mut to) = if client_resets { (client, origin) } else { (origin, client) };
        setsockopt(&from, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(from);
        assert_eq!(to.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(relay.stop().aborted, 2);
}

#[test]
fn a_client_without_upstream_is_reset() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = gone.local_addr().unwrap();
    drop(gone);
    let relay =
        Running::start_before(TcpListener::bind("127.0.0.1:0").unwrap(), upstream, Settings::default());
    for _ in 0..3 {
        let mut client = TcpStream::connect(relay.address).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert_eq!(relay.stop().aborted, 3);
}
