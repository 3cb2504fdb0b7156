//! Bodies: their parts, and the source of an exchange's request body.

use std::task::{Context, Poll};

use crate::error::RefusalReason;
use crate::http::message::Fields;
use crate::io::Chunk;

/// The next part of a body.
#[derive(Debug)]
pub enum BodyPart {
    /// Bytes, never empty.
    Data(Chunk),
    /// The end, with trailers (maybe none). Nothing comes after it.
    End(Fields),
}

/// Why a request body cannot go on. The session that owns the source knows how to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// The client went away.
    #[error("the client went away within the request body")]
    Aborted,
    /// The body's framing broke, it was too large, or too slow: answer with this.
    #[error("request body refused: {}", .0.label())]
    Refused(RefusalReason),
}

/// The source of an exchange's request body.
pub trait BodySource {
    /// Whether a body of `length` bytes is here as a whole, so that reading it would not wait. Asked before
    /// the first `next`.
    fn is_whole(&self, length: u64) -> bool;
    /// Whether the client waits for "100 Continue" before it sends the body. `next` then sends one, unless an
    /// endpoint's was passed on before.
    fn awaits_continue(&self) -> bool;
    /// Ready once `next` has something to take without sending "100 Continue".
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()>;
    /// The next part. Waiting here is the request body's backpressure: nothing is read ahead of it beyond the
    /// stream's own bound.
    fn next(&mut self) -> impl Future<Output = Result<BodyPart, SourceError>>;
}
