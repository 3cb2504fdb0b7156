//! A signal that is given once and that many may wait for, such as the stop of an exchange or the beginning
//! of a drain.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use crate::io::WaitingTask;

/// See the module. Cheap to clone: all clones are the same signal.
#[derive(Clone, Debug, Default)]
pub struct Signal(Rc<State>);

#[derive(Debug, Default)]
struct State {
    given: Cell<bool>,
    /// `first` belongs to a waiter.
    first_waits: Cell<bool>,
    /// An HTTP/1 session has one waiter at a time, which takes no memory beside the signal's own.
    first: RefCell<WaitingTask>,
    others: RefCell<Slab<WaitingTask>>,
}

/// The place of a waiter.
#[derive(Clone, Copy, Debug)]
enum Place {
    First,
    Other(usize),
}

impl Signal {
    /// Gives the signal and wakes all waiters.
    pub fn give(&self) {
        self.0.given.set(true);
        let first = self.0.first.borrow_mut().take();
        let others: Vec<Waker> =
            self.0.others.borrow_mut().iter_mut().filter_map(|(_, waiting)| waiting.take()).collect();
        first.into_iter().chain(others).for_each(Waker::wake);
    }

    /// Whether it was given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.0.given.get()
    }

    /// A new waiter for this signal, until it is dropped.
    #[inline]
    #[must_use]
    pub fn waiter(&self) -> Waiter {
        let place = if self.0.first_waits.replace(true) {
            Place::Other(self.0.others.borrow_mut().insert(WaitingTask::default()))
        } else {
            Place::First
        };
        Waiter { signal: self.clone(), place }
    }
}

/// Waits for a signal. Dropping it forgets its waker.
#[derive(Debug)]
pub struct Waiter {
    signal: Signal,
    place: Place,
}

impl Waiter {
    /// Ready once the signal was given.
    #[inline]
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.signal.is_given() {
            return Poll::Ready(());
        }
        match self.place {
            Place::First => self.signal.0.first.borrow_mut().register(cx),
            Place::Other(at) => {
                if let Some(waiting) = self.signal.0.others.borrow_mut().get_mut(at) {
                    waiting.register(cx);
                }
            }
        }
        Poll::Pending
    }
}

impl Drop for Waiter {
    #[inline]
    fn drop(&mut self) {
        // Also while a panic unwinds: a list that is borrowed then must not panic again.
        match self.place {
            Place::First => {
                drop(self.signal.0.first.try_borrow_mut().map(|mut waiting| waiting.take()));
                self.signal.0.first_waits.set(false);
            }
            Place::Other(at) => {
                drop(self.signal.0.others.try_borrow_mut().map(|mut others| others.try_remove(at)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn all_who_wait_hear_it_and_nobody_else() {
        let signal = Signal::default();
        let woken: Vec<Arc<Woken>> = (0..4).map(|_| Arc::default()).collect();
        let mut waiters: Vec<_> = woken.iter().map(|_| signal.waiter()).collect();
        for (waiter, woken) in waiters.iter().zip(&woken) {
            // Twice: a waiter keeps one waker.
            for _ in 0..2 {
                assert!(waiter.poll(&Context::from_waker(&Arc::clone(woken).into())).is_pending());
            }
        }
        drop(waiters.remove(2));
        drop(waiters.remove(0));
        signal.clone().give();
        let counts: Vec<_> = woken.iter().map(|woken| woken.0.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [0, 1, 0, 1]);
        assert!(waiters.iter().all(|waiter| waiter.poll(&Context::from_waker(Waker::noop())).is_ready()));
        assert!(signal.waiter().poll(&Context::from_waker(Waker::noop())).is_ready(), "late, but given");
    }

    #[test]
    fn waiters_that_come_and_go_leave_nothing_behind() {
        let signal = Signal::default();
        let staying = signal.waiter();
        for _ in 0..1000 {
            let passing = signal.waiter();
            assert!(passing.poll(&Context::from_waker(Waker::noop())).is_pending());
        }
        drop(staying);
        let others = signal.0.others.borrow();
        assert!(!signal.0.first_waits.get() && others.is_empty() && others.capacity() <= 4);
    }
}
