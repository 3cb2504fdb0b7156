//! An HTTP/1.1 connection to an endpoint as an exchange slot (RFC 9112): one exchange at a time, its request
//! and its response each in a half of its own.

use std::cell::Cell;
use std::time::Duration;

use super::connection::Connection;
use super::group::Upstream;
use super::pin::Pinning;
use crate::exchange::BodyPart;
use crate::exchange::lease::{Lease, LeaseError, Processed, ReceiveResponse, SendRequest};
use crate::exchange::tunnel::TunnelEnd;
use crate::http::authentication;
use crate::http::h1::{BodyDecoder, Parsed, ResponseDecoder, encode};
use crate::http::limits::Limits;
use crate::http::message::{BodyLength, Fields, Method, RequestHead, ResponseHead};
use crate::io::{Chunk, Stream, StreamError};
use crate::time::Time;
use crate::tls::records::Violation;
use crate::wire::h1::{Outbound, ReadError, Taking, WriteError, next_part};
use crate::wire::pace::Pace;

/// A leased connection.
#[derive(Debug)]
pub struct H1Lease<'u> {
    connection: Connection,
    /// Whose pool it returns to.
    upstream: &'u Upstream,
    /// How long the endpoint may take nothing.
    stall: Duration,
    /// The request was handed over whole.
    is_sent: Cell<bool>,
    /// The endpoint keeps the connection open after this response.
    keeps_alive: Cell<bool>,
    /// Whether the connection belongs to the client's from now on.
    pinning: Pinning<'u>,
}

impl<'u> H1Lease<'u> {
    /// A connection of `upstream`. `stall`: how long the endpoint may take nothing.
    pub(super) const fn new(
        connection: Connection,
        upstream: &'u Upstream,
        stall: Duration,
        pinning: Pinning<'u>,
    ) -> Self {
        let (is_sent, keeps_alive) = (Cell::new(false), Cell::new(false));
        Self { connection, upstream, stall, is_sent, keeps_alive, pinning }
    }

    /// Whether it came from the pool.
    pub(super) const fn is_reused(&self) -> bool {
        self.connection.is_reused()
    }

    /// The endpoint ended TLS with this alert before it answered.
    fn refused(&self, alert: Violation) {
        if let Some(endpoint) = self.pinning.endpoint() {
            self.upstream.group.refused(endpoint, alert);
        }
    }

    /// Whether the kernel took no byte of this exchange.
    pub(super) fn sent_nothing(&self) -> bool {
        self.connection.sent_nothing()
    }
}

impl<'u> Lease for H1Lease<'u> {
    type Sender<'a>
        = Sender<'a>
    where
        Self: 'a;
    type Receiver<'a>
        = Receiver<'a, 'u>
    where
        Self: 'a;

    fn split<'a>(&'a self, head: &'a RequestHead) -> (Sender<'a>, Receiver<'a, 'u>) {
        let stream = self.connection.stream();
        let taking = Taking::new(self.stall, Pace::FREE, None);
        let sender = Sender {
            outbound: Outbound::new(&self.upstream.group.io, stream, taking),
            is_sent: &self.is_sent,
            pinning: &self.pinning,
        };
        let receiver = Receiver {
            lease: self,
            method: &head.method,
            decoder: ResponseDecoder::new(),
            head: Vec::new(),
            input: Chunk::default(),
            body: None,
            heard: false,
        };
        (sender, receiver)
    }

    #[inline]
    fn complete(self) {
        let Upstream { config, group } = self.upstream;
        match (self.is_sent.get(), self.keeps_alive.get()) {
            (true, true) => match self.pinning.keep(group, self.connection) {
                Some(connection) if config.send_proxy => connection.close_used(),
                Some(connection) => group.parked.keep(connection),
                None => {}
            },
            (true, _) => self.connection.let_end(),
            // The rest of a request that was answered early must not go out: a reset, not a flush.
            (false, _) => drop(self.connection),
        }
    }

    fn into_tunnel(self) -> Box<dyn TunnelEnd> {
        Box::new(self.connection.into_tunnel())
    }
}

/// See `SendRequest`.
#[derive(Debug)]
pub struct Sender<'a> {
    outbound: Outbound<'a>,
    is_sent: &'a Cell<bool>,
    pinning: &'a Pinning<'a>,
}

impl From<WriteError> for LeaseError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stream => Self::ClosedWithinResponse,
            WriteError::Stalled | WriteError::BelowMinRate => Self::TimedOut,
        }
    }
}

impl SendRequest for Sender<'_> {
    fn head(&mut self, head: &RequestHead) {
        let framing = encode::request(head, self.outbound.head());
        self.outbound.set_framing(framing);
        self.is_sent.set(matches!(head.body, BodyLength::None));
        self.pinning.note(authentication::request_binds_connection(head));
    }

    async fn data(&mut self, chunk: Chunk) -> Result<(), LeaseError> {
        Ok(self.outbound.data(chunk).await?)
    }

    async fn finish(&mut self, trailers: &Fields) -> Result<(), LeaseError> {
        self.outbound.finish(trailers);
        self.is_sent.set(true);
        Ok(())
    }

    fn flush(&mut self) {
        self.outbound.flush();
    }
}

/// See `ReceiveResponse`.
#[derive(Debug)]
pub struct Receiver<'a, 'u> {
    lease: &'a H1Lease<'u>,
    method: &'a Method,
    decoder: ResponseDecoder,
    /// The beginning of a head that did not come in one piece.
    head: Vec<u8>,
    /// Bytes that were received and not decoded yet.
    input: Chunk,
    body: Option<BodyDecoder>,
    /// A byte of the response was received.
    heard: bool,
}

impl Receiver<'_, '_> {
    const fn stream(&self) -> &'_ Stream {
        self.lease.connection.stream()
    }

    /// Whether the endpoint has not answered anything over this connection.
    const fn is_fresh(&self) -> bool {
        !self.heard && !self.lease.is_reused()
    }

    fn closed(&self) -> LeaseError {
        if self.heard {
            LeaseError::ClosedWithinResponse
        } else if self.lease.connection.sent_nothing() {
            LeaseError::ClosedBeforeResponse(Processed::No)
        } else {
            LeaseError::ClosedBeforeResponse(Processed::Maybe)
        }
    }
}

impl ReceiveResponse for Receiver<'_, '_> {
    async fn head(&mut self) -> Result<ResponseHead, LeaseError> {
        loop {
            if self.input.is_empty() {
                match self.stream().read().await {
                    Ok(Some(chunk)) => self.input = chunk,
                    Err(StreamError::Tls(alert @ Violation::Alert(_))) if self.is_fresh() => {
                        self.lease.refused(alert);
                        return Err(LeaseError::TlsRefused);
                    }
                    Ok(None) | Err(_) => return Err(self.closed()),
                }
            }
            self.heard = true;
            // A head that lies in one piece, as most do, is parsed in place.
            let before = self.head.len();
            let parsed = if before == 0 {
                self.decoder.parse(&self.input, self.method, &Limits::UPSTREAM)
            } else {
                self.head.extend_from_slice(&self.input);
                self.decoder.parse(&self.head, self.method, &Limits::UPSTREAM)
            };
            match parsed.map_err(|_| LeaseError::Malformed)? {
                Parsed::Head { head, consumed, keep_alive } => {
                    self.input.advance(consumed - before);
                    // An empty chunk still holds its receive buffer, and one block is all that the stream
                    // may have outstanding.
                    if self.input.is_empty() {
                        self.input = Chunk::default();
                    }
                    self.head.clear();
                    match head.status {
                        // The bytes that follow belong to another protocol.
                        101 => {
                            let rest = std::mem::take(&mut self.input);
                            self.stream().unread(rest);
                        }
                        ..200 => {}
                        _ => {
                            self.lease.keeps_alive.set(keep_alive);
                            self.lease.pinning.note(authentication::response_binds_connection(&head));
                            self.body = Some(BodyDecoder::new(head.body));
                        }
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
        self.stream().progress().sent_at
    }

    fn is_held(&self) -> bool {
        self.stream().is_held()
    }

    fn has_unsent(&self) -> bool {
        self.stream().unsent() > 0
    }

    async fn part(&mut self) -> Result<BodyPart, LeaseError> {
        let Some(body) = &mut self.body else { return Ok(BodyPart::End(Fields::new())) };
        match next_part(self.lease.connection.stream(), body, &mut self.input).await {
            Ok(part) => {
                if matches!(part, BodyPart::End(_)) && !self.input.is_empty() {
                    // Nobody asked for these bytes: they make the connection unfit for the pool.
                    let rest = std::mem::take(&mut self.input);
                    self.stream().unread(rest);
                }
                Ok(part)
            }
            Err(ReadError::Framing(_)) => Err(LeaseError::Malformed),
            Err(ReadError::Ended | ReadError::Stream(_)) => Err(self.closed()),
        }
    }
}
