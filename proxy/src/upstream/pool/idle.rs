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

    /// Whether the endpoint is in the current set.
    pub fn knows(&mut self, endpoint: EndpointId) -> bool {
        self.shelves.of(endpoint).is_some()
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
mod tests;
