//! Follows this host's network: an interface of the guard that was made anew gets the guard again, and
//! listeners on the unspecified address stand for the addresses that are local now.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use tracing::warn;

use super::estate::Estate;
use crate::kernel::changes::{Changes, Follower};
use crate::time::Time;

/// The first change is followed at once, further ones together after this.
const PAUSE: Duration = Duration::from_millis(100);
/// What could not be done is tried again after this, even if nothing was noticed.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub struct Network {
    /// `None`: no interface is guarded, or the kernel tells us nothing.
    follower: Option<Follower>,
    /// The kernel tells us nothing, so that we have to look now and then.
    is_blind: bool,
    changes: Changes,
    looked: Time,
    /// Something could not be done.
    is_behind: bool,
}

impl Network {
    /// Begins to listen, and looks at everything: it may have changed since the guard was attached.
    #[must_use]
    pub fn follow(estate: &Estate, now: Time) -> Self {
        let is_guarded = !estate.config.guard.interfaces.is_empty();
        let follower = is_guarded.then(Follower::new).transpose().unwrap_or_else(|error| {
            warn!("changes of interfaces are noticed late, since netlink is refused: {error}");
            None
        });
        let is_blind = is_guarded && follower.is_none();
        let changes = if is_guarded { Changes::ALL } else { Changes::default() };
        Self { follower, is_blind, changes, looked: now, is_behind: false }
    }

    /// The descriptor to poll.
    #[must_use]
    pub fn interest(&self) -> Option<BorrowedFd<'_>> {
        self.follower.as_ref().map(AsFd::as_fd)
    }

    /// When `look` is due.
    #[must_use]
    pub fn next_look(&self) -> Option<Time> {
        let pending = (self.changes != Changes::default()).then(|| self.looked + PAUSE);
        pending.or_else(|| (self.is_behind || self.is_blind).then(|| self.looked + RETRY_AFTER))
    }

    /// Takes the notices that wait, and follows them if it is time; whether it was.
    pub fn look(&mut self, estate: &mut Estate, now: Time) -> bool {
        if let Some(follower) = &self.follower {
            self.changes = self.changes.union(follower.take());
        }
        if self.next_look().is_none_or(|due| now < due) {
            return false;
        }
        let is_late = self.is_behind || self.is_blind;
        let changes = if is_late { Changes::ALL } else { self.changes };
        (self.changes, self.looked) = (Changes::default(), now);
        let mut is_done = true;
        if changes.links {
            is_done &= estate.follow_interfaces();
        }
        if changes.locals {
            is_done &= estate.follow_locals();
        }
        self.is_behind = !is_done;
        true
    }
}
