//! The idle exchange slots of one upstream on one worker, sans-IO: which to reuse, which to close, and when.
//!
//! The pool never sees a socket: `C` is whatever carries a slot. The one that was used last is reused first,
//! so that the others can age out. Everything that leaves the pool leaves it with a reason.

use std::collections::HashSet;

use slab::Slab;

use super::endpoint::{Endpoint, EndpointId};
use super::endpoint_set::EndpointSet;
use super::model;
use crate::error::PoolCloseReason;
use crate::time::Time;

/// Names an idle slot. Stale keys are harmless: a key is never valid for another slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleKey {
    index: u32,
    generation: u32,
}

impl IdleKey {
    /// As 48 bits, to travel in an engine's tag.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        (self.index as u64 & 0xff_ffff) << 24 | (self.generation as u64 & 0xff_ffff)
    }

    /// From `to_bits`.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self { index: (bits >> 24 & 0xff_ffff) as u32, generation: (bits & 0xff_ffff) as u32 }
    }
}

/// The answer to `Pool::lease`.
#[derive(Debug)]
pub enum Lease<C> {
    /// A slot to use.
    Slot {
        /// What carries it.
        slot: C,
        /// When its connection was made.
        born: Time,
    },
    /// Not this one: close it and ask again.
    Expired(C, PoolCloseReason),
    /// None is idle: connect.
    Empty,
}

/// See the module.
#[derive(Debug)]
pub struct Pool<C> {
    limits: model::Pool,
    shelves: Vec<Shelf>,
    idle: Slab<Idle<C>>,
    generation: u32,
}

/// One endpoint's idle slots, most recently used last.
#[derive(Debug)]
struct Shelf {
    endpoint: EndpointId,
    stack: Vec<u32>,
}

#[derive(Debug)]
struct Idle<C> {
    slot: C,
    endpoint: EndpointId,
    born: Time,
    since: Time,
    generation: u32,
}

impl<C> Pool<C> {
    /// An empty pool for these endpoints.
    #[must_use]
    pub fn new(limits: model::Pool, endpoints: &EndpointSet) -> Self {
        let mut pool = Self { limits, shelves: Vec::new(), idle: Slab::new(), generation: 0 };
        pool.add_shelves(endpoints);
        pool
    }

    /// Takes new limits.
    pub const fn configure(&mut self, limits: model::Pool) {
        self.limits = limits;
    }

    /// Its endpoints are these from now on. Idle slots of endpoints that are gone come back, to be closed.
    #[must_use]
    pub fn follow(&mut self, endpoints: &EndpointSet) -> Vec<C> {
        let mut gone = Vec::new();
        let idle = &mut self.idle;
        self.shelves.retain(|shelf| {
            let keep = endpoints.contains(shelf.endpoint);
            if !keep {
                gone.extend(shelf.stack.iter().map(|index| idle.remove(*index as usize).slot));
            }
            keep
        });
        self.add_shelves(endpoints);
        gone
    }

    /// A slot to this endpoint, the most recently used first. Call again after `Expired`.
    pub fn lease(&mut self, endpoint: EndpointId, now: Time) -> Lease<C> {
        let Some(index) = self.shelf(endpoint).and_then(|shelf| shelf.stack.pop()) else {
            return Lease::Empty;
        };
        let Idle { slot, born, since, .. } = self.idle.remove(index as usize);
        match expiry(&self.limits, born, since) {
            (deadline, reason) if deadline <= now => Lease::Expired(slot, reason),
            _ => Lease::Slot { slot, born },
        }
    }

    /// Puts a slot back. The caller parks the stream under the key; on refusal it closes it.
    pub fn release(
        &mut self,
        endpoint: EndpointId,
        slot: C,
        born: Time,
        now: Time,
    ) -> Result<IdleKey, (C, PoolCloseReason)> {
        if now.since(born) >= self.limits.max_lifetime {
            return Err((slot, PoolCloseReason::MaxLifetime));
        }
        if self.idle.len() >= self.limits.max_idle {
            return Err((slot, PoolCloseReason::MaxIdle));
        }
        let generation = self.generation;
        let Some(shelf) = self.shelves.iter_mut().find(|shelf| shelf.endpoint == endpoint) else {
            return Err((slot, PoolCloseReason::NotReusable));
        };
        let index = self.idle.insert(Idle { slot, endpoint, born, since: now, generation }) as u32;
        shelf.stack.push(index);
        self.generation = generation.wrapping_add(1) & 0xff_ffff;
        Ok(IdleKey { index, generation })
    }

    /// Takes out a slot whose connection died or spoke while idle.
    pub fn remove(&mut self, key: IdleKey) -> Option<C> {
        if self.idle.get(key.index as usize)?.generation != key.generation {
            return None;
        }
        let idle = self.idle.remove(key.index as usize);
        if let Some(shelf) = self.shelf(idle.endpoint) {
            shelf.stack.retain(|index| *index != key.index);
        }
        Some(idle.slot)
    }

    /// When `poll_expired` next has something to say, unless slots are leased before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.idle.iter().map(|(_, idle)| expiry(&self.limits, idle.born, idle.since).0).min()
    }

    /// One slot whose time is over; ask until `None`.
    pub fn poll_expired(&mut self, now: Time) -> Option<(C, PoolCloseReason)> {
        let limits = self.limits;
        let (index, generation, reason) = self.idle.iter().find_map(|(index, idle)| {
            let (deadline, reason) = expiry(&limits, idle.born, idle.since);
            (deadline <= now).then_some((index as u32, idle.generation, reason))
        })?;
        self.remove(IdleKey { index, generation }).map(|slot| (slot, reason))
    }

    /// Takes everything out, for a drain.
    pub fn drain(&mut self) -> impl Iterator<Item = C> + '_ {
        self.shelves.iter_mut().for_each(|shelf| shelf.stack.clear());
        self.idle.drain().map(|idle| idle.slot)
    }

    /// Its idle slots.
    ///
    /// # Panics
    /// When shelves and slots do not agree.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Vec<IdleKey> {
        let mut shelved: Vec<u32> = Vec::new();
        for shelf in &self.shelves {
            for &index in &shelf.stack {
                let idle = self.idle.get(index as usize).expect("a shelf names an idle slot");
                assert_eq!(idle.endpoint, shelf.endpoint, "a slot on another endpoint's shelf");
            }
            shelved.extend(&shelf.stack);
        }
        shelved.sort_unstable();
        let idle: Vec<u32> = self.idle.iter().map(|(index, _)| index as u32).collect();
        assert_eq!(shelved, idle, "each idle slot is on one shelf");
        self.idle
            .iter()
            .map(|(index, idle)| IdleKey { index: index as u32, generation: idle.generation })
            .collect()
    }

    /// Idle slots.
    #[must_use]
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Whether none is idle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }

    fn shelf(&mut self, endpoint: EndpointId) -> Option<&mut Shelf> {
        self.shelves.iter_mut().find(|shelf| shelf.endpoint == endpoint)
    }

    fn add_shelves(&mut self, endpoints: &EndpointSet) {
        let known: HashSet<EndpointId> = self.shelves.iter().map(|shelf| shelf.endpoint).collect();
        let new = endpoints.iter().map(Endpoint::id).filter(|id| !known.contains(id));
        self.shelves.extend(new.map(|endpoint| Shelf { endpoint, stack: Vec::new() }));
    }
}

/// When a slot that has been idle since `since` must go, and why.
fn expiry(limits: &model::Pool, born: Time, since: Time) -> (Time, PoolCloseReason) {
    let idle = since + limits.idle_timeout;
    let lifetime = born + limits.max_lifetime;
    if lifetime < idle {
        (lifetime, PoolCloseReason::MaxLifetime)
    } else {
        (idle, PoolCloseReason::IdleTimeout)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const LIMITS: model::Pool = model::Pool {
        max_idle: 4,
        idle_timeout: Duration::from_secs(60),
        max_lifetime: Duration::from_secs(3600),
    };

    fn endpoint(last: u8) -> EndpointId {
        SocketAddr::from(([10, 0, 0, last], 80)).into()
    }

    fn set<const N: usize>(last: [u8; N]) -> EndpointSet {
        let member = |last| Endpoint { address: ([10, 0, 0, last], 80).into(), label: "".into(), weight: 1 };
        EndpointSet::new(last.map(member))
    }

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    fn leased<C>(lease: Lease<C>) -> Option<C> {
        match lease {
            Lease::Slot { slot, .. } => Some(slot),
            Lease::Expired(..) | Lease::Empty => None,
        }
    }

    #[test]
    fn reuses_the_last_first_and_only_for_its_endpoint() {
        let mut pool = Pool::new(LIMITS, &set([1, 2]));
        pool.release(endpoint(1), 'a', at(0), at(1)).expect("room");
        pool.release(endpoint(1), 'b', at(0), at(2)).expect("room");
        pool.release(endpoint(2), 'c', at(0), at(2)).expect("room");
        assert_eq!(leased(pool.lease(endpoint(1), at(3))), Some('b'));
        assert_eq!(leased(pool.lease(endpoint(1), at(3))), Some('a'));
        assert!(matches!(pool.lease(endpoint(1), at(3)), Lease::Empty));
        assert_eq!(leased(pool.lease(endpoint(2), at(3))), Some('c'));
    }

    #[test]
    fn refuses_above_max_idle_past_its_lifetime_and_for_unknown_endpoints() {
        let mut pool = Pool::new(LIMITS, &set([1]));
        assert_eq!(pool.release(endpoint(1), 9, at(0), at(3600)), Err((9, PoolCloseReason::MaxLifetime)));
        assert_eq!(pool.release(endpoint(3), 9, at(0), at(1)), Err((9, PoolCloseReason::NotReusable)));
        for slot in 0..4 {
            pool.release(endpoint(1), slot, at(0), at(1)).expect("room");
        }
        assert_eq!(pool.release(endpoint(1), 9, at(0), at(1)), Err((9, PoolCloseReason::MaxIdle)));
        assert_eq!(pool.len(), 4);
    }

    #[test]
    fn expires_by_idleness_and_by_age() {
        let mut pool = Pool::new(LIMITS, &set([1]));
        pool.release(endpoint(1), 'i', at(0), at(10)).expect("room");
        pool.release(endpoint(1), 'l', at(0), at(3590)).expect("room");
        assert_eq!(pool.next_deadline(), Some(at(70)));
        assert_eq!(pool.poll_expired(at(69)), None);
        assert_eq!(pool.poll_expired(at(70)), Some(('i', PoolCloseReason::IdleTimeout)));
        assert_eq!(pool.next_deadline(), Some(at(3600)));
        assert!(matches!(
            pool.lease(endpoint(1), at(3600)),
            Lease::Expired('l', PoolCloseReason::MaxLifetime)
        ));
        assert_eq!(pool.next_deadline(), None);
    }

    #[test]
    fn a_stale_key_removes_nothing() {
        let mut pool = Pool::new(LIMITS, &set([1]));
        let old = pool.release(endpoint(1), 'a', at(0), at(1)).expect("room");
        assert_eq!(leased(pool.lease(endpoint(1), at(1))), Some('a'));
        let new = pool.release(endpoint(1), 'b', at(0), at(1)).expect("room");
        assert_eq!(pool.remove(old), None);
        assert_eq!(pool.remove(IdleKey::from_bits(new.to_bits())), Some('b'));
        assert!(pool.is_empty());
    }

    #[test]
    fn a_reload_gives_back_what_lost_its_endpoint() {
        let mut pool = Pool::new(LIMITS, &set([1, 2]));
        pool.release(endpoint(1), 'a', at(0), at(1)).expect("room");
        pool.release(endpoint(2), 'b', at(0), at(1)).expect("room");
        assert_eq!(pool.follow(&set([2, 3])), vec!['a']);
        assert_eq!(pool.len(), 1);
        assert_eq!(leased(pool.lease(endpoint(2), at(2))), Some('b'));
        assert!(matches!(pool.lease(endpoint(1), at(2)), Lease::Empty));
    }

    proptest! {
        /// Whatever happens, a slot is in exactly one place: idle, leased, or closed.
        #[test]
        fn conserves_slots(steps in prop::collection::vec((0..5u8, 1..4u8, 0..40u64), 1..200)) {
            let mut pool = Pool::new(LIMITS, &set([1, 2]));
            let (mut clock, mut born, mut closed) = (0, 0_u32, 0_u32);
            let mut held: Vec<(EndpointId, u32, Time)> = Vec::new();
            let mut keys = Vec::new();
            for (step, last, passed) in steps {
                clock += passed;
                let now = at(clock);
                match step {
                    0 => {
                        held.push((endpoint(last), born, now));
                        born += 1;
                    }
                    1 => {
                        if let Some((endpoint, slot, made)) = held.pop() {
                            match pool.release(endpoint, slot, made, now) {
                                Ok(key) => keys.push(key),
                                Err(_) => closed += 1,
                            }
                        }
                    }
                    2 => match pool.lease(endpoint(last), now) {
                        Lease::Slot { slot, born } => held.push((endpoint(last), slot, born)),
                        Lease::Expired(..) => closed += 1,
                        Lease::Empty => {}
                    },
                    3 => {
                        if let Some(key) = keys.pop()
                            && pool.remove(key).is_some()
                        {
                            closed += 1;
                        }
                    }
                    _ => {
                        while let Some((_, reason)) = pool.poll_expired(now) {
                            prop_assert!(matches!(
                                reason,
                                PoolCloseReason::IdleTimeout | PoolCloseReason::MaxLifetime
                            ));
                            closed += 1;
                        }
                    }
                }
                prop_assert!(pool.len() <= LIMITS.max_idle);
                prop_assert_eq!(pool.len() as u32 + held.len() as u32 + closed, born);
                let stacked: usize = pool.shelves.iter().map(|shelf| shelf.stack.len()).sum();
                prop_assert_eq!(stacked, pool.len());
            }
            closed += pool.drain().count() as u32;
            prop_assert_eq!(held.len() as u32 + closed, born);
        }
    }
}
