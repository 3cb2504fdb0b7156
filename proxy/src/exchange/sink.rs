//! The target of an exchange's response.

use super::tunnel::TunnelEnd;
use crate::http::message::{Fields, ResponseHead};
use crate::io::Chunk;

/// Why a response can no longer be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The client went away.
    #[error("the client went away within the response")]
    Aborted,
    /// The client took nothing for `send`.
    #[error("the client took nothing for too long")]
    TooSlow,
    /// The client was slower than `min_rate`.
    #[error("the client took too little")]
    BelowMinRate,
}

/// The target of an exchange's response. Order: `informational`*, `head`, `data`*, `finish`.
pub trait ResponseSink {
    /// Sets how many bytes may be read ahead of a slow client; called before the response begins.
    fn read_ahead(&mut self, bytes: usize);
    /// A 101 that has passed `http::upgrade`, in place of all the other calls. From now on `endpoint` and the
    /// client speak another protocol with each other.
    fn switch(&mut self, head: &ResponseHead, endpoint: Box<dyn TunnelEnd>);
    /// An interim response other than 101.
    fn informational(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// The final head. Its fields have passed `http::forward`.
    fn head(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// Body bytes. Waits while the client is slower than `buffer_response` allows.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), SinkError>>;
    /// The end, with trailers (maybe none).
    fn finish(&mut self, trailers: Fields) -> impl Future<Output = Result<(), SinkError>>;
    /// Sends bytes that were held back to travel together. The caller flushes before it waits for more of the
    /// response.
    fn flush(&mut self);
    /// Waits until the client has taken all bytes queued for it, as long as it goes on taking.
    fn taken(&mut self) -> impl Future<Output = Result<(), SinkError>>;
}
