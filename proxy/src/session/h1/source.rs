//! The body of an HTTP/1 request, read from the client's connection within the listener's limits.

use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::flags::Flags;
use crate::counters::Plain;
use crate::error::RefusalReason;
use crate::exchange::{BodyPart, BodySource, SourceError};
use crate::http::h1::{BodyDecoder, encode};
use crate::http::message::BodyLength;
use crate::io::{Chunk, Stream};
use crate::session::context::Worker;
use crate::session::seat::Seat;
use crate::time::Time;
use crate::wire::h1::{ReadError, next_part};
use crate::wire::pace::{Pace, SLOW_AFTER, Slowness};

/// See the module.
pub(super) struct Source<'a> {
    seat: &'a Seat,
    worker: &'a Worker,
    stream: &'a Stream,
    decoder: BodyDecoder,
    input: &'a mut Chunk,
    pause_max: Duration,
    pace: Pace,
    /// Body bytes still allowed.
    pub(super) room: u64,
    flags: &'a Flags,
}

impl<'a> Source<'a> {
    /// The body of a request. `input` holds bytes received already.
    pub(super) fn new(seat: &'a Seat, body: BodyLength, input: &'a mut Chunk, flags: &'a Flags) -> Self {
        let listener = &seat.listener;
        Self {
            seat,
            worker: &seat.worker,
            stream: &seat.stream,
            decoder: BodyDecoder::new(body),
            input,
            pause_max: listener.timeouts.request_body,
            pace: Pace::new(listener.timeouts.min_rate),
            room: match listener.limits.body_bytes {
                0 => u64::MAX,
                limit => limit,
            },
            flags,
        }
    }
}

impl Source<'_> {
    /// The next part, unless it takes longer than `wait` from now. A client that is slow may have to give way
    /// meanwhile.
    async fn part_within(&mut self, now: Time, wait: Duration) -> Option<Result<BodyPart, ReadError>> {
        let io = &self.worker.io;
        let overspent = self.pace.overspent();
        let trust = if overspent.is_some() { Duration::ZERO } else { SLOW_AFTER.min(wait) };
        let mut next = pin!(next_part(self.stream, &mut self.decoder, self.input));
        if let Ok(part) = io.timeout_at(now + trust, next.as_mut()).await {
            return Some(part);
        }
        let mut slowness = Slowness::new(Some(self.seat));
        if !self.stream.is_held() {
            slowness.tell(Some(now - overspent.unwrap_or_default()));
        }
        io.timeout_at(now + wait, next).await.ok()
    }
}

impl BodySource for Source<'_> {
    fn is_whole(&self, length: u64) -> bool {
        length <= self.input.len() as u64
    }

    fn awaits_continue(&self) -> bool {
        self.flags.wants_continue.get() && self.input.is_empty() && !self.stream.is_readable()
    }

    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.input.is_empty() {
            // An end or an error stays for `next` to find.
            if let Ok(Some(chunk)) = ready!(self.stream.poll_read(cx)) {
                *self.input = chunk;
            }
        }
        Poll::Ready(())
    }

    async fn next(&mut self) -> Result<BodyPart, SourceError> {
        if self.awaits_continue() {
            self.stream.write(Chunk::from_static(encode::CONTINUE));
            self.worker.counters.add(Plain::SentBytes, encode::CONTINUE.len() as u64);
            self.worker.counters.increment(Plain::Responses1xx);
        }
        self.flags.wants_continue.set(false);
        let part = loop {
            let (started, wait) = (self.worker.io.now(), self.pause_max.min(self.pace.left()));
            let next = self.part_within(started, wait).await;
            self.pace.waited(self.worker.io.now() - started);
            break match next {
                Some(Ok(part)) => part,
                Some(Err(ReadError::Framing(_))) => {
                    return Err(SourceError::Refused(RefusalReason::Malformed));
                }
                Some(Err(ReadError::Ended | ReadError::Stream(_))) => return Err(SourceError::Aborted),
                // The client is not to blame: there is no buffer to receive into.
                None if self.stream.is_held() => {
                    self.pace.pardon();
                    continue;
                }
                None if wait < self.pause_max => {
                    return Err(SourceError::Refused(RefusalReason::RequestTooSlow));
                }
                None => return Err(SourceError::Refused(RefusalReason::RequestTimeout)),
            };
        };
        match &part {
            BodyPart::Data(chunk) => {
                self.pace.moved(chunk.len() as u64, self.pause_max);
                self.room = self
                    .room
                    .checked_sub(chunk.len() as u64)
                    .ok_or(SourceError::Refused(RefusalReason::BodyTooLarge))?;
            }
            BodyPart::End(_) => self.flags.ended.set(true),
        }
        Ok(part)
    }
}
