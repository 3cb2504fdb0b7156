//! Which bits a set of prefixes needs in the guard's prefilter (`proxy_common::filter`).
//!
//! A bitmap is always computed from the whole lists, so removing a prefix needs no counts. Before the tries
//! change, the map gets the union of the old and the new bitmap; afterwards it gets the new one alone. So
//! every prefix in a trie has its bits at any moment.

use std::collections::BTreeMap;

use proxy_common::filter::{
    self, CHUNK_BITS, CHUNK_WORDS, Chunk, GATE_BITS_LOG, Source, V4_24, V4_32, V6_16, V6_32, V6_48, V6_64,
};

/// At most so many bits of the hashed classes are set for prefixes that need more than one bit each. With
/// this many of the 2^22 bits set, each hashed class sends one source in sixteen to a vain look-up. A prefix
/// that does not fit is represented by the next shorter class.
const EXPANDED_MAX: u64 = 1 << 18;
/// Possible costs of a prefix, as powers of two: an IPv6 prefix of 17 bits covers 2^15 prefixes of 32 bits.
const COSTS: usize = 16;

/// A bitmap and the classes in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Flags of `proxy_common::filter`: `V4_24` and so on.
    pub(super) classes: u32,
    /// Chunks by their number. A chunk without any bit set is absent.
    pub(super) chunks: BTreeMap<u32, Box<Chunk>>,
}

/// A prefix as the classes see it.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    /// Its first address.
    source: Source,
    /// Its length in bits: at most 32 for IPv4, 64 for IPv6.
    length: u32,
}

impl Prefix {
    /// From a trie's key.
    fn new(length: u32, address: [u8; 16]) -> Self {
        match source(address) {
            // A shorter prefix that covers the IPv4-mapped addresses is an IPv6 prefix: the tries exempt IPv4
            // from it.
            source @ Source::V4(_) if length >= 96 => Self { source, length: length - 96 },
            source @ Source::V6(_) => Self { source, length: length.min(64) },
            Source::V4(_) => Self { source: Source::V6(0), length: length.min(64) },
        }
    }

    /// The class for prefixes of its length, and the length of that class.
    fn class(self) -> (u32, u32) {
        match (self.source, self.length) {
            (Source::V4(_), ..=24) => (V4_24, 24),
            (Source::V4(_), _) => (V4_32, 32),
            (Source::V6(_), ..=16) => (V6_16, 16),
            (Source::V6(_), ..=32) => (V6_32, 32),
            (Source::V6(_), ..=48) => (V6_48, 48),
            (Source::V6(_), _) => (V6_64, 64),
        }
    }

    /// The number of bits that it needs in a hashed class, as a power of two. `None`: its class is written by
    /// ranges, which cost next to nothing.
    fn cost(self) -> Option<u32> {
        let (class, length) = self.class();
        (class & (V4_24 | V6_16) == 0).then(|| length - self.length)
    }

    /// The prefix that represents it in the next shorter class. That class has 24 bits for IPv4, and 16, 32
    /// or 48 for IPv6.
    fn shortened(self) -> Self {
        let length = match self.class().0 {
            V4_32 => 24,
            V6_32 => 16,
            V6_48 => 32,
            _ => 48,
        };
        let source = match self.source {
            Source::V4(address) => Source::V4(address >> (32 - length) << (32 - length)),
            Source::V6(leading) => Source::V6(leading >> (64 - length) << (64 - length)),
        };
        Self { source, length }
    }
}

/// The source with this address, given in network order.
fn source(address: [u8; 16]) -> Source {
    let bits = u128::from_be_bytes(address);
    Source::new((bits >> 64) as u64, bits as u64)
}

impl Filter {
    /// The bitmap of these prefixes, given as keys of a trie.
    pub(super) fn new(multiplier: u64, keys: impl Iterator<Item = (u32, [u8; 16])>) -> Self {
        let prefixes: Vec<Prefix> = keys.map(|(length, address)| Prefix::new(length, address)).collect();
        let cost_max = affordable(&prefixes);
        let mut filter = Self::default();
        for prefix in prefixes {
            let fits = prefix.cost().is_none_or(|cost| cost <= cost_max);
            filter.add(multiplier, if fits { prefix } else { prefix.shortened() });
        }
        filter
    }

    /// Sets the bits of one prefix: one bit for each prefix of its class that it covers.
    fn add(&mut self, multiplier: u64, prefix: Prefix) {
        let (class, length) = prefix.class();
        self.classes |= class;
        let covered = 1 << (length - prefix.length);
        match prefix.source {
            Source::V4(address) => {
                let gates = 1 << GATE_BITS_LOG.saturating_sub(prefix.length);
                self.set_range(filter::v4_gate_bit(address), gates);
                if class == V4_24 {
                    self.set_range(filter::v4_24_bit(address), covered);
                    return;
                }
                for host in 0..covered {
                    self.set(filter::v4_32_bit(address | host, multiplier));
                }
            }
            Source::V6(leading) if class == V6_16 => self.set_range(filter::v6_16_bit(leading), covered),
            Source::V6(leading) => {
                for number in 0..u64::from(covered) {
                    let leading = leading | (number << (64 - length));
                    self.set(filter::v6_gate_bit(leading, multiplier));
                    self.set(match class {
                        V6_32 => filter::v6_32_bit(leading, multiplier),
                        V6_48 => filter::v6_48_bit(leading, multiplier),
                        _ => filter::v6_64_bit(leading, multiplier),
                    });
                }
            }
        }
    }

    fn chunk_mut(&mut self, number: u32) -> &mut Chunk {
        self.chunks.entry(number).or_insert_with(|| Box::new([0; CHUNK_WORDS]))
    }

    fn set(&mut self, bit: u32) {
        let (chunk, word, shift) = filter::bit_place(bit);
        self.chunk_mut(chunk)[word] |= 1 << shift;
    }

    /// Sets `count` bits from `first` on. `count` is a power of two and divides `first`, so the range is a
    /// part of a word, whole words or whole chunks.
    fn set_range(&mut self, first: u32, count: u32) {
        let (chunk, word, shift) = filter::bit_place(first);
        if count >= CHUNK_BITS {
            for number in chunk..chunk + count / CHUNK_BITS {
                self.chunk_mut(number).fill(u64::MAX);
            }
        } else if count >= u64::BITS {
            let words = (count / u64::BITS) as usize;
            self.chunk_mut(chunk)[word..word + words].fill(u64::MAX);
        } else {
            self.chunk_mut(chunk)[word] |= ((1 << count) - 1) << shift;
        }
    }

    /// The bits of both.
    pub(super) fn union(mut self, other: &Self) -> Self {
        self.classes |= other.classes;
        for (&number, bits) in &other.chunks {
            for (word, bits) in self.chunk_mut(number).iter_mut().zip(bits.iter()) {
                *word |= bits;
            }
        }
        self
    }
}

/// The largest cost, as a power of two, with which all prefixes up to that cost fit into `EXPANDED_MAX`. A
/// prefix of one bit always fits: in the shorter class it would need one as well.
fn affordable(prefixes: &[Prefix]) -> u32 {
    let mut by_cost = [0u64; COSTS];
    for cost in prefixes.iter().filter_map(|prefix| prefix.cost()) {
        by_cost[cost as usize] += 1;
    }
    let mut bits = 0;
    let mut affordable = 0;
    for (cost, count) in (0..).zip(by_cost) {
        bits += count << cost;
        if bits > EXPANDED_MAX {
            break;
        }
        affordable = cost;
    }
    affordable
}

#[cfg(test)]
mod tests {
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
        let v4 = (prop_oneof![any::<u32>(), (0x0a00_0000u32..0x0a00_0400)], 0..=32u8).prop_map(
            |(bits, length)| IpNet::new(IpAddr::V4(bits.into()), length).expect("a prefix").trunc(),
        );
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
}
