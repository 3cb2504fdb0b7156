//! How much of a loop turn the TLS handshakes of one worker may take. A handshake costs as much as dozens of
//! requests. A peer that asks for many must not make peers wait whose handshake is done.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

/// Time handshakes may take of one loop turn; after it no further step begins. It is less than a step that
/// signs takes, so a turn has one of those at most. With 200 µs, two or three signing steps, the p99 of
/// established sessions beside a storm was 684 µs. With 40 µs it was 401 µs, and a handshake cost the same.
const TURN_TIME: Duration = Duration::from_micros(40);

/// Whom a handshake is with. While both kinds wait they take turns, step by step. An exchange that needs a
/// connection to its endpoint does not queue behind thousands of new clients. Nor does a new client queue
/// behind as many such exchanges.
#[derive(Clone, Copy, Debug)]
pub enum With {
    /// A client that connected to us.
    Client,
    /// An endpoint that we connected to.
    Endpoint,
}

impl With {
    const fn other(self) -> Self {
        match self {
            Self::Client => Self::Endpoint,
            Self::Endpoint => Self::Client,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Handshakes {
    /// Spent in this turn.
    spent: Cell<Duration>,
    waiting: RefCell<Waiting>,
    /// The time that every step is held to take, where time is simulated.
    #[cfg(test)]
    pub(crate) step_time: Cell<Option<Duration>>,
}

/// Handshakes whose next step waits for a later turn, each kind in its order.
#[derive(Debug)]
struct Waiting {
    clients: VecDeque<Rc<Place>>,
    endpoints: VecDeque<Rc<Place>>,
    /// Whose turn it is when both wait.
    next: With,
}

impl Waiting {
    fn queue(&mut self, with: With) -> &mut VecDeque<Rc<Place>> {
        match with {
            With::Client => &mut self.clients,
            With::Endpoint => &mut self.endpoints,
        }
    }

    fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.endpoints.is_empty()
    }

    /// Takes the first off a queue and tells it; `false`: it has nobody to tell.
    fn call(&mut self, with: With) -> bool {
        // A handshake that was dropped has nobody to wake.
        while let Some(place) = self.queue(with).pop_front() {
            place.is_called.set(true);
            if let Some(waker) = place.waker.borrow_mut().take() {
                waker.wake();
                self.next = with.other();
                return true;
            }
        }
        false
    }
}

#[derive(Debug)]
struct Place {
    waker: RefCell<Option<Waker>>,
    is_called: Cell<bool>,
}

impl Default for Handshakes {
    fn default() -> Self {
        let waiting = Waiting { clients: VecDeque::new(), endpoints: VecDeque::new(), next: With::Endpoint };
        Self {
            spent: Cell::default(),
            waiting: RefCell::new(waiting),
            #[cfg(test)]
            step_time: Cell::new(None),
        }
    }
}

impl Handshakes {
    /// A new loop turn is about to begin: the handshakes that waited longest go on in it.
    pub fn begin_turn(&self) {
        self.spent.set(Duration::ZERO);
        self.call_next();
    }

    fn took(&self, begun: Instant) -> Duration {
        #[cfg(test)]
        if let Some(time) = self.step_time.get() {
            return time;
        }
        begun.elapsed()
    }

    fn call_next(&self) {
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.next;
        let _ = waiting.call(next) || waiting.call(next.other());
    }

    /// Runs one step, when a loop turn has time for it.
    pub async fn step<T>(&self, with: With, step: impl FnOnce() -> T) -> T {
        let is_free = self.spent.get() < TURN_TIME && self.waiting.borrow().is_empty();
        if !is_free {
            let place = Rc::new(Place { waker: RefCell::new(None), is_called: Cell::new(false) });
            self.waiting.borrow_mut().queue(with).push_back(Rc::clone(&place));
            // A handshake that gives up leaves no waker, so that its turn goes to the next.
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
        self.spent.set(self.spent.get() + self.took(begun));
        if self.spent.get() < TURN_TIME {
            self.call_next();
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
mod tests;
