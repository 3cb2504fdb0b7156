//! Receiving: when a stream's receive is armed and into which class of buffer, when it is held, and what
//! becomes of the bytes.

use std::rc::Rc;
use std::time::Duration;

use super::{Flow, token};
use crate::io::Chunk;
use crate::io::buffers::{Class, Loan};
use crate::io::seam::{Completion, Op, Ring};
use crate::io::secure::RECORD_BYTES_MAX;
use crate::io::stream::{Inner, Phase, Receive, State, StreamError};
use crate::io::token::Kind;

/// Fragments of one stream are copied together up to this size.
pub(super) const COALESCE_MAX: usize = 16 << 10;
/// The part of what is free that one stream may hold while memory is tight.
const SHARE: usize = 64;
/// When a stream went quiet after its last bytes, its receive is armed anew after this time. Where bytes and
/// the end (or a reset) come together, a multishot receive of some kernels (6.18 among them) takes the bytes
/// and misses the end, which wakes nobody again: both wake-ups were folded into one. Arming looks at the
/// socket first.
const SECOND_LOOK: Duration = Duration::from_secs(1);
/// Receives in a row that fill a small buffer before a stream gets blocks.
const FULL_MAX: u8 = 4;
/// Receives in a row that would fit a small buffer before it goes back to those.
const SMALL_MAX: u8 = 2;

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
            let quiet_at = inner.progress.received_at + SECOND_LOOK;
            if quiet_at > now {
                self.unsure.push_back((slot, generation, quiet_at));
                continue;
            }
            inner.unsure = false;
            if inner.receive == Receive::Armed && inner.end.is_none() {
                self.cancel_receive(&state, inner, ring);
            }
        }
    }

    pub(super) fn drive_receive<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        if inner.end.is_some() {
            return;
        }
        let outstanding = self.shared.pool.outstanding(state.account());
        let limit = self.limit_of(inner);
        let full = outstanding >= limit;
        let is_wanted = inner.receive == Receive::Idle && (!inner.on_demand || inner.is_read());
        if is_wanted && (full || inner.throttled) && self.go_on_within_record(state, inner, ring) {
            return;
        }
        let low = if limit == self.shared.settings.receive_high {
            self.shared.settings.receive_low
        } else {
            limit / 2
        };
        match inner.receive {
            Receive::Armed if full || inner.throttled || inner.armed != inner.class => {
                self.cancel_receive(state, inner, ring)
            }
            // The request has come, and nobody knows yet whether more is wanted.
            Receive::Idle if inner.on_demand && !inner.is_read() => {}
            Receive::Idle if inner.throttled && outstanding > self.little(inner) => {
                inner.receive = Receive::Held;
                self.shared.pool.await_relief(state.account(), self.little(inner));
                if !std::mem::replace(&mut inner.in_throttled, true) {
                    self.throttled.push_back((state.slot, state.generation));
                }
            }
            Receive::Idle if full => {
                inner.receive = Receive::Held;
                let is_lowered = limit < self.shared.settings.receive_high;
                self.shared.pool.await_relief(state.account(), (self.part(inner) + low).min(outstanding - 1));
                // `resume` may have seen a higher one in this turn already.
                self.limit = self.limit.min(limit);
                if is_lowered && !std::mem::replace(&mut inner.in_lowered, true) {
                    self.lowered.push_back((state.slot, state.generation));
                }
            }
            Receive::Idle => self.arm_receive(state, inner, ring),
            Receive::Armed | Receive::Cancelling | Receive::Held => {}
        }
    }

    pub(super) fn arm_receive<R: Ring>(&self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        inner.receive = Receive::Armed;
        inner.throttled = false;
        // A single receive takes one buffer; a multishot one may take dozens before it can be cancelled, more
        // than the cache holds where they are blocks.
        let tight = self.shared.pool.is_tight();
        if tight {
            inner.class = Class::Small;
        }
        inner.armed = inner.class;
        let multishot = !tight && !inner.is_fresh && inner.class == Class::Small;
        inner.on_demand = inner.is_fresh;
        ring.submit(token(state, Kind::Receive), Op::Receive { fd: inner.fd, multishot, class: inner.class });
    }

    /// A stream that sends a lot at a time gets blocks, one call for dozens of small buffers; it goes back
    /// when it no longer does.
    fn choose_class(&self, inner: &mut Inner, length: usize) {
        let size = self.shared.pool.buffer_size();
        let (other, needed) = match inner.class {
            Class::Small => (length == size, FULL_MAX),
            Class::Block => (length <= size, SMALL_MAX),
        };
        inner.streak = if other { inner.streak + 1 } else { 0 };
        if inner.streak < needed {
            return;
        }
        inner.streak = 0;
        inner.class = if inner.class == Class::Small && self.shared.pool.has_blocks() {
            Class::Block
        } else {
            Class::Small
        };
    }

    pub(super) fn cancel_receive<R: Ring>(&self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        inner.receive = Receive::Cancelling;
        inner.cancels += 1;
        ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Receive) });
    }

    pub(super) fn received(&mut self, state: &Rc<State>, inner: &mut Inner, completion: Completion) {
        if !completion.more {
            inner.receive = Receive::Idle;
        }
        let open = matches!(inner.phase, Phase::Open);
        match completion.result {
            1.. => {
                let Some(loan) = completion.loan else { return };
                inner.progress.received += loan.len() as u64;
                inner.progress.received_at = self.shared.now.get();
                inner.is_fresh = false;
                self.choose_class(inner, loan.len());
                if completion.more && !std::mem::replace(&mut inner.unsure, true) {
                    self.unsure.push_back((
                        state.slot,
                        state.generation,
                        inner.progress.received_at + SECOND_LOOK,
                    ));
                }
                if !open {
                    inner.closing.get_or_insert_default().discarded += loan.len();
                    return;
                }
                self.admit(state, inner, loan);
            }
            0 => inner.ended(inner.write_error.map_or(Ok(()), Err)),
            result => match -result {
                libc::ECANCELED | libc::EINTR => return,
                libc::ENOBUFS if inner.armed == Class::Block => {
                    (inner.class, inner.streak) = (Class::Small, 0);
                    return;
                }
                libc::ENOBUFS => {
                    self.buffers_exhausted += 1;
                    if matches!(inner.phase, Phase::Open | Phase::Closing) && inner.receive == Receive::Idle {
                        inner.receive = Receive::Held;
                        if !std::mem::replace(&mut inner.in_starved, true) {
                            self.starved.push_back((state.slot, state.generation));
                        }
                    }
                    return;
                }
                errno => {
                    let error = StreamError::from_errno(errno);
                    inner.ended(Err(error));
                    // The connection is gone both ways.
                    inner.write_error.get_or_insert(error);
                    if !inner.sending {
                        inner.drop_outbound();
                    }
                    inner.wake_all();
                }
            },
        }
        inner.wake_reader();
        if inner.parked.is_some() {
            self.shared.push_parked(state);
        }
    }

    /// Puts received bytes into the inbound queue: on loan, or copied where that is kinder to the others.
    fn admit(&mut self, state: &Rc<State>, inner: &mut Inner, mut loan: Loan) {
        let pool = &self.shared.pool;
        let size = pool.buffer_size();
        let held = self.shared.pool.outstanding(state.account());
        let (pressed, scarce) = (pool.is_pressed(), pool.free() * 8 < pool.count());
        // Small fragments that pile up would each pin a whole buffer.
        let much = held > self.little(inner);
        let fragment = loan.len() * 4 < size && much;
        if scarce || fragment || (pressed && held > 0) {
            let reserve = if much { pool.budget_reserve() } else { 0 };
            if inner.inbound.back_mut().is_some_and(|last| last.try_append(loan.bytes(), COALESCE_MAX)) {
                self.copied_bytes += loan.len() as u64;
                return;
            }
            if let Some(chunk) = pool.copy(loan.bytes(), Some(state.account()), reserve) {
                self.copied_bytes += loan.len() as u64;
                inner.inbound.push_back(chunk, &self.shared.spares);
                return;
            }
            inner.throttled = pressed && much;
        }
        loan.charge_to(state.account());
        inner.inbound.push_back(Chunk::from_loan(loan), &self.shared.spares);
    }

    /// What any stream may hold, however short buffers are.
    pub(super) fn little(&self, inner: &Inner) -> usize {
        let size = self.shared.pool.buffer_size();
        // A record is of use only when it is whole.
        if inner.secure.is_some() { size + RECORD_BYTES_MAX } else { 2 * size }
    }

    /// What this stream may have outstanding before its receive stops: twice as much in blocks, of which two
    /// always are half empty.
    pub(super) fn limit_of(&self, inner: &Inner) -> usize {
        let limit = if inner.secure.is_some() {
            self.receive_limit().max(self.little(inner))
        } else {
            self.receive_limit()
        };
        if inner.armed == Class::Block && !self.shared.pool.is_tight() { 2 * limit } else { limit }
    }

    /// What a stream may have outstanding before its receive stops. While memory is tight that is a share of
    /// what is free (dynamic thresholds, Choudhury and Hahne 1998): however many slow peers hold as much as
    /// they may, something stays free for the others.
    pub(super) fn receive_limit(&self) -> usize {
        let (settings, pool) = (&self.shared.settings, &self.shared.pool);
        if !pool.is_tight() {
            return settings.receive_high;
        }
        let free = pool.free() * pool.buffer_size() + pool.budget_max() - pool.budget_used();
        (free / SHARE).min(settings.receive_pressed).min(settings.receive_high).max(pool.buffer_size())
    }
}
