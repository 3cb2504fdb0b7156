//! A connection to an endpoint. It knows how far its exchange came, and how it has to be closed.

use std::task::{Context, Poll, Waker};

use super::endpoint::EndpointId;
use crate::counters::{Counter, Counters, Plain};
use crate::error::PoolCloseReason;
use crate::exchange::tunnel::{Duplex, TunnelEnd};
use crate::io::Stream;
use crate::time::Time;

/// A connection to an endpoint. Dropping it closes it and counts why.
#[derive(Debug)]
pub struct Connection {
    pub(super) stream: Stream,
    pub(super) endpoint: EndpointId,
    pub(super) born: Time,
    counters: Counters,
    reason: PoolCloseReason,
    pub(super) end: End,
    /// Bytes the kernel had taken when this exchange leased it.
    pub(super) sent_before: u64,
    /// It carried an exchange before this one.
    pub(super) reused: bool,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By a reset: an exchange that was cut short may have left half a request in the queue, which must not
    /// go out.
    Reset,
    /// In order, ours first.
    Order,
    /// In order by the endpoint, which has announced it.
    Endpoint,
    /// It carries nothing any more: without a trace on this host.
    Release,
}

impl Connection {
    /// Made just now, and not used yet.
    pub(super) const fn new(stream: Stream, endpoint: EndpointId, born: Time, counters: Counters) -> Self {
        let reason = PoolCloseReason::NotReusable;
        Self { stream, endpoint, born, counters, reason, end: End::Reset, sent_before: 0, reused: false }
    }

    /// Its socket.
    #[must_use]
    pub const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Whether it came from the pool.
    #[must_use]
    pub const fn is_reused(&self) -> bool {
        self.reused
    }

    /// Whether the kernel took no byte of this exchange.
    #[must_use]
    pub fn sent_nothing(&self) -> bool {
        self.stream.progress().sent <= self.sent_before
    }

    /// Closes it after an exchange that was answered whole, and with which the endpoint ends it.
    pub(super) fn let_end(mut self) {
        self.end = End::Endpoint;
    }

    /// Closes it after an exchange that was answered whole: it serves no other.
    pub(super) fn close_used(self) {
        self.release(PoolCloseReason::NotReusable);
    }

    /// From now on it serves one client alone, and never returns to the pool. Dropping it resets it.
    #[must_use]
    pub fn into_tunnel(mut self) -> Self {
        self.reason = PoolCloseReason::Tunnel;
        self
    }

    /// Closes it between exchanges, for this reason.
    pub(super) fn release(mut self, reason: PoolCloseReason) {
        (self.reason, self.end) = (reason, End::Release);
    }

    /// Why it cannot be used, between exchanges: the endpoint ended it, or spoke unasked.
    pub(super) fn unfit(&self) -> PoolCloseReason {
        match self.stream.poll_read(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Some(_))) => PoolCloseReason::UnsolicitedBytes,
            Poll::Ready(_) => PoolCloseReason::ClosedByUpstream,
            Poll::Pending => PoolCloseReason::NotReusable,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        match self.end {
            End::Reset => self.stream.abort(),
            End::Order => self.stream.close(),
            End::Endpoint => self.stream.let_end(),
            End::Release => self.stream.release(),
        }
        self.counters.increment(Counter::PoolClosed(self.reason));
        self.counters.decrement(Plain::UpstreamOpen);
    }
}

impl TunnelEnd for Connection {
    fn duplex(&self) -> &dyn Duplex {
        &self.stream
    }

    fn close(mut self: Box<Self>) {
        self.end = End::Order;
    }
}
