//! Which core each worker gets. hwloc2 describes the host once (`Host::read`); `choose` is a pure function
//! over that description.

pub use crate::placement::{bind_memory_current_thread, pin_current, pin_current_to};

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::cgroup;
use crate::config::model;

/// The steering array's bound.
const WORKERS_MAX: usize = proxy_common::steer::WORKERS_MAX as usize;

/// A logical CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// The kernel's number.
    pub cpu: usize,
    /// The physical core it is a thread of; unique in the host.
    pub core: usize,
    /// Its NUMA node.
    pub node: usize,
    /// Whether cgroup and affinity let us run there.
    pub allowed: bool,
}

/// The host's CPUs and nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Every logical CPU, ascending by number.
    pub cpus: Vec<Cpu>,
    /// False when hwloc describes another machine (HWLOC_SYNTHETIC, HWLOC_XMLFILE): good for a plan, not for
    /// pinning.
    pub this_system: bool,
    /// CPUs whose time the control group leaves us (cpu.max); `None`: no quota.
    pub quota: Option<usize>,
}

/// Why no placement fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// hwloc failed or found no CPU that is ours.
    #[error("hwloc: {0}")]
    Host(String),
    /// A listed CPU is not in this machine.
    #[error("{key}: CPU {cpu} does not exist here; this host has {existing}")]
    Nonexistent {
        /// `workers.cpus` or `workers.control_cpus`.
        key: &'static str,
        /// As listed.
        cpu: usize,
        /// A CPU list.
        existing: String,
    },
    /// A listed CPU is not ours.
    #[error(
        "{key}: CPU {cpu} is not allowed to this process (cgroup cpuset or affinity); allowed: {allowed}"
    )]
    NotAllowed {
        /// `workers.cpus` or `workers.control_cpus`.
        key: &'static str,
        /// As listed.
        cpu: usize,
        /// A CPU list.
        allowed: String,
    },
    /// A CPU is listed twice.
    #[error("{key}: CPU {cpu} is listed twice")]
    Repeated {
        /// `workers.cpus` or `workers.control_cpus`.
        key: &'static str,
        /// As listed.
        cpu: usize,
    },
    /// More workers than CPUs.
    #[error("workers.count = {count}, but only {available} {what}")]
    TooMany {
        /// Asked for.
        count: usize,
        /// There are.
        available: usize,
        /// The unit that is counted.
        what: &'static str,
    },
    /// A list or a count without an element.
    #[error("{0} names no CPU")]
    Empty(&'static str),
}

/// Where one worker runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Logical CPU to pin to.
    pub cpu: usize,
    /// Its physical core.
    pub core: usize,
    /// The core's NUMA node.
    pub node: usize,
    /// The node to bind memory to; `None` with `workers.numa = "off"`.
    pub memory_node: Option<usize>,
}

/// The choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// Index = worker.
    pub workers: Vec<Placement>,
    /// Where control and log threads run.
    pub control_cpus: Vec<usize>,
    /// Remarks on this choice, for people.
    pub notes: Vec<String>,
}

impl Host {
    /// Reads this host through hwloc2, the calling thread's affinity included: read it before a thread of
    /// this process is pinned.
    pub fn read() -> Result<Self, TopologyError> {
        let load = |flags| {
            hwloc2::Topology::with_flags(flags)
                .ok_or_else(|| TopologyError::Host("the topology cannot be read".to_owned()))
        };
        // All CPUs first, so that "does not exist" and "is not ours" can be told apart; then the CPUs that
        // the cgroup leaves us.
        let all = load(vec![hwloc2::TopologyFlag::IncludeDisallowed])?;
        let cgroup: BTreeSet<usize> = units(&load(Vec::new())?)?.iter().map(|cpu| cpu.cpu).collect();
        let this_system = all.support().cpu().set_current_thread();
        let affinity = if this_system { Some(affinity()?) } else { None };
        let mut cpus = units(&all)?;
        for cpu in &mut cpus {
            cpu.allowed =
                cgroup.contains(&cpu.cpu) && affinity.as_ref().is_none_or(|ours| ours.contains(&cpu.cpu));
        }
        cpus.sort_unstable_by_key(|cpu| cpu.cpu);
        let quota = if this_system { cgroup::cpus(Path::new("/")) } else { None };
        Ok(Self { cpus, this_system, quota })
    }

    /// The CPUs we may run on, ascending.
    pub fn allowed(&self) -> impl Iterator<Item = &Cpu> {
        self.cpus.iter().filter(|cpu| cpu.allowed)
    }

    fn find(&self, key: &'static str, cpu: usize) -> Result<&Cpu, TopologyError> {
        let found = self.cpus.iter().find(|known| known.cpu == cpu);
        match found {
            Some(known) if known.allowed => Ok(known),
            Some(_) => {
                Err(TopologyError::NotAllowed { key, cpu, allowed: list(self.allowed().map(|cpu| cpu.cpu)) })
            }
            None => Err(TopologyError::Nonexistent {
                key,
                cpu,
                existing: list(self.cpus.iter().map(|cpu| cpu.cpu)),
            }),
        }
    }

    fn find_all(&self, key: &'static str, cpus: &[usize]) -> Result<Vec<&Cpu>, TopologyError> {
        if cpus.is_empty() {
            return Err(TopologyError::Empty(key));
        }
        if let Some((_, &cpu)) = cpus.iter().enumerate().find(|(at, cpu)| cpus[..*at].contains(cpu)) {
            return Err(TopologyError::Repeated { key, cpu });
        }
        cpus.iter().map(|&cpu| self.find(key, cpu)).collect()
    }
}

/// The processing units of a topology. hwloc2's `depth_for_type` cannot name NUMA nodes, so the node comes
/// from the unit's node set; a machine without a core level (some VMs) has one core per unit.
fn units(topology: &hwloc2::Topology) -> Result<Vec<Cpu>, TopologyError> {
    let units = topology
        .objects_with_type(&hwloc2::ObjectType::PU)
        .map_err(|error| TopologyError::Host(format!("no processing units: {error:?}")))?;
    let cores = topology.objects_with_type(&hwloc2::ObjectType::Core).map_or(0, |cores| cores.len());
    Ok(units
        .into_iter()
        .map(|unit| {
            let core = std::iter::successors(unit.parent(), |object| object.parent())
                .find(|object| object.object_type() == hwloc2::ObjectType::Core)
                .map_or(cores + unit.logical_index() as usize, |core| core.logical_index() as usize);
            let node = unit.nodeset().and_then(|nodes| usize::try_from(nodes.first()).ok()).unwrap_or(0);
            Cpu { cpu: unit.os_index() as usize, core, node, allowed: true }
        })
        .collect())
}

/// The calling thread's sched_getaffinity.
fn affinity() -> Result<BTreeSet<usize>, TopologyError> {
    let set = sched_getaffinity(Pid::from_raw(0))
        .map_err(|error| TopologyError::Host(format!("sched_getaffinity: {error}")))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// Chooses the workers' and the control threads' CPUs.
///
/// With `count = "auto"` every allowed physical core gets a worker, as far as the quota goes. But one is left
/// to the control threads when there are more than two: the one with the lowest CPU, where kernels like to
/// put their own work. An asked-for count takes physical cores first, that one last; then second hardware
/// threads. Workers go round the NUMA nodes.
pub fn choose(workers: &model::Workers, host: &Host) -> Result<Topology, TopologyError> {
    let mut notes = Vec::new();
    if host.allowed().next().is_none() {
        return Err(TopologyError::Host("no CPU is allowed to this process".to_owned()));
    }
    let control = workers
        .control_cpus
        .as_deref()
        .map(|cpus| host.find_all("workers.control_cpus", cpus))
        .transpose()?;
    let chosen = match &workers.cpus {
        Some(cpus) => listed(workers, host.find_all("workers.cpus", cpus)?)?,
        None => ranked(workers, host, control.as_deref(), &mut notes)?,
    };
    let control_cpus = match control {
        Some(cpus) => cpus.iter().map(|cpu| cpu.cpu).collect(),
        None => left_over(host, &chosen),
    };
    if control_cpus.iter().any(|cpu| chosen.iter().any(|worker| worker.cpu == *cpu)) {
        notes.push("control and log threads share their CPUs with workers".to_owned());
    }
    if let Some(pair) = chosen
        .iter()
        .enumerate()
        .find_map(|(at, worker)| chosen[..at].iter().find(|other| other.core == worker.core))
    {
        notes.push(format!("more workers than physical cores: core {} carries more than one", pair.core));
    }
    if !host.this_system {
        notes.push(
            "hwloc describes another machine than this one: this is a plan, pinning will fail here"
                .to_owned(),
        );
    }
    let workers = chosen
        .into_iter()
        .map(|Cpu { cpu, core, node, .. }| Placement {
            cpu,
            core,
            node,
            memory_node: workers.numa_local.then_some(node),
        })
        .collect();
    Ok(Topology { workers, control_cpus, notes })
}

/// `workers.cpus`, as written; a smaller `workers.count` takes the first of them.
fn listed(workers: &model::Workers, mut cpus: Vec<&Cpu>) -> Result<Vec<Cpu>, TopologyError> {
    let available = cpus.len().min(WORKERS_MAX);
    match workers.count {
        Some(0) => return Err(TopologyError::Empty("workers.count")),
        Some(count) if count > available => {
            return Err(TopologyError::TooMany {
                count,
                available,
                what: "CPUs are listed in workers.cpus (at most 128 workers)",
            });
        }
        Some(count) => cpus.truncate(count),
        None if cpus.len() > WORKERS_MAX => {
            return Err(TopologyError::TooMany { count: cpus.len(), available, what: "workers can exist" });
        }
        None => {}
    }
    Ok(cpus.into_iter().copied().collect())
}

/// The best CPUs, as many as there are workers.
fn ranked(
    workers: &model::Workers,
    host: &Host,
    control: Option<&[&Cpu]>,
    notes: &mut Vec<String>,
) -> Result<Vec<Cpu>, TopologyError> {
    let cores: BTreeSet<usize> = host.allowed().map(|cpu| cpu.core).collect();
    let reserved: BTreeSet<usize> = match control {
        Some(control) => control.iter().map(|cpu| cpu.core).collect(),
        None if cores.len() > 2 => host.allowed().next().map(|cpu| cpu.core).into_iter().collect(),
        None => BTreeSet::new(),
    };
    // The reserved cores come last within each class; a CPU the user gave to control threads comes after
    // everything.
    let named = |cpu: &Cpu| control.is_some_and(|control| control.iter().any(|named| named.cpu == cpu.cpu));
    let mut threads_seen: BTreeMap<usize, usize> = BTreeMap::new();
    let mut classes: BTreeMap<(bool, usize, bool), BTreeMap<usize, VecDeque<Cpu>>> = BTreeMap::new();
    for cpu in host.allowed() {
        let thread = threads_seen.entry(cpu.core).and_modify(|seen| *seen += 1).or_insert(0);
        let class = (named(cpu), *thread, reserved.contains(&cpu.core));
        classes.entry(class).or_default().entry(cpu.node).or_default().push_back(*cpu);
    }
    let mut order = Vec::new();
    let mut per_node: BTreeMap<usize, usize> = BTreeMap::new();
    for (_, mut nodes) in classes {
        // The node with the fewest workers so far gives the next core, over the classes too.
        while let Some(node) = nodes
            .iter()
            .filter(|(_, cpus)| !cpus.is_empty())
            .map(|(node, _)| *node)
            .min_by_key(|node| (per_node.get(node).copied().unwrap_or(0), *node))
        {
            order.extend(nodes.get_mut(&node).and_then(VecDeque::pop_front));
            *per_node.entry(node).or_default() += 1;
        }
    }
    let free_cores = cores.difference(&reserved).count();
    let count = match workers.count {
        Some(0) => return Err(TopologyError::Empty("workers.count")),
        Some(count) => count,
        None => {
            let count = if free_cores == 0 { cores.len() } else { free_cores };
            // More workers would share the same time, and be stopped together when it is used up.
            let granted = host.quota.map_or(count, |quota| count.min(quota));
            if granted < count {
                notes.push(format!(
                    "the control group's quota (cpu.max) leaves the time of {granted} CPUs: as many workers"
                ));
            }
            let count = granted;
            if count > WORKERS_MAX {
                notes.push(format!("{count} cores, but at most {WORKERS_MAX} workers"));
            }
            count.min(WORKERS_MAX)
        }
    };
    if count > WORKERS_MAX {
        return Err(TopologyError::TooMany { count, available: WORKERS_MAX, what: "workers can exist" });
    }
    if count > order.len() {
        return Err(TopologyError::TooMany {
            count,
            available: order.len(),
            what: "CPUs are allowed to this process",
        });
    }
    order.truncate(count);
    Ok(order)
}

/// CPUs for the control threads: a core without a worker (the lowest), else CPUs without a worker, else all.
fn left_over(host: &Host, workers: &[Cpu]) -> Vec<usize> {
    let without_worker = |cpu: &&Cpu| workers.iter().all(|worker| worker.cpu != cpu.cpu);
    let free_core =
        host.allowed().find(|cpu| workers.iter().all(|worker| worker.core != cpu.core)).map(|cpu| cpu.core);
    if let Some(core) = free_core {
        return host.allowed().filter(|cpu| cpu.core == core).map(|cpu| cpu.cpu).collect();
    }
    let free: Vec<usize> = host.allowed().filter(without_worker).map(|cpu| cpu.cpu).collect();
    if free.is_empty() { host.allowed().map(|cpu| cpu.cpu).collect() } else { free }
}

/// Ascending CPU numbers as a list such as `0-3,8`.
#[must_use]
pub fn list(cpus: impl IntoIterator<Item = usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let ranges: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    ranges.join(",")
}

#[cfg(test)]
mod tests;
