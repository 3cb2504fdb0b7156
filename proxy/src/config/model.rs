//! The configuration after resolution: defaults filled in, names resolved to indices, values in plain units.
//! Every other module reads this and never TOML. Supervisor and data plane run the same `resolve` on the same
//! bytes, so both hold equal models.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::http::edit::Edits;
use crate::http::redirect::Template;
pub use crate::kernel::guard::{BAN_FOR, Guard, GuardMode, SynCookies};
pub use crate::kernel::steering::{Steering, SteeringPolicy};
use crate::route::{Host, RouteTable};
use crate::tls::certificate::Certificate;
use crate::tls::client::ClientTls;
use crate::tls::server::ServerTls;

/// A whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `[process]`
    pub process: Process,
    /// `[workers]`
    pub workers: Workers,
    /// `[ring]`
    pub ring: Ring,
    /// `[steering]`
    pub steering: Steering,
    /// `[guard]`
    pub guard: Guard,
    /// `[[listener]]`, at least one.
    pub listeners: Vec<Arc<Listener>>,
    /// `[[route]]`, compiled.
    pub routes: RouteTable,
    /// `[[upstream]]`
    pub upstreams: Vec<Arc<Upstream>>,
    /// `[admin]`
    pub admin: Admin,
    /// `[log]`
    pub log: Log,
}

impl Config {
    /// Every certificate with a key of ours, and whose it is.
    pub fn certificates(&self) -> impl Iterator<Item = (Holder<'_>, &Certificate)> {
        let listeners = self.listeners.iter().flat_map(|listener| {
            let certificates = listener.tls.iter().flat_map(|tls| &tls.certificates);
            certificates.map(|certificate| (Holder::Listener(&listener.name), &**certificate))
        });
        let upstreams = self.upstreams.iter().filter_map(|upstream| {
            let certificate = upstream.tls.as_ref()?.settings().certificate.as_deref()?;
            Some((Holder::Upstream(&upstream.name), certificate))
        });
        listeners.chain(upstreams)
    }
}

/// Who shows a certificate, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder<'a> {
    /// To clients.
    Listener(&'a str),
    /// To endpoints.
    Upstream(&'a str),
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(name) => write!(formatter, "listener \"{name}\""),
            Self::Upstream(name) => write!(formatter, "upstream \"{name}\""),
        }
    }
}

/// `[process]`
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Where sockets live; its file name also names the instance.
    pub run_dir: PathBuf,
    /// The data plane's user.
    pub user: String,
    /// How long a drain waits for exchanges to end.
    pub drain_timeout: Duration,
    /// Downstream connections over all workers; 0: what the descriptor limit allows.
    pub max_connections: u64,
    /// Bytes per worker for copied-out bodies, fragments and queued output.
    pub buffer_budget: usize,
}

/// `[workers]`
#[derive(Clone, Debug, PartialEq)]
pub struct Workers {
    /// `None`: one per physical core allowed to us.
    pub count: Option<usize>,
    /// `None`: hwloc2 chooses. Else logical CPU numbers.
    pub cpus: Option<Vec<usize>>,
    /// `None`: chosen. Logical CPU numbers for the control and log threads.
    pub control_cpus: Option<Vec<usize>>,
    /// Bind memory to the worker's node.
    pub numa_local: bool,
    /// NAPI busy poll; zero: off.
    pub busy_poll: Duration,
    /// A loop turn longer than this gets no new flows.
    pub stuck_after: Duration,
}

/// `[ring]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Submission queue entries, a power of two.
    pub entries: u32,
    /// Provided buffers, a power of two, at most 32768.
    pub buffers: u16,
    /// Bytes each.
    pub buffer_size: u32,
}

/// Bytes of a block, what a stream receives into that sends a lot at a time. With half of it two loop turns
/// are paid for what one carries, and where the proxy is the slowest of all each wakes both peers: 680 ms of
/// CPU time per GiB instead of 320, and 830 with a quarter of it.
pub const BLOCK_BYTES: usize = 256 << 10;

/// Ids of buffers are 16 bits wide, and small ones may take half of them.
const BLOCKS_MAX: usize = 4096;

impl Ring {
    /// Blocks beside so many bytes of small buffers: as many bytes, rounded down to a power of two of them.
    #[must_use]
    pub fn blocks_beside(small_bytes: usize) -> usize {
        (small_bytes / BLOCK_BYTES).min(BLOCKS_MAX).checked_ilog2().map_or(0, |bits| 1 << bits)
    }

    /// Bytes of all buffers of a worker, blocks included, at most: pages are touched when first used.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        let small = usize::from(self.buffers) * self.buffer_size as usize;
        small + Self::blocks_beside(small) * BLOCK_BYTES
    }
}

/// `[[listener]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Unique.
    pub name: String,
    /// At least one.
    pub addresses: Vec<SocketAddr>,
    /// What its clients speak.
    pub protocol: Protocol,
    /// Some for `Protocol::Https`.
    pub tls: Option<Arc<ServerTls>>,
    /// Connections of `trusted_proxies` begin with a PROXY header, version 1 or 2.
    pub proxy_protocol: bool,
    /// Accept queue length.
    pub backlog: u32,
    /// Accept a connection with its first bytes, or after a second or so without any.
    pub defer_accept: bool,
    /// `listener.timeouts`
    pub timeouts: Timeouts,
    /// `listener.limits`
    pub limits: Limits,
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
    /// Whether routes decide about what its clients send.
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
    /// Bytes per second that a client must send of a request body, or take of a response, on average over the
    /// time it was waited for, once that is ten seconds; `None`: however few.
    pub min_rate: Option<NonZero<u32>>,
}

/// `listener.limits`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
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

/// `[[route]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Empty: any.
    pub hosts: Vec<Host>,
    /// `path_prefix` or `path`
    pub path: RoutePath,
    /// Names; empty: all that speak HTTP.
    pub listeners: Vec<String>,
    /// Its name in logs: the first host, if it has one, and the path, with `=` before an exact one.
    pub label: Box<str>,
    /// What becomes of a request.
    pub action: Action,
    /// Changes to what an endpoint gets; `None`: none.
    pub request_headers: Option<Box<Edits>>,
    /// Changes to what a client gets, whoever made it; `None`: none.
    pub response_headers: Option<Box<Edits>>,
    /// Request bodies of known length up to this many bytes are read whole before an endpoint is chosen; 0:
    /// none.
    pub buffer_request: u64,
    /// Until the response head.
    pub timeout: Duration,
    /// Between two reads of the response body.
    pub body_timeout: Duration,
    /// Read ahead of a slow client, then backpressure; bytes.
    pub buffer_response: usize,
}

impl Route {
    /// For every request, with the interface's defaults.
    #[must_use]
    pub fn new(action: Action) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            hosts: Vec::new(),
            path: RoutePath::Prefix("/".into()),
            listeners: Vec::new(),
            label: "/".into(),
            action,
            request_headers: None,
            response_headers: None,
            buffer_request: 1 << 20,
            timeout: minute,
            body_timeout: minute,
            buffer_response: 64 << 10,
        }
    }
}

/// Which paths a route takes, in the form that paths are routed in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RoutePath {
    /// This one.
    Exact(Box<str>),
    /// Those that begin with it and go on at a segment boundary; `/`: all.
    Prefix(Box<str>),
}

/// What becomes of a route's requests.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Index into `Config::upstreams`.
    Upstream(usize),
    /// `redirect`
    Redirect(Redirect),
    /// `respond`
    Respond(Respond),
}

/// `route.redirect`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// For Location.
    pub to: Template,
}

/// `route.respond`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Of a body that is not empty.
    pub content_type: Box<str>,
    /// Empty for 204, 205 and 304.
    pub body: Box<[u8]>,
}

/// `[[upstream]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Unique.
    pub name: String,
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    /// How long a connect may take.
    pub connect_timeout: Duration,
    /// Each connection begins with a PROXY header, version 2, and carries one exchange or one tunnel.
    pub send_proxy: bool,
    /// `upstream.tls`; `None`: its endpoints speak none.
    pub tls: Option<Arc<ClientTls>>,
    /// `upstream.pool`
    pub pool: Pool,
    /// `upstream.retry`
    pub retry: Retry,
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// As written, for logs and metrics.
    pub label: String,
    /// Share of the requests, relative to the others', up to 256; 0: none.
    pub weight: u32,
}

/// `upstream.pool`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pool {
    /// Idle connections kept per worker.
    pub max_idle: usize,
    /// How long an idle connection is kept.
    pub idle_timeout: Duration,
    /// How long any connection is reused.
    pub max_lifetime: Duration,
}

/// `upstream.retry`: what this stage supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all.
    pub attempts: u32,
}

/// `[admin]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admin {
    /// `None`: no admin endpoint.
    pub address: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// `log.access`
    pub access: AccessLog,
    /// `log.query`: the access log holds queries too.
    pub with_query: bool,
}

/// `log.access`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// The supervisor's standard output.
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}
