//! One exchange's attempts with an upstream: which endpoints it tried, and what it may still try.

use std::rc::Rc;

use super::balance::Turn;
use super::connection::Connection;
use super::endpoint::{Endpoint, Tried};
use super::group::Upstream;
use super::h1::H1Lease;
use super::pin::{Pin, Pinning};
use crate::counters::Plain;
use crate::error::RefusalReason;
use crate::exchange::lease::{Asked, Upstreams};
use crate::exchange::record::{Phase, Record};
use crate::exchange::{Client, lease};
use crate::proxy_protocol::{self, Header};

/// See the module.
#[derive(Debug)]
pub struct Attempts<'a> {
    upstream: &'a Upstream,
    asked: &'a Asked<'a>,
    /// A pooled connection may be used. Not for a tunnel, and not if every connection begins with the PROXY
    /// header of its client.
    may_reuse: bool,
    /// The pin of the client's connection. `None`: it has none.
    pin: Option<&'a Pin>,
    /// The current attempt's connection is the pinned one.
    is_pinned: bool,
    tried: Tried,
    /// Whether the next pick takes the turn.
    turn: Turn,
    left: u32,
    /// The endpoint of the current attempt. It stays the same endpoint if the set changes meanwhile.
    endpoint: Option<Rc<Endpoint>>,
}

impl<'a> Attempts<'a> {
    fn new(upstream: &'a Upstream, asked: &'a Asked<'a>) -> Self {
        Self {
            upstream,
            asked,
            may_reuse: !upstream.config.send_proxy,
            pin: None,
            is_pinned: false,
            tried: Tried::default(),
            turn: Turn::Next,
            left: upstream.config.retry.attempts.max(1),
            endpoint: None,
        }
    }

    /// For a request of a client's connection, which has this pin.
    pub(super) fn of_client(upstream: &'a Upstream, asked: &'a Asked<'a>, pin: &'a Pin) -> Self {
        Self { pin: Some(pin), ..Self::new(upstream, asked) }
    }

    /// For a tunnel, which ends with its connection.
    #[must_use]
    pub fn of_tunnel(upstream: &'a Upstream, asked: &'a Asked<'a>) -> Self {
        Self { may_reuse: false, ..Self::new(upstream, asked) }
    }

    /// A connection to talk over.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connection(&mut self) -> Result<Connection, RefusalReason> {
        let Upstream { config, group } = self.upstream;
        let mut failed = RefusalReason::NoEndpoint;
        if let Some(connection) = self.pinned() {
            return Ok(connection);
        }
        while self.left > 0 {
            let Some(endpoint) = self.pick() else { return Err(failed) };
            self.endpoint = Some(Rc::clone(&endpoint));
            self.note(|record| record.attempt(&config.name, &endpoint.label));
            if self.may_reuse
                && let Some(connection) = group.parked.reuse(endpoint.id())
            {
                self.note(|record| record.connected(true));
                return Ok(connection);
            }
            self.note(|record| record.reached(Phase::Pool));
            let introduction = config.send_proxy.then(|| introduction(&self.asked.client));
            let connected = group.connect(&endpoint, config.connect_timeout, introduction).await;
            self.note(|record| record.connected(false));
            match connected {
                Ok(connection) => return Ok(connection),
                Err(reason) => failed = reason,
            }
            self.failed();
            self.left -= 1;
            if !config.retry.on.connect_failure {
                break;
            }
            if self.left > 0 {
                group.counters.increment(Plain::UpstreamRetries);
            }
        }
        Err(failed)
    }

    /// The connection that is pinned to the client's, if it can still carry an exchange.
    fn pinned(&mut self) -> Option<Connection> {
        let Upstream { config, group } = self.upstream;
        let taken = self.pin.and_then(|pin| pin.take(group));
        self.is_pinned = false;
        let (endpoint, connection) = taken?;
        let connection = group.parked.lease_pinned(connection)?;
        self.note(|record| record.attempt(&config.name, &endpoint.label));
        self.note(|record| record.connected(true));
        (self.endpoint, self.is_pinned) = (Some(endpoint), true);
        Some(connection)
    }

    /// The next of the endpoints that are current.
    fn pick(&mut self) -> Option<Rc<Endpoint>> {
        let group = &self.upstream.group;
        let turn = std::mem::replace(&mut self.turn, Turn::Stay);
        group.pick(&self.tried, turn).or_else(|| {
            // Every endpoint failed once; the attempts that are left may take any.
            self.tried.clear();
            group.pick(&self.tried, turn)
        })
    }

    /// The current endpoint comes after the others that this exchange has not tried.
    fn failed(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            self.tried.insert(endpoint);
        }
    }

    fn note(&self, tell: impl FnOnce(&Record)) {
        if let Some(record) = self.asked.record {
            tell(record);
        }
    }
}

/// The PROXY header that introduces the client to an endpoint.
fn introduction(client: &Client<'_>) -> Vec<u8> {
    let header = match client.destination() {
        Some(destination) => Header::Tcp { source: client.peer, destination },
        None => Header::Unknown,
    };
    let mut bytes = Vec::new();
    proxy_protocol::encode(header, &mut bytes);
    bytes
}

impl<'a> lease::Attempts for Attempts<'a> {
    type Lease = H1Lease<'a>;

    async fn lease(&mut self) -> Result<H1Lease<'a>, RefusalReason> {
        let connection = self.connection().await?;
        let pinning = Pinning::new(self.pin, self.endpoint.clone(), self.is_pinned);
        Ok(H1Lease::new(connection, self.upstream, self.asked.stall, pinning))
    }

    fn again_after(&mut self, failed: &H1Lease<'a>) -> bool {
        self.failed();
        if failed.is_reused() {
            // The other pooled connections may be as dead.
            self.may_reuse = false;
            if failed.sent_nothing() {
                // It was dead before the exchange, which costs no attempt. This happens once, since the next
                // connection is new.
                return true;
            }
        }
        self.left -= 1;
        self.left > 0 && self.upstream.config.retry.on.reset_before_response
    }
}

impl Upstreams for Vec<Upstream> {
    type Attempts<'a> = Attempts<'a>;

    fn attempts<'a>(&'a self, upstream: usize, asked: &'a Asked<'a>) -> Attempts<'a> {
        Attempts::new(&self[upstream], asked)
    }
}
