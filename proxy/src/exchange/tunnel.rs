//! Tunnels: bytes both ways over a carrier of any protocol. The endpoint's end of a tunnel is a connection of
//! HTTP/1, or a stream of a connection that others share.

use std::fmt::Debug;
use std::task::{Context, Poll};

use crate::io::{Chunk, Progress, Stream, StreamError};

/// The endpoint's end of a tunnel. Dropping it resets it, so that a tunnel that was cut looks cut.
pub trait TunnelEnd: Debug {
    /// The bytes of both directions.
    fn duplex(&self) -> &dyn Duplex;
    /// Ends it in order once all queued bytes are sent.
    fn close(self: Box<Self>);
}

/// Bytes in two directions, each with an end of its own.
pub trait Duplex {
    /// Received bytes, in order; `None`: nothing more comes.
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, StreamError>>;
    /// Ready while it takes more bytes.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;
    /// Ready once everything queued was sent.
    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>>;
    /// Queues bytes.
    fn write(&self, chunk: Chunk);
    /// Ends the direction to the peer, which reads the end behind all queued bytes.
    fn shutdown_write(&self);
    /// Bytes queued and not sent yet.
    fn unsent(&self) -> usize;
    /// When bytes last moved, and how many.
    fn progress(&self) -> Progress;
    /// Why it broke; `None`: it has not.
    fn error(&self) -> Option<StreamError>;
    /// Gives back memory kept for bytes to come.
    fn shrink(&self);
}

impl Duplex for Stream {
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<Result<Option<Chunk>, StreamError>> {
        Self::poll_read(self, cx)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Self::poll_writable(self, cx)
    }

    fn poll_flushed(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        Self::poll_flushed(self, cx)
    }

    fn write(&self, chunk: Chunk) {
        Self::write(self, chunk);
    }

    fn shutdown_write(&self) {
        Self::shutdown_write(self);
    }

    fn unsent(&self) -> usize {
        Self::unsent(self)
    }

    fn progress(&self) -> Progress {
        Self::progress(self)
    }

    fn error(&self) -> Option<StreamError> {
        Self::error(self)
    }

    fn shrink(&self) {
        Self::shrink(self);
    }
}
