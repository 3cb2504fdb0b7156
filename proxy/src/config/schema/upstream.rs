//! `[[upstream]]` with its endpoints, its pool and its retries.

use std::net::IpAddr;
use std::time::Duration;

use super::{
    ClientTls, DAY, HOUR, MILLISECOND, MINUTE, SECOND, TIMEOUT, name, socket_address, tls, to_u32, to_usize,
};
use crate::config::read::{At, Item, Literal, Table};
use crate::config::{hints, units};
use crate::upstream::model::{Endpoint, PoolLimits, Retry, RetryOn};

/// The largest weight of an endpoint.
const WEIGHT_MAX: u64 = 256;
/// Addresses to connect from. Each is tried before a request is refused for want of ports.
const SOURCES_MAX: usize = 256;

/// `[[upstream]]`
#[derive(Debug)]
pub(in crate::config) struct Upstream {
    pub(in crate::config) name: At<String>,
    pub(in crate::config) endpoints: Vec<At<Endpoint>>,
    pub(in crate::config) connect_timeout: Duration,
    pub(in crate::config) source: Vec<IpAddr>,
    pub(in crate::config) send_proxy: bool,
    pub(in crate::config) tls: Option<ClientTls>,
    pub(in crate::config) pool: PoolLimits,
    pub(in crate::config) retry: Retry,
}

pub(super) fn upstream(mut table: Table<'_, '_>) -> Upstream {
    let name = name(&mut table);
    let endpoints = endpoints(&mut table);
    table.not_built("endpoints_file", Some(Literal::Text("")));
    table.choice("balance", &[("round-robin", ())], &["least-request", "p2c-ewma", "random", "maglev"]);
    table.not_built("hash_on", Some(Literal::Text("client-ip")));
    table.not_built("slow_start", Some(Literal::Duration(Duration::ZERO)));
    table.choice("protocol", &[("http1", ())], &["h2", "auto"]);
    let connect_timeout = table.duration("connect_timeout", SECOND, MILLISECOND..=5 * MINUTE);
    let source = source(&mut table, &endpoints);
    let send_proxy = table.boolean("send_proxy", false);
    let tls = tls::client_tls(&mut table);
    table.not_built("health", None);
    let pool = pool(table.table("pool"));
    passive(table.table("passive"));
    let retry = retry(table.table("retry"));
    fallback(table.table("fallback"));
    table.finish();
    Upstream { name, endpoints, connect_timeout, source, send_proxy, tls, pool, retry }
}

fn endpoints(table: &mut Table<'_, '_>) -> Vec<At<Endpoint>> {
    const FORM: &str = "a list of addresses such as [\"10.0.0.1:8080\"], or of tables { address = \"…\" }";
    // A file in their place is an error of its own.
    if !table.has("endpoints") && !table.has("endpoints_file") {
        table.missing("endpoints", FORM);
    }
    let Some(items) = table.items("endpoints", FORM) else { return Vec::new() };
    if items.is_empty() && table.is_empty_list("endpoints") {
        table.missing("endpoints", "at least one address");
    }
    let written = items.len();
    let endpoints: Vec<_> = items.into_iter().filter_map(|item| endpoint(table, item)).collect();
    if !endpoints.is_empty() && endpoints.len() == written && endpoints.iter().all(|at| at.value.weight == 0)
    {
        let message = "has no endpoint that takes requests: every weight is 0".to_owned();
        table.error(
            "endpoints",
            table.value_span("endpoints"),
            message,
            "a weight of 1 or more for at least one",
        );
    }
    endpoints
}

fn endpoint(table: &Table<'_, '_>, item: Item<'_, '_>) -> Option<At<Endpoint>> {
    const FORM: &str = "an IP address with a port such as \"10.0.0.1:8080\" or \"[2001:db8::1]:8080\"";
    let (text, weight) = match item {
        Item::Text(text) => (text, 1),
        Item::Table(mut inner) => {
            if !inner.has("address") {
                inner.missing("address", FORM);
            }
            let address = inner.string("address");
            let weight = to_u32(inner.integer("weight", 1, 0..=WEIGHT_MAX).value);
            inner.finish();
            (address?, weight)
        }
    };
    match socket_address(&text.value) {
        Ok(address) => {
            Some(At { value: Endpoint { address, label: text.value.into(), weight }, span: text.span })
        }
        Err(message) => {
            let named = is_host_and_port(&text.value);
            let message = if named {
                format!("{} is a host name, which is not built yet", units::quote(&text.value))
            } else {
                message
            };
            table.error_with_help("endpoints", text.span, message, FORM, hints::for_address(&text.value));
            None
        }
    }
}

/// `source`, in its order.
fn source(table: &mut Table<'_, '_>, endpoints: &[At<Endpoint>]) -> Vec<IpAddr> {
    const FORM: &str = "addresses of this machine such as \"192.0.2.10\" or \"2001:db8::10\", each once";
    let mut source = Vec::new();
    for At { value: text, span } in table.strings("source", false) {
        let problem = match text.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Err(_) => "is not an IP address",
            Ok(address) if address.is_unspecified() || address.is_multicast() => {
                "is no address to connect from"
            }
            Ok(address) if source.contains(&address) => "is listed twice",
            Ok(_) if source.len() >= SOURCES_MAX => "is one too many: there are 256 at most",
            Ok(address) => {
                source.push(address);
                continue;
            }
        };
        table.error("source", span, format!("{} {problem}", units::quote(&text)), FORM);
    }
    let lacks = |endpoint: &&At<Endpoint>| {
        source.iter().all(|address| address.is_ipv4() != endpoint.value.address.is_ipv4())
    };
    if !source.is_empty()
        && let Some(endpoint) = endpoints.iter().find(lacks)
    {
        let message = format!("has no address from which {} can be reached", endpoint.value.address);
        table.error("source", table.value_span("source"), message, "one of its family, IPv4 or IPv6");
    }
    source
}

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let in_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    port.parse::<u16>().is_ok()
        && host.bytes().all(in_host)
        && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn pool(mut table: Table<'_, '_>) -> PoolLimits {
    let pool = PoolLimits {
        max_idle: to_usize(table.integer("max_idle", 256, 0..=1 << 20).value),
        idle_timeout: table.duration("idle_timeout", 60 * SECOND, TIMEOUT),
        max_lifetime: table.duration("max_lifetime", HOUR, SECOND..=30 * DAY),
    };
    table.not_built("max_connections", Some(Literal::Number(0)));
    // Both only mean something together with max_connections, so their defaults ask for nothing.
    table.not_built("queue", Some(Literal::Number(1024)));
    table.not_built("queue_timeout", Some(Literal::Duration(SECOND)));
    table.finish();
    pool
}

fn passive(mut table: Table<'_, '_>) {
    table.not_built_default("failures", Literal::Number(5));
    table.not_built_default("open_for", Literal::Duration(10 * SECOND));
    table.not_built("outlier", Some(Literal::Text("off")));
    table.not_built("max_ejected", Some(Literal::Float(0.5)));
    table.finish();
}

fn retry(mut table: Table<'_, '_>) -> Retry {
    let attempts = to_u32(table.integer("attempts", 2, 1..=16).value);
    let on = retry_on(&mut table);
    table.not_built("per_try_timeout", Some(Literal::Duration(Duration::ZERO)));
    table.not_built_default("budget", Literal::Float(0.2));
    table.finish();
    Retry { attempts, on }
}

/// `on`: any of its words, in any order.
fn retry_on(table: &mut Table<'_, '_>) -> RetryOn {
    const FORM: &str = "a list of \"connect-failure\" and \"reset-before-response\", either, both or none";
    const NOT_BUILT: [&str; 4] = ["502", "503", "504", "timeout"];
    if !table.has("on") {
        // Notes that the key is known.
        table.strings("on", false);
        return RetryOn::default();
    }
    let mut on = RetryOn { connect_failure: false, reset_before_response: false };
    for At { value: word, span } in table.strings("on", false) {
        match word.as_str() {
            "connect-failure" => on.connect_failure = true,
            "reset-before-response" => on.reset_before_response = true,
            word if NOT_BUILT.contains(&word) => {
                table.error("on", span, format!("{} is not built yet", units::quote(word)), FORM);
            }
            word => table.error("on", span, format!("{} is unknown", units::quote(word)), FORM),
        }
    }
    on
}

fn fallback(mut table: Table<'_, '_>) {
    table.not_built("stale", Some(Literal::Duration(Duration::ZERO)));
    table.not_built("respond", None);
    table.not_built("redirect", None);
    table.finish();
}
