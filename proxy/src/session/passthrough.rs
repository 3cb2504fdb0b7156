//! Pass-through: a client's TLS reaches an endpoint unchanged. The server name in its hello leads to the
//! upstream. Nothing is decrypted, and the bytes that were read to find the name are forwarded with the rest.

use std::rc::Rc;

use super::crowd::Beginning;
use super::record::Logged;
use super::seat::Seat;
use super::traffic::Traffic;
use super::{table, tunnel};
use crate::error::CloseReason;
use crate::exchange::record::{Phase, Record};
use crate::io::Chunk;
use crate::listen::Protocol;
use crate::route::Action;
use crate::time::Time;
use crate::tls::hello::{Hello, HelloError, Reader};

/// The alert `unrecognized_name` (RFC 6066 §3): no server here has that name.
const UNRECOGNIZED_NAME: u8 = 112;

/// The answer to a client that speaks no TLS, but most likely HTTP.
const NOT_TLS: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 37\r\n\
      Connection: close\r\n\r\n\
400 Bad Request: this port takes TLS\n";

/// Why a connection goes no further, and the answer to its client.
struct Refusal {
    reason: CloseReason,
    answer: Option<Chunk>,
}

impl Refusal {
    const fn silent(reason: CloseReason) -> Self {
        Self { reason, answer: None }
    }

    /// A fatal alert (RFC 8446 §6).
    fn alert(reason: CloseReason, description: u8) -> Self {
        Self { reason, answer: Some(Chunk::from_vec(vec![21, 3, 3, 0, 2, 2, description])) }
    }
}

impl From<HelloError> for Refusal {
    fn from(error: HelloError) -> Self {
        let reason = match error {
            HelloError::PlainText => {
                return Self { reason: CloseReason::NotTls, answer: Some(Chunk::from_static(NOT_TLS)) };
            }
            HelloError::Sslv2 | HelloError::NotTls(_) => CloseReason::NotTls,
            HelloError::TooLarge(_) => CloseReason::HelloTooLarge,
            _ => CloseReason::HelloMalformed,
        };
        error.alert().map_or(Self::silent(reason), |description| Self::alert(reason, description))
    }
}

/// Reads the hello, which is due at `due`, and becomes a tunnel. `first` holds bytes received already.
pub(crate) async fn serve(mut seat: Seat, first: Chunk, due: Time) {
    let worker = Rc::clone(&seat.worker);
    let record = Logged::begin(&seat, Some((due, seat.listener.patience())));
    if let Some(record) = &record {
        record.protocol("tls");
    }
    let refusal = match read(&seat, first, due).await {
        Ok((hello, beginning)) => {
            if let Some(record) = &record {
                record.reached(Phase::Head);
                record.server_name(hello.server_name.as_deref());
            }
            let snapshot = worker.snapshot();
            // The listener that accepted the connection may be gone by now, or serve something else.
            let listener = snapshot.traffic.listeners.get(seat.listener_id);
            match listener.map(|listener| (listener, listener.protocol)) {
                Some((listener, Protocol::TlsPassthrough { upstream, .. })) => {
                    seat.listener.clone_from(listener);
                    match route(
                        &snapshot.traffic,
                        &seat,
                        upstream,
                        hello.server_name.as_deref(),
                        record.as_deref(),
                    ) {
                        Ok(upstream) => {
                            // Boxed: the wait for a hello is to cost little.
                            Box::pin(tunnel::connect(seat, &snapshot, upstream, record)).await;
                            // The hello counts until there is an endpoint for it.
                            return drop(beginning);
                        }
                        Err(refusal) => refusal,
                    }
                }
                _ => Refusal::silent(CloseReason::Draining),
            }
        }
        Err(refusal) => refusal,
    };
    seat.count_received();
    if let Some(answer) = refusal.answer {
        seat.stream.write(answer);
    }
    if let Some(record) = record {
        record.finish(&seat, None, Some(refusal.reason));
    }
    seat.stream.refuse();
    seat.end(refusal.reason);
}

/// Reads the hello, and puts its bytes back into the stream.
async fn read(seat: &Seat, first: Chunk, due: Time) -> Result<(Hello, Beginning), Refusal> {
    let io = &seat.worker.io;
    let mut reader = Reader::default();
    let mut kept = Beginning::default();
    let mut input = first;
    loop {
        if let Some(hello) = reader.read(&input)? {
            seat.stream.unread(input);
            seat.stream.unread(kept.take());
            kept.complete();
            return Ok((hello, kept));
        }
        kept.keep(seat, &input);
        drop(input);
        match io.timeout_at(due, seat.stream.read()).await {
            Ok(Ok(Some(chunk))) => input = chunk,
            _ if seat.cancel.is_given() => return Err(Refusal::silent(CloseReason::Stopped)),
            Ok(Ok(None)) => return Err(Refusal::silent(CloseReason::ClientAborted)),
            Ok(Err(error)) => {
                return Err(Refusal::silent(table::broken(error, CloseReason::ClientAborted)));
            }
            Err(_) => return Err(Refusal::silent(CloseReason::HelloTimeout)),
        }
    }
}

/// The upstream of the most specific host among the listener's routes. Without such a route it is `upstream`,
/// the listener's own.
fn route(
    traffic: &Traffic,
    seat: &Seat,
    upstream: Option<usize>,
    server_name: Option<&str>,
    record: Option<&Record>,
) -> Result<usize, Refusal> {
    let route = server_name.and_then(|name| traffic.routes.find_by_name(&seat.listener.name, name));
    if let (Some(record), Some(route)) = (record, route) {
        record.routed(&route.label);
    }
    match route.map(|route| &route.action) {
        Some(Action::Upstream(upstream)) => Ok(*upstream),
        _ => upstream.ok_or_else(|| {
            let reason = if server_name.is_some() { CloseReason::NoRoute } else { CloseReason::NoServerName };
            Refusal::alert(reason, UNRECOGNIZED_NAME)
        }),
    }
}

#[cfg(test)]
mod tests;
