//! The start of an `https` connection: its TLS handshake, within the listener's time limit and the worker's
//! share of a loop turn for handshakes. Requests follow as on any connection, over a stream that carries
//! records. With early data, they begin before the handshake is over.
//!
//! Nothing is spent on a client before its hello is whole. From then on its handshake takes one of the
//! listener's `max_handshakes` places, or waits for one.

use super::crowd::{Beginning, HandshakePlace};
use super::early::Early;
use super::seat::Seat;
use super::{h1, table};
use crate::counters::Counter;
use crate::error::{CloseReason, HandshakeFailure, RefusalReason};
use crate::io::handshakes::With;
use crate::io::{Chunk, StreamError};
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::handshake::{Established, Failure, Handshake, Progress};
use crate::tls::hello::Reader;
use crate::tls::server::ServerTls;

/// Why a handshake led to no connection that can be served.
enum End {
    Closed,
    Broken,
    Timeout,
    TooMany,
    GaveWay,
    Cancelled,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl End {
    /// The end of a handshake whose stream broke with this error, or just ended.
    fn of_stream(seat: &Seat, error: Option<StreamError>) -> Self {
        match error {
            _ if seat.cancel.is_given() => Self::Cancelled,
            None => Self::Closed,
            Some(StreamError::GaveWay) => Self::GaveWay,
            Some(_) => Self::Broken,
        }
    }
}

/// Serves a connection from its first byte. `first` holds bytes received already; the handshake must be over
/// at `due`.
pub(crate) async fn serve(mut seat: Seat, first: Chunk, due: Time) {
    let began = seat.worker.io.now();
    let (hello, beginning) = match greet(&seat, first, due).await {
        Ok(greeted) => greeted,
        Err(end) => return Box::pin(refuse(seat, end)).await,
    };
    // The hello may have come since an older configuration, whose certificates must not be shown any more.
    let snapshot = seat.worker.snapshot();
    seat.follow(&snapshot.traffic);
    drop(snapshot);
    // If the current configuration has no such listener, the connection belongs to an older one.
    let Some(tls) = seat.listener.tls.clone() else {
        return Box::pin(refuse(seat, End::Cancelled)).await;
    };
    let greeted = match Box::pin(shake_hands(&seat, &tls, (hello, beginning), due)).await {
        Ok(greeted) => greeted,
        Err(end) => return Box::pin(refuse(seat, end)).await,
    };
    let took = seat.worker.io.now().since(began);
    match greeted {
        Greeted::Established(mut established) => {
            seat.worker.counters.increment(Counter::Handshake(established.agreed.kind()));
            established.agreed.took(took);
            established.agreed.judged_by(&tls);
            seat.stream.secure(*established, false);
        }
        Greeted::Early(mut handshake, place) => {
            let mut agreed = handshake.agreed();
            agreed.took(took);
            agreed.judged_by(&tls);
            seat.stream.secure_early(handshake, agreed);
            seat.early = Some(Box::new(Early::new(place, due)));
        }
    }
    drop(tls);
    // The time limit of the first head begins with the end of the handshake.
    let due = seat.worker.first_head_due(&seat.listener);
    if !seat.stream.is_readable() {
        seat.count_received();
        return seat.park_fresh(due);
    }
    match seat.stream.read().await {
        // Boxed: a client that sends no more than a part of its hello is to cost little.
        Ok(Some(first)) => Box::pin(h1::serve(seat, first, due)).await,
        Ok(None) => {
            seat.count_received();
            seat.stream.close();
            seat.end(CloseReason::ClientClosed);
        }
        Err(error) => {
            seat.count_received();
            seat.stream.close();
            seat.end(table::broken(error, CloseReason::ClientClosed));
        }
    }
}

/// How far a handshake came.
enum Greeted {
    Established(Box<Established>),
    /// The client sends requests before the handshake is over.
    Early(Box<Handshake>, HandshakePlace),
}

/// Reads until the hello is whole, or sure to be none, which rustls tells the client. Returns all that came.
async fn greet(seat: &Seat, first: Chunk, due: Time) -> Result<(Chunk, Beginning), End> {
    let (mut reader, mut beginning, mut input) = (Reader::default(), Beginning::default(), first);
    while let Ok(None) = reader.read(&input) {
        beginning.keep(seat, &input);
        drop(input);
        input = match seat.worker.io.timeout_at(due, seat.stream.read()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(ended) => return Err(End::of_stream(seat, ended.err())),
            Err(_) => return Err(End::Timeout),
        };
    }
    if !beginning.bytes().is_empty() {
        beginning.keep(seat, &input);
        input = beginning.take();
    }
    Ok((input, beginning))
}

/// Takes a place for the handshake, or waits for one.
async fn take_place(
    seat: &Seat,
    tls: &ServerTls,
    (hello, beginning): (&mut Chunk, &mut Beginning),
    due: Time,
) -> Result<HandshakePlace, End> {
    let place = HandshakePlace::ask(seat, tls.max_handshakes);
    if !place.has_place() {
        if hello.is_loan() {
            beginning.keep(seat, hello);
            *hello = beginning.take();
        }
        match seat.worker.io.timeout_at(due, place.taken()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(End::of_stream(seat, error)),
            Err(_) => return Err(End::TooMany),
        }
    }
    Ok(place)
}

async fn shake_hands(
    seat: &Seat,
    tls: &ServerTls,
    (hello, mut beginning): (Chunk, Beginning),
    due: Time,
) -> Result<Greeted, End> {
    let (worker, stream) = (&seat.worker, &seat.stream);
    let mut received = hello;
    let place = take_place(seat, tls, (&mut received, &mut beginning), due).await?;
    drop(beginning);
    let mut answered = worker.io.now();
    let mut handshake = Handshake::server(&tls.config)?;
    if worker.access.is_some() {
        handshake = handshake.with_name();
    }
    loop {
        // With early data, more may have been received than a handshake ever takes.
        let taken = received.split_to(received.len().min(handshake.room().max(1)));
        handshake.receive(&taken)?;
        drop(taken);
        if handshake.has_record() {
            let mut out = Vec::new();
            place.work();
            let step = worker.handshakes.step(With::Client, || handshake.advance(&mut out));
            let step = worker.io.timeout_at(due, step).await;
            if !out.is_empty() {
                answered = worker.io.now();
            }
            // After an error too: `out` then holds the alert.
            stream.write(Chunk::from_vec(out));
            match step.map_err(|_| End::Timeout)?? {
                Progress::Done(established) => {
                    stream.unread(received);
                    return Ok(Greeted::Established(established));
                }
                Progress::NeedMore if handshake.is_early() => {
                    stream.unread(received);
                    place.rest(answered);
                    return Ok(Greeted::Early(Box::new(handshake), place));
                }
                Progress::NeedMore => {}
            }
        }
        if !received.is_empty() {
            continue;
        }
        drop(received);
        // Parts of a record are no answer: a client could send them for ever.
        place.rest(answered);
        received = match worker.io.timeout_at(due, stream.read()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(ended) => return Err(End::of_stream(seat, ended.err())),
            Err(_) => return Err(End::Timeout),
        };
    }
}

/// Ends a connection whose handshake failed.
async fn refuse(mut seat: Seat, end: End) {
    let counters = &seat.worker.counters;
    let failure = match &end {
        End::Closed | End::Broken => HandshakeFailure::ClientClosed,
        End::Timeout => HandshakeFailure::Timeout,
        End::TooMany => HandshakeFailure::TooMany,
        End::GaveWay => HandshakeFailure::GaveWay,
        End::Cancelled => HandshakeFailure::Draining,
        End::Failed(failure) => failure.reason(),
    };
    counters.increment(Counter::HandshakeFailed(failure));
    match &end {
        End::Failed(Failure::Alert(description)) => {
            counters.increment(Counter::AlertReceived(Alert::of(*description)))
        }
        End::Failed(failure) => {
            if let Some(alert) = failure.sent() {
                counters.increment(Counter::AlertSent(alert));
            }
            tracing::debug!(client = %seat.client(), listener = %seat.listener.name, %failure, "TLS \
                handshake failed");
        }
        _ => {}
    }
    if matches!(end, End::Failed(Failure::PlainHttp)) {
        h1::refuse_plainly(&seat, RefusalReason::PlainHttp).await;
    }
    seat.count_received();
    match end {
        End::Closed => seat.stream.close(),
        // The client may have an answer to read, and may still be sending.
        End::Failed(_) => seat.stream.refuse(),
        End::Broken | End::Timeout | End::TooMany | End::GaveWay | End::Cancelled => seat.stream.abort(),
    }
    seat.end(CloseReason::TlsHandshake);
}
