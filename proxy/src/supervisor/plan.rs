//! `sluice plan`: workers and guard as they would run here, everything that is missing, and the cost of each
//! absence. `sluice check` and a start ask for the same findings. Reads only; it makes nothing but a small
//! ring and sockets, which it closes again.

mod cards;
mod facts;
mod judge;
mod render;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use self::facts::Facts;
use self::judge::{Expected, judge, locked_bytes_per_worker, memory_bytes_per_worker, xdp_expected};
use crate::config::model::Config;
use crate::supervisor::topology::{self, Host, Topology, TopologyError};

/// TimeoutStopSec= of config/sluice.service.
const UNIT_STOP: Duration = Duration::from_secs(90);
/// What an end needs beside the drain: programs are detached, logs are written.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is missing, but something beside Sluice has to fit.
    Advice,
    /// Sluice goes on without it and says so.
    Degraded,
    /// An explicit demand that cannot be met: `run` would stop.
    Fatal,
}

/// Something this host lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// The key of the configuration that names what is not here; `None`: this process or its kernel lacks
    /// it, whatever the names.
    pub key: Option<&'static str>,
    /// The missing thing.
    pub what: String,
    /// The cost of its absence, and advice.
    pub cost: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.what, self.cost)
    }
}

/// Everything that this host lacks for this configuration, the fatal first. Reads /proc, /sys, hwloc and the
/// process's rights; changes nothing.
#[must_use]
pub fn findings(config: &Config) -> Vec<Finding> {
    let facts = Facts::read(config, Path::new("/"));
    let topology = Host::read().and_then(|host| topology::choose(&config.workers, &host));
    found(config, &facts, topology.as_ref())
}

/// The findings that stop a start, and that are limits of this process or its kernel. Names of the
/// configuration that are not here (`Finding::key`) and capabilities are missed where they are used.
#[must_use]
pub fn obstacles(config: &Config) -> Vec<Finding> {
    let is_one = |finding: &Finding| {
        finding.severity == Severity::Fatal && finding.key.is_none() && !finding.what.starts_with("CAP_")
    };
    findings(config).into_iter().filter(is_one).collect()
}

fn found(config: &Config, facts: &Facts, topology: Result<&Topology, &TopologyError>) -> Vec<Finding> {
    match topology {
        Ok(topology) => judge(config, facts, topology.workers.len()),
        Err(error) => {
            let (what, cost) = ("workers".to_owned(), error.to_string());
            let workers = Finding { severity: Severity::Fatal, key: Some("workers"), what, cost };
            std::iter::once(workers).chain(judge(config, facts, 1)).collect()
        }
    }
}

/// What `sluice plan` says.
#[derive(Debug)]
pub struct Plan {
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
    /// Whether `sluice run` would start.
    pub would_start: bool,
}

/// The plan for this host. `root`: where /sys and /proc of the network cards are, `/` but in tests.
#[must_use]
pub fn plan(config: &Config, root: &Path) -> Plan {
    let mut facts = Facts::read(config, root);
    let chosen = Host::read().and_then(|host| Ok((topology::choose(&config.workers, &host)?, host)));
    let findings = found(config, &facts, chosen.as_ref().map(|(topology, _)| topology));
    // For another machine's CPUs, nobody asked whether a start would fail here.
    let is_here = chosen.as_ref().is_ok_and(|(_, host)| host.this_system) || chosen.is_err();
    let would_start = !is_here || findings.iter().all(|finding| finding.severity != Severity::Fatal);
    let (text, workers) = match &chosen {
        Ok((topology, host)) => {
            if !host.this_system && root == Path::new("/") {
                // The CPUs are another machine's, the cards are not.
                facts.cards.clear();
            }
            (render::render(config, &facts, host, topology), workers_json(topology))
        }
        Err(_) => (render::render_findings(&findings), Value::Null),
    };
    let interfaces: Vec<Value> = facts
        .interfaces
        .iter()
        .map(|(name, interface)| {
            json!({ "name": name, "xdp": render::expected(config.guard.mode, interface) })
        })
        .collect();
    let json = json!({
        "kernel": facts.kernel,
        "would_start": would_start,
        "findings": findings,
        "workers": workers,
        "listeners": listeners_json(config),
        "interfaces": interfaces,
        "capabilities": facts.capabilities,
        "descriptors": { "limit": facts.descriptors },
        "memory": { "available": facts.available_bytes },
    });
    Plan { text, json, would_start }
}

fn workers_json(topology: &Topology) -> Value {
    let places: Vec<Value> = topology
        .workers
        .iter()
        .map(|place| {
            json!({
                "cpu": place.cpu,
                "core": place.core,
                "node": place.node,
                "memory_node": place.memory_node,
            })
        })
        .collect();
    json!({ "places": places, "control_cpus": topology.control_cpus, "notes": topology.notes })
}

fn listeners_json(config: &Config) -> Vec<Value> {
    let listeners = config.listeners.iter().flat_map(|listener| {
        listener.addresses.iter().map(|address| {
            json!({ "name": listener.name, "address": address.to_string(), "backlog": listener.backlog })
        })
    });
    listeners.collect()
}

fn size(bytes: u64) -> String {
    match bytes {
        u64::MAX => "unlimited".to_owned(),
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests;
