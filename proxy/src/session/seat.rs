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
use crate::listen::{Listener, ListenerId};
use crate::time::Time;
use crate::upstream::pin::Pin;
use crate::wire::pace::Watch;

/// The client that a trusted proxy named in its PROXY header.
#[derive(Clone, Copy, Debug)]
pub struct Proxied {
    /// The client's address.
    pub source: SocketAddr,
    /// The address that the client connected to.
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
    pub listener_id: ListenerId,
    /// That listener's configuration, as of the accept or of a later request.
    pub listener: Arc<Listener>,
    /// Requests read on it so far.
    pub requests: u64,
    /// Given when the worker gives the session up.
    pub cancel: Signal,
    /// `Some` while the client's handshake is not over.
    pub(crate) early: Option<Box<Early>>,
    pub(super) proxied: Option<Rc<Proxied>>,
    /// The connection to an endpoint that belongs to this client's connection, if there is one.
    pub(super) pin: Pin,
    key: SessionKey,
    /// The last request came within `LINGER` after the one before, so the session may linger.
    pub(super) is_busy: bool,
    end: Option<CloseReason>,
    /// Received bytes that are already in the counters.
    pub(super) counted: u64,
}

impl Seat {
    /// The seat of a connection without a request so far.
    pub(super) fn new(
        worker: &Rc<Worker>,
        key: SessionKey,
        cancel: Signal,
        stream: Stream,
        (listener_id, listener): (ListenerId, Arc<Listener>),
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            stream,
            listener_id,
            listener,
            requests: 0,
            cancel,
            early: None,
            proxied: None,
            pin: Pin::default(),
            key,
            is_busy: false,
            end: None,
            counted: 0,
        }
    }

    /// Names its row.
    pub(super) const fn key(&self) -> SessionKey {
        self.key
    }

    /// The client's address; an IPv4-mapped one is IPv4.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.proxied.as_ref().map_or_else(|| self.stream.peer(), |proxied| proxied.source)
    }

    /// Takes over the current configuration of its listener, if that listener still exists.
    pub fn follow(&mut self, traffic: &Traffic) {
        if let Some(listener) = traffic.listeners.get(self.listener_id) {
            self.listener.clone_from(listener);
        }
    }

    /// The address that the client connected to, if a PROXY header named it.
    #[must_use]
    pub fn proxied_local(&self) -> Option<SocketAddr> {
        self.proxied.as_ref().map(|proxied| proxied.destination)
    }

    /// Takes the content of the PROXY header; `None`: the connection's own addresses hold. `false`: the
    /// client has as many connections as a source may have.
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

    /// Ends the session of a connection without a request so far. Its row waits for the first byte of one,
    /// which is due at `due`.
    pub fn park_fresh(self, due: Time) {
        self.park_until(self.worker.io.now(), due);
    }

    /// Counts the bytes received since the last call.
    pub fn count_received(&mut self) {
        let received = self.stream.progress().received;
        self.worker.counters.add(Plain::ReceivedBytes, received.saturating_sub(self.counted));
        self.counted = received;
    }

    /// Received bytes that are already in the counters.
    #[must_use]
    pub const fn counted(&self) -> u64 {
        self.counted
    }

    /// Ends the session with its connection, which the caller has closed or aborted.
    pub fn end(mut self, reason: CloseReason) {
        self.end = Some(reason);
    }

    /// Ends the session; its row waits for the next request.
    pub fn park(self) {
        self.park_since(self.worker.io.now());
        // The row is parked now, so dropping the seat leaves it.
    }

    /// Keeps the session for a moment while its connection waits for the next request. The caller then waits
    /// for bytes and calls `resume`. After `LINGER` the worker drops the session, which parks the row.
    /// `false`: the caller must park at once.
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

    /// Ends the lingering: bytes came, or the connection ended.
    pub fn resume(&self) {
        let table = &mut *self.worker.sessions.table.borrow_mut();
        if let Some(Row { state: RowState::Live { lingers, .. }, .. }) = table.row(self.key) {
            *lingers = false;
            table.lingering -= 1;
        }
    }

    fn park_since(&self, since: Time) {
        let timeouts = &self.listener.timeouts;
        // The last response may still be on its way. Which of the two limits applies is decided when the
        // timer fires (`Row::deadline`).
        let due = since + timeouts.keep_alive.min(timeouts.send);
        self.park_until(since, due);
    }

    fn park_until(&self, since: Time, due: Time) {
        if let Some(row) = self.worker.sessions.table.borrow_mut().row(self.key) {
            row.requests = self.requests;
            row.counted = self.counted;
            row.pin.take_over(&self.pin);
            row.since = since;
        }
        park(&self.worker, self.key, due);
    }
}

/// Notes in its row whether the client is slow, so that the connection gives way to others.
impl Watch for Seat {
    fn slow(&self, since: Option<Time>) {
        // Runs in drops, also while a panic unwinds.
        if let Ok(mut table) = self.worker.sessions.table.try_borrow_mut()
            && let Some(row) = table.row(self.key)
        {
            row.is_slow = since.is_some();
            row.since = since.unwrap_or(row.since);
        }
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
                // No end was given: the session panicked, or the executor was dropped.
                Some(None) => self.stream.abort(),
            }
        }
        let unsaid = if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Stopped };
        remove(&self.worker, self.key, self.end.unwrap_or(unsaid));
    }
}
