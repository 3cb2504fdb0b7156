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

    /// Tells a client that its request is in work, and when the outcome is known at the latest.
    pub fn begun(&mut self, id: ClientId, within: Duration) {
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else { return };
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let mut line = serde_json::to_vec(&Response::Begun { within_ms }).unwrap_or_default();
        line.push(b'\n');
        // The first bytes on the connection, so its socket takes them all. A client that is gone is dropped
        // by the next `ready`.
        let _ = client.stream.write(&line);
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
mod tests;
