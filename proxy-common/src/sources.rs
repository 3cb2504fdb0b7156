//! Exact counts of connections by source, in a fixed table. Both sides change it with compare-and-swap alone:
//! there is no insert, no removal and no lock, so no count can be lost.
//!
//! The table has two rows of buckets; a bucket is one cache line. Each row mixes the source with a seed of
//! its own, by a bijection. Some bits of the result choose the bucket, all others are the tag, so two sources
//! never share a tag in a bucket. In an entry, the bits that chose the bucket hold the count instead; an
//! entry with the count 0 is free.
//!
//! A connection is counted in one entry, and remembers which. While it lives, no other source can take that
//! entry. A source may have several entries; its count is their sum.

/// Entries of a bucket, which is one cache line.
pub const BUCKET_ENTRIES: usize = 8;
/// One value of the kernel's map.
pub type Bucket = [u64; BUCKET_ENTRIES];
/// Rows of buckets. A source finds room unless its buckets in both rows are full.
pub const ROWS: u32 = 2;
/// Buckets of a row in the kernel, as a power of two. Both rows take 8 MiB and have room for more than half a
/// million sources.
pub const KERNEL_BITS: u32 = 16;
/// Values of the kernel's map.
pub const KERNEL_BUCKETS: u32 = ROWS << KERNEL_BITS;

/// The place where a source is counted in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the bucket, counted through all rows.
    pub bucket: u32,
    /// The bits of an entry besides its count.
    pub tag: u64,
}

/// The place where `source` is counted in `row`. `bits` is the number of buckets in a row as a power of two,
/// and the width of a count.
#[inline(always)]
#[must_use]
pub const fn place(source: u64, seed: u64, row: u32, bits: u32) -> Place {
    let mixed = mix(source ^ seed);
    let mask = (1 << bits) - 1;
    Place { bucket: (row << bits) + (mixed & mask) as u32, tag: mixed & !mask }
}

/// The number that an entry adds to the count of the source with this tag in its bucket.
#[inline(always)]
#[must_use]
pub const fn count(entry: u64, tag: u64, bits: u32) -> u64 {
    let count = entry ^ tag;
    // The mask is all ones if the tags are the same, else zero. With a branch, the kernel's verifier would
    // walk both ways for each entry.
    count & ((count >> bits).wrapping_sub(1) as i64 >> 63) as u64
}

/// Whether an entry counts no source.
#[inline(always)]
#[must_use]
pub const fn is_free(entry: u64, bits: u32) -> bool {
    entry & ((1 << bits) - 1) == 0
}

/// Whether an entry counts the source with this tag and has room for one more.
#[inline(always)]
#[must_use]
pub const fn takes_more(entry: u64, tag: u64, bits: u32) -> bool {
    let count = count(entry, tag, bits);
    count != 0 && count < (1 << bits) - 1
}

/// The key under which a source is counted and limited: an IPv4 address, or an IPv6 /64, since one customer
/// has at least a /64. The address is given as its two halves, IPv4 as IPv4-mapped.
#[inline(always)]
#[must_use]
pub const fn key(leading: u64, trailing: u64) -> u64 {
    // No /64 of the global unicast space begins with 32 ones, so no key belongs to both families.
    if leading == 0 && trailing >> 32 == 0xffff { trailing | 0xffff_ffff << 32 } else { leading }
}

/// The finalizer of MurmurHash3: a bijection in which every bit of the input reaches every bit of the output.
#[inline(always)]
#[must_use]
pub const fn mix(mut key: u64) -> u64 {
    key = (key ^ (key >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    key = (key ^ (key >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    key ^ (key >> 33)
}

/// The only value of the configuration map: which connections are counted, and the limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountConfig {
    /// Connections that a source may have; 0: no limit.
    pub limit: u64,
    /// The network namespace of our listeners (SO_NETNS_COOKIE); 0: unknown, and connections in all
    /// namespaces count.
    pub netns_cookie: u64,
    /// Random numbers that choose a source's bucket in each row.
    pub seeds: [u64; ROWS as usize],
}

const _: () = assert!(core::mem::size_of::<CountConfig>() == 32);

/// Rarely written values that segments of established connections read, in a cache line of their own. While
/// the first two are 0, these segments pass without a look-up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// Live connections that brought their source to its limit, or came beyond it. 0: no source is at its
    /// limit.
    pub at_limit: u64,
    /// When a SYN was last answered with a cookie, in nanoseconds of CLOCK_MONOTONIC; it may be a second out
    /// of date. 0: no cookie is out.
    pub cookies_at: u64,
    /// When SYNs last came faster than their source's rate allows, as `cookies_at`. User space then has every
    /// SYN answered with a cookie. 0: never.
    pub pressed_at: u64,
    /// Zero.
    pub reserved: [u64; 5],
}

const _: () = assert!(core::mem::size_of::<Armed>() == 64);

/// Events that the counting program counts.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// A connection was established and counted.
    Opened,
    /// A counted connection has ended.
    Closed,
    /// A connection was not counted, since both buckets of its source are full.
    NoRoom,
    /// A connection was not counted, since the kernel had no memory to remember its place.
    NoStorage,
}

impl Tally {
    /// Every event, in counter order.
    pub const ALL: &'static [Self] = &[Self::Opened, Self::Closed, Self::NoRoom, Self::NoStorage];
}

/// The number of events, and so of entries in the counter array.
pub const TALLIES: u32 = Tally::ALL.len() as u32;
