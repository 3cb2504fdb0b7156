//! The engine: one state machine over any ring that carries out its operations. It owns streams, listeners
//! and watches. Each loop turn submits operations that sessions queued, enters the ring once, handles
//! completions, fires timers, runs tasks.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use super::flow::Flow;
use super::handle::Io;
use super::seam::{Completion, Op, Ring};
use super::settings::Settings;
use super::shared::{Alarm, Shared};
use super::stream::{Inner, Phase, Stream, Tag};
use super::token::{Kind, Token};
use crate::time::Time;

/// How long a listener rests after an accept failed for want of descriptors or memory.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// The same after a failure that concerned one connection.
const ACCEPT_BACKOFF_SHORT: Duration = Duration::from_millis(4);
/// Rounds of tasks and reports in one loop turn.
const ROUNDS_MAX: usize = 8;

/// Counts of the engine since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries into the kernel.
    pub enters: u64,
    /// Completions handled, stale ones included.
    pub completions: u64,
    /// Completions for something that was gone.
    pub stale: u64,
    /// Receives that found no buffer.
    pub buffers_exhausted: u64,
    /// Bytes copied out of the ring's buffers.
    pub copied_bytes: u64,
    /// Sends cancelled to get their buffers back.
    pub sends_reclaimed: u64,
    /// Streams reset because they held the most when no buffer was left.
    pub evicted: u64,
    /// Closing streams that gave way to others.
    pub closings_ended: u64,
    /// Streams accepted.
    pub accepted: u64,
    /// Panics caught in tasks.
    pub panics: u64,
    /// Streams that hold a slot now.
    pub streams: u64,
    /// Buffers on loan now.
    pub buffers_loaned: u64,
    /// Bytes of the buffer budget in use now.
    pub budget_bytes: u64,
    /// Listening sockets that take no accept now.
    pub listeners_failing: u64,
}

/// The worker's answers to events.
pub trait Handler {
    /// A connection was accepted on a listening socket that was added with this tag. Dropping the stream
    /// resets it.
    fn accepted(&mut self, listener: Tag, stream: Stream);
    /// A parked stream has bytes, its end or an error to read. It is no longer parked.
    fn parked_ready(&mut self, stream: Stream, tag: Tag);
    /// A timer of `Io::timer_at` fired.
    fn timer(&mut self, tag: Tag);
    /// The watched descriptor became readable.
    fn command_ready(&mut self);
    /// The loop is about to enter the kernel.
    fn before_sleep(&mut self) {}
    /// The loop is back.
    fn after_wake(&mut self, _now: Time) {}
    /// An accept failed for one connection; EMFILE too when the engine had no slot left.
    fn accept_failed(&mut self, _errno: i32) {}
    /// The listening socket itself takes no accept any more: somebody who holds it too has shut it down, say.
    /// The engine tries on.
    fn listener_failed(&mut self, _listener: Tag) {}
}

/// One worker's engine. Everything it made lives on its thread.
pub struct Engine<R: Ring> {
    pub(super) shared: Rc<Shared>,
    ring: R,
    flow: Flow,
    /// Index = slot of the token, which is never another socket's.
    listeners: Vec<Listening<R::Listener>>,
    watches: Vec<OwnedFd>,
    completions: Vec<Completion>,
    fired: Vec<Alarm>,
    /// Listening sockets that take no accept.
    failing: usize,
    accepted: u64,
    stale: u64,
    completed: Cell<u64>,
}

struct Listening<L> {
    listener: L,
    tag: Tag,
    accept: Accept,
    /// The socket itself takes no accept, as far as is known.
    is_failing: bool,
    /// Its alarm is set.
    is_resting: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accept {
    /// Exactly one accept is in flight.
    Armed,
    /// Waits for its backoff.
    Resting,
    /// In flight, and its cancel too.
    Cancelling,
    /// None in flight, and none will be.
    Cancelled,
    /// In flight for the last time: it goes on until the listening socket is shut down, or it is cancelled.
    Last,
}

/// Errors of accept(2) that concern the listening socket and not a connection: it does not listen, or was
/// made non-blocking, or is none.
const fn is_of_the_listener(errno: i32) -> bool {
    matches!(errno, libc::EINVAL | libc::EAGAIN | libc::EBADF | libc::ENOTSOCK | libc::EOPNOTSUPP)
}

impl<R: Ring> Engine<R> {
    /// An engine over `ring`, on the thread that made it.
    #[must_use]
    pub fn new(ring: R, settings: Settings) -> Self {
        let shared = Shared::new(
            settings,
            Rc::clone(ring.pool()),
            ring.unacknowledged(),
            ring.unreported(),
            R::local_address,
            ring.now(),
        );
        Self {
            flow: Flow::new(Rc::clone(&shared)),
            shared,
            ring,
            listeners: Vec::new(),
            watches: Vec::new(),
            completions: Vec::new(),
            fired: Vec::new(),
            failing: 0,
            accepted: 0,
            stale: 0,
            completed: Cell::new(0),
        }
    }

    /// For sessions and the worker.
    #[must_use]
    pub fn io(&self) -> Io {
        Io::new(Rc::clone(&self.shared))
    }

    /// Accepts on a listening socket from the next turn on. Nobody else may have an accept armed on it.
    pub fn add_listener(&mut self, listener: R::Listener, tag: Tag) {
        self.listeners.push(Listening {
            listener,
            tag,
            accept: Accept::Resting,
            is_failing: false,
            is_resting: false,
        });
        self.arm_accept(self.listeners.len() - 1);
    }

    /// Accepts go on until the listening sockets are shut down, which is no failure then; nothing is armed
    /// again.
    pub fn let_accepts_end(&mut self) {
        for listening in &mut self.listeners {
            listening.accept = match listening.accept {
                Accept::Armed => Accept::Last,
                Accept::Resting => Accept::Cancelled,
                other => other,
            };
        }
    }

    /// Cancels all accepts. Connections accepted in between are real and still reported; `accepts_armed`
    /// tells when no more can come.
    pub fn cancel_accepts(&mut self) {
        for (index, listening) in self.listeners.iter_mut().enumerate() {
            match listening.accept {
                Accept::Armed | Accept::Last => {
                    listening.accept = Accept::Cancelling;
                    let target = Token::new(Kind::Accept, index as u32, 0);
                    self.ring.submit(Token::new(Kind::Discard, index as u32, 0), Op::Cancel { target });
                }
                Accept::Resting => listening.accept = Accept::Cancelled,
                Accept::Cancelling | Accept::Cancelled => {}
            }
        }
    }

    /// Listening sockets on which an accept is still in flight.
    #[must_use]
    pub fn accepts_armed(&self) -> usize {
        self.listeners
            .iter()
            .filter(|l| matches!(l.accept, Accept::Armed | Accept::Cancelling | Accept::Last))
            .count()
    }

    /// Reports `Handler::command_ready` whenever the descriptor becomes readable. Keeps a duplicate of it.
    pub fn watch(&mut self, fd: impl AsFd) -> std::io::Result<()> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let token = Token::new(Kind::Watch, self.watches.len() as u32, 0);
        self.ring.submit(token, Op::Watch { fd: fd.as_raw_fd() });
        self.watches.push(fd);
        Ok(())
    }

    /// One loop turn; waits until there is something to do.
    pub fn turn<H: Handler>(&mut self, handler: &mut H) -> std::io::Result<()> {
        self.flow.submit(&mut self.ring);
        handler.before_sleep();
        // It may have woken tasks.
        let timeout = self.timeout();
        self.ring.wait(timeout)?;
        let now = self.ring.now();
        self.shared.now.set(now);
        handler.after_wake(now);

        self.take_completions(handler);
        self.shared.wheel.borrow_mut().advance(now, &mut self.fired);
        if self.fired.iter().any(Alarm::ends_a_wait) {
            // Operations done in time must not look late because much else was done too, and this worker
            // comes late to it. Timers of idle connections do not need this: thousands fire each second, and
            // taking in everything at once leaves the cache.
            self.ring.catch_up()?;
            self.take_completions(handler);
        }
        let enters = self.ring.enters();
        self.act_on_timers(handler);
        if self.ring.enters() != enters {
            self.take_completions(handler);
        }
        self.run_tasks(handler);
        Ok(())
    }

    fn take_completions<H: Handler>(&mut self, handler: &mut H) {
        let mut completions = std::mem::take(&mut self.completions);
        loop {
            let enters = self.ring.enters();
            self.ring.completions(&mut completions);
            self.completed.set(self.completed.get() + completions.len() as u64);
            for completion in completions.drain(..) {
                self.complete(completion, handler);
            }
            // A full submission queue made the ring enter the kernel again. `Ring::unreported` knows nothing
            // of completions that wait in the queue: none may be left when tasks run.
            if self.ring.enters() == enters {
                break;
            }
        }
        self.completions = completions;
    }

    /// Streams that hold a slot.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.slots.borrow().used
    }

    /// Whether no task is ready and nothing waits to be submitted or reported.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.has_work()
    }

    /// The counts so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let pool = self.ring.pool();
        Stats {
            enters: self.ring.enters(),
            completions: self.completed.get(),
            stale: self.stale,
            buffers_exhausted: self.flow.counts.buffers_exhausted,
            copied_bytes: self.flow.counts.copied_bytes,
            sends_reclaimed: self.flow.counts.sends_reclaimed,
            evicted: self.flow.counts.evicted,
            closings_ended: self.flow.counts.closings_ended,
            accepted: self.accepted,
            panics: self.shared.executor.panics(),
            streams: self.streams() as u64,
            buffers_loaned: pool.loaned() as u64,
            budget_bytes: pool.budget_used() as u64,
            listeners_failing: self.failing as u64,
        }
    }

    /// Counts that must agree after every turn; for tests and the simulation.
    ///
    /// # Panics
    /// When they do not.
    pub fn check_invariants(&self) {
        self.ring.pool().check_invariants();
        let slots = self.shared.slots.borrow();
        let live = slots.entries.iter().filter_map(|entry| entry.state.as_ref());
        assert_eq!(live.clone().count(), slots.used, "slots in use");
        for state in live {
            let inner = state.inner.borrow();
            inner.sending.check_invariants();
            assert!(inner.phase != Phase::Closed, "a closed stream holds a slot");
            let ended = matches!(inner.phase, Phase::Ending { .. });
            assert!(
                !ended || inner.receiving.queue.is_empty() && inner.sending.is_empty(),
                "an ending stream holds bytes"
            );
            assert!(!inner.closing.is_submitted || inner.in_flight_ops() == 0, "closed under an operation");
        }
    }

    #[cfg(test)]
    pub(super) fn pool(&self) -> &super::buffers::BufferPool {
        self.ring.pool()
    }

    #[cfg(test)]
    pub(super) fn accepts(&self) -> impl Iterator<Item = Accept> + '_ {
        self.listeners.iter().map(|listening| listening.accept)
    }

    fn has_work(&self) -> bool {
        let shared = &self.shared;
        shared.executor.has_ready()
            || !shared.dirty.borrow().is_empty()
            || !shared.parked.borrow().is_empty()
            || self.flow.has_work()
    }

    fn timeout(&self) -> Option<Duration> {
        if self.has_work() {
            return Some(Duration::ZERO);
        }
        let wake = self.shared.wheel.borrow().next_wake();
        let timer = wake.map(|wake| wake.since(self.ring.now()));
        match (timer, self.flow.retry_after()) {
            (Some(timer), Some(retry)) => Some(timer.min(retry)),
            (timer, retry) => timer.or(retry),
        }
    }

    fn complete<H: Handler>(&mut self, completion: Completion, handler: &mut H) {
        let token = completion.token;
        match token.kind() {
            Kind::Accept => self.complete_accept(&completion, handler),
            Kind::Watch => {
                if completion.result >= 0 {
                    handler.command_ready();
                }
                if !completion.more
                    && let Some(fd) = self.watches.get(token.slot() as usize)
                {
                    self.ring.submit(token, Op::Watch { fd: fd.as_raw_fd() });
                }
            }
            Kind::Discard => {}
            _ => match self.shared.find(token.slot(), token.generation()) {
                Some(state) => self.flow.complete(&state, completion, &mut self.ring),
                None => self.stale += 1,
            },
        }
    }

    fn complete_accept<H: Handler>(&mut self, completion: &Completion, handler: &mut H) {
        let index = completion.token.slot() as usize;
        let Some(listening) = self.listeners.get_mut(index) else {
            self.stale += 1;
            return;
        };
        let tag = listening.tag;
        if !completion.more {
            listening.accept = match listening.accept {
                Accept::Cancelling | Accept::Cancelled | Accept::Last => Accept::Cancelled,
                Accept::Armed | Accept::Resting => Accept::Resting,
            };
        }
        let errno = -completion.result;
        if errno <= 0 {
            match self.adopt(completion.result) {
                Ok(stream) => {
                    self.accepted += 1;
                    self.set_failing(index, false);
                    handler.accepted(tag, stream);
                }
                Err(errno) => handler.accept_failed(errno),
            }
        } else if errno != libc::ECANCELED && self.listeners[index].accept != Accept::Cancelled {
            if !is_of_the_listener(errno) {
                handler.accept_failed(errno);
            } else if self.set_failing(index, true) {
                handler.listener_failed(tag);
            }
        }
        if self.listeners[index].accept == Accept::Resting {
            let backoff = match errno {
                libc::ECONNABORTED | libc::EINTR | libc::EPROTO => ACCEPT_BACKOFF_SHORT,
                1.. if errno != libc::ECANCELED => ACCEPT_BACKOFF,
                _ => return self.arm_accept(index),
            };
            self.rest_listener(index, backoff);
        }
    }

    fn rest_listener(&mut self, index: usize, time: Duration) {
        if !std::mem::replace(&mut self.listeners[index].is_resting, true) {
            self.shared.arm(self.shared.now.get() + time, Alarm::Listener(index));
        }
    }

    /// Returns whether that is news.
    fn set_failing(&mut self, index: usize, is_failing: bool) -> bool {
        let before = std::mem::replace(&mut self.listeners[index].is_failing, is_failing);
        if before != is_failing {
            self.failing = if is_failing { self.failing + 1 } else { self.failing - 1 };
        }
        before != is_failing
    }

    /// The rest of a listener is over. If its socket failed before, an accept that is still in flight after
    /// another rest shows that it takes accepts again.
    fn listener_rested(&mut self, index: usize) {
        self.listeners[index].is_resting = false;
        if self.listeners[index].accept == Accept::Armed {
            self.set_failing(index, false);
        }
        self.arm_accept(index);
        if self.listeners[index].is_failing {
            self.rest_listener(index, ACCEPT_BACKOFF);
        }
    }

    /// Makes a stream of an accepted descriptor, or closes it and says why.
    fn adopt(&mut self, fd: i32) -> Result<Stream, i32> {
        let stream = self.ring.prepare(fd, true).and_then(|peer| {
            self.shared.insert(Inner::accepted(fd, peer, self.shared.now.get())).ok_or(libc::EMFILE)
        });
        match &stream {
            Ok(stream) => stream.state().mark(&mut stream.state().inner.borrow_mut()),
            Err(_) => self.ring.submit(Token::new(Kind::Discard, 0, 0), Op::Close { fd }),
        }
        stream
    }

    fn arm_accept(&mut self, index: usize) {
        let listening = &mut self.listeners[index];
        if listening.accept == Accept::Resting {
            listening.accept = Accept::Armed;
            let fd = self.ring.listener_fd(&listening.listener);
            self.ring.submit(Token::new(Kind::Accept, index as u32, 0), Op::Accept { fd });
        }
    }

    /// Each checks whether it still matters: a completion taken in since it fired may have settled it.
    fn act_on_timers<H: Handler>(&mut self, handler: &mut H) {
        let mut fired = std::mem::take(&mut self.fired);
        for alarm in fired.drain(..) {
            match alarm {
                Alarm::Wake(waker) => waker.wake(),
                Alarm::Tag(tag) => handler.timer(tag),
                Alarm::Stream(slot, generation) => {
                    if let Some(state) = self.shared.find(slot, generation) {
                        self.flow.close_timed_out(&state);
                    }
                }
                Alarm::Listener(index) => self.listener_rested(index),
            }
        }
        self.fired = fired;
    }

    /// Reports parked streams and runs tasks until nothing is ready, or a bound is reached; the rest waits
    /// for the next turn.
    fn run_tasks<H: Handler>(&mut self, handler: &mut H) {
        for _ in 0..ROUNDS_MAX {
            let parked = std::mem::take(&mut *self.shared.parked.borrow_mut());
            for state in parked {
                let tag = state.inner.borrow_mut().parked.take();
                if let Some(tag) = tag {
                    handler.parked_ready(Stream::new(state), tag);
                }
            }
            self.shared.executor.run(self.shared.settings.polls_max);
            if self.shared.parked.borrow().is_empty() {
                return;
            }
        }
    }
}

impl<R: Ring> Drop for Engine<R> {
    /// Ends tasks, then operations, then descriptors; streams that sessions still hold are dead afterwards.
    fn drop(&mut self) {
        self.shared.executor.clear();
        self.shared.dead.set(true);
        self.ring.stop();
        self.completions.clear();
        let states: Vec<_> = self
            .shared
            .slots
            .borrow_mut()
            .entries
            .iter_mut()
            .filter_map(|entry| entry.state.take())
            .collect();
        self.shared.slots.borrow_mut().used = 0;
        for state in &states {
            let inner = &mut *state.inner.borrow_mut();
            // A close that was submitted is done or under way: the number may be another's by now.
            if inner.fd >= 0 && !inner.closing.is_submitted {
                if matches!(inner.phase, Phase::Open | Phase::Ending { reset: true }) {
                    self.ring.reset_on_close(inner.fd);
                }
                self.ring.close_now(inner.fd);
            }
            inner.fd = -1;
            inner.end(true);
            inner.sending.abandon();
            inner.phase = Phase::Closed;
        }
        drop(std::mem::take(&mut *self.shared.dirty.borrow_mut()));
        drop(std::mem::take(&mut *self.shared.parked.borrow_mut()));
        let mut alarms = Vec::new();
        self.shared.wheel.borrow_mut().advance(Time::from_nanos(u64::MAX), &mut alarms);
    }
}

impl<R: Ring> std::fmt::Debug for Engine<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("streams", &self.streams()).finish_non_exhaustive()
    }
}
