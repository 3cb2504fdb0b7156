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
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn readable(receiver: &CommandReceiver) -> bool {
        let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).expect("poll") == 1
    }

    #[test]
    fn commands_arrive_in_order_and_the_descriptor_clears() {
        let (sender, receiver) = channel().expect("eventfd");
        assert!(!readable(&receiver));
        let drain = Command::Drain { deadline: Time::from_nanos(7) };
        sender.send(drain).expect("room");
        sender.send(Command::Stop).expect("room");
        assert!(readable(&receiver));
        assert_eq!(receiver.try_next(), Some(drain));
        assert!(readable(&receiver), "a command still waits");
        assert_eq!(receiver.try_next(), Some(Command::Stop));
        assert_eq!(receiver.try_next(), None);
        assert!(!readable(&receiver));
        sender.send(Command::Stop).expect("room");
        assert!(readable(&receiver), "a later command wakes again");
    }

    #[test]
    fn a_full_queue_refuses_and_keeps_what_it_has() {
        let (sender, receiver) = channel().expect("eventfd");
        for nanos in 0..PENDING_MAX {
            sender.send(Command::Drain { deadline: Time::from_nanos(nanos as u64) }).expect("room");
        }
        assert_eq!(sender.send(Command::Stop), Err(Full));
        assert_eq!(std::iter::from_fn(|| receiver.try_next()).count(), PENDING_MAX);
        sender.send(Command::Stop).expect("room again");
        assert_eq!(receiver.try_next(), Some(Command::Stop));
    }

    #[test]
    fn a_nudge_wakes_and_is_no_command() {
        let (sender, receiver) = channel().expect("eventfd");
        for _ in 0..100 {
            sender.nudge();
        }
        assert!(readable(&receiver));
        assert_eq!(receiver.try_next(), None);
        assert!(!readable(&receiver));
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        let (sender, receiver) = channel().expect("eventfd");
        let count = 20_000_usize;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for _ in 0..count {
                    while sender.send(Command::Stop).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut seen = 0;
            while seen < count {
                let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
                assert_eq!(
                    poll(&mut fds, 5_000_u16).expect("poll"),
                    1,
                    "slept with {} of {count} commands left",
                    count - seen
                );
                while receiver.try_next().is_some() {
                    seen += 1;
                }
            }
        });
    }
}
