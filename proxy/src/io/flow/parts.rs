//! Part of a TLS record is of use to nobody before the rest has come, so holding it must not keep a stream
//! from receiving. Its buffers are exchanged for copies, which count for no more than their bytes. Without
//! budget for the copies the stream is reset after a while.

use std::rc::Rc;

use super::receive::COALESCE_MAX;
use super::{Flow, STARVED_MAX};
use crate::io::seam::Ring;
use crate::io::stream::{Inner, List, Phase, ReceiveOp, StreamState};

/// The reason why a stream does not receive the rest of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Obstacle {
    None,
    /// The buffers of its first part.
    Part,
    /// Everything else that was received for it.
    Others,
}

impl Flow {
    /// For a stream that holds as much as it may and has no receive in flight. `false`: it does not wait for
    /// the rest of a record.
    pub(super) fn go_on_within_record<R: Ring>(
        &mut self,
        state: &Rc<StreamState>,
        inner: &mut Inner,
        ring: &mut R,
    ) -> bool {
        if !inner.is_within_record() {
            return false;
        }
        self.copy_inbound(state, inner);
        match self.obstacle(state, inner) {
            Obstacle::None => self.arm_receive(state, inner, ring),
            // Bytes that were opened before fill the limit, and will be taken.
            Obstacle::Others => return false,
            Obstacle::Part => {
                self.pressure.hold_part(state, inner, self.shared.now.get() + STARVED_MAX);
            }
        }
        true
    }

    /// Bytes outstanding of a record that has not come whole.
    pub(super) fn part(&self, inner: &Inner) -> usize {
        if inner.is_within_record() { inner.receiving.queue.outstanding() } else { 0 }
    }

    fn obstacle(&self, state: &StreamState, inner: &Inner) -> Obstacle {
        let (outstanding, limit, part) =
            (self.shared.pool.outstanding(state.account()), self.limit_of(inner), self.part(inner));
        if outstanding < limit {
            Obstacle::None
        } else if outstanding.saturating_sub(part) >= limit {
            Obstacle::Others
        } else if part > self.little(inner) {
            Obstacle::Part
        } else {
            Obstacle::None
        }
    }

    /// Exchanges loans for copies, as far as the budget goes. Copies that exist already give up the bytes of
    /// theirs that were opened.
    fn copy_inbound(&mut self, state: &Rc<StreamState>, inner: &mut Inner) {
        let mut held = std::mem::take(&mut inner.receiving.queue);
        let spares = &self.shared.spares;
        while let Some(mut chunk) = held.pop_front() {
            chunk.compact();
            let copied = chunk.is_loan() && {
                inner.receiving.queue.back_mut().is_some_and(|last| last.try_append(&chunk, COALESCE_MAX))
                    || {
                        let copy = self.shared.pool.copy(&chunk, Some(state.account()), 0);
                        copy.map(|copy| inner.receiving.queue.push_back(copy, spares)).is_some()
                    }
            };
            if copied {
                self.counts.copied_bytes += chunk.len() as u64;
            } else {
                inner.receiving.queue.push_back(chunk, spares);
            }
        }
        held.shrink(spares);
    }

    /// Looks again at streams that found no budget, and resets streams that waited for too long.
    pub(super) fn resume_parts(&mut self) {
        let shared = Rc::clone(&self.shared);
        for _ in 0..self.pressure.parts.len() {
            let Some((slot, generation, until)) = self.pressure.parts.pop_front() else { break };
            let Some(state) = shared.find(slot, generation) else { continue };
            let inner = &mut *state.inner.borrow_mut();
            let waits = inner.phase == Phase::Open
                && inner.receiving.operation == ReceiveOp::Held
                && inner.is_within_record();
            if waits {
                self.copy_inbound(&state, inner);
            }
            let is_over = waits && self.obstacle(&state, inner) == Obstacle::Part;
            if is_over && shared.now.get() < until {
                self.pressure.parts.push_back((slot, generation, until));
                continue;
            }
            inner.lists.leave(List::Parts);
            if inner.receiving.release() {
                state.mark(inner);
            }
            if is_over {
                self.reset_for_memory(&state, inner);
            }
        }
    }
}
