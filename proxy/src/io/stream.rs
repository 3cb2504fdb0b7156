//! One connected socket as a session sees it: an inbound and an outbound queue in memory.

use std::net::SocketAddr;
use std::task::{Context, Poll};

use super::Chunk;
use crate::time::Time;

/// Why a stream cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer reset the connection, or the kernel gave it up.
    #[error("connection reset")]
    Reset,
    /// Another socket error; its errno.
    #[error("socket error {0}")]
    Os(i32),
}

/// Cheap to clone; the socket closes when it was closed explicitly or when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Stream(());

impl Stream {
    /// The other end.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Our end.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        unimplemented!()
    }

    /// The next received bytes; `None` once at end of stream, for ever after.
    pub fn poll_read(&self, _cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, StreamError>> {
        unimplemented!()
    }

    /// Like `poll_read`, awaited.
    pub async fn read(&self) -> Result<Option<Chunk>, StreamError> {
        std::future::poll_fn(|cx| self.poll_read(cx)).await
    }

    /// Puts bytes back at the front of the inbound queue.
    pub fn unread(&self, _chunk: Chunk) {
        unimplemented!()
    }

    /// Whether received bytes, an end of stream or an error wait in the inbound queue.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        unimplemented!()
    }

    /// Ready while the outbound queue is below its low-water mark.
    pub fn poll_writable(&self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        unimplemented!()
    }

    /// Like `poll_writable`, awaited.
    pub async fn writable(&self) -> Result<(), StreamError> {
        std::future::poll_fn(|cx| self.poll_writable(cx)).await
    }

    /// Queues bytes; never waits. Callers await `writable` before each, so the queue stays near its high-water mark.
    /// All that is queued in one loop turn goes out in one send.
    pub fn write(&self, _chunk: Chunk) {
        unimplemented!()
    }

    /// Ready when everything queued was taken by the kernel.
    pub fn poll_flushed(&self, _cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        unimplemented!()
    }

    /// Sends FIN after what is queued; reading goes on.
    pub fn shutdown_write(&self) {
        unimplemented!()
    }

    /// Closes after what is queued has been sent. The caller bounds the wait by keeping the stream and calling `abort`.
    pub fn close(&self) {
        unimplemented!()
    }

    /// Drops what is queued and resets the connection (SO_LINGER 0).
    pub fn abort(&self) {
        unimplemented!()
    }

    /// Bytes received and bytes taken by the kernel so far, and when either last moved: for `send`, `request_body` and `min_rate`.
    #[must_use]
    pub fn progress(&self) -> Progress {
        unimplemented!()
    }

    /// Whether the connection can still carry an exchange: no end of stream, no error, nothing unread.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        unimplemented!()
    }

    /// Marks the stream as idle: no task waits on it. The next bytes, end of stream or error are reported to
    /// `Handler::parked_ready` with this `tag` instead of waking a task; the mark is then gone. Needs an empty inbound
    /// queue; if it is not empty the report comes in this loop turn.
    pub fn park(&self, _tag: Tag) {
        unimplemented!()
    }

    /// Takes the mark away.
    pub fn unpark(&self) {
        unimplemented!()
    }
}

/// What a parked stream is to the worker: opaque to `io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Which table of the worker it belongs to.
    pub kind: u32,
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
