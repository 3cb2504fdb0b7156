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
    /// No message is half sent: it may be closed in order.
    pub(super) clean: bool,
    /// Bytes the kernel had taken when this exchange leased it.
    pub(super) sent_before: u64,
    /// It carried an exchange before this one.
    pub(super) reused: bool,
}

impl Connection {
    /// Made just now, and not used yet.
    pub(super) const fn new(stream: Stream, endpoint: EndpointId, born: Time, counters: Counters) -> Self {
        let reason = PoolCloseReason::NotReusable;
        Self { stream, endpoint, born, counters, reason, clean: false, sent_before: 0, reused: false }
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

    /// Closes it after an exchange that was answered whole but leaves it unusable.
    pub fn close_used(self) {
        self.close(PoolCloseReason::NotReusable);
    }

    /// From now on it serves one client alone, and never returns to the pool. Dropping it resets it.
    #[must_use]
    pub fn into_tunnel(mut self) -> Self {
        self.reason = PoolCloseReason::Tunnel;
        self
    }

    /// Closes it in order, for this reason.
    pub(super) fn close(mut self, reason: PoolCloseReason) {
        self.reason = reason;
        self.clean = true;
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
        // An exchange that was cut short may have left half a request in the queue: that must not go out.
        if self.clean {
            self.stream.close();
        } else {
            self.stream.abort();
        }
        self.counters.increment(Counter::PoolClosed(self.reason));
        self.counters.decrement(Plain::UpstreamOpen);
    }
}

impl TunnelEnd for Connection {
    fn duplex(&self) -> &dyn Duplex {
        &self.stream
    }

    fn close(self: Box<Self>) {
        Self::close(*self, PoolCloseReason::Tunnel);
    }
}
