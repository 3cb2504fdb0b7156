//! Closing: the flush, FIN, what still comes and is thrown away, and the end of the descriptor once nothing
//! is in flight.

use std::rc::Rc;

use super::{Flow, token};
use crate::io::handle::Alarm;
use crate::io::seam::{Op, Ring};
use crate::io::stream::{Fin, Inner, Phase, Receive, State, StreamError};
use crate::io::token::Kind;
use crate::time::Time;

impl Flow {
    /// The time that `close` may take is over, or a part of it without progress.
    pub(in crate::io) fn close_timed_out(&self, state: &Rc<State>) {
        let inner = &mut *state.inner.borrow_mut();
        let mark = inner.closing.as_mut().map_or(0, |closing| {
            closing.timer = None;
            closing.mark
        });
        if inner.phase == Phase::Closing {
            let flushed = inner.queued == 0;
            let over = match inner.closing.as_mut() {
                // A peer that is still sending has not read our last bytes yet.
                Some(closing) if flushed => {
                    let quiet = std::mem::replace(&mut closing.seen, closing.discarded) == closing.discarded;
                    quiet || self.shared.now.get() >= closing.until
                }
                _ => flushed || inner.progress.sent - mark < self.shared.settings.close_bytes,
            };
            if over {
                inner.end(!flushed);
            }
            state.mark(inner);
        }
    }

    /// After the flush: FIN, then throw away what comes until the peer's end or until the linger is over.
    pub(super) fn drive_close<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        let is_of_socket = match inner.end {
            Some(Err(error)) => !matches!(error, StreamError::Tls(_) | StreamError::Truncated),
            _ => false,
        };
        let broken = inner.write_error.is_some() || is_of_socket;
        let flushed = inner.queued == 0;
        let settings = &self.shared.settings;
        let (discarded, is_refused) =
            inner.closing.as_ref().map_or((0, false), |closing| (closing.discarded, closing.is_refused));
        let over = inner.is_over()
            || (inner.is_last && inner.receive == Receive::Idle)
            || discarded > if is_refused { settings.refused_bytes } else { settings.linger_bytes };
        if broken || (flushed && over && inner.fin != Fin::InFlight) {
            // What is cut for want of memory must not look whole.
            return inner.end(inner.end == Some(Err(StreamError::Evicted)));
        }
        if flushed && inner.fin == Fin::No {
            inner.fin = Fin::InFlight;
            ring.submit(token(state, Kind::Shutdown), Op::Shutdown { fd: inner.fd });
            // From now on the timer bounds the linger.
            self.disarm_close(inner);
        }
        if inner.receive == Receive::Idle && !inner.is_over() && !inner.is_last {
            self.arm_receive(state, inner, ring);
        }
        let closing = inner.closing.get_or_insert_default();
        if closing.timer.is_none() {
            let (flush, linger) = if is_refused {
                (settings.close_timeout.min(settings.refused_max), settings.refused_max)
            } else {
                (settings.close_timeout, settings.linger_max)
            };
            closing.mark = inner.progress.sent;
            if flushed && closing.until == Time::default() {
                closing.until = self.shared.now.get() + linger;
            }
            let wait = if flushed { settings.linger } else { flush };
            let alarm = Alarm::Stream(state.slot, state.generation);
            closing.timer = Some(self.shared.arm(self.shared.now.get() + wait, alarm));
        }
    }

    fn disarm_close(&self, inner: &mut Inner) {
        if let Some(key) = inner.closing.as_mut().and_then(|closing| closing.timer.take()) {
            self.shared.disarm(key);
        }
    }

    /// Cancels what is in flight; closes when nothing is.
    pub(super) fn drive_end<R: Ring>(
        &mut self,
        state: &Rc<State>,
        inner: &mut Inner,
        ring: &mut R,
        reset: bool,
    ) {
        if inner.closing_fd {
            return;
        }
        if inner.receive == Receive::Armed {
            self.cancel_receive(state, inner, ring);
        }
        if inner.sending && !inner.send_cancelled {
            inner.send_cancelled = true;
            inner.cancels += 1;
            ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Send) });
        }
        if inner.connecting && !inner.connect_cancelled {
            inner.connect_cancelled = true;
            inner.cancels += 1;
            ring.submit(token(state, Kind::Cancel), Op::Cancel { target: token(state, Kind::Connect) });
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
        inner.closing_fd = true;
        ring.submit(token(state, Kind::Close), Op::Close { fd: inner.fd });
    }

    /// The stream is over and nothing refers to its slot any more.
    pub(super) fn release(&self, state: &Rc<State>, inner: &mut Inner) {
        inner.fd = -1;
        inner.phase = Phase::Closed;
        self.disarm_close(inner);
        inner.wake_all();
        self.shared.slots.borrow_mut().release(state.slot);
    }
}
