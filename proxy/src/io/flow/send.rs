//! Sending: what is queued goes out in one send at a time, and what a send did not take goes back to the
//! front of the queue.

use std::rc::Rc;

use super::{Flow, token};
use crate::io::buffers::FRAGMENT_COST;
use crate::io::seam::{Completion, Op, Ring};
use crate::io::stream::{Fin, Inner, Phase, State, StreamError};
use crate::io::token::Kind;

/// Empty vectors for sends kept for reuse.
const SPARE_MAX: usize = 256;

impl Flow {
    pub(super) fn drive_send<R: Ring>(&mut self, state: &Rc<State>, inner: &mut Inner, ring: &mut R) {
        if inner.sending || inner.write_error.is_some() {
            return;
        }
        if inner.outbound.is_empty() {
            if inner.fin == Fin::Wanted {
                inner.fin = Fin::InFlight;
                ring.submit(token(state, Kind::Shutdown), Op::Shutdown { fd: inner.fd });
            }
            return;
        }
        let settings = self.shared.settings;
        let pressed = self.shared.pool.is_pressed();
        let bytes_max = if pressed { settings.send_bytes_pressed } else { settings.send_bytes_max };
        let mut chunks = self.spare.pop().unwrap_or_default();
        let mut bytes = 0;
        let mut pins = 0;
        while bytes < bytes_max && chunks.len() < settings.send_chunks_max {
            let Some(mut chunk) = inner.outbound.pop_front() else { break };
            if chunk.len() > bytes_max - bytes {
                let head = chunk.split_to(bytes_max - bytes);
                inner.outbound.push_front(std::mem::replace(&mut chunk, head), &self.shared.spares);
            }
            bytes += chunk.len();
            if pressed {
                self.copy_out(&mut chunk);
            }
            pins += if chunk.pins() { chunk.len() + FRAGMENT_COST } else { 0 };
            chunks.push(chunk);
        }
        inner.sending = true;
        inner.send_cancelled = false;
        inner.send_pins = u32::try_from(pins).unwrap_or(u32::MAX);
        inner.in_flight = u32::try_from(bytes).unwrap_or(u32::MAX);
        inner.send_started = self.shared.now.get();
        ring.submit(token(state, Kind::Send), Op::Send { fd: inner.fd, chunks });
    }

    pub(super) fn sent(&mut self, state: &Rc<State>, inner: &mut Inner, completion: Completion) {
        let Completion { result, mut chunks, .. } = completion;
        inner.sending = false;
        let sent = inner.in_flight as usize;
        inner.queued -= sent;
        inner.in_flight = 0;
        let ended = matches!(inner.phase, Phase::Ending { .. });
        let mut taken = usize::try_from(result).unwrap_or(0);
        if taken > 0 {
            inner.progress.sent += taken as u64;
            inner.progress.sent_at = self.shared.now.get();
        }
        // The peer's host takes what it gets at once: it may get more at a time.
        inner.flows = taken == sent;
        let retry = taken > 0 || matches!(-result, libc::ECANCELED | libc::EINTR);
        if !retry && inner.write_error.is_none() {
            inner.write_error =
                Some(StreamError::from_errno(if result == 0 { libc::EPIPE } else { -result }));
        }
        if ended || !retry {
            chunks.clear();
            inner.drop_outbound();
            inner.wake_all();
        }
        // What was not taken goes back to the front, in order.
        let whole = chunks
            .iter()
            .take_while(|chunk| taken.checked_sub(chunk.len()).map(|rest| taken = rest).is_some())
            .count();
        for mut chunk in chunks.drain(whole..).rev() {
            inner.queued += chunk.len();
            if inner.send_cancelled {
                // It was to give its buffers back, whether they are short at this moment or not.
                self.copy_out(&mut chunk);
            }
            inner.outbound.push_front(std::mem::take(&mut chunk), &self.shared.spares);
        }
        if let Some(first) = inner.outbound.front_mut().filter(|_| taken > 0) {
            first.advance(taken);
            inner.queued -= taken;
        }
        chunks.clear();
        if self.spare.len() < SPARE_MAX {
            self.spare.push(chunks);
        }
        if inner.has_room(&self.shared.settings) {
            inner.wake_writer();
        }
        if inner.parked.is_some() {
            // Parked before its last bytes were sent.
            inner.outbound.shrink(&self.shared.spares);
            if inner.write_error.is_some() {
                self.shared.push_parked(state);
            }
        }
    }
}
