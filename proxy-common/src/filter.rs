//! The guard's prefilter: a bitmap that tells for nearly every packet that no list names its source. Only for
//! the few others the tries are walked. Both sides compute the number of a bit here.
//!
//! Every listed prefix belongs to a class, which has a length. A shorter prefix is represented by all
//! prefixes of that length that it covers, a longer one by the prefix that covers it. A source asks one bit
//! in each class in use. If all are clear, it is not listed; if one is set, it is looked up.
//!
//! Before that a source asks a gate: a small bitmap of the first bits of all listed prefixes. Most sources
//! ask nothing else. Bans share the bitmap and the question: the bit of a banned source is set before the ban
//! is entered and cleared after it is removed.

/// Bits in one value of the map; user space writes one value at a time.
pub const CHUNK_BITS: u32 = 1 << 12;
/// Words of a chunk.
pub const CHUNK_WORDS: usize = (CHUNK_BITS / u64::BITS) as usize;
/// One value of the map.
pub type Chunk = [u64; CHUNK_WORDS];

/// Bits of a gate, as a power of two: 128 KiB, which stay in a core's cache even if sources are spread
/// evenly.
pub const GATE_BITS_LOG: u32 = 20;
/// First bit of the IPv4 gate, which has one bit for every /20.
pub const V4_GATE_FIRST: u32 = 0;
/// First bit of the IPv6 gate, which hashes the 32 leading bits of an address.
pub const V6_GATE_FIRST: u32 = V4_GATE_FIRST + (1 << GATE_BITS_LOG);
/// First bit of `V4_24`, which has one bit for every IPv4 /24.
pub const V4_24_FIRST: u32 = V6_GATE_FIRST + (1 << GATE_BITS_LOG);
/// First of the bits that the hashed classes share.
pub const HASHED_FIRST: u32 = V4_24_FIRST + (1 << 24);
/// Bits that the hashed classes share, as a power of two.
pub const HASHED_BITS_LOG: u32 = 22;
/// First bit of `V6_16`, which has one bit for every IPv6 /16.
pub const V6_16_FIRST: u32 = HASHED_FIRST + (1 << HASHED_BITS_LOG);
/// Bits of the whole bitmap.
pub const BITS: u32 = V6_16_FIRST + (1 << 16);
/// Values of the map; together they take 2.8 MiB.
pub const CHUNKS: u32 = BITS / CHUNK_BITS;

const _: () = assert!(BITS.is_multiple_of(CHUNK_BITS) && V6_16_FIRST.is_multiple_of(CHUNK_BITS));

/// `GuardConfig::classes`: IPv4 prefixes of at most 24 bits.
pub const V4_24: u32 = 1;
/// `GuardConfig::classes`: longer IPv4 prefixes, hashed.
pub const V4_32: u32 = 1 << 1;
/// `GuardConfig::classes`: IPv6 prefixes of at most 16 bits.
pub const V6_16: u32 = 1 << 2;
/// `GuardConfig::classes`: IPv6 prefixes by their 32 leading bits, hashed.
pub const V6_32: u32 = 1 << 3;
/// `GuardConfig::classes`: IPv6 prefixes by their 48 leading bits, hashed.
pub const V6_48: u32 = 1 << 4;
/// `GuardConfig::classes`: IPv6 prefixes by their 64 leading bits, hashed.
pub const V6_64: u32 = 1 << 5;

/// The part of a source address that the classes tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An IPv4 address, also if it came as IPv4-mapped IPv6.
    V4(u32),
    /// The 64 leading bits of any other IPv6 address.
    V6(u64),
}

impl Source {
    /// The key of a source's bans and limits: an IPv4 address, or an IPv6 /64, since one customer has at
    /// least a /64.
    #[inline(always)]
    #[must_use]
    pub const fn key(self) -> u64 {
        match self {
            // An IPv6 /64 that begins with 32 ones is multicast and sends nothing, so no key belongs to both
            // families.
            Self::V4(address) => address as u64 | 0xffff_ffff << 32,
            Self::V6(leading) => leading,
        }
    }

    /// The source with this key.
    #[must_use]
    pub const fn of_key(key: u64) -> Self {
        if key >> 32 == 0xffff_ffff { Self::V4(key as u32) } else { Self::V6(key) }
    }

    /// The source with this address, given as its two halves. IPv4 is given as IPv4-mapped.
    #[inline(always)]
    #[must_use]
    pub const fn new(leading: u64, trailing: u64) -> Self {
        if leading == 0 && trailing >> 32 == 0xffff { Self::V4(trailing as u32) } else { Self::V6(leading) }
    }
}

/// The gate's bit for an IPv4 source.
#[inline(always)]
#[must_use]
pub const fn v4_gate_bit(address: u32) -> u32 {
    V4_GATE_FIRST + (address >> (32 - GATE_BITS_LOG))
}

/// The gate's bit for an IPv6 source, for all classes but `V6_16`.
#[inline(always)]
#[must_use]
pub const fn v6_gate_bit(leading: u64, multiplier: u64) -> u32 {
    V6_GATE_FIRST + hashed((leading >> 32) ^ 0x52e9_0d37_c41f_a86b, multiplier, GATE_BITS_LOG)
}

/// The bit of a source, or of a prefix of exactly 24 bits, in `V4_24`.
#[inline(always)]
#[must_use]
pub const fn v4_24_bit(address: u32) -> u32 {
    V4_24_FIRST + (address >> 8)
}

/// The bit of a source in `V4_32`.
#[inline(always)]
#[must_use]
pub const fn v4_32_bit(address: u32, multiplier: u64) -> u32 {
    HASHED_FIRST + hashed(address as u64 ^ 0x9b1d_5a1e_4c6f_83d7, multiplier, HASHED_BITS_LOG)
}

/// The bit of a source in `V6_16`.
#[inline(always)]
#[must_use]
pub const fn v6_16_bit(leading: u64) -> u32 {
    V6_16_FIRST + (leading >> 48) as u32
}

/// The bit of a source in `V6_32`.
#[inline(always)]
#[must_use]
pub const fn v6_32_bit(leading: u64, multiplier: u64) -> u32 {
    HASHED_FIRST + hashed((leading >> 32) ^ 0x3fd2_78c9_a5e0_16b4, multiplier, HASHED_BITS_LOG)
}

/// The bit of a source in `V6_48`.
#[inline(always)]
#[must_use]
pub const fn v6_48_bit(leading: u64, multiplier: u64) -> u32 {
    HASHED_FIRST + hashed((leading >> 16) ^ 0xc8a6_0f73_1e9b_d452, multiplier, HASHED_BITS_LOG)
}

/// The bit of a source in `V6_64`.
#[inline(always)]
#[must_use]
pub const fn v6_64_bit(leading: u64, multiplier: u64) -> u32 {
    HASHED_FIRST + hashed(leading ^ 0x6450_e19c_f82d_7b3a, multiplier, HASHED_BITS_LOG)
}

/// Multiply and shift. For an odd random multiplier two keys meet with a probability of at most two in the
/// number of bits (Dietzfelbinger and others 1997). An attacker cannot tell which keys meet. The classes'
/// constants keep a short prefix from meeting the longer ones that begin like it.
#[inline(always)]
const fn hashed(key: u64, multiplier: u64, bits_log: u32) -> u32 {
    (key.wrapping_mul(multiplier | 1) >> (u64::BITS - bits_log)) as u32
}

/// Whether a list or a ban may name the source; `is_set` reads one bit.
#[inline(always)]
pub fn may_list(source: Source, classes: u32, multiplier: u64, is_set: impl Fn(u32) -> bool) -> bool {
    match source {
        Source::V4(address) => {
            classes & (V4_24 | V4_32) != 0
                && is_set(v4_gate_bit(address))
                && (classes & V4_24 != 0 && is_set(v4_24_bit(address))
                    || classes & V4_32 != 0 && is_set(v4_32_bit(address, multiplier)))
        }
        Source::V6(leading) => {
            classes & V6_16 != 0 && is_set(v6_16_bit(leading))
                || classes & (V6_32 | V6_48 | V6_64) != 0
                    && is_set(v6_gate_bit(leading, multiplier))
                    && (classes & V6_32 != 0 && is_set(v6_32_bit(leading, multiplier))
                        || classes & V6_48 != 0 && is_set(v6_48_bit(leading, multiplier))
                        || classes & V6_64 != 0 && is_set(v6_64_bit(leading, multiplier)))
        }
    }
}

/// The place of a bit: the chunk, its word, and how far to shift that word.
#[inline(always)]
#[must_use]
pub const fn bit_place(bit: u32) -> (u32, usize, u32) {
    (bit / CHUNK_BITS, (bit % CHUNK_BITS / u64::BITS) as usize, bit % u64::BITS)
}
