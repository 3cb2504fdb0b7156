//! The surroundings of an exchange: everything that it needs to know beside its message.

use std::fmt;
use std::net::SocketAddr;

use super::left::Downstream;
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
    /// The worker's counters.
    pub counters: &'a Counters,
    /// The routes of the snapshot that this exchange began with.
    pub routes: &'a RouteTable,
    /// The upstreams of the same snapshot.
    pub upstreams: &'a U,
    /// The listener the request came in by.
    pub listener: &'a Listener,
    /// The client that asks.
    pub client: Client<'a>,
    /// Its connection, which tells whether it is still there.
    pub downstream: &'a dyn Downstream,
    /// The identity that the client's certificate proved: the value of X-Forwarded-Client-Cert. Empty: it was
    /// asked for a certificate and showed none. `None`: it was not asked.
    pub identity: Option<&'a str>,
    /// The client's handshake is not over.
    pub is_early: bool,
    /// For a request without an id of its own.
    pub new_request_id: RequestId,
    /// The record for the access log; `None` while the log is off.
    pub record: Option<&'a Record>,
}

impl<U> Scene<'_, U> {
    /// The scheme by which the client reached us.
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
    /// The client's address: its connection's, or the address in a trusted proxy's PROXY header.
    pub peer: SocketAddr,
    /// The address that the client connected to.
    pub local: Local<'a>,
    /// The listener's addresses: the first stands in where the address is not known.
    pub fallback: &'a [SocketAddr],
}

impl Client<'_> {
    /// The address that the client connected to; `None`: it is not known.
    #[must_use]
    pub fn destination(&self) -> Option<SocketAddr> {
        let local = match self.local {
            Local::Known(address) => Some(address),
            Local::Asked(ask) => ask(),
        };
        local.or_else(|| self.fallback.first().copied())
    }
}

/// An address that the kernel is asked for only when it is needed.
#[derive(Clone, Copy)]
pub enum Local<'a> {
    /// The address that a PROXY header named.
    Known(SocketAddr),
    /// The connection's own address.
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
