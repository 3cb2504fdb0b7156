//! While memory is short: which streams are held, when they receive again, and which of them lets go of its
//! buffers or is reset, so that others get theirs through.

use std::rc::Rc;
use std::time::Duration;

use super::{Flow, RETRY, STARVED_MAX, token};
use crate::io::Chunk;
use crate::io::seam::{Op, Ring};
use crate::io::stream::{Inner, Phase, Receive, State, StreamError};
use crate::io::token::Kind;

/// A send that holds ring buffers this long while they are short is cancelled, and goes on from a copy.
const PIN_MAX: Duration = Duration::from_millis(50);
/// Budget that must be free beside the reserve before a throttled stream goes on.
const RESUME_ROOM: usize = 16 << 10;
/// Streams searched for buffers to copy out, per loop turn.
const RECLAIM_STREAMS: usize = 64;
/// Streams over a lowered limit that are looked at again per loop turn, once it has grown.
const RECHECK_STREAMS: usize = 64;

impl Flow {
    /// Forgets streams that are gone once they outnumber the others, so that queues stay bounded by the
    /// slots.
    fn purge(&mut self) {
        let shared = &self.shared;
        let bound = 2 * shared.slots.borrow().used + 64;
        for queue in [&mut self.starved, &mut self.throttled, &mut self.lowered] {
            if queue.len() > bound {
                queue.retain(|&(slot, generation)| shared.find(slot, generation).is_some());
            }
        }
        if self.unsure.len() > bound {
            self.unsure.retain(|&(slot, generation, _)| shared.find(slot, generation).is_some());
        }
    }

    /// Lets streams receive again whose bound was lifted.
    pub(super) fn resume(&mut self) {
        self.purge();
        let mut relieved = std::mem::take(&mut self.relieved);
        self.shared.pool.take_relieved(&mut relieved);
        for (slot, generation) in relieved.drain(..) {
            self.release_hold(slot, generation, |_| ());
        }
        self.relieved = relieved;
        let pool = Rc::clone(&self.shared.pool);
        // Each takes one buffer at least.
        let mut room = pool.free();
        while room > 0
            && let Some((slot, generation)) = self.starved.pop_front()
        {
            room -= usize::from(self.release_hold(slot, generation, |inner| inner.in_starved = false));
        }
        // Budget that sends and fragments freed is room as well.
        let budgeted = || pool.budget_used() + pool.budget_reserve() + RESUME_ROOM < pool.budget_max();
        for _ in 0..self.throttled.len() {
            if pool.is_pressed() && !budgeted() {
                break;
            }
            let Some((slot, generation)) = self.throttled.pop_front() else { break };
            self.release_hold(slot, generation, |inner| {
                (inner.in_throttled, inner.throttled) = (false, false)
            });
        }
        self.resume_parts();
        self.recheck_lowered();
    }

    /// Lets streams receive again that a higher limit covers. Memory is given back within loop turns only, so
    /// no timer is needed.
    fn recheck_lowered(&mut self) {
        let limit = self.receive_limit();
        if limit > std::mem::replace(&mut self.limit, limit) {
            self.recheck = self.lowered.len();
        }
        let count = self.recheck.min(RECHECK_STREAMS);
        self.recheck -= count;
        for _ in 0..count {
            let Some((slot, generation)) = self.lowered.pop_front() else { break };
            let Some(state) = self.shared.find(slot, generation) else { continue };
            let is_held = state.inner.borrow().receive == Receive::Held;
            if is_held && self.shared.pool.outstanding(state.account()) >= limit {
                self.lowered.push_back((slot, generation));
            } else {
                self.release_hold(slot, generation, |inner| inner.in_lowered = false);
            }
        }
    }

    fn release_hold(&self, slot: u32, generation: u32, note: impl FnOnce(&mut Inner)) -> bool {
        let Some(state) = self.shared.find(slot, generation) else { return false };
        let inner = &mut *state.inner.borrow_mut();
        note(inner);
        let held = inner.receive == Receive::Held;
        if held {
            inner.receive = Receive::Idle;
            state.mark(inner);
        }
        held
    }

    /// While buffers are short: copies queued loans out of the ring, and has sends to slow peers let go of
    /// theirs.
    pub(super) fn reclaim<R: Ring>(&mut self, ring: &mut R) {
        let shared = Rc::clone(&self.shared);
        let slots = shared.slots.borrow();
        let count = slots.entries.len();
        let mut promised = 0;
        for _ in 0..RECLAIM_STREAMS.min(count) {
            self.reclaim_at = (self.reclaim_at + 1) % count;
            let Some(state) = &slots.entries[self.reclaim_at].state else { continue };
            let inner = &mut *state.inner.borrow_mut();
            let opened = inner.secure.iter_mut().flat_map(|secure| secure.plain_mut());
            for chunk in inner.outbound.iter_mut().chain(inner.inbound.iter_mut()).chain(opened) {
                self.copy_out(chunk);
            }
            let stuck =
                inner.sending && inner.send_pins > 0 && shared.now.get().since(inner.send_started) > PIN_MAX;
            // What cannot all be copied would come back as another send that pins, and be cancelled again.
            let needed = promised + inner.send_pins as usize;
            let room =
                shared.pool.budget_used() + shared.pool.budget_reserve() + needed <= shared.pool.budget_max();
            if stuck && room && !inner.send_cancelled {
                promised = needed;
                inner.send_cancelled = true;
                inner.cancels += 1;
                self.sends_reclaimed += 1;
                ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Send) });
            }
        }
    }

    /// When buffers and budget are gone and stay gone, slow peers hold them all, and nobody else gets a byte
    /// through. Then the one goes that holds the most without having moved, one at a time, until somebody can
    /// receive again.
    pub(super) fn evict(&mut self) {
        let shared = Rc::clone(&self.shared);
        let now = shared.now.get();
        if self.starved.is_empty() || shared.pool.free() > 0 {
            self.evict_at = None;
            return;
        }
        if now < *self.evict_at.get_or_insert(now + STARVED_MAX) {
            return;
        }
        // What the one gives back may come with its last completions.
        self.evict_at = Some(now + RETRY);
        self.starved.retain(|&(slot, generation)| shared.find(slot, generation).is_some());
        let held = |state: &Rc<State>| {
            let inner = state.inner.borrow();
            let unsent_since = inner.progress.sent_at.max(inner.send_started);
            let unsent =
                if inner.sending && now.since(unsent_since) >= STARVED_MAX { inner.queued } else { 0 };
            let is_unread = now.since(inner.progress.received_at) >= STARVED_MAX;
            let unread = if is_unread { inner.inbound.bytes() } else { 0 };
            if matches!(inner.phase, Phase::Open | Phase::Closing) { unsent + unread } else { 0 }
        };
        let largest = {
            let slots = shared.slots.borrow();
            let streams = slots.entries.iter().filter_map(|entry| entry.state.as_ref());
            streams
                .map(|state| (held(state), state))
                .filter(|&(held, _)| held > 0)
                .max_by_key(|&(held, _)| held)
                .map(|(_, state)| Rc::clone(state))
        };
        if let Some(state) = largest.filter(|_| !self.starved.is_empty()) {
            self.reset_for_memory(&state, &mut state.inner.borrow_mut());
        }
    }

    pub(super) fn reset_for_memory(&mut self, state: &Rc<State>, inner: &mut Inner) {
        self.evicted += 1;
        inner.write_error.get_or_insert(StreamError::Evicted);
        inner.end = Some(Err(StreamError::Evicted));
        let parked = inner.parked;
        inner.end(true);
        state.mark(inner);
        if parked.is_some() {
            // Unlike the session's own abort this is news to it.
            inner.parked = parked;
            self.shared.push_parked(state);
        }
    }

    /// Has a chunk let go of its receive buffers if the budget has room: a loan becomes a copy.
    pub(super) fn copy_out(&mut self, chunk: &mut Chunk) {
        let pool = &self.shared.pool;
        let Some(loan) = chunk.loan() else { return chunk.settle(pool, pool.budget_reserve()) };
        if let Some(copy) = pool.copy(chunk, loan.account(), pool.budget_reserve()) {
            self.copied_bytes += copy.len() as u64;
            *chunk = copy;
        }
    }
}
