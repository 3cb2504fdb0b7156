//! Where data planes may connect to, sans-IO: the addresses of the configuration in force, of the one that is
//! to follow it, and of earlier ones while a data plane may still begin a connection by them.
//!
//! ```text
//! propose ─▶ next ─ adopt ─▶ current ─ adopt of another ─▶ old ─ released, or too old ─▶ gone
//!                └ withdraw ─▶ gone
//! ```
//!
//! Today the configuration alone names addresses. Those that DNS or files will bring have to be part of
//! `current` before a data plane hears of them, and so have to be found by the supervisor: a data plane that
//! was taken over would name its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;

/// How long addresses of an earlier configuration are allowed at most. Only exchanges that began under it
/// need them, until they have their connection; a data plane that was taken over would never let go.
pub const OLD_MAX: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug, Default)]
pub struct Destinations {
    current: BTreeSet<SocketAddr>,
    next: BTreeSet<SocketAddr>,
    old: Vec<Old>,
}

/// Addresses of an earlier configuration.
#[derive(Debug)]
struct Old {
    snapshot: u64,
    addresses: BTreeSet<SocketAddr>,
    until: Time,
}

impl Destinations {
    /// Those of the first configuration.
    #[must_use]
    pub fn new(current: BTreeSet<SocketAddr>) -> Self {
        Self { current, ..Self::default() }
    }

    /// A configuration with these may follow.
    pub fn propose(&mut self, next: BTreeSet<SocketAddr>) {
        self.next = next;
    }

    /// It does not.
    pub fn withdraw(&mut self) {
        self.next.clear();
    }

    /// It does. `snapshot`: the number of the configuration that was in force until now.
    pub fn adopt(&mut self, snapshot: u64, now: Time) {
        let next = std::mem::take(&mut self.next);
        let addresses = std::mem::replace(&mut self.current, next);
        self.old.push(Old { snapshot, addresses, until: now + OLD_MAX });
    }

    /// No data plane holds a configuration before this one any more.
    pub fn released(&mut self, snapshot: u64) {
        self.old.retain(|old| old.snapshot >= snapshot);
    }

    /// Forgets what is too old.
    pub fn expire(&mut self, now: Time) {
        self.old.retain(|old| now < old.until);
    }

    /// When `expire` has something to do.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Time> {
        self.old.iter().map(|old| old.until).min()
    }

    /// All of them.
    #[must_use]
    pub fn allowed(&self) -> BTreeSet<SocketAddr> {
        let old = self.old.iter().flat_map(|old| &old.addresses);
        self.current.iter().chain(&self.next).chain(old).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ports: impl IntoIterator<Item = u16>) -> BTreeSet<SocketAddr> {
        ports.into_iter().map(|port| SocketAddr::from(([127, 0, 0, 1], port))).collect()
    }

    #[test]
    fn old_and_new_are_allowed_until_nobody_begins_a_connection_by_the_old() {
        let now = Time::default();
        let mut destinations = Destinations::new(set([1, 2]));
        destinations.propose(set([2, 3]));
        assert_eq!(destinations.allowed(), set(1..=3), "before the data plane hears of it");
        destinations.adopt(1, now);
        assert_eq!(destinations.allowed(), set(1..=3));
        destinations.propose(set([4]));
        destinations.adopt(2, now);
        assert_eq!(destinations.allowed(), set(1..=4));
        destinations.released(2);
        assert_eq!(destinations.allowed(), set(2..=4), "the first is not held any more");
        destinations.released(3);
        assert_eq!(destinations.allowed(), set([4]));
        assert_eq!(destinations.next_expiry(), None);
    }

    #[test]
    fn a_configuration_that_is_not_taken_leaves_nothing() {
        let mut destinations = Destinations::new(set([1]));
        destinations.propose(set([2]));
        destinations.withdraw();
        assert_eq!(destinations.allowed(), set([1]));
    }

    #[test]
    fn a_data_plane_that_never_lets_go_loses_the_old_ones_all_the_same() {
        let now = Time::default();
        let mut destinations = Destinations::new(set([1]));
        destinations.propose(set([2]));
        destinations.adopt(1, now);
        let due = destinations.next_expiry().expect("one waits");
        assert_eq!(due, now + OLD_MAX);
        destinations.expire(now + OLD_MAX / 2);
        assert_eq!(destinations.allowed(), set([1, 2]));
        destinations.expire(due);
        assert_eq!(destinations.allowed(), set([2]));
    }
}
