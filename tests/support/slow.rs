//! Many slow clients on one thread. Their sockets are non-blocking, and each moves a few bytes at every tick.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::Dial;

/// How each client behaves at a tick.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    /// Sends a few bytes of a request body.
    Upload {
        /// The request's Content-Length, in bytes.
        length: u64,
        /// Bytes per tick.
        step: usize,
    },
    /// Reads a few bytes of a response, with a small receive buffer.
    Read {
        /// Bytes per tick.
        step: usize,
    },
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    moved: AtomicU64,
    ended: AtomicU64,
}

/// A crowd of slow clients; all close on drop.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Connects `count` clients. Each sends a request for `target` and then acts by its habit every `tick`.
    #[must_use]
    pub fn start(address: SocketAddr, count: usize, target: &str, habit: Habit, tick: Duration) -> Self {
        let receive_buffer = matches!(habit, Habit::Read { .. }).then_some(4096);
        let dial = Dial { source: None, receive_buffer };
        let head = match habit {
            Habit::Upload { length, .. } => {
                format!("POST {target} HTTP/1.1\r\nHost: slow.example\r\nContent-Length: {length}\r\n\r\n")
            }
            Habit::Read { .. } => format!("GET {target} HTTP/1.1\r\nHost: slow.example\r\n\r\n"),
        };
        let connect = |_| {
            let mut stream = dial.connect(address, Duration::from_secs(10)).expect("a slow client connects");
            stream.write_all(head.as_bytes()).expect("a slow client asks");
            stream
        };
        Self::of((0..count).map(connect).collect(), habit, tick)
    }

    /// Clients that have already sent their request, in plain text or TLS: a reader need not decode its
    /// bytes.
    #[must_use]
    pub fn of(streams: Vec<TcpStream>, habit: Habit, tick: Duration) -> Self {
        let quiet =
            |stream: TcpStream| stream.set_nonblocking(true).map(|()| Some(stream)).expect("non-blocking");
        let mut streams: Vec<Option<TcpStream>> = streams.into_iter().map(quiet).collect();
        let shared = Arc::new(Shared::default());
        let state = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            while !state.stop.load(Ordering::SeqCst) {
                for slot in &mut streams {
                    let Some(stream) = slot else { continue };
                    if let Some(moved) = step(stream, habit) {
                        state.moved.fetch_add(moved, Ordering::SeqCst);
                    } else {
                        state.ended.fetch_add(1, Ordering::SeqCst);
                        *slot = None;
                    }
                }
                std::thread::sleep(tick);
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Bytes that all clients have moved so far.
    #[must_use]
    pub fn moved(&self) -> u64 {
        self.shared.moved.load(Ordering::SeqCst)
    }

    /// Clients whose connection Sluice closed.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.shared.ended.load(Ordering::SeqCst)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Moves bytes once and returns how many; `None` if the connection is over.
fn step(stream: &mut TcpStream, habit: Habit) -> Option<u64> {
    let outcome = match habit {
        Habit::Upload { step, .. } => stream.write(&[b'u'; 4096][..step]),
        Habit::Read { step } => stream.read(&mut [0; 4096][..step]),
    };
    match outcome {
        Ok(0) => None,
        Ok(count) => Some(count as u64),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Some(0),
        Err(_) => None,
    }
}
