//! Requests that arrive before their client's handshake is over (RFC 8446 §2.3). An attacker may have
//! recorded them and may replay them. So only requests that are safe to repeat are served then, and their
//! endpoint is told (RFC 8470 §5). Others wait until the handshake is over.

use std::task::{Context, Poll, Waker};

use super::crowd::HandshakePlace;
use super::seat::Seat;
use crate::counters::{Counter, Plain};
use crate::error::{HandshakeFailure, HandshakeKind};
use crate::exchange::Outcome;
use crate::http::message::{BodyLength, RequestHead};
use crate::http::upgrade;
use crate::io::StreamError;
use crate::time::Time;
use crate::tls::records::Violation;

/// A handshake that is not over while its connection is served.
#[derive(Debug)]
pub(crate) struct Early {
    /// Its place among those under way.
    _place: HandshakePlace,
    due: Time,
}

impl Early {
    pub(super) const fn new(place: HandshakePlace, due: Time) -> Self {
        Self { _place: place, due }
    }

    /// The deadline of the handshake.
    pub(super) const fn due(&self) -> Time {
        self.due
    }
}

/// Whether a request may be served before its client's handshake is over.
fn is_repeatable(head: &RequestHead) -> bool {
    head.method.is_safe()
        && head.body == BodyLength::None
        && !head.expects_continue()
        && upgrade::offered(head).is_none()
}

/// Waits until the request may be served. `Some(true)`: it is served before the handshake is over. `None`:
/// the handshake failed, or was not over in time.
pub(super) async fn admit(seat: &mut Seat, head: &RequestHead) -> Option<bool> {
    if seat.stream.is_early() && is_repeatable(head) {
        seat.worker.counters.increment(Plain::EarlyRequests);
        return Some(true);
    }
    settle(seat).await.then_some(false)
}

/// Runs an exchange that began early. If the handshake is not over when it is due, the exchange is cancelled,
/// even within its response: its place among the handshakes under way must become free.
pub(super) async fn within(seat: &Seat, exchange: impl Future<Output = Outcome>) -> Outcome {
    let mut exchange = Box::pin(exchange);
    let Some(early) = &seat.early else { return exchange.await };
    match seat.worker.io.timeout_at(early.due, exchange.as_mut()).await {
        Ok(outcome) => outcome,
        Err(_) if seat.stream.is_early() => Outcome::Cancelled,
        Err(_) => exchange.await,
    }
}

/// Waits until the handshake is over. `false`: it failed, or was not over in time.
pub(super) async fn settle(seat: &mut Seat) -> bool {
    let Some(early) = &seat.early else { return true };
    let ended = seat.worker.io.timeout_at(early.due, seat.stream.established()).await;
    count(seat, ended.ok());
    matches!(ended, Ok(Ok(())))
}

/// Counts how the handshake ended, for a connection that is about to be reset. The client may have completed
/// the handshake during the exchange.
pub(super) fn give_up(seat: &mut Seat) {
    if seat.early.is_some() {
        let ended = match seat.stream.poll_established(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => ended,
            Poll::Pending => Err(StreamError::Reset),
        };
        count(seat, Some(ended));
    }
}

/// Counts how the handshake ended; `None`: it was not over in time.
fn count(seat: &mut Seat, ended: Option<Result<(), StreamError>>) {
    seat.early = None;
    seat.worker.counters.increment(match ended {
        Some(Ok(())) => Counter::Handshake(HandshakeKind::Resumed13),
        Some(Err(_)) if seat.cancel.is_given() => Counter::HandshakeFailed(HandshakeFailure::Draining),
        Some(Err(StreamError::GaveWay)) => Counter::HandshakeFailed(HandshakeFailure::GaveWay),
        Some(Err(StreamError::Tls(Violation::Alert(_)))) => Counter::HandshakeFailed(HandshakeFailure::Alert),
        Some(Err(StreamError::Tls(Violation::Ours(_) | Violation::Unsaid))) => {
            Counter::HandshakeFailed(HandshakeFailure::Malformed)
        }
        Some(Err(_)) => Counter::HandshakeFailed(HandshakeFailure::ClientClosed),
        None => Counter::HandshakeFailed(HandshakeFailure::Timeout),
    });
}
