//! Findings over made-up hosts, and the whole plan over this one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::facts::{CAPABILITIES, Interface, Interrupt};
use super::render::render;
use super::*;
use crate::LINUX_MIN;
use crate::config::model::Ring;
use crate::config::{model, testing};
use crate::kernel::guard::GuardMode;
use crate::listen::Listener;
use crate::route::RouteTable;
use crate::sandbox::{Layer, Sandbox};
use crate::supervisor::privileges::Fate;
use crate::supervisor::topology::Placement;

/// As many workers and buffers as the defaults give, and a listener with two addresses.
fn config() -> Config {
    let made = testing::config(&[]);
    let addresses =
        vec!["127.0.0.1:8080".parse().expect("an address"), "[::1]:8080".parse().expect("an address")];
    let listener = Listener { name: "http".to_owned(), addresses, backlog: 4096, ..testing::listener() };
    Config {
        process: model::Process {
            run_dir: PathBuf::from("/run/sluice"),
            buffer_budget: 64 << 20,
            ..made.process
        },
        workers: model::Workers { count: None, numa_local: true, ..made.workers },
        ring: Ring { entries: 4096, buffers: 4096, buffer_size: 4096 },
        listeners: vec![Arc::new(listener)],
        routes: RouteTable::default(),
        upstreams: Vec::new(),
        ..made
    }
}

/// A host that lacks nothing.
fn facts() -> Facts {
    Facts {
        kernel: "6.18.0".to_owned(),
        capabilities: CAPABILITIES
            .iter()
            .map(|(_, name)| *name)
            .filter(|name| *name != "CAP_SYS_RESOURCE")
            .collect(),
        descriptors: 20_000,
        locked_bytes: 8 << 20,
        available_bytes: Some(8 << 30),
        cgroup2: Some(PathBuf::from("/sys/fs/cgroup")),
        bpffs: Some(PathBuf::from("/sys/fs/bpf")),
        ring: Ok(()),
        layers: Layer::ALL.map(|layer| (layer, Ok(()))).into(),
        fate: Ok(Fate::Ours),
        unbound: Vec::new(),
        is_sysfs_foreign: false,
        somaxconn: Some(4096),
        unprivileged_port_start: 1024,
        left: None,
        interfaces: BTreeMap::new(),
        cards: BTreeMap::new(),
    }
}

fn card(driver_mode: Result<bool, String>) -> Interface {
    Interface {
        exists: true,
        driver: "ice".to_owned(),
        driver_mode: Some(driver_mode),
        ..Interface::default()
    }
}

fn loopback() -> Interface {
    Interface { exists: true, driver: "virtual".to_owned(), loopback: true, ..Interface::default() }
}

/// The one finding, as severity and text.
fn only(found: Vec<Finding>) -> (Severity, String) {
    assert_eq!(found.len(), 1, "{found:?}");
    (found[0].severity, found[0].to_string())
}

#[test]
fn a_host_with_everything_has_no_findings() {
    assert_eq!(judge(&config(), &facts(), 4), []);
}

#[test]
fn a_layer_of_the_sandbox_that_is_missing_is_named_and_stops_a_start_that_demands_it() {
    let mut facts = facts();
    facts.layers[Layer::Files as usize].1 = Err("switched off at boot".to_owned());
    for (sandbox, expected) in [
        (Sandbox::Auto, Some(Severity::Degraded)),
        (Sandbox::Require, Some(Severity::Fatal)),
        (Sandbox::Off, None),
    ] {
        let mut config = config();
        config.process.sandbox = sandbox;
        let found = judge(&config, &facts, 4);
        assert_eq!(found.first().map(|finding| finding.severity), expected);
        assert!(found.iter().all(|finding| {
            finding.to_string().starts_with("process.sandbox: Landlock: switched off at boot: ")
        }));
    }
}

#[test]
fn a_held_interface_stops_a_start_in_every_mode_and_left_pins_are_told() {
    for mode in [GuardMode::Auto, GuardMode::Driver, GuardMode::Generic] {
        let mut config = config();
        config.guard.mode = mode;
        config.guard.interfaces = vec!["eth0".to_owned()];
        let mut facts = facts();
        let holder = Some("XDP on eth0: somebody".to_owned());
        facts.interfaces = BTreeMap::from([("eth0".to_owned(), Interface { holder, ..card(Ok(true)) })]);
        let (severity, text) = only(judge(&config, &facts, 4));
        assert_eq!(severity, Severity::Fatal);
        assert!(text.contains("guard.interfaces: eth0: XDP on eth0: somebody"), "{text}");
    }
    let topology = topology::choose(&config().workers, &Host::read().expect("a host")).expect("a worker");
    let left = Facts { left: Some("an earlier run was killed".to_owned()), ..facts() };
    assert!(
        render(&config(), &left, &Host { cpus: Vec::new(), this_system: true, quota: None }, &topology)
            .contains("  an earlier run was killed\n")
    );
}

#[test]
fn without_bpffs_a_guard_ends_with_its_supervisor() {
    let mut config = config();
    let mut facts = facts();
    facts.bpffs = None;
    assert_eq!(judge(&config, &facts, 4), [], "nothing is pinned without a guard");
    config.guard.interfaces = vec!["eth0".to_owned()];
    facts.interfaces = BTreeMap::from([("eth0".to_owned(), card(Ok(true)))]);
    assert_eq!(judge(&config, &facts, 4), [], "a start mounts it");
    facts.capabilities.remove("CAP_SYS_ADMIN");
    let (severity, text) = only(judge(&config, &facts, 4));
    assert_eq!(severity, Severity::Degraded);
    assert!(text.contains("mount -t bpf"), "{text}");
}

/// Pages cannot refer to a constant.
#[test]
fn pages_ask_for_the_same_kernel() {
    for page in ["README.md", "CONTRIBUTING.md"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
        let text = std::fs::read_to_string(path).expect("a page");
        for said in text.split("Linux ").skip(1).filter(|said| said.starts_with(|c: char| c.is_ascii_digit()))
        {
            let version = said.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
            assert_eq!(version.trim_end_matches('.'), LINUX_MIN, "{page}");
        }
    }
}

#[test]
fn each_absence_says_what_it_costs() {
    let mut without = facts();
    without.ring = Err("Operation not permitted".to_owned());
    let (severity, text) = only(judge(&config(), &without, 4));
    assert_eq!(severity, Severity::Fatal);
    assert!(text.contains("it takes Linux 6.12 and kernel.io_uring_disabled = 0"), "{text}");

    let mut without = facts();
    without.fate = Ok(Fate::Keeps("not started as root: …".to_owned()));
    assert_eq!(only(judge(&config(), &without, 4)).0, Severity::Degraded);
    without.fate = Err("process.user = \"nobody\": no such user".to_owned());
    let (severity, text) = only(judge(&config(), &without, 4));
    assert_eq!(severity, Severity::Fatal);
    assert!(text.contains("no such user"), "{text}");

    let mut small = facts();
    small.somaxconn = Some(128);
    small.available_bytes = Some(1 << 20);
    let found = judge(&config(), &small, 4);
    assert_eq!(
        found.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>(),
        ["memory", "net.core.somaxconn"]
    );
}

#[test]
fn without_bpf_rights_auto_goes_on_and_a_demand_stops() {
    let mut config = config();
    config.guard.interfaces.push("eth0".to_owned());
    let mut without = facts();
    without.interfaces.insert("eth0".to_owned(), card(Ok(true)));
    without.capabilities.remove("CAP_NET_ADMIN");
    assert!(judge(&config, &without, 4).iter().all(|finding| finding.severity == Severity::Degraded));
    config.guard.mode = GuardMode::Driver;
    let found = judge(&config, &without, 4);
    assert_eq!((found[0].severity, found[0].what.as_str()), (Severity::Fatal, "CAP_NET_ADMIN"));
    without.capabilities.remove("CAP_BPF");
    assert_eq!(judge(&config, &without, 4)[0].severity, Severity::Fatal, "CAP_SYS_ADMIN is no CAP_NET_ADMIN");
    without.capabilities.insert("CAP_NET_ADMIN");
    assert_eq!(judge(&config, &without, 4), [], "CAP_SYS_ADMIN serves for CAP_BPF");
}

#[test]
fn interfaces_are_judged_by_mode() {
    use GuardMode::{Auto, Driver, Generic};
    let unknown = || card(Err("No such file or directory".to_owned()));
    for (mode, interface, expected, severity) in [
        (Auto, card(Ok(true)), Expected::Driver, None),
        (Auto, card(Ok(false)), Expected::Generic, Some(Severity::Degraded)),
        (Auto, unknown(), Expected::Tried, None),
        (Auto, loopback(), Expected::Generic, Some(Severity::Degraded)),
        (Auto, Interface::default(), Expected::Missing, Some(Severity::Fatal)),
        (Driver, card(Ok(true)), Expected::Driver, None),
        (Driver, card(Ok(false)), Expected::Impossible, Some(Severity::Fatal)),
        (Driver, unknown(), Expected::Tried, None),
        (Driver, loopback(), Expected::Impossible, Some(Severity::Fatal)),
        (Driver, Interface::default(), Expected::Missing, Some(Severity::Fatal)),
        (Generic, card(Ok(true)), Expected::Generic, None),
        (Generic, loopback(), Expected::Generic, None),
        (Generic, Interface::default(), Expected::Missing, Some(Severity::Fatal)),
    ] {
        assert_eq!(xdp_expected(mode, &interface), expected, "{mode:?} {interface:?}");
        let mut config = config();
        config.guard.mode = mode;
        let mut facts = facts();
        facts.interfaces.insert("net0".to_owned(), interface);
        let found = judge(&config, &facts, 4);
        assert_eq!(
            found.first().map(|finding| finding.severity),
            severity,
            "{mode:?} {expected:?}: {found:?}"
        );
    }
}

#[test]
fn a_long_drain_asks_for_the_patience_of_the_service_manager() {
    let unit = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../config/sluice.service");
    let unit = std::fs::read_to_string(unit).expect("the unit");
    assert!(
        unit.contains(&format!("\nTimeoutStopSec={}s\n", UNIT_STOP.as_secs())),
        "the unit says otherwise"
    );
    let mut config = config();
    config.process.drain_timeout = Duration::from_secs(60);
    config.process.drain_delay = Duration::from_secs(20);
    assert_eq!(judge(&config, &facts(), 4), []);
    config.process.drain_delay = Duration::from_secs(21);
    let (severity, text) = only(judge(&config, &facts(), 4));
    assert_eq!(severity, Severity::Advice);
    assert!(text.contains("a drain may take 81s") && text.contains("TimeoutStopSec=91s"), "{text}");
}

#[test]
fn low_ports_need_their_capability() {
    let mut config = config();
    config.admin.address = Some("127.0.0.1:99".parse().expect("an address"));
    let mut without = facts();
    assert_eq!(judge(&config, &without, 4), []);
    without.capabilities.remove("CAP_NET_BIND_SERVICE");
    let (severity, text) = only(judge(&config, &without, 4));
    assert_eq!(severity, Severity::Fatal);
    assert!(text.contains("[99]"), "{text}");
    without.unprivileged_port_start = 0;
    assert_eq!(judge(&config, &without, 4), []);
}

#[test]
fn connections_fit_the_descriptors() {
    let mut config = config();
    // 4 workers × (2 addresses + 4) + 64 = 88 fixed.
    assert_eq!(config.capacity(4).connections_max(20_000), (20_000 - 88) / 5 * 4 + 1);
    assert_eq!(config.capacity(4).connections_max(10), 0);
    let (severity, text) = only(judge(&config, &Facts { descriptors: 80, ..facts() }, 4));
    assert_eq!(severity, Severity::Fatal);
    assert!(text.contains("for the first connection") && text.contains("LimitNOFILE="), "{text}");
    config.process.max_connections = 100;
    assert_eq!(config.capacity(4).connections_max(20_000), 100);
    config.process.max_connections = 16_000;
    let mut facts = facts();
    let (severity, text) = only(judge(&config, &facts, 4));
    assert_eq!(severity, Severity::Fatal);
    assert!(text.contains("needs 20088 descriptors, the hard limit is 20000: at most 15929"), "{text}");
    facts.capabilities.insert("CAP_SYS_RESOURCE");
    assert_eq!(judge(&config, &facts, 4), [], "the supervisor raises the limit");
}

#[test]
fn locked_memory_is_what_the_kernel_charged() {
    // Measured: with 8 MiB the 21st ring of 4096 entries was refused. That was without a ring of provided
    // buffers.
    let ring = Ring { entries: 4096, buffers: 0, buffer_size: 4096 };
    let each = locked_bytes_per_worker(ring);
    assert!(each * 20 <= 8 << 20 && each * 21 > 8 << 20, "{each}");
    let found = judge(&config(), &facts(), 18);
    assert_eq!(found.iter().map(|finding| finding.what.as_str()).collect::<Vec<_>>(), ["locked memory"]);
}

#[test]
fn the_plan_shows_interrupts_beside_workers() {
    let mut config = config();
    config.guard.interfaces.push("eth0".to_owned());
    let interrupt =
        |number, cpus: &str| Interrupt { number, name: format!("ice-rx-{number}"), cpus: cpus.to_owned() };
    let mut facts = facts();
    facts.interfaces.insert("eth0".to_owned(), card(Ok(true)));
    facts.cards.insert(
        "eth0".to_owned(),
        Interface {
            queues: (2, 2),
            node: Some(1),
            interrupts: vec![interrupt(40, "3"), interrupt(41, "0-3")],
            ..card(Ok(true))
        },
    );
    let place = |cpu| Placement { cpu, core: cpu, node: 0, memory_node: Some(0) };
    let topology =
        Topology { workers: vec![place(2), place(3)], control_cpus: vec![0, 1], notes: Vec::new() };
    let host = Host {
        cpus: (0..4).map(|cpu| topology::Cpu { cpu, core: cpu, node: 0, allowed: true }).collect(),
        this_system: true,
        quota: None,
    };
    let text = render(&config, &facts, &host, &topology);
    for line in [
        "       1    3     3     0  node 0",
        "  control and log threads: CPUs 0-1",
        "  http  127.0.0.1:8080     4096",
        "  eth0: XDP in the driver",
        "  eth0: driver ice, NUMA node 1, 2 receive and 2 transmit queues, 2 workers",
        "    interrupt 40 ice-rx-40: CPU 3 (worker 1)",
        "    interrupt 41 ice-rx-41: CPU 0-3",
        "nothing is missing",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
    }
}

#[test]
fn this_host_can_be_planned() {
    let mut config = config();
    config.guard.interfaces = vec!["lo".to_owned(), "no-such-interface".to_owned()];
    let root = Path::new("/");
    let Plan { text, json, would_start } = plan(&config, root);
    assert!(!would_start && json["would_start"] == false, "{json}");
    assert!(json["findings"][0]["key"] == "guard.interfaces", "{json}");
    assert!(text.contains("  lo: XDP in generic mode\n"), "{text}");
    assert!(text.contains("  no-such-interface: no such interface\n"), "{text}");
    let found = findings(&config);
    assert!(found.iter().any(|finding| finding.what.contains("no-such-interface")), "{found:?}");
    config.workers.cpus = Some(vec![100_000]);
    assert!(plan(&config, root).text.contains("CPU 100000 does not exist"));
    assert!(findings(&config)[0].to_string().contains("CPU 100000 does not exist"));
    println!("{text}");
}
