//! Tests of `supervisor::plan::cards`.

use super::*;
use crate::supervisor::topology::{Cpu, Placement};

/// Two nodes of four CPUs, workers on CPUs 1 to 7 but for the one of the control threads.
fn machine(workers: &[usize]) -> (Host, Topology) {
    let cpus = (0..8).map(|cpu| Cpu { cpu, core: cpu, node: cpu / 4, allowed: true }).collect();
    let place = |&cpu: &usize| Placement { cpu, core: cpu, node: cpu / 4, memory_node: Some(cpu / 4) };
    let topology =
        Topology { workers: workers.iter().map(place).collect(), control_cpus: vec![0], notes: Vec::new() };
    (Host { cpus, this_system: true, quota: None }, topology)
}

fn card(node: Option<usize>, receive: usize, cpus: &[&str]) -> Interface {
    let interrupt = |(number, cpus): (usize, &&str)| Interrupt {
        number: 40 + u32::try_from(number).expect("few"),
        name: format!("eth0-TxRx-{number}"),
        cpus: (*cpus).to_owned(),
    };
    let mut interrupts: Vec<Interrupt> = cpus.iter().enumerate().map(interrupt).collect();
    interrupts.push(Interrupt { number: 60, name: "eth0-misc".to_owned(), cpus: "0-7".to_owned() });
    Interface {
        exists: true,
        driver: "ice".to_owned(),
        queues: (receive, receive),
        node,
        interrupts,
        ..Interface::default()
    }
}

fn told(card: &Interface, workers: &[usize]) -> Vec<String> {
    let (host, topology) = machine(workers);
    advice("eth0", card, &host, &topology)
}

#[test]
fn a_card_whose_queues_lie_beside_the_workers_needs_nothing() {
    assert_eq!(told(&card(Some(0), 3, &["1", "2", "3"]), &[1, 2, 3]), Vec::<String>::new());
    assert_eq!(
        told(&card(None, 2, &[]), &[1, 2, 3]),
        Vec::<String>::new(),
        "no interrupts: nothing is known"
    );
}

#[test]
fn each_mismatch_is_named_with_what_to_do() {
    for (card, workers, expected) in [
        (
            card(Some(0), 2, &["1", "2"]),
            &[1, 2, 3][..],
            &["2 receive queues for 3 workers", "ethtool -L eth0 combined 3"][..],
        ),
        (
            card(Some(0), 3, &["1", "2", "0-3"]),
            &[1, 2, 3],
            &["1 of 3 queue interrupts may arrive at several CPUs", "for m in 42:3;"],
        ),
        (
            card(Some(0), 3, &["1", "1", "3"]),
            &[1, 2, 3],
            &["2 of 3 queue interrupts arrive at CPU 1", "for m in 41:2;"],
        ),
        (card(Some(0), 2, &["0", "1"]), &[1, 2], &["without a worker: 0", "for m in 40:1 41:2;"]),
        (
            card(Some(0), 2, &["5", "2"]),
            &[2, 5],
            &["another NUMA node than the card's: 5", "numa-local", "for m in 40:2 41:5;"],
        ),
    ] {
        let told = told(&card, workers);
        let all = told.join("\n");
        for part in expected {
            assert!(all.contains(part), "{part:?} in\n{all}");
        }
    }
    let rps = Interface { rps: true, ..card(Some(0), 1, &["1"]) };
    assert!(told(&rps, &[1])[0].contains("RPS"));
}

#[test]
fn who_is_beside_an_interrupt_is_shown() {
    let (host, topology) = machine(&[1, 2]);
    let mut text = String::new();
    print(&mut text, "eth0", &card(Some(0), 3, &["1", "0", "6"]), &host, &topology);
    for line in [
        "  eth0: driver ice, NUMA node 0, 3 receive and 3 transmit queues, 2 workers",
        "    interrupt 40 eth0-TxRx-0: CPU 1 (worker 0, node 0)",
        "    interrupt 41 eth0-TxRx-1: CPU 0 (control threads, node 0)",
        "    interrupt 42 eth0-TxRx-2: CPU 6 (no worker, node 1)",
        "    interrupt 60 eth0-misc: CPU 0-7",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
}
