//! Commands from the control thread to a worker: a bounded queue and an eventfd (eventfd(2)) that the
//! worker's ring watches.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::time::Time;

/// Commands that may wait for one worker. More means that it is stuck, and then a further command would not
/// help.
pub const PENDING_MAX: usize = 16;

/// A command for a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Cancel accepts, let exchanges end until `deadline`, then close the remaining connections and return.
    Drain {
        /// When to give up.
        deadline: Time,
    },
    /// Close everything and return.
    Stop,
}

#[derive(Debug)]
struct Shared {
    queue: ArrayQueue<Command>,
    event: EventFd,
}

/// The control thread's end.
#[derive(Clone, Debug)]
pub struct CommandSender(Arc<Shared>);

/// The worker's end.
#[derive(Debug)]
pub struct CommandReceiver(Arc<Shared>);

/// `PENDING_MAX` commands wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{PENDING_MAX} commands wait for this worker already")]
pub struct Full;

/// A queue of at most `PENDING_MAX` commands.
pub fn channel() -> std::io::Result<(CommandSender, CommandReceiver)> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let shared = Arc::new(Shared { queue: ArrayQueue::new(PENDING_MAX), event });
    Ok((CommandSender(Arc::clone(&shared)), CommandReceiver(shared)))
}

impl CommandSender {
    /// Queues a command and wakes the worker. Never waits.
    pub fn send(&self, command: Command) -> Result<(), Full> {
        self.0.queue.push(command).map_err(|_| Full)?;
        // Fails only when the counter would overflow, and then the descriptor is readable already.
        let _ = self.0.event.write(1);
        Ok(())
    }

    /// Wakes the worker without a command, so that it looks for news. A nudge takes no place in the queue: it
    /// keeps no command out.
    pub fn nudge(&self) {
        let _ = self.0.event.write(1);
    }
}

impl CommandReceiver {
    /// The next command; clears the eventfd when there is none.
    #[must_use]
    pub fn try_next(&self) -> Option<Command> {
        self.0.queue.pop().or_else(|| {
            // Clear first, look again after: a command that was pushed in between is found here. A later
            // command makes the descriptor readable again.
            let _ = self.0.event.read();
            self.0.queue.pop()
        })
    }
}

impl AsFd for CommandReceiver {
    /// Readable while commands wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests;
