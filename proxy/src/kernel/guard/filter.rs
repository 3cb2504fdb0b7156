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
mod tests;
