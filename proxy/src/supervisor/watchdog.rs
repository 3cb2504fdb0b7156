//! The watchdog, sans-IO: it looks at regular intervals whether the data plane still works, and says when the
//! data plane has been silent for `process.watchdog`.
//!
//! ```text
//! control thread   answers a ping that every look sends          silent: no answer
//! workers          publish since when they run; 0: they sleep     silent: all run since the same moments
//! ```
//!
//! A sleeping worker is not woken and counts as well. One silent worker among others is not our concern:
//! steering gives it no new flows.
//!
//! Silence grows by the time between two looks, and by no more than `STEP_MAX` intervals. So time that the
//! supervisor itself missed does not count: one that was stopped, suspended or starved of its CPU has looked
//! away, and does not hold against the data plane what it did not see.

use std::fmt;
use std::time::Duration;

use crate::time::Time;

/// Looks in the time of `process.watchdog`.
const LOOKS: u32 = 8;
/// The longest time between two looks.
const INTERVAL_MAX: Duration = Duration::from_secs(5);
/// One look adds at most so many intervals to a silence.
const STEP_MAX: u32 = 2;
/// After so many looks a silence is shown, long before it is held against the data plane.
const SHOWN_AFTER: u32 = 2;

/// A part of the data plane that shows no sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silent {
    /// It answers no ping.
    ControlThread,
    /// Not one of them ends its turn.
    Workers,
}

impl fmt::Display for Silent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ControlThread => "its control thread does not answer",
            Self::Workers => "all of its workers are stuck in a turn of their loops",
        })
    }
}

/// The outcome of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It works, as far as one can tell.
    Fine,
    /// Send a ping with this number, and call `answered` when it comes back.
    Ping(u64),
    /// Silent for `process.watchdog`.
    Hung(Silent),
}

/// See the module. Made anew for each data plane.
#[derive(Debug, Default)]
pub struct Watchdog {
    looked: Option<Time>,
    interval: Duration,
    pings: u64,
    /// The last ping has no answer yet.
    is_open: bool,
    /// Since the last ping was sent.
    control: Duration,
    /// When each worker last woke, and how long that has been so; 0 while it sleeps.
    workers: Vec<(Option<Time>, Duration)>,
}

impl Watchdog {
    /// When `look` has something to say.
    #[must_use]
    pub fn next_look(&self) -> Time {
        self.looked.map_or(Time::default(), |looked| looked + self.interval)
    }

    /// Looks, if it is time. `patience`: `process.watchdog`; `workers`: since when each runs, `None` while it
    /// sleeps.
    pub fn look(
        &mut self,
        now: Time,
        patience: Duration,
        workers: impl Iterator<Item = Option<Time>>,
    ) -> Look {
        if now < self.next_look() {
            return Look::Fine;
        }
        let step = self.looked.map_or(Duration::ZERO, |looked| now.since(looked));
        let step = step.min(self.interval * STEP_MAX);
        self.looked = Some(now);
        self.interval = (patience / LOOKS).min(INTERVAL_MAX);
        for (index, since) in workers.enumerate() {
            match self.workers.get_mut(index) {
                Some((before, silence)) if *before == since && since.is_some() => *silence += step,
                Some(worker) => *worker = (since, Duration::ZERO),
                None => self.workers.push((since, Duration::ZERO)),
            }
        }
        if self.is_open {
            self.control += step;
        }
        match self.longest() {
            Some((silent, silence)) if silence >= patience => Look::Hung(silent),
            _ if self.is_open => Look::Fine,
            _ => {
                self.pings += 1;
                self.is_open = true;
                self.control = Duration::ZERO;
                Look::Ping(self.pings)
            }
        }
    }

    /// A ping came back.
    pub fn answered(&mut self, ping: u64) {
        if self.is_open && ping == self.pings {
            self.is_open = false;
            self.control = Duration::ZERO;
        }
    }

    /// A silence that is longer than usual, and how long it has been.
    #[must_use]
    pub fn silence(&self) -> Option<(Silent, Duration)> {
        self.longest().filter(|(_, silence)| !silence.is_zero() && *silence >= self.interval * SHOWN_AFTER)
    }

    /// The workers are as silent as the one that was heard of last.
    fn longest(&self) -> Option<(Silent, Duration)> {
        let workers = self.workers.iter().map(|(_, silence)| *silence).min();
        let workers = workers.map(|silence| (Silent::Workers, silence));
        let control = Some((Silent::ControlThread, self.control));
        control.into_iter().chain(workers).max_by_key(|(_, silence)| *silence)
    }
}

#[cfg(test)]
mod tests;
