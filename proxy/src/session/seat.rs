//! A running session's place in the table of connections, and how it leaves it: parked, lingering, ended or
//! dropped.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::context::Worker;
use super::early::Early;
use super::table::{LINGER, LINGERING_MAX, Row, RowState, SessionKey, park, remove, take_note};
use super::traffic::Traffic;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, HandshakeFailure};
use crate::exchange::Signal;
use crate::io::Stream;
use crate::listen::Listener;
use crate::time::Time;

/// For whom a proxy opened its connection.
#[derive(Clone, Copy, Debug)]
pub struct Proxied {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

/// A running session's place in the table. Dropping it gives the place up.
#[derive(Debug)]
pub struct Seat {
    /// Its worker.
    pub worker: Rc<Worker>,
    /// Its connection.
    pub stream: Stream,
    /// The listener that accepted it.
    pub listener: Arc<Listener>,
    /// Requests read on it so far.
    pub requests: u64,
    /// Told when the worker gives the session up.
    pub cancel: Signal,
    /// Its client's handshake is not over.
    pub(crate) early: Option<Box<Early>>,
    pub(super) proxied: Option<Rc<Proxied>>,
    key: SessionKey,
    /// Its requests come soon one after the other.
    pub(super) is_busy: bool,
    end: Option<CloseReason>,
    /// Received bytes that the counters know of.
    pub(super) counted: u64,
}

impl Seat {
    /// Of a connection that asked for nothing yet.
    pub(super) fn new(
        worker: &Rc<Worker>,
        key: SessionKey,
        cancel: Signal,
        (stream, listener): (Stream, Arc<Listener>),
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            stream,
            listener,
            requests: 0,
            cancel,
            early: None,
            proxied: None,
            key,
            is_busy: false,
            end: None,
            counted: 0,
        }
    }

    /// The client's address; an IPv4-mapped one is IPv4.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.proxied.as_ref().map_or_else(|| self.stream.peer(), |proxied| proxied.source)
    }

    /// Goes by the current configuration of its listener, if that is there still.
    pub fn follow(&mut self, traffic: &Traffic) {
        if let Some(listener) = traffic.listener(&self.listener.name) {
            self.listener.clone_from(listener);
        }
    }

    /// Where the client connected to, if a PROXY header said it.
    #[must_use]
    pub fn proxied_local(&self) -> Option<SocketAddr> {
        self.proxied.as_ref().map(|proxied| proxied.destination)
    }

    /// The connection's PROXY header was read; what it said, unless that the connection's own addresses hold.
    /// `false`: its client has as many connections as a source may have.
    #[must_use]
    pub fn introduce(&mut self, proxied: Option<Proxied>) -> bool {
        self.proxied = proxied.map(Rc::new);
        let table = &mut *self.worker.sessions.table.borrow_mut();
        let admitted = proxied.map(|proxied| table.admission.claim(proxied.source.ip()));
        let Some(row) = table.row(self.key) else { return false };
        row.awaits_header = false;
        row.proxied.clone_from(&self.proxied);
        match admitted {
            Some(Ok(admitted)) => {
                row.ticket = admitted.ticket;
                take_note(&self.worker, admitted.note);
                true
            }
            Some(Err(_)) => false,
            None => true,
        }
    }

    /// The session ends until the first byte of a request, which is due then.
    pub fn park_fresh(self, due: Time) {
        self.park_until(self.worker.io.now(), due);
    }

    /// Counts what was received since the last call.
    pub fn count_received(&mut self) {
        let received = self.stream.progress().received;
        self.worker.counters.add(Plain::ReceivedBytes, received.saturating_sub(self.counted));
        self.counted = received;
    }

    /// Received bytes that the counters know of.
    #[must_use]
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// The session ends with its connection: the caller has closed or aborted it.
    pub fn end(mut self, reason: CloseReason) {
        self.end = Some(reason);
    }

    /// The session ends, its connection waits for the next request.
    pub fn park(self) {
        self.park_since(self.worker.io.now());
        // The row is parked now, so dropping the seat leaves it.
    }

    /// The connection waits for the next request, and the session with it for a moment: whoever calls this
    /// waits for bytes, then calls `resume`. When the moment is over the session is dropped and its
    /// connection parked. `false` where it must be parked at once.
    pub fn linger(&self) -> bool {
        let table = &mut *self.worker.sessions.table.borrow_mut();
        if !self.is_busy || self.listener.timeouts.keep_alive <= LINGER || table.lingering >= LINGERING_MAX {
            return false;
        }
        let Some(row) = table.row(self.key) else { return false };
        let RowState::Live { lingers, .. } = &mut row.state else { return false };
        *lingers = true;
        row.since = self.worker.io.now();
        row.set_due(&self.worker, self.key, self.worker.io.after(LINGER));
        table.lingering += 1;
        true
    }

    /// The next request began.
    pub fn resume(&self) {
        let table = &mut *self.worker.sessions.table.borrow_mut();
        if let Some(Row { state: RowState::Live { lingers, .. }, .. }) = table.row(self.key) {
            *lingers = false;
            table.lingering -= 1;
        }
    }

    fn park_since(&self, since: Time) {
        let timeouts = &self.listener.timeouts;
        // Its last response may be on the way still: which of both it is shows then.
        let due = since + timeouts.keep_alive.min(timeouts.send);
        self.park_until(since, due);
    }

    fn park_until(&self, since: Time, due: Time) {
        if let Some(row) = self.worker.sessions.table.borrow_mut().row(self.key) {
            row.requests = self.requests;
            row.counted = self.counted;
            row.since = since;
        }
        park(&self.worker, self.key, due);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.early.is_some() {
            let is_given_up = self.cancel.is_given() || self.end.is_none();
            let failure =
                if is_given_up { HandshakeFailure::Draining } else { HandshakeFailure::ClientClosed };
            self.worker.counters.increment(Counter::HandshakeFailed(failure));
        }
        // `None`: the row is gone, or the table is in use while a panic unwinds.
        let live = self.worker.sessions.table.try_borrow_mut().ok().and_then(|mut table| {
            let table = &mut *table;
            let row = table.row(self.key)?;
            let RowState::Live { lingers, .. } = row.state else { return None };
            let since = row.since;
            table.lingering -= usize::from(lingers);
            Some(lingers.then_some(since))
        });
        if self.end.is_none() {
            match live {
                None => return,
                Some(Some(since)) => return self.park_since(since),
                // Nobody said how it ended: a panic, or the executor was dropped.
                Some(None) => self.stream.abort(),
            }
        }
        let unsaid = if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Stopped };
        remove(&self.worker, self.key, self.end.unwrap_or(unsaid));
    }
}
