//! The start of a connection that a trusted proxy opened: its PROXY header, then the listener's own protocol.

use super::crowd::Beginning;
use super::seat::{Proxied, Seat};
use super::start::Stage;
use super::{h1, handshake, passthrough, table, tunnel};
use crate::error::CloseReason;
use crate::io::Chunk;
use crate::proxy_protocol::{self, Header, Parsed};
use crate::time::Time;

/// Reads the PROXY header, then serves the connection. `first` holds bytes received already. `due` is the
/// deadline of the header and of the hello, handshake or first request head behind it.
pub(crate) async fn serve(mut seat: Seat, first: Chunk, due: Time) {
    let (header, rest) = match read(&seat, first, due).await {
        Ok(read) => read,
        Err(reason) => {
            seat.count_received();
            seat.stream.close();
            return seat.end(reason);
        }
    };
    let proxied = match header {
        Header::Tcp { source, destination } => Some(Proxied { source, destination }),
        Header::Local | Header::Unknown => None,
    };
    if !seat.introduce(proxied) {
        seat.count_received();
        seat.stream.abort();
        return seat.end(CloseReason::ConnectionsPerIp);
    }
    match Stage::of(&seat) {
        Stage::Tunnel => {
            seat.stream.unread(rest);
            tunnel::open(seat).await;
        }
        _ if rest.is_empty() && !seat.stream.is_readable() => {
            drop(rest);
            seat.count_received();
            seat.park_fresh(due);
        }
        Stage::Http => h1::serve(seat, rest, due).await,
        // PROXY header and handshake share the time limit of the handshake.
        Stage::Handshake => handshake::serve(seat, rest, due).await,
        // `ProxyHeader` cannot come here: a connection has one such header.
        Stage::Hello | Stage::ProxyHeader => passthrough::serve(seat, rest, due).await,
    }
}

/// Reads the header; returns it with the bytes behind it.
async fn read(seat: &Seat, first: Chunk, due: Time) -> Result<(Header, Chunk), CloseReason> {
    let mut input = first;
    let mut kept = Beginning::default();
    loop {
        let before = kept.bytes().len();
        let parsed = if before == 0 {
            proxy_protocol::parse(&input)
        } else {
            kept.keep(seat, &input);
            proxy_protocol::parse(kept.bytes())
        };
        match parsed.map_err(|_| CloseReason::ProxyHeader)? {
            Parsed::Header { header, consumed } => {
                input.advance(consumed - before);
                return Ok((header, input));
            }
            Parsed::NeedMore if before == 0 => kept.keep(seat, &input),
            Parsed::NeedMore => {}
        }
        drop(input);
        match seat.worker.io.timeout_at(due, seat.stream.read()).await {
            Ok(Ok(Some(chunk))) => input = chunk,
            Ok(Ok(None)) => return Err(CloseReason::ProxyHeader),
            Ok(Err(error)) => return Err(table::broken(error, CloseReason::ClientAborted)),
            Err(_) => return Err(CloseReason::ProxyHeaderTimeout),
        }
    }
}
