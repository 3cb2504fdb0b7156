//! A rate for one thing that the data plane can make the supervisor do, sans-IO. The data plane reads what
//! clients send; whoever takes it over must not take the supervisor's CPU with it.

use std::time::Duration;

use crate::time::Time;

/// So many at once, then one in every interval.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    burst: u32,
    every: Duration,
    /// When all of the burst is there again.
    whole_at: Time,
}

impl Allowance {
    /// `burst`: at least 1.
    #[must_use]
    pub const fn new(burst: u32, every: Duration) -> Self {
        Self { burst, every, whole_at: Time::from_nanos(0) }
    }

    /// Takes one, if one is there.
    pub fn take(&mut self, now: Time) -> bool {
        let is_there = self.next() <= now;
        if is_there {
            self.whole_at = self.whole_at.max(now) + self.every;
        }
        is_there
    }

    /// When one is there.
    #[must_use]
    pub fn next(&self) -> Time {
        let saved = self.every * self.burst.saturating_sub(1);
        Time::from_nanos(
            self.whole_at.as_nanos().saturating_sub(u64::try_from(saved.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_in_every_interval() {
        let at = |milliseconds: u64| Time::from_nanos(milliseconds * 1_000_000);
        let mut allowance = Allowance::new(3, Duration::from_millis(100));
        assert_eq!((0..9).filter(|_| allowance.take(at(5_000))).count(), 3);
        assert_eq!(allowance.next(), at(5_100));
        assert!(!allowance.take(at(5_099)));
        assert_eq!((0..9).filter(|_| allowance.take(at(5_100))).count(), 1);
        assert_eq!((5_101..6_000).filter(|now| allowance.take(at(*now))).count(), 8);
        assert_eq!(
            (0..9).filter(|_| allowance.take(at(60_000))).count(),
            3,
            "no more than the burst is saved"
        );
    }
}
