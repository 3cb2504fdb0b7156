//! The guard's lists against a plain longest-prefix match, over random lists that reloads replace. The bitmap
//! before the tries may cause a needless look-up, but never another verdict.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proxy::kernel::Programs;
use proxy::kernel::guard::Guard;
use proxy_common::guard::Verdict;
use tests::bpf::{self, DROP, PASS, guard, test_run};
use tests::skip::without_root;

use crate::frames::{ACK, Frame};

const SERVER: &str = "192.0.2.1:443";
const SERVER6: &str = "[2001:db8::1]:443";

fn listeners() -> [SocketAddr; 2] {
    [SERVER.parse().expect("an address"), SERVER6.parse().expect("an address")]
}

fn frame(source: IpAddr) -> Vec<u8> {
    let server = if source.is_ipv4() { SERVER } else { SERVER6 };
    Frame::syn(&source.to_string(), server).flags(ACK).bytes()
}

/// Prefixes of every length. Many lie inside or next to each other.
fn net() -> impl Strategy<Value = IpNet> {
    let length4 = prop_oneof![0..=8u8, 9..=24u8, 25..=32u8, Just(24), Just(32)];
    let v4 = (prop_oneof![any::<u32>(), 0x0a00_0000..0x0a00_0800u32], length4)
        .prop_map(|(bits, length)| IpNet::new(IpAddr::V4(bits.into()), length));
    let high = prop_oneof![any::<u64>(), 0x2001_0db8_0000_0000..0x2001_0db8_0004_0000u64, Just(0)];
    let length6 = prop_oneof![0..=8u8, 9..=32u8, 33..=64u8, 65..=128u8, Just(48), Just(64)];
    let v6 = (high, any::<u64>(), length6).prop_map(|(high, low, length)| {
        let bits = u128::from(high) << 64 | u128::from(low);
        IpNet::new(IpAddr::V6(bits.into()), length)
    });
    prop_oneof![v4, v6].prop_map(|net| net.expect("a prefix").trunc())
}

/// A host of a prefix, or an address that differs from one in a single bit.
fn probe(net: IpNet, random: u128, flipped: u32) -> IpAddr {
    let shift = |width: u32| u32::from(net.prefix_len()) + 128 - width;
    match net.network() {
        IpAddr::V4(network) => {
            let host = random.checked_shr(shift(32)).unwrap_or(0) as u32;
            IpAddr::V4(((network.to_bits() | host) ^ 1u32.checked_shl(flipped).unwrap_or(0)).into())
        }
        IpAddr::V6(network) => {
            let host = random.checked_shr(shift(128)).unwrap_or(0);
            IpAddr::V6(((network.to_bits() | host) ^ 1u128.checked_shl(flipped).unwrap_or(0)).into())
        }
    }
}

/// Whether a list contains a source. The guard treats IPv4 and IPv4-mapped addresses alike, and an IPv6
/// prefix shorter than 96 bits does not apply to them.
fn lists(list: &[IpNet], source: IpAddr) -> bool {
    let source = source.to_canonical();
    list.iter().any(|net| match (net, source) {
        (IpNet::V4(net), IpAddr::V4(source)) => net.contains(&source),
        (IpNet::V6(net), IpAddr::V4(source)) => {
            net.prefix_len() >= 96 && net.contains(&source.to_ipv6_mapped())
        }
        (IpNet::V6(net), IpAddr::V6(source)) => net.contains(&source),
        (IpNet::V4(_), IpAddr::V6(_)) => false,
    })
}

fn expected(guard: &Guard, source: IpAddr) -> Verdict {
    if lists(&guard.allow, source) {
        Verdict::Allowed
    } else if lists(&guard.deny, source) {
        Verdict::Denied
    } else {
        Verdict::Established
    }
}

fn judge(programs: &mut Programs, source: IpAddr) -> (u32, Vec<Verdict>) {
    let before = programs.guard.verdicts().expect("counters");
    let ran = test_run(programs.guard_fd().expect("the guard loads"), &frame(source), 1).expect("a run");
    let after = programs.guard.verdicts().expect("counters");
    let counted = Verdict::ALL.iter().filter(|verdict| after[verdict.label()] != before[verdict.label()]);
    (ran.action, counted.copied().collect())
}

type Probes = Vec<(prop::sample::Index, u128, u32)>;

/// Two lists that replace the earlier ones, and the sources to test with each.
fn reload() -> impl Strategy<Value = (Vec<IpNet>, Vec<IpNet>, Probes, Vec<u128>)> {
    let probes = prop::collection::vec((any::<prop::sample::Index>(), any::<u128>(), 0..200u32), 40);
    let list = || prop::collection::vec(net(), 0..25);
    (list(), list(), probes, prop::collection::vec(any::<u128>(), 8))
}

#[test]
fn random_lists_are_judged_as_the_longest_prefix_says_also_after_reloads() {
    if without_root() {
        return;
    }
    let programs = std::cell::RefCell::new(bpf::programs());
    let mut runner = TestRunner::new(Config {
        cases: 150,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..Config::default()
    });
    let result = runner.run(&reload(), |(allow, deny, probes, others)| {
        let mut programs = programs.borrow_mut();
        let lists = Guard { allow: allow.clone(), deny: deny.clone(), ..guard() };
        programs.apply_guard(&lists, &listeners()).expect("the guard is configured");
        let listed: Vec<IpNet> = allow.iter().chain(&deny).copied().collect();
        let near = probes
            .iter()
            .filter(|_| !listed.is_empty())
            .map(|(at, random, flipped)| probe(*at.get(&listed), *random, *flipped));
        let others =
            others.iter().flat_map(|bits| [IpAddr::V6((*bits).into()), IpAddr::V4((*bits as u32).into())]);
        for source in near.chain(others) {
            let verdict = expected(&lists, source);
            let action = if verdict.drops() { DROP } else { PASS };
            prop_assert_eq!(
                judge(&mut programs, source),
                (action, vec![verdict]),
                "{} with {:?}",
                source,
                lists
            );
        }
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Short prefixes set every bit that they cover, and a reload clears all of them.
#[test]
fn the_shortest_prefixes_come_and_go() {
    if without_root() {
        return;
    }
    let mut programs = bpf::programs();
    let sources = [
        "0.0.0.1",
        "9.255.255.255",
        "10.0.0.0",
        "128.0.0.1",
        "255.255.255.254",
        "::1",
        "2001:db8::7",
        "fe80::1",
        "ffff::1",
    ];
    let sources = sources.map(|text| text.parse::<IpAddr>().expect("an address"));
    for length in (0..=8u8).chain([0, 8, 1]) {
        for network in ["0.0.0.0", "8.0.0.0", "128.0.0.0", "::", "2000::", "ff00::"] {
            let net = IpNet::new(network.parse().expect("an address"), length).expect("a prefix").trunc();
            let lists = Guard { deny: vec![net], ..guard() };
            programs.apply_guard(&lists, &listeners()).expect("the guard is configured");
            for source in sources {
                assert_eq!(
                    judge(&mut programs, source).1,
                    [expected(&lists, source)],
                    "{source} with {net} denied"
                );
            }
        }
    }
    programs.apply_guard(&guard(), &listeners()).expect("the guard is configured");
    for source in sources {
        assert_eq!(judge(&mut programs, source).1, [Verdict::Established], "{source} with nothing denied");
    }
}

/// If the old and the new configuration both drop a source, it is dropped at every moment of the reload. The
/// reloads change the lengths of the lists, and so the classes of the bitmap, and the main address.
#[test]
fn a_reload_never_lets_pass_what_both_configurations_drop() {
    if without_root() {
        return;
    }
    let mut programs = bpf::programs();
    let denied: Vec<IpNet> = ["198.51.100.7/32", "203.0.113.0/24", "2001:db8:7::/64"]
        .map(|net| net.parse().expect("a prefix"))
        .to_vec();
    let list = |others: &[&str], hosts: std::ops::Range<u32>| {
        let others = others.iter().map(|net| net.parse::<IpNet>().expect("a prefix"));
        let hosts = hosts.map(|host| IpNet::from(IpAddr::V4((0xc633_6400 + host * 8).into())));
        Guard { deny: denied.iter().copied().chain(others).chain(hosts).collect(), ..guard() }
    };
    let configurations = [
        (list(&[], 1..400), vec![SERVER, SERVER6]),
        (list(&["10.0.0.0/8", "2001:db8::/40", "::/3"], 200..800), vec![SERVER, "192.0.2.2:443", SERVER6]),
        (
            list(&["198.51.0.0/16", "2001:db8:7::/48"], 0..0),
            vec!["192.0.2.9:80", "192.0.2.9:81", SERVER, "[::]:443"],
        ),
        (list(&["10.1.2.3/32"], 0..1), vec!["0.0.0.0:443", "[2001:db8::9]:80", "[2001:db8::9]:81", SERVER6]),
    ];
    let apply = |programs: &mut Programs, (guard, addresses): &(Guard, Vec<&str>)| {
        let addresses: Vec<SocketAddr> =
            addresses.iter().map(|address| address.parse().expect("an address")).collect();
        programs.apply_guard(guard, &addresses).expect("the guard is configured");
    };
    apply(&mut programs, &configurations[0]);
    let program: OwnedFd =
        programs.guard_fd().expect("the guard loads").try_clone_to_owned().expect("a descriptor");
    let frames = ["198.51.100.7", "203.0.113.200", "2001:db8:7::1"]
        .map(|source| frame(source.parse().expect("an address")));
    let (done, ran) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (number, frame) in frames.iter().enumerate() {
                    let action =
                        test_run(std::os::fd::AsFd::as_fd(&program), frame, 1).expect("a run").action;
                    // The panic alone would not stop the other thread, so `done` is set first.
                    if action != DROP {
                        done.store(true, Ordering::Relaxed);
                        panic!("source {number} passed after {} packets", ran.load(Ordering::Relaxed));
                    }
                    ran.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        for round in 0..200usize {
            if done.load(Ordering::Relaxed) {
                break;
            }
            // In turn, every configuration follows every other one.
            apply(&mut programs, &configurations[(round + round / 4) % 4]);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(ran.load(Ordering::Relaxed) > 1_000, "{ran:?} packets while the lists changed");
}
