//! Connections that carry one exchange at a time, while they carry none. The connection that was used last is
//! reused first, so that the others can age out.

use slab::Slab;

use super::{Generations, PoolKey, Shelves, expiry};
use crate::error::PoolCloseReason;
use crate::time::Time;
use crate::upstream::endpoint::EndpointId;
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::model::PoolLimits;

/// The answer to `IdlePool::take`.
#[derive(Debug)]
pub enum Taken<C> {
    /// A connection to use.
    Connection {
        /// It left the pool.
        connection: C,
        /// When it was made.
        born: Time,
    },
    /// Not this one: close it and ask again.
    Expired(C, PoolCloseReason),
    /// None is idle: connect.
    Nothing,
}

/// See the module.
#[derive(Debug)]
pub struct IdlePool<C> {
    limits: PoolLimits,
    shelves: Shelves,
    idle: Slab<Idle<C>>,
    generations: Generations,
}

#[derive(Debug)]
struct Idle<C> {
    connection: C,
    endpoint: EndpointId,
    born: Time,
    since: Time,
    generation: u32,
}

impl<C> IdlePool<C> {
    /// An empty pool for these endpoints.
    #[must_use]
    pub fn new(limits: PoolLimits, endpoints: &EndpointSet) -> Self {
        let (shelves, generations) = (Shelves::new(endpoints), Generations::default());
        Self { limits, shelves, idle: Slab::new(), generations }
    }

    /// Takes new limits.
    pub const fn configure(&mut self, limits: PoolLimits) {
        self.limits = limits;
    }

    /// Takes a new set of endpoints. Connections to endpoints that are gone come back, to be closed.
    #[must_use]
    pub fn follow(&mut self, endpoints: &EndpointSet) -> Vec<C> {
        let gone = self.shelves.follow(endpoints);
        gone.into_iter().map(|index| self.idle.remove(index as usize).connection).collect()
    }

    /// A connection to this endpoint, the most recently used first. Call again after `Expired`.
    pub fn take(&mut self, endpoint: EndpointId, now: Time) -> Taken<C> {
        let Some(index) = self.shelves.of(endpoint).and_then(Vec::pop) else {
            return Taken::Nothing;
        };
        let Idle { connection, born, since, .. } = self.idle.remove(index as usize);
        match expiry(&self.limits, born, since) {
            (deadline, reason) if deadline <= now => Taken::Expired(connection, reason),
            _ => Taken::Connection { connection, born },
        }
    }

    /// Puts a connection back. The caller parks its stream under the key, and closes it on refusal.
    pub fn put(
        &mut self,
        endpoint: EndpointId,
        connection: C,
        born: Time,
        now: Time,
    ) -> Result<PoolKey, (C, PoolCloseReason)> {
        if now.since(born) >= self.limits.max_lifetime {
            return Err((connection, PoolCloseReason::MaxLifetime));
        }
        if self.idle.len() >= self.limits.max_idle {
            return Err((connection, PoolCloseReason::MaxIdle));
        }
        let Some(shelf) = self.shelves.of(endpoint) else {
            return Err((connection, PoolCloseReason::NotReusable));
        };
        let generation = self.generations.next();
        let index = self.idle.insert(Idle { connection, endpoint, born, since: now, generation }) as u32;
        shelf.push(index);
        Ok(PoolKey { index, generation })
    }

    /// Takes out a connection that died or spoke while idle.
    pub fn remove(&mut self, key: PoolKey) -> Option<C> {
        if self.idle.get(key.index as usize)?.generation != key.generation {
            return None;
        }
        let idle = self.idle.remove(key.index as usize);
        self.shelves.remove(idle.endpoint, key.index);
        Some(idle.connection)
    }

    /// When `poll_expired` next has something to say, unless connections are taken before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.idle.iter().map(|(_, idle)| expiry(&self.limits, idle.born, idle.since).0).min()
    }

    /// One connection whose time is over; ask until `None`.
    pub fn poll_expired(&mut self, now: Time) -> Option<(C, PoolCloseReason)> {
        let limits = self.limits;
        let (index, generation, reason) = self.idle.iter().find_map(|(index, idle)| {
            let (deadline, reason) = expiry(&limits, idle.born, idle.since);
            (deadline <= now).then_some((index as u32, idle.generation, reason))
        })?;
        self.remove(PoolKey { index, generation }).map(|connection| (connection, reason))
    }

    /// Takes everything out, for a drain.
    pub fn drain(&mut self) -> impl Iterator<Item = C> + '_ {
        self.shelves.clear();
        self.idle.drain().map(|idle| idle.connection)
    }

    /// The keys of its connections.
    ///
    /// # Panics
    /// When shelves and connections do not agree.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Vec<PoolKey> {
        let idle: Vec<_> = self.idle.iter().map(|(index, idle)| (index as u32, idle.endpoint)).collect();
        assert_eq!(self.shelves.list(), idle, "each idle connection is on the shelf of its endpoint");
        let key =
            |(index, idle): (usize, &Idle<C>)| PoolKey { index: index as u32, generation: idle.generation };
        self.idle.iter().map(key).collect()
    }

    /// Idle connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.idle.len()
    }

    /// Whether none is idle.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.idle.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::{LIMITS, at, endpoint, set};
    use super::*;

    fn connection<C>(taken: Taken<C>) -> Option<C> {
        match taken {
            Taken::Connection { connection, .. } => Some(connection),
            Taken::Expired(..) | Taken::Nothing => None,
        }
    }

    #[test]
    fn reuses_the_last_first_and_only_for_its_endpoint() {
        let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
        pool.put(endpoint(1), 'a', at(0), at(1)).expect("room");
        pool.put(endpoint(1), 'b', at(0), at(2)).expect("room");
        pool.put(endpoint(2), 'c', at(0), at(2)).expect("room");
        assert_eq!(connection(pool.take(endpoint(1), at(3))), Some('b'));
        assert_eq!(connection(pool.take(endpoint(1), at(3))), Some('a'));
        assert!(matches!(pool.take(endpoint(1), at(3)), Taken::Nothing));
        assert_eq!(connection(pool.take(endpoint(2), at(3))), Some('c'));
    }

    #[test]
    fn refuses_above_max_idle_past_its_lifetime_and_for_unknown_endpoints() {
        let mut pool = IdlePool::new(LIMITS, &set([1]));
        assert_eq!(pool.put(endpoint(1), 9, at(0), at(3600)), Err((9, PoolCloseReason::MaxLifetime)));
        assert_eq!(pool.put(endpoint(3), 9, at(0), at(1)), Err((9, PoolCloseReason::NotReusable)));
        for number in 0..4 {
            pool.put(endpoint(1), number, at(0), at(1)).expect("room");
        }
        assert_eq!(pool.put(endpoint(1), 9, at(0), at(1)), Err((9, PoolCloseReason::MaxIdle)));
        assert_eq!(pool.len(), 4);
    }

    #[test]
    fn expires_by_idleness_and_by_age() {
        let mut pool = IdlePool::new(LIMITS, &set([1]));
        pool.put(endpoint(1), 'i', at(0), at(10)).expect("room");
        pool.put(endpoint(1), 'l', at(0), at(3590)).expect("room");
        assert_eq!(pool.next_deadline(), Some(at(70)));
        assert_eq!(pool.poll_expired(at(69)), None);
        assert_eq!(pool.poll_expired(at(70)), Some(('i', PoolCloseReason::IdleTimeout)));
        assert_eq!(pool.next_deadline(), Some(at(3600)));
        assert!(matches!(
            pool.take(endpoint(1), at(3600)),
            Taken::Expired('l', PoolCloseReason::MaxLifetime)
        ));
        assert_eq!(pool.next_deadline(), None);
    }

    #[test]
    fn a_stale_key_removes_nothing() {
        let mut pool = IdlePool::new(LIMITS, &set([1]));
        let old = pool.put(endpoint(1), 'a', at(0), at(1)).expect("room");
        assert_eq!(connection(pool.take(endpoint(1), at(1))), Some('a'));
        let new = pool.put(endpoint(1), 'b', at(0), at(1)).expect("room");
        assert_eq!(pool.remove(old), None);
        assert_eq!(pool.remove(PoolKey::from_bits(new.to_bits())), Some('b'));
        assert!(pool.is_empty());
    }

    #[test]
    fn a_reload_gives_back_what_lost_its_endpoint() {
        let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
        pool.put(endpoint(1), 'a', at(0), at(1)).expect("room");
        pool.put(endpoint(2), 'b', at(0), at(1)).expect("room");
        assert_eq!(pool.follow(&set([2, 3])), vec!['a']);
        assert_eq!(pool.len(), 1);
        assert_eq!(connection(pool.take(endpoint(2), at(2))), Some('b'));
        assert!(matches!(pool.take(endpoint(1), at(2)), Taken::Nothing));
    }

    proptest! {
        /// Whatever happens, a connection is in exactly one place: idle, in use, or closed.
        #[test]
        fn conserves_connections(steps in prop::collection::vec((0..5u8, 1..4u8, 0..40u64), 1..200)) {
            let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
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
                        if let Some((endpoint, connection, made)) = held.pop() {
                            match pool.put(endpoint, connection, made, now) {
                                Ok(key) => keys.push(key),
                                Err(_) => closed += 1,
                            }
                        }
                    }
                    2 => match pool.take(endpoint(last), now) {
                        Taken::Connection { connection, born: made } => {
                            held.push((endpoint(last), connection, made));
                        }
                        Taken::Expired(..) => closed += 1,
                        Taken::Nothing => {}
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
                prop_assert_eq!(pool.check().len(), pool.len());
            }
            closed += pool.drain().count() as u32;
            prop_assert_eq!(held.len() as u32 + closed, born);
        }
    }
}
