//! The plan as text.

use std::fmt::Write;

use super::facts::{CAPABILITIES, Facts, Interface};
use super::{
    Expected, Finding, Severity, cards, judge, locked_bytes_per_worker, memory_bytes_per_worker, size,
    xdp_expected,
};
use crate::config::model::Config;
use crate::kernel::guard::GuardMode;
use crate::supervisor::topology::{self, Host, Topology};
use crate::telemetry::report::Table;

pub(super) fn render(config: &Config, facts: &Facts, host: &Host, topology: &Topology) -> String {
    let mut text = format!("plan for Linux {}\n", facts.kernel);
    print_workers(&mut text, topology);
    print_listeners(&mut text, config);
    print_interfaces(&mut text, config, facts);
    print_cards(&mut text, facts, host, topology);
    print_kernel(&mut text, facts);
    print_limits(&mut text, config, facts, topology.workers.len());
    text.push_str(&render_findings(&judge(config, facts, topology.workers.len())));
    text
}

/// The last part: what is missing.
pub(super) fn render_findings(findings: &[Finding]) -> String {
    let mut text = String::new();
    for (severity, heading) in [
        (Severity::Fatal, "would stop a start"),
        (Severity::Degraded, "would go on without"),
        (Severity::Advice, "has to fit"),
    ] {
        if findings.iter().any(|finding| finding.severity == severity) {
            let _ = writeln!(text, "\n{heading}");
            for finding in findings.iter().filter(|finding| finding.severity == severity) {
                let _ = writeln!(text, "  {finding}");
            }
        }
    }
    if findings.iter().all(|finding| finding.severity == Severity::Advice) {
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
        let _ = writeln!(text, "  {name}: {}", expected(config.guard.mode, interface));
    }
}

/// How an interface would be guarded.
pub(super) fn expected(mode: GuardMode, interface: &Interface) -> &'static str {
    match xdp_expected(mode, interface) {
        Expected::Missing => "no such interface",
        Expected::Driver => "XDP in the driver",
        Expected::Generic => "XDP in generic mode",
        Expected::Impossible => "driver mode demanded, not offered",
        Expected::Tried if mode == GuardMode::Driver => {
            "driver mode is tried; this kernel cannot say beforehand"
        }
        Expected::Tried => "driver mode is tried, then generic; this kernel cannot say beforehand",
    }
}

fn print_cards(text: &mut String, facts: &Facts, host: &Host, topology: &Topology) {
    text.push_str("\nnetwork cards\n");
    if facts.is_sysfs_foreign {
        text.push_str(
            "  /sys shows another network namespace than this one: queues and interrupts are unknown\n",
        );
    } else if facts.cards.is_empty() {
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
        "connections per source count from their accept on, and the data plane connects to every address",
    );
    for (_, name) in CAPABILITIES {
        let found = if facts.capabilities.contains(name) { "yes" } else { "no" };
        let without = match name {
            "CAP_BPF" => "no XDP, no steering (CAP_SYS_ADMIN serves too)",
            "CAP_NET_ADMIN" => "no XDP, no steering",
            "CAP_PERFMON" => "a stricter verifier (CAP_SYS_ADMIN serves too)",
            "CAP_SYS_ADMIN" => "who holds an interface may not be named",
            "CAP_NET_BIND_SERVICE" => "no ports below net.ipv4.ip_unprivileged_port_start",
            "CAP_SETUID" | "CAP_SETGID" => "the data plane keeps the supervisor's user",
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
