//! An upstream as one worker holds it: its pool and balancer, which outlive snapshots; and the way to a slot,
//! from the pool or by connecting.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::balance::RoundRobin;
use super::connection::Connection;
use super::pool::{IdleKey, Lease, Pool};
use super::{model, secure};
use crate::counters::{Counters, Plain};
use crate::error::{PoolCloseReason, RefusalReason};
use crate::io::handshakes::Handshakes;
use crate::io::stream::Tag;
use crate::io::tags;
use crate::io::{Chunk, Io};
use crate::time::Time;
use crate::tls::client::ClientTls;

/// One upstream of one snapshot: its configuration and the worker's lasting state for it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// What the snapshot says.
    pub config: Arc<model::Upstream>,
    /// Pool and balancer.
    pub state: Rc<State>,
}

/// What outlives a snapshot.
#[derive(Debug)]
pub struct State {
    /// Names it in tags; never used again by another upstream.
    id: u16,
    pub(super) io: Io,
    pub(super) counters: Counters,
    /// The worker's: what a loop turn has time for.
    handshakes: Rc<Handshakes>,
    pool: RefCell<Pool<Connection>>,
    balance: RefCell<RoundRobin>,
    /// Places the balancer's start.
    random: u64,
    /// When the pool's timer will fire; one timer serves the whole pool.
    timer: Cell<Option<Time>>,
    /// No slot is kept any more.
    draining: Cell<bool>,
    sessions: RefCell<Sessions>,
    /// When a failed handshake was last warned of.
    warned: Cell<Option<Time>>,
}

/// Sessions with endpoints that may be resumed.
#[derive(Debug, Default)]
struct Sessions {
    tls: Option<Arc<ClientTls>>,
    endpoints: HashMap<SocketAddr, Arc<ClientConfig>>,
}

/// At most so often an upstream's failed handshakes are warned of; all are counted.
const WARN_PAUSE: Duration = Duration::from_secs(10);

impl State {
    /// Nothing connected yet. `random` places the balancer's start.
    #[must_use]
    pub fn new(
        id: u16,
        config: &model::Upstream,
        io: Io,
        counters: Counters,
        handshakes: Rc<Handshakes>,
        random: u64,
    ) -> Self {
        let addresses = config.endpoints.iter().map(|endpoint| endpoint.address);
        Self {
            id,
            io,
            counters,
            handshakes,
            pool: RefCell::new(Pool::new(config.pool, addresses)),
            balance: RefCell::new(RoundRobin::new(weights(config), random)),
            random,
            timer: Cell::new(None),
            draining: Cell::new(false),
            sessions: RefCell::default(),
            warned: Cell::new(None),
        }
    }

    /// Its id in tags.
    #[must_use]
    pub const fn id(&self) -> u16 {
        self.id
    }

    /// Takes a new snapshot's limits and endpoints. An upstream with other TLS has another state instead:
    /// connections made under another word about whom to trust serve nobody any more, those in use included.
    pub fn configure(&self, config: &model::Upstream) {
        let addresses: Vec<_> = config.endpoints.iter().map(|endpoint| endpoint.address).collect();
        self.sessions.borrow_mut().endpoints.retain(|address, _| addresses.contains(address));
        self.balance.borrow_mut().configure(weights(config), self.random);
        let gone = self.pool.borrow_mut().configure(config.pool, &addresses);
        for connection in gone {
            self.counters.decrement(Plain::UpstreamIdle);
            connection.close(PoolCloseReason::EndpointRemoved);
        }
    }

    /// The endpoint to try next, by index.
    pub fn pick(&self, count: usize, tried: &super::endpoint::Tried) -> Option<usize> {
        self.balance.borrow_mut().pick(count, tried)
    }

    /// A pooled connection to `address` that can still carry an exchange.
    pub fn reuse(&self, address: SocketAddr) -> Option<Connection> {
        loop {
            let lease = self.pool.borrow_mut().lease(address, self.io.now());
            match lease {
                Lease::Slot { slot: mut connection, .. } => {
                    self.counters.decrement(Plain::UpstreamIdle);
                    // Unparked first: what arrives from now on belongs to the exchange.
                    connection.stream.unpark();
                    if !connection.stream.is_reusable() {
                        let reason = connection.unfit();
                        connection.close(reason);
                        continue;
                    }
                    self.counters.increment(Plain::UpstreamReuses);
                    connection.reused = true;
                    connection.sent_before = connection.stream.progress().sent;
                    return Some(connection);
                }
                Lease::Expired(connection, reason) => {
                    self.counters.decrement(Plain::UpstreamIdle);
                    connection.close(reason);
                }
                Lease::Empty => return None,
            }
        }
    }

    /// A new connection within `connect_timeout`, and TLS over it within that time again. `introduction` goes
    /// out ahead of everything.
    pub async fn connect(
        &self,
        endpoint: &model::Endpoint,
        config: &model::Upstream,
        introduction: Option<Vec<u8>>,
    ) -> Result<Connection, RefusalReason> {
        let mut connection = self.open(endpoint.address, config).await?;
        if let Some(bytes) = introduction {
            connection.stream.write(Chunk::from_vec(bytes));
        }
        if let Some(tls) = &config.tls {
            Box::pin(self.secure(&mut connection, endpoint, config, tls)).await?;
        }
        // All that belongs to no exchange.
        connection.sent_before = connection.stream.progress().sent + connection.stream.unsent() as u64;
        Ok(connection)
    }

    async fn secure(
        &self,
        connection: &mut Connection,
        endpoint: &model::Endpoint,
        config: &model::Upstream,
        tls: &Arc<ClientTls>,
    ) -> Result<(), RefusalReason> {
        let (settings, name, due) = (
            self.sessions_of(endpoint, tls),
            tls.server_name(endpoint.address.ip()),
            self.io.after(config.connect_timeout),
        );
        let made =
            secure::shake_hands(&self.io, &self.handshakes, &connection.stream, &settings, name, due).await;
        let error = match made {
            Ok(()) => {
                self.counters.increment(Plain::UpstreamHandshakes);
                return Ok(());
            }
            Err(error) => error,
        };
        self.counters.increment(Plain::UpstreamHandshakeFailures);
        if self.warned.get().is_none_or(|at| self.io.now().since(at) >= WARN_PAUSE) {
            self.warned.set(Some(self.io.now()));
            tracing::warn!(upstream = %config.name, endpoint = %endpoint.label, %error, "TLS with an \
                endpoint failed");
        }
        // The alert that tells why goes out in order.
        connection.clean = !matches!(error, secure::Error::Timeout);
        Err(if connection.clean { RefusalReason::UpstreamTls } else { RefusalReason::ConnectTimeout })
    }

    /// What connections to this endpoint are made with: its sessions are this worker's alone.
    fn sessions_of(&self, endpoint: &model::Endpoint, tls: &Arc<ClientTls>) -> Arc<ClientConfig> {
        let mut known = self.sessions.borrow_mut();
        if !known.tls.as_ref().is_some_and(|known| Arc::ptr_eq(known, tls)) {
            known.endpoints.clear();
            known.tls = Some(Arc::clone(tls));
        }
        Arc::clone(known.endpoints.entry(endpoint.address).or_insert_with(|| tls.with_own_sessions()))
    }

    async fn open(&self, address: SocketAddr, config: &model::Upstream) -> Result<Connection, RefusalReason> {
        let deadline = self.io.after(config.connect_timeout);
        let refusal = match self.io.timeout_at(deadline, self.io.connect(address)).await {
            Ok(Ok(stream)) => {
                self.counters.increment(Plain::UpstreamConnects);
                self.counters.increment(Plain::UpstreamOpen);
                return Ok(Connection::new(stream, address, self.io.now(), self.counters.clone()));
            }
            Ok(Err(crate::io::handle::ConnectError::Exhausted)) => RefusalReason::Overloaded,
            Ok(Err(_)) => RefusalReason::ConnectFailed,
            Err(_) => RefusalReason::ConnectTimeout,
        };
        self.counters.increment(Plain::UpstreamConnectFailures);
        Err(refusal)
    }

    /// Gives a connection back after an exchange that left it clean.
    pub fn release(&self, connection: Connection) {
        if self.draining.get() {
            return connection.close(PoolCloseReason::Draining);
        }
        if !connection.stream.is_reusable() {
            let reason = connection.unfit();
            return connection.close(reason);
        }
        // A slow client may hold what it received for long.
        connection.stream.begin_anew();
        let (address, born, stream) = (connection.address, connection.born, connection.stream.clone());
        let released = self.pool.borrow_mut().release(address, connection, born, self.io.now());
        match released {
            Ok(key) => {
                self.counters.increment(Plain::UpstreamIdle);
                stream.park(Tag { kind: tags::POOL_SLOT, key: u64::from(self.id) << 48 | key.to_bits() });
                self.arm();
            }
            Err((connection, reason)) => connection.close(reason),
        }
    }

    /// An idle connection spoke or died.
    pub fn woken(&self, key: IdleKey) {
        let Some(connection) = self.pool.borrow_mut().remove(key) else { return };
        self.counters.decrement(Plain::UpstreamIdle);
        // A ticket for later, say, which is TLS' own business.
        if connection.stream.is_secure() && connection.stream.is_reusable() {
            return self.release(connection);
        }
        let reason = connection.unfit();
        connection.close(reason);
    }

    /// The pool's timer fired.
    pub fn expire(&self) {
        self.timer.set(None);
        loop {
            let Some((connection, reason)) = self.pool.borrow_mut().poll_expired(self.io.now()) else {
                break;
            };
            self.counters.decrement(Plain::UpstreamIdle);
            connection.close(reason);
        }
        self.arm();
    }

    /// Closes what is idle and keeps nothing from now on.
    pub fn drain(&self) {
        self.draining.set(true);
        let idle: Vec<_> = self.pool.borrow_mut().drain().collect();
        for connection in idle {
            self.counters.decrement(Plain::UpstreamIdle);
            connection.close(PoolCloseReason::Draining);
        }
    }

    /// The tags' keys of its idle slots.
    ///
    /// # Panics
    /// When the pool contradicts itself, or has no timer though it holds something.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Vec<u64> {
        let pool = self.pool.borrow();
        let keys = pool.check();
        assert!(keys.is_empty() || self.timer.get().is_some(), "a pool without a timer");
        assert!(keys.is_empty() || !self.draining.get(), "a pool holds something though it drains");
        keys.iter().map(|key| u64::from(self.id) << 48 | key.to_bits()).collect()
    }

    /// One timer for the pool, at its first deadline. One that fires early finds nothing and arms again,
    /// which costs less than moving it at every lease.
    fn arm(&self) {
        if self.timer.get().is_some() {
            return;
        }
        if let Some(deadline) = self.pool.borrow().next_deadline() {
            self.io.timer_at(deadline, Tag { kind: tags::POOL_TIMER, key: u64::from(self.id) });
            self.timer.set(Some(deadline));
        }
    }
}

fn weights(config: &model::Upstream) -> Vec<u32> {
    config.endpoints.iter().map(|endpoint| endpoint.weight).collect()
}
