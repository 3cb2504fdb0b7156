//! Where an exchange's response goes.

use std::task::{Context, Poll};

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
    /// It was slower than `min_rate`.
    #[error("the client took too little")]
    BelowMinRate,
}

/// Where an exchange's response goes. Order: `informational`*, `head`, `data`*, `finish`.
pub trait ResponseSink {
    /// How many bytes may be read ahead of a slow client; told before the response begins.
    fn read_ahead(&mut self, bytes: usize);
    /// A 101 that has passed `http::upgrade`, in place of everything else: from now on `endpoint` and the
    /// client say whatever they like.
    fn switch(&mut self, head: &ResponseHead, endpoint: Box<dyn TunnelEnd>);
    /// An interim response other than 101.
    fn informational(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// The final head. `fields` have passed `http::forward`.
    fn head(&mut self, head: &ResponseHead) -> impl Future<Output = Result<(), SinkError>>;
    /// Body bytes. Waits while the client is slower than `buffer_response` allows.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), SinkError>>;
    /// The end, with trailers (maybe none).
    fn finish(&mut self, trailers: Fields) -> impl Future<Output = Result<(), SinkError>>;
    /// Sends what was held back to travel together: called before waiting for more of the response.
    fn flush(&mut self);
    /// Ready once the client is gone, so that nobody waits for the response any more. One that merely has
    /// nothing more to say is not.
    fn poll_gone(&self, cx: &Context<'_>) -> Poll<()>;
    /// Waits until the client has taken all that was queued for it, as long as it goes on taking.
    fn taken(&mut self) -> impl Future<Output = Result<(), SinkError>>;
}
