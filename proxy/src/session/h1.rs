//! The server side of one HTTP/1 connection (RFC 9112). It serves requests in their order, one exchange at a
//! time. When no further byte is there, the connection lingers or becomes a parked row of `table`.

use super::record::Logged;
use super::seat::Seat;
use super::{early, table, tunnel};
use crate::counters::Plain;
use crate::error::{CloseReason, RefusalReason};
use crate::exchange::record::{Phase, Record};
use crate::exchange::{Client, Local, ResponseSink, Scene, exchange, refuse_at_once};
use crate::http::h1::{Recipient, RequestDecoder};
use crate::http::message::{BodyLength, RequestHead};
use crate::io::Chunk;
use crate::time::Time;
use crate::upstream::pin::ForClient;

mod flags;
mod head;
mod next;
mod sink;
mod source;
#[cfg(test)]
mod tests;

use flags::Flags;
use head::{read_head, refuse_head};
use next::{Next, undeliverable};
use sink::Sink;
use source::Source;

pub(super) use head::refuse_plainly;

/// Serves requests until the connection ends or is parked. `first` holds bytes received already; the first
/// head is due at `due`.
pub async fn serve(mut seat: Seat, first: Chunk, mut due: Time) {
    let mut input = first;
    let mut decoder = RequestDecoder::new();
    loop {
        // The time limit of the first head runs from the accept, or from the end of the handshake. The record
        // tells from it how long ago that was.
        let accepted = (seat.requests == 0).then_some((due, seat.listener.timeouts.request_header));
        let record = Logged::begin(&seat, accepted);
        let head_due = seat.early.as_ref().map_or(due, |early| early.due().min(due));
        let mut kept = None;
        let mut next = match read_head(&seat, &mut decoder, &mut input, head_due).await {
            Ok((mut head, keep_alive)) => {
                let next =
                    serve_request(&mut seat, &mut head, keep_alive, &mut input, record.as_deref()).await;
                if let Some(record) = record {
                    kept = conclude(record, &seat, head, &next);
                }
                next
            }
            // Boxed: it is rare, and its future would make every session larger.
            Err(end) => Box::pin(refuse_head(&seat, end, record)).await,
        };
        if seat.early.is_some() {
            next = Box::pin(end_handshake(&mut seat, next)).await;
        }
        seat.count_received();
        match next {
            // The response said that the connection goes on, and the drain began after it.
            Next::Request if seat.worker.is_draining() => {
                seat.stream.close();
                return seat.end(CloseReason::Draining);
            }
            Next::Request if input.is_empty() && !seat.stream.is_readable() => {
                // An empty chunk may still hold a receive buffer.
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
            }
            Next::Request => {}
            next => return leave(seat, next, input, kept),
        }
        due = seat.worker.io.after(seat.listener.timeouts.request_header);
    }
}

/// Finishes the record of a request. A request that became a tunnel keeps its record: the tunnel finishes it.
fn conclude(record: Logged, seat: &Seat, head: RequestHead, next: &Next) -> Option<Logged> {
    if matches!(next, Next::Tunnel(_)) {
        return Some(record.keep(head));
    }
    record.finish(seat, Some(&head), next.reason(seat));
    None
}

/// Waits for the handshake after an early request, since the next request is not early any more. If the
/// connection ends here, the handshake ends with it and is counted.
async fn end_handshake(seat: &mut Seat, next: Next) -> Next {
    match next {
        Next::Abort(reason) if reason != CloseReason::TlsHandshake => {
            early::give_up(seat);
            next
        }
        next if early::settle(seat).await => next,
        // The response is cut, which the client must see.
        Next::Abort(reason) => Next::Abort(reason),
        _ => Next::Close(CloseReason::TlsHandshake),
    }
}

/// The connection serves no further request: it becomes a tunnel, is closed, or is reset.
fn leave(seat: Seat, next: Next, input: Chunk, record: Option<Logged>) {
    let reason = next.reason(&seat);
    match next {
        Next::Request | Next::Close(_) => seat.stream.close(),
        Next::Finish => seat.stream.finish(),
        Next::Tunnel(endpoint) => {
            // The client may send bytes of the new protocol before it has our answer.
            seat.stream.unread(input);
            return tunnel::start(seat, endpoint, record);
        }
        Next::Abort(_) => seat.stream.abort(),
    }
    seat.end(reason.unwrap_or(CloseReason::ClientAborted));
}

/// Answers a request. `keep_alive`: the client wants to keep the connection.
async fn serve_request(
    seat: &mut Seat,
    head: &mut RequestHead,
    keep_alive: bool,
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
    let seat = &*seat;
    let listener = &*seat.listener;
    let (identity, is_asked) = seat.stream.agreed(|agreed| match agreed {
        Some(agreed) => (agreed.identity.clone(), agreed.is_asked),
        None => (None, false),
    });
    // The client can ask again on another connection, whose handshake judges by what holds now.
    if listener.tls.as_ref().is_some_and(|tls| !tls.still_trusts(identity.as_deref())) {
        return Next::Close(CloseReason::ClientAuthChanged);
    }
    let close_reason = reason_to_close(seat, keep_alive);
    let flags = Flags::new(matches!(head.body, BodyLength::None), head.expects_continue());
    let mut sink = Sink::new(seat, Recipient::of(head, close_reason.is_none()), &flags, record);
    let ask = || seat.stream.local();
    let local = seat.proxied_local().map_or(Local::Asked(&ask), Local::Known);
    let scene = Scene {
        io: &worker.io,
        counters: &worker.counters,
        routes: &snapshot.traffic.routes,
        upstreams: &ForClient { upstreams: &snapshot.upstreams, pin: &seat.pin },
        listener,
        client: Client { peer: seat.client(), local, fallback: &listener.addresses },
        downstream: &seat.stream,
        identity: identity.as_ref().map(|identity| &*identity.value).or(is_asked.then_some("")),
        is_early,
        new_request_id: worker.request_id(),
        record,
    };
    let mut source = Source::new(seat, head.body, input, &flags);
    // A client that never reads the responses to its pipelined requests is held up here.
    if let Err(error) = sink.outbound.writable().await {
        return Next::Abort(undeliverable(error.into()));
    }
    let outcome = if matches!(head.body, BodyLength::Known(length) if length > source.room) {
        refuse_at_once(head, RefusalReason::BodyTooLarge, &mut sink, &scene).await
    } else {
        let exchange = exchange(head, &mut source, &mut sink, &seat.cancel, &scene);
        if is_early { early::within(seat, exchange).await } else { exchange.await }
    };
    sink.flush();
    if let Some(record) = record {
        record.ended(outcome);
    }
    // If a drain began within this exchange, it is the reason why the response said `close`.
    let close_reason = close_reason.or_else(|| worker.is_draining().then_some(CloseReason::Draining));
    Next::after(outcome, sink.answer(), &flags, close_reason, seat.cancel.is_given())
}

/// Why the connection must end with this request; `None`: it may go on. `keep_alive`: the client wants to
/// keep the connection.
fn reason_to_close(seat: &Seat, keep_alive: bool) -> Option<CloseReason> {
    let requests_max = seat.listener.limits.requests_per_connection;
    if seat.worker.is_draining() {
        Some(CloseReason::Draining)
    } else if requests_max != 0 && seat.requests >= requests_max {
        Some(CloseReason::RequestLimit)
    } else if !keep_alive {
        Some(CloseReason::NotKeptAlive)
    } else {
        None
    }
}
