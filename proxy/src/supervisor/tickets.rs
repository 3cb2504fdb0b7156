//! The keys of session tickets that the supervisor makes: a new one every twelve hours; the one before is
//! still accepted. They outlive every data plane, so that a restarted one resumes sessions of a dead one.
//! They end with the supervisor and are never written anywhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::control::sealed;
use crate::time::Time;
use crate::tls::tickets::{ROTATION, TicketKey};

/// Those in force, as data planes get them: a sealed memfd.
#[derive(Debug)]
pub struct TicketRing {
    newest: TicketKey,
    sealed: Arc<OwnedFd>,
    rotates_at: Time,
}

impl TicketRing {
    /// With one key.
    ///
    /// # Errors
    /// When the kernel refuses memory, a descriptor or random bytes.
    pub fn new(now: Time) -> io::Result<Self> {
        let newest = TicketKey::random().map_err(io::Error::other)?;
        let sealed = seal(std::slice::from_ref(&newest))?;
        Ok(Self { newest, sealed, rotates_at: now + ROTATION })
    }

    /// Makes a new key when it is time; whether it did. When it fails, the present keys go on and it is tried
    /// again in a minute.
    ///
    /// # Errors
    /// As `new`.
    pub fn rotate(&mut self, now: Time) -> io::Result<bool> {
        if now < self.rotates_at {
            return Ok(false);
        }
        self.rotates_at = now + std::time::Duration::from_secs(60);
        let newest = TicketKey::random().map_err(io::Error::other)?;
        let before = std::mem::replace(&mut self.newest, newest);
        match seal(&[self.newest.clone(), before.clone()]) {
            Ok(sealed) => {
                self.sealed = sealed;
                self.rotates_at = now + ROTATION;
                Ok(true)
            }
            Err(error) => {
                self.newest = before;
                Err(error)
            }
        }
    }

    /// When `rotate` is due.
    #[must_use]
    pub const fn next_rotation(&self) -> Time {
        self.rotates_at
    }

    /// For handing over to a data plane.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.sealed.as_fd()
    }

    /// The same, for a message that may wait.
    #[must_use]
    pub fn share(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.sealed)
    }
}

fn seal(keys: &[TicketKey]) -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(sealed::seal("sluice-tickets", &TicketKey::concat(keys))?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn keys(ring: &TicketRing) -> Vec<TicketKey> {
        let fd = ring.fd().try_clone_to_owned().expect("dup");
        TicketKey::split(&sealed::open(fd, 4096).expect("sealed")).expect("keys")
    }

    #[test]
    fn the_last_two_keys_are_accepted_for_twelve_hours_each() {
        let start = Time::default() + Duration::from_secs(100);
        let mut ring = TicketRing::new(start).expect("a key");
        let first = keys(&ring);
        assert_eq!((first.len(), ring.next_rotation()), (1, start + ROTATION));
        assert!(!ring.rotate(start + (ROTATION - Duration::from_secs(1))).expect("not due"));
        assert!(keys(&ring) == first);
        let mut before = first;
        for turn in 1..4 {
            let now = start + ROTATION * turn;
            assert!(ring.rotate(now).expect("due"));
            let after = keys(&ring);
            assert!(after.len() == 2 && after[1] == before[0] && !before.contains(&after[0]));
            assert_eq!(ring.next_rotation(), now + ROTATION);
            before = after;
        }
    }
}
