//! Bans: sources whose every packet is dropped until a time, connections that stand included.
//!
//! Only user space bans and sweeps. The table is no LRU, so no flood of sources washes a ban out of it, and
//! the prefilter has a bit for each ban, so that whoever is not banned (nor shares such a bit) is not looked
//! up.

use proxy_common::filter::Source;

use crate::maps;
use crate::packet::Segment;

/// Whether the source of a segment is banned now.
#[inline(always)]
pub fn is_banned(segment: &Segment) -> bool {
    let (leading, trailing) = segment.source.halves();
    match maps::ban_end(Source::new(leading, trailing).key()) {
        Some(end) => maps::now() < end,
        None => false,
    }
}
