//! The way to a new connection to an endpoint: TCP, the PROXY header that introduces the client, TLS.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connection::{Connection, End};
use super::endpoint::Endpoint;
use super::endpoint_set::EndpointSet;
use super::handshake::{HandshakeError, shake_hands};
use super::model;
use super::sources::Sources;
use super::tls_sessions::TlsSessions;
use super::warning::Warnings;
use crate::counters::{Counters, Plain};
use crate::error::RefusalReason;
use crate::io::handle::ConnectError;
use crate::io::handshakes::Handshakes;
use crate::io::{Chunk, Io, Stream};
use crate::tls::records::Violation;

/// Makes the connections of one upstream on one worker.
#[derive(Debug)]
pub(super) struct Connector {
    io: Io,
    counters: Counters,
    /// The worker's: they limit the time that handshakes take of one loop turn.
    handshakes: Rc<Handshakes>,
    /// `None`: its endpoints speak no TLS.
    tls: Option<TlsSessions>,
    sources: RefCell<Sources>,
    warnings: Warnings,
}

impl Connector {
    pub(super) fn new(
        config: &model::Upstream,
        io: Io,
        counters: Counters,
        handshakes: Rc<Handshakes>,
    ) -> Self {
        let tls = config.tls.as_ref().map(|tls| TlsSessions::new(Arc::clone(tls)));
        let sources = RefCell::new(Sources::new(&config.source));
        let warnings = Warnings::new(Arc::clone(&config.name));
        Self { io, counters, handshakes, tls, sources, warnings }
    }

    /// Takes a new snapshot's settings.
    pub(super) fn configure(&self, config: &model::Upstream) {
        self.sources.borrow_mut().configure(&config.source);
    }

    /// Forgets endpoints that are gone.
    pub(super) fn follow(&self, endpoints: &EndpointSet) {
        self.sources.borrow_mut().follow(endpoints);
        if let Some(tls) = &self.tls {
            tls.follow(endpoints);
        }
    }

    /// A new connection within `timeout`, and TLS over it within that time again. `introduction` goes out
    /// ahead of everything.
    pub(super) async fn connect(
        &self,
        endpoint: &Endpoint,
        timeout: Duration,
        introduction: Option<Vec<u8>>,
    ) -> Result<Connection, RefusalReason> {
        let mut connection = self.open(endpoint, timeout).await?;
        if let Some(bytes) = introduction {
            connection.stream.write(Chunk::from_vec(bytes));
        }
        if let Some(tls) = &self.tls {
            Box::pin(self.speak_tls(&mut connection, endpoint, tls, timeout)).await?;
        }
        // None of these bytes belongs to an exchange.
        connection.sent_before = connection.stream.progress().sent + connection.stream.unsent() as u64;
        Ok(connection)
    }

    /// An endpoint ended TLS with this alert when the handshake seemed to be over.
    pub(super) fn refused(&self, endpoint: &Endpoint, alert: Violation) {
        self.counters.increment(Plain::UpstreamHandshakeFailures);
        self.warnings.tls_failed(endpoint, &alert, self.io.now());
    }

    async fn open(&self, endpoint: &Endpoint, timeout: Duration) -> Result<Connection, RefusalReason> {
        let deadline = self.io.after(timeout);
        let refusal = match self.io.timeout_at(deadline, self.reach(endpoint)).await {
            Ok(Ok(stream)) => {
                self.counters.increment(Plain::UpstreamConnects);
                self.counters.increment(Plain::UpstreamOpen);
                return Ok(Connection::new(stream, endpoint.id(), self.io.now(), self.counters.clone()));
            }
            Ok(Err(refusal)) => refusal,
            Err(_) => RefusalReason::ConnectTimeout,
        };
        self.counters.increment(Plain::UpstreamConnectFailures);
        Err(refusal)
    }

    /// Connects from the addresses that there are, until one of them has a port left.
    async fn reach(&self, endpoint: &Endpoint) -> Result<Stream, RefusalReason> {
        let mut refusal = RefusalReason::NoPort;
        loop {
            let picked = self.sources.borrow_mut().pick(endpoint.address, self.io.now());
            let Ok(source) = picked else { return Err(refusal) };
            let connected = self.io.connect(endpoint.address, source).await;
            let now = self.io.now();
            match connected {
                Ok(stream) => {
                    self.sources.borrow_mut().connected(endpoint.address, source);
                    return Ok(stream);
                }
                Err(ConnectError::NoPort) => {
                    refusal = RefusalReason::NoPort;
                    self.warnings.no_port(endpoint, now);
                }
                Err(ConnectError::Unbound(errno)) => {
                    refusal = RefusalReason::ConnectFailed;
                    self.warnings.unbound(source, errno, now);
                }
                Err(ConnectError::Exhausted) => return Err(RefusalReason::Overloaded),
                Err(ConnectError::Os(_)) => return Err(RefusalReason::ConnectFailed),
            }
            self.sources.borrow_mut().failed(endpoint.address, source, now);
        }
    }

    async fn speak_tls(
        &self,
        connection: &mut Connection,
        endpoint: &Endpoint,
        tls: &TlsSessions,
        timeout: Duration,
    ) -> Result<(), RefusalReason> {
        let (settings, name, due) =
            (tls.settings(endpoint.id()), tls.server_name(endpoint.address.ip()), self.io.after(timeout));
        let made = shake_hands(&self.io, &self.handshakes, &connection.stream, &settings, name, due).await;
        let Err(error) = made else {
            self.counters.increment(Plain::UpstreamHandshakes);
            return Ok(());
        };
        self.counters.increment(Plain::UpstreamHandshakeFailures);
        self.warnings.tls_failed(endpoint, &error, self.io.now());
        // In order, so that the alert goes out, which says why.
        if matches!(error, HandshakeError::Timeout) {
            return Err(RefusalReason::ConnectTimeout);
        }
        connection.end = End::Order;
        Err(RefusalReason::UpstreamTls)
    }
}
