//! The idle connections of one upstream on one worker, as the engine has them. The pool says which to reuse
//! and which to close, their streams are parked, and one timer serves all of them.

use std::cell::{Cell, RefCell};

use super::connection::Connection;
use super::endpoint::EndpointId;
use super::endpoint_set::EndpointSet;
use super::model::PoolLimits;
use super::pool::PoolKey;
use super::pool::idle::{IdlePool, Taken};
use crate::counters::{Counters, Plain};
use crate::error::PoolCloseReason;
use crate::io::stream::Tag;
use crate::io::tags;
use crate::io::{Io, TimerKey, Unreported};
use crate::time::Time;

/// Connections that are closed in one loop turn because their time is over.
const EXPIRED_PER_TURN: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct ParkedConnections {
    /// The upstream's in tags.
    id: u16,
    io: Io,
    counters: Counters,
    pool: RefCell<IdlePool<Connection>>,
    /// While this worker has no more streams than this, connections above `max_idle` are kept.
    streams_easy: usize,
    /// The timer, and when it will fire.
    timer: Cell<Option<(Time, TimerKey)>>,
    /// No connection is kept any more.
    draining: Cell<bool>,
}

impl ParkedConnections {
    /// None yet.
    pub(super) fn new(
        id: u16,
        (limits, endpoints): (PoolLimits, &EndpointSet),
        (io, streams_easy): (Io, usize),
        counters: Counters,
    ) -> Self {
        let pool = RefCell::new(IdlePool::new(limits, endpoints));
        let (timer, draining) = (Cell::new(None), Cell::new(false));
        Self { id, io, counters, pool, streams_easy, timer, draining }
    }

    /// Takes new limits.
    pub(super) fn configure(&self, limits: PoolLimits) {
        self.pool.borrow_mut().configure(limits);
        self.arm();
    }

    /// Closes the connections to endpoints that are gone.
    pub(super) fn follow(&self, endpoints: &EndpointSet) {
        let gone = self.pool.borrow_mut().follow(endpoints);
        for connection in gone {
            self.close(connection, PoolCloseReason::EndpointRemoved);
        }
    }

    /// A connection to this endpoint that can still carry an exchange.
    pub(super) fn reuse(&self, endpoint: EndpointId) -> Option<Connection> {
        loop {
            let taken = self.pool.borrow_mut().take(endpoint, self.io.now());
            match taken {
                Taken::Connection { connection, .. } => {
                    self.counters.decrement(Plain::UpstreamIdle);
                    // Unparked first: what arrives from now on belongs to the exchange.
                    connection.stream.unpark();
                    if let Some(connection) = self.lease_again(connection) {
                        return Some(connection);
                    }
                }
                Taken::Expired(connection, reason) => self.close(connection, reason),
                Taken::Nothing => return None,
            }
        }
    }

    /// A connection that was pinned, if it can still carry an exchange, and if its endpoint is still there.
    pub(super) fn lease_pinned(&self, connection: Connection) -> Option<Connection> {
        if self.pool.borrow().knows(connection.endpoint) {
            return self.lease_again(connection);
        }
        connection.release(PoolCloseReason::EndpointRemoved);
        None
    }

    /// An idle connection if it can carry another exchange; else it is closed.
    fn lease_again(&self, mut connection: Connection) -> Option<Connection> {
        let unfit = if connection.stream.is_reusable() {
            // The endpoint may have ended it, or spoken unasked, just before. Bytes that the ring has not
            // delivered yet would pass for the answer to a request that is still to be sent.
            connection.stream.unreported().map(|unreported| match unreported {
                Unreported::Bytes => PoolCloseReason::UnsolicitedBytes,
                Unreported::End => PoolCloseReason::ClosedByUpstream,
            })
        } else {
            Some(connection.unfit())
        };
        if let Some(reason) = unfit {
            connection.release(reason);
            return None;
        }
        self.counters.increment(Plain::UpstreamReuses);
        connection.reused = true;
        connection.sent_before = connection.stream.progress().sent;
        Some(connection)
    }

    /// Keeps a connection after an exchange that left it clean.
    pub(super) fn keep(&self, connection: Connection) {
        if self.draining.get() {
            return connection.release(PoolCloseReason::Draining);
        }
        if !connection.stream.is_reusable() {
            let reason = connection.unfit();
            return connection.release(reason);
        }
        // A slow client may hold what it received for long.
        connection.stream.begin_anew();
        let (endpoint, born, stream) = (connection.endpoint, connection.born, connection.stream.clone());
        let has_room = self.io.streams() <= self.streams_easy;
        let put = self.pool.borrow_mut().put(endpoint, connection, born, self.io.now(), has_room);
        match put {
            Ok(key) => {
                self.counters.increment(Plain::UpstreamIdle);
                stream.park(Tag { kind: tags::POOLED, key: self.tag_key(key) });
                self.arm();
            }
            Err((connection, reason)) => connection.release(reason),
        }
    }

    /// A connection spoke or died.
    pub(super) fn woken(&self, key: PoolKey) {
        let Some(connection) = self.pool.borrow_mut().remove(key) else { return };
        self.counters.decrement(Plain::UpstreamIdle);
        // TLS speaks by itself too: it may have sent a ticket for later.
        if connection.stream.is_secure() && connection.stream.is_reusable() {
            return self.keep(connection);
        }
        let reason = connection.unfit();
        connection.release(reason);
    }

    /// The timer fired.
    pub(super) fn expire(&self) {
        self.timer.set(None);
        for _ in 0..EXPIRED_PER_TURN {
            let Some((connection, reason)) = self.pool.borrow_mut().poll_expired(self.io.now()) else {
                break;
            };
            self.close(connection, reason);
        }
        self.arm();
    }

    /// Closes all, and keeps none from now on.
    pub(super) fn drain(&self) {
        self.draining.set(true);
        loop {
            let Some(connection) = self.pool.borrow_mut().drain() else { break };
            self.close(connection, PoolCloseReason::Draining);
        }
    }

    /// The keys of their tags.
    ///
    /// # Panics
    /// When the pool contradicts itself, or has no timer though it holds something.
    #[cfg(test)]
    pub(super) fn check(&self) -> Vec<u64> {
        let pool = self.pool.borrow();
        let keys = pool.check();
        assert!(keys.is_empty() || self.timer.get().is_some(), "a pool without a timer");
        assert!(keys.is_empty() || !self.draining.get(), "a pool holds something though it drains");
        keys.iter().map(|&key| self.tag_key(key)).collect()
    }

    /// Closes a connection that the pool gave up.
    fn close(&self, connection: Connection, reason: PoolCloseReason) {
        self.counters.decrement(Plain::UpstreamIdle);
        connection.release(reason);
    }

    const fn tag_key(&self, key: PoolKey) -> u64 {
        (self.id as u64) << 48 | key.to_bits()
    }

    /// Sets the timer to the pool's first deadline. If that connection is taken before, the timer finds
    /// nothing and is set again, which costs less than moving it each time.
    fn arm(&self) {
        let Some(deadline) = self.pool.borrow().next_deadline() else { return };
        match self.timer.get() {
            Some((armed, _)) if armed <= deadline => return,
            // There are more than `max_idle` now, or new limits.
            Some((_, later)) => self.io.cancel_timer(later),
            None => {}
        }
        let key = self.io.timer_at(deadline, Tag { kind: tags::POOL_TIMER, key: u64::from(self.id) });
        self.timer.set(Some((deadline, key)));
    }
}
