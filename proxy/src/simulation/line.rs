//! One end of a connection as clients and origins hold it: plain bytes, or rustls' own TLS over them. Sealed
//! bytes wait here until they are written, so that a record can be cut, altered or held back at any byte.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, Error, ServerConfig, ServerConnection};

use crate::io::simulated::Peer;

/// Bytes of a hello up to its cipher suites.
const FIXED: usize = 76;

#[derive(Default)]
pub(super) struct Line {
    tls: Option<Box<Connection>>,
    out: VecDeque<u8>,
    written: usize,
    /// FIN follows the waiting bytes.
    ends: bool,
    /// The other side announced that it sends nothing more.
    is_parted: bool,
    /// The byte in which a bit is changed.
    flips: Option<usize>,
    /// Nothing is written from this byte on.
    stops: Option<usize>,
}

impl Line {
    pub(super) fn client(config: &Arc<ClientConfig>, name: &ServerName<'static>) -> Self {
        let connection = ClientConnection::new(Arc::clone(config), name.clone()).expect("a client");
        Self::secure(connection.into())
    }

    pub(super) fn server(config: &Arc<ServerConfig>) -> Self {
        Self::secure(ServerConnection::new(Arc::clone(config)).expect("a server").into())
    }

    fn secure(mut connection: Connection) -> Self {
        connection.set_buffer_limit(None);
        let mut line = Self { tls: Some(Box::new(connection)), ..Self::default() };
        line.collect();
        line
    }

    /// Changes a bit of this byte, but not in a hello's extensions. Their order differs every time, and the
    /// result must not.
    pub(super) fn flip(&mut self, at: usize) {
        self.flips = Some(if at < self.out.len() { at % FIXED } else { at });
    }

    pub(super) fn stop(&mut self, at: Option<usize>) {
        self.stops = at;
    }

    pub(super) const fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether the bytes written may be more than a handshake.
    pub(super) fn is_ready(&self) -> bool {
        self.tls.as_ref().is_none_or(|tls| !tls.is_handshaking())
    }

    /// Whether the other side announced the end of its bytes, where TLS can do that.
    pub(super) const fn is_parted(&self) -> bool {
        self.is_parted || self.tls.is_none()
    }

    /// Whether a bit was changed.
    pub(super) fn is_garbled(&self) -> bool {
        self.flips.is_some_and(|at| at < self.written)
    }

    /// The content of received bytes. After an error there may be an alert to write.
    pub(super) fn open(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
        let Some(tls) = &mut self.tls else { return Ok(bytes.to_vec()) };
        let (mut plain, mut result) = (Vec::new(), Ok(()));
        while !bytes.is_empty() && result.is_ok() {
            tls.read_tls(&mut bytes).expect("room");
            match tls.process_new_packets() {
                Ok(state) => {
                    self.is_parted |= state.peer_has_closed();
                    let start = plain.len();
                    plain.resize(start + state.plaintext_bytes_to_read(), 0);
                    tls.reader().read_exact(&mut plain[start..]).expect("plaintext");
                }
                Err(error) => result = Err(error),
            }
        }
        self.collect();
        result.map(|()| plain)
    }

    /// Queues bytes.
    pub(super) fn seal(&mut self, bytes: &[u8]) {
        match &mut self.tls {
            Some(tls) => tls.writer().write_all(bytes).expect("memory"),
            None => self.out.extend(bytes),
        }
        self.collect();
    }

    /// Queues the bytes that may go ahead of the handshake's end; returns how many.
    pub(super) fn seal_early(&mut self, bytes: &[u8]) -> usize {
        let Some(Connection::Client(client)) = self.tls.as_deref_mut() else { return 0 };
        let Some(mut early) = client.early_data() else { return 0 };
        let taken = early.write(bytes).unwrap_or(0);
        self.collect();
        taken
    }

    /// Whether the other side accepted the early bytes.
    pub(super) fn is_early_accepted(&self) -> bool {
        matches!(self.tls.as_deref(), Some(Connection::Client(client)) if client.is_early_data_accepted())
    }

    /// Queues the first half of a record; the other half never comes.
    pub(super) fn seal_half(&mut self, bytes: &[u8]) {
        let before = self.out.len();
        if self.is_secure() {
            self.seal(bytes);
        }
        self.out.truncate(before.midpoint(self.out.len()));
    }

    /// Queues the announcement that nothing more comes.
    pub(super) fn part(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
        }
        self.collect();
    }

    /// FIN follows the queued bytes.
    pub(super) fn end(&mut self) {
        self.ends = true;
    }

    /// Whether something waits to be written.
    pub(super) fn is_unwritten(&self) -> bool {
        !self.out.is_empty() || self.ends
    }

    /// Writes at most `most` bytes; returns how many.
    pub(super) fn write(&mut self, peer: &Peer, most: usize) -> usize {
        let most = self.stops.map_or(most, |stops| most.min(stops.saturating_sub(self.written)));
        let mut bytes: Vec<u8> = self.out.drain(..most.min(self.out.len())).collect();
        if let Some(flipped) = self.flips.and_then(|at| bytes.get_mut(at.checked_sub(self.written)?)) {
            *flipped ^= 1 << (self.written % 8);
        }
        self.written += bytes.len();
        peer.write(&bytes);
        if self.out.is_empty() && std::mem::take(&mut self.ends) {
            peer.shutdown_write();
        }
        bytes.len()
    }

    /// Drops the queued bytes: they are never written.
    pub(super) fn cut(&mut self) {
        self.out.clear();
        self.ends = false;
    }

    fn collect(&mut self) {
        if let Some(tls) = &mut self.tls {
            while tls.wants_write() {
                tls.write_tls(&mut self.out).expect("memory");
            }
        }
    }
}
