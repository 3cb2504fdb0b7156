//! HTTP/1 on a stream, for both sides of an exchange: bodies are read in place, and messages are written as
//! the peer takes them.

use std::time::Duration;

use super::pace::{Pace, SLOW_AFTER, Slowness, Watch};
use crate::exchange::BodyPart;
use crate::http::h1::{BodyDecoder, BodyError, Framing, Step};
use crate::http::message::Fields;
use crate::io::{Chunk, Io, Stream, StreamError};

/// Body bytes up to this are copied behind the framing they travel with: one buffer to send instead of two,
/// and a loan that ends early.
const COALESCE_BYTES: usize = 2048;

/// Room for most heads. glibc keeps allocations of up to 1,032 bytes at hand for each thread; a larger one
/// costs ten times as much.
const HEAD_BYTES: usize = 1000;

/// More bytes than this are not held back.
const HELD_BYTES: usize = 16 * 1024;

/// Bytes that may wait for a peer as loans. The stream that received them may have little more outstanding,
/// and would receive no more.
const LOANS_MAX: usize = 128 * 1024;

/// If more than `LOANS_MAX` may be read ahead, body parts are copied once so many bytes wait.
const LOANED_BYTES: usize = 64 * 1024;

/// How long a wait lasts before the delivered bytes are looked at for the first time, and each time for a
/// watch.
const LOOK_AFTER: Duration = SLOW_AFTER;

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// The connection broke.
    Stream(StreamError),
    /// The connection ended within the body.
    Ended,
    /// The body's framing is broken.
    Framing(BodyError),
}

/// The next part of a body. `input` keeps the bytes that were received and not decoded yet, so that the
/// future may be dropped at any time. After the end it has the bytes that follow the body.
pub(crate) async fn next_part(
    stream: &Stream,
    decoder: &mut BodyDecoder,
    input: &mut Chunk,
) -> Result<BodyPart, ReadError> {
    loop {
        match decoder.decode(input).map_err(ReadError::Framing)? {
            Step::Data { skip, len } => {
                input.advance(skip);
                let whole = len == input.len();
                return Ok(BodyPart::Data(if whole { std::mem::take(input) } else { input.split_to(len) }));
            }
            Step::End { consumed, trailers } => {
                input.advance(consumed);
                return Ok(BodyPart::End(trailers));
            }
            Step::NeedMore { .. } => *input = Chunk::default(),
        }
        match stream.read().await.map_err(ReadError::Stream)? {
            Some(chunk) => *input = chunk,
            None => {
                decoder.eof().map_err(|_| ReadError::Ended)?;
                return Ok(BodyPart::End(Fields::new()));
            }
        }
    }
}

/// Why nothing more can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteError {
    /// The connection broke.
    Stream,
    /// The peer took nothing for the time allowed.
    Stalled,
    /// The peer was slower than `min_rate`.
    BelowMinRate,
}

/// How a peer takes what it is sent.
#[derive(Debug)]
pub(crate) struct Taking<'a> {
    /// How long it may take nothing.
    stall: Duration,
    pace: Pace,
    /// Bytes delivered when that was last looked at.
    delivered: Option<u64>,
    /// Learns when the peer is slow.
    watch: Option<&'a dyn Watch>,
}

impl<'a> Taking<'a> {
    pub(crate) const fn new(stall: Duration, pace: Pace, watch: Option<&'a dyn Watch>) -> Self {
        Self { stall, pace, delivered: None, watch }
    }

    /// Waits for room in the outbound queue, while the peer goes on taking bytes.
    pub(crate) async fn writable(&mut self, io: &Io, stream: &Stream) -> Result<(), WriteError> {
        self.wait(io, stream, || stream.writable()).await
    }

    /// Waits until the peer has taken every byte.
    pub(crate) async fn flushed(&mut self, io: &Io, stream: &Stream) -> Result<(), WriteError> {
        self.wait(io, stream, || stream.flushed()).await
    }

    async fn wait<F>(&mut self, io: &Io, stream: &Stream, wanted: impl Fn() -> F) -> Result<(), WriteError>
    where
        F: Future<Output = Result<(), StreamError>>,
    {
        let mut moved_at = io.now();
        let mut slowness = Slowness::new(self.watch);
        loop {
            let started = io.now();
            let mut due =
                (stream.progress().sent_at.max(moved_at) + self.stall).min(started + self.pace.left());
            if self.delivered.is_none() || slowness.is_watched() {
                due = due.min(started + LOOK_AFTER);
            }
            let waited = io.timeout_at(due, wanted()).await;
            let now = io.now();
            self.pace.waited(now - started);
            if let Ok(result) = waited {
                return result.map_err(|_| WriteError::Stream);
            }
            // Our kernel buffers much, and reports room in large steps. The bytes that the peer's host
            // acknowledged tell more.
            let delivered = stream.delivered();
            let before = self.delivered.replace(delivered);
            match before {
                // Nothing to compare with: the wait until here cannot be judged.
                None if self.pace.left().is_zero() => self.pace.pardon(),
                Some(before) if delivered > before => {
                    moved_at = now;
                    self.pace.moved(delivered - before, self.stall);
                }
                _ => {}
            }
            let last_moved = stream.progress().sent_at.max(moved_at);
            if last_moved + self.stall <= now {
                return Err(WriteError::Stalled);
            }
            let is_silent = before.is_some() && last_moved + SLOW_AFTER <= now;
            let overspent = self.pace.overspent().map(|spent| now - spent);
            slowness.tell(if is_silent { Some(last_moved) } else { overspent });
            if self.pace.left().is_zero() {
                return Err(WriteError::BelowMinRate);
            }
        }
    }
}

/// One message on its way out. Head, framing and small body parts are held back until there is reason to send
/// them. Large parts pass through as they are.
#[derive(Debug)]
pub(crate) struct Outbound<'a> {
    io: &'a Io,
    stream: &'a Stream,
    taking: Taking<'a>,
    /// Whether large parts are copied out of the ring's buffers while the peer is behind.
    owns: bool,
    held: Vec<u8>,
    framing: Framing,
    /// Bytes queued since `take_queued`.
    queued: u64,
}

impl<'a> Outbound<'a> {
    /// Nothing to say yet.
    pub(crate) const fn new(io: &'a Io, stream: &'a Stream, taking: Taking<'a>) -> Self {
        Self { io, stream, taking, owns: false, held: Vec::new(), framing: Framing::None, queued: 0 }
    }

    /// Where to write a head.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        if self.held.capacity() == 0 {
            self.held.reserve(HEAD_BYTES);
        }
        &mut self.held
    }

    /// Lets so many bytes wait for the peer.
    pub(crate) fn read_ahead(&mut self, bytes: usize) {
        self.stream.set_write_low(bytes);
        self.owns = bytes > LOANS_MAX;
    }

    /// Waits for room.
    pub(crate) async fn writable(&mut self) -> Result<(), WriteError> {
        self.taking.writable(self.io, self.stream).await
    }

    /// Waits until the peer has taken all that was queued.
    pub(crate) async fn flushed(&mut self) -> Result<(), WriteError> {
        self.taking.flushed(self.io, self.stream).await
    }

    /// Sets the framing of the body that follows the head.
    pub(crate) fn set_framing(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// The framing of the body.
    pub(crate) const fn framing(&self) -> Framing {
        self.framing
    }

    /// Body bytes. Waits for room.
    pub(crate) async fn data(&mut self, chunk: Chunk) -> Result<(), WriteError> {
        if self.framing == Framing::None || chunk.is_empty() {
            return Ok(());
        }
        self.framing.before_data(chunk.len(), &mut self.held);
        let is_small = chunk.len() <= COALESCE_BYTES;
        if is_small {
            self.held.extend_from_slice(&chunk);
            self.held.extend_from_slice(self.framing.after_data());
        }
        if is_small && self.held.len() < HELD_BYTES {
            return Ok(());
        }
        self.writable().await?;
        self.flush();
        if !is_small {
            self.queued += chunk.len() as u64;
            let is_behind = self.owns && self.stream.backlog() >= LOANED_BYTES;
            self.stream.write(if is_behind { self.io.own(chunk) } else { chunk });
            self.held.extend_from_slice(self.framing.after_data());
        }
        Ok(())
    }

    /// The end of the body.
    pub(crate) fn finish(&mut self, trailers: &Fields) {
        self.framing.end(trailers, &mut self.held);
        self.flush();
    }

    /// Sends what is held back.
    pub(crate) fn flush(&mut self) {
        if !self.held.is_empty() {
            self.queued += self.held.len() as u64;
            self.stream.write(Chunk::from_vec(std::mem::take(&mut self.held)));
        }
    }

    /// Bytes queued since the last call.
    pub(crate) const fn take_queued(&mut self) -> u64 {
        std::mem::replace(&mut self.queued, 0)
    }
}
