//! The TOML as written: every key of the interface with its type, unit, default and bounds, one function a
//! table. A check of one key alone is here, a check of several tables or files in `resolve`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::model;
use super::read::{At, Item, Literal, Table};
use super::{hints, units};
use crate::kernel::guard::{GuardMode, SynCookies};
use crate::kernel::steering::{Steering, SteeringPolicy};
pub(super) use route::{Action, Route};
pub(super) use tls::{Certificate, ClientTls, Tls};

mod route;
mod tls;

/// The longest path of `process.run_dir`: a socket's file name and its 108 byte limit (`unix(7)`) leave this
/// much.
const RUN_DIR_BYTES_MAX: usize = 80;
/// The longest name of a listener or upstream, which is a metric label.
const NAME_BYTES_MAX: usize = 64;
/// The largest weight of an endpoint.
const WEIGHT_MAX: u64 = 256;
/// The longest interface name (IFNAMSIZ less its terminating zero).
const INTERFACE_BYTES_MAX: usize = 15;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Bounds of timeouts: shorter than a timer tick cannot be kept, longer than a day is a mistake.
const TIMEOUT: RangeInclusive<Duration> = MILLISECOND..=DAY;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A whole file.
#[derive(Debug)]
pub(super) struct Schema {
    pub(super) process: Process,
    pub(super) workers: Workers,
    pub(super) ring: model::Ring,
    pub(super) steering: Steering,
    pub(super) guard: Guard,
    pub(super) listeners: Vec<Listener>,
    /// No listener is written, rather than wrong ones.
    pub(super) lacks_listeners: bool,
    pub(super) routes: Vec<Route>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) admin: Option<At<SocketAddr>>,
    pub(super) log: model::Log,
}

/// `[process]`, and where two of its keys are written.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) model: model::Process,
    pub(super) run_dir_at: Option<Range<usize>>,
    pub(super) user_at: Option<Range<usize>>,
}

/// `[workers]`
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) count: At<Option<usize>>,
    pub(super) cpus: At<Option<Vec<usize>>>,
    pub(super) control_cpus: At<Option<Vec<usize>>>,
    pub(super) numa_local: bool,
    pub(super) stuck_after: Duration,
}

/// `[guard]`
#[derive(Debug)]
pub(super) struct Guard {
    pub(super) interfaces: Vec<At<String>>,
    pub(super) mode: GuardMode,
    pub(super) dry_run: bool,
    pub(super) allow: Vec<At<IpNet>>,
    pub(super) deny: Vec<At<IpNet>>,
    pub(super) deny_file: Option<At<PathBuf>>,
    pub(super) syn_rate_per_ip: Option<u32>,
    pub(super) syn_burst_per_ip: u32,
    pub(super) ban_for: Duration,
    /// 0: no limit.
    pub(super) connections_per_ip: u32,
    pub(super) syn_cookies: SynCookies,
}

/// `[[listener]]`
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) name: At<String>,
    pub(super) addresses: Vec<At<SocketAddr>>,
    pub(super) protocol: Protocol,
    pub(super) tls: Tls,
    pub(super) upstream: Option<At<String>>,
    pub(super) proxy_protocol: bool,
    pub(super) backlog: u32,
    pub(super) defer_accept: bool,
    pub(super) timeouts: model::Timeouts,
    pub(super) limits: model::Limits,
    pub(super) header_bytes_at: Option<Range<usize>>,
    pub(super) trusted_proxies: Vec<IpNet>,
    /// The table's header.
    pub(super) span: Option<Range<usize>>,
}

/// `listener.protocol`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Https,
    Tcp,
    TlsPassthrough,
}

impl Protocol {
    /// Whether it speaks HTTP, so that routes without listeners are for it.
    pub(super) const fn is_http(self) -> bool {
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

/// `[[upstream]]`
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) name: At<String>,
    pub(super) endpoints: Vec<At<model::Endpoint>>,
    pub(super) connect_timeout: Duration,
    pub(super) send_proxy: bool,
    pub(super) tls: Option<ClientTls>,
    pub(super) pool: model::Pool,
    pub(super) retry: model::Retry,
}

/// Reads the outermost table. Its result may be used only when no error was reported.
pub(super) fn read(mut root: Table<'_, '_>) -> Schema {
    let schema = Schema {
        process: process(root.table("process")),
        workers: workers(root.table("workers")),
        ring: ring(root.table("ring")),
        steering: steering(root.table("steering")),
        guard: guard(root.table("guard")),
        lacks_listeners: !root.has("listener") || root.is_empty_list("listener"),
        listeners: root.tables("listener").into_iter().map(listener).collect(),
        routes: root.tables("route").into_iter().map(route::route).collect(),
        upstreams: root.tables("upstream").into_iter().map(upstream).collect(),
        admin: admin(root.table("admin")),
        log: log(root.table("log")),
    };
    root.finish();
    schema
}

fn process(mut table: Table<'_, '_>) -> Process {
    let run_dir = table.parsed("run_dir", "an absolute path such as \"/run/sluice\"", run_dir);
    let user = table.parsed("user", "a user's name", user);
    let run_dir = run_dir.unwrap_or_else(|| At { value: PathBuf::from("/run/sluice"), span: None });
    let user = user.unwrap_or_else(|| At { value: "nobody".to_owned(), span: None });
    let model = model::Process {
        run_dir: run_dir.value,
        user: user.value,
        drain_timeout: table.duration("drain_timeout", 30 * SECOND, TIMEOUT),
        max_connections: table.integer("max_connections", 0, 0..=i64::MAX as u64).value,
        buffer_budget: to_usize(table.size("buffer_budget", 64 * MIB, MIB..=64 * GIB).value),
    };
    table.finish();
    Process { model, run_dir_at: run_dir.span, user_at: user.span }
}

fn run_dir(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_absolute()) else {
        return Err(format!("{} is not an absolute path with a last component", units::quote(text)));
    };
    if text.len() > RUN_DIR_BYTES_MAX {
        return Err(format!(
            "is longer than {RUN_DIR_BYTES_MAX} bytes, which leaves no room for a socket's name"
        ));
    }
    if name.bytes().any(|byte| byte.is_ascii_control() || byte.is_ascii_whitespace()) {
        return Err("its last component names the instance and must not contain spaces".to_owned());
    }
    Ok(path)
}

fn user(text: &str) -> Result<String, String> {
    let wrong = text.is_empty()
        || text.contains(|letter: char| letter.is_whitespace() || letter.is_control() || letter == ':');
    if wrong { Err(format!("{} is not a user's name", units::quote(text))) } else { Ok(text.to_owned()) }
}

fn workers(mut table: Table<'_, '_>) -> Workers {
    let workers_max = u64::from(proxy_common::steer::WORKERS_MAX);
    let count = if table.is_text("count") {
        let form = format!("\"auto\" or a whole number from 1 to {workers_max}");
        let auto = |text: &str| {
            if text == "auto" { Ok(None) } else { Err(format!("{} is unknown", units::quote(text))) }
        };
        table.parsed("count", &form, auto).unwrap_or(At { value: None, span: None })
    } else {
        let written = table.has("count");
        let At { value, span } = table.integer("count", 1, 1..=workers_max);
        At { value: written.then(|| to_usize(value)), span }
    };
    let cpus = |text: &str| if text == "auto" { Ok(None) } else { units::cpus(text).map(Some) };
    let form = format!("\"auto\" or {}", units::CPUS_FORM);
    let default = || At { value: None, span: None };
    let workers = Workers {
        count,
        cpus: table.parsed("cpus", &form, cpus).unwrap_or_else(default),
        control_cpus: table.parsed("control_cpus", &form, cpus).unwrap_or_else(default),
        numa_local: table.choice("numa", &[("local", true), ("off", false)], &[]),
        stuck_after: table.duration("stuck_after", 5 * SECOND, 10 * MILLISECOND..=HOUR),
    };
    table.not_built("busy_poll", Some(Literal::Duration(Duration::ZERO)));
    table.finish();
    workers
}

fn ring(mut table: Table<'_, '_>) -> model::Ring {
    let ring = model::Ring {
        // IORING_MAX_ENTRIES, and the most buffers that one buffer ring can hold
        // (io_uring_register_buf_ring(3)).
        entries: to_u32(power_of_two(&mut table, "entries", 4096, 64..=32_768)),
        buffers: u16::try_from(power_of_two(&mut table, "buffers", 4096, 16..=32_768)).unwrap_or(u16::MAX),
        buffer_size: {
            let size = table.size("buffer_size", 4 * KIB, KIB..=MIB);
            table.check_power_of_two("buffer_size", &size, units::show_size);
            to_u32(size.value)
        },
    };
    table.finish();
    ring
}

fn power_of_two(
    table: &mut Table<'_, '_>,
    key: &'static str,
    default: u64,
    bounds: RangeInclusive<u64>,
) -> u64 {
    let number = table.integer(key, default, bounds);
    table.check_power_of_two(key, &number, |number| number.to_string());
    number.value
}

fn steering(mut table: Table<'_, '_>) -> Steering {
    let policies = [
        ("least-loaded", SteeringPolicy::LeastLoaded),
        ("numa-local", SteeringPolicy::NumaLocal),
        ("hash", SteeringPolicy::Hash),
    ];
    let policy = table.choice("policy", &policies, &[]);
    table.finish();
    Steering { policy }
}

fn guard(mut table: Table<'_, '_>) -> Guard {
    let interfaces = table.strings("interfaces", false);
    for At { value, span } in &interfaces {
        let wrong =
            |letter: char| letter.is_whitespace() || letter.is_control() || matches!(letter, '/' | ':');
        if value.is_empty()
            || value.len() > INTERFACE_BYTES_MAX
            || value.contains(wrong)
            || matches!(value.as_str(), "." | "..")
        {
            let message = format!("{} is not an interface's name", units::quote(value));
            table.error("interfaces", span.clone(), message, "a name such as \"eth0\"");
        }
    }
    let rate = |text: &str| match text {
        "off" => Ok(None),
        // The guard counts in nanoseconds per SYN.
        _ => units::rate(text).and_then(|rate| {
            if rate > 1_000_000_000 {
                Err(format!("{} is too high", units::quote(text)))
            } else {
                Ok(Some(rate))
            }
        }),
    };
    let guard = Guard {
        interfaces,
        mode: table.choice(
            "mode",
            &[("auto", GuardMode::Auto), ("driver", GuardMode::Driver), ("generic", GuardMode::Generic)],
            &[],
        ),
        dry_run: table.boolean("dry_run", false),
        allow: table.networks("allow"),
        deny: table.networks("deny"),
        deny_file: table.parsed("deny_file", "a file's path", file_path),
        syn_rate_per_ip: table
            .parsed("syn_rate_per_ip", &format!("\"off\" or {}", units::RATE_FORM), rate)
            .map_or(Some(1000), |at| at.value),
        syn_burst_per_ip: to_u32(table.integer("syn_burst_per_ip", 2000, 1..=u64::from(u32::MAX)).value),
        ban_for: table.duration("ban_for", MINUTE, model::BAN_FOR),
        // One entry of the guard's table of sources counts that far.
        connections_per_ip: to_u32(table.integer("connections_per_ip", 1024, 0..=65_535).value),
        syn_cookies: table.choice(
            "syn_cookies",
            &[("auto", SynCookies::Auto), ("always", SynCookies::Always), ("off", SynCookies::Off)],
            &[],
        ),
    };
    table.finish();
    guard
}

fn file_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        Err("is not a path".to_owned())
    } else {
        Ok(PathBuf::from(text))
    }
}

fn listener(mut table: Table<'_, '_>) -> Listener {
    let name = name(&mut table);
    let written = table.has("address");
    let texts = table.strings("address", true);
    if !written || (texts.is_empty() && table.is_empty_list("address")) {
        table.missing(
            "address",
            "an address with a port such as \"127.0.0.1:8080\" or \"[::]:443\", or a list of them",
        );
    }
    let addresses = texts.into_iter().filter_map(|text| listen_address(&table, "address", text)).collect();
    let built = [Protocol::Http, Protocol::Https, Protocol::Tcp, Protocol::TlsPassthrough];
    let protocol = table.choice("protocol", &built.map(|protocol| (protocol.name(), protocol)), &[]);
    let is_tcp = protocol == Protocol::Tcp;
    let upstream = table.string("upstream").filter(|name| !name.value.is_empty());
    if !protocol.is_http() {
        only_of_http(&table, protocol, "limits", "none: they are of HTTP requests");
    }
    let backlog = to_u32(table.integer("backlog", 4096, 1..=1 << 20).value);
    // A server that speaks first would be connected a second late, since its client says nothing before.
    let defer_accept = table.boolean("defer_accept", !is_tcp);
    if is_tcp && defer_accept {
        only_of_http(
            &table,
            protocol,
            "defer_accept",
            "false: a server that speaks first would be connected a second late",
        );
    }
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
    let tls = tls::tls(&mut table, protocol);
    let timeouts = timeouts(table.table("timeouts"), protocol);
    let (limits, header_bytes_at) = limits(table.table("limits"));
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
        timeouts,
        limits,
        header_bytes_at,
        trusted_proxies,
        span,
    }
}

/// Reports a key that a listener of another protocol cannot have.
fn only_of_http(table: &Table<'_, '_>, protocol: Protocol, key: &str, expected: &str) {
    if table.has(key) {
        let message = format!("has no meaning for protocol = \"{}\"", protocol.name());
        table.error(key, table.value_span(key), message, expected);
    }
}

/// The required `name`; a wrong one is reported and read as empty.
fn name(table: &mut Table<'_, '_>) -> At<String> {
    const FORM: &str = "letters, digits, '.', '_' and '-', at most 64";
    let parse = |text: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let right = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(allowed);
        if right { Ok(text.to_owned()) } else { Err(format!("{} is not a name", units::quote(text))) }
    };
    if !table.has("name") {
        table.missing("name", FORM);
    }
    table.parsed("name", FORM, parse).unwrap_or(At { value: String::new(), span: None })
}

/// An address with a port to bind; IPv4-mapped IPv6 becomes IPv4.
fn listen_address(
    table: &Table<'_, '_>,
    key: &str,
    At { value, span }: At<String>,
) -> Option<At<SocketAddr>> {
    match socket_address(&value) {
        Ok(value) => Some(At { value, span }),
        Err(message) => {
            let form = "an address with a port such as \"127.0.0.1:8080\" or \"[::]:443\"";
            table.error_with_help(key, span, message, form, hints::for_address(&value));
            None
        }
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let shown = units::quote(text);
    let address: SocketAddr = text.parse().map_err(|_| match text.parse::<IpAddr>() {
        Ok(_) => format!("{shown} has no port"),
        Err(_) => format!("{shown} is not an address with a port"),
    })?;
    if address.port() == 0 {
        return Err(format!("{shown} has port 0"));
    }
    Ok(match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    })
}

fn timeouts(mut table: Table<'_, '_>, protocol: Protocol) -> model::Timeouts {
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
    let timeouts = model::Timeouts {
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

fn limits(mut table: Table<'_, '_>) -> (model::Limits, Option<Range<usize>>) {
    let header_bytes = table.size("header_bytes", 32 * KIB, KIB..=MIB);
    let headers = table.integer("headers", 100, 1..=1000).value;
    let uri_bytes = table.size("uri_bytes", 8 * KIB, 64..=MIB);
    let limits = model::Limits {
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

fn upstream(mut table: Table<'_, '_>) -> Upstream {
    let name = name(&mut table);
    let endpoints = endpoints(&mut table);
    table.not_built("endpoints_file", Some(Literal::Text("")));
    table.choice("balance", &[("round-robin", ())], &["least-request", "p2c-ewma", "random", "maglev"]);
    table.not_built("hash_on", Some(Literal::Text("client-ip")));
    table.not_built("slow_start", Some(Literal::Duration(Duration::ZERO)));
    table.choice("protocol", &[("http1", ())], &["h2", "auto"]);
    let connect_timeout = table.duration("connect_timeout", SECOND, MILLISECOND..=5 * MINUTE);
    let send_proxy = table.boolean("send_proxy", false);
    let tls = tls::client_tls(&mut table);
    table.not_built("health", None);
    let pool = pool(table.table("pool"));
    passive(table.table("passive"));
    let retry = retry(table.table("retry"));
    fallback(table.table("fallback"));
    table.finish();
    Upstream { name, endpoints, connect_timeout, send_proxy, tls, pool, retry }
}

fn endpoints(table: &mut Table<'_, '_>) -> Vec<At<model::Endpoint>> {
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

fn endpoint(table: &Table<'_, '_>, item: Item<'_, '_>) -> Option<At<model::Endpoint>> {
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
            Some(At { value: model::Endpoint { address, label: text.value.into(), weight }, span: text.span })
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

fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let in_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    port.parse::<u16>().is_ok()
        && host.bytes().all(in_host)
        && host.bytes().any(|byte| byte.is_ascii_alphabetic())
}

fn pool(mut table: Table<'_, '_>) -> model::Pool {
    let pool = model::Pool {
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

fn retry(mut table: Table<'_, '_>) -> model::Retry {
    let attempts = to_u32(table.integer("attempts", 2, 1..=16).value);
    table.not_built("on", Some(Literal::List(&["connect-failure", "reset-before-response"])));
    table.not_built("per_try_timeout", Some(Literal::Duration(Duration::ZERO)));
    table.not_built_default("budget", Literal::Float(0.2));
    table.finish();
    model::Retry { attempts }
}

fn fallback(mut table: Table<'_, '_>) {
    table.not_built("stale", Some(Literal::Duration(Duration::ZERO)));
    table.not_built("respond", None);
    table.not_built("redirect", None);
    table.finish();
}

fn admin(mut table: Table<'_, '_>) -> Option<At<SocketAddr>> {
    let default = || Some(At { value: "127.0.0.1:9901".to_owned(), span: None });
    let written = table.has("address");
    let text = table.string("address").or_else(|| if written { None } else { default() });
    let address =
        text.filter(|text| !text.value.is_empty()).and_then(|text| listen_address(&table, "address", text));
    table.finish();
    address
}

fn log(mut table: Table<'_, '_>) -> model::Log {
    const LEVELS: [(&str, &str); 5] =
        [("info", "info"), ("error", "error"), ("warn", "warn"), ("debug", "debug"), ("trace", "trace")];
    let level = table.choice("level", &LEVELS, &[]).to_owned();
    let access = table.parsed("access", "\"off\", \"stdout\" or a file's path", access_log);
    table.choice("format", &[("json", ())], &[]);
    let with_query = table.boolean("query", false);
    table.finish();
    model::Log { level, access: access.map_or(model::AccessLog::Off, |at| at.value), with_query }
}

fn access_log(text: &str) -> Result<model::AccessLog, String> {
    match text {
        "off" => Ok(model::AccessLog::Off),
        "stdout" => Ok(model::AccessLog::Stdout),
        "on" | "stderr" => Err(format!(
            "\"{text}\" is neither a word that is known here nor a path; a file of that name is \"./{text}\""
        )),
        _ => file_path(text).map(model::AccessLog::File),
    }
}

/// Bounds checked before keep these exact on every machine that Sluice runs on.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn to_u32(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
