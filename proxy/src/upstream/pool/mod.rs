//! The connections of one upstream on one worker that exchanges may have, sans-IO: which to take, which to
//! close, and when. A pool never sees a socket: `C` is the connection. All that leaves a pool leaves it with
//! a reason.
//!
//! `idle` holds connections that carry one exchange at a time, as HTTP/1 does. A connection in use has left
//! the pool. `shared` holds connections that carry many, as HTTP/2 does. They stay, and the pool leases their
//! exchange slots.

//!
//! Which connections there are to each endpoint, and which goes next, `chain` and `ages` say without a
//! search.

mod ages;
mod chain;
pub mod idle;
pub mod shared;

use std::collections::HashSet;

use self::chain::{Chain, Links};
use super::endpoint::{Endpoint, EndpointId};
use super::endpoint_set::EndpointSet;

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
struct Shelves {
    shelves: Vec<Shelf>,
    links: Links,
}

/// Those of one endpoint, in the order in which they came.
#[derive(Debug)]
struct Shelf {
    endpoint: EndpointId,
    connections: Chain,
}

impl Shelves {
    fn new(endpoints: &EndpointSet) -> Self {
        let mut shelves = Self { shelves: Vec::new(), links: Links::default() };
        shelves.add(endpoints);
        shelves
    }

    /// Whether the endpoint is in the set.
    fn has(&self, endpoint: EndpointId) -> bool {
        self.shelves.iter().any(|shelf| shelf.endpoint == endpoint)
    }

    /// The connections to this endpoint, in the order in which they came.
    fn of(&self, endpoint: EndpointId) -> impl Iterator<Item = u32> + '_ {
        let shelf = self.shelves.iter().find(|shelf| shelf.endpoint == endpoint);
        shelf.into_iter().flat_map(move |shelf| self.links.iter(shelf.connections))
    }

    /// Adds a connection; `false` if its endpoint is not in the set.
    fn push(&mut self, endpoint: EndpointId, index: u32) -> bool {
        let shelf = self.shelves.iter_mut().find(|shelf| shelf.endpoint == endpoint);
        shelf.map(|shelf| self.links.push(&mut shelf.connections, index)).is_some()
    }

    /// Takes the connection to this endpoint that came last.
    fn pop(&mut self, endpoint: EndpointId) -> Option<u32> {
        let shelf = self.shelves.iter_mut().find(|shelf| shelf.endpoint == endpoint)?;
        let index = shelf.connections.last()?;
        self.links.remove(&mut shelf.connections, index);
        Some(index)
    }

    /// Takes a connection that is on the shelf of its endpoint.
    fn remove(&mut self, endpoint: EndpointId, index: u32) {
        if let Some(shelf) = self.shelves.iter_mut().find(|shelf| shelf.endpoint == endpoint) {
            self.links.remove(&mut shelf.connections, index);
        }
    }

    /// Takes a new set of endpoints. The connections of endpoints that are gone come back.
    fn follow(&mut self, endpoints: &EndpointSet) -> Vec<u32> {
        let Self { shelves, links } = self;
        let mut gone = Vec::new();
        shelves.retain(|shelf| {
            let keep = endpoints.contains(shelf.endpoint);
            if !keep {
                gone.extend(links.iter(shelf.connections));
            }
            keep
        });
        self.add(endpoints);
        gone
    }

    fn add(&mut self, endpoints: &EndpointSet) {
        let known: HashSet<EndpointId> = self.shelves.iter().map(|shelf| shelf.endpoint).collect();
        let new = endpoints.iter().map(Endpoint::id).filter(|id| !known.contains(id));
        self.shelves.extend(new.map(|endpoint| Shelf { endpoint, connections: Chain::default() }));
    }

    /// Every connection and its endpoint, by index.
    #[cfg(test)]
    fn list(&self) -> Vec<(u32, EndpointId)> {
        let of = |shelf: &Shelf| -> Vec<_> {
            self.links.iter(shelf.connections).map(|index| (index, shelf.endpoint)).collect()
        };
        let mut list: Vec<_> = self.shelves.iter().flat_map(of).collect();
        list.sort_unstable_by_key(|(index, _)| *index);
        list
    }
}

/// What the tests of pools share.
#[cfg(test)]
mod testing;
