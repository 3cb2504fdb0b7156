//! The exchange slot: what an exchange leases to talk to an endpoint. An HTTP/1 connection has one, an HTTP/2
//! connection many.
//!
//! A slot splits into a sending and a receiving half, so that request and response bodies run at the same
//! time in one task.

use crate::http::message::{Fields, RequestHead, ResponseHead};
use crate::io::Chunk;
use crate::session::exchange::BodyPart;
use crate::time::Time;

/// Why an exchange with an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The endpoint closed or reset before a byte of its response.
    #[error("the upstream closed before its response")]
    ClosedBeforeResponse,
    /// The endpoint closed or reset within its response.
    #[error("the upstream closed within its response")]
    ClosedWithinResponse,
    /// What it sent is not HTTP, or more than the limits allow.
    #[error("the upstream sent something that is not HTTP")]
    Malformed,
    /// It sent nothing, or took nothing, for too long.
    #[error("the upstream was too slow")]
    TimedOut,
}

/// The sending half. Order: `head`, `data`*, `finish`.
pub trait SendRequest {
    /// Queues the head; it may wait for the first body part, or `flush`, to leave.
    fn head(&mut self, head: &RequestHead);
    /// Sends body bytes. Waits while the endpoint is slower than the client.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), SlotError>>;
    /// Ends the request.
    fn finish(&mut self, trailers: &Fields) -> impl Future<Output = Result<(), SlotError>>;
    /// Sends what is held back: called before waiting for more body.
    fn flush(&mut self);
}

/// The receiving half. Its futures may be dropped and made again at any time: what was received stays in the
/// half.
pub trait ReceiveResponse {
    /// The next head: interim ones, then the final one.
    fn head(&mut self) -> impl Future<Output = Result<ResponseHead, SlotError>>;
    /// When the endpoint last took bytes of the request.
    fn taken_at(&self) -> Time;
    /// Whether it has yet to take some of what was sent.
    fn has_unsent(&self) -> bool;
    /// Whether nothing is received because of what was received before.
    fn is_held(&self) -> bool;
    /// The next part of the body.
    fn part(&mut self) -> impl Future<Output = Result<BodyPart, SlotError>>;
}
