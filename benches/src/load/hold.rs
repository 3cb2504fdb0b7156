//! Idle keep-alive connections: each makes a few requests, then nothing more. At the end, the connections
//! that are still open are counted.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::poll::Poll;
use super::response::Reader;

/// After this time without any progress, the run gives up on the connections that are not ready.
const STALL_MAX: Duration = Duration::from_secs(30);
/// The token of the descriptor that ends the holding.
const END: u64 = u64::MAX;

/// The connections to hold.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address to connect to.
    pub target: SocketAddr,
    /// The number of connections.
    pub count: usize,
    /// Source addresses, used in turn. If empty, the kernel chooses.
    pub sources: Vec<IpAddr>,
    /// Path and query.
    pub path: String,
    /// Requests on each connection before it idles.
    pub requests: u32,
    /// The number of connections that connect or send requests at a time.
    pub at_once: usize,
}

struct Connection {
    stream: TcpStream,
    is_connected: bool,
    requests_left: u32,
    /// Freed when the connection idles, so that a held connection costs little.
    reader: Option<Box<Reader>>,
}

/// The held connections; `None` in the place of a closed one.
pub struct Held {
    poll: Poll,
    connections: Vec<Option<Connection>>,
}

/// Opens all connections and makes their requests.
///
/// # Errors
/// The first connection that cannot be opened, is refused, or gets a status other than 2xx or 3xx. Also no
/// progress for 30 s.
pub fn open(settings: &Settings) -> io::Result<Held> {
    let request = super::request(settings.target, &settings.path);
    let mut poll = Poll::new()?;
    let mut connections: Vec<Option<Connection>> = Vec::with_capacity(settings.count);
    let (mut ready, mut give_up) = (0, Instant::now() + STALL_MAX);
    let mut events = Vec::new();
    while ready < settings.count {
        while connections.len() < settings.count && connections.len() - ready < settings.at_once.max(1) {
            let index = connections.len();
            let source = settings.sources.get(index % settings.sources.len().max(1)).copied();
            let fd = super::start_connect(settings.target, source).map_err(|error| at(index, &error))?;
            poll.add(&fd, index as u64)?;
            connections.push(Some(Connection {
                stream: fd.into(),
                is_connected: false,
                requests_left: settings.requests,
                reader: Some(Box::default()),
            }));
        }
        poll.wait(Some(Duration::from_millis(200)), &mut events)?;
        for (index, flags) in events.drain(..) {
            let index = index as usize;
            let Some(Some(connection)) = connections.get_mut(index) else { continue };
            if connection.reader.is_some()
                && connection.advance(flags, &request).map_err(|error| at(index, &error))?
            {
                connection.reader = None;
                ready += 1;
                give_up = Instant::now() + STALL_MAX;
            } else if connection.reader.is_none() && !is_alive(&mut connection.stream) {
                return Err(at(index, &"closed while others were being opened"));
            }
        }
        if Instant::now() > give_up {
            return Err(io::Error::new(
                ErrorKind::TimedOut,
                format!("{ready} of {} ready, and no progress", settings.count),
            ));
        }
    }
    Ok(Held { poll, connections })
}

fn at(index: usize, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("connection {index}: {error}"))
}

impl Connection {
    /// Does the next step. True if nothing is left to do.
    fn advance(&mut self, flags: EpollFlags, request: &[u8]) -> io::Result<bool> {
        if !self.is_connected {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            if !flags.contains(EpollFlags::EPOLLOUT) {
                return Ok(false);
            }
            self.is_connected = true;
            return self.ask(request);
        }
        let mut buffer = [0; 16 << 10];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    let reader = self.reader.get_or_insert_default();
                    let Some(response) =
                        reader.feed(&buffer[..count]).map_err(|_| io::Error::other("no HTTP response"))?
                    else {
                        continue;
                    };
                    if response.close || !(200..400).contains(&response.status) {
                        return Err(io::Error::other(format!(
                            "status {}, close {}",
                            response.status, response.close
                        )));
                    }
                    if self.ask(request)? {
                        return Ok(true);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends the next request. True if there is none left.
    fn ask(&mut self, request: &[u8]) -> io::Result<bool> {
        if self.requests_left == 0 {
            return Ok(true);
        }
        self.requests_left -= 1;
        self.stream.write_all(request)?;
        Ok(false)
    }
}

/// Whether neither an end nor a reset has come. Stray bytes are thrown away.
fn is_alive(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

impl Held {
    /// Holds the connections until `end` is readable or closed. Returns how many are still open.
    ///
    /// # Errors
    /// epoll fails.
    pub fn hold(mut self, end: BorrowedFd<'_>) -> io::Result<usize> {
        self.poll.add(end, END)?;
        let mut events = Vec::new();
        let mut is_over = false;
        loop {
            // Events from before the end are still handled.
            self.poll.wait(is_over.then_some(Duration::ZERO), &mut events)?;
            if is_over && events.is_empty() {
                return Ok(self.connections.iter().flatten().count());
            }
            for (token, flags) in events.drain(..) {
                if token == END {
                    is_over |=
                        flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
                } else if let Some(place) = self.connections.get_mut(token as usize) {
                    place.take_if(|connection| !is_alive(&mut connection.stream));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
