//! The configuration after resolution: defaults filled in, names resolved to indices, values in plain units.
//! Every other module reads this and never TOML. Supervisor and data plane run the same `resolve` on the same
//! bytes, so both hold equal models.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

// Sans-IO code and the supervisor know it from here: they import nothing of the engine.
pub use crate::io::settings::Ring;
use crate::kernel::guard::Guard;
use crate::kernel::steering::Steering;
use crate::listen::capacity::Capacity;
use crate::listen::{Listener, ListenerIds, Listeners, Unnumbered};
use crate::route::RouteTable;
use crate::sandbox::Sandbox;
use crate::session::traffic::Traffic;
use crate::tls::certificate::Certificate;
use crate::tls::client_auth::Crl;
use crate::upstream::model::Upstream;

/// The shortest and the longest ban that `guard.ban_for` and `sluice ban --for` allow.
pub const BAN_FOR: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(365 * 86_400);

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
    /// The part that workers serve by.
    ///
    /// # Errors
    /// When there is no number for one of its listeners.
    pub fn traffic(&self, ids: &ListenerIds) -> Result<Traffic, Unnumbered> {
        Ok(Traffic {
            listeners: Listeners::new(&self.listeners, ids)?,
            routes: self.routes.clone(),
            upstreams: self.upstreams.clone(),
        })
    }

    /// The numbers of its listeners, after a configuration with the numbers `before`.
    #[must_use]
    pub fn listener_ids(&self, before: &ListenerIds) -> ListenerIds {
        before.follow(self.listeners.iter().map(|listener| listener.name.as_str()))
    }

    /// The facts from which the need for descriptors is calculated, with so many workers.
    #[must_use]
    pub fn capacity(&self, workers: usize) -> Capacity {
        Capacity {
            workers,
            addresses: self.listeners.iter().map(|listener| listener.addresses.len()).sum(),
            connections_wanted: self.process.max_connections,
        }
    }

    /// Every address that the data plane may connect to, by TCP.
    pub fn destinations(&self) -> impl Iterator<Item = SocketAddr> {
        self.upstreams.iter().flat_map(|upstream| &upstream.endpoints).map(|endpoint| endpoint.address)
    }

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

    /// Every list of revoked certificates with its listener, and whether it is believed after its end.
    pub fn crls(&self) -> impl Iterator<Item = (&str, &Crl, bool)> {
        self.listeners.iter().flat_map(|listener| {
            let auth = listener.tls.iter().filter_map(|tls| tls.settings().client_auth.as_ref());
            auth.flat_map(|auth| auth.crls.iter().map(|crl| (&*listener.name, crl, auth.accepts_expired)))
        })
    }
}

/// The party that shows a certificate, by name.
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
    /// How long a drain serves on before it begins, so that load balancers see `/readyz` first.
    pub drain_delay: Duration,
    /// How long the data plane may be silent before it is killed; `None`: for ever.
    pub watchdog: Option<Duration>,
    /// Downstream connections over all workers; 0: as many as the descriptor limit allows.
    pub max_connections: u64,
    /// Bytes per worker for copied-out bodies, fragments and queued output.
    pub buffer_budget: usize,
    /// How the data plane is confined.
    pub sandbox: Sandbox,
}

impl Process {
    /// How long a drain may take.
    #[must_use]
    pub fn drain_max(&self) -> Duration {
        self.drain_delay + self.drain_timeout
    }
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
    /// `log.format`
    pub format: LogFormat,
    /// `log.access`
    pub access: AccessLog,
    /// `log.query`: the access log holds queries too.
    pub with_query: bool,
}

/// `log.format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    #[default]
    Auto,
    /// One object a line.
    Json,
    /// For people.
    Text,
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
