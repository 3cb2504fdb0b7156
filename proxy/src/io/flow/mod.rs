//! What the engine does for each stream: decides which operations it needs, and takes in their completions.
//! Receiving yields to three bounds: what the stream may have outstanding, the buffers of the ring, and the
//! budget for copies.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::Chunk;
use super::handle::Shared;
use super::seam::{Completion, Ring};
use super::stream::{Fin, Inner, Phase, State, StreamError};
use super::token::{Kind, Token};
use crate::time::Time;

mod close;
mod connect;
mod parts;
mod pressure;
mod receive;
mod send;

/// How often streams that wait for buffers or budget are looked at when nothing else happens.
const RETRY: Duration = Duration::from_millis(20);
/// How long receives find no buffer before the stream is reset that holds the most, and how long that one has
/// not moved.
const STARVED_MAX: Duration = Duration::from_secs(1);

/// Streams and their operations.
pub(super) struct Flow {
    shared: Rc<Shared>,
    /// Streams whose receive found no buffer (slot, generation), first come first served.
    starved: VecDeque<(u32, u32)>,
    /// When the next stream is reset, if some starve and no buffer comes free before.
    evict_at: Option<Time>,
    /// Streams that hold much while neither ring nor budget has room.
    throttled: VecDeque<(u32, u32)>,
    /// Streams held by a limit that was lowered. They may keep what they have until more comes, so a higher
    /// limit must reach them too.
    lowered: VecDeque<(u32, u32)>,
    parts: parts::Parts,
    /// The limit when `resume` last looked, and how many of `lowered` it has to look at since it grew.
    limit: usize,
    recheck: usize,
    /// Streams to look at again and when, each once. One that is put back stands behind later ones, which
    /// costs it a second at most.
    unsure: VecDeque<(u32, u32, Time)>,
    /// Where the last search for buffers stopped.
    reclaim_at: usize,
    relieved: Vec<(u32, u32)>,
    dirty: Vec<Rc<State>>,
    spare: Vec<Vec<Chunk>>,
    pub(super) buffers_exhausted: u64,
    pub(super) copied_bytes: u64,
    pub(super) sends_reclaimed: u64,
    pub(super) evicted: u64,
}

impl Flow {
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        Self {
            shared,
            starved: VecDeque::new(),
            evict_at: None,
            throttled: VecDeque::new(),
            lowered: VecDeque::new(),
            parts: VecDeque::new(),
            limit: 0,
            recheck: 0,
            unsure: VecDeque::new(),
            reclaim_at: 0,
            relieved: Vec::new(),
            dirty: Vec::new(),
            spare: Vec::new(),
            buffers_exhausted: 0,
            copied_bytes: 0,
            sends_reclaimed: 0,
            evicted: 0,
        }
    }

    /// Whether something is left to submit that no completion will announce.
    pub(super) fn has_work(&self) -> bool {
        self.shared.pool.has_relieved() || self.recheck > 0
    }

    /// When to look again although nothing happened.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let short = (!self.starved.is_empty() || !self.throttled.is_empty() || !self.parts.is_empty())
            .then_some(RETRY);
        let look = self
            .unsure
            .front()
            .map(|&(_, _, at)| at.since(self.shared.now.get()).max(Duration::from_millis(1)));
        [short, look].into_iter().flatten().min()
    }

    /// Submits what every stream with news needs.
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
            inner.dirty = false;
            self.drive(&state, inner, ring);
        }
        self.dirty = dirty;
    }

    /// Takes in the completion of one of the stream's operations.
    pub(super) fn complete<R: Ring>(&mut self, state: &Rc<State>, completion: Completion, ring: &mut R) {
        let inner = &mut *state.inner.borrow_mut();
        let goes_on = completion.token.kind() == Kind::Receive && completion.more;
        match completion.token.kind() {
            Kind::Receive => self.received(state, inner, completion),
            Kind::Send => self.sent(state, inner, completion),
            Kind::Connect => self.connected(inner, completion.result, ring),
            Kind::Shutdown => {
                inner.fin = Fin::Sent;
                if completion.result < 0 && inner.write_error.is_none() {
                    inner.write_error = Some(StreamError::from_errno(-completion.result));
                }
            }
            Kind::Cancel => inner.cancels -= 1,
            Kind::Close => return self.release(state, inner),
            Kind::Accept | Kind::Watch | Kind::Discard => unreachable!("not a stream's"),
        }
        // While the receive goes on and nothing else changed there is nothing to decide.
        let settled = goes_on && inner.phase == Phase::Open && inner.armed == inner.class;
        if !settled
            || inner.throttled
            || self.shared.pool.outstanding(state.account()) >= self.limit_of(inner)
        {
            state.mark(inner);
        }
    }

    /// Submits what the stream's state asks for. Idempotent: called as often as anything may have changed.
    fn drive<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
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

fn token(state: &State, kind: Kind) -> Token {
    Token::new(kind, state.slot, state.generation)
}
