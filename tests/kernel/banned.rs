//! Bans in the guard's program: which packets they drop, when they end, and that neither a full table nor a
//! flood of sources changes a ban that holds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proxy::control::bans::BanSource;
use proxy::control::now;
use proxy::kernel::guard::Guard;
use proxy::kernel::{KernelError, Programs};
use proxy::time::Time;
use proxy_common::guard::{BANS_MAX, Verdict};
use tests::bpf::{self, DROP, PASS, Spoofer, guard, test_run};
use tests::skip::without_root;

use crate::frames::{ACK, Frame, RST, SYN};

const SERVER: &str = "192.0.2.1:443";
const SERVER6: &str = "[2001:db8::1]:443";
const HOUR: Duration = Duration::from_secs(3600);

fn programs(guard: &Guard) -> Programs {
    let mut programs = bpf::programs();
    apply(&mut programs, guard);
    programs
}

fn apply(programs: &mut Programs, guard: &Guard) {
    let listeners: [SocketAddr; 2] =
        [SERVER.parse().expect("an address"), SERVER6.parse().expect("an address")];
    programs.apply_guard(guard, &listeners).expect("the guard is configured");
}

fn source(text: &str) -> BanSource {
    text.parse().expect("a source")
}

fn ban(programs: &mut Programs, address: &str) {
    let now = now();
    programs.guard.ban(source(address), now + HOUR, now).expect("banned");
}

/// Gives a ban an end in a moment, and returns it.
fn end_soon(programs: &mut Programs, source: BanSource) -> Time {
    let now = now();
    let end = now + Duration::from_millis(20);
    programs.guard.ban(source, end, now).expect("it is there");
    end
}

fn wait_until(end: Time) {
    while now() <= end {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn judge(programs: &mut Programs, frame: &Frame) -> (u32, Verdict) {
    let before = programs.guard.verdicts().expect("counters");
    let ran = test_run(programs.guard_fd().expect("the guard loads"), &frame.bytes(), 1).expect("a run");
    let after = programs.guard.verdicts().expect("counters");
    let mut counted = Verdict::ALL.iter().filter(|verdict| after[verdict.label()] != before[verdict.label()]);
    (ran.action, *counted.next().expect("a verdict"))
}

/// A packet of an established connection.
fn from(address: IpAddr) -> Frame {
    Frame::syn(&address.to_string(), if address.is_ipv4() { SERVER } else { SERVER6 }).flags(ACK)
}

#[test]
fn every_packet_of_a_banned_source_is_dropped_and_no_other() {
    if without_root() {
        return;
    }
    let mut programs = programs(&guard());
    ban(&mut programs, "198.51.100.7");
    ban(&mut programs, "2001:db8:7:7::9");
    for flags in [SYN, ACK, RST, SYN | ACK] {
        for (client, server) in
            [("198.51.100.7", SERVER), ("2001:db8:7:7::1", SERVER6), ("2001:db8:7:7:ffff::2", SERVER6)]
        {
            let frame = Frame::syn(client, server).flags(flags);
            assert_eq!(judge(&mut programs, &frame), (DROP, Verdict::Banned), "{client} {flags}");
        }
    }
    for (client, server) in [("198.51.100.8", SERVER), ("198.51.101.7", SERVER), ("2001:db8:7:8::9", SERVER6)]
    {
        assert_eq!(judge(&mut programs, &Frame::syn(client, server)), (PASS, Verdict::Syn), "{client}");
    }
    // The guard judges only packets to Sluice's listeners.
    assert_eq!(judge(&mut programs, &Frame::syn("198.51.100.7", "192.0.2.1:80")), (PASS, Verdict::NotOurs));
    let left = programs.guard.unban(source("198.51.100.7"), now()).expect("lifted");
    assert!(left.is_some_and(|end| end > now()));
    assert_eq!(judge(&mut programs, &Frame::syn("198.51.100.7", SERVER)), (PASS, Verdict::Syn));
    assert_eq!(judge(&mut programs, &Frame::syn("2001:db8:7:7::1", SERVER6)), (DROP, Verdict::Banned));
    assert_eq!(
        programs.guard.unban(source("198.51.100.7"), now()).expect("no error"),
        None,
        "not banned any more"
    );
}

#[test]
fn allow_goes_before_a_ban_deny_is_told_apart_and_a_dry_run_counts() {
    if without_root() {
        return;
    }
    let nets = |list: &[&str]| list.iter().map(|net| net.parse().expect("a prefix")).collect();
    let lists = Guard { allow: nets(&["198.51.100.7/32"]), deny: nets(&["198.51.100.0/24"]), ..guard() };
    let mut programs = programs(&lists);
    for address in ["198.51.100.7", "198.51.100.8", "203.0.113.1"] {
        ban(&mut programs, address);
    }
    let expected = [("198.51.100.7", PASS, Verdict::Allowed), ("198.51.100.8", DROP, Verdict::Denied)];
    for (address, action, verdict) in expected.into_iter().chain([("203.0.113.1", DROP, Verdict::Banned)]) {
        assert_eq!(judge(&mut programs, &Frame::syn(address, SERVER)), (action, verdict), "{address}");
    }
    // A new configuration keeps the bans, with any lists.
    apply(&mut programs, &Guard { dry_run: true, ..guard() });
    for address in ["198.51.100.7", "198.51.100.8", "203.0.113.1"] {
        assert_eq!(judge(&mut programs, &Frame::syn(address, SERVER)), (PASS, Verdict::Banned), "{address}");
    }
    apply(&mut programs, &guard());
    assert_eq!(judge(&mut programs, &Frame::syn("203.0.113.1", SERVER)), (DROP, Verdict::Banned));
    assert_eq!(programs.guard_status(now()).expect("status").bans, 3);
}

#[test]
fn a_ban_ends_by_itself_and_is_swept() {
    if without_root() {
        return;
    }
    let mut programs = programs(&guard());
    let frame = Frame::syn("198.51.100.7", SERVER);
    for address in ["198.51.100.7", "198.51.100.9"] {
        ban(&mut programs, address);
    }
    assert_eq!(judge(&mut programs, &frame), (DROP, Verdict::Banned));
    // The first ban gets its near end only now, so that a busy machine cannot miss it.
    let end = end_soon(&mut programs, source("198.51.100.7"));
    assert_eq!(programs.guard.next_ban_sweep(), Some(end));
    wait_until(end);
    // The program itself looks at the time, so no sweep is needed.
    assert_eq!(judge(&mut programs, &frame), (PASS, Verdict::Syn));
    assert_eq!(programs.guard.bans(now()).count(), 1, "what is over is not listed");
    assert_eq!(programs.guard.sweep_bans(now()).expect("swept"), 1);
    assert_eq!(programs.guard.sweep_bans(now()).expect("swept"), 0);
    assert_eq!(judge(&mut programs, &Frame::syn("198.51.100.9", SERVER)), (DROP, Verdict::Banned));
    // A second ban of the same source replaces the first, even if it ends earlier.
    let again = now();
    let before =
        programs.guard.ban(source("198.51.100.9"), again + Duration::from_millis(1), again).expect("banned");
    assert!(before.is_some_and(|end| end > again + HOUR / 2));
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(programs.guard.sweep_bans(now()).expect("swept"), 1);
    assert_eq!(programs.guard.next_ban_sweep(), None);
    assert_eq!(judge(&mut programs, &Frame::syn("198.51.100.9", SERVER)), (PASS, Verdict::Syn));
}

#[test]
fn a_full_table_refuses_one_more_and_loses_nothing() {
    if without_root() {
        return;
    }
    let mut programs = programs(&guard());
    let address = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
    let start = now();
    for number in 0..BANS_MAX {
        let source = BanSource::new(address(number)).expect("a source");
        programs.guard.ban(source, start + HOUR, start).expect("room");
    }
    let one_more = Frame::syn("198.51.100.7", SERVER);
    let error = programs.guard.ban(source("198.51.100.7"), start + HOUR, start).expect_err("full");
    assert!(matches!(error, KernelError::BansFull), "{error}");
    assert_eq!(judge(&mut programs, &one_more), (PASS, Verdict::Syn));
    for number in (0..BANS_MAX).step_by(997).chain([0, 76, 77, 78, BANS_MAX - 1]) {
        assert_eq!(judge(&mut programs, &from(address(number))), (DROP, Verdict::Banned), "{number}");
    }
    // A ban that holds may be changed, and an expired ban leaves its place free.
    programs
        .guard
        .ban(BanSource::new(address(5)).expect("a source"), start + 2 * HOUR, start)
        .expect("it is there");
    let end = end_soon(&mut programs, BanSource::new(address(77)).expect("a source"));
    wait_until(end);
    let later = now();
    programs.guard.ban(source("198.51.100.7"), later + HOUR, later).expect("room again");
    assert_eq!(judge(&mut programs, &one_more), (DROP, Verdict::Banned));
    assert_eq!(judge(&mut programs, &from(address(77))), (PASS, Verdict::Established));
    assert_eq!(programs.guard.bans(later).count(), BANS_MAX as usize);
}

/// A flood inside the kernel: each run of the packet has another source, over all of IPv4.
#[test]
fn a_million_sources_neither_evict_a_ban_nor_raise_the_cost_of_a_syn() {
    if without_root() {
        return;
    }
    let limited = Guard { syn_rate_per_ip: Some(1000), syn_burst_per_ip: 2000, ..guard() };
    let mut programs = programs(&limited);
    let banned: Vec<BanSource> = (0..1_000u32)
        .map(|number| BanSource::of_key(0xffff_ffff_0000_0000 | u64::from(number * 4_294_001)))
        .collect();
    for source in &banned {
        let now = now();
        programs.guard.ban(*source, now + HOUR, now).expect("banned");
    }
    let spoofer = Spoofer::new(programs.guard_fd().expect("the guard loads")).expect("a spoofer");
    let packet = Frame::syn("198.51.100.7", SERVER).bytes();
    let run = |repeat| test_run(std::os::fd::AsFd::as_fd(&spoofer), &packet, repeat).expect("a run").nanos;
    // The minimum of several runs, since other programs use this machine.
    let before = (0..7).map(|_| run(20_000)).min().expect("some");
    run(1_000_000);
    let after = (0..7).map(|_| run(20_000)).min().expect("some");
    assert!(after <= before * 2 + 50, "a SYN cost {before} ns before a million sources, {after} ns after");
    assert_eq!(programs.guard.bans(now()).count(), banned.len());
    for source in &banned {
        let address = source.network().addr();
        assert_eq!(judge(&mut programs, &from(address)), (DROP, Verdict::Banned), "{address}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ban(u128, bool),
    Unban(prop::sample::Index),
    Lists(Vec<u32>),
    Sweep,
}

/// Compares bans, their ends and new lists, in any order, with a plain table. Bans and lists share a bitmap:
/// it may cause a needless look-up, but never another verdict.
#[test]
fn random_bans_and_lists_are_judged_as_a_plain_table_says() {
    if without_root() {
        return;
    }
    let address = |bits: u128, v4: bool| {
        if v4 {
            IpAddr::V4((0x0a00_0000 + bits as u32 % 1024).into())
        } else {
            IpAddr::V6((0x2001_0db8 << 96 | (bits % 256) << 64).into())
        }
    };
    let step = prop_oneof![
        4 => (any::<u128>(), any::<bool>()).prop_map(|(bits, v4)| Step::Ban(bits, v4)),
        2 => any::<prop::sample::Index>().prop_map(Step::Unban),
        1 => prop::collection::vec(0..1024u32, 0..6).prop_map(Step::Lists),
        1 => Just(Step::Sweep),
    ];
    let programs = std::cell::RefCell::new(programs(&guard()));
    let mut runner = TestRunner::new(Config { cases: 40, failure_persistence: None, ..Config::default() });
    let result = runner.run(&prop::collection::vec(step, 1..30), |steps| {
        let mut programs = programs.borrow_mut();
        let (mut table, mut denied) = (BTreeMap::<BanSource, IpAddr>::new(), Vec::new());
        let left: Vec<BanSource> = programs.guard.bans(now()).map(|(source, _)| source).collect();
        for source in left {
            programs.guard.unban(source, now()).expect("lifted");
        }
        apply(&mut programs, &guard());
        for step in steps {
            match step {
                Step::Ban(bits, v4) => {
                    let address = address(bits, v4);
                    let source = BanSource::new(address).expect("a source");
                    let now = now();
                    programs.guard.ban(source, now + HOUR, now).expect("banned");
                    table.insert(source, address);
                }
                Step::Unban(at) if !table.is_empty() => {
                    let source = *at.get(&table.keys().copied().collect::<Vec<_>>());
                    prop_assert!(programs.guard.unban(source, now()).expect("lifted").is_some());
                    table.remove(&source);
                }
                Step::Unban(_) => {}
                Step::Lists(hosts) => {
                    denied = hosts.iter().map(|host| IpAddr::V4((0x0a00_0000 + host).into())).collect();
                    let deny = denied.iter().map(|address| ipnet::IpNet::from(*address)).collect();
                    apply(&mut programs, &Guard { deny, ..guard() });
                }
                Step::Sweep => prop_assert_eq!(programs.guard.sweep_bans(now()).expect("swept"), 0),
            }
            let probes = table.values().chain(&denied).copied().chain([
                address(1, true),
                address(700, true),
                address(3, false),
            ]);
            for probe in probes.collect::<Vec<_>>() {
                let expected = if denied.contains(&probe) {
                    (DROP, Verdict::Denied)
                } else if table.contains_key(&BanSource::new(probe).expect("a source")) {
                    (DROP, Verdict::Banned)
                } else {
                    (PASS, Verdict::Established)
                };
                prop_assert_eq!(judge(&mut programs, &from(probe)), expected, "{}", probe);
            }
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
