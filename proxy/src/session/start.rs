//! How a session begins: the only place that decides how a connection's next bytes are read.

use std::rc::Rc;
use std::sync::Arc;

use super::context::Worker;
use super::seat::Seat;
use super::table::{LINGER, Row, RowState, SessionKey};
use super::{h1, handshake, passthrough, proxied, tunnel};
use crate::exchange::Signal;
use crate::io::Chunk;
use crate::listen::Protocol;
use crate::time::Time;

/// How a connection's next bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The PROXY header of a trusted proxy.
    ProxyHeader,
    /// A TLS handshake that ends here.
    Handshake,
    /// A hello whose TLS is passed through.
    Hello,
    /// Bytes of a tunnel, in any protocol.
    Tunnel,
    /// A request.
    Http,
}

impl Stage {
    /// The stage of a connection without a PROXY header, or whose header was read.
    pub(super) fn of(seat: &Seat) -> Self {
        match seat.listener.protocol {
            Protocol::Http => Self::Http,
            Protocol::Https if seat.stream.is_secure() => Self::Http,
            Protocol::Https => Self::Handshake,
            Protocol::Tcp { .. } => Self::Tunnel,
            Protocol::TlsPassthrough { .. } => Self::Hello,
        }
    }
}

/// Begins the session of a connection whose first bytes are here, in `first`. A connection of a `tcp`
/// listener begins without any.
pub(super) fn start(worker: &Rc<Worker>, key: SessionKey, first: Chunk, due: Time) {
    let cancel = Signal::default();
    let (seat, awaits_header) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.state = RowState::Live { cancel: cancel.clone(), task: None, lingers: false };
        // A client that asked once may never ask again. Only a connection whose next request came within this
        // time is worth a future that waits for more.
        let is_busy = row.requests > 0 && worker.io.now().since(row.since) < LINGER;
        let listener = (row.listener_id, Arc::clone(&row.listener));
        let mut seat = Seat::new(worker, key, cancel, row.stream.clone(), listener);
        seat.requests = row.requests;
        seat.proxied.clone_from(&row.proxied);
        seat.is_busy = is_busy;
        seat.counted = row.counted;
        seat.pin.take_over(&row.pin);
        (seat, row.awaits_header)
    };
    let stage = if awaits_header { Stage::ProxyHeader } else { Stage::of(&seat) };
    // Each stage has a future of its own, no larger than it needs.
    let spawned = match stage {
        Stage::ProxyHeader => worker.io.spawn(proxied::serve(seat, first, due)),
        Stage::Http => worker.io.spawn(h1::serve(seat, first, due)),
        Stage::Handshake => worker.io.spawn(handshake::serve(seat, first, due)),
        Stage::Tunnel => worker.io.spawn(tunnel::open(seat)),
        Stage::Hello => worker.io.spawn(passthrough::serve(seat, first, due)),
    };
    if let Some(Row { state: RowState::Live { task, .. }, .. }) = worker.sessions.table.borrow_mut().row(key)
    {
        *task = Some(spawned);
    }
}
