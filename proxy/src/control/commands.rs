//! Commands from the control thread to a worker: a bounded queue and an eventfd that the worker's ring watches.

use std::os::fd::{AsFd, BorrowedFd};

use crate::time::Time;

/// What a worker can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Cancel accepts, let exchanges end until `deadline`, then close what is left and return.
    Drain {
        /// When to give up.
        deadline: Time,
    },
    /// Close everything and return.
    Stop,
}

/// The worker's end.
#[derive(Debug)]
pub struct CommandReceiver(());

impl CommandReceiver {
    /// The next command; clears the eventfd when there is none.
    pub fn try_next(&self) -> Option<Command> {
        unimplemented!()
    }
}

impl AsFd for CommandReceiver {
    /// Readable while commands wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}
