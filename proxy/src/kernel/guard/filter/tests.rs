//! Tests of `kernel::guard::filter`.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::kernel::address::mapped;
use crate::kernel::guard::lists::prefixes;

const MULTIPLIER: u64 = 0x5851_f42d_4c95_7f2d;

fn of(list: &[IpNet]) -> Filter {
    let listed = prefixes(list).into_iter().filter(|(_, value)| *value != 0);
    Filter::new(MULTIPLIER, listed.map(|(key, _)| key))
}

impl Filter {
    /// The question that the guard's program asks.
    fn may_list(&self, address: IpAddr) -> bool {
        filter::may_list(source(mapped(address)), self.classes, MULTIPLIER, |bit| {
            let (chunk, word, shift) = filter::bit_place(bit);
            self.chunks.get(&chunk).is_some_and(|bits| bits[word] >> shift & 1 != 0)
        })
    }

    fn bits(&self) -> u32 {
        self.chunks.values().flat_map(|chunk| chunk.iter()).map(|word| word.count_ones()).sum()
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Prefixes of every length, which often share their leading bits.
pub(crate) fn any_net() -> impl Strategy<Value = IpNet> {
    let v4 = (prop_oneof![any::<u32>(), (0x0a00_0000u32..0x0a00_0400)], 0..=32u8)
        .prop_map(|(bits, length)| IpNet::new(IpAddr::V4(bits.into()), length).expect("a prefix").trunc());
    let high = prop_oneof![any::<u64>(), 0x2001_0db8_0000_0000u64..0x2001_0db8_0004_0000, Just(0)];
    let v6 = (high, any::<u64>(), 0..=128u8).prop_map(|(high, low, length)| {
        let bits = u128::from(high) << 64 | u128::from(low);
        IpNet::new(IpAddr::V6(bits.into()), length).expect("a prefix").trunc()
    });
    prop_oneof![v4, v6]
}

/// An address in or next to a prefix.
fn near(net: IpNet, random: u128, flipped: u32) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let host = (random as u32).checked_shr(u32::from(net.prefix_len())).unwrap_or(0);
            let edge = 1u32.checked_shl(flipped).unwrap_or(0);
            IpAddr::V4(((u32::from(net.network()) | host) ^ edge).into())
        }
        IpNet::V6(net) => {
            let host = random.checked_shr(u32::from(net.prefix_len())).unwrap_or(0);
            let edge = 1u128.checked_shl(flipped).unwrap_or(0);
            IpAddr::V6(((u128::from(net.network()) | host) ^ edge).into())
        }
    }
}

/// The answer of the tries: the longest prefix that covers the address decides. An exemption has the
/// value 0.
fn longest_prefix(list: &[IpNet], address: IpAddr) -> bool {
    let address = u128::from_be_bytes(mapped(address));
    let covering = prefixes(list).into_iter().filter(|((length, network), _)| {
        let differing = address ^ u128::from_be_bytes(*network);
        differing.leading_zeros() >= *length
    });
    covering.max_by_key(|((length, _), _)| *length).is_some_and(|(_, value)| value != 0)
}

proptest! {
    #[test]
    fn whatever_a_trie_lists_has_its_bit(
        list in prop::collection::vec(any_net(), 1..40),
        probes in prop::collection::vec((any::<prop::sample::Index>(), any::<u128>(), 0..160u32), 40),
        others in prop::collection::vec(any::<u128>(), 10),
    ) {
        let filter = of(&list);
        let probes = probes.iter().map(|(at, random, flipped)| near(*at.get(&list), *random, *flipped));
        let others = others
            .iter()
            .flat_map(|bits| [IpAddr::V6((*bits).into()), IpAddr::V4((*bits as u32).into())]);
        for address in probes.chain(others) {
            if longest_prefix(&list, address) {
                prop_assert!(filter.may_list(address), "{address} is listed by {list:?}");
            }
        }
    }

    /// Up to 24 bits of IPv4 and 16 of IPv6 the bitmap is exact.
    #[test]
    fn short_prefixes_set_exactly_what_they_cover(
        list in prop::collection::vec(
            prop_oneof![
                (any::<u32>(), 0..=24u8)
                    .prop_map(|(bits, length)| IpNet::new(IpAddr::V4(bits.into()), length)),
                (any::<u128>(), 0..=16u8)
                    .prop_map(|(bits, length)| IpNet::new(IpAddr::V6(bits.into()), length)),
            ]
            .prop_map(|net| net.expect("a prefix").trunc()),
            1..10,
        ),
        probes in prop::collection::vec((any::<prop::sample::Index>(), any::<u128>(), 0..160u32), 40),
    ) {
        let filter = of(&list);
        for (at, random, flipped) in &probes {
            let address = near(*at.get(&list), *random, *flipped);
            let IpAddr::V6(v6) = address else {
                prop_assert_eq!(filter.may_list(address), longest_prefix(&list, address));
                continue;
            };
            if v6.to_ipv4_mapped().is_none() {
                prop_assert_eq!(filter.may_list(address), longest_prefix(&list, address));
            }
        }
    }

    #[test]
    fn a_union_has_the_bits_of_both(
        one in prop::collection::vec(any_net(), 0..20),
        other in prop::collection::vec(any_net(), 0..20),
    ) {
        let both: Vec<IpNet> = one.iter().chain(&other).copied().collect();
        let union = of(&one).union(&of(&other));
        for net in &both {
            let listed = longest_prefix(&both, net.network());
            prop_assert!(!listed || union.may_list(net.network()), "{net}");
        }
        prop_assert_eq!(union.classes, of(&one).classes | of(&other).classes);
        prop_assert_eq!(union.clone().union(&of(&one)), union);
    }
}

#[test]
fn every_family_has_its_own_classes() {
    for (list, classes) in [
        ("0.0.0.0/0", V4_24),
        ("10.1.2.0/24", V4_24),
        ("10.1.2.3/32", V4_32),
        ("10.1.2.0/25", V4_32),
        ("::ffff:10.0.0.0/104", V4_24),
        ("::/0", V6_16),
        ("2001:db8::/29", V6_32),
        ("2001:db8:7::/48", V6_48),
        ("2001:db8:7:7::/64", V6_64),
        ("2001:db8:7:7::7/128", V6_64),
    ] {
        assert_eq!(of(&[net(list)]).classes, classes, "{list}");
    }
    assert_eq!(of(&[]), Filter::default());
}

#[test]
fn everything_listed_is_every_bit_of_its_family() {
    assert_eq!(of(&[net("0.0.0.0/0")]).bits(), (1 << 20) + (1 << 24));
    assert_eq!(of(&[net("::/0")]).bits(), 1 << 16);
    assert!(!of(&[net("::/0")]).may_list(address("198.51.100.7")));
    assert!(!of(&[net("0.0.0.0/0")]).may_list(address("2001:db8::1")));
}

#[test]
fn neighbours_of_a_listed_host_are_not_looked_up() {
    let filter = of(&[
        net("198.51.100.7/32"),
        net("203.0.113.0/26"),
        net("2001:db8:7:7::/64"),
        net("2001:db8:8::/47"),
    ]);
    for (text, listed) in [
        ("198.51.100.7", true),
        ("198.51.100.8", false),
        ("203.0.113.63", true),
        ("203.0.113.64", false),
        ("2001:db8:7:7::1", true),
        ("2001:db8:7:8::1", false),
        ("2001:db8:9:ffff::1", true),
        ("2001:db8:a::1", false),
    ] {
        assert_eq!(filter.may_list(address(text)), listed, "{text}");
    }
}

/// The bitmap neither fills up nor takes long, whatever the number of prefixes of an awkward length.
#[test]
fn prefixes_that_need_too_many_bits_are_represented_by_shorter_ones() {
    let many: Vec<IpNet> = (0..100_000u32)
        .map(|number| IpNet::new(IpAddr::V4((number << 12).into()), 25).expect("a prefix"))
        .collect();
    let filter = of(&many);
    // One gate for each /20, and one bit for each /24.
    assert_eq!((filter.classes, filter.bits()), (V4_24, 200_000));
    let many: Vec<IpNet> = (0..100_000u128)
        .map(|number| IpNet::new(IpAddr::V6((number << 108).into()), 20).expect("a prefix"))
        .chain([net("2001:db8:7:7::/64")])
        .collect();
    let filter = of(&many);
    assert_eq!(filter.classes, V6_16 | V6_64);
    assert!(filter.may_list(address("2001:db8:7:7::1")));
    // In a mixed list the cheap prefixes go first and stay exact.
    let mut mixed: Vec<IpNet> = (0..3_000u32)
        .map(|number| IpNet::new(IpAddr::V4((0x0a00_0000 + (number << 8)).into()), 25).expect("a prefix"))
        .collect();
    mixed.push(net("198.51.100.6/31"));
    let filter = of(&mixed);
    assert!(filter.may_list(address("198.51.100.7")) && !filter.may_list(address("198.51.100.8")));
    assert!(filter.may_list(address("10.0.0.200")), "the other half of a represented /25 is looked up");
}
