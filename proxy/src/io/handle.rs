//! What a session may ask of the engine, apart from its streams; and the state behind it that engine and
//! sessions share.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::buffers::Pool;
use super::executor::{Executor, TaskKey};
use super::stream::{Inner, Spares, StreamState, Tag};
use super::timer::{TimerKey, Wheel};
use super::token::SLOTS_MAX;
use super::{Chunk, Stream};
use crate::time::Time;

/// Pieces of a body are gathered into runs of this many bytes: a segment each would cost more than its bytes.
const GATHER_BYTES: usize = 16 << 10;

/// Cheap to clone.
#[derive(Clone)]
pub struct Io(Rc<Shared>);

/// Why a connect failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Refused, unreachable, or another errno.
    #[error("connect: errno {0}")]
    Os(i32),
    /// No descriptor or engine slot was left.
    #[error("no descriptor left to connect with")]
    Exhausted,
}

impl ConnectError {
    pub(super) const fn from_errno(errno: i32) -> Self {
        match errno {
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Self::Exhausted,
            errno => Self::Os(errno),
        }
    }
}

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("deadline passed")]
pub struct Elapsed;

/// The engine's bounds. `Default` suits tests and small workers.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Streams at once, connecting and closing ones included; at most 2^24.
    pub streams_max: usize,
    /// Bytes a stream may have received that nobody dropped (whole buffers for loans), before its receive is
    /// cancelled.
    pub receive_high: usize,
    /// Where it is armed again.
    pub receive_low: usize,
    /// At most this while buffers or budget are short, less the less is free; resumes at half of it.
    pub receive_pressed: usize,
    /// `writable` while fewer bytes are queued.
    pub write_low: usize,
    /// Bytes handed to one send; below 2^32.
    pub send_bytes_max: usize,
    /// The same while less than a quarter of the buffers are free.
    pub send_bytes_pressed: usize,
    /// Chunks handed to one send; at most 1024 (IOV_MAX).
    pub send_chunks_max: usize,
    /// How long a closed stream may flush before it is reset, unless so many bytes were taken in that time.
    pub close_timeout: Duration,
    /// See `close_timeout`.
    pub close_bytes: u64,
    /// How long a flushed and shut-down stream waits for the peer's end, or for more bytes to discard: a peer
    /// that is still sending when its connection is closed would be reset, and might never read what it was
    /// sent last.
    pub discard_quiet: Duration,
    /// How long such a stream waits in all.
    pub discard_max: Duration,
    /// Bytes discarded of one stream, at most.
    pub discard_bytes: usize,
    /// How long a closed stream whose peer broke the rules may flush without progress, and how long in all it
    /// waits after that. What it holds meanwhile is less than a session does for longer: no keys, no future,
    /// no bytes.
    pub refused_max: Duration,
    /// Bytes thrown away of such a peer, at most: as much as a receive window lets it have under way when it
    /// is told (tcp_rmem: 6 MiB).
    pub refused_bytes: usize,
    /// Task polls in one loop turn.
    pub polls_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            streams_max: 65_536,
            receive_high: 256 << 10,
            receive_low: 128 << 10,
            receive_pressed: 32 << 10,
            write_low: 128 << 10,
            send_bytes_max: 256 << 10,
            send_bytes_pressed: 16 << 10,
            send_chunks_max: 64,
            close_timeout: Duration::from_secs(30),
            close_bytes: 3000,
            discard_quiet: Duration::from_secs(1),
            discard_max: Duration::from_secs(30),
            discard_bytes: 64 << 20,
            refused_max: Duration::from_secs(3),
            refused_bytes: 8 << 20,
            polls_max: 4096,
        }
    }
}

/// What the engine has counted since it was made.
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
}

/// What a timer does when it fires.
pub(super) enum Alarm {
    Wake(Waker),
    Tag(Tag),
    /// A closing stream took too long.
    Stream(u32, u32),
    /// A listener may accept again.
    Listener(usize),
}

impl Alarm {
    /// Whether somebody waited for something else that did not come before.
    pub(super) const fn ends_a_wait(&self) -> bool {
        matches!(self, Self::Wake(_) | Self::Stream(..))
    }
}

/// One worker's state that sessions reach. The engine breaks the reference cycles when it is dropped.
pub(super) struct Shared {
    pub(super) now: Cell<Time>,
    pub(super) settings: Settings,
    pub(super) pool: Rc<Pool>,
    /// See `Ring::unacknowledged`.
    pub(super) unacknowledged: Rc<dyn Fn(RawFd) -> usize>,
    pub(super) wheel: RefCell<Wheel<Alarm>>,
    pub(super) executor: Executor,
    pub(super) slots: RefCell<Slots>,
    pub(super) spares: Spares,
    /// Streams the engine must look at in this loop turn.
    pub(super) dirty: RefCell<Vec<Rc<StreamState>>>,
    /// Parked streams with something to report.
    pub(super) parked: RefCell<Vec<Rc<StreamState>>>,
    /// The engine is gone: nothing will be looked at any more.
    pub(super) dead: Cell<bool>,
    pub(super) local_address: fn(RawFd) -> Option<SocketAddr>,
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        pool: Rc<Pool>,
        unacknowledged: Rc<dyn Fn(RawFd) -> usize>,
        local_address: fn(RawFd) -> Option<SocketAddr>,
        now: Time,
    ) -> Rc<Self> {
        let slots = Slots { max: settings.streams_max.min(SLOTS_MAX), ..Slots::default() };
        Rc::new(Self {
            now: Cell::new(now),
            settings,
            pool,
            unacknowledged,
            wheel: RefCell::new(Wheel::new(now)),
            executor: Executor::new(),
            slots: RefCell::new(slots),
            spares: Spares::default(),
            dirty: RefCell::default(),
            parked: RefCell::default(),
            dead: Cell::new(false),
            local_address,
        })
    }

    pub(super) fn push_dirty(&self, state: &Rc<StreamState>) {
        if !self.dead.get() {
            self.dirty.borrow_mut().push(Rc::clone(state));
        }
    }

    pub(super) fn push_parked(&self, state: &Rc<StreamState>) {
        if !self.dead.get() {
            self.parked.borrow_mut().push(Rc::clone(state));
        }
    }

    pub(super) fn arm(&self, deadline: Time, alarm: Alarm) -> TimerKey {
        self.wheel.borrow_mut().arm(deadline, alarm)
    }

    pub(super) fn disarm(&self, key: TimerKey) {
        let alarm = self.wheel.borrow_mut().disarm(key);
        // A waker may be a third party's: it is dropped while nothing is borrowed.
        drop(alarm);
    }

    /// A stream in a new slot; `None` when there is none.
    pub(super) fn insert(self: &Rc<Self>, inner: Inner) -> Option<Stream> {
        if self.dead.get() {
            return None;
        }
        let mut slots = self.slots.borrow_mut();
        let slot = slots.reserve()?;
        let entry = &mut slots.entries[slot as usize];
        let state = StreamState::new(self, slot, entry.generation, inner);
        entry.state = Some(Rc::clone(&state));
        Some(Stream::new(state))
    }

    /// The stream in a slot, if it is still the same one.
    pub(super) fn find(&self, slot: u32, generation: u32) -> Option<Rc<StreamState>> {
        let slots = self.slots.borrow();
        let entry = slots.entries.get(slot as usize)?;
        entry.state.as_ref().filter(|_| entry.generation == generation).cloned()
    }
}

/// Streams by slot. A slot's generation grows whenever it becomes free.
#[derive(Default)]
pub(super) struct Slots {
    pub(super) entries: Vec<Slot>,
    free: Vec<u32>,
    max: usize,
    pub(super) used: usize,
}

#[derive(Default)]
pub(super) struct Slot {
    generation: u32,
    pub(super) state: Option<Rc<StreamState>>,
}

impl Slots {
    fn reserve(&mut self) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.entries.len() < self.max => {
                self.entries.push(Slot::default());
                (self.entries.len() - 1) as u32
            }
            None => return None,
        };
        self.used += 1;
        Some(slot)
    }

    pub(super) fn release(&mut self, slot: u32) -> Option<Rc<StreamState>> {
        let entry = &mut self.entries[slot as usize];
        let state = entry.state.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        self.used -= 1;
        Some(state)
    }
}

impl Io {
    pub(super) const fn new(shared: Rc<Shared>) -> Self {
        Self(shared)
    }

    #[cfg(test)]
    pub(super) const fn shared(&self) -> &Rc<Shared> {
        &self.0
    }

    /// The time of this loop turn.
    #[must_use]
    pub fn now(&self) -> Time {
        self.0.now.get()
    }

    /// Waits until `deadline` (granularity of the timer wheel: 4 ms late at most).
    pub async fn sleep_until(&self, deadline: Time) {
        Sleep { shared: &self.0, deadline, key: None }.await;
    }

    /// `future`, or `Elapsed` at `deadline`. Dropping it disarms the timer.
    pub async fn timeout_at<F: Future>(&self, deadline: Time, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut sleep = Sleep { shared: &self.0, deadline, key: None };
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            Pin::new(&mut sleep).poll(cx).map(|()| Err(Elapsed))
        })
        .await
    }

    /// Connects. Dropping the future cancels the connect and closes the socket.
    pub async fn connect(&self, address: SocketAddr) -> Result<Stream, ConnectError> {
        let stream = self.0.insert(Inner::connecting(address, self.now())).ok_or(ConnectError::Exhausted)?;
        stream.state().mark(&mut stream.state().inner.borrow_mut());
        std::future::poll_fn(|cx| stream.poll_connected(cx)).await?;
        Ok(stream)
    }

    /// Runs a future on this worker's executor.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> TaskKey {
        self.0.executor.spawn(future)
    }

    /// Drops a spawned future where it stands; nothing happens when it already ended.
    pub fn cancel_task(&self, key: TaskKey) {
        self.0.executor.cancel(key);
    }

    /// A single-shot timer without a future: at `deadline`, `Handler::timer` is called with `tag`. Later
    /// calls with the same `TimerKey` can cancel it. For idle sessions and pooled connections.
    pub fn timer_at(&self, deadline: Time, tag: Tag) -> TimerKey {
        self.0.arm(deadline, Alarm::Tag(tag))
    }

    /// Disarms; nothing happens when it already fired.
    pub fn cancel_timer(&self, key: TimerKey) {
        self.0.disarm(key);
    }

    /// Shorthand for `now() + duration`.
    #[must_use]
    pub fn after(&self, duration: Duration) -> Time {
        self.now() + duration
    }

    /// Moves received bytes that a slow peer keeps from going on out of the ring's buffers, under the
    /// worker's buffer budget, of which such bytes may take half; they no longer count against the stream
    /// they came from. As it is when there is no room.
    #[must_use]
    pub fn own(&self, chunk: Chunk) -> Chunk {
        let pool = &self.0.pool;
        pool.copy(&chunk, None, pool.budget_max() / 2).unwrap_or(chunk)
    }

    /// Appends received bytes to a body that is read whole before it is sent: out of the ring's buffers,
    /// under the worker's buffer budget, of which such bodies may take half, and no longer counted against
    /// the stream they came from. The chunk comes back as the error when there is no room.
    pub fn gather(&self, parts: &mut Vec<Chunk>, chunk: Chunk) -> Result<(), Chunk> {
        let pool = &self.0.pool;
        let reserve = pool.budget_max() / 2;
        if pool.budget_used() + chunk.len() + reserve <= pool.budget_max()
            && parts.last_mut().is_some_and(|last| last.try_append(&chunk, GATHER_BYTES))
        {
            return Ok(());
        }
        parts.push(pool.copy(&chunk, None, reserve).ok_or(chunk)?);
        Ok(())
    }

    /// What the engine has counted.
    #[must_use]
    pub fn buffers_free(&self) -> usize {
        self.0.pool.free()
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").field("now", &self.now()).finish_non_exhaustive()
    }
}

/// Armed at its first poll, disarmed when dropped.
struct Sleep<'a> {
    shared: &'a Rc<Shared>,
    deadline: Time,
    key: Option<TimerKey>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.shared.now.get() >= self.deadline {
            return Poll::Ready(());
        }
        let mut wheel = self.shared.wheel.borrow_mut();
        match self.key.and_then(|key| wheel.value_mut(key)) {
            Some(Alarm::Wake(waker)) => waker.clone_from(cx.waker()),
            _ => {
                let key = wheel.arm(self.deadline, Alarm::Wake(cx.waker().clone()));
                drop(wheel);
                self.key = Some(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shared.disarm(key);
        }
    }
}
