//! The control socket's clients (`sluice stop`, `drain`, `status`): one line of JSON in, one out. At most
//! `CLIENTS_MAX` at a time, each with a deadline for asking and one for taking its answer; the wait for the
//! outcome in between is bounded by the state table.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::poll::PollFlags;

use crate::control::messages::{Request, Response};
use crate::time::Time;

/// Clients at a time; more wait in the socket's own queue.
pub const CLIENTS_MAX: usize = 16;
/// For asking, and again for taking the answer.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// A request line is shorter.
const REQUEST_BYTES_MAX: usize = 1024;

/// Names a client; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

#[derive(Debug)]
enum Phase {
    Asking {
        line: Vec<u8>,
        deadline: Time,
    },
    /// For its outcome.
    Waiting,
    Taking {
        left: Vec<u8>,
        deadline: Time,
    },
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    stream: UnixStream,
    phase: Phase,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Clients {
    clients: Vec<Client>,
    next_id: u64,
}

impl Clients {
    /// Accepts clients while there is room.
    pub fn accept(&mut self, listener: &UnixListener, now: Time) {
        while self.has_room() {
            // An error is one of this client, or WouldBlock; either way poll tells when to come again.
            let Ok((stream, _)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.next_id += 1;
            let phase = Phase::Asking { line: Vec::new(), deadline: now + PATIENCE };
            self.clients.push(Client { id: ClientId(self.next_id), stream, phase });
        }
    }

    /// Whether `accept` would take one.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.clients.len() < CLIENTS_MAX
    }

    /// Descriptors and events to poll for.
    pub fn interests(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, PollFlags)> {
        self.clients.iter().map(|client| {
            let events = match client.phase {
                Phase::Asking { .. } => PollFlags::POLLIN,
                // POLLHUP and POLLERR come unasked.
                Phase::Waiting => PollFlags::empty(),
                Phase::Taking { .. } => PollFlags::POLLOUT,
            };
            (client.id, client.stream.as_fd(), events)
        })
    }

    /// The earliest deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        let deadlines = self.clients.iter().filter_map(|client| match client.phase {
            Phase::Asking { deadline, .. } | Phase::Taking { deadline, .. } => Some(deadline),
            Phase::Waiting => None,
        });
        deadlines.min()
    }

    /// Drops clients that are out of time.
    pub fn expire(&mut self, now: Time) {
        self.clients.retain(|client| match client.phase {
            Phase::Asking { deadline, .. } | Phase::Taking { deadline, .. } => now < deadline,
            Phase::Waiting => true,
        });
    }

    /// Something happened on a client's socket. A request, once its line is whole.
    pub fn ready(&mut self, id: ClientId, now: Time) -> Option<Request> {
        let index = self.clients.iter().position(|client| client.id == id)?;
        let client = &mut self.clients[index];
        let progress = match &mut client.phase {
            Phase::Asking { line, .. } => read_request(&mut client.stream, line),
            // Polled for nothing, so the client hung up. Its request is not taken back.
            Phase::Waiting => Progress::Gone,
            Phase::Taking { left, .. } => write_some(&mut client.stream, left),
        };
        match progress {
            Progress::More => None,
            Progress::Gone => {
                self.clients.swap_remove(index);
                None
            }
            Progress::Request(request) => {
                client.phase = Phase::Waiting;
                Some(request)
            }
            Progress::Nonsense(why) => {
                self.answer(id, &Response::Failed(why), now);
                None
            }
        }
    }

    /// Sends a client its answer, as far as its socket takes it now.
    pub fn answer(&mut self, id: ClientId, response: &Response, now: Time) {
        let Some(index) = self.clients.iter().position(|client| client.id == id) else { return };
        let mut left = serde_json::to_vec(response).unwrap_or_default();
        left.push(b'\n');
        let client = &mut self.clients[index];
        // Whether all of it went or the client is gone, the next `ready` finds out and drops the client.
        write_some(&mut client.stream, &mut left);
        client.phase = Phase::Taking { left, deadline: now + PATIENCE };
    }
}

enum Progress {
    More,
    Gone,
    Request(Request),
    Nonsense(String),
}

fn read_request(stream: &mut UnixStream, line: &mut Vec<u8>) -> Progress {
    let mut bytes = [0; REQUEST_BYTES_MAX];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Progress::Gone,
            Ok(count) => line.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Progress::Gone,
        }
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            return match serde_json::from_slice(&line[..end]) {
                Ok(request) => Progress::Request(request),
                Err(error) => {
                    Progress::Nonsense(format!("this supervisor does not know the request: {error}"))
                }
            };
        }
        if line.len() >= REQUEST_BYTES_MAX {
            return Progress::Nonsense("the request is too long".into());
        }
    }
}

/// `Gone` when there is nothing left to write, or nobody to take it.
fn write_some(stream: &mut UnixStream, left: &mut Vec<u8>) -> Progress {
    while !left.is_empty() {
        match stream.write(left) {
            Ok(0) => return Progress::Gone,
            Ok(count) => drop(left.drain(..count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Progress::Gone,
        }
    }
    Progress::Gone
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    struct Bench {
        _directory: tempfile::TempDir,
        path: std::path::PathBuf,
        listener: UnixListener,
        clients: Clients,
    }

    const NOW: Time = Time::from_nanos(1);

    impl Bench {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("directory");
            let path = directory.path().join("socket");
            let listener = UnixListener::bind(&path).expect("bind");
            listener.set_nonblocking(true).expect("nonblocking");
            Self { _directory: directory, path, listener, clients: Clients::default() }
        }

        fn connect(&mut self) -> (UnixStream, ClientId) {
            let stream = UnixStream::connect(&self.path).expect("connect");
            self.clients.accept(&self.listener, NOW);
            (stream, ClientId(self.clients.next_id))
        }
    }

    fn line(stream: UnixStream) -> String {
        let mut text = String::new();
        BufReader::new(stream).read_line(&mut text).expect("read");
        text
    }

    #[test]
    fn a_request_in_pieces_gets_its_answer_and_the_connection_ends() {
        let mut bench = Bench::new();
        let (mut stream, id) = bench.connect();
        stream.write_all(b"\"sta").expect("write");
        assert_eq!(bench.clients.ready(id, NOW), None);
        stream.write_all(b"tus\"\n").expect("write");
        assert_eq!(bench.clients.ready(id, NOW), Some(Request::Status));
        bench.clients.answer(id, &Response::Done("well".into()), NOW);
        assert_eq!(bench.clients.ready(id, NOW), None);
        assert_eq!(bench.clients.clients.len(), 0);
        assert_eq!(line(stream), "{\"done\":\"well\"}\n");
    }

    #[test]
    fn an_answer_larger_than_the_socket_arrives_whole() {
        let mut bench = Bench::new();
        let (mut stream, id) = bench.connect();
        stream.write_all(b"\"stop\"\n").expect("write");
        assert_eq!(bench.clients.ready(id, NOW), Some(Request::Stop));
        let text = "x".repeat(3 << 20);
        bench.clients.answer(id, &Response::Done(text.clone()), NOW);
        assert_eq!(bench.clients.clients.len(), 1, "it waits for the reader");
        let reader = std::thread::spawn(move || line(stream));
        while !bench.clients.clients.is_empty() {
            let mut fds: Vec<_> =
                bench.clients.interests().map(|(_, fd, events)| nix::poll::PollFd::new(fd, events)).collect();
            assert_eq!(nix::poll::poll(&mut fds, 5_000_u16).expect("poll"), 1);
            bench.clients.ready(id, NOW);
        }
        assert_eq!(reader.join().expect("reader").len(), text.len() + "{\"done\":\"\"}\n".len());
    }

    #[test]
    fn nonsense_too_long_lines_and_silence_end_the_client() {
        let mut bench = Bench::new();
        for nonsense in [b"\"dance\"\n".to_vec(), b"\xff\x00\n".to_vec(), vec![b'['; REQUEST_BYTES_MAX]] {
            let (mut stream, id) = bench.connect();
            stream.write_all(&nonsense).expect("write");
            assert_eq!(bench.clients.ready(id, NOW), None);
            assert_eq!(bench.clients.ready(id, NOW), None);
            assert!(line(stream).starts_with("{\"failed\":"));
        }
        let (stream, id) = bench.connect();
        drop(stream);
        assert_eq!(bench.clients.ready(id, NOW), None);
        assert!(bench.clients.clients.is_empty());
        let (_silent, _) = bench.connect();
        assert_eq!(bench.clients.next_deadline(), Some(NOW + PATIENCE));
        bench.clients.expire(NOW + PATIENCE);
        assert!(bench.clients.clients.is_empty());
    }

    #[test]
    fn the_number_of_clients_is_bounded_and_the_others_wait() {
        let mut bench = Bench::new();
        let streams: Vec<_> =
            (0..CLIENTS_MAX + 3).map(|_| UnixStream::connect(&bench.path).expect("connect")).collect();
        bench.clients.accept(&bench.listener, NOW);
        assert_eq!(bench.clients.clients.len(), CLIENTS_MAX);
        drop(streams);
        for id in 1..=CLIENTS_MAX as u64 {
            bench.clients.ready(ClientId(id), NOW);
        }
        bench.clients.accept(&bench.listener, NOW);
        assert_eq!(bench.clients.clients.len(), 3, "the rest's turn");
    }
}
