//! One line of the access log: its keys and their order. Every record has every key; a key that does not
//! apply is null.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use super::json::Object;
use crate::error::{CloseReason, RefusalReason};
use crate::http::date;
use crate::http::message::{RequestHead, Version};
use crate::tls::agreed::Agreed;

/// How long each phase took, in microseconds. The phases from `head` on add up to the whole. The worker looks
/// at the clock once per loop turn, so work within one turn takes 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the first byte of the hello until TLS was agreed upon; only of a connection's first request.
    pub handshake: Option<u32>,
    /// From the accept, or from the handshake's end, to the first byte; only of a connection's first request.
    pub accept: Option<u32>,
    /// Until the head was whole.
    pub head: Option<u32>,
    /// Until a route was found, and the body was here if the route has it read whole; the answers to requests
    /// before it go out first.
    pub route: Option<u32>,
    /// Waiting for a connection of the pool, over all attempts.
    pub pool: Option<u32>,
    /// Connecting, over all attempts.
    pub connect: Option<u32>,
    /// From the connection to the response's head.
    pub first_byte: Option<u32>,
    /// From the response's head until its last byte was queued for the client.
    pub last_byte: Option<u32>,
    /// All of it, from the first byte of the request.
    pub total: u32,
}

/// One exchange, or one connection that carried something else.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    /// When its first byte came, in microseconds since 1970.
    pub unix_micros: u64,
    /// The id in effect; empty: none was made.
    pub request_id: &'a str,
    /// The client.
    pub client: SocketAddr,
    /// `listener.name`
    pub listener: &'a str,
    /// Another protocol than the request's version.
    pub protocol: Option<&'static str>,
    /// The request as it is forwarded; `None`: its head was never whole.
    pub request: Option<&'a RequestHead>,
    /// The client's TLS; `None`: it is plain, or not ended here.
    pub tls: Option<&'a Agreed>,
    /// The server name of a connection whose TLS is passed through.
    pub server_name: Option<&'a str>,
    /// The status that the client got; `None`: none.
    pub status: Option<u16>,
    /// Why Sluice answered itself.
    pub refused: Option<RefusalReason>,
    /// Why the connection ends with it; `None`: it goes on.
    pub closed: Option<CloseReason>,
    /// Bytes that the client sent since the record before.
    pub received: u64,
    /// Bytes for the client, heads and framing included.
    pub sent: u64,
    /// The route.
    pub route: Option<&'a str>,
    /// `upstream.name`
    pub upstream: Option<&'a str>,
    /// The last endpoint that was tried.
    pub endpoint: Option<&'a str>,
    /// Connections that the request was tried on.
    pub attempts: u32,
    /// Whether the last of them had carried an exchange before.
    pub upstream_reused: Option<bool>,
    /// Which request of its connection it is, from 1.
    pub connection_request: u64,
    /// How long each phase took.
    pub phases: Phases,
}

impl Entry<'_> {
    /// Appends the line. A query may carry secrets, so it is written only `with_query`.
    pub fn write(&self, out: &mut Vec<u8>, with_query: bool) {
        let request = self.request;
        let mut object = Object::open(out);
        object.plain("time", |out| out.extend_from_slice(&date::rfc3339_micros(self.unix_micros)));
        object.string("request_id", Some(self.request_id.as_bytes()).filter(|id| !id.is_empty()));
        object.plain("client", |out| address(self.client, out));
        object.string("listener", self.listener.as_bytes());
        let protocol = self.protocol.or_else(|| request.map(|request| version(request.version)));
        object.string("protocol", protocol.map(str::as_bytes));
        match self.tls {
            Some(agreed) => {
                let mut tls = object.object("tls");
                tls.string("version", agreed.version().as_bytes());
                tls.string("cipher", agreed.cipher().map(str::as_bytes));
                tls.string("server_name", agreed.server_name.as_deref().map(str::as_bytes));
                tls.boolean("resumed", Some(agreed.is_resumed()));
                tls.string("client_certificate", agreed.client_certificate().map(str::as_bytes));
                tls.close();
            }
            None => object.string("tls", None),
        }
        object.string("method", request.map(|request| request.method.as_str().as_bytes()));
        let host =
            request.map(|request| request.authority.as_bytes()).or(self.server_name.map(str::as_bytes));
        object.string("host", host);
        let path = |request: &RequestHead| {
            if with_query { request.path_and_query.len() } else { request.path().len() }
        };
        object.string("path", request.map(|request| &request.path_and_query.as_bytes()[..path(request)]));
        object.number("status", self.status.map(u64::from));
        object.string("refused", self.refused.map(|reason| reason.label().as_bytes()));
        object.string("closed", self.closed.map(|reason| reason.label().as_bytes()));
        object.number("bytes_received", self.received);
        object.number("bytes_sent", self.sent);
        object.string("route", self.route.map(str::as_bytes));
        object.string("upstream", self.upstream.map(str::as_bytes));
        object.string("endpoint", self.endpoint.map(str::as_bytes));
        object.number("attempts", u64::from(self.attempts));
        object.boolean("upstream_reused", self.upstream_reused);
        object.number("connection_request", self.connection_request);
        let Phases { handshake, accept, head, route, pool, connect, first_byte, last_byte, total } =
            self.phases;
        let mut phases = object.object("micros");
        for (key, phase) in [
            ("handshake", handshake),
            ("accept", accept),
            ("head", head),
            ("route", route),
            ("pool", pool),
            ("connect", connect),
            ("first_byte", first_byte),
            ("last_byte", last_byte),
            ("total", Some(total)),
        ] {
            phases.number(key, phase.map(u64::from));
        }
        phases.close();
        object.close();
        out.push(b'\n');
    }
}

const fn version(version: Version) -> &'static str {
    match version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
        Version::Http2 => "HTTP/2",
    }
}

/// An IPv4-mapped address is shown as IPv4.
fn address(address: SocketAddr, out: &mut Vec<u8>) {
    // Writing to a vector cannot fail.
    let _ = match address.ip().to_canonical() {
        IpAddr::V4(ip) => write!(out, "{ip}:{}", address.port()),
        IpAddr::V6(ip) => write!(out, "[{ip}]:{}", address.port()),
    };
}

#[cfg(test)]
mod tests;
