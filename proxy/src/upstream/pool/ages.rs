//! When idle connections have to go: each after its idle time, earlier while there are more than `max_idle`,
//! and at the end of its lifetime. Sans-IO.
//!
//! Connections become idle in the order of time, and the idle time is the same for all. The first in this
//! order is therefore the next to go, apart from the few whose lifetime ends before their idle time. These
//! are ordered by that end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::chain::{Chain, Links};
use crate::error::PoolCloseReason;
use crate::time::Time;
use crate::upstream::model::PoolLimits;

/// How long idle connections above `max_idle` are kept, if `idle_timeout` is not shorter. An upstream keeps
/// as many connections as it needed of late, or each peak of its load would close and open them.
const SURPLUS: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug)]
pub(super) struct Ages {
    limits: PoolLimits,
    order: Chain,
    links: Links,
    /// By index.
    ages: Vec<Age>,
    /// Ends of lifetimes that come before the end of the idle time, with the index.
    ending: BTreeSet<(Time, u32)>,
    count: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Age {
    born: Time,
    since: Time,
    /// Its place in `ending`.
    ends: Option<Time>,
}

impl Ages {
    pub(super) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            order: Chain::default(),
            links: Links::default(),
            ages: Vec::new(),
            ending: BTreeSet::new(),
            count: 0,
        }
    }

    /// Takes new limits. Looks at every idle connection.
    pub(super) fn configure(&mut self, limits: PoolLimits) {
        self.limits = limits;
        self.ending.clear();
        for index in self.links.iter(self.order) {
            let age = &mut self.ages[index as usize];
            age.ends = age.early_end(&limits);
            self.ending.extend(age.ends.map(|end| (end, index)));
        }
    }

    /// How many are idle.
    #[cfg(test)]
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// A connection becomes idle.
    pub(super) fn enter(&mut self, index: u32, born: Time, now: Time) {
        let place = index as usize;
        if self.ages.len() <= place {
            self.ages.resize(place + 1, Age::default());
        }
        let mut age = Age { born, since: now, ends: None };
        age.ends = age.early_end(&self.limits);
        self.ending.extend(age.ends.map(|end| (end, index)));
        self.ages[place] = age;
        self.links.push(&mut self.order, index);
        self.count += 1;
    }

    /// It is idle no longer. When it must have gone, and why.
    pub(super) fn leave(&mut self, index: u32) -> (Time, PoolCloseReason) {
        let age = std::mem::take(&mut self.ages[index as usize]);
        if let Some(end) = age.ends {
            self.ending.remove(&(end, index));
        }
        self.links.remove(&mut self.order, index);
        self.count -= 1;
        self.end(age)
    }

    /// When an idle connection must go, and why.
    pub(super) fn end_of(&self, index: u32) -> (Time, PoolCloseReason) {
        self.end(self.ages[index as usize])
    }

    /// The next that must go, when, and why.
    pub(super) fn next(&self) -> Option<(Time, u32, PoolCloseReason)> {
        let index = self.order.first()?;
        let since = self.ages[index as usize].since;
        let idle = if self.count > self.limits.max_idle && SURPLUS < self.limits.idle_timeout {
            (since + SURPLUS, index, PoolCloseReason::MaxIdle)
        } else {
            (since + self.limits.idle_timeout, index, PoolCloseReason::IdleTimeout)
        };
        match self.ending.first() {
            Some(&(end, index)) if end < idle.0 => Some((end, index, PoolCloseReason::MaxLifetime)),
            _ => Some(idle),
        }
    }

    /// Those that are idle, the one that became so first before the others.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.links.iter(self.order)
    }

    fn end(&self, age: Age) -> (Time, PoolCloseReason) {
        match age.ends {
            Some(end) => (end, PoolCloseReason::MaxLifetime),
            None => (age.since + self.limits.idle_timeout, PoolCloseReason::IdleTimeout),
        }
    }
}

impl Age {
    /// The end of its lifetime, if that comes before the end of its idle time.
    fn early_end(&self, limits: &PoolLimits) -> Option<Time> {
        let end = self.born + limits.max_lifetime;
        (end < self.since + limits.idle_timeout).then_some(end)
    }
}
