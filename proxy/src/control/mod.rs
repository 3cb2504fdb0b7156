//! The messages between supervisor and data plane, and the memory that the data plane's threads share.

pub mod bans;
pub mod batches;
pub mod commands;
pub mod handoff;
pub mod life;
pub mod messages;
pub mod sealed;
pub mod slots;
pub mod status;

use nix::time::{ClockId, clock_gettime};

use crate::time::Time;

/// CLOCK_MONOTONIC now: for the supervisor and the control thread. Workers read their clock once a loop turn,
/// elsewhere.
#[must_use]
pub fn now() -> Time {
    // CLOCK_MONOTONIC cannot fail on Linux; the fallback keeps this total.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Time::default(), |at| {
        let seconds = u64::try_from(at.tv_sec()).unwrap_or_default();
        let nanos = u64::try_from(at.tv_nsec()).unwrap_or_default();
        Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    })
}
