//! The connections of one upstream on one worker that exchanges may have, sans-IO: which to take, which to
//! close, and when. A pool never sees a socket: `C` is the connection. All that leaves a pool leaves it with
//! a reason.
//!
//! `idle` holds connections that carry one exchange at a time, as HTTP/1 does. A connection in use has left
//! the pool. `shared` holds connections that carry many, as HTTP/2 does. They stay, and the pool leases their
//! exchange slots.

pub mod idle;
pub mod shared;

use std::collections::HashSet;

use super::endpoint::{Endpoint, EndpointId};
use super::endpoint_set::EndpointSet;
use super::model::PoolLimits;
use crate::error::PoolCloseReason;
use crate::time::Time;

/// Names a connection in a pool. A stale key is harmless: no key is ever valid for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolKey {
    index: u32,
    generation: u32,
}

impl PoolKey {
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

/// The generations of a pool's keys, one for each connection.
#[derive(Debug, Default)]
struct Generations(u32);

impl Generations {
    const fn next(&mut self) -> u32 {
        let generation = self.0;
        self.0 = generation.wrapping_add(1) & 0xff_ffff;
        generation
    }
}

/// The connections that may be taken, by endpoint and by their index in the pool.
#[derive(Debug)]
struct Shelves(Vec<Shelf>);

/// Those of one endpoint, in the order in which they came.
#[derive(Debug)]
struct Shelf {
    endpoint: EndpointId,
    connections: Vec<u32>,
}

impl Shelves {
    fn new(endpoints: &EndpointSet) -> Self {
        let mut shelves = Self(Vec::new());
        shelves.add(endpoints);
        shelves
    }

    /// The connections to this endpoint; `None` if it is not in the set.
    fn of(&mut self, endpoint: EndpointId) -> Option<&mut Vec<u32>> {
        let shelf = self.0.iter_mut().find(|shelf| shelf.endpoint == endpoint);
        shelf.map(|shelf| &mut shelf.connections)
    }

    fn remove(&mut self, endpoint: EndpointId, index: u32) {
        if let Some(connections) = self.of(endpoint) {
            connections.retain(|other| *other != index);
        }
    }

    /// Takes a new set of endpoints. The connections of endpoints that are gone come back.
    fn follow(&mut self, endpoints: &EndpointSet) -> Vec<u32> {
        let mut gone = Vec::new();
        self.0.retain(|shelf| {
            let keep = endpoints.contains(shelf.endpoint);
            if !keep {
                gone.extend(&shelf.connections);
            }
            keep
        });
        self.add(endpoints);
        gone
    }

    fn add(&mut self, endpoints: &EndpointSet) {
        let known: HashSet<EndpointId> = self.0.iter().map(|shelf| shelf.endpoint).collect();
        let new = endpoints.iter().map(Endpoint::id).filter(|id| !known.contains(id));
        self.0.extend(new.map(|endpoint| Shelf { endpoint, connections: Vec::new() }));
    }

    fn clear(&mut self) {
        self.0.iter_mut().for_each(|shelf| shelf.connections.clear());
    }

    /// Every connection and its endpoint, by index.
    #[cfg(test)]
    fn list(&self) -> Vec<(u32, EndpointId)> {
        let of = |shelf: &Shelf| -> Vec<_> {
            shelf.connections.iter().map(|&index| (index, shelf.endpoint)).collect()
        };
        let mut list: Vec<_> = self.0.iter().flat_map(of).collect();
        list.sort_unstable_by_key(|(index, _)| *index);
        list
    }
}

/// When a connection that has been idle since `since` must go, and why.
fn expiry(limits: &PoolLimits, born: Time, since: Time) -> (Time, PoolCloseReason) {
    let idle = since + limits.idle_timeout;
    let lifetime = born + limits.max_lifetime;
    if lifetime < idle {
        (lifetime, PoolCloseReason::MaxLifetime)
    } else {
        (idle, PoolCloseReason::IdleTimeout)
    }
}

/// What the tests of pools share.
#[cfg(test)]
mod testing;
