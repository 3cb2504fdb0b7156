//! While memory is short: which streams are held, when they receive again, and which of them lets go of its
//! buffers or is reset, so that others get theirs through.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::{Flow, RETRY, STARVED_MAX, cancel, copy_out};
use crate::io::seam::Ring;
use crate::io::shared::Shared;
use crate::io::stream::{Inner, List, Phase, ReceiveOp, StreamError, StreamState};
use crate::io::token::Kind;
use crate::time::Time;

/// A send that holds ring buffers this long while they are short is cancelled, and goes on from a copy.
const PIN_MAX: Duration = Duration::from_millis(50);
/// Budget that must be free beside the reserve before a throttled stream goes on.
const RESUME_ROOM: usize = 16 << 10;
/// Streams searched for buffers to copy out, per loop turn.
const RECLAIM_STREAMS: usize = 64;
/// Streams over a lowered limit that are looked at again per loop turn, once it has grown.
const RECHECK_STREAMS: usize = 64;

/// Streams that do not receive for want of memory, by slot and generation, each once in a list. First come,
/// first served.
#[derive(Default)]
pub(super) struct Pressure {
    /// Their receive found no buffer.
    starved: VecDeque<(u32, u32)>,
    /// When the next stream is reset, if some starve and no buffer comes free before.
    evict_at: Option<Time>,
    /// They hold much while neither the ring nor the budget has room.
    throttled: VecDeque<(u32, u32)>,
    /// They are held by a limit that was lowered. They may keep their bytes until more comes, so a higher
    /// limit must reach them too.
    lowered: VecDeque<(u32, u32)>,
    /// The limit when `resume` last looked, and how many of `lowered` it has to look at since it grew.
    limit: usize,
    recheck: usize,
    /// They hold part of a record and found no budget to copy it; each with the time when it is reset.
    pub(super) parts: VecDeque<(u32, u32, Time)>,
    /// Where the last search for buffers stopped.
    reclaim_at: usize,
    /// Kept empty between turns.
    relieved: Vec<(u32, u32)>,
}

impl Pressure {
    /// Whether streams are left to look at in the next turn.
    pub(super) const fn has_work(&self) -> bool {
        self.recheck > 0
    }

    /// Whether streams wait for memory that may come free without a word.
    pub(super) fn is_felt(&self) -> bool {
        !self.starved.is_empty() || !self.throttled.is_empty() || !self.parts.is_empty()
    }

    /// Holds a stream until there is a buffer.
    pub(super) fn starve(&mut self, state: &StreamState, inner: &mut Inner) {
        inner.receiving.operation = ReceiveOp::Held;
        if inner.lists.enter(List::Starved) {
            self.starved.push_back((state.slot, state.generation));
        }
    }

    /// Holds a stream until the ring or the budget has room.
    pub(super) fn throttle(&mut self, state: &StreamState, inner: &mut Inner) {
        inner.receiving.operation = ReceiveOp::Held;
        if inner.lists.enter(List::Throttled) {
            self.throttled.push_back((state.slot, state.generation));
        }
    }

    /// Holds a stream that has as much as `limit`, which may have been lowered, allows.
    pub(super) fn limit(&mut self, state: &StreamState, inner: &mut Inner, limit: usize, is_lowered: bool) {
        inner.receiving.operation = ReceiveOp::Held;
        // `resume` may have seen a higher limit in this turn already.
        self.limit = self.limit.min(limit);
        if is_lowered && inner.lists.enter(List::Lowered) {
            self.lowered.push_back((state.slot, state.generation));
        }
    }

    /// Holds a stream until the part of a record that it has can be copied; at `until` it is reset.
    pub(super) fn hold_part(&mut self, state: &StreamState, inner: &mut Inner, until: Time) {
        inner.receiving.operation = ReceiveOp::Held;
        if inner.lists.enter(List::Parts) {
            self.parts.push_back((state.slot, state.generation, until));
        }
    }

    /// Forgets streams that are gone once they outnumber the others, so that the lists stay bounded by the
    /// slots.
    fn purge(&mut self, shared: &Shared, bound: usize) {
        for list in [&mut self.starved, &mut self.throttled, &mut self.lowered] {
            if list.len() > bound {
                list.retain(|&(slot, generation)| shared.find(slot, generation).is_some());
            }
        }
    }
}

impl Flow {
    /// Lets streams receive again whose bound was lifted.
    pub(super) fn resume(&mut self) {
        self.purge();
        let mut relieved = std::mem::take(&mut self.pressure.relieved);
        self.shared.pool.take_relieved(&mut relieved);
        for (slot, generation) in relieved.drain(..) {
            self.release_hold(slot, generation, |_| ());
        }
        self.pressure.relieved = relieved;
        let pool = Rc::clone(&self.shared.pool);
        // Each takes one buffer at least.
        let mut room = pool.free();
        while room > 0
            && let Some((slot, generation)) = self.pressure.starved.pop_front()
        {
            let is_released = self.release_hold(slot, generation, |inner| inner.lists.leave(List::Starved));
            room -= usize::from(is_released);
        }
        // Budget that sends and fragments freed is room as well.
        let has_budget = || pool.budget_used() + pool.budget_reserve() + RESUME_ROOM < pool.budget_max();
        for _ in 0..self.pressure.throttled.len() {
            if pool.is_pressed() && !has_budget() {
                break;
            }
            let Some((slot, generation)) = self.pressure.throttled.pop_front() else { break };
            self.release_hold(slot, generation, |inner| {
                inner.lists.leave(List::Throttled);
                inner.receiving.is_throttled = false;
            });
        }
        self.resume_parts();
        self.recheck_lowered();
    }

    fn purge(&mut self) {
        let shared = &self.shared;
        let bound = 2 * shared.slots.borrow().used + 64;
        self.pressure.purge(shared, bound);
        if self.unsure.len() > bound {
            self.unsure.retain(|&(slot, generation, _)| shared.find(slot, generation).is_some());
        }
    }

    /// Lets streams receive again that a higher limit covers. Memory is given back within loop turns only, so
    /// no timer is needed.
    fn recheck_lowered(&mut self) {
        let limit = self.receive_limit();
        let pressure = &mut self.pressure;
        if limit > std::mem::replace(&mut pressure.limit, limit) {
            pressure.recheck = pressure.lowered.len();
        }
        let count = pressure.recheck.min(RECHECK_STREAMS);
        pressure.recheck -= count;
        for _ in 0..count {
            let Some((slot, generation)) = self.pressure.lowered.pop_front() else { break };
            let Some(state) = self.shared.find(slot, generation) else { continue };
            let is_held = state.inner.borrow().receiving.operation == ReceiveOp::Held;
            if is_held && self.shared.pool.outstanding(state.account()) >= limit {
                self.pressure.lowered.push_back((slot, generation));
            } else {
                self.release_hold(slot, generation, |inner| inner.lists.leave(List::Lowered));
            }
        }
    }

    /// Lets a stream receive again; `false` when it was not held, or is gone.
    fn release_hold(&self, slot: u32, generation: u32, note: impl FnOnce(&mut Inner)) -> bool {
        let Some(state) = self.shared.find(slot, generation) else { return false };
        let inner = &mut *state.inner.borrow_mut();
        note(inner);
        let is_released = inner.receiving.release();
        if is_released {
            state.mark(inner);
        }
        is_released
    }

    /// While buffers are short: copies queued loans out of the ring, and has sends to slow peers let go of
    /// theirs.
    pub(super) fn reclaim<R: Ring>(&mut self, ring: &mut R) {
        let shared = Rc::clone(&self.shared);
        let (slots, pool) = (shared.slots.borrow(), &shared.pool);
        let count = slots.entries.len();
        let mut promised = 0;
        for _ in 0..RECLAIM_STREAMS.min(count) {
            self.pressure.reclaim_at = (self.pressure.reclaim_at + 1) % count;
            let Some(state) = &slots.entries[self.pressure.reclaim_at].state else { continue };
            let inner = &mut *state.inner.borrow_mut();
            let opened = inner.secure.iter_mut().flat_map(|secure| secure.plain_mut());
            let received = inner.receiving.queue.iter_mut();
            for chunk in inner.sending.queued_mut().chain(received).chain(opened) {
                self.counts.copied_bytes += copy_out(chunk, pool);
            }
            let pins = inner.sending.stuck_pins(PIN_MAX, shared.now.get());
            // A send that cannot be copied whole would come back as another send that pins, and be cancelled
            // again.
            let needed = promised + pins;
            let has_room = pool.budget_used() + pool.budget_reserve() + needed <= pool.budget_max();
            if pins > 0 && has_room && inner.sending.cancel() {
                promised = needed;
                self.counts.sends_reclaimed += 1;
                cancel(state, inner, Kind::Send, ring);
            }
        }
    }

    /// When buffers and budget are gone and stay gone, slow peers hold them all, and nobody else gets a byte
    /// through. Then the stream is reset that holds the most without having moved, one at a time, until some
    /// stream can receive again.
    #[inline]
    pub(super) fn evict(&mut self) {
        let shared = Rc::clone(&self.shared);
        let now = shared.now.get();
        let pressure = &mut self.pressure;
        if pressure.starved.is_empty() || shared.pool.free() > 0 {
            pressure.evict_at = None;
            return;
        }
        if now < *pressure.evict_at.get_or_insert(now + STARVED_MAX) {
            return;
        }
        // The buffers of the stream that is reset may come back with its last completions only.
        pressure.evict_at = Some(now + RETRY);
        pressure.starved.retain(|&(slot, generation)| shared.find(slot, generation).is_some());
        if pressure.starved.is_empty() {
            return;
        }
        let largest = {
            let slots = shared.slots.borrow();
            let streams = slots.entries.iter().filter_map(|entry| entry.state.as_ref());
            streams
                .map(|state| (held_unmoved(&state.inner.borrow(), now), state))
                .filter(|&(held, _)| held > 0)
                .max_by_key(|&(held, _)| held)
                .map(|(_, state)| Rc::clone(state))
        };
        if let Some(state) = largest {
            self.reset_for_memory(&state, &mut state.inner.borrow_mut());
        }
    }

    pub(super) fn reset_for_memory(&mut self, state: &Rc<StreamState>, inner: &mut Inner) {
        self.counts.evicted += 1;
        state.reset_for(inner, StreamError::Evicted);
    }
}

/// Bytes that a stream holds either way and that have not moved for `STARVED_MAX`.
fn held_unmoved(inner: &Inner, now: Time) -> usize {
    if !matches!(inner.phase, Phase::Open | Phase::Closing) {
        return 0;
    }
    let is_unread = now.since(inner.receiving.at()) >= STARVED_MAX;
    let unread = if is_unread { inner.receiving.queue.bytes() } else { 0 };
    inner.sending.unmoved(STARVED_MAX, now) + unread
}
