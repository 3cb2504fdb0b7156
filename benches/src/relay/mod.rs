//! A bare io_uring relay of bytes, one upstream connection for each client, no HTTP. No proxy can cost less,
//! so all proxies are compared with it. It has one thread and one ring, and sends the very buffer that was
//! received.

mod ring;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use io_uring::cqueue;
use ring::{Chunk, GATHER_MAX, Ring};

/// The relay's limits.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The most connections at a time. A further one is accepted and closed.
    pub connections: u32,
    /// Submission queue entries, a power of two. The completion queue has four times as many.
    pub entries: u32,
    /// Receive buffers, a power of two, at most 32768.
    pub buffers: u16,
    /// The size of a receive buffer in bytes.
    pub buffer_size: u16,
    /// The buffer bytes that one direction may queue before its receive is stopped. One bundle may still
    /// arrive until it has stopped.
    pub queue_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 4096,
            entries: 1024,
            buffers: 4096,
            buffer_size: 4096,
            queue_bytes_max: 256 << 10,
        }
    }
}

/// Counts of the ring's work.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Calls of io_uring_enter(2).
    pub enters: u64,
    /// Completions seen.
    pub completions: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Receives that were stopped because too much was queued.
    pub paused: u64,
    /// Receives that found no buffer.
    pub starved: u64,
    /// Connections that ended by an error.
    pub aborted: u64,
}

/// The operation that a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Accept,
    Control,
    /// A step whose result changes nothing: socket, options, cancel, shutdown, close.
    Step,
    Connect,
    Receive,
    Send,
}

const KINDS: [Kind; 6] = [Kind::Accept, Kind::Control, Kind::Step, Kind::Connect, Kind::Receive, Kind::Send];

const fn token(kind: Kind, index: u32) -> u64 {
    (kind as u64) << 32 | index as u64
}

/// The state of a direction's receive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Receive {
    /// The kernel has no receive.
    #[default]
    Idle,
    Armed,
    /// A cancel was sent; the receive's last completion is still to come.
    Stopping,
    /// The receive found no buffer.
    Starved,
    /// The peer sent its end.
    Ended,
}

/// One direction: the bytes received from direct descriptor `i`, in order. They are sent to the connection's
/// other descriptor.
#[derive(Debug, Default)]
struct Flow {
    receive: Receive,
    /// The end has been passed on.
    shut: bool,
    /// How many chunks at the queue's front are being sent.
    sending: usize,
    /// How many bytes these chunks have.
    sending_bytes: i32,
    queue: VecDeque<Chunk>,
}

/// A connection, by the descriptor of its client.
///
/// Vacant -accept-> Opening -connected-> Open -both ends shut-> Ending -nothing in flight-> Closing -closed->
/// Vacant. An error leads from Opening or Open to Aborting, which cancels everything and then closes with a
/// reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Vacant,
    Opening,
    Open,
    Ending,
    Aborting,
    Closing,
}

#[derive(Clone, Copy, Debug, Default)]
struct Connection {
    state: State,
    /// Operations whose last completion has not come.
    in_flight: u32,
}

/// The relay. Descriptors below `connections` belong to clients. The upstream connection of client `i` has
/// the descriptor `connections + i`.
pub struct Relay<'a> {
    ring: Ring,
    settings: Settings,
    listener: &'a TcpListener,
    connections: Vec<Connection>,
    flows: Vec<Flow>,
    starved: VecDeque<u32>,
    queue_max: usize,
    accepting: bool,
    counts: Counts,
}

impl<'a> Relay<'a> {
    /// A relay for the calling thread. The listener must be blocking, else io_uring reports EAGAIN instead of
    /// waiting.
    ///
    /// # Errors
    /// The kernel's io_uring lacks a feature, or memory is short (ENOMEM).
    pub fn new(settings: Settings, listener: &'a TcpListener, upstream: SocketAddr) -> io::Result<Self> {
        let Settings { connections, entries, buffers, buffer_size, queue_bytes_max } = settings;
        let slots = connections as usize;
        Ok(Self {
            ring: Ring::new(entries, connections, buffers, buffer_size, upstream)?,
            settings,
            listener,
            connections: vec![Connection::default(); slots],
            flows: std::iter::repeat_with(Flow::default).take(slots * 2).collect(),
            starved: VecDeque::new(),
            queue_max: (queue_bytes_max / usize::from(buffer_size)).max(2),
            accepting: false,
            counts: Counts::default(),
        })
    }

    /// Relays until `on_control` says to end. It is called each time `control` is readable.
    ///
    /// # Errors
    /// The ring fails.
    pub fn run(
        &mut self,
        control: BorrowedFd<'_>,
        mut on_control: impl FnMut(&Counts) -> ControlFlow<()>,
    ) -> io::Result<Counts> {
        self.ring.watch(control, token(Kind::Control, 0))?;
        self.accept()?;
        let mut batch = Vec::new();
        loop {
            self.ring.turn(&mut batch)?;
            for completion in batch.drain(..) {
                let kind = KINDS[(completion.user_data() >> 32) as usize];
                if kind == Kind::Control {
                    if on_control(&self.counts()).is_break() {
                        return Ok(self.counts());
                    }
                    if !cqueue::more(completion.flags()) {
                        self.ring.watch(control, token(Kind::Control, 0))?;
                    }
                    continue;
                }
                self.handle(kind, &completion)?;
            }
            if !self.starved.is_empty() {
                self.feed_starved()?;
            }
        }
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { enters: self.ring.enters(), completions: self.ring.completions(), ..self.counts }
    }

    const fn other(&self, index: u32) -> u32 {
        let clients = self.settings.connections;
        if index < clients { index + clients } else { index - clients }
    }

    const fn client(&self, index: u32) -> u32 {
        let clients = self.settings.connections;
        if index < clients { index } else { index - clients }
    }

    const fn connection(&mut self, index: u32) -> &mut Connection {
        let client = self.client(index);
        &mut self.connections.as_mut_slice()[client as usize]
    }

    const fn flow(&mut self, index: u32) -> &mut Flow {
        &mut self.flows.as_mut_slice()[index as usize]
    }

    fn handle(&mut self, kind: Kind, completion: &cqueue::Entry) -> io::Result<()> {
        let index = completion.user_data() as u32;
        let more = cqueue::more(completion.flags());
        let result = completion.result();
        if kind == Kind::Accept {
            return self.accepted(result, more);
        }
        if !more {
            self.connection(index).in_flight -= 1;
        }
        match kind {
            Kind::Receive => self.received(index, completion, more)?,
            Kind::Send => self.sent(index, result)?,
            Kind::Connect => self.connected(index, result)?,
            Kind::Step | Kind::Accept | Kind::Control => {}
        }
        let Connection { state, in_flight } = *self.connection(index);
        if in_flight == 0 && !matches!(state, State::Open | State::Opening) {
            self.settle(index)?;
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        self.accepting = true;
        self.ring.accept(self.listener.as_fd(), token(Kind::Accept, 0))
    }

    fn accepted(&mut self, result: i32, more: bool) -> io::Result<()> {
        self.accepting = more;
        if let Ok(index) = u32::try_from(result) {
            self.counts.accepted += 1;
            let connection = self.connection(index);
            assert_eq!(
                connection.state,
                State::Vacant,
                "a descriptor is used again only after its connection's end"
            );
            *connection = Connection { state: State::Opening, in_flight: 3 };
            let upstream = self.other(index);
            let step = token(Kind::Step, index);
            self.ring.open(upstream, [step, step, token(Kind::Connect, index)])?;
        }
        // If no place is free, the end of the next connection arms the accept again.
        let full = matches!(-result, libc::ENFILE | libc::EMFILE | libc::ENOMEM);
        if !more && (!full || self.connections.iter().all(|connection| connection.state == State::Vacant)) {
            self.accept()?;
        }
        Ok(())
    }

    fn connected(&mut self, index: u32, result: i32) -> io::Result<()> {
        if result < 0 {
            return self.abort(index);
        }
        if self.connection(index).state == State::Opening {
            self.connection(index).state = State::Open;
            self.receive(index)?;
            self.receive(self.other(index))?;
        }
        Ok(())
    }

    fn receive(&mut self, index: u32) -> io::Result<()> {
        self.connection(index).in_flight += 1;
        self.flow(index).receive = Receive::Armed;
        self.ring.receive(index, token(Kind::Receive, index))
    }

    fn received(&mut self, index: u32, completion: &cqueue::Entry, more: bool) -> io::Result<()> {
        let queue_max = self.queue_max;
        let open = self.connection(index).state == State::Open;
        let result = completion.result();
        let Self { ring, flows, .. } = self;
        let flow = &mut flows[index as usize];
        if !more {
            flow.receive = Receive::Idle;
        }
        ring.take(completion, |chunk| flow.queue.push_back(chunk));
        if !open {
            return Ok(());
        }
        if result > 0 {
            let stop = flow.receive == Receive::Armed && flow.queue.len() > queue_max;
            if flow.sending == 0 {
                self.send(index)?;
            }
            if stop {
                self.stop_receive(index)?;
            }
        }
        if more {
            return Ok(());
        }
        match -result {
            0 => {
                self.flow(index).receive = Receive::Ended;
                self.pass_end(index)
            }
            libc::ENOBUFS => {
                self.counts.starved += 1;
                self.flow(index).receive = Receive::Starved;
                self.ring.offer_more();
                self.starved.push_back(index);
                Ok(())
            }
            // The receive was cancelled, or the kernel ended it for its own reasons.
            libc::ECANCELED | i32::MIN..=-1 => self.resume_receive(index),
            _ => self.abort(index),
        }
    }

    fn stop_receive(&mut self, index: u32) -> io::Result<()> {
        self.counts.paused += 1;
        self.flow(index).receive = Receive::Stopping;
        self.connection(index).in_flight += 1;
        self.ring.cancel(token(Kind::Receive, index), token(Kind::Step, index))
    }

    /// Arms a stopped receive again once half of the bytes that may be queued have gone.
    fn resume_receive(&mut self, index: u32) -> io::Result<()> {
        let mark = self.queue_max / 2;
        let flow = self.flow(index);
        if flow.receive == Receive::Idle && flow.queue.len() <= mark { self.receive(index) } else { Ok(()) }
    }

    /// Arms as many starved receives as there are unused buffers: each takes at least one.
    fn feed_starved(&mut self) -> io::Result<()> {
        for _ in 0..self.ring.unused() {
            let Some(index) = self.starved.pop_front() else { return Ok(()) };
            if self.connection(index).state == State::Open {
                self.flow(index).receive = Receive::Idle;
                self.resume_receive(index)?;
            }
        }
        Ok(())
    }

    fn send(&mut self, index: u32) -> io::Result<()> {
        let to = self.other(index);
        let tag = token(Kind::Send, index);
        self.connection(index).in_flight += 1;
        let Self { ring, flows, .. } = self;
        let flow = &mut flows[index as usize];
        flow.sending = flow.queue.len().min(GATHER_MAX);
        let sending = flow.queue.iter().take(flow.sending).copied();
        flow.sending_bytes = sending.clone().map(|chunk| i32::from(chunk.length.cast_signed())).sum();
        match flow.queue.front() {
            Some(&chunk) if flow.sending == 1 => ring.send(to, chunk, tag),
            _ => ring.send_several(to, sending, tag),
        }
    }

    fn sent(&mut self, index: u32, result: i32) -> io::Result<()> {
        let open = self.connection(index).state == State::Open;
        let Self { ring, flows, .. } = self;
        let flow = &mut flows[index as usize];
        let whole = result == flow.sending_bytes;
        flow.queue.drain(..flow.sending).for_each(|chunk| ring.give_back(chunk));
        flow.sending = 0;
        if !open {
            return Ok(());
        }
        if !whole {
            return self.abort(index);
        }
        if flow.queue.is_empty() {
            if flow.receive == Receive::Armed {
                return Ok(());
            }
            self.pass_end(index)?;
        } else {
            self.send(index)?;
        }
        self.resume_receive(index)
    }

    /// Passes the end on once all bytes before it are sent. When both directions have ended, the connection
    /// ends.
    fn pass_end(&mut self, index: u32) -> io::Result<()> {
        let other = self.other(index);
        let flow = self.flow(index);
        if flow.receive != Receive::Ended || !flow.queue.is_empty() || flow.shut {
            return Ok(());
        }
        flow.shut = true;
        if self.flow(other).shut {
            self.connection(index).state = State::Ending;
            return Ok(());
        }
        self.connection(index).in_flight += 1;
        self.ring.shutdown(other, token(Kind::Step, index))
    }

    /// Gives a connection up: operations in flight are cancelled, and both sides will see a reset.
    fn abort(&mut self, index: u32) -> io::Result<()> {
        self.counts.aborted += 1;
        let client = self.client(index);
        self.connection(index).state = State::Aborting;
        for side in [client, self.other(client)] {
            let step = token(Kind::Step, side);
            if matches!(self.flow(side).receive, Receive::Armed | Receive::Stopping) {
                self.connection(index).in_flight += 1;
                self.ring.cancel(token(Kind::Receive, side), step)?;
            }
            if self.flow(side).sending > 0 {
                self.connection(index).in_flight += 1;
                self.ring.cancel(token(Kind::Send, side), step)?;
            }
        }
        Ok(())
    }

    /// Takes the next step of a connection that ends and has no operation in flight.
    fn settle(&mut self, index: u32) -> io::Result<()> {
        let client = self.client(index);
        let upstream = self.other(client);
        let state = self.connection(client).state;
        if matches!(state, State::Closing | State::Vacant) {
            *self.connection(client) = Connection::default();
            return if self.accepting { Ok(()) } else { self.accept() };
        }
        for side in [upstream, client] {
            let Self { ring, flows, .. } = self;
            let flow = &mut flows[side as usize];
            flow.queue.drain(..).for_each(|chunk| ring.give_back(chunk));
            if flow.receive == Receive::Starved {
                self.starved.retain(|&starved| starved != side);
            }
            // The queue keeps its memory for the next connection.
            (flow.receive, flow.shut, flow.sending) = (Receive::Idle, false, 0);
            if state == State::Aborting {
                self.connection(client).in_flight += 1;
                self.ring.reset_on_close(side, token(Kind::Step, client))?;
            }
            self.connection(client).in_flight += 1;
            self.ring.close(side, token(Kind::Step, client))?;
        }
        self.connection(client).state = State::Closing;
        Ok(())
    }
}
