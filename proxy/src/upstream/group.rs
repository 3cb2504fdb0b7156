//! An upstream as one worker holds it. Balancer, idle connections and TLS sessions outlive snapshots; what a
//! snapshot says of the upstream stands beside them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::balance::RoundRobin;
use super::connect::Connector;
use super::endpoint::Tried;
use super::idle::IdleConnections;
use super::model;
use super::pool::IdleKey;
use crate::counters::Counters;
use crate::io::Io;
use crate::io::handshakes::Handshakes;

/// One upstream of one snapshot.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// What the snapshot says.
    pub config: Arc<model::Upstream>,
    /// What outlives it.
    pub group: Rc<Group>,
}

/// The endpoints of one upstream, and what a worker keeps of them from one snapshot to the next.
#[derive(Debug)]
pub struct Group {
    id: u16,
    pub(super) io: Io,
    pub(super) counters: Counters,
    pub(super) connector: Connector,
    pub(super) idle: IdleConnections,
    balancer: RefCell<RoundRobin>,
    /// Places the balancer's start.
    random: u64,
}

impl Group {
    /// Nothing connected yet. `id` names it in tags, and no other group that lives. `random` places the
    /// balancer's start.
    #[must_use]
    pub fn new(
        id: u16,
        config: &model::Upstream,
        io: Io,
        counters: Counters,
        handshakes: Rc<Handshakes>,
        random: u64,
    ) -> Self {
        Self {
            id,
            connector: Connector::new(config, io.clone(), counters.clone(), handshakes),
            idle: IdleConnections::new(id, config, io.clone(), counters.clone()),
            balancer: RefCell::new(RoundRobin::new(weights(config), random)),
            random,
            io,
            counters,
        }
    }

    /// Its id in tags.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// Takes a new snapshot's limits and endpoints. An upstream with other TLS has another group instead:
    /// connections under other rules of trust serve nobody any more, those in use included.
    pub fn configure(&self, config: &model::Upstream) {
        let addresses: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.address).collect();
        self.connector.retain(&addresses);
        self.balancer.borrow_mut().configure(weights(config), self.random);
        self.idle.configure(config.pool, &addresses);
    }

    /// The endpoint to try next, by index.
    pub(super) fn pick(&self, count: usize, tried: &Tried) -> Option<usize> {
        self.balancer.borrow_mut().pick(count, tried)
    }

    /// An idle connection spoke or died.
    pub fn woken(&self, key: IdleKey) {
        self.idle.woken(key);
    }

    /// The timer of the idle connections fired.
    pub fn expire(&self) {
        self.idle.expire();
    }

    /// Closes what is idle and keeps nothing from now on.
    pub fn drain(&self) {
        self.idle.drain();
    }

    /// The keys of its idle connections' tags.
    ///
    /// # Panics
    /// When the pool contradicts itself, or has no timer though it holds something.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Vec<u64> {
        self.idle.check()
    }
}

fn weights(config: &model::Upstream) -> Vec<u32> {
    config.endpoints.iter().map(|endpoint| endpoint.weight).collect()
}
