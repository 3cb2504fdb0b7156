//! What both sides of an HTTP/1 exchange share: reading a body in place from a stream, and waiting for room to write.

use std::time::Duration;

use super::exchange::BodyPart;
use crate::http::h1::{BodyDecoder, BodyError, Framing, Step};
use crate::http::message::Fields;
use crate::io::{Chunk, Io, Stream, StreamError};

/// Body bytes up to this are copied behind the framing they travel with: one buffer to send instead of two, and a loan that ends early.
const COALESCE_BYTES: usize = 2048;

/// Room for most heads. Just below what glibc keeps at hand for each thread (1,032 bytes): larger ones cost ten times as much.
const HEAD_BYTES: usize = 1000;

/// Held back bytes beyond this leave at once.
const HELD_BYTES: usize = 16 * 1024;

/// Why a body cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// The connection broke.
    Stream(StreamError),
    /// It ended within the body.
    Ended,
    /// The body's framing is broken.
    Framing(BodyError),
}

/// The next part of a body. `input` holds what was received and not taken yet, so that the future may be dropped at any time; after the
/// end it holds what follows the body.
pub(crate) async fn next_part(stream: &Stream, decoder: &mut BodyDecoder, input: &mut Chunk) -> Result<BodyPart, ReadError> {
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
}

/// Waits for room in the outbound queue, as long as the peer takes something every `stall`.
pub(crate) async fn writable(io: &Io, stream: &Stream, stall: Duration) -> Result<(), WriteError> {
    let started = io.now();
    loop {
        let deadline = stream.progress().sent_at.max(started) + stall;
        if let Ok(result) = io.timeout_at(deadline, stream.writable()).await {
            return result.map_err(|_| WriteError::Stream);
        }
        if stream.progress().sent_at.max(started) + stall <= io.now() {
            return Err(WriteError::Stalled);
        }
    }
}

/// One message on its way out: head, framing and small body parts are held back until there is reason to send them, large parts pass
/// through as they are.
#[derive(Debug)]
pub(crate) struct Outbound<'a> {
    io: &'a Io,
    stream: &'a Stream,
    stall: Duration,
    held: Vec<u8>,
    framing: Framing,
    /// Bytes queued since `take_queued`.
    queued: u64,
}

impl<'a> Outbound<'a> {
    /// Nothing to say yet. `stall`: how long the peer may take nothing.
    pub(crate) const fn new(io: &'a Io, stream: &'a Stream, stall: Duration) -> Self {
        Self { io, stream, stall, held: Vec::new(), framing: Framing::None, queued: 0 }
    }

    /// Where to write a head.
    pub(crate) fn head(&mut self) -> &mut Vec<u8> {
        if self.held.capacity() == 0 {
            self.held.reserve(HEAD_BYTES);
        }
        &mut self.held
    }

    /// How the body is framed that follows the head.
    pub(crate) fn set_framing(&mut self, framing: Framing) {
        self.framing = framing;
    }

    /// How it is.
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
        writable(self.io, self.stream, self.stall).await?;
        self.flush();
        if !is_small {
            self.queued += chunk.len() as u64;
            self.stream.write(chunk);
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
