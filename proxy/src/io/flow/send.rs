//! Sending: queued bytes go out in one send at a time, and bytes that a send did not take go back to the
//! front of the queue. FIN travels with the last of them: a peer that has read a whole message may close at
//! once, and the end that closes first pays for it with TIME_WAIT (RFC 9293 §3.6).

use std::rc::Rc;

use super::{Flow, copy_out, token};
use crate::io::seam::{Completion, Op, Ring};
use crate::io::stream::{Inner, Phase, StreamError, StreamState};
use crate::io::token::Kind;

/// Empty vectors for sends kept for reuse.
const SPARE_MAX: usize = 256;

impl Flow {
    pub(super) fn drive_send<R: Ring>(&mut self, state: &Rc<StreamState>, inner: &mut Inner, ring: &mut R) {
        if inner.sending.is_in_flight() || inner.sending.error().is_some() {
            return;
        }
        if inner.sending.is_empty() {
            // Of a closing stream, `drive_close` knows whether FIN comes with the close.
            if inner.phase == Phase::Open {
                self.end_sending(state, inner, ring);
            }
            return;
        }
        let (settings, pool) = (&self.shared.settings, &self.shared.pool);
        let is_pressed = pool.is_pressed();
        let bytes_max = if is_pressed { settings.send_bytes_pressed } else { settings.send_bytes_max };
        let mut chunks = self.spare.pop().unwrap_or_default();
        let copied = &mut self.counts.copied_bytes;
        inner.sending.begin(&mut chunks, bytes_max, &self.shared, |chunk| {
            if is_pressed {
                *copied += copy_out(chunk, pool);
            }
        });
        let is_last = inner.sending.is_empty() && inner.is_ending();
        if is_last && inner.sending.hold_back() {
            ring.hold_back(inner.fd);
        }
        ring.submit(token(state, Kind::Send), Op::Send { fd: inner.fd, chunks, is_last });
    }

    pub(super) fn sent(&mut self, state: &Rc<StreamState>, inner: &mut Inner, completion: Completion) {
        let Completion { result, mut chunks, .. } = completion;
        let taken = usize::try_from(result).unwrap_or(0);
        let was_cancelled = inner.sending.complete(taken, self.shared.now.get());
        let goes_on = taken > 0 || matches!(-result, libc::ECANCELED | libc::EINTR);
        if !goes_on {
            inner.sending.fail(StreamError::from_errno(if result == 0 { libc::EPIPE } else { -result }));
        }
        if !goes_on || matches!(inner.phase, Phase::Ending { .. }) {
            chunks.clear();
            inner.sending.clear();
            inner.wake_all();
        }
        let (pool, copied) = (&self.shared.pool, &mut self.counts.copied_bytes);
        inner.sending.take_back(&mut chunks, taken, &self.shared.spares, |chunk| {
            // It was to give its buffers back, whether they are short at this moment or not.
            if was_cancelled {
                *copied += copy_out(chunk, pool);
            }
        });
        chunks.clear();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(chunks);
        }
        if inner.sending.has_room(&self.shared.settings) {
            inner.sending.waiting.wake();
        }
        if inner.parked.is_some() {
            // Parked before its last bytes were sent.
            inner.sending.shrink(&self.shared.spares);
            if inner.sending.error().is_some() {
                self.shared.push_parked(state);
            }
        }
    }
}
