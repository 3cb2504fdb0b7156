//! Open-loop load: requests arrive at fixed times, however slow the server is, and wait while no connection
//! is free. A latency counts from the time at which a request was due. So a server's pause shows in all
//! requests that it delayed.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;

use super::histogram::Histogram;
use super::poll::Poll;
use super::response::{Malformed, Reader, Response};

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long the run waits for answers after the last arrival.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The pause before a connection that failed to open is tried again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// The load to offer.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The address that gets the requests.
    pub target: SocketAddr,
    /// Path and query.
    pub path: String,
    /// Arrivals per second. The time between two is rounded to whole nanoseconds.
    pub rate: u32,
    /// The most requests under way at a time.
    pub connections: u32,
    /// The time in which requests arrive.
    pub duration: Duration,
    /// The time from the start in which nothing is recorded.
    pub warm_up: Duration,
}

/// The results for requests that were due after the warm-up.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests that became due.
    pub scheduled: u64,
    /// Requests answered with a 2xx or 3xx status.
    pub completed: u64,
    /// Requests with another status, cut off, or without an answer by the end.
    pub errors: u64,
    /// The errors that had no answer at the end.
    pub unfinished: u64,
    /// The time in which the requests became due, in seconds.
    pub seconds: f64,
    /// Answers in that time, per second.
    pub rate: f64,
    /// Nanoseconds from due to answered. An unfinished request counts with its age at the end.
    pub latencies: Histogram,
}

/// A request: when it was due, in nanoseconds from the start, and whether it was tried once already. A
/// connection that closed unused causes a second try.
#[derive(Clone, Copy, Debug)]
struct Due {
    at: u64,
    is_retry: bool,
}

enum State {
    Connecting,
    Idle,
    Busy(Due),
    Down,
}

struct Connection {
    stream: Option<TcpStream>,
    state: State,
    reader: Reader,
    /// Distinguishes this connection's events from events of the earlier connection in its place.
    generation: u32,
    /// The connection has answered before, so the server may rightly close it at any time.
    has_served: bool,
}

struct Load<'a> {
    settings: &'a Settings,
    request: Vec<u8>,
    poll: Poll,
    connections: Vec<Connection>,
    idle: VecDeque<usize>,
    down: Vec<usize>,
    retries: VecDeque<Due>,
    start: Instant,
    /// Nanoseconds between two arrivals.
    spacing: u64,
    /// Arrivals that were sent or are in `retries`.
    sent: u64,
    total: u64,
    warm_up: u64,
    end: u64,
    answered_in_time: u64,
    report: Report,
    buffer: Vec<u8>,
}

/// Offers the load and returns the results.
///
/// # Errors
/// The target cannot be reached at the start, or epoll fails.
pub fn run(settings: &Settings) -> io::Result<Report> {
    let mut load = Load::new(settings)?;
    load.connect_all()?;
    load.offer()?;
    Ok(load.finish())
}

const fn token(index: usize, generation: u32) -> u64 {
    (index as u64) << 32 | generation as u64
}

impl<'a> Load<'a> {
    fn new(settings: &'a Settings) -> io::Result<Self> {
        let spacing = 1_000_000_000 / u64::from(settings.rate.max(1));
        let (end, warm_up) = (nanos(settings.duration), nanos(settings.warm_up));
        Ok(Self {
            settings,
            request: super::request(settings.target, &settings.path),
            poll: Poll::new()?,
            connections: Vec::new(),
            idle: VecDeque::new(),
            down: Vec::new(),
            retries: VecDeque::new(),
            start: Instant::now(),
            spacing,
            sent: 0,
            total: end.div_ceil(spacing),
            warm_up,
            end,
            answered_in_time: 0,
            report: Report::default(),
            buffer: vec![0; 64 << 10],
        })
    }

    fn connect_all(&mut self) -> io::Result<()> {
        for index in 0..self.settings.connections as usize {
            self.connections.push(Connection {
                stream: None,
                state: State::Down,
                reader: Reader::default(),
                generation: 0,
                has_served: false,
            });
            self.connect(index);
        }
        let give_up = Instant::now() + CONNECT_MAX;
        let mut events = Vec::new();
        while self.idle.len() < self.connections.len() {
            if Instant::now() > give_up || !self.down.is_empty() {
                let count = self.connections.len() - self.idle.len();
                return Err(io::Error::other(format!(
                    "{count} connections to {} failed",
                    self.settings.target
                )));
            }
            self.poll.wait(Some(Duration::from_millis(10)), &mut events)?;
            for (token, flags) in events.drain(..) {
                self.handle(token, flags);
            }
        }
        self.start = Instant::now();
        Ok(())
    }

    fn connect(&mut self, index: usize) {
        let generation = self.connections[index].generation.wrapping_add(1);
        let opened = super::start_connect(self.settings.target, None)
            .and_then(|fd| self.poll.add(&fd, token(index, generation)).map(|()| TcpStream::from(fd)));
        let state = if opened.is_ok() { State::Connecting } else { State::Down };
        if opened.is_err() {
            self.down.push(index);
        }
        self.connections[index] = Connection {
            stream: opened.ok(),
            state,
            reader: Reader::default(),
            generation,
            has_served: false,
        };
    }

    fn now(&self) -> u64 {
        nanos(self.start.elapsed())
    }

    fn offer(&mut self) -> io::Result<()> {
        let give_up = self.end + nanos(DRAIN_MAX);
        let mut events = Vec::new();
        let mut reconnect_at = 0;
        loop {
            let now = self.now();
            self.send_due(now);
            if now >= reconnect_at {
                reconnect_at = now + nanos(RECONNECT_PAUSE);
                std::mem::take(&mut self.down).into_iter().for_each(|index| self.connect(index));
            }
            let is_all_sent = self.sent == self.total && self.retries.is_empty();
            if now >= give_up || (is_all_sent && now >= self.end && !self.is_any_busy()) {
                return Ok(());
            }
            // If no connection is free, the next event is an answer. A due arrival must not make the loop
            // spin.
            let next = if self.sent < self.total { self.sent * self.spacing } else { self.end };
            let wake = if next > now { next } else { give_up };
            let wake = if self.down.is_empty() { wake } else { wake.min(reconnect_at) };
            self.poll.wait(Some(Duration::from_nanos(wake.saturating_sub(now))), &mut events)?;
            for (token, flags) in events.drain(..) {
                self.handle(token, flags);
            }
        }
    }

    fn is_any_busy(&self) -> bool {
        self.connections.iter().any(|connection| matches!(connection.state, State::Busy(_)))
    }

    fn send_due(&mut self, now: u64) {
        while !self.idle.is_empty() {
            let due = if let Some(due) = self.retries.pop_front() {
                due
            } else if self.sent < self.total && self.sent * self.spacing <= now {
                self.sent += 1;
                Due { at: (self.sent - 1) * self.spacing, is_retry: false }
            } else {
                return;
            };
            // The loop's condition says that `idle` is not empty.
            if let Some(index) = self.idle.pop_front() {
                self.send(index, due);
            }
        }
    }

    fn send(&mut self, index: usize, due: Due) {
        let connection = &mut self.connections[index];
        connection.state = State::Busy(due);
        let written = connection.stream.as_mut().map(|stream| stream.write(&self.request));
        // An idle connection's socket buffer is empty, so a partial write of a small request counts as an
        // error.
        if !matches!(written, Some(Ok(count)) if count == self.request.len()) {
            self.lost(index);
        }
    }

    fn handle(&mut self, token: u64, flags: EpollFlags) {
        let index = (token >> 32) as usize;
        let connection = &mut self.connections[index];
        if connection.generation != token as u32 {
            return;
        }
        if matches!(connection.state, State::Connecting) && flags.contains(EpollFlags::EPOLLOUT) {
            if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
                return self.lost(index);
            }
            connection.state = State::Idle;
            self.idle.push_back(index);
        }
        if flags.intersects(
            EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP,
        ) {
            self.read(index, flags);
        }
    }

    fn read(&mut self, index: usize, flags: EpollFlags) {
        loop {
            let Self { connections, buffer, .. } = self;
            let connection = &mut connections[index];
            let Some(stream) = connection.stream.as_mut() else { return };
            match stream.read(buffer) {
                Ok(0) => return self.lost(index),
                Ok(count) => {
                    match connection.reader.feed(&buffer[..count]) {
                        Ok(None) => {}
                        Ok(Some(response)) => self.answered(index, response),
                        Err(Malformed) => return self.lost(index),
                    }
                    // Fewer bytes than the buffer holds means that no more are there. An end that came with
                    // them shows in the flags.
                    if count < self.buffer.len() && !flags.contains(EpollFlags::EPOLLRDHUP) {
                        return;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return self.lost(index),
            }
        }
    }

    fn answered(&mut self, index: usize, response: Response) {
        let now = self.now();
        let connection = &mut self.connections[index];
        let State::Busy(due) = connection.state else { return self.lost(index) };
        connection.has_served = true;
        connection.state = State::Idle;
        if now >= self.warm_up && now < self.end {
            self.answered_in_time += 1;
        }
        if !(200..400).contains(&response.status) {
            self.failed(due);
        } else if due.at >= self.warm_up {
            self.report.completed += 1;
            self.report.latencies.record(now - due.at);
        }
        if response.close {
            self.connect(index);
        } else {
            self.idle.push_back(index);
        }
    }

    /// Handles a connection's end. If the server may have closed it as idle before it saw the request, the
    /// request goes to another connection.
    fn lost(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.stream = None;
        let is_stale = connection.has_served && connection.reader.is_fresh();
        match std::mem::replace(&mut connection.state, State::Down) {
            State::Busy(due) if is_stale && !due.is_retry => {
                self.retries.push_back(Due { is_retry: true, ..due })
            }
            State::Busy(due) => self.failed(due),
            State::Idle => self.idle.retain(|&idle| idle != index),
            State::Down => return,
            State::Connecting => {}
        }
        self.connections[index].generation = self.connections[index].generation.wrapping_add(1);
        self.down.push(index);
    }

    const fn failed(&mut self, due: Due) {
        if due.at >= self.warm_up {
            self.report.errors += 1;
        }
    }

    fn finish(mut self) -> Report {
        let now = self.now();
        let mut waiting: Vec<u64> = self.retries.iter().map(|due| due.at).collect();
        waiting.extend(self.connections.iter().filter_map(|connection| match connection.state {
            State::Busy(due) => Some(due.at),
            _ => None,
        }));
        waiting.extend((self.sent..self.total).map(|number| number * self.spacing));
        for at in waiting.into_iter().filter(|&at| at >= self.warm_up) {
            self.report.unfinished += 1;
            self.report.errors += 1;
            self.report.latencies.record(now - at);
        }
        let seconds = (self.end - self.warm_up) as f64 / 1e9;
        Report {
            scheduled: self.total - self.warm_up.div_ceil(self.spacing),
            seconds,
            rate: self.answered_in_time as f64 / seconds,
            ..self.report
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
