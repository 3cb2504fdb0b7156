//! Runs the sessions' futures on one thread. Wakers are ordinary `Arc` wakers that hold numbers only and push
//! onto a thread-local queue, so third-party futures work; a panic ends one task and is counted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;

use slab::Slab;

thread_local! {
    static READY: RefCell<ReadyQueues> = const { RefCell::new(ReadyQueues { queues: Vec::new() }) };
}

/// One queue for each executor of this thread; a worker has one, tests may have several.
struct ReadyQueues {
    queues: Vec<Option<VecDeque<TaskKey>>>,
}

/// Names a task; stale keys are harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskKey {
    index: u32,
    generation: u32,
}

type Future_ = Pin<Box<dyn Future<Output = ()>>>;

struct Task {
    generation: u32,
    /// Taken while it is polled.
    future: Option<Future_>,
    wake: Arc<TaskWake>,
}

struct TaskWake {
    key: TaskKey,
    queue: usize,
    thread: ThreadId,
    /// Whether the key is in the queue already.
    queued: AtomicBool,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A wake from elsewhere would land in that thread's queue, where nobody looks.
        debug_assert_eq!(std::thread::current().id(), self.thread, "a session's waker left its worker");
        // One thread only: a load and a store, no locked instruction.
        if self.queued.load(Ordering::Relaxed) {
            return;
        }
        self.queued.store(true, Ordering::Relaxed);
        // At thread exit the thread-local may be gone; there is nothing left to wake then.
        let _ = READY.try_with(|ready| {
            if let Some(Some(queue)) = ready.borrow_mut().queues.get_mut(self.queue) {
                queue.push_back(self.key);
            }
        });
    }
}

/// The tasks of one worker.
pub struct Executor {
    queue: usize,
    tasks: RefCell<Slab<Task>>,
    generation: Cell<u32>,
    panics: Cell<u64>,
}

impl Executor {
    /// An executor of this thread.
    #[must_use]
    pub fn new() -> Self {
        let queue = READY.with_borrow_mut(|ready| {
            let free = ready.queues.iter().position(Option::is_none);
            let queue = free.unwrap_or_else(|| {
                ready.queues.push(None);
                ready.queues.len() - 1
            });
            ready.queues[queue] = Some(VecDeque::new());
            queue
        });
        Self { queue, tasks: RefCell::default(), generation: Cell::new(0), panics: Cell::new(0) }
    }

    /// Adds a task; it is polled first in this loop turn or the next.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) -> TaskKey {
        let mut tasks = self.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let generation = self.generation.get();
        self.generation.set(generation.wrapping_add(1));
        let key = TaskKey { index: entry.key() as u32, generation };
        let thread = std::thread::current().id();
        let wake = Arc::new(TaskWake { key, queue: self.queue, thread, queued: AtomicBool::new(false) });
        wake.wake_by_ref();
        entry.insert(Task { generation, future: Some(Box::pin(future)), wake });
        key
    }

    /// Drops a task where it stands. A task that cancels itself goes on to its next await.
    pub fn cancel(&self, key: TaskKey) {
        let task = {
            let mut tasks = self.tasks.borrow_mut();
            match tasks.get(key.index as usize) {
                Some(task) if task.generation == key.generation => tasks.remove(key.index as usize),
                _ => return,
            }
        };
        self.drop_guarded(task);
    }

    /// Polls ready tasks until none is ready or `polls_max` polls were made. Returns whether some are still
    /// ready.
    pub fn run(&self, polls_max: usize) -> bool {
        for _ in 0..polls_max {
            let Some(key) = self.next_ready() else { return false };
            self.poll(key);
        }
        self.has_ready()
    }

    /// Whether a task waits to be polled.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        READY.with_borrow(|ready| ready.queues[self.queue].as_ref().is_some_and(|queue| !queue.is_empty()))
    }

    /// Tasks alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.borrow().len()
    }

    /// Whether no task is alive.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tasks that wait to be woken, each with the data of its wakers.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> Vec<(TaskKey, *const ())> {
        let tasks = self.tasks.borrow();
        let waiting =
            tasks.iter().map(|(_, task)| &task.wake).filter(|wake| !wake.queued.load(Ordering::Relaxed));
        waiting.map(|wake| (wake.key, Arc::as_ptr(wake).cast())).collect()
    }

    /// Panics caught so far.
    #[must_use]
    pub const fn panics(&self) -> u64 {
        self.panics.get()
    }

    /// Drops every task, those included that are spawned while dropping.
    pub fn clear(&self) {
        loop {
            let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
            if tasks.is_empty() {
                return;
            }
            for (_, task) in tasks {
                self.drop_guarded(task);
            }
        }
    }

    fn next_ready(&self) -> Option<TaskKey> {
        READY.with_borrow_mut(|ready| ready.queues[self.queue].as_mut().and_then(VecDeque::pop_front))
    }

    fn poll(&self, key: TaskKey) {
        let index = key.index as usize;
        let (mut future, wake) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(index).filter(|task| task.generation == key.generation) else {
                return;
            };
            let Some(future) = task.future.take() else { return };
            (future, Arc::clone(&task.wake))
        };
        wake.queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(wake);
        let polled =
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker))));
        let pending = match polled {
            Ok(Poll::Pending) => true,
            Ok(Poll::Ready(())) => false,
            Err(_) => {
                self.panics.set(self.panics.get() + 1);
                false
            }
        };
        let mut ended = Some(future);
        {
            let mut tasks = self.tasks.borrow_mut();
            // The task may have cancelled itself.
            if let Some(task) = tasks.get_mut(index).filter(|task| task.generation == key.generation) {
                if pending {
                    task.future = ended.take();
                } else {
                    tasks.remove(index);
                }
            }
        }
        self.drop_guarded(ended);
    }

    /// Drops a value that may be a session's or hold its values; a panic in a destructor is the session's
    /// too.
    fn drop_guarded<T>(&self, value: T) {
        if catch_unwind(AssertUnwindSafe(move || drop(value))).is_err() {
            self.panics.set(self.panics.get() + 1);
        }
    }
}

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.clear();
        let _ = READY.try_with(|ready| ready.borrow_mut().queues[self.queue] = None);
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("tasks", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
