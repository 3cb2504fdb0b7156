//! The content of `/status` and `sluice status`. The data plane knows workers and upstreams, the supervisor
//! knows guard, steering and restarts; the process that is asked joins both halves.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The data plane's half.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DataPlaneStatus {
    /// Its process id.
    pub pid: u32,
    /// Counts data planes since the supervisor started, from 1.
    pub generation: u32,
    /// Which compiled configuration is current, from 1.
    pub snapshot: u64,
    /// Accepting and not draining.
    pub ready: bool,
    /// Draining.
    pub draining: bool,
    /// One per worker.
    pub workers: Vec<WorkerStatus>,
    /// One per listener address.
    pub listeners: Vec<ListenerStatus>,
    /// One per upstream.
    pub upstreams: Vec<UpstreamStatus>,
    /// One per certificate with a key of ours.
    #[serde(default)]
    pub certificates: Vec<CertificateStatus>,
    /// Every list of revoked client certificates.
    #[serde(default)]
    pub crls: Vec<CrlStatus>,
    /// Reasons that ended connections, refused requests and shed connections, over all workers; only reasons
    /// that occurred.
    pub reasons: ReasonStatus,
    /// The logs.
    pub logs: LogStatus,
}

/// Counts by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonStatus {
    /// Why clients' connections ended.
    pub closed: BTreeMap<String, u64>,
    /// Why Sluice answered requests itself.
    pub refused: BTreeMap<String, u64>,
    /// Why connections were shed before a byte was read.
    pub shed: BTreeMap<String, u64>,
}

/// The data plane's logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Where the access log goes: `off`, `stdout` or a path.
    pub access: String,
    /// Records written to it by this data plane.
    pub access_records: u64,
    /// Records lost, by reason.
    pub access_lost: BTreeMap<String, u64>,
    /// Lines of the log on standard error that were lost.
    pub lines_lost: u64,
}

/// A worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// 0-based.
    pub worker: usize,
    /// Logical CPU it is pinned to.
    pub cpu: Option<usize>,
    /// NUMA node its memory is bound to.
    pub node: Option<usize>,
    /// `starting`, `live`, `draining`, `stuck` or `dead`.
    pub state: String,
    /// Connections open now.
    pub connections: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Requests read.
    pub requests: u64,
}

/// A listener address.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its listener's name.
    pub name: String,
    /// The bound address.
    pub address: String,
}

/// A certificate that is shown to clients, or to endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The listener that shows it; empty for an upstream's.
    pub listener: String,
    /// The upstream whose endpoints it is shown to; empty for a listener's.
    pub upstream: String,
    /// The first name that it is for.
    pub name: String,
    /// Its kind of key: `ECDSA P-256`, `RSA`.
    pub key: String,
    /// The last day on which it is valid, in UTC, as 2026-01-31.
    pub not_after: String,
    /// Its last moment, seconds since 1970.
    pub not_after_seconds: i64,
    /// How long it is valid from now on, in seconds; below zero: since when it is not.
    pub remaining_seconds: i64,
}

/// A list of revoked client certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrlStatus {
    /// The listener that has it.
    pub listener: String,
    /// The CA that issued it.
    pub issuer: String,
    /// The day on which the next is due, in UTC, as 2026-01-31; empty: the list does not say.
    pub next_update: String,
    /// The same moment, seconds since 1970; 0: the list does not say.
    pub next_update_seconds: i64,
    /// How long until then, in seconds; below zero: since when it is over.
    pub remaining_seconds: i64,
}

/// An upstream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EndpointStatus {
    /// As configured.
    pub address: String,
    /// `unchecked` while no active checks are built.
    pub health: String,
}

/// The supervisor's half.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SupervisorStatus {
    /// Sluice's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The instance's name, from run_dir.
    pub instance: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Data planes restarted after a death.
    pub restarts: u32,
    /// How the supervisor sees the data plane: `starting`, `serving`, `hung` (it does not answer),
    /// `leaving` (drains soon), `draining`, `stopping`, `killed`, `waiting` (for the next start) or `ended`.
    #[serde(default)]
    pub data_plane_state: String,
    /// Data planes that died or were killed, by reason.
    #[serde(default)]
    pub deaths: BTreeMap<String, u64>,
    /// Listening sockets that another process shut down, and that listen again.
    #[serde(default)]
    pub listeners_restored: u64,
    /// The data plane's process.
    #[serde(default)]
    pub process: ProcessStatus,
    /// The layers that confine the data plane; empty: none.
    #[serde(default)]
    pub sandbox: Vec<String>,
    /// Where the data plane may connect to; `None`: anywhere.
    #[serde(default)]
    pub destinations: Option<DestinationsStatus>,
    /// The guard.
    pub guard: GuardStatus,
    /// Steering.
    pub steering: SteeringStatus,
    /// Lacks that `auto` went on with, each with its cost.
    pub degraded: Vec<String>,
    /// Where the secrets of all TLS connections are written to, if they are.
    #[serde(default)]
    pub key_log: Option<String>,
    /// The configuration and its reloads.
    #[serde(default)]
    pub reload: ReloadStatus,
}

/// A process, from /proc, as far as that could be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Resident memory.
    pub resident_bytes: Option<u64>,
    /// Open descriptors.
    pub open_descriptors: Option<u64>,
}

/// Where the data plane may connect to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationsStatus {
    /// Addresses that it may connect to now.
    pub allowed: usize,
    /// Its connects to other addresses. They failed.
    pub refused: u64,
}

/// The configuration and its reloads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ReloadStatus {
    /// Number of the configuration in force, from 1.
    pub snapshot: u64,
    /// Reloads by outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// When the configuration in force was read, or confirmed to be equal to the files: seconds since 1970.
    pub succeeded_at: u64,
    /// Files whose changes take effect by themselves.
    pub watched_files: usize,
    /// Why the last reload failed, if it did.
    pub failed: Option<String>,
}

/// The guard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Interface name and XDP mode (`driver`, `generic`).
    pub interfaces: BTreeMap<String, String>,
    /// Interfaces of `guard.interfaces` whose packets are not judged, with the reason.
    #[serde(default)]
    pub unguarded: BTreeMap<String, String>,
    /// Counts only.
    pub dry_run: bool,
    /// Live connections of our listeners, as the kernel side counts them by source; `None` where it does not.
    #[serde(default)]
    pub connections: Option<u64>,
    /// Connections that it could not count.
    #[serde(default)]
    pub uncounted: u64,
    /// Packets by verdict reason, summed over CPUs.
    pub verdicts: BTreeMap<String, u64>,
    /// Bans that hold.
    #[serde(default)]
    pub bans: u64,
}

/// Steering.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SteeringStatus {
    /// The policy in force; `kernel-hash` without a program.
    pub policy: String,
    /// Flows given to each worker.
    pub selected: BTreeMap<u32, u64>,
    /// Flows left to the kernel's hash, by reason.
    pub fallback: BTreeMap<String, u64>,
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The supervisor's half; absent when it does not answer.
    pub supervisor: Option<SupervisorStatus>,
    /// The data plane's half; absent while it restarts.
    pub data_plane: Option<DataPlaneStatus>,
}
