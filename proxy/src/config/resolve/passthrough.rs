//! Routes of listeners that pass TLS through: nothing of a connection is known but the name that its hello
//! holds, so they have a host and an upstream and nothing else.

use std::net::Ipv4Addr;

use super::Resolver;
use super::route::names;
use crate::config::read::At;
use crate::config::schema::{self, Protocol};
use crate::config::units::quote;
use crate::route::Host;

/// Whether it names such a listener.
pub(super) fn is_for_it(route: &schema::Route, listeners: &[schema::Listener]) -> bool {
    of_it(listeners).any(|listener| names(route, &listener.name.value))
}

fn of_it(listeners: &[schema::Listener]) -> impl Iterator<Item = &schema::Listener> {
    listeners.iter().filter(|listener| listener.protocol == Protocol::TlsPassthrough)
}

impl Resolver<'_> {
    pub(super) fn check_passthrough(&self, routes: &[schema::Route], listeners: &[schema::Listener]) {
        for route in routes.iter().filter(|route| is_for_it(route, listeners)) {
            self.check_passthrough_route(route, listeners);
        }
        for listener in of_it(listeners).filter(|listener| listener.upstream.is_none()) {
            if !routes.iter().any(|route| names(route, &listener.name.value)) {
                let message = format!(
                    "no route names listener \"{}\": every connection is closed",
                    listener.name.value
                );
                self.context.warn("listener.upstream", listener.name.span.clone(), message);
            }
        }
    }

    fn check_passthrough_route(&self, route: &schema::Route, listeners: &[schema::Listener]) {
        let is_of_http =
            |name: &str| listeners.iter().any(|other| other.protocol.is_http() && other.name.value == name);
        for At { value: name, span } in route.listeners.iter().filter(|at| is_of_http(&at.value)) {
            let message =
                format!("{} speaks HTTP, and others that this route names pass TLS through", quote(name));
            self.error("route.listener", span.as_ref(), message, "a route of its own for each kind");
        }
        for At { value: key, span } in &route.of_http {
            let message = "has no meaning for a listener with protocol = \"tls-passthrough\"".to_owned();
            self.error(&format!("route.{key}"), span.as_ref(), message, "host and upstream alone");
        }
        if route.hosts.is_empty() && !route.is_doubtful {
            let message = "is missing: TLS is passed through by the name that a client looks for".to_owned();
            let expected = "a host name, or \"*.\" and a name; the rest goes to listener.upstream";
            self.error("route.host", route.span.as_ref(), message, expected);
        }
        for At { value: host, span } in &route.hosts {
            let is_address = match host {
                Host::Ipv6(_) => true,
                Host::Name(name) => name.parse::<Ipv4Addr>().is_ok(),
                Host::Under(_) => false,
            };
            if is_address {
                let message = format!("\"{host}\" is an address, which no client may name in TLS (RFC 6066)");
                self.error("route.host", span.as_ref(), message, "a host name, or \"*.\" and a name");
            }
        }
    }
}
