//! Listeners: which protocol with which upstream, and addresses that stand in each other's way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::Resolver;
use crate::config::{schema, units};
use crate::listen::{Listener, Protocol};

impl Resolver<'_> {
    /// `None` only after an error.
    pub(super) fn listener(
        &self,
        listener: schema::Listener,
        upstreams: &BTreeMap<&str, usize>,
    ) -> Option<Arc<Listener>> {
        const KEY: &str = "listener.upstream";
        let protocol = match (listener.protocol, &listener.upstream) {
            (schema::Protocol::Tcp, Some(name)) => {
                Protocol::Tcp { upstream: self.upstream_index(KEY, name, upstreams)? }
            }
            (schema::Protocol::TlsPassthrough, name) => {
                let upstream = match name {
                    Some(name) => Some(self.upstream_index(KEY, name, upstreams)?),
                    None => None,
                };
                Protocol::TlsPassthrough { upstream, handshake_timeout: listener.tls.handshake_timeout }
            }
            (schema::Protocol::Tcp, None) => {
                let message = "is missing: a tcp listener has no routes".to_owned();
                self.error(KEY, listener.span.as_ref(), message, "the name of an [[upstream]]");
                return None;
            }
            (_, Some(name)) => {
                let message = format!(
                    "{} is for protocol = \"tcp\" and \"tls-passthrough\" alone",
                    units::quote(&name.value)
                );
                self.error(KEY, name.span.as_ref(), message, "a [[route]] to it, or protocol = \"tcp\"");
                return None;
            }
            (schema::Protocol::Http, None) => Protocol::Http,
            (schema::Protocol::Https, None) => Protocol::Https,
        };
        let tls = match protocol {
            Protocol::Https => Some(self.server_tls(&listener)?),
            _ => None,
        };
        Some(Arc::new(Listener {
            name: listener.name.value,
            addresses: listener.addresses.into_iter().map(|at| at.value).collect(),
            protocol,
            tls,
            proxy_protocol: listener.proxy_protocol,
            backlog: listener.backlog,
            defer_accept: listener.defer_accept,
            freebind: listener.freebind,
            timeouts: listener.timeouts,
            half_close: listener.half_close,
            limits: listener.limits,
            reading: listener.reading,
            trusted_proxies: listener.trusted_proxies,
        }))
    }
}

/// Whether the wildcard `by` of `address`'s own family covers `address`. `[::]` leaves IPv4 alone where its
/// port has an IPv4 listener.
pub(super) fn is_within(address: SocketAddr, by: SocketAddr) -> bool {
    by.ip().is_unspecified() && by.port() == address.port() && by.is_ipv4() == address.is_ipv4()
}
