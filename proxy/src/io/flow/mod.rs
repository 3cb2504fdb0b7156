//! The engine's work for each stream: decides which operations it needs, and takes in their completions.
//! Receiving yields to three bounds: the stream's outstanding bytes, the buffers of the ring, and the budget
//! for copies.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::Chunk;
use super::buffers::BufferPool;
use super::seam::{Completion, Op, Ring};
use super::shared::Shared;
use super::stream::{Inner, List, Phase, StreamState};
use super::token::{Kind, Token};
use crate::time::Time;

mod close;
mod closings;
mod connect;
mod parts;
mod pressure;
mod receive;
mod send;

pub(super) use self::closings::ClosingPlace;
use self::closings::Closings;
use self::pressure::Pressure;

/// How often streams that wait for buffers or budget are looked at when nothing else happens.
const RETRY: Duration = Duration::from_millis(20);
/// When receives have found no buffer for this long, a stream is reset: of the streams that have not moved
/// for as long, the one that holds the most.
const STARVED_MAX: Duration = Duration::from_secs(1);

/// Streams and their operations.
pub(super) struct Flow {
    shared: Rc<Shared>,
    pressure: Pressure,
    closings: Closings,
    /// Streams to look at again and when, each once. A stream that is put back stands behind later ones,
    /// which costs it a second at most.
    unsure: VecDeque<(u32, u32, Time)>,
    dirty: Vec<Rc<StreamState>>,
    spare: Vec<Vec<Chunk>>,
    pub(super) counts: Counts,
}

/// See `Stats`, which has the same names.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) buffers_exhausted: u64,
    pub(super) copied_bytes: u64,
    pub(super) sends_reclaimed: u64,
    pub(super) evicted: u64,
    pub(super) closings_ended: u64,
}

impl Flow {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self {
            shared,
            pressure: Pressure::default(),
            closings: Closings::default(),
            unsure: VecDeque::new(),
            dirty: Vec::new(),
            spare: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Whether something is left to submit that no completion will announce.
    pub(super) fn has_work(&self) -> bool {
        self.shared.pool.has_relieved() || self.pressure.has_work()
    }

    /// When to look again although nothing happened.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let short = self.pressure.is_felt().then_some(RETRY);
        let look = self
            .unsure
            .front()
            .map(|&(_, _, at)| at.since(self.shared.now.get()).max(Duration::from_millis(1)));
        [short, look].into_iter().flatten().min()
    }

    /// Submits the operations that streams with news need.
    #[inline]
    pub(super) fn submit<R: Ring>(&mut self, ring: &mut R) {
        if self.shared.pool.is_pressed() {
            self.reclaim(ring);
        }
        self.resume();
        self.evict();
        self.look_again(ring);
        let mut dirty = std::mem::take(&mut self.dirty);
        std::mem::swap(&mut dirty, &mut *self.shared.dirty.borrow_mut());
        for state in dirty.drain(..) {
            let inner = &mut *state.inner.borrow_mut();
            inner.lists.leave(List::Dirty);
            self.drive(&state, inner, ring);
        }
        self.dirty = dirty;
    }

    /// Takes in the completion of one of the stream's operations.
    #[inline]
    pub(super) fn complete<R: Ring>(
        &mut self,
        state: &Rc<StreamState>,
        completion: Completion,
        ring: &mut R,
    ) {
        let inner = &mut *state.inner.borrow_mut();
        let goes_on = completion.token.kind() == Kind::Receive && completion.more;
        match completion.token.kind() {
            Kind::Receive => self.received(state, inner, completion),
            Kind::Send => {
                self.sent(state, inner, completion);
                self.end_sending(state, inner, ring);
            }
            Kind::Connect => self.connected(inner, completion.result, ring),
            Kind::Cancel => inner.cancels -= 1,
            Kind::Close => return self.release(state, inner),
            Kind::Accept | Kind::Watch | Kind::Discard => unreachable!("not a stream's"),
        }
        // While the receive goes on and nothing else changed there is nothing to decide.
        let is_settled = goes_on && inner.phase == Phase::Open && inner.receiving.class.is_settled();
        if !is_settled
            || inner.receiving.is_throttled
            || self.shared.pool.outstanding(state.account()) >= self.limit_of(inner)
        {
            state.mark(inner);
        }
    }

    /// Submits the operations that the stream's state asks for. Idempotent: called as often as anything may
    /// have changed.
    fn drive<R: Ring>(&mut self, state: &Rc<StreamState>, inner: &mut Inner, ring: &mut R) {
        match inner.phase {
            Phase::Connecting => self.start_connect(state, inner, ring),
            Phase::Open => {
                self.drive_send(state, inner, ring);
                self.drive_receive(state, inner, ring);
            }
            Phase::Closing => {
                self.drive_send(state, inner, ring);
                self.drive_close(state, inner, ring);
            }
            Phase::Ending { .. } | Phase::Closed => {}
        }
        if let Phase::Ending { reset } = inner.phase {
            self.drive_end(state, inner, ring, reset);
        }
    }
}

fn token(state: &StreamState, kind: Kind) -> Token {
    Token::new(kind, state.slot, state.generation)
}

/// Cancels the operation of this kind, which is in flight.
fn cancel<R: Ring>(state: &StreamState, inner: &mut Inner, kind: Kind, ring: &mut R) {
    inner.cancels += 1;
    ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, kind) });
}

/// Has a chunk let go of its receive buffers if the budget has room: a loan becomes a copy. Says how many
/// bytes were copied.
fn copy_out(chunk: &mut Chunk, pool: &Rc<BufferPool>) -> u64 {
    let Some(loan) = chunk.loan() else {
        chunk.settle(pool, pool.budget_reserve());
        return 0;
    };
    let Some(copy) = pool.copy(chunk, loan.account(), pool.budget_reserve()) else { return 0 };
    *chunk = copy;
    chunk.len() as u64
}
