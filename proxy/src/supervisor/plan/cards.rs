//! Network cards beside workers: which queue's interrupt arrives at which CPU, and advice where that does not
//! fit. A packet is cheapest where its interrupt's CPU, the worker's CPU and the card are close to each
//! other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::facts::{Interface, Interrupt};
use crate::config::units;
use crate::supervisor::topology::{self, Host, Topology};

/// Interrupts of a card that carry no packets, by a part of their name.
const NO_QUEUE: &[&str] =
    &["config", "async", "misc", "ctrl", "control", "fdir", "mbx", "ptp", "aeq", "cmd", "mgmt", "event"];

/// Appends one card: its queues, interrupts and advice.
pub(super) fn print(text: &mut String, name: &str, card: &Interface, host: &Host, topology: &Topology) {
    let node = card.node.map_or_else(String::new, |node| format!(", NUMA node {node}"));
    let (receive, transmit) = card.queues;
    let _ = writeln!(
        text,
        "  {name}: driver {}{node}, {receive} receive and {transmit} transmit queues, {} workers",
        card.driver,
        topology.workers.len()
    );
    for interrupt in &card.interrupts {
        let _ = writeln!(
            text,
            "    interrupt {} {}: CPU {}{}",
            interrupt.number,
            interrupt.name,
            interrupt.cpus,
            beside(interrupt, host, topology)
        );
    }
    for line in advice(name, card, host, topology) {
        let _ = writeln!(text, "    advice: {line}");
    }
}

/// The threads that share the interrupt's CPU.
fn beside(interrupt: &Interrupt, host: &Host, topology: &Topology) -> String {
    let cpus = interrupt.cpus();
    let [cpu] = cpus.as_slice() else { return String::new() };
    let node = host
        .node_of(*cpu)
        .filter(|_| host.nodes() > 1)
        .map_or_else(String::new, |node| format!(", node {node}"));
    let on =
        topology.workers.iter().position(|place| place.cpu == *cpu).map(|worker| format!("worker {worker}"));
    let on = on.or_else(|| topology.control_cpus.contains(cpu).then(|| "control threads".to_owned()));
    format!(" ({}{node})", on.unwrap_or_else(|| "no worker".to_owned()))
}

/// Advice, the most important first.
pub(super) fn advice(name: &str, card: &Interface, host: &Host, topology: &Topology) -> Vec<String> {
    let mut lines = Vec::new();
    let workers = topology.workers.len();
    let queues: Vec<&Interrupt> = card.interrupts.iter().filter(|interrupt| interrupt.is_queue()).collect();
    let (receive, _) = card.queues;
    if receive > 0 && receive < workers && !queues.is_empty() {
        lines.push(format!(
            "{receive} receive queues for {workers} workers: the kernel's work for every packet is done on \
             {receive} CPUs at most; `ethtool -L {name} combined {workers}` if the card has more"
        ));
    }
    let per_cpu = spread(&queues, topology, &mut lines);
    if let Some(node) = card.node {
        nodes(node, &per_cpu, host, topology, &mut lines);
    }
    if let Some(line) =
        commands(&queues, card, topology).filter(|_| lines.len() > usize::from(receive < workers))
    {
        lines.push(line);
    }
    if card.rps {
        lines.push(
            "RPS (queues/rx-*/rps_cpus) moves packets between CPUs in software: turn it off where there is a \
             queue for each worker".to_owned(),
        );
    }
    lines
}

/// Whether each queue's interrupt arrives at one CPU, each at another, with a worker on it. Returns how many
/// arrive at each CPU.
fn spread(queues: &[&Interrupt], topology: &Topology, lines: &mut Vec<String>) -> BTreeMap<usize, usize> {
    let workers: Vec<usize> = topology.workers.iter().map(|place| place.cpu).collect();
    let mut per_cpu = BTreeMap::new();
    for interrupt in queues.iter().filter(|interrupt| interrupt.is_pinned()) {
        interrupt.cpus().first().into_iter().for_each(|cpu| *per_cpu.entry(*cpu).or_default() += 1);
    }
    let loose = queues.len() - per_cpu.values().sum::<usize>();
    if loose > 0 {
        lines.push(format!(
            "{loose} of {} queue interrupts may arrive at several CPUs: each packet may find another cache",
            queues.len()
        ));
    }
    if let Some((cpu, count)) =
        per_cpu.iter().max_by_key(|(_, count)| **count).filter(|(_, count)| **count > 1)
        && per_cpu.len() < workers.len().min(queues.len())
    {
        lines.push(format!(
            "{count} of {} queue interrupts arrive at CPU {cpu}, while other CPUs have none",
            queues.len()
        ));
    }
    let strange: BTreeSet<usize> = per_cpu.keys().copied().filter(|cpu| !workers.contains(cpu)).collect();
    if !strange.is_empty() && per_cpu.len() <= workers.len() {
        lines.push(format!("queue interrupts arrive at CPUs without a worker: {}", topology::list(strange)));
    }
    per_cpu
}

/// Whether interrupts and workers are on the card's node.
fn nodes(
    node: usize,
    per_cpu: &BTreeMap<usize, usize>,
    host: &Host,
    topology: &Topology,
    lines: &mut Vec<String>,
) {
    let is_far = |cpu: &usize| host.node_of(*cpu).is_some_and(|other| other != node);
    let far: BTreeSet<usize> = per_cpu.keys().copied().filter(is_far).collect();
    if !far.is_empty() {
        lines.push(format!(
            "queue interrupts arrive at CPUs of another NUMA node than the card's: {}",
            topology::list(far)
        ));
    }
    if topology.workers.iter().any(|place| place.node != node) {
        lines.push(format!(
            "workers on other nodes than the card's node {node} fetch every packet from there; \
             steering.policy = \"numa-local\" prefers those of the node that received it"
        ));
    }
}

/// The commands that put each queue's interrupt beside a worker, workers of the card's node first.
fn commands(queues: &[&Interrupt], card: &Interface, topology: &Topology) -> Option<String> {
    let mut workers: Vec<_> = topology.workers.iter().collect();
    workers.sort_by_key(|place| card.node.is_some_and(|node| node != place.node));
    let moves: Vec<String> = queues
        .iter()
        .zip(workers.iter().cycle())
        .filter(|(interrupt, place)| interrupt.cpus() != [place.cpu])
        .map(|(interrupt, place)| format!("{}:{}", interrupt.number, place.cpu))
        .collect();
    (!moves.is_empty()).then(|| {
        format!(
            "a worker beside each queue: systemctl stop irqbalance; for m in {}; do echo ${{m#*:}} > \
             /proc/irq/${{m%:*}}/smp_affinity_list; done",
            moves.join(" ")
        )
    })
}

impl Interrupt {
    /// The CPUs that it may arrive at.
    fn cpus(&self) -> Vec<usize> {
        units::cpus(&self.cpus).unwrap_or_default()
    }

    fn is_pinned(&self) -> bool {
        self.cpus().len() == 1
    }

    fn is_queue(&self) -> bool {
        let name = self.name.to_ascii_lowercase();
        !NO_QUEUE.iter().any(|part| name.contains(part))
    }
}

impl Host {
    fn node_of(&self, cpu: usize) -> Option<usize> {
        self.cpus.iter().find(|known| known.cpu == cpu).map(|known| known.node)
    }

    fn nodes(&self) -> usize {
        self.cpus.iter().map(|cpu| cpu.node).collect::<BTreeSet<_>>().len()
    }
}

#[cfg(test)]
mod tests;
