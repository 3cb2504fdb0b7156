//! Connections that carry one exchange at a time, while they carry none. The connection that was used last is
//! reused first, so that the others can age out.

use slab::Slab;

use super::ages::Ages;
use super::{Generations, PoolKey, Shelves};
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
    ages: Ages,
    idle: Slab<Idle<C>>,
    generations: Generations,
}

#[derive(Debug)]
struct Idle<C> {
    connection: C,
    endpoint: EndpointId,
    born: Time,
    generation: u32,
}

impl<C> IdlePool<C> {
    /// An empty pool for these endpoints.
    #[must_use]
    pub fn new(limits: PoolLimits, endpoints: &EndpointSet) -> Self {
        let (shelves, ages) = (Shelves::new(endpoints), Ages::new(limits));
        Self { limits, shelves, ages, idle: Slab::new(), generations: Generations::default() }
    }

    /// Takes new limits.
    pub fn configure(&mut self, limits: PoolLimits) {
        self.limits = limits;
        self.ages.configure(limits);
    }

    /// Takes a new set of endpoints. Connections to endpoints that are gone come back, to be closed.
    #[must_use]
    pub fn follow(&mut self, endpoints: &EndpointSet) -> Vec<C> {
        let gone = self.shelves.follow(endpoints);
        let take = |index: u32| {
            self.ages.leave(index);
            self.idle.remove(index as usize).connection
        };
        gone.into_iter().map(take).collect()
    }

    /// Whether the endpoint is in the current set.
    pub fn knows(&self, endpoint: EndpointId) -> bool {
        self.shelves.has(endpoint)
    }

    /// A connection to this endpoint, the most recently used first. Call again after `Expired`.
    pub fn take(&mut self, endpoint: EndpointId, now: Time) -> Taken<C> {
        let Some(index) = self.shelves.pop(endpoint) else {
            return Taken::Nothing;
        };
        let (end, reason) = self.ages.leave(index);
        let Idle { connection, born, .. } = self.idle.remove(index as usize);
        if end <= now { Taken::Expired(connection, reason) } else { Taken::Connection { connection, born } }
    }

    /// Puts a connection back. The caller parks its stream under the key, and closes it on refusal. Above
    /// `max_idle` it stays for a shorter time, and only if `has_room`: a worker that is short of sockets
    /// keeps no more.
    pub fn put(
        &mut self,
        endpoint: EndpointId,
        connection: C,
        born: Time,
        now: Time,
        has_room: bool,
    ) -> Result<PoolKey, (C, PoolCloseReason)> {
        let PoolLimits { max_idle, max_lifetime, .. } = self.limits;
        if now.since(born) >= max_lifetime {
            return Err((connection, PoolCloseReason::MaxLifetime));
        }
        if max_idle == 0 || (self.idle.len() >= max_idle && !has_room) {
            return Err((connection, PoolCloseReason::MaxIdle));
        }
        if !self.shelves.has(endpoint) {
            return Err((connection, PoolCloseReason::NotReusable));
        }
        let generation = self.generations.next();
        let index = self.idle.insert(Idle { connection, endpoint, born, generation }) as u32;
        self.shelves.push(endpoint, index);
        self.ages.enter(index, born, now);
        Ok(PoolKey { index, generation })
    }

    /// Takes out a connection that died or spoke while idle.
    pub fn remove(&mut self, key: PoolKey) -> Option<C> {
        if self.idle.get(key.index as usize)?.generation != key.generation {
            return None;
        }
        Some(self.take_out(key.index))
    }

    /// When `poll_expired` next has something to say, unless connections are taken before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.ages.next().map(|(deadline, ..)| deadline)
    }

    /// One connection whose time is over; ask until `None`.
    pub fn poll_expired(&mut self, now: Time) -> Option<(C, PoolCloseReason)> {
        let (_, index, reason) = self.ages.next().filter(|(deadline, ..)| *deadline <= now)?;
        Some((self.take_out(index), reason))
    }

    fn take_out(&mut self, index: u32) -> C {
        let Idle { connection, endpoint, .. } = self.idle.remove(index as usize);
        self.shelves.remove(endpoint, index);
        self.ages.leave(index);
        connection
    }

    /// Takes one connection out, for a drain; ask until `None`.
    pub fn drain(&mut self) -> Option<C> {
        let (_, index, _) = self.ages.next()?;
        Some(self.take_out(index))
    }

    /// The keys of its connections.
    ///
    /// # Panics
    /// When shelves and connections do not agree.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Vec<PoolKey> {
        let idle: Vec<_> = self.idle.iter().map(|(index, idle)| (index as u32, idle.endpoint)).collect();
        assert_eq!(self.shelves.list(), idle, "each idle connection is on the shelf of its endpoint");
        let mut aged: Vec<_> = self.ages.iter().collect();
        aged.sort_unstable();
        let indices: Vec<_> = idle.iter().map(|(index, _)| *index).collect();
        assert_eq!((aged, self.ages.count()), (indices, idle.len()), "each idle connection ages");
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
mod tests;
