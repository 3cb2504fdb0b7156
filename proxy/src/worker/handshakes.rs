//! TLS handshakes under way on one worker: how many, and how much of a loop turn they may take. A handshake costs as much as dozens of
//! requests, and whoever asks for many must not make those wait that have theirs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// What handshakes may take of one loop turn, beyond which no further step begins: less than a step that signs, so that one of those is all.
/// With 200 µs, two or three of them, the p99 of established sessions beside a storm was 684 µs, with this 401, and a handshake cost the same.
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

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::task::Context;

    use super::*;

    /// A step that spends a turn.
    fn long() {
        let begun = Instant::now();
        while begun.elapsed() < TURN_TIME {
            std::hint::spin_loop();
        }
    }

    fn is_done(step: Pin<&mut impl Future<Output = ()>>) -> bool {
        step.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn a_turn_has_time_for_one_long_step_and_who_came_first_goes_on_first() {
        let handshakes = Rc::new(Handshakes::default());
        let places: Vec<_> = (0..4).map(|_| handshakes.begin(4).expect("room")).collect();
        let [a, b, c, d] = &places[..] else { unreachable!() };
        let (mut a, mut b, mut d) = (pin!(a.step(long)), pin!(b.step(long)), pin!(d.step(|| ())));
        let mut c = Box::pin(c.step(long));
        assert!(is_done(a.as_mut()));
        assert!(!is_done(b.as_mut()) && !is_done(c.as_mut()) && !is_done(d.as_mut()));
        handshakes.begin_turn();
        assert!(!is_done(c.as_mut()), "it is not its turn");
        assert!(is_done(b.as_mut()));
        assert!(!is_done(c.as_mut()) && !is_done(d.as_mut()), "the turn is spent");
        // Who gives up leaves its turn to the next.
        drop(c);
        handshakes.begin_turn();
        assert!(is_done(d.as_mut()));
    }

    #[test]
    fn no_more_are_under_way_than_may_be() {
        let handshakes = Rc::new(Handshakes::default());
        let one = handshakes.begin(2).expect("room");
        let _other = handshakes.begin(2).expect("room");
        assert!(handshakes.begin(2).is_none());
        drop(one);
        assert_eq!(handshakes.open(), 1);
        assert!(handshakes.begin(2).is_some());
    }

    #[test]
    fn short_steps_share_a_turn() {
        let handshakes = Rc::new(Handshakes::default());
        let places: Vec<_> = (0..3).map(|_| handshakes.begin(4).expect("room")).collect();
        let (mut a, mut b, mut c) = (pin!(places[0].step(long)), pin!(places[1].step(|| ())), pin!(places[2].step(|| ())));
        assert!(is_done(a.as_mut()) && !is_done(b.as_mut()) && !is_done(c.as_mut()));
        handshakes.begin_turn();
        assert!(is_done(b.as_mut()) && is_done(c.as_mut()), "the first calls the next");
    }
}
