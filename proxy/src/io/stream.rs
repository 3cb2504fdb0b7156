//! One connected socket as a session sees it: an inbound and an outbound queue in memory. What the engine
//! does with them is in `engine`; the two meet only in `Inner`.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Chunk;
use super::buffers::{Account, Class};
use super::handle::{ConnectError, Settings, Shared};
use super::peer::Peer;
pub(super) use super::phase::{Closing, Fin, Phase, Receive};
use super::queue::Queue;
use super::secure::Secure;
use crate::time::Time;
use crate::tls::records::Violation;

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset the connection, or the kernel gave it up.
    #[error("connection reset")]
    Reset,
    /// The worker had no memory left for anybody, and this connection held the most of it without moving.
    #[error("reset to free memory")]
    Evicted,
    /// Another socket error; its errno.
    #[error("socket error {0}")]
    Os(i32),
    /// What came is no record as agreed, or an alert says that the peer thinks so.
    #[error("TLS: {0}")]
    Tls(Violation),
    /// The connection ended, and nobody had said that it would.
    #[error("TLS: ended without close_notify")]
    Truncated,
}

impl StreamError {
    pub(super) const fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED | libc::ESHUTDOWN => Self::Reset,
            errno => Self::Os(errno),
        }
    }
}

/// Cheap to clone. Closes after `close`; is reset by `abort`, or when the last clone is dropped without
/// either.
pub struct Stream(Rc<State>);

/// What engine and session share of one stream.
pub(super) struct State {
    pub(super) shared: Rc<Shared>,
    pub(super) slot: u32,
    pub(super) generation: u32,
    /// Of its account.
    epoch: Cell<u32>,
    handles: Cell<u32>,
    pub(super) inner: RefCell<Inner>,
}

pub(super) struct Inner {
    pub(super) fd: RawFd,
    pub(super) peer: Peer,
    pub(super) phase: Phase,
    /// Whether it waits in the engine's list of streams to look at.
    pub(super) dirty: bool,

    pub(super) receive: Receive,
    pub(super) inbound: Queue,
    /// How reading ended, once the inbound queue is empty.
    pub(super) end: Option<Result<(), StreamError>>,
    /// Neither the ring nor the budget had room for more from this stream.
    pub(super) throttled: bool,
    /// Whether it waits in the engine's queues for budget, for a higher limit, for buffers.
    pub(super) in_throttled: bool,
    pub(super) in_lowered: bool,
    pub(super) in_starved: bool,
    /// In that of streams that hold part of a record.
    pub(super) in_parts: bool,
    /// Whether it waits for a second look, since its last bytes may have hidden its end.
    pub(super) unsure: bool,
    /// The class of buffers it should receive into, that of the receive in flight (or the last one), and how
    /// many receives in a row spoke for the other.
    pub(super) class: Class,
    pub(super) armed: Class,
    pub(super) streak: u8,
    /// Accepted, and nothing came yet: the first receive is a single one, since the connection may end with
    /// its answer.
    pub(super) is_fresh: bool,
    /// The next receive is armed only when somebody waits for it.
    pub(super) on_demand: bool,

    /// Bytes in `outbound` and in flight.
    pub(super) queued: usize,
    pub(super) outbound: Queue,
    /// Instead of `Settings::write_low`, unless 0.
    write_low: u32,
    /// Bytes in the send in flight, at most `Settings::send_bytes_max`.
    pub(super) in_flight: u32,
    pub(super) sending: bool,
    pub(super) send_cancelled: bool,
    /// What it would cost to copy the ring buffers that the send in flight holds, and since when it holds
    /// them.
    pub(super) send_pins: u32,
    pub(super) send_started: Time,
    /// The last send was taken whole.
    pub(super) flows: bool,
    pub(super) fin: Fin,
    pub(super) write_error: Option<StreamError>,

    pub(super) connecting: bool,
    pub(super) connect_cancelled: bool,
    pub(super) connect_error: Option<ConnectError>,

    /// Cancels in flight.
    pub(super) cancels: u8,
    pub(super) closing_fd: bool,
    /// The peer has promised to send nothing more.
    pub(super) is_last: bool,
    /// Only after `close`.
    pub(super) closing: Option<Box<Closing>>,
    /// Only while it carries TLS.
    pub(super) secure: Option<Box<Secure>>,

    read_waker: Option<Waker>,
    /// Of whom waits to write or for the flush: the same task.
    write_waker: Option<Waker>,
    pub(super) parked: Option<Tag>,
    pub(super) progress: Progress,
}

impl Inner {
    pub(super) fn new(fd: RawFd, peer: SocketAddr, phase: Phase, now: Time) -> Self {
        Self {
            fd,
            peer: peer.into(),
            phase,
            dirty: false,
            receive: Receive::Idle,
            inbound: Queue::default(),
            end: None,
            throttled: false,
            in_throttled: false,
            in_lowered: false,
            in_starved: false,
            in_parts: false,
            unsure: false,
            class: Class::Small,
            armed: Class::Small,
            streak: 0,
            is_fresh: false,
            on_demand: false,
            queued: 0,
            outbound: Queue::default(),
            write_low: 0,
            in_flight: 0,
            sending: false,
            send_cancelled: false,
            send_pins: 0,
            send_started: now,
            flows: false,
            fin: Fin::No,
            write_error: None,
            connecting: false,
            connect_cancelled: false,
            connect_error: None,
            cancels: 0,
            closing_fd: false,
            is_last: false,
            closing: None,
            secure: None,
            read_waker: None,
            write_waker: None,
            parked: None,
            progress: Progress { received: 0, sent: 0, received_at: now, sent_at: now },
        }
    }

    /// Operations whose final completion has not come yet, the closing of the descriptor apart.
    pub(super) fn in_flight_ops(&self) -> usize {
        usize::from(matches!(self.receive, Receive::Armed | Receive::Cancelling))
            + usize::from(self.sending)
            + usize::from(self.connecting)
            + usize::from(self.fin == Fin::InFlight)
            + usize::from(self.cancels)
    }

    pub(super) fn write_low(&self, settings: &Settings) -> usize {
        if self.write_low == 0 { settings.write_low } else { self.write_low as usize }
    }

    /// Whether another write may be queued: below the low-water mark; or above it, while nothing holds the
    /// last ones up and they wait only for this turn's send to go out together.
    pub(super) fn has_room(&self, settings: &Settings) -> bool {
        self.queued < self.write_low(settings)
            || (self.flows && !self.sending && self.queued < settings.send_bytes_max)
    }

    /// Whether somebody waits for bytes.
    pub(super) const fn is_read(&self) -> bool {
        self.read_waker.is_some() || self.parked.is_some()
    }

    pub(super) fn wake_reader(&mut self) {
        if let Some(waker) = self.read_waker.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_writer(&mut self) {
        if let Some(waker) = self.write_waker.take() {
            waker.wake();
        }
    }

    pub(super) fn wake_all(&mut self) {
        self.wake_reader();
        self.wake_writer();
    }

    /// Throws away what is queued either way. What is in flight stays counted until it completes.
    pub(super) fn drop_queues(&mut self) {
        self.inbound.clear();
        if let Some(secure) = &mut self.secure {
            secure.drop_plain();
        }
        self.drop_outbound();
    }

    pub(super) fn drop_outbound(&mut self) {
        self.outbound.clear();
        self.queued = self.in_flight as usize;
    }

    /// Starts the end: the engine cancels what is in flight, then closes.
    pub(super) fn end(&mut self, reset: bool) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Closed) {
            return;
        }
        self.phase = Phase::Ending { reset };
        self.parked = None;
        self.drop_queues();
        self.wake_all();
    }

    fn write_state(&self) -> Result<(), StreamError> {
        match (self.write_error, self.phase) {
            (Some(error), _) => Err(error),
            (None, Phase::Ending { .. } | Phase::Closed) => Err(StreamError::Reset),
            _ => Ok(()),
        }
    }
}

fn register(place: &mut Option<Waker>, cx: &Context<'_>) {
    match place {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *place = Some(cx.waker().clone()),
    }
}

impl State {
    pub(super) fn new(shared: &Rc<Shared>, slot: u32, generation: u32, inner: Inner) -> Rc<Self> {
        let state = Self {
            shared: Rc::clone(shared),
            slot,
            generation,
            epoch: Cell::new(0),
            handles: Cell::new(0),
            inner: RefCell::new(inner),
        };
        shared.pool.open_account(state.account());
        Rc::new(state)
    }

    #[cfg(test)]
    pub(super) const fn handles(&self) -> u32 {
        self.handles.get()
    }

    /// What it received is counted here.
    pub(super) const fn account(&self) -> Account {
        Account { slot: self.slot, generation: self.generation, epoch: self.epoch.get() }
    }

    /// Queues bytes as they are to be sent.
    pub(super) fn queue(self: &Rc<Self>, inner: &mut Inner, chunk: Chunk) {
        let open = matches!(inner.phase, Phase::Connecting | Phase::Open) && inner.fin == Fin::No;
        if chunk.is_empty() || !open || inner.write_error.is_some() {
            return;
        }
        inner.queued += chunk.len();
        inner.outbound.push_back(chunk, &self.shared.spares);
        if !inner.sending {
            self.mark(inner);
        }
    }

    /// Has the task woken when something was received, or reading ended.
    pub(super) fn await_bytes(self: &Rc<Self>, inner: &mut Inner, cx: &Context<'_>) {
        register(&mut inner.read_waker, cx);
        if inner.on_demand && inner.receive == Receive::Idle {
            self.mark(inner);
        }
    }

    /// Has the engine look at the stream in this loop turn.
    pub(super) fn mark(self: &Rc<Self>, inner: &mut Inner) {
        if !inner.dirty && inner.phase != Phase::Closed {
            inner.dirty = true;
            self.shared.push_dirty(self);
        }
    }
}

impl Stream {
    pub(super) fn new(state: Rc<State>) -> Self {
        state.handles.set(state.handles.get() + 1);
        Self(state)
    }

    pub(super) const fn state(&self) -> &Rc<State> {
        &self.0
    }

    /// The other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.0.inner.borrow().peer.address()
    }

    /// This end; nothing where the connection is gone. Asks the kernel each time.
    #[must_use]
    pub fn local(&self) -> Option<SocketAddr> {
        let fd = self.0.inner.borrow().fd;
        if fd < 0 { None } else { (self.0.shared.local_address)(fd) }
    }

    /// The next received bytes, never empty; `None` once at end of stream, for ever after.
    pub fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, StreamError>> {
        let inner = &mut *self.0.inner.borrow_mut();
        self.0.open_records(inner);
        let next = inner.secure.as_mut().map_or_else(|| inner.inbound.pop_front(), |secure| secure.take());
        if let Some(chunk) = next {
            return Poll::Ready(Ok(Some(chunk)));
        }
        match (inner.end, inner.phase) {
            (Some(Ok(())), _) | (None, Phase::Closing) => Poll::Ready(Ok(None)),
            (Some(Err(error)), _) => Poll::Ready(Err(error)),
            (None, Phase::Ending { .. } | Phase::Closed) => Poll::Ready(Err(StreamError::Reset)),
            (None, Phase::Connecting | Phase::Open) => {
                self.0.await_bytes(inner, cx);
                Poll::Pending
            }
        }
    }

    /// Like `poll_read`, awaited.
    pub async fn read(&self) -> Result<Option<Chunk>, StreamError> {
        std::future::poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Ready once the connection is broken: reset, not merely ended by a peer that has nothing more to say.
    /// It is watched like a read.
    pub fn poll_broken(&self, cx: &Context<'_>) -> Poll<()> {
        let inner = &mut *self.0.inner.borrow_mut();
        if inner.write_state().is_err() || matches!(inner.end, Some(Err(_))) {
            return Poll::Ready(());
        }
        if inner.end.is_none() {
            self.0.await_bytes(inner, cx);
        }
        Poll::Pending
    }

    /// Puts bytes back at the front of the inbound queue.
    pub fn unread(&self, chunk: Chunk) {
        let inner = &mut *self.0.inner.borrow_mut();
        if !chunk.is_empty() && matches!(inner.phase, Phase::Connecting | Phase::Open) {
            match &mut inner.secure {
                Some(secure) => secure.unread(chunk, &self.0.shared.spares),
                None => inner.inbound.push_front(chunk, &self.0.shared.spares),
            }
            inner.wake_reader();
        }
    }

    /// Whether received bytes, an end of stream or an error wait in the inbound queue.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let inner = &mut *self.0.inner.borrow_mut();
        self.0.open_records(inner);
        inner.has_input() || inner.end.is_some() || !matches!(inner.phase, Phase::Connecting | Phase::Open)
    }

    /// Ready while the outbound queue is below its low-water mark.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.write_state()?;
        if inner.has_room(&self.0.shared.settings) {
            return Poll::Ready(Ok(()));
        }
        register(&mut inner.write_waker, cx);
        Poll::Pending
    }

    /// From now on this stream is writable while fewer bytes are queued than this, instead of
    /// `Settings::write_low`.
    pub fn set_write_low(&self, bytes: usize) {
        self.0.inner.borrow_mut().write_low = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
    }

    /// Like `poll_writable`, awaited.
    pub async fn writable(&self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| self.poll_writable(cx)).await
    }

    /// Queues bytes; never waits. Callers await `writable` before each, so the queue stays near its
    /// high-water mark. All that is queued in one loop turn goes out in one send. Bytes for a stream that
    /// broke, closed or sent its FIN are dropped.
    pub fn write(&self, chunk: Chunk) {
        let inner = &mut *self.0.inner.borrow_mut();
        if inner.secure.is_some() {
            self.0.seal(inner, chunk);
        } else {
            self.0.queue(inner, chunk);
        }
    }

    /// Ready when everything queued was taken by the kernel.
    pub fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.write_state()?;
        if inner.queued == 0 {
            return Poll::Ready(Ok(()));
        }
        register(&mut inner.write_waker, cx);
        Poll::Pending
    }

    /// Like `poll_flushed`, awaited.
    pub async fn flushed(&self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| self.poll_flushed(cx)).await
    }

    /// Bytes queued that the kernel has not taken yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.0.inner.borrow().queued
    }

    /// What it received before is not counted against it any more: whoever holds that now belongs to an
    /// exchange that is over, and must not keep the next one from receiving.
    pub fn begin_anew(&self) {
        let state = &self.0;
        state.epoch.set(state.epoch.get().wrapping_add(1));
        state.shared.pool.open_account(state.account());
        let inner = &mut *state.inner.borrow_mut();
        inner.throttled = false;
        if inner.receive == Receive::Held {
            inner.receive = Receive::Idle;
            state.mark(inner);
        }
    }

    /// Lets go of the memory of empty queues: for a stream that a task holds and that has been quiet.
    pub fn shrink(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.inbound.shrink(&self.0.shared.spares);
        inner.outbound.shrink(&self.0.shared.spares);
    }

    /// Sends FIN after what is queued; reading goes on.
    pub fn shutdown_write(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        if matches!(inner.phase, Phase::Connecting | Phase::Open) && inner.fin == Fin::No {
            self.0.say_end(inner);
            inner.fin = Fin::Wanted;
            self.0.mark(inner);
        }
    }

    /// Closes after what is queued has been sent: FIN, then a short wait for the peer's own end, so that
    /// bytes still under way to us do not turn into a reset that would destroy what we sent. The engine
    /// bounds the flush by `Settings::close_timeout` without progress; whoever wants less keeps the stream
    /// and calls `abort`.
    pub fn close(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        match inner.phase {
            Phase::Open => {
                self.0.say_end(inner);
                if inner.is_broken() {
                    inner.closing.get_or_insert_default().is_refused = true;
                }
                inner.phase = Phase::Closing;
                inner.parked = None;
                inner.inbound.clear();
                // Nothing is opened or sealed any more.
                inner.secure = None;
                if inner.receive == Receive::Held {
                    inner.receive = Receive::Idle;
                }
                inner.wake_reader();
                self.0.mark(inner);
            }
            Phase::Connecting => self.0.end(inner, false),
            _ => {}
        }
    }

    /// Like `close`, for a peer that has promised to send nothing more (RFC 9112 §9.6): where none of its
    /// bytes can be under way, there is nothing to wait for after the flush.
    pub fn finish(&self) {
        self.0.inner.borrow_mut().is_last = true;
        self.close();
    }

    /// Like `close`, for a peer that broke the rules: it gets a moment to read what it was told, however much
    /// it still sends, and no more.
    pub fn refuse(&self) {
        self.0.inner.borrow_mut().closing.get_or_insert_default().is_refused = true;
        self.close();
    }

    /// Drops what is queued and resets the connection (SO_LINGER 0); where TLS broke it, the alert that says
    /// so goes out first.
    pub fn abort(&self) {
        if self.0.inner.borrow().has_last_word() {
            return self.close();
        }
        self.0.end(&mut self.0.inner.borrow_mut(), true);
    }

    /// What broke the connection, if something did.
    #[must_use]
    pub fn error(&self) -> Option<StreamError> {
        let inner = self.0.inner.borrow();
        inner.write_error.or_else(|| inner.end.and_then(Result::err))
    }

    /// Bytes received and bytes taken by the kernel so far, and when either last moved: for `send`,
    /// `request_body` and `min_rate`.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.0.inner.borrow().progress
    }

    /// How many bytes the peer's host has acknowledged: what the kernel took may wait in its buffers for
    /// long. Costs a system call.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        let inner = self.0.inner.borrow();
        let waiting = if inner.phase == Phase::Open { (self.0.shared.unacknowledged)(inner.fd) } else { 0 };
        inner.progress.sent.saturating_sub(waiting as u64)
    }

    /// Bytes queued while a send is in flight: what the peer is behind.
    #[must_use]
    pub fn backlog(&self) -> usize {
        let inner = self.0.inner.borrow();
        if inner.sending { inner.queued } else { 0 }
    }

    /// Whether nothing is received for want of buffers: the peer is not to blame for its silence.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.inner.borrow().receive == Receive::Held
    }

    /// Whether the connection can still carry an exchange: no end of stream, no error, nothing unread,
    /// nothing unsent.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        let inner = &mut *self.0.inner.borrow_mut();
        self.0.open_records(inner);
        let quiet = inner.inbound.is_empty() && !inner.has_input() && inner.queued == 0;
        quiet
            && inner.phase == Phase::Open
            && inner.end.is_none()
            && inner.write_error.is_none()
            && inner.fin == Fin::No
    }

    /// Marks the stream as idle: no task waits on it. The next bytes, end of stream or error are reported to
    /// `Handler::parked_ready` with this `tag` instead of waking a task; the mark is then gone. Needs an
    /// empty inbound queue; if it is not empty the report comes in this loop turn. The caller keeps the
    /// stream: dropping its last clone resets the connection, parked or not.
    pub fn park(&self, tag: Tag) {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.parked = Some(tag);
        inner.read_waker = None;
        inner.write_waker = None;
        self.0.open_records(inner);
        let ready = inner.has_input() || inner.end.is_some() || inner.write_error.is_some();
        if ready || inner.phase != Phase::Open {
            self.0.shared.push_parked(&self.0);
        } else {
            if inner.on_demand && inner.receive == Receive::Idle {
                self.0.mark(inner);
            }
            // An idle connection holds no memory but its own.
            inner.inbound.shrink(&self.0.shared.spares);
            inner.outbound.shrink(&self.0.shared.spares);
            if let Some(secure) = &mut inner.secure {
                secure.shrink(&self.0.shared.spares);
            }
        }
    }

    /// Ready once connected.
    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        let inner = &mut *self.0.inner.borrow_mut();
        if let Some(error) = inner.connect_error {
            return Poll::Ready(Err(error));
        }
        match inner.phase {
            Phase::Open => Poll::Ready(Ok(())),
            Phase::Connecting => {
                register(&mut inner.write_waker, cx);
                Poll::Pending
            }
            _ => Poll::Ready(Err(ConnectError::Os(libc::ECANCELED))),
        }
    }

    /// Takes the mark away.
    pub fn unpark(&self) {
        self.0.inner.borrow_mut().parked = None;
    }
}

impl State {
    fn end(self: &Rc<Self>, inner: &mut Inner, reset: bool) {
        inner.end(reset);
        self.mark(inner);
    }
}

impl Clone for Stream {
    fn clone(&self) -> Self {
        Self::new(Rc::clone(&self.0))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let handles = self.0.handles.get() - 1;
        self.0.handles.set(handles);
        if handles == 0 {
            if self.0.inner.borrow().has_last_word() {
                return self.close();
            }
            let inner = &mut *self.0.inner.borrow_mut();
            if matches!(inner.phase, Phase::Connecting | Phase::Open) {
                // Both directions ended and all was sent: nothing is left that a reset would tell.
                let over = inner.end == Some(Ok(())) && inner.fin == Fin::Sent && inner.queued == 0;
                self.0.end(inner, !over);
            }
        }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Stream");
        debug.field("slot", &self.0.slot).field("generation", &self.0.generation);
        if let Ok(inner) = self.0.inner.try_borrow() {
            debug.field("peer", &inner.peer.address()).field("phase", &inner.phase);
        }
        debug.finish_non_exhaustive()
    }
}

/// What a parked stream is to the worker: opaque to `io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which table of the worker it belongs to.
    pub kind: NonZero<u32>,
    /// Its key there.
    pub key: u64,
}

/// See `Stream::progress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received.
    pub received: u64,
    /// Bytes taken by the kernel.
    pub sent: u64,
    /// When `received` last grew.
    pub received_at: Time,
    /// When `sent` last grew.
    pub sent_at: Time,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_stays_small() {
        // Beside it: two words of its `Rc`. See benches/NOTES.md for what an idle connection has beside its
        // stream.
        assert!(size_of::<State>() <= 240, "{} bytes", size_of::<State>());
    }
}
