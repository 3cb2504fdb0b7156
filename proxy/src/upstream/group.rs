//! An upstream as one worker holds it. Balancer, idle connections and TLS sessions outlive snapshots, and
//! follow the set of endpoints that is current; a snapshot's settings of the upstream stand beside them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::balance::{Balancer, Turn};
use super::connect::Connector;
use super::connection::Connection;
use super::endpoint::{Endpoint, Tried};
use super::endpoint_set::EndpointSet;
use super::model;
use super::parked::ParkedConnections;
use super::pool::PoolKey;
use crate::counters::Counters;
use crate::error::RefusalReason;
use crate::io::Io;
use crate::io::handshakes::Handshakes;
use crate::tls::records::Violation;

/// One upstream of one snapshot.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its settings.
    pub config: Arc<model::Upstream>,
    /// All that outlives the snapshot.
    pub group: Rc<Group>,
}

/// The current endpoints of one upstream, and all that a worker keeps of them.
#[derive(Debug)]
pub struct Group {
    id: u16,
    name: Arc<str>,
    pub(super) io: Io,
    pub(super) counters: Counters,
    connector: Connector,
    pub(super) parked: ParkedConnections,
    balancer: RefCell<Balancer>,
}

impl Group {
    /// Nothing connected yet. `id` names it in tags, and no other group that lives. `random` places the
    /// balancer's start. While the worker has more streams than `streams_easy`, the pool keeps to `max_idle`.
    #[must_use]
    pub fn new(
        id: u16,
        config: &model::Upstream,
        (io, streams_easy): (Io, usize),
        counters: Counters,
        handshakes: Rc<Handshakes>,
        random: u64,
    ) -> Self {
        let endpoints = EndpointSet::from(config);
        Self {
            id,
            name: Arc::clone(&config.name),
            connector: Connector::new(config, io.clone(), counters.clone(), handshakes),
            parked: ParkedConnections::new(
                id,
                (config.pool, &endpoints),
                (io.clone(), streams_easy),
                counters.clone(),
            ),
            balancer: RefCell::new(Balancer::round_robin(&endpoints, random)),
            io,
            counters,
        }
    }

    /// The upstream's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its id in tags.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// Takes a new snapshot's limits and endpoints. An upstream with other TLS has another group instead:
    /// connections under other rules of trust serve nobody any more, those in use included.
    pub fn configure(&self, config: &model::Upstream) {
        self.connector.configure(config);
        self.parked.configure(config.pool);
        self.follow(&EndpointSet::from(config));
    }

    /// Its endpoints are these from now on. Exchanges in progress choose from them too at their next attempt.
    pub fn follow(&self, endpoints: &EndpointSet) {
        self.connector.follow(endpoints);
        self.balancer.borrow_mut().follow(endpoints);
        self.parked.follow(endpoints);
    }

    /// The endpoint to try next.
    pub(super) fn pick(&self, tried: &Tried, turn: Turn) -> Option<Rc<Endpoint>> {
        self.balancer.borrow_mut().pick(tried, turn, self.io.now()).map(Rc::clone)
    }

    /// A new connection to this endpoint; see `Connector::connect`. The balancer hears how that went.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        timeout: Duration,
        introduction: Option<Vec<u8>>,
    ) -> Result<Connection, RefusalReason> {
        self.balancer.borrow_mut().connecting(endpoint.id(), self.io.now());
        let connected = self.connector.connect(endpoint, timeout, introduction).await;
        let is_good = match &connected {
            Ok(_) => true,
            // This host is short of something, which says nothing of the endpoint.
            Err(RefusalReason::NoPort | RefusalReason::Overloaded) => return connected,
            Err(_) => false,
        };
        self.balancer.borrow_mut().connected(endpoint.id(), is_good, self.io.now());
        connected
    }

    /// An endpoint ended TLS with this alert when the handshake seemed to be over.
    pub(super) fn refused(&self, endpoint: &Endpoint, alert: Violation) {
        self.connector.refused(endpoint, alert);
        self.balancer.borrow_mut().connected(endpoint.id(), false, self.io.now());
    }

    /// An idle connection spoke or died.
    pub fn woken(&self, key: PoolKey) {
        self.parked.woken(key);
    }

    /// The timer of the idle connections fired.
    pub fn expire(&self) {
        self.parked.expire();
    }

    /// Closes what is idle and keeps nothing from now on.
    pub fn drain(&self) {
        self.parked.drain();
    }

    /// The keys of its idle connections' tags.
    ///
    /// # Panics
    /// When the pool contradicts itself, or has no timer though it holds something.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Vec<u64> {
        self.parked.check()
    }
}
