//! A listener as configured, and the limits of its clients.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::http::limits::Limits as HeadLimits;
use crate::http::path;
use crate::http::underscores::Underscores;
use crate::tls::server::ServerTls;

/// `[[listener]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Unique.
    pub name: String,
    /// At least one.
    pub addresses: Vec<SocketAddr>,
    /// The protocol of its clients.
    pub protocol: Protocol,
    /// Some for `Protocol::Https`.
    pub tls: Option<Arc<ServerTls>>,
    /// Connections of `trusted_proxies` begin with a PROXY header, version 1 or 2.
    pub proxy_protocol: bool,
    /// Accept queue length.
    pub backlog: u32,
    /// Accept a connection with its first bytes, or after a second or so without any.
    pub defer_accept: bool,
    /// Listen on addresses that this host does not have yet (IP_FREEBIND, ip(7)).
    pub freebind: bool,
    /// `listener.timeouts`
    pub timeouts: Timeouts,
    /// How long a client that ended its side is served on; `None`: for as long as it takes.
    pub half_close: Option<Duration>,
    /// `listener.limits`
    pub limits: ListenerLimits,
    /// How its clients' requests are read.
    pub reading: Reading,
    /// Whose X-Forwarded-* and PROXY headers are believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Listener {
    /// Whether this address is one of `trusted_proxies`.
    #[must_use]
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// From accept, how long a client may take for its first request head, its handshake or its hello, a
    /// PROXY header included.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match (self.protocol, &self.tls) {
            (Protocol::TlsPassthrough { handshake_timeout, .. }, _) => handshake_timeout,
            (Protocol::Https, Some(tls)) => tls.handshake_timeout,
            _ => self.timeouts.request_header,
        }
    }
}

/// `listener.protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 and 1.0, by routes.
    Http,
    /// The same over TLS.
    Https,
    /// Anything, as bytes, to one upstream.
    Tcp {
        /// Index into `Config::upstreams`.
        upstream: usize,
    },
    /// TLS as it is, by the server name in its hello.
    TlsPassthrough {
        /// Where no route matches the name, or there is none; index into `Config::upstreams`.
        upstream: Option<usize>,
        /// `listener.tls.handshake_timeout`: until the hello is whole, from accept.
        handshake_timeout: Duration,
    },
}

impl Protocol {
    /// Whether routes decide about its clients' requests.
    #[must_use]
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// The scheme of URLs that lead to it, if there are any.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http | Self::Tcp { .. } | Self::TlsPassthrough { .. } => "http",
        }
    }
}

/// `listener.timeouts`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timeouts {
    /// Whole request head, from its first byte (from accept for the first).
    pub request_header: Duration,
    /// Between two reads of a request body.
    pub request_body: Duration,
    /// Idle between requests.
    pub keep_alive: Duration,
    /// Between two writes that make progress.
    pub send: Duration,
    /// Until a tunnel is closed over which no byte passes, either way.
    pub tunnel_idle: Duration,
    /// Bytes per second that a client must send of a request body, or take of a response. The average counts
    /// over the time in which the client was waited for, once that is ten seconds. `None`: no minimum.
    pub min_rate: Option<NonZero<u32>>,
}

/// `listener.limits`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerLimits {
    /// Bytes of a request head, request line included.
    pub header_bytes: usize,
    /// Fields of a request head.
    pub headers: usize,
    /// Bytes of the request target.
    pub uri_bytes: usize,
    /// Bytes of a request body; 0: no limit.
    pub body_bytes: u64,
    /// Requests on one connection; 0: no limit.
    pub requests_per_connection: u64,
}

impl ListenerLimits {
    /// Bounds of a request head, and the rules by which its path is read.
    #[must_use]
    pub const fn head(&self, reading: &Reading) -> HeadLimits {
        let Self { header_bytes, headers: fields, uri_bytes, .. } = *self;
        HeadLimits { header_bytes, fields, uri_bytes, paths: reading.paths }
    }
}

/// Keys of a listener for parts of a request that others may read in another way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `path_slashes` and `path_encoded_slashes`
    pub paths: path::Rules,
    /// `underscores`
    pub underscores: Underscores,
    /// `request_id = "keep"`: the X-Request-Id of every client is kept, not of trusted proxies alone.
    pub keeps_request_ids: bool,
}
