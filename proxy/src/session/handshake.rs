//! The start of an `https` connection: its handshake, within the listener's time and the worker's share of a
//! loop turn for such. What follows is served like any other connection, over a stream that carries records;
//! where early data is allowed, beside the handshake's end.

use super::early::Early;
use super::seat::Seat;
use super::{h1, table};
use crate::counters::Counter;
use crate::error::{CloseReason, HandshakeFailure, RefusalReason};
use crate::io::Chunk;
use crate::io::handshakes::Underway;
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::handshake::{Agreed, Established, Failure, Handshake, Progress};
use crate::tls::identity;
use crate::tls::server::ServerTls;

/// Why there is no connection to serve.
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

/// Serves a connection from its first byte. `first` was received already; the handshake is to be over at
/// `due`.
pub(crate) async fn serve(mut seat: Seat, first: Chunk, due: Time) {
    // It may have been silent since another configuration, whose certificates are not shown any more.
    let snapshot = seat.worker.snapshot();
    seat.follow(&snapshot.traffic);
    drop(snapshot);
    // A configuration without it has no such listener; the connection is older then.
    let Some(tls) = seat.listener.tls.clone() else { return refuse(seat, End::Cancelled).await };
    let began = seat.worker.io.now();
    let greeted = match Box::pin(shake_hands(&seat, &tls, first, due)).await {
        Ok(greeted) => greeted,
        Err(end) => return refuse(seat, end).await,
    };
    drop(tls);
    let agreed = match greeted {
        Greeted::Established(established) => {
            let Established { records, rest, early, agreed } = *established;
            seat.worker.counters.increment(Counter::Handshake(agreed.kind()));
            seat.stream.secure(records, rest, false);
            seat.stream.admit_early(early);
            agreed
        }
        Greeted::Early(mut handshake, underway) => {
            let agreed = handshake.agreed();
            seat.stream.secure_early(handshake);
            seat.early = Some(Box::new(Early::new(underway, due)));
            agreed
        }
    };
    let took = seat.worker.io.now().since(began);
    let Agreed { summary, server_name, peer } = agreed;
    if let Some(leaf) = &peer {
        seat.stream.identify(&identity::forwarded(leaf));
    }
    drop(peer);
    seat.stream.summarize(summary.took(took), server_name);
    // The first head is due since the handshake.
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
    /// The client asks already.
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
        // Behind early data there may be more than a handshake ever needs.
        let taken = received.split_to(received.len().min(handshake.room().max(1)));
        handshake.receive(&taken)?;
        drop(taken);
        if handshake.has_record() {
            let mut out = Vec::new();
            let step = worker.io.timeout_at(due, underway.step(|| handshake.advance(&mut out))).await;
            // Also beside an error: the alert.
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

/// Ends a connection that came to nothing.
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
        // It was told, and may be sending still.
        End::Failed(_) => seat.stream.refuse(),
        End::Broken | End::Timeout | End::TooMany | End::Cancelled => seat.stream.abort(),
    }
    seat.end(CloseReason::TlsHandshake);
}
