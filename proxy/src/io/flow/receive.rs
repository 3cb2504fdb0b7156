//! Receiving: when a stream's receive is armed and into which class of buffer, when it is held, and where the
//! bytes go.

use std::rc::Rc;
use std::time::Duration;

use super::{Flow, cancel, token};
use crate::io::Chunk;
use crate::io::buffers::{Class, Loan};
use crate::io::seam::{Completion, Op, Ring};
use crate::io::stream::{Inner, List, Phase, RECORD_BYTES_MAX, ReceiveOp, StreamError, StreamState};
use crate::io::token::Kind;

/// Fragments of one stream are copied together up to this size.
pub(super) const COALESCE_MAX: usize = 16 << 10;
/// One stream may hold this part of the free memory while memory is tight.
const SHARE: usize = 64;
/// When a stream went quiet after its last bytes, its receive is armed anew after this time. A multishot
/// receive of some kernels (6.18 among them) misses an end or a reset that comes together with bytes. It
/// takes the bytes, and nothing wakes it again: both wake-ups were folded into one. Arming looks at the
/// socket first.
const SECOND_LOOK: Duration = Duration::from_secs(1);
impl Flow {
    /// Arms the receives anew of streams that went quiet after bytes.
    pub(super) fn look_again<R: Ring>(&mut self, ring: &mut R) {
        let now = self.shared.now.get();
        while let Some(&(slot, generation, at)) = self.unsure.front()
            && at <= now
        {
            self.unsure.pop_front();
            let Some(state) = self.shared.find(slot, generation) else { continue };
            let inner = &mut *state.inner.borrow_mut();
            let quiet_at = inner.receiving.at() + SECOND_LOOK;
            if quiet_at > now {
                self.unsure.push_back((slot, generation, quiet_at));
                continue;
            }
            inner.lists.leave(List::Unsure);
            if inner.receiving.operation == ReceiveOp::Armed && inner.receiving.end.is_none() {
                self.cancel_receive(&state, inner, ring);
            }
        }
    }

    pub(super) fn drive_receive<R: Ring>(
        &mut self,
        state: &Rc<StreamState>,
        inner: &mut Inner,
        ring: &mut R,
    ) {
        if inner.receiving.end.is_some() {
            return;
        }
        let outstanding = self.shared.pool.outstanding(state.account());
        let limit = self.limit_of(inner);
        let is_full = outstanding >= limit;
        match inner.receiving.operation {
            ReceiveOp::Armed => {
                if is_full || inner.receiving.is_throttled || !inner.receiving.class.is_settled() {
                    self.cancel_receive(state, inner, ring);
                }
            }
            ReceiveOp::Idle if inner.receiving.waits_for_demand() && !inner.is_read() => {}
            ReceiveOp::Idle => {
                let is_bounded = is_full || inner.receiving.is_throttled;
                if is_bounded && self.go_on_within_record(state, inner, ring) {
                    return;
                }
                if inner.receiving.is_throttled && outstanding > self.little(inner) {
                    self.shared.pool.await_relief(state.account(), self.little(inner));
                    self.pressure.throttle(state, inner);
                } else if is_full {
                    self.hold_at_limit(state, inner, limit, outstanding);
                } else {
                    self.arm_receive(state, inner, ring);
                }
            }
            ReceiveOp::Cancelling | ReceiveOp::Held => {}
        }
    }

    /// Holds a stream that has as much outstanding as it may, until half of that is dropped.
    fn hold_at_limit(&mut self, state: &StreamState, inner: &mut Inner, limit: usize, outstanding: usize) {
        let settings = &self.shared.settings;
        let low = if limit == settings.receive_high { settings.receive_low } else { limit / 2 };
        let mark = (self.part(inner) + low).min(outstanding - 1);
        self.shared.pool.await_relief(state.account(), mark);
        self.pressure.limit(state, inner, limit, limit < settings.receive_high);
    }

    pub(super) fn arm_receive<R: Ring>(&self, state: &StreamState, inner: &mut Inner, ring: &mut R) {
        let (class, multishot) = inner.receiving.arm(self.shared.pool.is_tight());
        ring.submit(token(state, Kind::Receive), Op::Receive { fd: inner.fd, multishot, class });
    }

    pub(super) fn cancel_receive<R: Ring>(&self, state: &StreamState, inner: &mut Inner, ring: &mut R) {
        inner.receiving.operation = ReceiveOp::Cancelling;
        cancel(state, inner, Kind::Receive, ring);
    }

    pub(super) fn received(&mut self, state: &Rc<StreamState>, inner: &mut Inner, completion: Completion) {
        if !completion.more {
            inner.receiving.operation = ReceiveOp::Idle;
        }
        match completion.result {
            1.. => {
                let Some(loan) = completion.loan else { return };
                self.take_in(state, inner, loan, completion.more);
                if inner.phase != Phase::Open {
                    return;
                }
            }
            0 => {
                inner.receiving.note(0, self.shared.now.get());
                inner.ended(inner.sending.error().map_or(Ok(()), Err));
            }
            result => match -result {
                libc::ECANCELED | libc::EINTR => return,
                libc::ENOBUFS => return self.found_no_buffer(state, inner),
                errno => {
                    let error = StreamError::from_errno(errno);
                    inner.ended(Err(error));
                    // The connection is gone both ways.
                    inner.sending.fail(error);
                    if !inner.sending.is_in_flight() {
                        inner.sending.clear();
                    }
                    inner.wake_all();
                }
            },
        }
        inner.receiving.waiting.wake();
        if inner.parked.is_some() {
            self.shared.push_parked(state);
        }
    }

    /// Takes in bytes. `more`: the receive goes on.
    fn take_in(&mut self, state: &Rc<StreamState>, inner: &mut Inner, loan: Loan, more: bool) {
        let (now, pool) = (self.shared.now.get(), &self.shared.pool);
        inner.receiving.note(loan.len(), now);
        inner.receiving.class.learn(loan.len(), pool.buffer_size(), || pool.has_blocks());
        if more && inner.lists.enter(List::Unsure) {
            self.unsure.push_back((state.slot, state.generation, now + SECOND_LOOK));
        }
        if inner.phase == Phase::Open {
            self.admit(state, inner, loan);
        } else {
            inner.closing.discard(loan.len());
        }
    }

    fn found_no_buffer(&mut self, state: &StreamState, inner: &mut Inner) {
        if inner.receiving.class.armed() == Class::Block {
            return inner.receiving.class.give_up_blocks();
        }
        self.counts.buffers_exhausted += 1;
        let goes_on = matches!(inner.phase, Phase::Open | Phase::Closing);
        if goes_on && inner.receiving.operation == ReceiveOp::Idle {
            self.pressure.starve(state, inner);
        }
    }

    /// Puts received bytes into the inbound queue: on loan, or copied where that is kinder to the others.
    fn admit(&mut self, state: &Rc<StreamState>, inner: &mut Inner, mut loan: Loan) {
        let pool = &self.shared.pool;
        let size = pool.buffer_size();
        let held = self.shared.pool.outstanding(state.account());
        let (pressed, scarce) = (pool.is_pressed(), pool.free() * 8 < pool.count());
        // Small fragments that pile up would each pin a whole buffer.
        let much = held > self.little(inner);
        let fragment = loan.len() * 4 < size && much;
        if scarce || fragment || (pressed && held > 0) {
            let reserve = if much { pool.budget_reserve() } else { 0 };
            if inner
                .receiving
                .queue
                .back_mut()
                .is_some_and(|last| last.try_append(loan.bytes(), COALESCE_MAX))
            {
                self.counts.copied_bytes += loan.len() as u64;
                return;
            }
            if let Some(chunk) = pool.copy(loan.bytes(), Some(state.account()), reserve) {
                self.counts.copied_bytes += loan.len() as u64;
                inner.receiving.queue.push_back(chunk, &self.shared.spares);
                return;
            }
            inner.receiving.is_throttled = pressed && much;
        }
        loan.charge_to(state.account());
        inner.receiving.queue.push_back(Chunk::from_loan(loan), &self.shared.spares);
    }

    /// Bytes that any stream may hold, however short buffers are.
    pub(super) fn little(&self, inner: &Inner) -> usize {
        let size = self.shared.pool.buffer_size();
        // A record is of use only when it is whole.
        if inner.secure.is_some() { size + RECORD_BYTES_MAX } else { 2 * size }
    }

    /// Bytes this stream may have outstanding before its receive stops: twice as much in blocks, of which two
    /// always are half empty.
    pub(super) fn limit_of(&self, inner: &Inner) -> usize {
        let limit = if inner.secure.is_some() {
            self.receive_limit().max(self.little(inner))
        } else {
            self.receive_limit()
        };
        if inner.receiving.class.armed() == Class::Block && !self.shared.pool.is_tight() {
            2 * limit
        } else {
            limit
        }
    }

    /// Bytes a stream may have outstanding before its receive stops. While memory is tight that is a share of
    /// the free memory (dynamic thresholds, Choudhury and Hahne 1998). However many slow peers hold as much
    /// as they may, something stays free for the others.
    pub(super) fn receive_limit(&self) -> usize {
        let (settings, pool) = (&self.shared.settings, &self.shared.pool);
        if !pool.is_tight() {
            return settings.receive_high;
        }
        let free = pool.free() * pool.buffer_size() + pool.budget_max() - pool.budget_used();
        (free / SHARE).min(settings.receive_pressed).min(settings.receive_high).max(pool.buffer_size())
    }
}
