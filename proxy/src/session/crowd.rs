//! Where a crowd of clients could take everything that one worker has: who waits, and who gives way to whom.
//! `io::places` decides it, by source. This file applies the decisions to sessions.
//!
//! ```text
//! kind         counts                          bound                    gives way
//! ------------ ------------------------------- ------------------------ ------------------------------
//! handshakes   TLS handshakes of one listener, max_handshakes           to one that waits for a place:
//!              from the whole hello on                                  clients that owe us an answer
//! beginnings   bytes of hellos, request heads  a quarter of             at once: any of them
//!              and PROXY headers not whole yet buffer_budget
//! connections  connections of the worker       its max_connections      at once: idle connections, those
//!                                                                       without a whole beginning, and
//!                                                                       those of slow clients
//! ```
//!
//! Closed streams have such a bound too, in the engine (`io/flow/closings.rs`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::context::Worker;
use super::seat::Seat;
use super::table::SessionKey;
use crate::counters::{Counter, Plain};
use crate::error::Crowded;
use crate::io::places::{Decision, PlaceKey, Places, Source};
use crate::io::stream::Tag;
use crate::io::{Chunk, Io, Stream, StreamError, TimerKey, WaitingTask, tags};
use crate::listen::ListenerId;
use crate::time::Time;

/// Beginnings may hold this much, however small the budget is.
const BEGINNINGS_BYTES_MIN: usize = 4 << 20;
/// A beginning counts for this much more than its bytes: its session has a future.
const BEGINNING_BYTES: u64 = 512;
/// How long nothing more is said about a kind of crowd.
const SILENCE: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub struct Crowd {
    handshakes: RefCell<BTreeMap<ListenerId, Handshaking>>,
    beginnings: RefCell<Places<Stream>>,
    /// Fires when a handshake has to give way.
    timer: Cell<Option<(TimerKey, Time)>>,
}

/// When a worker last spoke of each kind of crowd, in nanoseconds; 0: never. One says it for all.
static SAID: [AtomicU64; Crowded::ALL.len()] = [const { AtomicU64::new(0) }; Crowded::ALL.len()];

/// The handshakes of one listener.
#[derive(Debug)]
struct Handshaking {
    places: Places<Rc<Shaking>>,
    max: u64,
}

/// One handshake.
#[derive(Debug)]
struct Shaking {
    stream: Stream,
    has_place: Cell<bool>,
    waiting: RefCell<WaitingTask>,
}

impl Crowd {
    /// Handshakes with clients that have a place.
    #[cfg(test)]
    pub(crate) fn handshakes(&self) -> u64 {
        self.handshakes.borrow().values().map(|listener| listener.places.used()).sum()
    }

    /// Handshakes with clients that wait for a place.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.handshakes.borrow().values().map(|listener| listener.places.waiting()).sum()
    }

    /// Whether nothing is counted any more, and no listener has more handshakes than it may.
    #[cfg(test)]
    pub(crate) fn check(&self) -> bool {
        let (handshakes, beginnings) = (self.handshakes.borrow(), self.beginnings.borrow());
        for listener in handshakes.values() {
            assert!(listener.places.used() <= listener.max, "more handshakes than may be under way");
            assert!(!listener.places.is_empty(), "a listener without handshakes is kept");
        }
        handshakes.is_empty() && beginnings.is_empty() && beginnings.used() == 0
    }

    /// Counts that a connection gave way, and says so in the log, once for many.
    pub fn note(&self, worker: &Worker, kind: Crowded, count: u64) {
        worker.counters.add(Counter::GaveWay(kind), count);
        Self::say(worker.io.now(), kind, None);
    }

    pub(super) fn gave_way(&self, worker: &Worker, kind: Crowded, source: Source) {
        worker.counters.increment(Counter::GaveWay(kind));
        Self::say(worker.io.now(), kind, Some(source));
    }

    fn say(now: Time, kind: Crowded, source: Option<Source>) {
        let (cell, now) = (&SAID[kind.index()], now.as_nanos());
        let last = cell.load(Ordering::Relaxed);
        let is_due = last == 0 || now.saturating_sub(last) >= SILENCE.as_nanos() as u64;
        if is_due && cell.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let source = source.map_or_else(String::new, |source| source.to_string());
            tracing::warn!(kind = kind.label(), most = %source, "crowded: connections give way to those \
                of clients that have fewer; sluice_connections_gave_way_total counts them");
        }
    }

    /// A handshake of this listener joined, left or changed: grants places, and has others give way.
    fn settle(&self, worker: &Worker, id: ListenerId) {
        // Runs in drops, also while a panic unwinds: what is borrowed then must not panic again.
        let Ok(mut listeners) = self.handshakes.try_borrow_mut() else { return };
        let Some(Handshaking { places, max }) = listeners.get_mut(&id) else { return };
        let now = worker.io.now();
        while let Some(decision) = places.poll(*max, now) {
            match decision {
                Decision::Take(shaking) => {
                    shaking.has_place.set(true);
                    shaking.waiting.borrow_mut().wake();
                }
                // Its answer is here, and it was this worker that did not come to it.
                Decision::GiveWay { key, owner, .. } if owner.stream.is_readable() => places.spare(key, now),
                Decision::GiveWay { owner, source, .. } => {
                    owner.stream.give_way();
                    self.gave_way(worker, Crowded::Handshakes, source);
                }
            }
        }
        if places.is_empty() {
            listeners.remove(&id);
        } else if let Some(due) = places.gives_way_at(*max) {
            self.arm(&worker.io, due);
        }
    }

    fn arm(&self, io: &Io, due: Time) {
        match self.timer.get() {
            Some((_, at)) if at <= due => return,
            Some((timer, _)) => io.cancel_timer(timer),
            None => {}
        }
        self.timer.set(Some((io.timer_at(due, Tag { kind: tags::CROWD, key: 0 }), due)));
    }
}

/// Handles the timer: handshakes whose clients were silent for too long give way.
pub fn timed_out(worker: &Worker) {
    worker.crowd.timer.set(None);
    let ids: Vec<_> = worker.crowd.handshakes.borrow().keys().copied().collect();
    for id in ids {
        worker.crowd.settle(worker, id);
    }
}

/// A handshake's place among those of its listener, or in the queue for one. Dropping it gives it up.
#[derive(Debug)]
pub(super) struct HandshakePlace {
    worker: Rc<Worker>,
    listener: ListenerId,
    key: PlaceKey,
    shaking: Rc<Shaking>,
}

impl HandshakePlace {
    /// Asks for one of `max` places.
    pub(super) fn ask(seat: &Seat, max: usize) -> Self {
        let worker = Rc::clone(&seat.worker);
        let shaking = Rc::new(Shaking {
            stream: seat.stream.clone(),
            has_place: Cell::new(false),
            waiting: RefCell::default(),
        });
        let key = {
            let mut listeners = worker.crowd.handshakes.borrow_mut();
            let entry = listeners.entry(seat.listener_id);
            let handshaking = entry.or_insert_with(|| Handshaking { places: Places::default(), max: 0 });
            handshaking.max = max as u64;
            handshaking.places.wait(seat.client().ip().into(), Rc::clone(&shaking))
        };
        let place = Self { worker, listener: seat.listener_id, key, shaking };
        place.worker.crowd.settle(&place.worker, place.listener);
        if !place.has_place() {
            place.worker.counters.increment(Plain::HandshakesWaited);
        }
        place
    }

    /// Whether it is a place; it may wait for one still.
    pub(super) fn has_place(&self) -> bool {
        self.shaking.has_place.get()
    }

    /// Waits for a place, or for the end of the client.
    pub(super) async fn taken(&self) -> Result<(), Option<StreamError>> {
        let stream = &self.shaking.stream;
        poll_fn(|cx| {
            if let Some(error) = stream.error() {
                return Poll::Ready(Err(Some(error)));
            }
            // Its FIN comes before any Finished of its could.
            if stream.is_ended() || stream.poll_broken(cx).is_ready() {
                return Poll::Ready(Err(stream.error()));
            }
            if self.has_place() {
                return Poll::Ready(Ok(()));
            }
            self.shaking.waiting.borrow_mut().register(cx);
            Poll::Pending
        })
        .await
    }

    /// The client's answer is due, since `answered`.
    pub(super) fn rest(&self, answered: Time) {
        self.change(|places, key| places.rest(key, answered));
    }

    /// The client has answered.
    pub(super) fn work(&self) {
        self.change(Places::work);
    }

    fn change(&self, change: impl FnOnce(&mut Places<Rc<Shaking>>, PlaceKey)) {
        let crowd = &self.worker.crowd;
        if let Ok(mut listeners) = crowd.handshakes.try_borrow_mut()
            && let Some(handshaking) = listeners.get_mut(&self.listener)
        {
            change(&mut handshaking.places, self.key);
        }
        crowd.settle(&self.worker, self.listener);
    }
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.change(Places::leave);
    }
}

/// The beginning of a hello, a request head or a PROXY header, as far as it is here: none of it, mostly, and
/// then it costs nothing. If there are too many, one gives way; the stream of its session tells it.
#[derive(Debug, Default)]
pub(super) struct Beginning {
    bytes: Vec<u8>,
    /// Boxed: most have none.
    share: Option<Box<Share>>,
}

impl Beginning {
    /// What there is of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps more of it.
    pub(super) fn keep(&mut self, seat: &Seat, bytes: &[u8]) {
        let more = match self.share {
            Some(_) => 0,
            None => BEGINNING_BYTES,
        };
        let share = self.share.get_or_insert_with(|| Box::new(Share::new(seat)));
        share.grow(more + bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes its bytes out. They count until `self` is dropped.
    pub(super) fn take(&mut self) -> Chunk {
        Chunk::from_vec(std::mem::take(&mut self.bytes))
    }

    /// It is whole: it counts on, and the client is not waited for any more.
    pub(super) fn complete(&self) {
        if let Some(share) = &self.share {
            share.worker.crowd.beginnings.borrow_mut().work(share.key);
            share.mark(false);
        }
    }
}

/// The part of all beginnings that belongs to one of them.
#[derive(Debug)]
struct Share {
    worker: Rc<Worker>,
    session: SessionKey,
    key: PlaceKey,
    stream: Stream,
}

impl Share {
    fn new(seat: &Seat) -> Self {
        let (worker, stream) = (Rc::clone(&seat.worker), seat.stream.clone());
        let key = {
            let mut beginnings = worker.crowd.beginnings.borrow_mut();
            let key = beginnings.hold(seat.client().ip().into(), 0, stream.clone());
            beginnings.rest(key, worker.io.now());
            key
        };
        let share = Self { worker, session: seat.key(), key, stream };
        share.mark(true);
        share
    }

    fn grow(&self, more: u64) {
        let worker = &self.worker;
        let max = (worker.io.budget_max() / 4).max(BEGINNINGS_BYTES_MIN) as u64;
        let mut beginnings = worker.crowd.beginnings.borrow_mut();
        beginnings.grow(self.key, more);
        while let Some(decision) = beginnings.relieve(max) {
            if let Decision::GiveWay { owner, source, .. } = decision {
                owner.give_way();
                worker.crowd.gave_way(worker, Crowded::Beginnings, source);
            }
        }
        if beginnings.used() > max {
            // Endpoints are waited for, not clients.
            self.stream.give_way();
            worker.crowd.note(worker, Crowded::Beginnings, 1);
        }
    }

    /// Notes in its row whether the client has begun something that is not whole.
    fn mark(&self, begins: bool) {
        if let Ok(mut table) = self.worker.sessions.table.try_borrow_mut()
            && let Some(row) = table.row(self.session)
        {
            row.begins = begins;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Ok(mut beginnings) = self.worker.crowd.beginnings.try_borrow_mut() {
            beginnings.leave(self.key);
        }
        self.mark(false);
    }
}
