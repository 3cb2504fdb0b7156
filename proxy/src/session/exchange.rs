//! The exchange seam: one request and its response, whatever carries them on either side.
//!
//! An exchange takes a request head, a body source, a response sink and a cancel. Request and response bodies run at the same
//! time, each with trailers. Several exchanges share one downstream session (HTTP/2, HTTP/3 later); cancelling one leaves the others.

use crate::error::RefusalReason;
use crate::http::message::{Fields, ResponseHead};
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

/// Why a response can no longer be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The client went away.
    #[error("the client went away within the response")]
    Aborted,
    /// The client took nothing for `send`.
    #[error("the client took nothing for too long")]
    TooSlow,
}

/// Where an exchange's request body comes from.
pub trait BodySource {
    /// The next part. Waiting here is the request body's backpressure: nothing is read ahead of it beyond the stream's own bound.
    fn next(&mut self) -> impl Future<Output = Result<BodyPart, SourceError>>;
}

/// Where an exchange's response goes. Order: `informational`*, `head`, `data`*, `finish`.
pub trait ResponseSink {
    /// An interim response other than 101.
    fn informational(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// The final head. `fields` have passed `http::forward`.
    fn head(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// Body bytes. Waits while the client is slower than `buffer_response` allows.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), SinkError>>;
    /// The end, with trailers (maybe none).
    fn finish(&mut self, trailers: Fields) -> impl Future<Output = Result<(), SinkError>>;
}
