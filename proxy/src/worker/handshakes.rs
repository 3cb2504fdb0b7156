//! TLS handshakes under way on one worker: how many, and how much of a loop turn they may take. A handshake costs as much as dozens of
//! requests, and whoever asks for many must not make those wait that have theirs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// What handshakes may take of one loop turn, beyond which no further step begins. A step that signs takes some 80 µs with ECDSA and a
/// millisecond with RSA, so one of those is all; the others are shorter. A turn costs about a microsecond: there is nothing to gain from more.
const TURN_TIME: Duration = Duration::from_micros(40);

/// See the module.
#[derive(Debug, Default)]
pub struct Handshakes {
    open: Cell<usize>,
    /// Spent in this turn.
    spent: Cell<Duration>,
    /// Whose next step waits for a later turn, in order.
    waiting: RefCell<VecDeque<Rc<Place>>>,
}

#[derive(Debug)]
struct Place {
    waker: RefCell<Option<Waker>>,
    is_called: Cell<bool>,
}

/// One handshake's place among them.
#[derive(Debug)]
pub struct Underway(Rc<Handshakes>);

impl Drop for Underway {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl Handshakes {
    /// Begins one; `None`: `max` are under way.
    #[must_use]
    pub fn begin(self: &Rc<Self>, max: usize) -> Option<Underway> {
        if self.open.get() >= max {
            return None;
        }
        self.open.set(self.open.get() + 1);
        Some(Underway(Rc::clone(self)))
    }

    /// Under way now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.get()
    }

    /// A new loop turn is about to begin: those who waited longest go on in it.
    pub fn begin_turn(&self) {
        self.spent.set(Duration::ZERO);
        self.call_next();
    }

    fn call_next(&self) {
        let mut waiting = self.waiting.borrow_mut();
        // One that was dropped has nobody to wake.
        while let Some(place) = waiting.pop_front() {
            place.is_called.set(true);
            if let Some(waker) = place.waker.borrow_mut().take() {
                waker.wake();
                return;
            }
        }
    }
}

impl Underway {
    /// Runs one step, when a loop turn has time for it.
    pub async fn step<T>(&self, step: impl FnOnce() -> T) -> T {
        let handshakes = &*self.0;
        let is_free = handshakes.spent.get() < TURN_TIME && handshakes.waiting.borrow().is_empty();
        if !is_free {
            let place = Rc::new(Place { waker: RefCell::new(None), is_called: Cell::new(false) });
            handshakes.waiting.borrow_mut().push_back(Rc::clone(&place));
            // Whoever gives up leaves no waker, so that its turn goes to the next.
            let _left = Left(&place);
            poll_fn(|cx| {
                if place.is_called.get() {
                    return Poll::Ready(());
                }
                *place.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
        }
        let begun = Instant::now();
        let result = step();
        handshakes.spent.set(handshakes.spent.get() + begun.elapsed());
        if handshakes.spent.get() < TURN_TIME {
            handshakes.call_next();
        }
        result
    }
}

struct Left<'a>(&'a Place);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        self.0.waker.borrow_mut().take();
    }
}
