//! Which core each worker gets. hwloc2 describes the host once (`Host::read`); `choose` is a pure function over that description.

pub use crate::placement::{bind_memory_current_thread, pin_current, pin_current_to};

use crate::config::model;

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

/// What the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Every logical CPU, ascending by number.
    pub cpus: Vec<Cpu>,
    /// False when hwloc describes another machine (HWLOC_SYNTHETIC, HWLOC_XMLFILE): good for a plan, not for pinning.
    pub this_system: bool,
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
    #[error("{key}: CPU {cpu} is not allowed to this process (cgroup cpuset or affinity); allowed: {allowed}")]
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
        /// Of what.
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
    /// What is worth knowing about this choice, for people.
    pub notes: Vec<String>,
}

impl Host {
    /// Reads this host through hwloc2, our affinity included.
    pub fn read() -> Result<Self, TopologyError> {
        unimplemented!()
    }
}

/// Chooses the workers' and the control threads' CPUs.
pub fn choose(_workers: &model::Workers, _host: &Host) -> Result<Topology, TopologyError> {
    unimplemented!()
}
