//! The way to a new connection to an endpoint: TCP, the PROXY header that introduces the client, TLS.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connection::Connection;
use super::endpoint::Endpoint;
use super::endpoint_set::EndpointSet;
use super::handshake::{HandshakeError, shake_hands};
use super::model;
use super::tls_sessions::TlsSessions;
use super::warning::HandshakeWarning;
use crate::counters::{Counters, Plain};
use crate::error::RefusalReason;
use crate::io::handle::ConnectError;
use crate::io::handshakes::Handshakes;
use crate::io::{Chunk, Io};

/// Makes the connections of one upstream on one worker.
#[derive(Debug)]
pub(super) struct Connector {
    /// The upstream's name, for warnings.
    upstream: Arc<str>,
    io: Io,
    counters: Counters,
    /// The worker's: they limit the time that handshakes take of one loop turn.
    handshakes: Rc<Handshakes>,
    /// `None`: its endpoints speak no TLS.
    tls: Option<TlsSessions>,
    warning: HandshakeWarning,
}

impl Connector {
    pub(super) fn new(
        config: &model::Upstream,
        io: Io,
        counters: Counters,
        handshakes: Rc<Handshakes>,
    ) -> Self {
        let tls = config.tls.as_ref().map(|tls| TlsSessions::new(Arc::clone(tls)));
        let upstream = Arc::clone(&config.name);
        Self { upstream, io, counters, handshakes, tls, warning: HandshakeWarning::default() }
    }

    /// Forgets endpoints that are gone.
    pub(super) fn follow(&self, endpoints: &EndpointSet) {
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

    async fn open(&self, endpoint: &Endpoint, timeout: Duration) -> Result<Connection, RefusalReason> {
        let deadline = self.io.after(timeout);
        let refusal = match self.io.timeout_at(deadline, self.io.connect(endpoint.address)).await {
            Ok(Ok(stream)) => {
                self.counters.increment(Plain::UpstreamConnects);
                self.counters.increment(Plain::UpstreamOpen);
                return Ok(Connection::new(stream, endpoint.id(), self.io.now(), self.counters.clone()));
            }
            Ok(Err(ConnectError::Exhausted)) => RefusalReason::Overloaded,
            Ok(Err(_)) => RefusalReason::ConnectFailed,
            Err(_) => RefusalReason::ConnectTimeout,
        };
        self.counters.increment(Plain::UpstreamConnectFailures);
        Err(refusal)
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
        self.warning.failed(&self.upstream, endpoint, &error, self.io.now());
        // In order, so that the alert goes out, which says why.
        connection.clean = !matches!(error, HandshakeError::Timeout);
        Err(if connection.clean { RefusalReason::UpstreamTls } else { RefusalReason::ConnectTimeout })
    }
}
