//! Request heads of HTTP/1: read within their time, or refused.

use super::flags::Flags;
use super::next::Next;
use super::sink::Sink;
use crate::error::{CloseReason, RefusalReason};
use crate::exchange::record::Record;
use crate::exchange::{Outcome, answer, outcome};
use crate::http::h1::{Parsed, Recipient, RequestDecoder};
use crate::http::message::RequestHead;
use crate::io::Chunk;
use crate::session::crowd::Beginning;
use crate::session::record::Logged;
use crate::session::seat::Seat;
use crate::time::Time;

/// Why there is no head.
#[derive(Clone, Copy)]
pub(super) enum HeadEnd {
    /// The client closed before the first byte of a head.
    Closed,
    /// The client closed within a head, or reset the connection.
    Aborted,
    Refused(RefusalReason),
}

/// Reads the next request head, due at `due`; the `bool` says whether the client wants to keep the
/// connection. `input` holds bytes received already, and afterwards the bytes behind the head.
pub(super) async fn read_head(
    seat: &Seat,
    decoder: &mut RequestDecoder,
    input: &mut Chunk,
    due: Time,
) -> Result<(RequestHead, bool), HeadEnd> {
    let limits = seat.listener.limits.head(&seat.listener.reading);
    let mut kept = Beginning::default();
    loop {
        // A head that lies in one piece, as most do, is parsed in place.
        let before = kept.bytes().len();
        let parsed = if before == 0 {
            decoder.parse(input, &limits)
        } else {
            kept.keep(seat, input);
            decoder.parse(kept.bytes(), &limits)
        };
        match parsed.map_err(|error| HeadEnd::Refused(error.refusal()))? {
            Parsed::Head { head, consumed, keep_alive } => {
                input.advance(consumed - before);
                // An empty chunk would still hold a receive buffer, and a stream may have no more than a
                // block outstanding.
                if input.is_empty() {
                    *input = Chunk::default();
                }
                return Ok((head, keep_alive));
            }
            Parsed::NeedMore if before == 0 => kept.keep(seat, input),
            Parsed::NeedMore => {}
        }
        *input = Chunk::default();
        match seat.worker.io.timeout_at(due, seat.stream.read()).await {
            Ok(Ok(Some(chunk))) => *input = chunk,
            Ok(Ok(None)) if kept.bytes().is_empty() => return Err(HeadEnd::Closed),
            Ok(Ok(None) | Err(_)) => return Err(HeadEnd::Aborted),
            Err(_) => return Err(HeadEnd::Refused(RefusalReason::RequestTimeout)),
        }
    }
}

/// Answers a request whose head could not be read, unless the client is gone.
pub(super) async fn refuse_head(seat: &Seat, end: HeadEnd, record: Option<Logged>) -> Next {
    let next = answer_without_head(seat, end, record.as_deref()).await;
    match record {
        // Nothing was asked.
        Some(record) if matches!(end, HeadEnd::Closed) => record.discard(),
        Some(record) => record.finish(seat, None, next.reason(seat)),
        None => {}
    }
    next
}

async fn answer_without_head(seat: &Seat, end: HeadEnd, record: Option<&Record>) -> Next {
    let reason = match end {
        HeadEnd::Closed => return Next::Close(CloseReason::ClientClosed),
        HeadEnd::Aborted => return Next::Abort(CloseReason::ClientAborted),
        HeadEnd::Refused(reason) => reason,
    };
    let flags = Flags::new(true, false);
    let mut sink = Sink::new(seat, Recipient::UNKNOWN, &flags, record);
    let request_id = seat.worker.request_id();
    let outcome = answer::refuse(&mut sink, reason, request_id.as_bytes(), None).await;
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

/// Refuses, in plain HTTP/1, a client that speaks HTTP where the listener expects another protocol.
pub(in crate::session) async fn refuse_plainly(seat: &Seat, reason: RefusalReason) {
    // Whether the client takes the answer or not, the connection ends.
    refuse_head(seat, HeadEnd::Refused(reason), Logged::begin(seat, None)).await;
}
