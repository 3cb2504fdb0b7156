//! Exact counts of connections by source, in a fixed table that both sides change with compare-and-swap
//! alone: no insert, no removal, no lock, and so no moment in which a count can be lost.
//!
//! Two rows of buckets, each of one cache line. A row mixes the source with a seed of its own: a bijection,
//! of which some bits choose the bucket and all the others are the tag, so that two sources never share a tag
//! in a bucket. The bits that chose the bucket hold the count; an entry whose count is 0 is free. A
//! connection is counted in one entry and remembers which: while it lives nobody else can take that entry. A
//! source may have several entries, its count is their sum.

/// Entries of a bucket: a cache line.
pub const BUCKET_ENTRIES: usize = 8;
/// One value of the kernel's map.
pub type Bucket = [u64; BUCKET_ENTRIES];
/// Rows. A source finds room unless its buckets in both are full.
pub const ROWS: u32 = 2;
/// Buckets of a row in the kernel, as a power of two: 8 MiB in all, room for half a million sources and more.
pub const KERNEL_BITS: u32 = 16;
/// Values of the kernel's map.
pub const KERNEL_BUCKETS: u32 = ROWS << KERNEL_BITS;

/// Where a source is counted in one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the bucket among those of all rows.
    pub bucket: u32,
    /// The bits of an entry that are not its count.
    pub tag: u64,
}

/// Where `source` is counted in `row`; `bits` is the power of two of buckets in a row, and the width of a
/// count.
#[inline(always)]
#[must_use]
pub const fn place(source: u64, seed: u64, row: u32, bits: u32) -> Place {
    let mixed = mix(source ^ seed);
    let mask = (1 << bits) - 1;
    Place { bucket: (row << bits) + (mixed & mask) as u32, tag: mixed & !mask }
}

/// What an entry adds to the count of the source that has this tag in its bucket.
#[inline(always)]
#[must_use]
pub const fn count(entry: u64, tag: u64, bits: u32) -> u64 {
    let count = entry ^ tag;
    // All ones if the tag is the same, else zero: the kernel's verifier would walk both ways of a branch for
    // each entry.
    count & ((count >> bits).wrapping_sub(1) as i64 >> 63) as u64
}

/// Whether nobody is counted in an entry.
#[inline(always)]
#[must_use]
pub const fn is_free(entry: u64, bits: u32) -> bool {
    entry & ((1 << bits) - 1) == 0
}

/// Whether an entry counts the source with this tag and can count one more.
#[inline(always)]
#[must_use]
pub const fn takes_more(entry: u64, tag: u64, bits: u32) -> bool {
    let count = count(entry, tag, bits);
    count != 0 && count < (1 << bits) - 1
}

/// A source as the guard counts and limits it: an IPv4 address, or an IPv6 /64, since one customer has at
/// least that much. From both halves of an address, IPv4 as IPv4-mapped.
#[inline(always)]
#[must_use]
pub const fn key(leading: u64, trailing: u64) -> u64 {
    // No /64 of the global unicast space begins with 32 ones, so the families do not meet.
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

/// The only value of the configuration: what is counted, and up to where.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountConfig {
    /// Connections that a source may have; 0: as many as it likes.
    pub limit: u64,
    /// The network namespace of our listeners (SO_NETNS_COOKIE); 0: unknown, every one counts.
    pub netns_cookie: u64,
    /// Random numbers that choose a source's bucket in each row.
    pub seeds: [u64; ROWS as usize],
}

const _: () = assert!(core::mem::size_of::<CountConfig>() == 32);

/// What makes segments of established connections dearer, in a cache line of its own: while it is 0 they pass
/// without a look-up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Armed {
    /// Live connections that brought their source to its limit, or came beyond it: 0 means that no source is
    /// at its limit.
    pub at_limit: u64,
    /// When a SYN was last answered with a cookie, CLOCK_MONOTONIC nanoseconds, a second out of date at most:
    /// 0 means that no cookie is out.
    pub cookies_at: u64,
    /// Zero.
    pub reserved: [u64; 6],
}

const _: () = assert!(core::mem::size_of::<Armed>() == 64);

/// What the program that counts connections did.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tally {
    /// A connection was established and counted.
    Opened,
    /// One that was counted has ended.
    Closed,
    /// One was not counted: both buckets of its source are full.
    NoRoom,
    /// One was not counted: the kernel had no memory to remember it with.
    NoStorage,
}

impl Tally {
    /// Every one, in counter order.
    pub const ALL: &'static [Self] = &[Self::Opened, Self::Closed, Self::NoRoom, Self::NoStorage];
}

/// Entries of the counter array.
pub const TALLIES: u32 = Tally::ALL.len() as u32;
