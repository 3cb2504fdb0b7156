//! Bans: every packet of a banned source is dropped until the ban ends, also packets of established
//! connections.
//!
//! Only user space bans and sweeps. The table is no LRU, so no flood of sources can push a ban out of it.
//! Each ban has a bit in the prefilter. A source is looked up only if its bit is set, by its own ban or by
//! another that shares the bit.

use proxy_common::filter::Source;

use crate::maps;
use crate::packet::Address;

/// Whether a source is banned now.
#[inline(always)]
pub fn is_banned(source: Address) -> bool {
    let (leading, trailing) = source.halves();
    match maps::ban_end(Source::new(leading, trailing).key()) {
        Some(end) => maps::now() < end,
        None => false,
    }
}
