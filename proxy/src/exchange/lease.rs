//! What an exchange asks of upstreams: a lease on an exchange slot for each attempt. A connection of HTTP/1
//! has one slot, a connection of HTTP/2 or HTTP/3 has many.
//!
//! A lease splits into a sending and a receiving half, so that request and response bodies run at the same
//! time in one task. It knows its own end: `complete` returns, closes or resets what it leased, as far as the
//! exchange came; dropping it resets.

use std::time::Duration;

use super::body::BodyPart;
use super::record::Record;
use super::scene::Client;
use super::tunnel::TunnelEnd;
use crate::error::RefusalReason;
use crate::http::message::{Fields, RequestHead, ResponseHead};
use crate::io::Chunk;
use crate::time::Time;

/// Whether an endpoint began to do what a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// It did not: no byte reached it, or it says so itself (HTTP/2's REFUSED_STREAM, a stream above GOAWAY's
    /// last; RFC 9113 §8.7).
    No,
    /// Nobody knows.
    Maybe,
}

/// Why an exchange with an endpoint failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The endpoint closed, reset or refused before a byte of its response.
    #[error("the upstream closed before its response")]
    ClosedBeforeResponse(Processed),
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

impl LeaseError {
    /// Whether the request may be sent again as far as its endpoint is concerned (RFC 9110 §9.2.2).
    #[must_use]
    pub const fn may_be_sent_again(self, is_idempotent: bool) -> bool {
        match self {
            Self::ClosedBeforeResponse(Processed::No) => true,
            Self::ClosedBeforeResponse(Processed::Maybe) => is_idempotent,
            Self::ClosedWithinResponse | Self::Malformed | Self::TimedOut => false,
        }
    }

    /// How it is answered.
    #[must_use]
    pub const fn refusal(self) -> RefusalReason {
        match self {
            Self::ClosedBeforeResponse(_) | Self::ClosedWithinResponse => RefusalReason::UpstreamReset,
            Self::Malformed => RefusalReason::UpstreamMalformed,
            Self::TimedOut => RefusalReason::UpstreamTimeout,
        }
    }
}

/// What of an exchange matters for its attempts.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// For whom.
    pub client: Client<'a>,
    /// What the access log is told; `None` while it is off.
    pub record: Option<&'a Record>,
    /// How long an endpoint may take no byte of the request.
    pub stall: Duration,
}

/// The upstreams of a snapshot.
pub trait Upstreams {
    /// A lease on one of their endpoints.
    type Lease: Lease;
    /// One exchange's attempts.
    type Attempts<'a>: Attempts<Lease = Self::Lease>
    where
        Self: 'a;

    /// Begins an exchange with an upstream, by its index in the snapshot.
    fn attempts<'a>(&'a self, upstream: usize, asked: Asked<'a>) -> Self::Attempts<'a>;
}

/// What one exchange tried of an upstream, and may still try.
pub trait Attempts {
    /// What an attempt talks over.
    type Lease: Lease;

    /// A lease for the next attempt, or why there is none.
    fn lease(&mut self) -> impl Future<Output = Result<Self::Lease, RefusalReason>>;

    /// Whether another attempt may follow the one over `failed`, which got no answer.
    fn again_after(&mut self, failed: &Self::Lease) -> bool;
}

/// See the module.
pub trait Lease {
    /// Its sending half.
    type Sender<'a>: SendRequest
    where
        Self: 'a;
    /// Its receiving half.
    type Receiver<'a>: ReceiveResponse
    where
        Self: 'a;

    /// The halves for one request.
    fn split<'a>(&'a self, head: &'a RequestHead) -> (Self::Sender<'a>, Self::Receiver<'a>);

    /// The response was delivered whole. What was leased returns to where others find it, if the request was
    /// sent whole too and the endpoint goes on; else it closes in order, or resets what is left of the
    /// request.
    fn complete(self);

    /// The endpoint agreed to another protocol.
    fn into_tunnel(self) -> Box<dyn TunnelEnd>;
}

/// The sending half. Order: `head`, `data`*, `finish`; no `finish` for a request without a body.
pub trait SendRequest {
    /// Queues the head; it may wait for the first body part, or `flush`, to leave.
    fn head(&mut self, head: &RequestHead);
    /// Sends body bytes. Waits while the endpoint is slower than the client.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), LeaseError>>;
    /// Ends the request.
    fn finish(&mut self, trailers: &Fields) -> impl Future<Output = Result<(), LeaseError>>;
    /// Sends what is held back: called before waiting for more body.
    fn flush(&mut self);
}

/// The receiving half. Its futures may be dropped and made again at any time: what was received stays in the
/// half.
pub trait ReceiveResponse {
    /// The next head: interim ones, then the final one.
    fn head(&mut self) -> impl Future<Output = Result<ResponseHead, LeaseError>>;
    /// When the endpoint last took bytes of the request.
    fn taken_at(&self) -> Time;
    /// Whether it has yet to take some of what was sent.
    fn has_unsent(&self) -> bool;
    /// Whether nothing is received because of what was received before.
    fn is_held(&self) -> bool;
    /// The next part of the body.
    fn part(&mut self) -> impl Future<Output = Result<BodyPart, LeaseError>>;
}
