//! `[[listener]]` with its timeouts and limits.

use std::net::SocketAddr;
use std::num::NonZero;
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;

use super::{DAY, KIB, MIB, MINUTE, SECOND, TIMEOUT, Tls, listen_address, name, tls, to_u32, to_usize};
use crate::config::read::{At, Table};
use crate::config::units;
use crate::http::path::{Rules, Slashes};
use crate::http::underscores::Underscores;
use crate::listen::{ListenerLimits, Reading, Timeouts};

/// `[[listener]]`
#[derive(Debug)]
pub(in crate::config) struct Listener {
    pub(in crate::config) name: At<String>,
    pub(in crate::config) addresses: Vec<At<SocketAddr>>,
    pub(in crate::config) protocol: Protocol,
    pub(in crate::config) tls: Tls,
    pub(in crate::config) upstream: Option<At<String>>,
    pub(in crate::config) proxy_protocol: bool,
    pub(in crate::config) backlog: u32,
    pub(in crate::config) defer_accept: bool,
    pub(in crate::config) freebind: bool,
    pub(in crate::config) timeouts: Timeouts,
    pub(in crate::config) half_close: Option<Duration>,
    pub(in crate::config) limits: ListenerLimits,
    pub(in crate::config) header_bytes_at: Option<Range<usize>>,
    pub(in crate::config) reading: Reading,
    pub(in crate::config) trusted_proxies: Vec<IpNet>,
    /// The table's header.
    pub(in crate::config) span: Option<Range<usize>>,
}

/// `listener.protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Protocol {
    Http,
    Https,
    Tcp,
    TlsPassthrough,
}

impl Protocol {
    /// Whether it speaks HTTP, so that routes without listeners are for it.
    pub(in crate::config) const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// As written.
    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Tcp => "tcp",
            Self::TlsPassthrough => "tls-passthrough",
        }
    }
}

pub(super) fn listener(mut table: Table<'_, '_>) -> Listener {
    let name = name(&mut table);
    let addresses = addresses(&mut table);
    let built = [Protocol::Http, Protocol::Https, Protocol::Tcp, Protocol::TlsPassthrough];
    let protocol = table.choice("protocol", &built.map(|protocol| (protocol.name(), protocol)), &[]);
    let upstream = table.string("upstream").filter(|name| !name.value.is_empty());
    if !protocol.is_http() {
        only_of_http(&table, protocol, "limits", "none: they are of HTTP requests");
    }
    let backlog = to_u32(table.integer("backlog", 4096, 1..=1 << 20).value);
    let defer_accept = defer_accept(&mut table, protocol);
    let freebind = table.boolean("freebind", false);
    let (proxy_protocol, trusted_proxies) = proxies(&mut table, protocol);
    let tls = tls::tls(&mut table, protocol);
    let timeouts = timeouts(table.table("timeouts"), protocol);
    let half_close = half_close(&mut table, protocol);
    let (limits, header_bytes_at) = limits(table.table("limits"));
    let reading = reading(&mut table, protocol);
    let span = table.span();
    table.finish();
    Listener {
        name,
        addresses,
        protocol,
        tls,
        upstream,
        proxy_protocol,
        backlog,
        defer_accept,
        freebind,
        timeouts,
        half_close,
        limits,
        header_bytes_at,
        reading,
        trusted_proxies,
        span,
    }
}

fn addresses(table: &mut Table<'_, '_>) -> Vec<At<SocketAddr>> {
    let written = table.has("address");
    let texts = table.strings("address", true);
    if !written || (texts.is_empty() && table.is_empty_list("address")) {
        table.missing(
            "address",
            "an address with a port such as \"127.0.0.1:8080\" or \"[::]:443\", or a list of them",
        );
    }
    texts.into_iter().filter_map(|text| listen_address(table, "address", text)).collect()
}

fn defer_accept(table: &mut Table<'_, '_>, protocol: Protocol) -> bool {
    let is_tcp = protocol == Protocol::Tcp;
    // A server that speaks first would be connected a second late, since its client says nothing before.
    let defer_accept = table.boolean("defer_accept", !is_tcp);
    if is_tcp && defer_accept {
        only_of_http(
            table,
            protocol,
            "defer_accept",
            "false: a server that speaks first would be connected a second late",
        );
    }
    defer_accept
}

/// `proxy_protocol` and `trusted_proxies`.
fn proxies(table: &mut Table<'_, '_>, protocol: Protocol) -> (bool, Vec<IpNet>) {
    let proxy_protocol = table.choice("proxy_protocol", &[("off", false), ("accept", true)], &[]);
    let trusts_written = table.has("trusted_proxies");
    let trusted_proxies: Vec<IpNet> =
        table.networks("trusted_proxies").into_iter().map(|at| at.value).collect();
    if proxy_protocol && (!trusts_written || table.is_empty_list("trusted_proxies")) {
        let message = "nobody is trusted, so nobody's PROXY header would be read".to_owned();
        table.error(
            "proxy_protocol",
            table.value_span("proxy_protocol"),
            message,
            "trusted_proxies with the proxies before us",
        );
    } else if !protocol.is_http() && !proxy_protocol && !trusted_proxies.is_empty() {
        let message = "has no effect without proxy_protocol: nothing but HTTP has X-Forwarded-*".to_owned();
        table.error(
            "trusted_proxies",
            table.value_span("trusted_proxies"),
            message,
            "proxy_protocol = \"accept\", or none",
        );
    }
    (proxy_protocol, trusted_proxies)
}

/// Reports a key that a listener of another protocol cannot have.
pub(super) fn only_of_http(table: &Table<'_, '_>, protocol: Protocol, key: &str, expected: &str) {
    if table.has(key) {
        let message = format!("has no meaning for protocol = \"{}\"", protocol.name());
        table.error(key, table.value_span(key), message, expected);
    }
}

/// `path_slashes`, `path_encoded_slashes`, `underscores` and `request_id`.
fn reading(table: &mut Table<'_, '_>, protocol: Protocol) -> Reading {
    if !protocol.is_http() {
        for key in ["path_slashes", "path_encoded_slashes", "underscores", "request_id"] {
            only_of_http(table, protocol, key, "none: it is about HTTP requests");
        }
    }
    let slashes = [("keep", Slashes::Keep), ("merge", Slashes::Merge), ("reject", Slashes::Reject)];
    let underscores = [
        ("drop-colliding", Underscores::DropColliding),
        ("keep", Underscores::Keep),
        ("drop", Underscores::Drop),
    ];
    Reading {
        paths: Rules {
            slashes: table.choice("path_slashes", &slashes, &[]),
            rejects_encoded: table.choice("path_encoded_slashes", &[("keep", false), ("reject", true)], &[]),
        },
        underscores: table.choice("underscores", &underscores, &[]),
        keeps_request_ids: table.choice("request_id", &[("replace", false), ("keep", true)], &[]),
    }
}

fn timeouts(mut table: Table<'_, '_>, protocol: Protocol) -> Timeouts {
    let (keys, expected) = match protocol {
        Protocol::Http | Protocol::Https => (&[][..], ""),
        Protocol::Tcp => (
            &["request_body", "keep_alive", "min_rate"][..],
            "send and tunnel_idle, and request_header for a PROXY header",
        ),
        Protocol::TlsPassthrough => (
            &["request_header", "request_body", "keep_alive", "min_rate"][..],
            "send and tunnel_idle, and tls.handshake_timeout for the hello",
        ),
    };
    for key in keys {
        only_of_http(&table, protocol, key, expected);
    }
    let timeouts = Timeouts {
        request_header: table.duration("request_header", 30 * SECOND, TIMEOUT),
        request_body: table.duration("request_body", 120 * SECOND, TIMEOUT),
        keep_alive: table.duration("keep_alive", 75 * SECOND, TIMEOUT),
        send: table.duration("send", 60 * SECOND, TIMEOUT),
        tunnel_idle: table.duration("tunnel_idle", 10 * MINUTE, TIMEOUT),
        min_rate: table
            .parsed("min_rate", units::BYTE_RATE_FORM, units::byte_rate)
            .map_or(NonZero::new(100), |at| at.value),
    };
    table.finish();
    timeouts
}

/// How long a client that ended its side is served on.
fn half_close(table: &mut Table<'_, '_>, protocol: Protocol) -> Option<Duration> {
    const KEY: &str = "half_close";
    if !protocol.is_http() {
        only_of_http(table, protocol, KEY, "none: each side of a tunnel ends by itself");
    }
    table.parsed(KEY, "\"off\" or a duration up to 1d", patience).map_or(Some(2 * SECOND), |at| at.value)
}

/// `None`: for as long as it takes.
fn patience(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    let patience = units::duration(text)?;
    if patience <= DAY { Ok(Some(patience)) } else { Err(format!("{} is more than 1d", units::quote(text))) }
}

fn limits(mut table: Table<'_, '_>) -> (ListenerLimits, Option<Range<usize>>) {
    let header_bytes = table.size("header_bytes", 32 * KIB, KIB..=MIB);
    let headers = table.integer("headers", 100, 1..=1000).value;
    let uri_bytes = table.size("uri_bytes", 8 * KIB, 64..=MIB);
    let limits = ListenerLimits {
        header_bytes: to_usize(header_bytes.value),
        headers: to_usize(headers),
        uri_bytes: to_usize(uri_bytes.value),
        body_bytes: table.size("body_bytes", 0, 0..=u64::MAX).value,
        requests_per_connection: table.integer("requests_per_connection", 0, 0..=i64::MAX as u64).value,
    };
    if uri_bytes.value > header_bytes.value {
        let message = "a request target cannot be longer than the head that contains it".to_owned();
        let expected = format!("at most header_bytes, {}", units::show_size(header_bytes.value));
        let (key, span) = match uri_bytes.span {
            Some(span) => ("uri_bytes", Some(span)),
            None => ("header_bytes", header_bytes.span.clone()),
        };
        table.error(key, span, message, &expected);
    }
    table.finish();
    (limits, header_bytes.span)
}
