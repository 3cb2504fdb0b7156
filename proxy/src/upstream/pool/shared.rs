//! Connections that carry many exchanges at a time, each of which leases one exchange slot. Nothing uses this
//! pool before Sluice speaks HTTP/2 to endpoints.
//!
//! | a connection is | `lease` | its last `release` | `close`, `follow`, `drain` | its time is over |
//! |---|---|---|---|---|
//! | in use | takes a slot while there is one | idle | closing | no new lease, then as closing |
//! | idle | in use | | comes back | comes back |
//! | closing | | comes back | closing | |
//!
//! "Comes back" means to the caller, who closes it. A connection that dies is removed in any state, and its
//! leases come to nothing.

use std::num::NonZero;

use slab::Slab;

use super::ages::Ages;
use super::{Generations, PoolKey, Shelves};
use crate::error::PoolCloseReason;
use crate::time::Time;
use crate::upstream::endpoint::EndpointId;
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::model::PoolLimits;

/// The right to one exchange over a shared connection. It is given back by `SharedPool::release`: dropping it
/// loses the slot until its connection dies.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct ExchangeSlot(PoolKey);

impl ExchangeSlot {
    /// Its connection.
    #[must_use]
    pub const fn connection(&self) -> PoolKey {
        self.0
    }
}

/// See the module.
#[derive(Debug)]
pub struct SharedPool<C> {
    limits: PoolLimits,
    /// Without closed connections.
    shelves: Shelves,
    /// Of connections without leases.
    ages: Ages,
    connections: Slab<Shared<C>>,
    generations: Generations,
}

#[derive(Debug)]
struct Shared<C> {
    connection: C,
    endpoint: EndpointId,
    born: Time,
    /// Exchanges that the endpoint allows at a time.
    slots: u32,
    /// Exchanges that there are. They are more than `slots` only after the endpoint lowered its limit.
    leased: u32,
    /// No slot is leased any more, for this reason. A closed connection has leases: without any it is gone.
    closed: Option<PoolCloseReason>,
    generation: u32,
}

impl<C> Shared<C> {
    fn is_too_old(&self, limits: &PoolLimits, now: Time) -> bool {
        now.since(self.born) >= limits.max_lifetime
    }
}

impl<C> SharedPool<C> {
    /// An empty pool for these endpoints.
    #[must_use]
    pub fn new(limits: PoolLimits, endpoints: &EndpointSet) -> Self {
        let (shelves, ages) = (Shelves::new(endpoints), Ages::new(limits));
        Self { limits, shelves, ages, connections: Slab::new(), generations: Generations::default() }
    }

    /// Takes new limits.
    pub fn configure(&mut self, limits: PoolLimits) {
        self.limits = limits;
        self.ages.configure(limits);
    }

    /// Takes a new set of endpoints. Connections to endpoints that are gone are closed to new leases; if they
    /// have none, they come back.
    #[must_use]
    pub fn follow(&mut self, endpoints: &EndpointSet) -> Vec<C> {
        let gone = self.shelves.follow(endpoints);
        gone.into_iter().filter_map(|index| self.close_at(index, PoolCloseReason::EndpointRemoved)).collect()
    }

    /// Adds a connection with its first lease, which is the caller's. If its endpoint is gone meanwhile it
    /// has no other.
    pub fn insert(
        &mut self,
        endpoint: EndpointId,
        connection: C,
        slots: NonZero<u32>,
        born: Time,
    ) -> ExchangeSlot {
        let generation = self.generations.next();
        let closed = if self.shelves.has(endpoint) { None } else { Some(PoolCloseReason::EndpointRemoved) };
        let shared = Shared { connection, endpoint, born, slots: slots.get(), leased: 1, closed, generation };
        let index = self.connections.insert(shared) as u32;
        self.shelves.push(endpoint, index);
        ExchangeSlot(PoolKey { index, generation })
    }

    /// A slot of a connection to this endpoint, of the connection that has most leases, so that the others
    /// can age out. `None`: connect.
    pub fn lease(&mut self, endpoint: EndpointId, now: Time) -> Option<(ExchangeSlot, &C)> {
        let leased = |index: u32| {
            let shared = self.connections.get(index as usize)?;
            self.has_room(index, shared, now).then_some((shared.leased, index))
        };
        let (_, index) = self.shelves.of(endpoint).filter_map(leased).max_by_key(|(leased, _)| *leased)?;
        let shared = self.connections.get_mut(index as usize)?;
        if shared.leased == 0 {
            self.ages.leave(index);
        }
        shared.leased += 1;
        let slot = ExchangeSlot(PoolKey { index, generation: shared.generation });
        Some((slot, &shared.connection))
    }

    fn has_room(&self, index: u32, shared: &Shared<C>, now: Time) -> bool {
        let is_over = if shared.leased == 0 {
            self.ages.end_of(index).0 <= now
        } else {
            shared.is_too_old(&self.limits, now)
        };
        shared.leased < shared.slots && !is_over
    }

    /// An exchange is over. Its connection comes back if it is to be closed.
    pub fn release(&mut self, slot: ExchangeSlot, now: Time) -> Option<(C, PoolCloseReason)> {
        let limits = self.limits;
        let shared = self.get(slot.0)?;
        shared.leased -= 1;
        if shared.leased > 0 {
            return None;
        }
        let (born, closed, is_too_old) = (shared.born, shared.closed, shared.is_too_old(&limits, now));
        self.ages.enter(slot.0.index, born, now);
        let reason = match closed {
            Some(reason) => reason,
            None if is_too_old => PoolCloseReason::MaxLifetime,
            None if limits.max_idle == 0 => PoolCloseReason::MaxIdle,
            None => return None,
        };
        self.remove(slot.0).map(|connection| (connection, reason))
    }

    /// The endpoint allows so many exchanges at a time from now on. Leases that are too many go on.
    pub fn resize(&mut self, key: PoolKey, slots: u32) {
        if let Some(shared) = self.get(key) {
            shared.slots = slots;
        }
    }

    /// No slot of this connection is leased any more: the endpoint said GOAWAY, say. Its leases go on; if it
    /// has none, it comes back.
    pub fn close(&mut self, key: PoolKey, reason: PoolCloseReason) -> Option<C> {
        self.get(key)?;
        self.close_at(key.index, reason)
    }

    /// Takes out a connection that died. Its leases come to nothing.
    pub fn remove(&mut self, key: PoolKey) -> Option<C> {
        self.get(key)?;
        Some(self.take_out(key.index))
    }

    /// When `poll_expired` next has something to say, unless slots are leased before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.ages.next().map(|(deadline, ..)| deadline)
    }

    /// One connection that has no leases and whose time is over; ask until `None`.
    pub fn poll_expired(&mut self, now: Time) -> Option<(C, PoolCloseReason)> {
        let (_, index, reason) = self.ages.next().filter(|(deadline, ..)| *deadline <= now)?;
        Some((self.take_out(index), reason))
    }

    /// Closes every connection to new leases, for a drain. Those that have none come back.
    #[must_use]
    pub fn drain(&mut self) -> Vec<C> {
        let all: Vec<u32> = self.connections.iter().map(|(index, _)| index as u32).collect();
        all.into_iter().filter_map(|index| self.close_at(index, PoolCloseReason::Draining)).collect()
    }

    /// Connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn get(&mut self, key: PoolKey) -> Option<&mut Shared<C>> {
        self.connections.get_mut(key.index as usize).filter(|shared| shared.generation == key.generation)
    }

    fn take_out(&mut self, index: u32) -> C {
        let shared = self.connections.remove(index as usize);
        if shared.closed.is_none() {
            self.shelves.remove(shared.endpoint, index);
        }
        if shared.leased == 0 {
            self.ages.leave(index);
        }
        shared.connection
    }

    /// The first reason counts.
    fn close_at(&mut self, index: u32, reason: PoolCloseReason) -> Option<C> {
        let shared = self.connections.get_mut(index as usize)?;
        if shared.closed.is_none() {
            shared.closed = Some(reason);
            self.shelves.remove(shared.endpoint, index);
        }
        (shared.leased == 0).then(|| self.take_out(index))
    }
}

#[cfg(test)]
mod tests;
