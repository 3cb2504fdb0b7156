//! How a client's bytes get to its line: plain or sealed, a piece at a time, and the part that goes ahead of
//! the handshake's end.

use super::Connection;
use crate::io::simulated::Peer;
use crate::simulation::plan::Fate;

impl Connection {
    /// Its TLS ended with an error, ours or theirs.
    pub(super) fn fail(&mut self, peer: &Peer, error: &rustls::Error) {
        assert!(self.left, "client {}: its TLS broke: {error}", self.number);
        self.note(peer, format_args!("its TLS broke: {error}"));
        self.left_unanswered();
        self.finish(peer);
    }

    /// Nothing more follows the queued bytes.
    pub(super) fn end(&mut self) {
        if self.plan.secure.is_none_or(|secure| secure.is_polite) {
            self.line.part();
        }
        self.line.end();
    }

    /// Writes queued bytes: all of them, or on a sealed line a piece.
    pub(super) fn write(&mut self, peer: &Peer) {
        let now = peer.now();
        let mut most = usize::MAX;
        if self.line.is_secure() {
            if now < self.next_write {
                return peer.wake_at(self.next_write);
            }
            // With room for the bytes that sealing adds.
            most = self.plan.writes.piece + self.plan.writes.piece / 8 + 32;
            if let (Fate::AtSent(at, _), false) = (self.plan.fate, self.left) {
                most = most.min(at.saturating_sub(self.sent));
            }
        }
        let n = self.line.write(peer, most);
        self.sent += n;
        if n > 0 {
            self.book.tally().written += n as u64;
            self.moved = now;
            self.next_write = now + self.plan.writes.pause;
        }
        self.note_settled();
        if self.line.is_garbled() && !self.left {
            self.note(peer, format_args!("has garbled its byte {}", self.sent));
            self.left();
        }
        if self.line.is_secure() {
            self.note(peer, format_args!("has sent {} bytes", self.sent));
            self.check_fate(peer);
            peer.wake_at(self.next_write);
        }
    }

    /// Notes that its half of the handshake is sent, once it is.
    pub(super) fn note_settled(&self) {
        if self.line.is_secure() && self.line.is_ready() && !self.line.is_unwritten() {
            self.plan.exchanges.clone().for_each(|id| self.book.record(id).is_settled = true);
        }
    }

    /// Sends the part of the first request that may go before the handshake is over.
    pub(super) fn send_early(&mut self, peer: &Peer) {
        let id = self.plan.exchanges.start;
        let (bytes, head) = self.book.plan.exchanges[id].request();
        let n = if self.book.plan.exchanges[id].expects { 0 } else { self.line.seal_early(&bytes) };
        if n == 0 || !self.begin(peer) {
            return;
        }
        self.note(peer, format_args!("sends {n} bytes of {id} early"));
        (self.early, self.at) = (n, n);
        if n == bytes.len() {
            self.sending = None;
        }
        let mut record = self.book.record(id);
        (record.is_early, record.head_sent, record.sent) = (true, n >= head, n == bytes.len());
        drop(record);
        self.write(peer);
    }

    /// Sends the early bytes again, since they were not accepted.
    pub(super) fn say_again(&mut self, peer: &Peer) {
        let id = self.plan.exchanges.start;
        self.note(peer, format_args!("says {id} again"));
        let (bytes, head) = self.book.plan.exchanges[id].request();
        self.sending = Some((id, bytes, head));
        self.at = 0;
        let mut record = self.book.record(id);
        (record.is_early, record.head_sent, record.sent) = (false, false, false);
    }
}
