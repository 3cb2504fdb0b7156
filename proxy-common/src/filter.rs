//! The guard's prefilter: a bitmap that tells for nearly every packet that no list names its source, so that the tries are walked
//! for the few others only. Both sides compute a bit's number here.
//!
//! Every listed prefix belongs to one class, that is a length at which it is represented: by all the prefixes of that length that
//! it covers, or by the one that covers it. A source asks one bit in each class that is in use. A bit that is set means "look it
//! up", one that is clear means "not listed". Whatever else is kept by source (bans) can share the bitmap and the question: its
//! sources need a bit here, set before they are kept and cleared after.

/// Bits in one value of the map: user space writes that much at a time.
pub const CHUNK_BITS: u32 = 1 << 12;
/// Words of a chunk.
pub const CHUNK_WORDS: usize = (CHUNK_BITS / u64::BITS) as usize;
/// One value of the map.
pub type Chunk = [u64; CHUNK_WORDS];

/// First bit of `V4_24`: one for every IPv4 /24.
pub const V4_24_FIRST: u32 = 0;
/// First of the bits that the hashed classes share.
pub const HASHED_FIRST: u32 = V4_24_FIRST + (1 << 24);
/// Bits that the hashed classes share, as a power of two.
pub const HASHED_BITS_LOG: u32 = 22;
/// First bit of `V6_16`: one for every IPv6 /16.
pub const V6_16_FIRST: u32 = HASHED_FIRST + (1 << HASHED_BITS_LOG);
/// Bits in all.
pub const BITS: u32 = V6_16_FIRST + (1 << 16);
/// Values of the map: 2.5 MiB.
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

/// As much of a source address as the classes tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An IPv4 address, also one that came as IPv4-mapped IPv6.
    V4(u32),
    /// The 64 leading bits of any other IPv6 address.
    V6(u64),
}

impl Source {
    /// Of an address in network order, IPv4 as IPv4-mapped.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, w, x, y, z] = address;
        let leading = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        if leading == 0 && u32::from_be_bytes([i, j, k, l]) == 0xffff {
            Self::V4(u32::from_be_bytes([w, x, y, z]))
        } else {
            Self::V6(leading)
        }
    }
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
    hashed(address as u64 ^ 0x9b1d_5a1e_4c6f_83d7, multiplier)
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
    hashed((leading >> 32) ^ 0x3fd2_78c9_a5e0_16b4, multiplier)
}

/// The bit of a source in `V6_48`.
#[inline(always)]
#[must_use]
pub const fn v6_48_bit(leading: u64, multiplier: u64) -> u32 {
    hashed((leading >> 16) ^ 0xc8a6_0f73_1e9b_d452, multiplier)
}

/// The bit of a source in `V6_64`.
#[inline(always)]
#[must_use]
pub const fn v6_64_bit(leading: u64, multiplier: u64) -> u32 {
    hashed(leading ^ 0x6450_e19c_f82d_7b3a, multiplier)
}

/// Multiply and shift: for an odd random multiplier two keys meet with a probability of at most two in the number of bits
/// (Dietzfelbinger and others 1997), and an attacker cannot tell which. The classes' constants keep a short prefix from meeting
/// the longer ones that begin like it.
#[inline(always)]
const fn hashed(key: u64, multiplier: u64) -> u32 {
    HASHED_FIRST + (key.wrapping_mul(multiplier | 1) >> (u64::BITS - HASHED_BITS_LOG)) as u32
}

/// Whether a list may name the source; `is_set` reads one bit.
#[inline(always)]
pub fn may_list(source: Source, classes: u32, multiplier: u64, is_set: impl Fn(u32) -> bool) -> bool {
    match source {
        Source::V4(address) => {
            classes & V4_24 != 0 && is_set(v4_24_bit(address)) || classes & V4_32 != 0 && is_set(v4_32_bit(address, multiplier))
        }
        Source::V6(leading) => {
            classes & V6_16 != 0 && is_set(v6_16_bit(leading))
                || classes & V6_32 != 0 && is_set(v6_32_bit(leading, multiplier))
                || classes & V6_48 != 0 && is_set(v6_48_bit(leading, multiplier))
                || classes & V6_64 != 0 && is_set(v6_64_bit(leading, multiplier))
        }
    }
}

/// Where a bit is: the chunk, its word, and how far to shift that.
#[inline(always)]
#[must_use]
pub const fn bit_place(bit: u32) -> (u32, usize, u32) {
    (bit / CHUNK_BITS, (bit % CHUNK_BITS / u64::BITS) as usize, bit % u64::BITS)
}
