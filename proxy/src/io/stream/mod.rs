//! One connected socket as a session sees it: bytes to read and room to write, in memory. The engine's part
//! is in `flow`; the state that both share is in `state`, by subject.

use std::net::SocketAddr;
use std::num::NonZero;
use std::rc::Rc;
use std::task::{Context, Poll};

use super::Chunk;
use super::handle::ConnectError;
use super::seam::Unreported;
use crate::time::Time;
use crate::tls::records::Violation;

mod closing;
mod lists;
mod peer;
mod queue;
mod receiving;
mod secure;
mod sending;
mod state;

pub(super) use self::closing::{Manner, Phase};
pub(super) use self::lists::List;
pub(super) use self::queue::{Queue, Spares};
pub(super) use self::receiving::ReceiveOp;
pub(super) use self::secure::RECORD_BYTES_MAX;
pub(super) use self::sending::Fin;
pub(super) use self::state::{ConnectOp, Inner, StreamState};

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset the connection, or the kernel gave it up.
    #[error("connection reset")]
    Reset,
    /// The worker had no memory left for anybody, and this connection held the most of it without moving.
    #[error("reset to free memory")]
    Evicted,
    /// Its place was needed for another connection.
    #[error("reset to make place for others")]
    GaveWay,
    /// It could not be given its local address; the errno.
    #[error("no local address: socket error {0}")]
    Unbound(i32),
    /// Another socket error; its errno.
    #[error("socket error {0}")]
    Os(i32),
    /// The received bytes are no record as agreed, or an alert says that the peer thinks so.
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
pub struct Stream(Rc<StreamState>);

impl Stream {
    pub(super) fn new(state: Rc<StreamState>) -> Self {
        state.add_handle();
        Self(state)
    }

    pub(super) const fn state(&self) -> &Rc<StreamState> {
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
        let next = inner.take_input();
        if let Some(chunk) = next {
            return Poll::Ready(Ok(Some(chunk)));
        }
        match (inner.receiving.end, inner.phase) {
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
    /// It is watched like a read, and its end wakes the task too.
    pub fn poll_broken(&self, cx: &Context<'_>) -> Poll<()> {
        let inner = &mut *self.0.inner.borrow_mut();
        self.0.open_ahead(inner);
        if inner.write_result().is_err() || matches!(inner.receiving.end, Some(Err(_))) {
            return Poll::Ready(());
        }
        if inner.receiving.end.is_none() {
            self.0.await_bytes(inner, cx);
        } else {
            inner.receiving.waiting.register(cx);
        }
        Poll::Pending
    }

    /// When the peer said that it sends nothing more, if it has; bytes that came before may be unread.
    #[must_use]
    pub fn ended_at(&self) -> Option<Time> {
        let inner = self.0.inner.borrow();
        (inner.receiving.end == Some(Ok(()))).then(|| inner.receiving.at())
    }

    /// Puts bytes back at the front of the inbound queue.
    pub fn unread(&self, chunk: Chunk) {
        let inner = &mut *self.0.inner.borrow_mut();
        if !chunk.is_empty() && inner.is_live() {
            match &mut inner.secure {
                Some(secure) => secure.unread(chunk, &self.0.shared.spares),
                None => inner.receiving.queue.push_front(chunk, &self.0.shared.spares),
            }
            inner.receiving.waiting.wake();
        }
    }

    /// Whether received bytes, an end of stream or an error wait in the inbound queue.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        let inner = &mut *self.0.inner.borrow_mut();
        self.0.open_records(inner);
        inner.has_input() || inner.receiving.end.is_some() || !inner.is_live()
    }

    /// Whether the peer has said that it sends nothing more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.0.inner.borrow().receiving.end == Some(Ok(()))
    }

    /// Ready while the outbound queue is below its low-water mark.
    pub fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.write_result()?;
        if inner.sending.has_room(&self.0.shared.settings) {
            return Poll::Ready(Ok(()));
        }
        inner.sending.waiting.register(cx);
        Poll::Pending
    }

    /// From now on this stream is writable while fewer bytes are queued than this, instead of
    /// `Settings::write_low`.
    pub fn set_write_low(&self, bytes: usize) {
        self.0.inner.borrow_mut().sending.set_write_low(bytes);
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
        inner.write_result()?;
        if inner.sending.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        inner.sending.waiting.register(cx);
        Poll::Pending
    }

    /// Like `poll_flushed`, awaited.
    pub async fn flushed(&self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| self.poll_flushed(cx)).await
    }

    /// Bytes queued that the kernel has not taken yet.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.0.inner.borrow().sending.unsent()
    }

    /// Bytes received before are not counted against the stream any more. Their holder belongs to an exchange
    /// that is over, and must not keep the next exchange from receiving.
    pub fn begin_anew(&self) {
        let state = &self.0;
        state.renew_account();
        let inner = &mut *state.inner.borrow_mut();
        inner.receiving.is_throttled = false;
        if inner.receiving.release() {
            state.mark(inner);
        }
    }

    /// Lets go of the memory of empty queues: for a stream that a task holds and that has been quiet.
    pub fn shrink(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.receiving.queue.shrink(&self.0.shared.spares);
        inner.sending.shrink(&self.0.shared.spares);
    }

    /// Sends FIN after the queued bytes; reading goes on.
    pub fn shutdown_write(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        if inner.is_live() && inner.sending.fin == Fin::No {
            self.0.say_end(inner);
            inner.sending.fin = Fin::Wanted;
            self.0.mark(inner);
        }
    }

    /// Closes after the queued bytes have been sent: FIN, then a short wait for the peer's own end. Otherwise
    /// bytes still under way to us would turn into a reset, and destroy the bytes we sent. The engine bounds
    /// the flush by `Settings::close_timeout` without progress. A session that wants less keeps the stream
    /// and calls `abort`.
    pub fn close(&self) {
        self.0.close(&mut self.0.inner.borrow_mut());
    }

    /// Like `close`, for a peer that has promised to send nothing more (RFC 9112 §9.6). Where none of its
    /// bytes can be under way, there is nothing to wait for after the flush.
    pub fn finish(&self) {
        self.0.inner.borrow_mut().closing.is_last = true;
        self.close();
    }

    /// Closes a connection that carries nothing any more. The end that closes first keeps the connection's
    /// local port for a minute (TIME_WAIT, RFC 9293 §3.6.1), so that many such closes use up the ports of a
    /// host. A reset leaves nothing behind. In order all the same, if a reset would destroy bytes that are
    /// under way.
    pub fn release(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        let is_clean = inner.phase == Phase::Open
            && inner.sending.is_flushed()
            && inner.sending.fin == Fin::No
            && inner.sending.error().is_none();
        if is_clean && inner.receiving.end == Some(Ok(())) {
            // The peer closed first: there is nothing to wait for.
            return self.0.end(inner, false);
        }
        if is_clean && (self.0.shared.unacknowledged)(inner.fd) == 0 {
            inner.closing.manner = Manner::Reset;
        }
        self.0.close(inner);
    }

    /// Closes a connection that the peer has promised to end. It does so first if it keeps its word, and its
    /// host keeps what `release` avoids.
    pub fn let_end(&self) {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.closing.manner = Manner::Yield;
        self.0.close(inner);
    }

    /// Like `close`, for a peer that broke the rules: it gets a moment to read the last bytes sent to it, and
    /// no more, however much it still sends.
    pub fn refuse(&self) {
        self.0.inner.borrow_mut().closing.refuse();
        self.close();
    }

    /// Drops queued bytes and resets the connection (SO_LINGER 0); where TLS broke it, the alert that says so
    /// goes out first.
    pub fn abort(&self) {
        if self.0.inner.borrow().has_last_word() {
            return self.close();
        }
        self.0.end(&mut self.0.inner.borrow_mut(), true);
    }

    /// Resets the connection to make place for others. Unlike after `abort`, its session learns it, as an
    /// error of the stream.
    pub fn give_way(&self) {
        self.0.reset_for(&mut self.0.inner.borrow_mut(), StreamError::GaveWay);
    }

    /// The error that broke the connection, if it is broken.
    #[must_use]
    pub fn error(&self) -> Option<StreamError> {
        let inner = self.0.inner.borrow();
        inner.sending.error().or_else(|| inner.receiving.end.and_then(Result::err))
    }

    /// Bytes received and bytes taken by the kernel so far, and when either last moved: for `send`,
    /// `request_body` and `min_rate`.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let Inner { receiving, sending, .. } = &*self.0.inner.borrow();
        Progress {
            received: receiving.bytes(),
            sent: sending.bytes(),
            received_at: receiving.at(),
            sent_at: sending.at(),
        }
    }

    /// How many bytes the peer's host has acknowledged: bytes that the kernel took may wait in its buffers
    /// for long. Costs a system call.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        let inner = self.0.inner.borrow();
        let waiting = if inner.phase == Phase::Open { (self.0.shared.unacknowledged)(inner.fd) } else { 0 };
        inner.sending.bytes().saturating_sub(waiting as u64)
    }

    /// Bytes queued while a send is in flight: the peer is behind by these.
    #[must_use]
    pub fn backlog(&self) -> usize {
        let inner = self.0.inner.borrow();
        if inner.sending.is_in_flight() { inner.sending.unsent() } else { 0 }
    }

    /// Whether nothing is received for want of buffers: the peer is not to blame for its silence.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.0.inner.borrow().receiving.operation == ReceiveOp::Held
    }

    /// Whether the connection can still carry an exchange: no end of stream, no error, nothing unread,
    /// nothing unsent.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        let inner = &mut *self.0.inner.borrow_mut();
        self.0.open_records(inner);
        let quiet = inner.receiving.queue.is_empty() && !inner.has_input() && inner.sending.is_flushed();
        quiet
            && inner.phase == Phase::Open
            && inner.receiving.end.is_none()
            && inner.sending.error().is_none()
            && inner.sending.fin == Fin::No
    }

    /// Something that the kernel has received, and that this stream does not know of yet since no completion
    /// has told of it. Costs a system call.
    #[must_use]
    pub fn unreported(&self) -> Option<Unreported> {
        let inner = self.0.inner.borrow();
        if inner.phase == Phase::Open { (self.0.shared.unreported)(inner.fd) } else { None }
    }

    /// Marks the stream as idle: no task waits on it. The next bytes, end of stream or error are reported to
    /// `Handler::parked_ready` with this `tag` instead of waking a task; the mark is then gone. Needs an
    /// empty inbound queue; if it is not empty the report comes in this loop turn. The caller keeps the
    /// stream: dropping its last clone resets the connection, parked or not.
    pub fn park(&self, tag: Tag) {
        let inner = &mut *self.0.inner.borrow_mut();
        inner.parked = Some(tag);
        drop(inner.receiving.waiting.take());
        drop(inner.sending.waiting.take());
        self.0.open_records(inner);
        let ready = inner.has_input() || inner.receiving.end.is_some() || inner.sending.error().is_some();
        if ready || inner.phase != Phase::Open {
            self.0.shared.push_parked(&self.0);
        } else {
            if inner.receiving.waits_for_demand() {
                self.0.mark(inner);
            }
            // An idle connection holds no memory but its own.
            inner.receiving.queue.shrink(&self.0.shared.spares);
            inner.sending.shrink(&self.0.shared.spares);
            if let Some(secure) = &mut inner.secure {
                secure.shrink(&self.0.shared.spares);
            }
        }
    }

    /// Ready once connected.
    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        let inner = &mut *self.0.inner.borrow_mut();
        match inner.phase {
            Phase::Open => Poll::Ready(Ok(())),
            Phase::Connecting => {
                inner.sending.waiting.register(cx);
                Poll::Pending
            }
            _ => Poll::Ready(Err(match inner.sending.error() {
                Some(StreamError::Os(errno)) => ConnectError::from_errno(errno),
                Some(StreamError::Unbound(errno)) => ConnectError::Unbound(errno),
                _ => ConnectError::Os(libc::ECANCELED),
            })),
        }
    }

    /// Takes the mark away.
    pub fn unpark(&self) {
        self.0.inner.borrow_mut().parked = None;
    }
}

impl Clone for Stream {
    fn clone(&self) -> Self {
        Self::new(Rc::clone(&self.0))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.0.drop_handle() {
            if self.0.inner.borrow().has_last_word() {
                return self.close();
            }
            let inner = &mut *self.0.inner.borrow_mut();
            if inner.is_live() {
                // Both directions ended and all was sent: nothing is left that a reset would tell.
                let over = inner.receiving.end == Some(Ok(()))
                    && inner.sending.fin == Fin::Sent
                    && inner.sending.is_flushed();
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

/// Names a parked stream to the worker: opaque to `io`.
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
