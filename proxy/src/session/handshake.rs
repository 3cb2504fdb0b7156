//! The start of an `https` connection: its TLS handshake, within the listener's time limit and the worker's
//! share of a loop turn for handshakes. Requests follow as on any connection, over a stream that carries
//! records. With early data, they begin before the handshake is over.

use super::early::Early;
use super::seat::Seat;
use super::{h1, table};
use crate::counters::Counter;
use crate::error::{CloseReason, HandshakeFailure, RefusalReason};
use crate::io::Chunk;
use crate::io::handshakes::Underway;
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::handshake::{Established, Failure, Handshake, Progress};
use crate::tls::server::ServerTls;

/// Why a handshake led to no connection that can be served.
enum End {
    Closed,
    Broken,
    Timeout,
    TooMany,
    Cancelled,
    Failed(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Serves a connection from its first byte. `first` holds bytes received already; the handshake must be over
/// at `due`.
pub(crate) async fn serve(mut seat: Seat, first: Chunk, due: Time) {
    // The connection may have been silent since an older configuration, whose certificates must not be shown
    // any more.
    let snapshot = seat.worker.snapshot();
    seat.follow(&snapshot.traffic);
    drop(snapshot);
    // If the current configuration has no such listener, the connection belongs to an older one.
    let Some(tls) = seat.listener.tls.clone() else { return refuse(seat, End::Cancelled).await };
    let began = seat.worker.io.now();
    let greeted = match Box::pin(shake_hands(&seat, &tls, first, due)).await {
        Ok(greeted) => greeted,
        Err(end) => return refuse(seat, end).await,
    };
    let took = seat.worker.io.now().since(began);
    match greeted {
        Greeted::Established(mut established) => {
            seat.worker.counters.increment(Counter::Handshake(established.agreed.kind()));
            established.agreed.took(took);
            established.agreed.judged_by(&tls);
            seat.stream.secure(*established, false);
        }
        Greeted::Early(mut handshake, underway) => {
            let mut agreed = handshake.agreed();
            agreed.took(took);
            agreed.judged_by(&tls);
            seat.stream.secure_early(handshake, agreed);
            seat.early = Some(Box::new(Early::new(underway, due)));
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
        Ok(Some(first)) => h1::serve(seat, first, due).await,
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
    Early(Box<Handshake>, Underway),
}

async fn shake_hands(seat: &Seat, tls: &ServerTls, first: Chunk, due: Time) -> Result<Greeted, End> {
    let (worker, stream) = (&seat.worker, &seat.stream);
    let underway = worker.handshakes.begin(tls.max_handshakes).ok_or(End::TooMany)?;
    let mut handshake = Handshake::server(&tls.config)?;
    if worker.access.is_some() {
        handshake = handshake.with_name();
    }
    let mut received = first;
    loop {
        // With early data, more may have been received than a handshake ever takes.
        let taken = received.split_to(received.len().min(handshake.room().max(1)));
        handshake.receive(&taken)?;
        drop(taken);
        if handshake.has_record() {
            let mut out = Vec::new();
            let step = worker.io.timeout_at(due, underway.step(|| handshake.advance(&mut out))).await;
            // After an error too: `out` then holds the alert.
            stream.write(Chunk::from_vec(out));
            match step.map_err(|_| End::Timeout)?? {
                Progress::Done(established) => {
                    stream.unread(received);
                    return Ok(Greeted::Established(established));
                }
                Progress::NeedMore if handshake.is_early() => {
                    stream.unread(received);
                    return Ok(Greeted::Early(Box::new(handshake), underway));
                }
                Progress::NeedMore => {}
            }
        }
        if !received.is_empty() {
            continue;
        }
        drop(received);
        received = match worker.io.timeout_at(due, stream.read()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Err(End::Closed),
            Ok(Err(_)) if seat.cancel.is_given() => return Err(End::Cancelled),
            Ok(Err(_)) => return Err(End::Broken),
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
        End::Broken | End::Timeout | End::TooMany | End::Cancelled => seat.stream.abort(),
    }
    seat.end(CloseReason::TlsHandshake);
}
