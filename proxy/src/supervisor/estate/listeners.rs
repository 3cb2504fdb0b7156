//! The listening sockets that a data plane may have shut down: they listen again, on the same ports and in
//! the same places of the steering array.

use std::os::fd::{AsFd, BorrowedFd};

use tracing::{error, warn};

use super::Estate;
use crate::control::life::SLOT_GENERATION;
use crate::listen::sockets;

impl Estate {
    /// Readable when a listening socket was shut down; then call `has_lost_listeners`.
    #[must_use]
    pub fn sentry(&self) -> BorrowedFd<'_> {
        self.sentry.fd()
    }

    /// Whether a listening socket was shut down, and not by us.
    #[must_use]
    pub fn has_lost_listeners(&self) -> bool {
        self.sentry.has_news() && !self.is_retired
    }

    /// Has all listening sockets listen, and steers anew to those that did not. Returns how many did not, and
    /// whether all of them do now.
    pub fn mend_listeners(&mut self) -> (usize, bool) {
        let (mut all, mut is_whole) = (0, true);
        if self.is_retired {
            return (all, true);
        }
        for place in 0..self.bound.len() {
            let (mended, outcome) = self.bound[place].mend();
            let key = self.bound[place].key;
            let name = self.listeners.name(key.listener);
            if let Err(errno) = outcome {
                is_whole = false;
                error!(listener = name, address = %key.address, "cannot listen again: {}", errno.desc());
            }
            if mended > 0 {
                error!(
                    listener = name,
                    address = %key.address,
                    sockets = mended,
                    "listening sockets were shut down by another process; they listen again"
                );
                self.steer_again(place);
            }
            all += mended;
        }
        if let Some((address, fd)) = &self.admin {
            match sockets::mend_admin(*address, fd) {
                Ok(true) => {}
                Ok(false) => {
                    error!(%address, "the admin listener was shut down by another process; it listens again");
                    all += 1;
                }
                Err(errno) => {
                    is_whole = false;
                    error!(%address, "cannot listen again: {}", errno.desc());
                }
            }
        }
        self.listeners_restored += all as u64;
        self.are_suspect |= all > 0 || !is_whole;
        self.watch_listeners();
        (all, is_whole)
    }

    /// Before a data plane starts: whatever the one before did to the sockets and their steering is undone.
    /// Returns whether all of them listen.
    ///
    /// A socket that is shut down again while it is mended listens, and refuses every client; nothing shows
    /// that. So after a data plane that shut sockets down all of them begin anew, now that it is dead.
    pub fn check_listeners(&mut self) -> bool {
        let (_, mut is_whole) = self.mend_listeners();
        if self.is_retired {
            return is_whole;
        }
        if std::mem::take(&mut self.are_suspect) {
            is_whole = self.renew_listeners();
        }
        (0..self.bound.len()).for_each(|place| self.steer_again(place));
        is_whole
    }

    /// Returns whether all of them listen.
    fn renew_listeners(&mut self) -> bool {
        let mut outcome = Ok(());
        for bound in &self.bound {
            outcome = outcome.and(bound.disconnect()).and(bound.mend().1);
        }
        if let Some((address, fd)) = &self.admin {
            let admin = sockets::disconnect_admin(fd).and_then(|()| sockets::mend_admin(*address, fd));
            outcome = outcome.and(admin.map(drop));
        }
        // What was done here is no news.
        self.sentry.has_news();
        if let Err(errno) = outcome {
            error!("a listening socket cannot listen again: {}", errno.desc());
        }
        outcome.is_ok()
    }

    fn watch_listeners(&self) {
        let sockets = self.bound.iter().flat_map(|bound| &bound.sockets);
        for socket in sockets.chain(self.admin.as_ref().map(|(_, fd)| fd)) {
            if let Err(errno) = self.sentry.watch(socket.as_fd()) {
                return warn!("a listening socket that is shut down is not noticed: {}", errno.desc());
            }
        }
    }

    /// The kernel takes a socket that is shut down out of the steering array.
    fn steer_again(&mut self, place: usize) {
        let Some(programs) = &mut self.programs else { return };
        let bound = &self.bound[place];
        let sockets: Vec<BorrowedFd<'_>> = bound.sockets.iter().map(AsFd::as_fd).collect();
        if let Err(error) = programs.steer(bound.key.address, SLOT_GENERATION, &sockets) {
            warn!("steering: the kernel's hash chooses the worker of some or all flows ({error})");
        }
    }
}
