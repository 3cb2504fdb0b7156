//! The server side of one HTTP/1 connection (RFC 9112): from the first byte of a request to the next boundary
//! with nothing received, requests in order, one exchange at a time. Between requests the connection is a row
//! in the worker's table.

use std::cell::Cell;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::context::Worker;
use super::record::Logged;
use super::seat::Seat;
use super::{early, table, tunnel};
use crate::counters::Plain;
use crate::error::{CloseReason, RefusalReason};
use crate::exchange::record::{Phase, Record};
use crate::exchange::tunnel::TunnelEnd;
use crate::exchange::{
    BodyPart, BodySource, Client, Local, Outcome, ResponseSink, Scene, SinkError, SourceError, answer,
    exchange, outcome,
};
use crate::http::h1::{BodyDecoder, Framing, Parsed, Recipient, RequestDecoder, encode};
use crate::http::message::{BodyLength, Fields, RequestHead, ResponseHead, Version};
use crate::io::{Chunk, Stream};
use crate::listen;
use crate::time::Time;
use crate::wire::h1::{Outbound, ReadError, Taking, WriteError, next_part};
use crate::wire::pace::Pace;

/// How a request leaves its connection.
enum Next {
    /// Ready for another request.
    Request,
    /// To be closed after what is queued. The engine flushes, ends our direction and reads past what the
    /// client still sends for a moment: closing with unread bytes would reset the connection, and the client
    /// might never see its answer.
    Close(CloseReason),
    /// The same, for a client that has asked for the close and sent its request whole: it promised to send
    /// nothing more.
    Finish,
    /// To become a tunnel to this endpoint.
    Tunnel(Box<dyn TunnelEnd>),
    /// To be reset: what was sent is not whole.
    Abort(CloseReason),
}

impl Next {
    /// Why the connection ends, if it does.
    fn reason(&self, seat: &Seat) -> Option<CloseReason> {
        match *self {
            Self::Request | Self::Tunnel(_) => None,
            Self::Close(reason) => Some(reason),
            Self::Finish => Some(CloseReason::NotKeptAlive),
            Self::Abort(CloseReason::ClientAborted) => {
                Some(seat.stream.error().map_or(CloseReason::ClientAborted, |error| {
                    table::broken(error, CloseReason::ClientAborted)
                }))
            }
            Self::Abort(reason) => Some(reason),
        }
    }
}

/// Serves requests until the connection ends or waits for the next. `first` was received already; the head is
/// due at `due`.
pub async fn serve(mut seat: Seat, first: Chunk, mut due: Time) {
    let mut input = first;
    let mut decoder = RequestDecoder::new();
    loop {
        // The first head is due since the accept.
        let accepted = (seat.requests == 0).then_some((due, seat.listener.timeouts.request_header));
        let record = Logged::begin(&seat, accepted);
        let mut kept = None;
        let head_due = seat.early.as_ref().map_or(due, |early| early.due().min(due));
        let next = match read_head(&seat, &mut decoder, &mut input, head_due).await {
            Ok(mut head) => {
                let next = serve_request(&mut seat, &mut head, &mut input, record.as_deref()).await;
                match (record, &next) {
                    // Its record is due when the tunnel ends.
                    (Some(record), Next::Tunnel(_)) => kept = Some(record.keep(head)),
                    (Some(record), next) => record.finish(&seat, Some(&head), next.reason(&seat)),
                    (None, _) => {}
                }
                next
            }
            Err(end) => {
                let next = refuse_head(&seat, end, record.as_deref()).await;
                match record {
                    Some(record) if matches!(end, HeadEnd::Closed) => record.discard(),
                    Some(record) => record.finish(&seat, None, next.reason(&seat)),
                    None => {}
                }
                next
            }
        };
        // The next request is none of those that come early, and an end is one of the handshake too.
        let next = match next {
            Next::Abort(reason) if reason != CloseReason::TlsHandshake => {
                early::give_up(&mut seat);
                next
            }
            next if seat.early.is_none() || Box::pin(early::settle(&mut seat)).await => next,
            // Its response is cut.
            Next::Abort(reason) => Next::Abort(reason),
            _ => Next::Close(CloseReason::TlsHandshake),
        };
        seat.count_received();
        match next {
            // The response said that the connection goes on, and the drain began after it.
            Next::Request if seat.worker.is_draining() => {
                seat.stream.close();
                return seat.end(CloseReason::Draining);
            }
            Next::Request if input.is_empty() && !seat.stream.is_readable() => {
                // Empty, it may still hold a receive buffer.
                drop(std::mem::take(&mut input));
                if !seat.linger() {
                    return seat.park();
                }
                let read = seat.stream.read().await;
                seat.resume();
                match read {
                    Ok(Some(chunk)) => input = chunk,
                    Ok(None) => {
                        seat.stream.close();
                        return seat.end(CloseReason::ClientClosed);
                    }
                    Err(error) => return seat.end(table::broken(error, CloseReason::ClientClosed)),
                }
                due = seat.worker.io.after(seat.listener.timeouts.request_header);
            }
            Next::Request => due = seat.worker.io.after(seat.listener.timeouts.request_header),
            Next::Close(reason) => {
                seat.stream.close();
                return seat.end(reason);
            }
            Next::Finish => {
                seat.stream.finish();
                return seat.end(CloseReason::NotKeptAlive);
            }
            Next::Tunnel(upstream) => {
                // What the client said ahead of the answer.
                seat.stream.unread(input);
                return tunnel::start(seat, upstream, kept);
            }
            Next::Abort(_) => {
                let reason = next.reason(&seat).unwrap_or(CloseReason::ClientAborted);
                seat.stream.abort();
                return seat.end(reason);
            }
        }
    }
}

/// Why there is no head.
#[derive(Clone, Copy)]
enum HeadEnd {
    /// The client closed before a byte of it.
    Closed,
    /// The client closed within it, or reset.
    Aborted,
    Refused(RefusalReason),
}

async fn read_head(
    seat: &Seat,
    decoder: &mut RequestDecoder,
    input: &mut Chunk,
    due: Time,
) -> Result<RequestHead, HeadEnd> {
    let limits = seat.listener.limits.head();
    let mut kept = Vec::new();
    loop {
        // In place if the head lies in one piece, which is the rule.
        let before = kept.len();
        let parsed = if before == 0 {
            decoder.parse(input, &limits)
        } else {
            kept.extend_from_slice(input);
            decoder.parse(&kept, &limits)
        };
        match parsed.map_err(|error| HeadEnd::Refused(error.refusal()))? {
            Parsed::Head { head, consumed } => {
                input.advance(consumed - before);
                // Empty, it would still hold a receive buffer, and a block is all that the stream may have
                // outstanding.
                if input.is_empty() {
                    *input = Chunk::default();
                }
                return Ok(head);
            }
            Parsed::NeedMore if before == 0 => kept.extend_from_slice(input),
            Parsed::NeedMore => {}
        }
        *input = Chunk::default();
        match seat.worker.io.timeout_at(due, seat.stream.read()).await {
            Ok(Ok(Some(chunk))) => *input = chunk,
            Ok(Ok(None)) if kept.is_empty() => return Err(HeadEnd::Closed),
            Ok(Ok(None) | Err(_)) => return Err(HeadEnd::Aborted),
            Err(_) => return Err(HeadEnd::Refused(RefusalReason::RequestTimeout)),
        }
    }
}

async fn refuse_head(seat: &Seat, end: HeadEnd, record: Option<&Record>) -> Next {
    let reason = match end {
        HeadEnd::Closed => return Next::Close(CloseReason::ClientClosed),
        HeadEnd::Aborted => return Next::Abort(CloseReason::ClientAborted),
        HeadEnd::Refused(reason) => reason,
    };
    let flags = Flags::new(true, false);
    let mut sink =
        Sink::new(&seat.worker, &seat.stream, &seat.listener.timeouts, Recipient::UNKNOWN, &flags, record);
    let request_id = seat.worker.request_id();
    let outcome = answer::refuse(&mut sink, reason, request_id.as_str(), None).await;
    outcome::count(&seat.worker.counters, outcome);
    if let Some(record) = record {
        record.name(request_id);
        record.ended(outcome);
    }
    match outcome {
        Outcome::Answered { .. } if reason == RefusalReason::RequestTimeout => {
            Next::Close(CloseReason::RequestHeaderTimeout)
        }
        Outcome::Answered { .. } => Next::Close(CloseReason::BadRequest),
        _ => Next::Abort(CloseReason::ClientAborted),
    }
}

/// Answers what is no request of this connection's protocol.
pub(super) async fn refuse_plainly(seat: &Seat, reason: RefusalReason) {
    let record = Logged::begin(seat, None);
    // Whether the client takes it or not, the connection ends.
    let next = refuse_head(seat, HeadEnd::Refused(reason), record.as_deref()).await;
    if let Some(record) = record {
        record.finish(seat, None, next.reason(seat));
    }
}

async fn serve_request(
    seat: &mut Seat,
    head: &mut RequestHead,
    input: &mut Chunk,
    record: Option<&Record>,
) -> Next {
    if let Some(record) = record {
        record.reached(Phase::Head);
    }
    seat.requests += 1;
    let is_early = if seat.early.is_some() {
        match Box::pin(early::admit(seat, head)).await {
            Some(is_early) => is_early,
            None => return Next::Close(CloseReason::TlsHandshake),
        }
    } else {
        false
    };
    let worker = seat.worker.clone();
    worker.counters.increment(Plain::Requests);
    let snapshot = worker.snapshot();
    seat.follow(&snapshot.traffic);
    let listener = &*seat.listener;
    let close_reason = reason_to_close(seat, head, &listener.limits);
    let flags = Flags::new(matches!(head.body, BodyLength::None), head.expects_continue());
    let recipient = Recipient { keep_alive: close_reason.is_none(), ..Recipient::of(head) };
    let mut sink = Sink::new(&worker, &seat.stream, &listener.timeouts, recipient, &flags, record);
    let identity = seat.stream.identity();
    let new_request_id = worker.request_id();
    let ask = || seat.stream.local();
    let local = seat.proxied_local().map_or(Local::Asked(&ask), Local::Known);
    let scene = Scene {
        io: &worker.io,
        counters: &worker.counters,
        routes: &snapshot.traffic.routes,
        upstreams: &snapshot.upstreams,
        listener,
        client: Client { peer: seat.client(), local, fallback: listener.addresses.first().copied() },
        identity: identity.as_deref(),
        is_early,
        new_request_id,
        record,
    };
    let mut source = Source {
        worker: &worker,
        stream: &seat.stream,
        decoder: BodyDecoder::new(head.body),
        input,
        pause_max: listener.timeouts.request_body,
        pace: Pace::new(listener.timeouts.min_rate),
        room: match listener.limits.body_bytes {
            0 => u64::MAX,
            limit => limit,
        },
        flags: &flags,
    };
    // Pipelined requests are answered one after the other; a client that never reads gets no further than
    // this.
    if let Err(error) = sink.outbound.writable().await {
        return Next::Abort(undeliverable(error.into()));
    }
    let too_large = matches!(head.body, BodyLength::Known(length) if length > source.room);
    let outcome = if too_large {
        if let Some(record) = record {
            record.name(new_request_id);
        }
        let request_id = head.request_id().unwrap_or_else(|| new_request_id.as_str());
        let refused = answer::refuse(&mut sink, RefusalReason::BodyTooLarge, request_id, None).await;
        outcome::count(&worker.counters, refused);
        refused
    } else {
        let exchange = exchange(head, &mut source, &mut sink, &seat.cancel, &scene);
        if is_early { early::within(seat, exchange).await } else { exchange.await }
    };
    sink.flush();
    if let Some(record) = record {
        record.ended(outcome);
    }
    // A drain that began within this exchange is why its response said `close`.
    let close_reason = close_reason.or_else(|| worker.is_draining().then_some(CloseReason::Draining));
    let kept_alive = sink.kept_alive;
    // A length or chunks tell the client that the response is cut, and answers queued before it still arrive;
    // a body that ends with the connection needs the reset.
    let cut = if sink.outbound.framing() == Framing::UntilClose { Next::Abort } else { Next::Close };
    match outcome {
        Outcome::Answered { .. } if kept_alive && flags.ended.get() => Next::Request,
        Outcome::Answered { .. } if flags.ended.get() && close_reason == Some(CloseReason::NotKeptAlive) => {
            Next::Finish
        }
        Outcome::Answered { .. } if flags.ended.get() => {
            Next::Close(close_reason.unwrap_or(CloseReason::NotKeptAlive))
        }
        Outcome::Answered { refused: Some(RefusalReason::RequestTimeout), .. } => {
            Next::Close(CloseReason::RequestBodyTimeout)
        }
        Outcome::Answered { refused: Some(RefusalReason::RequestTooSlow), .. } => {
            Next::Close(CloseReason::MinRate)
        }
        Outcome::Answered { refused: Some(_), .. } => Next::Close(CloseReason::BadRequest),
        // Whatever the client asked for, it is still sending.
        Outcome::Answered { refused: None, .. } => Next::Close(CloseReason::EarlyResponse),
        Outcome::Switched => {
            flags.tunnel.take().map_or(Next::Abort(CloseReason::UpstreamAborted), Next::Tunnel)
        }
        Outcome::Cut => cut(CloseReason::UpstreamAborted),
        Outcome::CutBySource(SourceError::Aborted) => Next::Abort(CloseReason::ClientAborted),
        Outcome::CutBySource(SourceError::Refused(RefusalReason::RequestTimeout)) => {
            cut(CloseReason::RequestBodyTimeout)
        }
        Outcome::CutBySource(SourceError::Refused(RefusalReason::RequestTooSlow)) => {
            cut(CloseReason::MinRate)
        }
        Outcome::CutBySource(SourceError::Refused(_)) => cut(CloseReason::BadRequest),
        Outcome::Undeliverable(error) => Next::Abort(undeliverable(error)),
        Outcome::Cancelled if seat.cancel.is_given() => Next::Abort(CloseReason::Stopped),
        // Its handshake was not over in time.
        Outcome::Cancelled => Next::Abort(CloseReason::TlsHandshake),
    }
}

/// Why the connection is to end with this request, if it is.
fn reason_to_close(seat: &Seat, head: &RequestHead, limits: &listen::Limits) -> Option<CloseReason> {
    if seat.worker.is_draining() {
        Some(CloseReason::Draining)
    } else if limits.requests_per_connection != 0 && seat.requests >= limits.requests_per_connection {
        Some(CloseReason::RequestLimit)
    } else if !head.keep_alive {
        Some(CloseReason::NotKeptAlive)
    } else {
        None
    }
}

const fn undeliverable(error: SinkError) -> CloseReason {
    match error {
        SinkError::Aborted => CloseReason::ClientAborted,
        SinkError::TooSlow => CloseReason::SendTimeout,
        SinkError::BelowMinRate => CloseReason::MinRate,
    }
}

/// What source and sink of one request tell each other.
struct Flags {
    /// The request was read whole.
    ended: Cell<bool>,
    /// The client waits for "100 Continue" and has not got it.
    wants_continue: Cell<bool>,
    /// The endpoint that speaks another protocol with the client from now on.
    tunnel: Cell<Option<Box<dyn TunnelEnd>>>,
}

impl Flags {
    const fn new(ended: bool, wants_continue: bool) -> Self {
        Self { ended: Cell::new(ended), wants_continue: Cell::new(wants_continue), tunnel: Cell::new(None) }
    }
}

struct Source<'a> {
    worker: &'a Worker,
    stream: &'a Stream,
    decoder: BodyDecoder,
    input: &'a mut Chunk,
    pause_max: Duration,
    pace: Pace,
    /// Body bytes still allowed.
    room: u64,
    flags: &'a Flags,
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
        let io = &self.worker.io;
        let part = loop {
            let next = next_part(self.stream, &mut self.decoder, self.input);
            let (started, wait) = (io.now(), self.pause_max.min(self.pace.left()));
            let next = io.timeout_at(started + wait, next).await;
            self.pace.waited(io.now() - started);
            break match next {
                Ok(Ok(part)) => part,
                Ok(Err(ReadError::Framing(_))) => return Err(SourceError::Refused(RefusalReason::Malformed)),
                Ok(Err(ReadError::Ended | ReadError::Stream(_))) => return Err(SourceError::Aborted),
                // There is no buffer to receive into.
                Err(_) if self.stream.is_held() => {
                    self.pace.pardon();
                    continue;
                }
                Err(_) if wait < self.pause_max => {
                    return Err(SourceError::Refused(RefusalReason::RequestTooSlow));
                }
                Err(_) => return Err(SourceError::Refused(RefusalReason::RequestTimeout)),
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

struct Sink<'a> {
    worker: &'a Worker,
    outbound: Outbound<'a>,
    stream: &'a Stream,
    recipient: Recipient,
    flags: &'a Flags,
    /// The response said that the connection goes on.
    kept_alive: bool,
    record: Option<&'a Record>,
}

impl<'a> Sink<'a> {
    fn new(
        worker: &'a Worker,
        stream: &'a Stream,
        timeouts: &listen::Timeouts,
        recipient: Recipient,
        flags: &'a Flags,
        record: Option<&'a Record>,
    ) -> Self {
        let taking = Taking::new(timeouts.send, Pace::new(timeouts.min_rate));
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
        // One 100 and no more, and only to a client that waits for it.
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
        // The rest of a request that was answered early is not worth reading: such a connection ends with its
        // response. Neither is a request that would come after a drain began.
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

    fn poll_gone(&self, cx: &Context<'_>) -> Poll<()> {
        self.stream.poll_broken(cx)
    }

    async fn taken(&mut self) -> Result<(), SinkError> {
        Ok(self.outbound.flushed().await?)
    }
}
