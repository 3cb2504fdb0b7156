//! The task that waits for something, if one does.

use std::task::{Context, Waker};

/// See the module. A later task takes the place of an earlier one.
#[derive(Debug, Default)]
pub(crate) struct WaitingTask(Option<Waker>);

impl WaitingTask {
    /// Nobody waits.
    pub(crate) const NOBODY: Self = Self(None);

    /// Remembers the task of `cx`.
    pub(crate) fn register(&mut self, cx: &Context<'_>) {
        match &mut self.0 {
            // Clones only if it is another task's.
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.0 = Some(cx.waker().clone()),
        }
    }

    /// Takes the task out, for the caller to wake.
    pub(crate) const fn take(&mut self) -> Option<Waker> {
        self.0.take()
    }

    /// Wakes the task, once.
    pub(crate) fn wake(&mut self) {
        if let Some(waker) = self.take() {
            waker.wake();
        }
    }

    /// Whether a task waits.
    pub(crate) const fn has_task(&self) -> bool {
        self.0.is_some()
    }
}
