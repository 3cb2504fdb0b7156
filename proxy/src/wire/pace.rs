//! How slow a client may be: `min_rate` as an allowance of time. Waiting for the client spends it, and bytes
//! earn it. Time in which the upstream or Sluice is slow does not count.

use std::num::NonZero;
use std::time::Duration;

use crate::time::Time;

/// The allowance at the beginning, before the rate matters.
const GRACE: Duration = Duration::from_secs(10);

/// A client that is waited for within a message is slow after this time: it moved nothing for as long, or
/// spent as much of its allowance.
pub(crate) const SLOW_AFTER: Duration = Duration::from_secs(1);

/// Learns that a client is slow.
pub(crate) trait Watch: std::fmt::Debug {
    /// The client is slow, and waited for since then; `None`: it is not, or not waited for any more.
    fn slow(&self, since: Option<Time>);
}

/// Tells a watch that a client is slow. Dropping it takes that back.
#[derive(Debug)]
pub(crate) struct Slowness<'a> {
    watch: Option<&'a dyn Watch>,
    is_told: bool,
}

impl<'a> Slowness<'a> {
    /// Nothing to tell yet.
    pub(crate) const fn new(watch: Option<&'a dyn Watch>) -> Self {
        Self { watch, is_told: false }
    }

    /// Whether somebody wants to know.
    pub(crate) const fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// See `Watch::slow`.
    pub(crate) fn tell(&mut self, since: Option<Time>) {
        if let Some(watch) = self.watch
            && (since.is_some() || self.is_told)
        {
            self.is_told = since.is_some();
            watch.slow(since);
        }
    }
}

impl Drop for Slowness<'_> {
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// The allowance of one message's body, in one direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    rate: Option<NonZero<u32>>,
    left: Duration,
}

impl Pace {
    /// No limit: the peer may be as slow as it likes.
    pub(crate) const FREE: Self = Self::new(None);

    /// The allowance of a client that must move `rate` bytes per second; `None`: no limit.
    pub(crate) const fn new(rate: Option<NonZero<u32>>) -> Self {
        Self { rate, left: GRACE }
    }

    /// How much longer the client may be waited for.
    pub(crate) const fn left(&self) -> Duration {
        if self.rate.is_some() { self.left } else { Duration::MAX }
    }

    /// How much of the first allowance is spent, if that makes the client slow.
    pub(crate) fn overspent(&self) -> Option<Duration> {
        let spent = GRACE.saturating_sub(self.left);
        (self.rate.is_some() && spent >= SLOW_AFTER).then_some(spent)
    }

    /// Somebody waited for the client.
    pub(crate) const fn waited(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// The client moved bytes. The allowance grows to `pause_max` at most, or to the first grace if that is
    /// more.
    pub(crate) fn moved(&mut self, bytes: u64, pause_max: Duration) {
        let Some(rate) = self.rate else { return };
        let nanos = bytes.min(u64::from(u32::MAX)) * 1_000_000_000 / u64::from(rate.get());
        self.left = (self.left + Duration::from_nanos(nanos)).min(pause_max.max(GRACE));
    }

    /// The client was not to blame for the waits until now.
    pub(crate) const fn pardon(&mut self) {
        self.left = GRACE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waiting_spends_what_bytes_earn() {
        let mut pace = Pace::new(NonZero::new(100));
        assert_eq!(pace.left(), GRACE);
        pace.waited(4 * SECOND);
        pace.moved(100, 60 * SECOND);
        assert_eq!(pace.left(), 7 * SECOND);
        pace.waited(8 * SECOND);
        assert_eq!(pace.left(), Duration::ZERO);
        pace.moved(1, 60 * SECOND);
        assert_eq!(pace.left(), SECOND / 100);
    }

    #[test]
    fn a_client_is_slow_that_spends_more_than_it_earns() {
        let mut pace = Pace::new(NonZero::new(100));
        pace.waited(SECOND / 2);
        assert_eq!(pace.overspent(), None);
        pace.waited(2 * SECOND);
        pace.moved(100, 60 * SECOND);
        assert_eq!(pace.overspent(), Some(3 * SECOND / 2));
        pace.moved(100, 60 * SECOND);
        assert_eq!(pace.overspent(), None);
        let mut free = Pace::FREE;
        free.waited(60 * SECOND);
        assert_eq!(free.overspent(), None);
    }

    #[test]
    fn what_is_saved_up_lasts_for_one_pause() {
        let mut pace = Pace::new(NonZero::new(1));
        pace.moved(u64::MAX, 60 * SECOND);
        assert_eq!(pace.left(), 60 * SECOND);
        let mut short = Pace::new(NonZero::new(u32::MAX));
        short.moved(u64::MAX, SECOND);
        assert_eq!(short.left(), GRACE);
    }

    #[test]
    fn without_a_rate_there_is_no_end() {
        let mut pace = Pace::FREE;
        pace.waited(Duration::MAX);
        pace.moved(1, SECOND);
        assert_eq!(pace.left(), Duration::MAX);
    }
}
