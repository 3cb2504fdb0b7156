//! What the facts mean for a configuration: whether a start would stop, or go on with less.

use super::facts::{Facts, Interface};
use super::{Finding, STOP_MARGIN, Severity, UNIT_STOP, size};
use crate::LINUX_MIN;
use crate::config::model::{Config, Ring};
use crate::control::life::GRACE;
use crate::kernel::guard::GuardMode;
use crate::sandbox::Sandbox;
use crate::supervisor::privileges::Fate;

const PAGE_BYTES: u64 = 4096;

/// Pages that the kernel charges to RLIMIT_MEMLOCK for one ring: submission entries and their index, twice as
/// many completions, the ring of provided buffers. The buffers themselves are ordinary memory.
pub(super) fn locked_bytes_per_worker(ring: Ring) -> u64 {
    let entries = u64::from(ring.entries);
    let pages = |bytes: u64| bytes.next_multiple_of(PAGE_BYTES);
    pages(entries * 64) + pages(entries * 2 * 16 + entries * 4 + 64) + pages(u64::from(ring.buffers) * 16)
}

pub(super) fn memory_bytes_per_worker(config: &Config) -> u64 {
    let ring = config.ring;
    ring.memory_bytes() as u64 + config.process.buffer_budget as u64 + locked_bytes_per_worker(ring)
}

pub(super) fn judge(config: &Config, facts: &Facts, workers: usize) -> Vec<Finding> {
    let mut found = Judgement { found: Vec::new() };
    found.judge_ring(facts);
    found.judge_bpf(config, facts);
    for (name, interface) in &facts.interfaces {
        found.judge_interface(config.guard.mode, name, interface);
    }
    found.judge_sandbox(config.process.sandbox, facts);
    found.judge_rights(config, facts);
    for (what, why) in &facts.unbound {
        found.wrong("listener.address", what.as_str(), why.as_str());
    }
    found.judge_limits(config, facts, workers);
    found.judge_end(config);
    found.found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found.found
}

struct Judgement {
    found: Vec<Finding>,
}

impl Judgement {
    fn push(
        &mut self,
        severity: Severity,
        key: Option<&'static str>,
        what: impl Into<String>,
        cost: impl Into<String>,
    ) {
        self.found.push(Finding { severity, key, what: what.into(), cost: cost.into() });
    }

    fn fatal(&mut self, what: impl Into<String>, cost: impl Into<String>) {
        self.push(Severity::Fatal, None, what, cost);
    }

    /// The value of a key names something that is not here.
    fn wrong(&mut self, key: &'static str, what: impl Into<String>, cost: impl Into<String>) {
        self.push(Severity::Fatal, Some(key), what, cost);
    }

    fn degraded(&mut self, what: impl Into<String>, cost: impl Into<String>) {
        self.push(Severity::Degraded, None, what, cost);
    }

    fn advice(&mut self, what: impl Into<String>, cost: impl Into<String>) {
        self.push(Severity::Advice, None, what, cost);
    }

    fn judge_ring(&mut self, facts: &Facts) {
        if let Err(error) = &facts.ring {
            let advice = format!(
                "workers cannot run; it takes Linux {LINUX_MIN} and kernel.io_uring_disabled = 0, and \
                 containers often forbid io_uring by seccomp"
            );
            self.fatal(error.as_str(), advice);
        }
    }

    fn judge_bpf(&mut self, config: &Config, facts: &Facts) {
        let may = |name| facts.capabilities.contains(name);
        let lacking = match (may("CAP_BPF") || may("CAP_SYS_ADMIN"), may("CAP_NET_ADMIN")) {
            (true, true) => None,
            (true, false) => Some("CAP_NET_ADMIN"),
            (false, true) => Some("CAP_BPF"),
            (false, false) => Some("CAP_BPF and CAP_NET_ADMIN"),
        };
        if let Some(lacking) = lacking {
            self.degraded(
                lacking,
                "no steering: the kernel's hash spreads connections, blind to load and to stuck workers",
            );
            if !config.guard.interfaces.is_empty() {
                if config.guard.mode == GuardMode::Auto {
                    self.degraded(
                        lacking,
                        "no XDP: floods and denied sources reach the kernel's stack and the workers",
                    );
                } else {
                    self.fatal(lacking, "guard.mode asks for XDP, which cannot be attached without it");
                }
            }
            return;
        }
        if !config.guard.interfaces.is_empty() && facts.bpffs.is_none() && !may("CAP_SYS_ADMIN") {
            self.degraded(
                "bpffs is not mounted",
                "nothing is pinned: a crash of the supervisor ends the filter and its bans; `mount -t bpf \
                 bpf /sys/fs/bpf` mounts it",
            );
        }
        if !may("CAP_PERFMON") && !may("CAP_SYS_ADMIN") {
            self.degraded("CAP_PERFMON", "the verifier is stricter and may refuse the programs");
        }
    }

    fn judge_interface(&mut self, mode: GuardMode, name: &str, interface: &Interface) {
        let what = format!("guard.interfaces: {name}");
        const KEY: &str = "guard.interfaces";
        if let Some(holder) = &interface.holder {
            return self.wrong(KEY, what, holder.as_str());
        }
        if let Some(foreign) = &interface.foreign {
            return self.wrong(KEY, what, foreign.as_str());
        }
        match (xdp_expected(mode, interface), mode) {
            (Expected::Missing, _) => {
                self.wrong(KEY, what, "there is no interface of this name now; `ip -brief link` lists them")
            }
            (Expected::Impossible, _) => {
                self.wrong(
                    "guard.mode",
                    what,
                    format!(
                        "guard.mode = \"driver\", but {} takes XDP in generic mode only; use \"auto\" or \
                         \"generic\"",
                        interface.driver_text(name)
                    ),
                );
            }
            (Expected::Generic, GuardMode::Auto) => {
                self.degraded(
                    what,
                    format!(
                        "generic XDP ({} has none of its own): packets are judged after the kernel allocated \
                         them",
                        interface.driver_text(name)
                    ),
                );
            }
            (Expected::Generic | Expected::Driver | Expected::Tried, _) => {}
        }
    }

    fn judge_sandbox(&mut self, sandbox: Sandbox, facts: &Facts) {
        for (layer, found) in &facts.layers {
            let Err(reason) = found else { continue };
            let what = format!("process.sandbox: {}: {reason}", layer.label());
            match sandbox {
                Sandbox::Off => {}
                Sandbox::Auto => self.degraded(what, layer.cost()),
                Sandbox::Require => {
                    self.wrong("process.sandbox", what, "process.sandbox = \"require\" asks for it")
                }
            }
        }
    }

    fn judge_rights(&mut self, config: &Config, facts: &Facts) {
        match &facts.fate {
            Err(why) => self.wrong("process.user", "process.user", why.as_str()),
            Ok(Fate::Keeps(why)) => self.degraded("user", why.as_str()),
            Ok(Fate::Becomes(_) | Fate::Ours) => {}
        }
        let low = config
            .listeners
            .iter()
            .flat_map(|listener| &listener.addresses)
            .chain(config.admin.address.as_ref());
        let mut low: Vec<u16> = low
            .map(std::net::SocketAddr::port)
            .filter(|port| (1..facts.unprivileged_port_start).contains(port))
            .collect();
        low.sort_unstable();
        low.dedup();
        if !low.is_empty() && !facts.capabilities.contains("CAP_NET_BIND_SERVICE") {
            self.fatal(
                "CAP_NET_BIND_SERVICE",
                format!(
                    "ports {low:?} cannot be bound; below {} it takes this capability",
                    facts.unprivileged_port_start
                ),
            );
        }
    }

    /// Service managers kill what does not end in their time.
    fn judge_end(&mut self, config: &Config) {
        let needed = config.process.drain_max() + GRACE + STOP_MARGIN;
        if needed > UNIT_STOP {
            let (end, needed) = (config.process.drain_max(), needed.as_secs());
            self.advice(
                "process.drain_delay, process.drain_timeout",
                format!(
                    "a drain may take {end:?}; the service manager has to wait longer: \
                     TimeoutStopSec={needed}s in the unit, terminationGracePeriodSeconds: {needed} in \
                     Kubernetes"
                ),
            );
        }
    }

    fn judge_limits(&mut self, config: &Config, facts: &Facts, workers: usize) {
        let raise = facts.capabilities.contains("CAP_SYS_RESOURCE");
        let capacity = config.capacity(workers);
        let fitting = capacity.connections_max(facts.descriptors);
        let asked = config.process.max_connections;
        if fitting == 0 {
            let needed = capacity.descriptors_for(1);
            self.fatal(
                "descriptors",
                format!(
                    "{workers} workers and their listeners need {needed} for the first connection, the hard \
                     limit is {}; raise it (LimitNOFILE=, ulimit -Hn)",
                    facts.descriptors
                ),
            );
        } else if asked > fitting && !raise {
            let needed = capacity.descriptors_for(asked);
            let limit = facts.descriptors;
            self.fatal(
                format!("process.max_connections = {asked}"),
                format!(
                    "needs {needed} descriptors, the hard limit is {limit}: at most {fitting}; raise it \
                    (LimitNOFILE=, ulimit -Hn)"
                ),
            );
        } else if fitting < 1024 && asked == 0 && !raise {
            self.degraded(
                "descriptors",
                format!("the hard limit of {} leaves {fitting} connections", facts.descriptors),
            );
        }

        let locked = locked_bytes_per_worker(config.ring) * workers as u64;
        if locked > facts.locked_bytes && !raise {
            self.fatal(
                "locked memory",
                format!(
                    "{workers} rings need {}, the hard limit is {}: fewer workers, a smaller ring.entries, \
                     or LimitMEMLOCK=infinity",
                    size(locked),
                    size(facts.locked_bytes)
                ),
            );
        }
        let memory = memory_bytes_per_worker(config) * workers as u64;
        if let Some(available) = facts.available_bytes.filter(|available| memory > *available) {
            let needed = size(memory);
            self.degraded(
                "memory",
                format!("rings, buffers and budgets may grow to {needed}, {} is available", size(available)),
            );
        }
        let backlog = config.listeners.iter().map(|listener| u64::from(listener.backlog)).max().unwrap_or(0);
        if let Some(somaxconn) = facts.somaxconn.filter(|somaxconn| backlog > *somaxconn) {
            self.degraded(
                "net.core.somaxconn",
                format!("cuts the accept queues of {backlog} to {somaxconn}: bursts are refused earlier"),
            );
        }
    }
}

/// The expected outcome of attaching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// There is no such interface.
    Missing,
    /// In the driver.
    Driver,
    /// In the generic hook.
    Generic,
    /// Driver mode is demanded and the driver has none.
    Impossible,
    /// The kernel cannot say beforehand.
    Tried,
}

pub(super) fn xdp_expected(mode: GuardMode, interface: &Interface) -> Expected {
    let possible = if interface.loopback {
        Some(false)
    } else {
        interface.driver_mode.as_ref().and_then(|possible| possible.clone().ok())
    };
    match (mode, possible) {
        _ if !interface.exists => Expected::Missing,
        (GuardMode::Generic, _) | (GuardMode::Auto, Some(false)) => Expected::Generic,
        (GuardMode::Driver, Some(false)) => Expected::Impossible,
        (_, Some(true)) => Expected::Driver,
        (_, None) => Expected::Tried,
    }
}

impl Interface {
    pub(super) fn driver_text(&self, name: &str) -> String {
        if self.loopback {
            format!("the loopback {name}")
        } else {
            format!("{name}'s driver ({})", self.driver)
        }
    }
}
