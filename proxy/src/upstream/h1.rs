//! An HTTP/1.1 connection to an endpoint as an exchange slot (RFC 9112): one exchange at a time, its request
//! and its response each in a half of its own.

use std::time::Duration;

use super::connector::Connection;
use super::slot::{ReceiveResponse, SendRequest, SlotError};
use crate::http::h1::{BodyDecoder, Parsed, ResponseDecoder, encode};
use crate::http::limits::Limits;
use crate::http::message::{Fields, Method, RequestHead, ResponseHead};
use crate::io::{Chunk, Io, Stream};
use crate::session::exchange::BodyPart;
use crate::session::flow::{self, Outbound, ReadError, Taking, WriteError};
use crate::session::pace::Pace;
use crate::time::Time;

/// A leased connection.
#[derive(Debug)]
pub struct Slot<'a> {
    connection: Connection,
    io: &'a Io,
    stall: Duration,
}

impl<'a> Slot<'a> {
    /// `stall`: how long the endpoint may take nothing.
    #[must_use]
    pub const fn new(connection: Connection, io: &'a Io, stall: Duration) -> Self {
        Self { connection, io, stall }
    }

    /// The halves for one request.
    #[must_use]
    pub fn split<'s>(&'s self, head: &'s RequestHead) -> (Sender<'s>, Receiver<'s>) {
        let stream = self.connection.stream();
        let sender = Sender(Outbound::new(self.io, stream, Taking::new(self.stall, Pace::FREE)));
        let receiver = Receiver {
            stream,
            method: &head.method,
            decoder: ResponseDecoder::new(),
            head: Vec::new(),
            input: Chunk::default(),
            body: None,
            heard: false,
        };
        (sender, receiver)
    }

    /// Gives the connection back.
    #[must_use]
    pub fn into_connection(self) -> Connection {
        self.connection
    }
}

/// See `SendRequest`.
#[derive(Debug)]
pub struct Sender<'a>(Outbound<'a>);

impl From<WriteError> for SlotError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stream => Self::ClosedWithinResponse,
            WriteError::Stalled | WriteError::BelowMinRate => Self::TimedOut,
        }
    }
}

impl SendRequest for Sender<'_> {
    fn head(&mut self, head: &RequestHead) {
        let framing = encode::request(head, self.0.head());
        self.0.set_framing(framing);
    }

    async fn data(&mut self, chunk: Chunk) -> Result<(), SlotError> {
        Ok(self.0.data(chunk).await?)
    }

    async fn finish(&mut self, trailers: &Fields) -> Result<(), SlotError> {
        self.0.finish(trailers);
        Ok(())
    }

    fn flush(&mut self) {
        self.0.flush();
    }
}

/// See `ReceiveResponse`.
#[derive(Debug)]
pub struct Receiver<'a> {
    stream: &'a Stream,
    method: &'a Method,
    decoder: ResponseDecoder,
    /// A head that did not come in one piece.
    head: Vec<u8>,
    /// What was received and not taken yet.
    input: Chunk,
    body: Option<BodyDecoder>,
    /// A byte of the response was received.
    heard: bool,
}

impl Receiver<'_> {
    fn closed(&self) -> SlotError {
        if self.heard { SlotError::ClosedWithinResponse } else { SlotError::ClosedBeforeResponse }
    }
}

impl ReceiveResponse for Receiver<'_> {
    async fn head(&mut self) -> Result<ResponseHead, SlotError> {
        loop {
            if self.input.is_empty() {
                match self.stream.read().await {
                    Ok(Some(chunk)) => self.input = chunk,
                    Ok(None) | Err(_) => return Err(self.closed()),
                }
            }
            self.heard = true;
            // In place if the head lies in one piece, which is the rule.
            let before = self.head.len();
            let parsed = if before == 0 {
                self.decoder.parse(&self.input, self.method, &Limits::UPSTREAM)
            } else {
                self.head.extend_from_slice(&self.input);
                self.decoder.parse(&self.head, self.method, &Limits::UPSTREAM)
            };
            match parsed.map_err(|_| SlotError::Malformed)? {
                Parsed::Head { head, consumed } => {
                    self.input.advance(consumed - before);
                    // Empty, it would still hold a receive buffer, and a block is all that the stream may
                    // have outstanding.
                    if self.input.is_empty() {
                        self.input = Chunk::default();
                    }
                    self.head.clear();
                    match head.status {
                        // What follows is another protocol's.
                        101 => self.stream.unread(std::mem::take(&mut self.input)),
                        ..200 => {}
                        _ => self.body = Some(BodyDecoder::new(head.body)),
                    }
                    return Ok(head);
                }
                Parsed::NeedMore => {
                    if before == 0 {
                        self.head.extend_from_slice(&self.input);
                    }
                    self.input = Chunk::default();
                }
            }
        }
    }

    fn taken_at(&self) -> Time {
        self.stream.progress().sent_at
    }

    fn is_held(&self) -> bool {
        self.stream.is_held()
    }

    fn has_unsent(&self) -> bool {
        self.stream.unsent() > 0
    }

    async fn part(&mut self) -> Result<BodyPart, SlotError> {
        let Some(body) = &mut self.body else { return Ok(BodyPart::End(Fields::new())) };
        match flow::next_part(self.stream, body, &mut self.input).await {
            Ok(part) => {
                if matches!(part, BodyPart::End(_)) && !self.input.is_empty() {
                    // Nobody asked for more: this makes the connection unfit for the pool.
                    self.stream.unread(std::mem::take(&mut self.input));
                }
                Ok(part)
            }
            Err(ReadError::Framing(_)) => Err(SlotError::Malformed),
            Err(ReadError::Ended | ReadError::Stream(_)) => Err(self.closed()),
        }
    }
}
