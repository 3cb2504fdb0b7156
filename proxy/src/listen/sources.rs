//! The limit of connections per source at accept, sans-IO: exact over all workers, which share one table of
//! atomics. On a guarded interface the kernel side refuses a source at its limit first
//! (`proxy-ebpf/src/connections.rs`). Whatever reached accept all the same is counted here.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use proxy_common::sources::{self, BUCKET_ENTRIES, Place, ROWS};

/// Fewest and most buckets of a row, as powers of two.
const BITS_MIN: u32 = 8;
const BITS_MAX: u32 = 16;

/// See the module.
#[derive(Debug)]
pub struct Sources {
    /// Buckets of both rows, one after the other.
    buckets: Box<[Bucket]>,
    bits: u32,
    seeds: [u64; ROWS as usize],
    limit: u64,
    dry_run: bool,
    allow: Ranges,
}

#[repr(align(64))]
#[derive(Debug)]
struct Bucket([AtomicU64; BUCKET_ENTRIES]);

/// The outcome of counting a connection's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It counts; `Sources::release` with this gives it up.
    Counted(Ticket),
    /// It is not judged: its source is on the allow list.
    Exempt,
    /// There is no room to count it. It passes.
    NoRoom,
    /// Its source is at the limit. In a dry run it passes.
    AtLimit,
}

/// Where a connection is counted: the number of the entry, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(NonZeroU32);

impl Ticket {
    const fn new(bucket: u32, entry: u32) -> Option<Self> {
        match NonZeroU32::new(bucket * BUCKET_ENTRIES as u32 + entry + 1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

impl Sources {
    /// Allows `limit` connections for each source but those on `allow`; holds at least `connections_max`
    /// sources. `seeds` are random.
    #[must_use]
    pub fn new(limit: u32, connections_max: usize, allow: &[IpNet], dry_run: bool, seeds: [u64; 2]) -> Self {
        // Four entries for a connection: both buckets of a source are practically never full.
        let bits = (connections_max / 4).max(1).ilog2().saturating_add(1).clamp(BITS_MIN, BITS_MAX);
        let buckets = (0..ROWS << bits).map(|_| Bucket(std::array::from_fn(|_| AtomicU64::new(0)))).collect();
        Self { buckets, bits, seeds, limit: limit.into(), dry_run, allow: Ranges::new(allow) }
    }

    /// Whether a connection that is at its limit passes all the same.
    #[must_use]
    pub const fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Counts one more connection of a source, if that is below its limit.
    pub fn claim(&self, source: IpAddr) -> Claim {
        let source = source.to_canonical();
        if self.allow.contain(source) {
            return Claim::Exempt;
        }
        let places = self.places(source);
        loop {
            let seen = self.look(places);
            if seen.count >= self.limit {
                return Claim::AtLimit;
            }
            let Some((ticket, old, new)) = seen.next else { return Claim::NoRoom };
            // Nothing else is published with it. A loser looks again, since its view is out of date.
            let Some(entry) = self.entry(ticket) else { return Claim::NoRoom };
            if entry.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Claim::Counted(ticket);
            }
        }
    }

    /// A connection that counted is gone.
    pub fn release(&self, ticket: Ticket) {
        if let Some(entry) = self.entry(ticket) {
            entry.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn places(&self, source: IpAddr) -> [Place; 2] {
        let bits = number(source);
        let key = sources::key((bits >> 64) as u64, bits as u64);
        let [first, second] = self.seeds;
        [sources::place(key, first, 0, self.bits), sources::place(key, second, 1, self.bits)]
    }

    fn entry(&self, ticket: Ticket) -> Option<&AtomicU64> {
        let index = ticket.0.get() as usize - 1;
        self.buckets.get(index / BUCKET_ENTRIES)?.0.get(index % BUCKET_ENTRIES)
    }

    /// The source's count, and the entry that takes one more: one it has, else a free one in the emptier
    /// bucket.
    fn look(&self, places: [Place; 2]) -> Seen {
        let mut seen = Seen { count: 0, next: None };
        let (mut has_own, mut most_free) = (false, 0);
        for place in places {
            let Some(bucket) = self.buckets.get(place.bucket as usize) else { continue };
            let (mut free, mut first_free) = (0, None);
            for (entry, value) in (0..).zip(&bucket.0) {
                let value = value.load(Ordering::Relaxed);
                let Some(ticket) = Ticket::new(place.bucket, entry) else { continue };
                seen.count += sources::count(value, place.tag, self.bits);
                if sources::takes_more(value, place.tag, self.bits) && !has_own {
                    has_own = true;
                    seen.next = Some((ticket, value, value + 1));
                } else if sources::is_free(value, self.bits) {
                    free += 1;
                    first_free = first_free.or(Some((ticket, value, place.tag | 1)));
                }
            }
            if !has_own && free > most_free {
                most_free = free;
                seen.next = first_free;
            }
        }
        seen
    }

    /// Connections counted for a source.
    #[cfg(test)]
    fn count(&self, source: IpAddr) -> u64 {
        self.look(self.places(source.to_canonical())).count
    }
}

/// The content of a source's buckets.
struct Seen {
    count: u64,
    /// Where to count one more: the entry, its present value, and its next one.
    next: Option<(Ticket, u64, u64)>,
}

/// Networks as sorted ranges that do not touch. A short IPv6 network such as ::/0 is none of IPv4, as in the
/// guard.
#[derive(Debug)]
struct Ranges {
    v4: Box<[(u128, u128)]>,
    v6: Box<[(u128, u128)]>,
}

impl Ranges {
    fn new(nets: &[IpNet]) -> Self {
        let range = |net: &IpNet| (number(net.network()), number(net.broadcast()));
        let (v4, v6): (Vec<_>, Vec<_>) = nets.iter().partition(|net| is_v4(net));
        let sorted = |nets: Vec<&IpNet>| {
            let mut ranges: Vec<_> = nets.into_iter().map(range).collect();
            ranges.sort_unstable();
            ranges.dedup_by(|later, kept| {
                let joins = later.0 <= kept.1;
                if joins {
                    kept.1 = kept.1.max(later.1);
                }
                joins
            });
            ranges.into()
        };
        Self { v4: sorted(v4), v6: sorted(v6) }
    }

    fn contain(&self, address: IpAddr) -> bool {
        let ranges = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let number = number(address);
        let after = ranges.partition_point(|(first, _)| *first <= number);
        after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| number <= *last)
    }
}

/// Also a network that is written as IPv4-mapped IPv6.
fn is_v4(net: &IpNet) -> bool {
    match net {
        IpNet::V4(_) => true,
        IpNet::V6(net) => net.prefix_len() >= 96 && net.network().to_ipv4_mapped().is_some(),
    }
}

/// IPv4 as IPv4-mapped.
fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

#[cfg(test)]
mod tests;
