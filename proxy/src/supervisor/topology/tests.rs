//! Tests of `supervisor::topology`.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn settings(count: Option<usize>) -> model::Workers {
    model::Workers {
        count,
        cpus: None,
        control_cpus: None,
        numa_local: true,
        busy_poll: Duration::ZERO,
        stuck_after: Duration::from_secs(5),
    }
}

/// Cores numbered through the nodes; hardware thread t of core c is CPU c + t * cores, as Linux does.
fn machine(nodes: usize, cores_per_node: usize, threads: usize) -> Host {
    let cores = nodes * cores_per_node;
    let cpus = (0..cores * threads)
        .map(|cpu| Cpu { cpu, core: cpu % cores, node: cpu % cores / cores_per_node, allowed: true })
        .collect();
    Host { cpus, this_system: true, quota: None }
}

fn cpus(topology: &Topology) -> Vec<usize> {
    topology.workers.iter().map(|worker| worker.cpu).collect()
}

#[test]
fn a_quota_bounds_what_auto_chooses_and_nothing_else() {
    let limited = |quota| Host { quota: Some(quota), ..machine(1, 8, 1) };
    let topology = choose(&settings(None), &limited(3)).expect("fits");
    assert_eq!(topology.workers.len(), 3);
    assert!(topology.notes.iter().any(|note| note.contains("cpu.max")), "{:?}", topology.notes);
    assert_eq!(choose(&settings(None), &limited(16)).expect("fits").workers.len(), 7);
    assert_eq!(choose(&settings(Some(8)), &limited(1)).expect("fits").workers.len(), 8, "as asked");
}

#[test]
fn one_or_two_cores_all_get_a_worker_and_share_with_control() {
    for cores in [1, 2] {
        let topology = choose(&settings(None), &machine(1, cores, 1)).expect("fits");
        assert_eq!(cpus(&topology), (0..cores).collect::<Vec<_>>());
        assert_eq!(topology.control_cpus, (0..cores).collect::<Vec<_>>());
        assert!(topology.notes.iter().any(|note| note.contains("share")), "{:?}", topology.notes);
    }
    let topology = choose(&settings(None), &machine(1, 2, 2)).expect("fits");
    assert_eq!(cpus(&topology), [0, 1]);
    assert_eq!(topology.control_cpus, [2, 3], "the cores' second threads");
}

#[test]
fn above_two_cores_the_lowest_is_left_to_control() {
    let topology = choose(&settings(None), &machine(1, 4, 2)).expect("fits");
    assert_eq!(cpus(&topology), [1, 2, 3]);
    assert_eq!(topology.control_cpus, [0, 4]);
    assert!(topology.notes.is_empty(), "{:?}", topology.notes);
}

#[test]
fn an_asked_for_count_takes_cores_before_threads() {
    let host = machine(1, 4, 2);
    assert_eq!(cpus(&choose(&settings(Some(2)), &host).expect("fits")), [1, 2]);
    let four = choose(&settings(Some(4)), &host).expect("fits");
    assert_eq!(cpus(&four), [1, 2, 3, 0], "the fourth core before a second thread");
    assert_eq!(four.control_cpus, [4, 5, 6, 7]);
    let six = choose(&settings(Some(6)), &host).expect("fits");
    assert_eq!(cpus(&six), [1, 2, 3, 0, 5, 6]);
    assert_eq!(six.control_cpus, [4, 7]);
    assert!(six.notes.iter().any(|note| note.contains("more workers than physical cores")));
    let eight = choose(&settings(Some(8)), &host).expect("fits");
    assert_eq!(eight.control_cpus, [0, 1, 2, 3, 4, 5, 6, 7]);
    let error = choose(&settings(Some(9)), &host).expect_err("too many");
    assert_eq!(error.to_string(), "workers.count = 9, but only 8 CPUs are allowed to this process");
}

#[test]
fn a_two_socket_machine_is_shared_evenly() {
    let host = machine(2, 32, 2);
    let all = choose(&settings(None), &host).expect("fits");
    assert_eq!(all.workers.len(), 63);
    assert_eq!(all.workers.iter().filter(|worker| worker.node == 0).count(), 31);
    assert_eq!(all.control_cpus, [0, 64]);
    let few = choose(&settings(Some(4)), &host).expect("fits");
    assert_eq!(few.workers.iter().map(|worker| worker.node).collect::<Vec<_>>(), [0, 1, 0, 1]);
    assert!(few.workers.iter().all(|worker| worker.memory_node == Some(worker.node)));
    let off = choose(&model::Workers { numa_local: false, ..settings(None) }, &host).expect("fits");
    assert!(off.workers.iter().all(|worker| worker.memory_node.is_none()));
}

#[test]
fn lists_are_taken_as_written_and_checked() {
    let mut host = machine(1, 4, 1);
    host.cpus[3].allowed = false;
    let with = |cpus: &[usize]| model::Workers { cpus: Some(cpus.to_vec()), ..settings(None) };
    let topology = choose(&with(&[2, 0]), &host).expect("fits");
    assert_eq!(cpus(&topology), [2, 0]);
    assert_eq!(topology.control_cpus, [1]);
    let message = |workers: &model::Workers| choose(workers, &host).expect_err("refused").to_string();
    assert_eq!(
        message(&with(&[0, 3])),
        "workers.cpus: CPU 3 is not allowed to this process (cgroup cpuset or affinity); allowed: 0-2"
    );
    assert_eq!(message(&with(&[7])), "workers.cpus: CPU 7 does not exist here; this host has 0-3");
    assert_eq!(message(&with(&[1, 1])), "workers.cpus: CPU 1 is listed twice");
    assert_eq!(message(&with(&[])), "workers.cpus names no CPU");
    assert_eq!(message(&settings(Some(0))), "workers.count names no CPU");
    let two_of_three = model::Workers { count: Some(2), ..with(&[2, 1, 0]) };
    assert_eq!(cpus(&choose(&two_of_three, &host).expect("fits")), [2, 1]);
    assert!(message(&model::Workers { count: Some(3), ..with(&[1, 2]) }).contains("only 2 CPUs are listed"));
    let control = |cpus: &[usize]| model::Workers { control_cpus: Some(cpus.to_vec()), ..settings(None) };
    assert!(message(&control(&[9])).starts_with("workers.control_cpus: CPU 9 does not exist"));
    let topology = choose(&control(&[1]), &host).expect("fits");
    assert_eq!((cpus(&topology), topology.control_cpus), (vec![0, 2], vec![1]));
}

#[test]
fn control_on_every_core_still_leaves_workers() {
    let host = machine(1, 2, 1);
    let topology =
        choose(&model::Workers { control_cpus: Some(vec![0, 1]), ..settings(None) }, &host).expect("fits");
    assert_eq!(cpus(&topology), [0, 1]);
}

#[test]
fn lists_print_as_ranges() {
    assert_eq!(list([0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    assert_eq!(list([]), "");
}

#[test]
fn this_host_can_be_read_and_placed() {
    let host = Host::read().expect("hwloc works");
    assert!(host.allowed().count() > 0);
    let topology = choose(&settings(None), &host).expect("some plan");
    let ours = host.allowed().map(|cpu| cpu.cpu).collect::<BTreeSet<_>>();
    assert!(cpus(&topology).iter().chain(&topology.control_cpus).all(|cpu| ours.contains(cpu)));
    if host.this_system {
        assert_eq!(ours, affinity().expect("readable").intersection(&ours).copied().collect());
    }
}

/// hwloc reads its environment when the topology is loaded, and changing our own environment is not safe
/// beside other threads: the test asks a second process of itself.
#[test]
fn a_synthetic_two_socket_machine_gets_a_sensible_plan() {
    const MARK: &str = "SLUICE_TEST_SYNTHETIC_HOST";
    if std::env::var_os(MARK).is_some() {
        let host = Host::read().expect("a synthetic host");
        println!("{host:?}");
        assert_eq!(host.cpus.len(), 128);
        assert!(!host.this_system);
        let topology = choose(&settings(None), &host).expect("fits");
        assert_eq!(topology.workers.len(), 63);
        assert_eq!(topology.workers.iter().filter(|worker| worker.node == 1).count(), 32);
        let cores: BTreeSet<usize> = topology.workers.iter().map(|worker| worker.core).collect();
        assert_eq!(cores.len(), 63, "a core each");
        assert_eq!(topology.control_cpus, [0, 1]);
        assert!(topology.notes.iter().any(|note| note.contains("another machine")));
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().expect("our path"))
        .args([
            "--exact",
            "supervisor::topology::tests::a_synthetic_two_socket_machine_gets_a_sensible_plan",
            "--nocapture",
        ])
        .env(MARK, "1")
        .env("HWLOC_SYNTHETIC", "numa:2 core:32 pu:2")
        .env("HWLOC_THISSYSTEM", "0")
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

proptest! {
    #[test]
    fn any_choice_is_sound(
        nodes in 1_usize..4,
        cores in 1_usize..9,
        threads in 1_usize..3,
        count in prop::option::of(1_usize..40),
        hidden in prop::collection::vec(any::<bool>(), 64),
    ) {
        let mut host = machine(nodes, cores, threads);
        for (cpu, hidden) in host.cpus.iter_mut().zip(hidden) {
            cpu.allowed = !hidden;
        }
        let allowed: BTreeSet<usize> = host.allowed().map(|cpu| cpu.cpu).collect();
        let physical: BTreeSet<usize> = host.allowed().map(|cpu| cpu.core).collect();
        let topology = match choose(&settings(count), &host) {
            Ok(topology) => topology,
            Err(_) => {
                prop_assert!(allowed.is_empty() || count.is_some_and(|count| count > allowed.len()));
                return Ok(());
            }
        };
        let workers: BTreeSet<usize> = topology.workers.iter().map(|worker| worker.cpu).collect();
        prop_assert_eq!(workers.len(), topology.workers.len(), "no CPU twice");
        prop_assert!(workers.is_subset(&allowed));
        prop_assert!(
            !topology.control_cpus.is_empty()
                && topology.control_cpus.iter().all(|cpu| allowed.contains(cpu))
        );
        let expected =
            count.unwrap_or(if physical.len() > 2 { physical.len() - 1 } else { physical.len() });
        prop_assert_eq!(workers.len(), expected);
        let used: BTreeSet<usize> = topology.workers.iter().map(|worker| worker.core).collect();
        prop_assert_eq!(used.len(), expected.min(physical.len()), "physical cores first");
        if expected < physical.len() {
            prop_assert!(
                topology.control_cpus.iter().all(|cpu| !workers.contains(cpu)),
                "a core was left"
            );
        }
        // A node has at most one worker more than another, unless that other has no core left to give.
        if expected < physical.len() {
            let per = |node: usize| topology.workers.iter().filter(|worker| worker.node == node).count();
            let free = |node: usize| {
                let kept = host.allowed().next().map(|cpu| cpu.core).filter(|_| physical.len() > 2);
                host.allowed()
                    .any(|cpu| cpu.node == node && Some(cpu.core) != kept && !used.contains(&cpu.core))
            };
            for (a, b) in (0..nodes).flat_map(|a| (0..nodes).map(move |b| (a, b))) {
                prop_assert!(per(a) <= per(b) + 1 || !free(b), "{:?}", topology);
            }
        }
    }
}
