//! `sluice plan`: what would run here, what is missing, and what each absence costs. The same findings tell a running supervisor what it went
//! on without.

use crate::config::model::Config;
use crate::supervisor::topology::TopologyError;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Sluice goes on without it and says so.
    Degraded,
    /// An explicit demand that cannot be met: `run` would stop.
    Fatal,
}

/// Something this host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What is missing.
    pub what: String,
    /// What that costs, and what to do.
    pub cost: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.what, self.cost)
    }
}

/// What this host lacks for this configuration. Reads /proc, /sys, hwloc and the process's rights; changes nothing.
#[must_use]
pub fn findings(_config: &Config) -> Vec<Finding> {
    unimplemented!()
}

/// The text of `sluice plan`.
pub fn plan(_config: &Config) -> Result<String, TopologyError> {
    unimplemented!()
}
