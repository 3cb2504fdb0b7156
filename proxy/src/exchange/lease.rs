//! The seam between exchanges and upstreams: each attempt gets a lease on an exchange slot. A connection of
//! HTTP/1 has one slot, a connection of HTTP/2 or HTTP/3 has many.
//!
//! A lease splits into a sending and a receiving half, so that request and response bodies run at the same
//! time in one task. It knows its own end: `complete` returns, closes or resets its slot, depending on how
//! far the exchange came. Dropping a lease resets its slot.

use std::time::Duration;

use super::body::BodyPart;
use super::record::Record;
use super::scene::Client;
use super::tunnel::TunnelEnd;
use crate::error::RefusalReason;
use crate::http::message::{Fields, RequestHead, ResponseHead};
use crate::io::Chunk;
use crate::time::Time;

/// Whether an endpoint began to process a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// It did not: no byte reached it, or it says so itself (HTTP/2's REFUSED_STREAM, a stream above GOAWAY's
    /// last; RFC 9113 §8.7).
    No,
    /// It may have begun.
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
    /// The endpoint ended TLS with an alert before a byte of its response, on a new connection. In TLS 1.3 a
    /// client has finished its handshake before the endpoint judges the client's certificate (RFC 8446
    /// §4.4.2.4): so this is how a refusal looks. Another attempt would show the same certificate.
    #[error("the upstream refused TLS")]
    TlsRefused,
    /// The endpoint's bytes are not HTTP, or exceed the limits.
    #[error("the upstream sent something that is not HTTP")]
    Malformed,
    /// The endpoint sent nothing, or took nothing, for too long.
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
            Self::ClosedWithinResponse | Self::TlsRefused | Self::Malformed | Self::TimedOut => false,
        }
    }

    /// The reason that the client is refused with.
    #[must_use]
    pub const fn refusal(self) -> RefusalReason {
        match self {
            Self::ClosedBeforeResponse(_) | Self::ClosedWithinResponse => RefusalReason::UpstreamReset,
            Self::TlsRefused => RefusalReason::UpstreamTls,
            Self::Malformed => RefusalReason::UpstreamMalformed,
            Self::TimedOut => RefusalReason::UpstreamTimeout,
        }
    }
}

/// The facts of an exchange that its attempts need.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The client that asks.
    pub client: Client<'a>,
    /// The record for the access log; `None` while the log is off.
    pub record: Option<&'a Record>,
    /// How long an endpoint may take no byte of the request.
    pub stall: Duration,
}

/// The upstreams of a snapshot.
pub trait Upstreams {
    /// One exchange's attempts.
    type Attempts<'a>: Attempts
    where
        Self: 'a;

    /// Begins an exchange with an upstream, by its index in the snapshot.
    fn attempts<'a>(&'a self, upstream: usize, asked: &'a Asked<'a>) -> Self::Attempts<'a>;
}

/// The attempts of one exchange. They remember the endpoints that were tried, and how many attempts are left.
pub trait Attempts {
    /// The lease of one attempt.
    type Lease: Lease;

    /// A lease for the next attempt, or why there is none.
    fn lease(&mut self) -> impl Future<Output = Result<Self::Lease, RefusalReason>>;

    /// Whether another attempt may follow the one over `failed`, which got no answer. It counts the failure,
    /// so call it once for each failed lease.
    fn again_after(&mut self, failed: &Self::Lease) -> bool;
}

/// A slot for one exchange on a connection to an endpoint; see the module.
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

    /// Ends the lease after the response was delivered whole. If the request was sent whole too and the
    /// endpoint goes on, the slot becomes free for other exchanges. Otherwise the connection closes in order,
    /// or the rest of the request is reset.
    fn complete(self);

    /// Makes the slot the end of a tunnel, after the endpoint agreed to another protocol.
    fn into_tunnel(self) -> Box<dyn TunnelEnd>;
}

/// The sending half. Order: `head`, `data`*, `finish`; no `finish` for a request without a body.
pub trait SendRequest {
    /// Queues the head. It may leave only with the first body part or with `flush`.
    fn head(&mut self, head: &RequestHead);
    /// Sends body bytes. Waits while the endpoint is slower than the client.
    fn data(&mut self, chunk: Chunk) -> impl Future<Output = Result<(), LeaseError>>;
    /// Ends the request.
    fn finish(&mut self, trailers: &Fields) -> impl Future<Output = Result<(), LeaseError>>;
    /// Sends bytes that were held back. The caller flushes before it waits for more of the body.
    fn flush(&mut self);
}

/// The receiving half. Its futures may be dropped and made again at any time: received bytes stay in the
/// half.
pub trait ReceiveResponse {
    /// The next head: interim ones, then the final one.
    fn head(&mut self) -> impl Future<Output = Result<ResponseHead, LeaseError>>;
    /// When the endpoint last took bytes of the request.
    fn taken_at(&self) -> Time;
    /// Whether the endpoint has yet to take bytes of the request.
    fn has_unsent(&self) -> bool;
    /// Whether nothing is received until bytes received before are taken. The endpoint is then not to blame
    /// for its silence.
    fn is_held(&self) -> bool;
    /// The next part of the body.
    fn part(&mut self) -> impl Future<Output = Result<BodyPart, LeaseError>>;
}
