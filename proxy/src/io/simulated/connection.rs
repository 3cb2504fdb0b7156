//! A connection of the simulated world.

use std::collections::VecDeque;
use std::net::SocketAddr;

/// One connection, seen from the peer's end. `in_*` runs to the engine, `out_*` to the peer.
pub(super) struct Connection {
    pub(super) peer: SocketAddr,
    pub(super) inward: VecDeque<u8>,
    pub(super) inward_fin: bool,
    pub(super) outward: VecDeque<u8>,
    /// The end of a last send, which waits for FIN.
    pub(super) withheld: Vec<u8>,
    pub(super) outward_fin: bool,
    /// The peer or its host broke the connection; the errno that the engine's socket reports then.
    pub(super) broken_by_peer: Option<i32>,
    /// The engine did.
    pub(super) reset_by_engine: bool,
    /// The engine has no descriptor of it any more.
    pub(super) engine_closed: bool,
    pub(super) peer_closed: bool,
    pub(super) reset_on_close: bool,
    pub(super) written: u64,
    pub(super) delivered: u64,
}

impl Connection {
    pub(super) fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            inward: VecDeque::new(),
            inward_fin: false,
            outward: VecDeque::new(),
            withheld: Vec::new(),
            outward_fin: false,
            broken_by_peer: None,
            reset_by_engine: false,
            engine_closed: false,
            peer_closed: false,
            reset_on_close: false,
            written: 0,
            delivered: 0,
        }
    }

    pub(super) const fn is_broken(&self) -> bool {
        self.broken_by_peer.is_some() || self.reset_by_engine
    }

    /// FIN, behind everything.
    pub(super) fn end_outward(&mut self) {
        self.outward.extend(self.withheld.drain(..));
        self.outward_fin = true;
    }

    pub(super) fn break_by_peer(&mut self, errno: i32) {
        self.broken_by_peer = Some(errno);
        self.written -= self.inward.len() as u64;
        self.inward.clear();
        self.peer_closed = true;
    }
}
