//! The sending side of a stream: the bytes that wait, the send operation that takes them, and our end of the
//! connection.

use std::collections::vec_deque;
use std::time::Duration;

use super::{Queue, Spares, StreamError};
use crate::io::Chunk;
use crate::io::WaitingTask;
use crate::io::buffers::FRAGMENT_COST;
use crate::io::settings::Settings;
use crate::io::shared::Shared;
use crate::time::Time;

/// Bytes that surely fit one segment.
const SEGMENT_BYTES: u32 = 1200;

/// Where the send operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SendOp {
    /// None in flight.
    Idle,
    /// In flight.
    Armed,
    /// In flight, and its cancel too.
    Cancelling,
}

/// Where the end of our direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum Fin {
    No,
    /// Behind the queued bytes.
    Wanted,
    Sent,
}

/// See the module. The send in flight carries bytes: `in_flight` is 0 if and only if there is none.
pub(in crate::io) struct Sending {
    operation: SendOp,
    pub(in crate::io) fin: Fin,
    /// Queued, and not handed to a send yet.
    queue: Queue,
    /// Bytes in `queue` and in flight.
    unsent: usize,
    /// Bytes in the send in flight, at most `Settings::send_bytes_max`.
    in_flight: u32,
    /// The cost of copying the ring buffers that the send in flight holds.
    pins: u32,
    /// When the send in flight, or the last one, was submitted.
    began: Time,
    /// Whether the last send was taken whole: the peer's host takes its bytes at once.
    flows: bool,
    /// `hold_back` said so.
    is_held_back: bool,
    /// Instead of `Settings::write_low`, unless 0.
    write_low: u32,
    /// Why nothing can be sent any more; of a connect that failed, why.
    error: Option<StreamError>,
    /// Bytes that the kernel took so far, and when it took the last of them.
    bytes: u64,
    at: Time,
    /// Wakes the task that waits to write, or for the flush: it is one task.
    pub(in crate::io) waiting: WaitingTask,
}

impl Sending {
    pub(super) fn new(now: Time) -> Self {
        Self {
            operation: SendOp::Idle,
            fin: Fin::No,
            queue: Queue::default(),
            unsent: 0,
            in_flight: 0,
            pins: 0,
            began: now,
            flows: false,
            is_held_back: false,
            write_low: 0,
            error: None,
            bytes: 0,
            at: now,
            waiting: WaitingTask::NOBODY,
        }
    }

    /// Queues bytes.
    pub(super) fn push(&mut self, chunk: Chunk, spares: &Spares) {
        self.unsent += chunk.len();
        self.queue.push_back(chunk, spares);
    }

    /// Bytes queued and in flight.
    pub(in crate::io) const fn unsent(&self) -> usize {
        self.unsent
    }

    /// Whether nothing waits for a send.
    pub(in crate::io) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the kernel took all that was queued.
    pub(in crate::io) const fn is_flushed(&self) -> bool {
        self.unsent == 0
    }

    pub(in crate::io) fn is_in_flight(&self) -> bool {
        self.operation != SendOp::Idle
    }

    /// Chunks that wait for a send.
    pub(in crate::io) fn queued_mut(&mut self) -> vec_deque::IterMut<'_, Chunk> {
        self.queue.iter_mut()
    }

    /// Lets go of the queue's memory if it is empty.
    pub(in crate::io) fn shrink(&mut self, spares: &Spares) {
        self.queue.shrink(spares);
    }

    /// Throws away queued bytes. Bytes in flight stay counted until their send completes.
    pub(in crate::io) fn clear(&mut self) {
        self.queue.clear();
        self.unsent = self.in_flight as usize;
    }

    /// The engine is gone, and its send in flight too.
    pub(in crate::io) fn abandon(&mut self) {
        self.operation = SendOp::Idle;
        self.in_flight = 0;
        self.clear();
    }

    /// Moves up to `bytes_max` bytes to `chunks`, for a send that is about to be submitted. `prepare` sees
    /// each chunk first.
    pub(in crate::io) fn begin(
        &mut self,
        chunks: &mut Vec<Chunk>,
        bytes_max: usize,
        shared: &Shared,
        mut prepare: impl FnMut(&mut Chunk),
    ) {
        let (mut bytes, mut pins) = (0, 0);
        while bytes < bytes_max && chunks.len() < shared.settings.send_chunks_max {
            let Some(mut chunk) = self.queue.pop_front() else { break };
            if chunk.len() > bytes_max - bytes {
                let head = chunk.split_to(bytes_max - bytes);
                self.queue.push_front(std::mem::replace(&mut chunk, head), &shared.spares);
            }
            bytes += chunk.len();
            prepare(&mut chunk);
            pins += if chunk.pins() { chunk.len() + FRAGMENT_COST } else { 0 };
            chunks.push(chunk);
        }
        self.operation = SendOp::Armed;
        self.pins = u32::try_from(pins).unwrap_or(u32::MAX);
        self.in_flight = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.began = shared.now.get();
    }

    /// Whether the kernel must be told to keep the end of a last send, which has begun, until our FIN; once.
    /// Each acknowledgement of bytes before it would send it else, so a single segment needs no telling.
    pub(in crate::io) const fn hold_back(&mut self) -> bool {
        let is_alone = self.bytes == 0 && self.in_flight <= SEGMENT_BYTES;
        !is_alone && !std::mem::replace(&mut self.is_held_back, true)
    }

    /// The send is over, and the kernel took so many of its bytes; the others are not counted any more. Says
    /// whether the send was cancelled.
    #[inline]
    pub(in crate::io) fn complete(&mut self, taken: usize, now: Time) -> bool {
        let was_cancelled = std::mem::replace(&mut self.operation, SendOp::Idle) == SendOp::Cancelling;
        let bytes = std::mem::take(&mut self.in_flight) as usize;
        self.unsent -= bytes;
        if taken > 0 {
            self.bytes += taken as u64;
            self.at = now;
        }
        self.flows = taken == bytes;
        was_cancelled
    }

    /// Puts the part of a send's `chunks` that the kernel did not take back to the front of the queue.
    /// `prepare` sees each chunk of it first.
    #[inline]
    pub(in crate::io) fn take_back(
        &mut self,
        chunks: &mut Vec<Chunk>,
        mut taken: usize,
        spares: &Spares,
        mut prepare: impl FnMut(&mut Chunk),
    ) {
        let whole = chunks
            .iter()
            .take_while(|chunk| taken.checked_sub(chunk.len()).map(|rest| taken = rest).is_some())
            .count();
        for mut chunk in chunks.drain(whole..).rev() {
            self.unsent += chunk.len();
            prepare(&mut chunk);
            self.queue.push_front(chunk, spares);
        }
        if let Some(first) = self.queue.front_mut().filter(|_| taken > 0) {
            first.advance(taken);
            self.unsent -= taken;
        }
    }

    /// Has the send in flight cancelled, once; `false`: there is none, or its cancel is in flight already.
    pub(in crate::io) fn cancel(&mut self) -> bool {
        let is_armed = self.operation == SendOp::Armed;
        if is_armed {
            self.operation = SendOp::Cancelling;
        }
        is_armed
    }

    /// The cost of copying the ring buffers of a send that has held them for `longer_than` and is not being
    /// cancelled; 0: there is none.
    pub(in crate::io) fn stuck_pins(&self, longer_than: Duration, now: Time) -> usize {
        let is_stuck = self.operation == SendOp::Armed && now.since(self.began) > longer_than;
        if is_stuck { self.pins as usize } else { 0 }
    }

    /// Bytes queued and in flight, of a send that has not moved for so long; else 0.
    pub(in crate::io) fn unmoved(&self, duration: Duration, now: Time) -> usize {
        let since = self.at.max(self.began);
        if self.is_in_flight() && now.since(since) >= duration { self.unsent } else { 0 }
    }

    /// Whether another write may be queued. It may below the low-water mark. It also may above, while nothing
    /// holds the last writes up and they wait only for this turn's send to go out together.
    pub(in crate::io) fn has_room(&self, settings: &Settings) -> bool {
        let low = if self.write_low == 0 { settings.write_low } else { self.write_low as usize };
        self.unsent < low || (self.flows && !self.is_in_flight() && self.unsent < settings.send_bytes_max)
    }

    pub(super) fn set_write_low(&mut self, bytes: usize) {
        self.write_low = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
    }

    pub(in crate::io) const fn error(&self) -> Option<StreamError> {
        self.error
    }

    /// Nothing can be sent any more. The first reason stays.
    pub(in crate::io) fn fail(&mut self, error: StreamError) {
        self.error.get_or_insert(error);
    }

    /// Bytes that the kernel took so far.
    pub(in crate::io) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the kernel last took bytes; before, when the connection was there.
    pub(super) const fn at(&self) -> Time {
        self.at
    }

    /// The connection is there.
    pub(in crate::io) const fn connected(&mut self, now: Time) {
        self.at = now;
    }

    /// Counts that must agree; for tests and the simulation.
    ///
    /// # Panics
    /// When they do not.
    pub(in crate::io) fn check_invariants(&self) {
        assert_eq!(self.unsent, self.queue.bytes() + self.in_flight as usize, "outbound bytes");
        assert_eq!(self.is_in_flight(), self.in_flight > 0, "a send carries bytes");
    }
}
