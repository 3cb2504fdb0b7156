//! Closing: the flush, FIN, the discarding of bytes that still come, and the end of the descriptor once
//! nothing is in flight.

use std::rc::Rc;

use super::{Flow, cancel, token};
use crate::io::places::Source;
use crate::io::seam::{Op, Ring};
use crate::io::shared::Alarm;
use crate::io::stream::{ConnectOp, Fin, Inner, Manner, Phase, ReceiveOp, StreamError, StreamState};
use crate::io::token::Kind;

impl Flow {
    /// The time that `close` may take is over, or a part of it without progress.
    pub(in crate::io) fn close_timed_out(&self, state: &Rc<StreamState>) {
        let inner = &mut *state.inner.borrow_mut();
        inner.closing.take_timer();
        if inner.phase != Phase::Closing {
            return;
        }
        let is_flushed = inner.sending.is_flushed();
        let is_over = if is_flushed {
            inner.closing.is_quiet(self.shared.now.get())
        } else {
            inner.closing.is_stuck(inner.sending.bytes(), &self.shared.settings)
        };
        if is_over {
            inner.cut_close();
        }
        state.mark(inner);
    }

    /// After the flush: FIN, then incoming bytes are discarded until the peer's end, or until a bound. Other
    /// manners send no FIN.
    pub(super) fn drive_close<R: Ring>(&mut self, state: &Rc<StreamState>, inner: &mut Inner, ring: &mut R) {
        let is_flushed = inner.sending.is_flushed();
        let settings = &self.shared.settings;
        let is_idle = inner.receiving.operation == ReceiveOp::Idle;
        let is_over =
            inner.is_over() || (inner.closing.is_last && is_idle) || inner.closing.is_spent(settings);
        if is_broken(inner) || (is_flushed && is_over) {
            // A message that is cut for want of memory must not look whole.
            return inner.end(inner.receiving.end == Some(Err(StreamError::Evicted)));
        }
        if is_flushed && inner.closing.manner == Manner::Reset {
            return inner.end(true);
        }
        self.end_sending(state, inner, ring);
        if is_flushed && inner.closing.manner == Manner::Yield && inner.closing.times_flush() {
            // From now on it bounds the wait for the peer's end.
            self.disarm_close(inner);
        }
        if is_idle && !inner.is_over() && !inner.closing.is_last {
            self.arm_receive(state, inner, ring);
        }
        if !self.keep_place(state, inner, is_flushed) {
            return;
        }
        let course = inner.closing.course_mut();
        if course.timer.is_none() {
            let now = self.shared.now.get();
            let wait = course.begin_wait(is_flushed, inner.sending.bytes(), now, &self.shared.settings);
            let alarm = Alarm::Stream(state.slot, state.generation);
            course.timer = Some(self.shared.arm(now + wait, alarm));
        }
    }

    /// Sends FIN if it is to follow the queued bytes and the kernel has taken them all. It may have kept the
    /// last of them for this (`Op::Send::is_last`), so it comes in the turn in which they were taken.
    pub(super) fn end_sending<R: Ring>(&self, state: &Rc<StreamState>, inner: &mut Inner, ring: &mut R) {
        if !inner.sending.is_flushed() || !inner.is_ending() || is_broken(inner) {
            return;
        }
        inner.sending.fin = Fin::Sent;
        if let Err(errno) = ring.shutdown(inner.fd) {
            inner.sending.fail(StreamError::from_errno(errno));
            inner.wake_all();
            state.mark(inner);
        }
        if inner.phase == Phase::Closing {
            // From now on the timer bounds the discarding.
            self.disarm_close(inner);
        }
    }

    /// Counts the stream among those that are closing. While there are too many, others end at once; `false`:
    /// so does this stream.
    fn keep_place(&mut self, state: &Rc<StreamState>, inner: &mut Inner, is_flushed: bool) -> bool {
        let (now, name) = (self.shared.now.get(), (state.slot, state.generation));
        let source = Source::from(inner.peer.address().ip());
        let course = inner.closing.course_mut();
        course.place = Some(self.closings.follow(course.place, (name, source), is_flushed, now));
        let mut stays = true;
        while let Some(other) = self.closings.relieve(self.shared.settings.closings_max) {
            self.counts.closings_ended += 1;
            if other == name {
                inner.cut_close();
                stays = false;
            } else if let Some(state) = self.shared.find(other.0, other.1) {
                let inner = &mut *state.inner.borrow_mut();
                inner.cut_close();
                state.mark(inner);
            }
        }
        stays
    }

    fn disarm_close(&self, inner: &mut Inner) {
        if let Some(key) = inner.closing.take_timer() {
            self.shared.disarm(key);
        }
    }

    /// Cancels operations in flight; closes when there are none.
    pub(super) fn drive_end<R: Ring>(
        &mut self,
        state: &Rc<StreamState>,
        inner: &mut Inner,
        ring: &mut R,
        reset: bool,
    ) {
        if inner.closing.is_submitted {
            return;
        }
        if inner.receiving.operation == ReceiveOp::Armed {
            self.cancel_receive(state, inner, ring);
        }
        if inner.sending.cancel() {
            cancel(state, inner, Kind::Send, ring);
        }
        if inner.connect == ConnectOp::Armed {
            inner.connect = ConnectOp::Cancelling;
            cancel(state, inner, Kind::Connect, ring);
        }
        if inner.in_flight_ops() > 0 {
            return;
        }
        if inner.fd < 0 {
            return self.release(state, inner);
        }
        if reset {
            ring.reset_on_close(inner.fd);
        }
        inner.closing.is_submitted = true;
        ring.submit(token(state, Kind::Close), Op::Close { fd: inner.fd });
    }

    /// The stream is over and nothing refers to its slot any more.
    pub(super) fn release(&mut self, state: &Rc<StreamState>, inner: &mut Inner) {
        inner.fd = -1;
        inner.phase = Phase::Closed;
        self.disarm_close(inner);
        if let Some(place) = inner.closing.take_place() {
            self.closings.leave(place);
        }
        inner.wake_all();
        self.shared.slots.borrow_mut().release(state.slot);
    }
}

/// Whether the connection is gone. If TLS alone broke it, our last bytes can still be delivered.
fn is_broken(inner: &Inner) -> bool {
    let is_of_socket = match inner.receiving.end {
        Some(Err(error)) => !matches!(error, StreamError::Tls(_) | StreamError::Truncated),
        _ => false,
    };
    inner.sending.error().is_some() || is_of_socket
}
