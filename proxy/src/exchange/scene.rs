//! What an exchange needs to know beside its message.

use std::fmt;
use std::net::SocketAddr;

use super::record::Record;
use crate::counters::Counters;
use crate::http::forward::RequestId;
use crate::io::Io;
use crate::listen::Listener;
use crate::route::RouteTable;

/// See the module. `U`: the upstreams that routes lead to.
#[derive(Debug)]
pub struct Scene<'a, U> {
    /// Time, timers, memory.
    pub io: &'a Io,
    /// The worker's.
    pub counters: &'a Counters,
    /// Of the snapshot that this exchange runs under.
    pub routes: &'a RouteTable,
    /// The same snapshot's.
    pub upstreams: &'a U,
    /// The listener the request came in by.
    pub listener: &'a Listener,
    /// Who asks.
    pub client: Client<'a>,
    /// Who the client proved to be, for X-Forwarded-Client-Cert.
    pub identity: Option<&'a str>,
    /// The client's handshake is not over.
    pub is_early: bool,
    /// For a request without an id of its own.
    pub new_request_id: RequestId,
    /// What the access log is told; `None` while it is off.
    pub record: Option<&'a Record>,
}

impl<U> Scene<'_, U> {
    /// How the client reached us.
    pub(super) const fn scheme(&self) -> &'static str {
        self.listener.protocol.scheme()
    }

    /// Tells the access log, while it is on.
    pub(super) fn note(&self, tell: impl FnOnce(&Record)) {
        if let Some(record) = self.record {
            tell(record);
        }
    }
}

/// The client's end of its connection.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its address: that of its connection, or what a trusted proxy's PROXY header said.
    pub peer: SocketAddr,
    /// Where it connected to.
    pub local: Local<'a>,
    /// For where that is not known: the listener's address.
    pub fallback: Option<SocketAddr>,
}

impl Client<'_> {
    /// Where it connected to.
    #[must_use]
    pub fn destination(&self) -> Option<SocketAddr> {
        let local = match self.local {
            Local::Known(address) => Some(address),
            Local::Asked(ask) => ask(),
        };
        local.or(self.fallback)
    }
}

/// An address that is asked of the kernel only where somebody wants to know.
#[derive(Clone, Copy)]
pub enum Local<'a> {
    /// A PROXY header said it.
    Known(SocketAddr),
    /// The connection's own.
    Asked(&'a dyn Fn() -> Option<SocketAddr>),
}

impl fmt::Debug for Local<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(address) => formatter.debug_tuple("Known").field(address).finish(),
            Self::Asked(_) => formatter.write_str("Asked"),
        }
    }
}
