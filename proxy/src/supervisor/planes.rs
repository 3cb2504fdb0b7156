//! The data planes that live, each a process with a channel. A reaped one is not among them.
//!
//! Today at most one lives. `control::life` decides that, and here the type of `only` shows it. The rest of
//! the supervisor asks for each plane, for the plane of a generation, or for the plane that takes orders.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::PollFlags;

use super::child::Child;
use super::estate::Estate;
use super::watchdog::Watchdog;
use crate::control::handoff::ChannelError;
use crate::time::Time;

/// How long a data plane that closed its channel may take to be dead.
const HANG_UP_WAIT: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug, Default)]
pub struct Planes {
    only: Option<Child>,
}

impl Planes {
    /// Starts a data plane; its process id.
    ///
    /// # Errors
    /// When there is no descriptor, memory or process left, or its connects cannot be judged.
    pub fn start(&mut self, estate: &mut Estate, generation: u32) -> io::Result<u32> {
        debug_assert!(self.only.is_none(), "the last one is reaped before the next starts");
        let plane = self.only.insert(Child::spawn(estate, generation)?);
        Ok(plane.pid())
    }

    /// The plane that takes orders, questions and configurations.
    pub fn current(&mut self) -> Option<&mut Child> {
        self.only.as_mut()
    }

    /// The watchdog of that plane.
    #[must_use]
    pub fn watchdog(&self) -> Option<&Watchdog> {
        self.only.as_ref().map(|plane| &plane.watchdog)
    }

    /// The process of that plane.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.only.as_ref().map(Child::pid)
    }

    /// The plane of this generation.
    pub fn get(&mut self, generation: u32) -> Option<&mut Child> {
        self.only.as_mut().filter(|plane| plane.generation == generation)
    }

    /// Every plane.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Child> {
        self.only.iter_mut()
    }

    /// Every plane's generation.
    #[must_use]
    pub fn generations(&self) -> Vec<u32> {
        self.only.iter().map(|plane| plane.generation).collect()
    }

    /// A plane was reaped.
    pub fn remove(&mut self, generation: u32) {
        self.only.take_if(|plane| plane.generation == generation);
    }

    /// What to poll: generation, channel, and for which events.
    pub fn interests(&self, now: Time) -> impl Iterator<Item = (u32, BorrowedFd<'_>, PollFlags)> {
        self.only.iter().filter_map(move |plane| {
            let (channel, events) = plane.interest(now)?;
            Some((plane.generation, channel, events))
        })
    }

    /// When a plane that said too much is listened to again.
    #[must_use]
    pub fn next_message(&self, now: Time) -> Option<Time> {
        self.only.iter().filter_map(|plane| plane.next_message(now)).min()
    }

    /// When `take_hung` has something to say.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        self.only.iter().filter_map(Child::hung_up).map(|at| at + HANG_UP_WAIT).min()
    }

    /// Whether a plane closed its channel and lives on. Said once: it is to be killed then.
    pub fn take_hung(&mut self, now: Time) -> bool {
        let is_hung = |plane: &&mut Child| plane.hung_up().is_some_and(|at| now >= at + HANG_UP_WAIT);
        self.iter_mut().filter(is_hung).map(Child::condemn).count() > 0
    }

    /// Sends what the channels take.
    ///
    /// # Errors
    /// When a channel is unusable.
    pub fn flush(&mut self, estate: &Estate) -> Result<(), ChannelError> {
        self.iter_mut().try_for_each(|plane| plane.flush(estate))
    }
}
