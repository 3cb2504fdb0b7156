//! Writes the response of an exchange to a client of HTTP/1 (RFC 9112).

use super::flags::Flags;
use super::next::Answer;
use crate::counters::Plain;
use crate::exchange::record::{Phase, Record};
use crate::exchange::tunnel::TunnelEnd;
use crate::exchange::{ResponseSink, SinkError};
use crate::http::h1::{Recipient, encode};
use crate::http::message::{Fields, ResponseHead, Version};
use crate::io::{Chunk, Stream};
use crate::session::context::Worker;
use crate::session::seat::Seat;
use crate::wire::h1::{Outbound, Taking, WriteError};
use crate::wire::pace::Pace;

/// See the module.
pub(super) struct Sink<'a> {
    worker: &'a Worker,
    pub(super) outbound: Outbound<'a>,
    stream: &'a Stream,
    recipient: Recipient,
    flags: &'a Flags,
    /// The response said that the connection goes on.
    kept_alive: bool,
    record: Option<&'a Record>,
}

impl<'a> Sink<'a> {
    /// A sink to the client of `seat`.
    pub(super) fn new(
        seat: &'a Seat,
        recipient: Recipient,
        flags: &'a Flags,
        record: Option<&'a Record>,
    ) -> Self {
        let (worker, stream, timeouts) = (&seat.worker, &seat.stream, &seat.listener.timeouts);
        let taking = Taking::new(timeouts.send, Pace::new(timeouts.min_rate), Some(seat));
        Self {
            worker,
            outbound: Outbound::new(&worker.io, stream, taking),
            stream,
            recipient,
            flags,
            kept_alive: false,
            record,
        }
    }

    /// How far the client was answered.
    pub(super) const fn answer(&self) -> Answer {
        Answer { kept_alive: self.kept_alive, framing: self.outbound.framing() }
    }

    fn count(&mut self) {
        match self.outbound.take_queued() {
            0 => {}
            bytes => {
                self.worker.counters.add(Plain::SentBytes, bytes);
                if let Some(record) = self.record {
                    record.sent(bytes);
                }
            }
        }
    }
}

impl From<WriteError> for SinkError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stream => Self::Aborted,
            WriteError::Stalled => Self::TooSlow,
            WriteError::BelowMinRate => Self::BelowMinRate,
        }
    }
}

impl ResponseSink for Sink<'_> {
    fn read_ahead(&mut self, bytes: usize) {
        self.outbound.read_ahead(bytes);
    }

    fn switch(&mut self, head: &ResponseHead, upstream: Box<dyn TunnelEnd>) {
        encode::switching(head, self.outbound.head());
        self.flush();
        self.worker.counters.increment(Plain::Responses1xx);
        self.flags.tunnel.set(Some(upstream));
        if let Some(record) = self.record {
            record.answered(head.status);
        }
    }

    async fn informational(&mut self, head: &ResponseHead) -> Result<(), SinkError> {
        if self.recipient.version == Version::Http10 {
            return Ok(());
        }
        // A client gets one 100, and only if it waits for it.
        if head.status == 100 && !self.flags.wants_continue.replace(false) {
            return Ok(());
        }
        self.outbound.writable().await?;
        let mut bytes = Vec::new();
        encode::informational(head, &mut bytes);
        self.worker.counters.add(Plain::SentBytes, bytes.len() as u64);
        self.stream.write(Chunk::from_vec(bytes));
        self.worker.counters.increment(Plain::Responses1xx);
        Ok(())
    }

    async fn head(&mut self, head: &ResponseHead) -> Result<(), SinkError> {
        // A request that was answered early is not read to its end: its connection ends with the response. A
        // connection also ends with the first response after a drain began.
        let keep_alive = self.recipient.keep_alive && self.flags.ended.get() && !self.worker.is_draining();
        self.flags.wants_continue.set(false);
        let sent = encode::response(head, Recipient { keep_alive, ..self.recipient }, self.outbound.head());
        self.kept_alive = sent.keep_alive;
        self.outbound.set_framing(sent.framing);
        if let Some(record) = self.record {
            record.answered(head.status);
        }
        Ok(())
    }

    async fn data(&mut self, chunk: Chunk) -> Result<(), SinkError> {
        self.outbound.data(chunk).await?;
        self.count();
        Ok(())
    }

    async fn finish(&mut self, trailers: Fields) -> Result<(), SinkError> {
        self.outbound.finish(&trailers);
        self.count();
        if let Some(record) = self.record {
            record.reached(Phase::LastByte);
        }
        Ok(())
    }

    fn flush(&mut self) {
        self.outbound.flush();
        self.count();
    }

    async fn taken(&mut self) -> Result<(), SinkError> {
        Ok(self.outbound.flushed().await?)
    }
}
