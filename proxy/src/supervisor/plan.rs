//! `sluice plan`: workers and guard as they would run here, everything that is missing, and the cost of each
//! absence. The same findings tell a running supervisor what it lacks. Reads only; it makes nothing but a
//! small ring, which it closes again.

mod cards;
mod facts;

use std::fmt::{self, Write};
use std::path::Path;

use self::facts::{CAPABILITIES, Facts, Interface};
use crate::LINUX_MIN;
use crate::config::model::{Config, Ring};
use crate::kernel::guard::GuardMode;
use crate::sandbox::Sandbox;
use crate::supervisor::topology::{self, Host, Topology, TopologyError};
use crate::telemetry::report::Table;

const PAGE_BYTES: u64 = 4096;

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
    match Host::read().and_then(|host| topology::choose(&config.workers, &host)) {
        Ok(topology) => judge(config, &facts, topology.workers.len()),
        Err(error) => {
            let mut found = judge(config, &facts, 1);
            found.insert(
                0,
                Finding { severity: Severity::Fatal, what: "workers".to_owned(), cost: error.to_string() },
            );
            found
        }
    }
}

/// The text of `sluice plan`. `root`: where /sys and /proc of the network cards are, `/` but in tests.
///
/// # Errors
/// When the CPUs do not fit.
pub fn plan(config: &Config, root: &Path) -> Result<String, TopologyError> {
    let host = Host::read()?;
    let topology = topology::choose(&config.workers, &host)?;
    let mut facts = Facts::read(config, root);
    if !host.this_system && root == Path::new("/") {
        // The CPUs are another machine's, the cards are not.
        facts.cards.clear();
    }
    Ok(render(config, &facts, &host, &topology))
}

/// Pages that the kernel charges to RLIMIT_MEMLOCK for one ring: submission entries and their index, twice as
/// many completions, the ring of provided buffers. The buffers themselves are ordinary memory.
fn locked_bytes_per_worker(ring: Ring) -> u64 {
    let entries = u64::from(ring.entries);
    let pages = |bytes: u64| bytes.next_multiple_of(PAGE_BYTES);
    pages(entries * 64) + pages(entries * 2 * 16 + entries * 4 + 64) + pages(u64::from(ring.buffers) * 16)
}

fn memory_bytes_per_worker(config: &Config) -> u64 {
    let ring = config.ring;
    ring.memory_bytes() as u64 + config.process.buffer_budget as u64 + locked_bytes_per_worker(ring)
}

fn judge(config: &Config, facts: &Facts, workers: usize) -> Vec<Finding> {
    let mut found = Judgement { found: Vec::new() };
    found.judge_ring(facts);
    found.judge_bpf(config, facts);
    for (name, interface) in &facts.interfaces {
        found.judge_interface(config.guard.mode, name, interface);
    }
    found.judge_sandbox(config.process.sandbox, facts);
    found.judge_rights(config, facts);
    found.judge_limits(config, facts, workers);
    found.found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found.found
}

struct Judgement {
    found: Vec<Finding>,
}

impl Judgement {
    fn fatal(&mut self, what: impl Into<String>, cost: impl Into<String>) {
        self.found.push(Finding { severity: Severity::Fatal, what: what.into(), cost: cost.into() });
    }

    fn degraded(&mut self, what: impl Into<String>, cost: impl Into<String>) {
        self.found.push(Finding { severity: Severity::Degraded, what: what.into(), cost: cost.into() });
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
        if let Some(holder) = &interface.holder {
            return self.fatal(what, holder.as_str());
        }
        if let Some(foreign) = &interface.foreign {
            return self.fatal(what, foreign.as_str());
        }
        match (xdp_expected(mode, interface), mode) {
            (Expected::Missing, GuardMode::Auto) => {
                self.degraded(what, "no such interface: no XDP there; `ip -brief link` lists what there is")
            }
            (Expected::Missing, _) => {
                self.fatal(what, "no such interface; `ip -brief link` lists what there is")
            }
            (Expected::Impossible, _) => {
                self.fatal(
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
                Sandbox::Require => self.fatal(what, "process.sandbox = \"require\" asks for it"),
            }
        }
    }

    fn judge_rights(&mut self, config: &Config, facts: &Facts) {
        let user = &config.process.user;
        if !facts.user_exists {
            self.fatal(format!("process.user = {user:?}"), "no such user; create it or name another");
        } else if !facts.user_is_ours && !facts.capabilities.contains("CAP_SETUID") {
            self.degraded(
                "CAP_SETUID",
                format!("the data plane cannot become {user}: it runs with the supervisor's user"),
            );
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

    fn judge_limits(&mut self, config: &Config, facts: &Facts, workers: usize) {
        let raise = facts.capabilities.contains("CAP_SYS_RESOURCE");
        let capacity = config.capacity(workers);
        let fitting = capacity.connections_max(facts.descriptors);
        let asked = config.process.max_connections;
        if asked > fitting && !raise {
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
enum Expected {
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

fn xdp_expected(mode: GuardMode, interface: &Interface) -> Expected {
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
    fn driver_text(&self, name: &str) -> String {
        if self.loopback {
            format!("the loopback {name}")
        } else {
            format!("{name}'s driver ({})", self.driver)
        }
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        u64::MAX => "unlimited".to_owned(),
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes.div_ceil(1024)),
        _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
    }
}

fn render(config: &Config, facts: &Facts, host: &Host, topology: &Topology) -> String {
    let mut text = format!("plan for Linux {}\n", facts.kernel);
    print_workers(&mut text, topology);
    print_listeners(&mut text, config);
    print_interfaces(&mut text, config, facts);
    print_cards(&mut text, facts, host, topology);
    print_kernel(&mut text, facts);
    print_limits(&mut text, config, facts, topology.workers.len());
    let findings = judge(config, facts, topology.workers.len());
    for (severity, heading) in
        [(Severity::Fatal, "would stop a start"), (Severity::Degraded, "would go on without")]
    {
        if findings.iter().any(|finding| finding.severity == severity) {
            let _ = writeln!(text, "\n{heading}");
            for finding in findings.iter().filter(|finding| finding.severity == severity) {
                let _ = writeln!(text, "  {finding}");
            }
        }
    }
    if findings.is_empty() {
        text.push_str("\nnothing is missing\n");
    }
    text
}

fn print_workers(text: &mut String, topology: &Topology) {
    text.push_str("\nworkers\n");
    let mut table = Table::new(["worker", "cpu", "core", "node", "memory"]);
    for (worker, place) in topology.workers.iter().enumerate() {
        let memory = place.memory_node.map_or_else(|| "not bound".to_owned(), |node| format!("node {node}"));
        table.row([
            worker.to_string(),
            place.cpu.to_string(),
            place.core.to_string(),
            place.node.to_string(),
            memory,
        ]);
    }
    table.print(text);
    let _ = writeln!(
        text,
        "  control and log threads: CPUs {}",
        topology::list(topology.control_cpus.iter().copied())
    );
    for note in &topology.notes {
        let _ = writeln!(text, "  note: {note}");
    }
}

fn print_listeners(text: &mut String, config: &Config) {
    text.push_str("\nlisteners\n");
    let mut table = Table::new(["name", "address", "backlog"]);
    for listener in &config.listeners {
        for address in &listener.addresses {
            table.row([listener.name.clone(), address.to_string(), listener.backlog.to_string()]);
        }
    }
    table.print(text);
}

fn print_interfaces(text: &mut String, config: &Config, facts: &Facts) {
    text.push_str("\nguard\n");
    if facts.interfaces.is_empty() {
        text.push_str("  no interfaces named: no XDP, nothing is dropped before the kernel\n");
    }
    if let Some(left) = &facts.left {
        let _ = writeln!(text, "  {left}");
    }
    for (name, interface) in &facts.interfaces {
        let expected = match xdp_expected(config.guard.mode, interface) {
            Expected::Missing => "no such interface".to_owned(),
            Expected::Driver => "XDP in the driver".to_owned(),
            Expected::Generic => "XDP in generic mode".to_owned(),
            Expected::Impossible => "driver mode demanded, not offered".to_owned(),
            Expected::Tried if config.guard.mode == GuardMode::Driver => {
                "driver mode is tried; this kernel cannot say beforehand".to_owned()
            }
            Expected::Tried => {
                "driver mode is tried, then generic; this kernel cannot say beforehand".to_owned()
            }
        };
        let _ = writeln!(text, "  {name}: {expected}");
    }
}

fn print_cards(text: &mut String, facts: &Facts, host: &Host, topology: &Topology) {
    text.push_str("\nnetwork cards\n");
    if facts.cards.is_empty() {
        text.push_str("  none with interrupts of its own\n");
    }
    for (name, card) in &facts.cards {
        cards::print(text, name, card, host, topology);
    }
}

fn print_kernel(text: &mut String, facts: &Facts) {
    text.push_str("\nkernel\n");
    let mut table = Table::new(["feature", "found", "without it"]);
    let mut row = |feature: &str, found: String, without: &str| {
        table.row([feature.to_owned(), found, without.to_owned()])
    };
    let ring = facts.ring.as_ref().map_or_else(|error| format!("no: {error}"), |()| "yes".to_owned());
    row("io_uring, multishot into provided buffers", ring, "no worker can run");
    let place = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map_or_else(|| "no".to_owned(), |path| path.display().to_string())
    };
    row(
        "bpffs",
        place(&facts.bpffs),
        "a start mounts it; else a crash of the supervisor ends the filter and its bans",
    );
    for (layer, found) in &facts.layers {
        let found = found.as_ref().map_or_else(|reason| format!("no: {reason}"), |()| "yes".to_owned());
        row(&format!("sandbox: {}", layer.label()), found, "hostile code in the data plane reaches further");
    }
    row(
        "cgroup v2",
        place(&facts.cgroup2),
        "connections per source are not counted, and the data plane connects to every address",
    );
    for (_, name) in CAPABILITIES {
        let found = if facts.capabilities.contains(name) { "yes" } else { "no" };
        let without = match name {
            "CAP_BPF" => "no XDP, no steering (CAP_SYS_ADMIN serves too)",
            "CAP_NET_ADMIN" => "no XDP, no steering",
            "CAP_PERFMON" => "a stricter verifier (CAP_SYS_ADMIN serves too)",
            "CAP_SYS_ADMIN" => "who holds an interface may not be named",
            "CAP_NET_BIND_SERVICE" => "no ports below net.ipv4.ip_unprivileged_port_start",
            "CAP_SETUID" => "the data plane keeps the supervisor's user",
            "CAP_IPC_LOCK" => "rings count against the locked memory limit",
            _ => "hard limits cannot be raised",
        };
        row(name, found.to_owned(), without);
    }
    table.print(text);
}

fn print_limits(text: &mut String, config: &Config, facts: &Facts, workers: usize) {
    text.push_str("\nlimits\n");
    let mut table = Table::new(["what", "needed", "limit"]);
    let capacity = config.capacity(workers);
    let connections = capacity.connections_max(facts.descriptors);
    let descriptors = capacity.descriptors_for(connections);
    let count = |count: u64| if count == u64::MAX { "unlimited".to_owned() } else { count.to_string() };
    table.row([
        format!("descriptors, for {connections} connections"),
        count(descriptors),
        count(facts.descriptors),
    ]);
    table.row([
        "locked memory (rings)".to_owned(),
        size(locked_bytes_per_worker(config.ring) * workers as u64),
        size(facts.locked_bytes),
    ]);
    let memory = memory_bytes_per_worker(config) * workers as u64;
    let available = facts.available_bytes.map_or_else(|| "unknown".to_owned(), size);
    table.row(["memory (rings, buffers, budgets), at most".to_owned(), size(memory), available]);
    table.print(text);
}

#[cfg(test)]
mod tests;
