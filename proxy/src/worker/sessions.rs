//! The table of downstream connections. An idle connection is a row here and nothing else: its stream is
//! parked and one timer is armed. A future is made at the first byte of a request and lingers for a moment
//! after each of a busy connection, whose next request comes soon.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::context::Worker;
use super::tags;
use crate::config::model;
use crate::error::{CloseReason, HandshakeFailure, ShedReason};
use crate::io::TimerKey;
use crate::io::executor::TaskKey;
use crate::io::stream::Tag;
use crate::io::{Chunk, Stream, StreamError};
use crate::listen::admission::{Admission, Admitted, Note};
use crate::listen::sources::{Sources, Ticket};
use crate::session::early::Early;
use crate::session::exchange::{Cancel, Local};
use crate::session::{downstream, passthrough, proxied, secure, tunnel};
use crate::telemetry::counters::{Counter, Plain};
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::records::Violation;

/// How long a connection that has not sent anything yet may still do so when a drain begins.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a session's future waits for the next request before it is dropped.
const LINGER: Duration = Duration::from_secs(1);
/// Futures that may wait at once on a worker.
const LINGERING_MAX: usize = 1024;

/// Names a row; never valid for another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionKey {
    index: u32,
    generation: u32,
}

impl SessionKey {
    const fn to_bits(self) -> u64 {
        (self.index as u64) << 32 | self.generation as u64
    }

    const fn tag(self) -> Tag {
        Tag { kind: tags::SESSION, key: self.to_bits() }
    }

    const fn from_bits(bits: u64) -> Self {
        Self { index: (bits >> 32) as u32, generation: bits as u32 }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Sessions {
    table: RefCell<Table>,
}

#[derive(Debug)]
struct Table {
    rows: Slab<Row>,
    generation: u32,
    lingering: usize,
    admission: Admission,
}

#[derive(Debug)]
struct Row {
    generation: u32,
    stream: Stream,
    listener: Arc<model::Listener>,
    requests: u64,
    counted: u64,
    /// Where its source counts it.
    ticket: Option<Ticket>,
    /// The connection begins with a PROXY header, which has not come yet.
    awaits_header: bool,
    /// What that header said.
    proxied: Option<Rc<Proxied>>,
    state: State,
    /// When the connection last came to wait for a request.
    since: Time,
    /// When a parked row is closed or looked at again, or a lingering one parked.
    due: Time,
    /// The row's only timer and when it fires: at `due` or before. Moving it with every request would cost
    /// more than one that fires early now and then.
    timer: Option<(TimerKey, Time)>,
}

/// For whom a proxy opened its connection.
#[derive(Clone, Copy, Debug)]
pub struct Proxied {
    /// The client.
    pub source: SocketAddr,
    /// Where it connected to.
    pub destination: SocketAddr,
}

#[derive(Debug)]
enum State {
    /// Between requests, without a future.
    Parked,
    /// With a future: within a request, or between requests if it lingers. No task: it is about to be
    /// spawned.
    Live { cancel: Cancel, task: Option<TaskKey>, lingers: bool },
}

impl Sessions {
    /// Holds up to `connections_max`.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self {
            table: RefCell::new(Table {
                rows: Slab::new(),
                generation: 0,
                lingering: 0,
                admission: Admission::new(connections_max),
            }),
        }
    }

    /// From now on no source has more connections than `sources` allow.
    pub fn limit_sources(&self, sources: Arc<Sources>) {
        self.table.borrow_mut().admission.limit_sources(sources);
    }

    /// Takes one more connection, or says why not.
    pub fn admit(&self, stream: &Stream, listener: &model::Listener) -> Result<Admitted, ShedReason> {
        let source = || (!awaits_header(stream, listener)).then(|| stream.peer().ip());
        self.table.borrow_mut().admission.admit(source)
    }

    /// What the rows say, checked against the table's own counts.
    #[cfg(test)]
    pub(super) fn check(&self) -> super::checks::Table {
        let table = self.table.borrow();
        let mut found =
            super::checks::Table { open: table.rows.len(), parked: vec![], timed: vec![], lingering: vec![] };
        for (index, row) in &table.rows {
            let tag = SessionKey { index: index as u32, generation: row.generation }.tag();
            assert!(row.timer.is_none_or(|(_, at)| at <= row.due), "a row's timer fires after it is due");
            match row.state {
                State::Parked => {
                    found.parked.push(tag);
                    found.timed.push(tag);
                }
                State::Live { task, lingers, .. } => {
                    let task = task.expect("a live row has its task after a turn");
                    if lingers {
                        found.lingering.push(task);
                        found.timed.push(tag);
                    }
                }
            }
        }
        assert_eq!(table.lingering, found.lingering.len(), "lingering sessions");
        assert_eq!(table.admission.open(), table.rows.len(), "admitted connections");
        found
    }

    /// Connections held now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.table.borrow().admission.open()
    }
}

/// Whether a connection has to begin with a PROXY header.
fn awaits_header(stream: &Stream, listener: &model::Listener) -> bool {
    listener.proxy_protocol && listener.trusts(stream.peer().ip())
}

fn take_note(worker: &Worker, note: Option<Note>) {
    match note {
        Some(Note::AtLimit) => worker.counters.increment(Counter::Shed(ShedReason::ConnectionsPerIp)),
        Some(Note::Uncounted) => worker.counters.increment(Plain::SourcesUncounted),
        None => {}
    }
}

/// Opens a session for a connection that was admitted.
pub fn open(worker: &Rc<Worker>, stream: Stream, listener: Arc<model::Listener>, admitted: Admitted) {
    take_note(worker, admitted.note);
    worker.counters.increment(Plain::Open);
    let due = worker.io.after(worker.patience(listener.patience()));
    let awaits_header = awaits_header(&stream, &listener);
    // Whoever speaks first.
    let starts_now = !awaits_header && matches!(listener.protocol, model::Protocol::Tcp { .. });
    let key = {
        let table = &mut *worker.sessions.table.borrow_mut();
        let generation = table.generation;
        table.generation = generation.wrapping_add(1);
        let index = table.rows.insert(Row {
            generation,
            stream,
            listener,
            requests: 0,
            counted: 0,
            ticket: admitted.ticket,
            awaits_header,
            proxied: None,
            state: State::Parked,
            since: worker.io.now(),
            due,
            timer: None,
        });
        SessionKey { index: index as u32, generation }
    };
    if starts_now { start(worker, key, Chunk::default(), due) } else { park(worker, key, due) }
}

impl Worker {
    /// How long somebody who has not sent anything yet may take: not so long once a drain has begun.
    fn patience(&self, patience: Duration) -> Duration {
        if self.is_draining() { patience.min(DRAIN_GRACE) } else { patience }
    }

    /// When the first request head is due of a connection whose handshake is over now.
    #[must_use]
    pub fn first_head_due(&self, listener: &model::Listener) -> Time {
        self.io.after(self.patience(listener.timeouts.request_header))
    }
}

/// Makes a connection idle data until its next byte, or until `due`.
fn park(worker: &Rc<Worker>, key: SessionKey, due: Time) {
    let stream = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.state = State::Parked;
        row.set_due(worker, key, due);
        row.stream.clone()
    };
    stream.park(key.tag());
}

/// A parked connection spoke or died.
pub fn woken(worker: &Rc<Worker>, bits: u64) {
    let key = SessionKey::from_bits(bits);
    let (stream, listener, requests, parked_due) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        if !matches!(row.state, State::Parked) {
            return;
        }
        (row.stream.clone(), Arc::clone(&row.listener), row.requests, row.due)
    };
    let first = match stream.poll_read(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(Some(chunk))) => chunk,
        Poll::Ready(Ok(None)) => {
            stream.close();
            return remove(worker, key, CloseReason::ClientClosed);
        }
        Poll::Ready(Err(error)) => return remove(worker, key, broken(error, CloseReason::ClientClosed)),
        Poll::Pending => return park(worker, key, parked_due),
    };
    // The first head is due since the accept, later ones since their first byte.
    let due = if requests == 0 { parked_due } else { worker.io.after(listener.timeouts.request_header) };
    start(worker, key, first, due);
}

fn start(worker: &Rc<Worker>, key: SessionKey, first: Chunk, due: Time) {
    let cancel = Cancel::default();
    let (seat, awaits_header) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.state = State::Live { cancel: cancel.clone(), task: None, lingers: false };
        // What asked once may never ask again: only a connection that did within this time is worth a future
        // that waits for it.
        let is_busy = row.requests > 0 && worker.io.now().since(row.since) < LINGER;
        let seat = Seat {
            worker: Rc::clone(worker),
            key,
            is_busy,
            stream: row.stream.clone(),
            listener: Arc::clone(&row.listener),
            requests: row.requests,
            proxied: row.proxied.clone(),
            cancel,
            early: None,
            end: None,
            counted: row.counted,
        };
        (seat, row.awaits_header)
    };
    let spawned = match seat.listener.protocol {
        _ if awaits_header => worker.io.spawn(proxied::serve(seat, first, due)),
        model::Protocol::Http => worker.io.spawn(downstream::serve(seat, first, due)),
        model::Protocol::Https if !seat.stream.is_secure() => {
            worker.io.spawn(secure::serve(seat, first, due))
        }
        model::Protocol::Https => worker.io.spawn(downstream::serve(seat, first, due)),
        model::Protocol::Tcp { .. } => worker.io.spawn(tunnel::open(seat)),
        model::Protocol::TlsPassthrough { .. } => worker.io.spawn(passthrough::serve(seat, first, due)),
    };
    if let Some(Row { state: State::Live { task, .. }, .. }) = worker.sessions.table.borrow_mut().row(key) {
        *task = Some(spawned);
    }
}

/// Why a connection ended that broke; `reset` if its client did it.
pub const fn broken(error: StreamError, reset: CloseReason) -> CloseReason {
    match error {
        StreamError::Reset => reset,
        StreamError::Evicted => CloseReason::Overloaded,
        StreamError::Os(_) => CloseReason::SocketError,
        StreamError::Tls(_) | StreamError::Truncated => CloseReason::TlsBroken,
    }
}

/// The timer of a connection fired.
pub fn timed_out(worker: &Rc<Worker>, bits: u64) {
    let key = SessionKey::from_bits(bits);
    let (stream, reason) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.timer = None;
        let due = row.due;
        match row.state {
            // It is armed again at the next boundary.
            State::Live { lingers: false, .. } => return,
            _ if worker.io.now() < due => return row.set_due(worker, key, due),
            State::Live { task, .. } => {
                drop(table);
                // Dropping its seat parks it.
                return task.into_iter().for_each(|task| worker.io.cancel_task(task));
            }
            State::Parked => {}
        }
        let (due, reason) = row.deadline();
        if worker.io.now() < due {
            let look = worker.io.after(row.listener.timeouts.keep_alive.max(LINGER));
            // One that takes its last response is idle from then on.
            return row.set_due(
                worker,
                key,
                if reason == CloseReason::SendTimeout { due.min(look) } else { due },
            );
        }
        (row.stream.clone(), reason)
    };
    if reason == CloseReason::TlsHandshake {
        worker.counters.increment(Counter::HandshakeFailed(HandshakeFailure::Timeout));
    }
    close_parked(worker, key, &stream, reason);
}

/// Makes lingering sessions idle data.
fn park_lingering(worker: &Rc<Worker>) {
    let tasks: Vec<_> = {
        let table = worker.sessions.table.borrow();
        let tasks = table.rows.iter().filter_map(|(_, row)| match row.state {
            State::Live { task, lingers: true, .. } => task,
            _ => None,
        });
        tasks.collect()
    };
    for task in tasks {
        worker.io.cancel_task(task);
    }
}

fn close_parked(worker: &Rc<Worker>, key: SessionKey, stream: &Stream, reason: CloseReason) {
    stream.unpark();
    // A client that stopped taking its last response gets no more time for it.
    if reason == CloseReason::SendTimeout {
        stream.abort();
    } else {
        stream.close();
    }
    remove(worker, key, reason);
}

/// Closes what is idle; the others end at their next boundary.
pub fn drain(worker: &Rc<Worker>) {
    park_lingering(worker);
    let parked: Vec<_> = {
        let mut table = worker.sessions.table.borrow_mut();
        table.admission.drain();
        let rows = table.rows.iter().filter_map(|(index, row)| {
            let key = SessionKey { index: index as u32, generation: row.generation };
            matches!(row.state, State::Parked).then(|| (key, row.due, row.requests, row.stream.clone()))
        });
        rows.collect()
    };
    for (key, due, requests, stream) in parked {
        if requests == 0 {
            // Its first request may be on the way.
            park(worker, key, due.min(worker.io.after(DRAIN_GRACE)));
        } else {
            close_parked(worker, key, &stream, CloseReason::Draining);
        }
    }
}

/// Resets every connection that is left: a drain's deadline passed, or a stop.
pub fn abort_all(worker: &Rc<Worker>) {
    park_lingering(worker);
    let left: Vec<_> = {
        let table = worker.sessions.table.borrow();
        let rows = table.rows.iter().map(|(index, row)| {
            let parked = match &row.state {
                State::Parked => true,
                State::Live { cancel, .. } => {
                    cancel.cancel();
                    false
                }
            };
            (SessionKey { index: index as u32, generation: row.generation }, parked, row.stream.clone())
        });
        rows.collect()
    };
    for (key, parked, stream) in left {
        stream.abort();
        if parked {
            stream.unpark();
            remove(worker, key, CloseReason::Stopped);
        }
    }
}

fn remove(worker: &Worker, key: SessionKey, reason: CloseReason) {
    // Runs in drops, also while a panic unwinds: a table that is borrowed then must not panic again.
    let removed = worker.sessions.table.try_borrow_mut().ok().and_then(|mut table| {
        let ticket = table.row(key)?.ticket;
        table.admission.release(ticket);
        Some(table.rows.remove(key.index as usize))
    });
    if let Some(row) = removed {
        if let Some((timer, _)) = row.timer {
            worker.io.cancel_timer(timer);
        }
        worker.counters.decrement(Plain::Open);
        worker.counters.increment(Counter::Closed(reason));
        if let Some(StreamError::Tls(violation)) = row.stream.error() {
            match violation {
                Violation::Alert(alert) => {
                    worker.counters.increment(Counter::AlertReceived(Alert::of(alert)))
                }
                Violation::Ours(alert) => worker.counters.increment(Counter::AlertSent(Alert::of(alert))),
                Violation::Unsaid => {}
            }
        }
        // One comparison while nobody asks for it.
        tracing::debug!(
            reason = reason.label(),
            client = %row.stream.peer(),
            listener = %row.listener.name,
            "connection ended"
        );
    }
}

/// Whether the client's host has everything that was queued for it, or will get nothing more.
fn is_flushed(stream: &Stream) -> bool {
    stream.poll_flushed(&mut Context::from_waker(Waker::noop())).is_ready()
}

impl Row {
    /// When a parked row is to be closed, and why: it is idle only once the client has taken its last
    /// response, which may be queued long after its session parked.
    fn deadline(&self) -> (Time, CloseReason) {
        let (moved_at, timeouts) = (self.stream.progress().sent_at.max(self.since), &self.listener.timeouts);
        if self.listener.tls.is_some() && !self.stream.is_secure() {
            (self.due, CloseReason::TlsHandshake)
        } else if self.requests == 0 {
            let reason = match self.listener.protocol {
                model::Protocol::TlsPassthrough { .. } => CloseReason::HelloTimeout,
                _ => CloseReason::RequestHeaderTimeout,
            };
            (self.due, reason)
        } else if is_flushed(&self.stream) {
            (moved_at + timeouts.keep_alive, CloseReason::KeepAliveTimeout)
        } else {
            (moved_at + timeouts.send, CloseReason::SendTimeout)
        }
    }

    fn set_due(&mut self, worker: &Worker, key: SessionKey, due: Time) {
        self.due = due;
        if let Some((timer, at)) = self.timer {
            if at <= due {
                return;
            }
            worker.io.cancel_timer(timer);
        }
        self.timer = Some((worker.io.timer_at(due, key.tag()), due));
    }
}

impl Table {
    fn row(&mut self, key: SessionKey) -> Option<&mut Row> {
        self.rows.get_mut(key.index as usize).filter(|row| row.generation == key.generation)
    }
}

/// A running session's place in the table. Dropping it gives the place up.
#[derive(Debug)]
pub struct Seat {
    /// Its worker.
    pub worker: Rc<Worker>,
    /// Its connection.
    pub stream: Stream,
    /// The listener that accepted it.
    pub listener: Arc<model::Listener>,
    /// Requests read on it so far.
    pub requests: u64,
    /// Told when the worker gives the session up.
    pub cancel: Cancel,
    /// Its client's handshake is not over.
    pub(crate) early: Option<Box<Early>>,
    proxied: Option<Rc<Proxied>>,
    key: SessionKey,
    /// Its requests come soon one after the other.
    is_busy: bool,
    end: Option<CloseReason>,
    /// Received bytes that the counters know of.
    counted: u64,
}

impl Seat {
    /// The client's address; an IPv4-mapped one is IPv4.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.proxied.as_ref().map_or_else(|| self.stream.peer(), |proxied| proxied.source)
    }

    /// Goes by what this configuration says of its listener, if it has it still.
    pub fn follow(&mut self, config: &model::Config) {
        if let Some(listener) = config.listeners.iter().find(|listener| listener.name == self.listener.name) {
            self.listener.clone_from(listener);
        }
    }

    /// Where it connected to.
    #[must_use]
    pub fn local(&self) -> Local<'_> {
        self.proxied.as_ref().map_or(Local::Of(&self.stream), |proxied| Local::Known(proxied.destination))
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
        let Some(row) = table.rows.get_mut(self.key.index as usize) else { return false };
        let State::Live { lingers, .. } = &mut row.state else { return false };
        *lingers = true;
        row.since = self.worker.io.now();
        row.set_due(&self.worker, self.key, self.worker.io.after(LINGER));
        table.lingering += 1;
        true
    }

    /// The next request began.
    pub fn resume(&self) {
        let table = &mut *self.worker.sessions.table.borrow_mut();
        if let Some(Row { state: State::Live { lingers, .. }, .. }) = table.row(self.key) {
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
            let is_given_up = self.cancel.is_cancelled() || self.end.is_none();
            let failure =
                if is_given_up { HandshakeFailure::Draining } else { HandshakeFailure::ClientClosed };
            self.worker.counters.increment(Counter::HandshakeFailed(failure));
        }
        // `None`: the row is gone, or the table is in use while a panic unwinds.
        let live = self.worker.sessions.table.try_borrow_mut().ok().and_then(|mut table| {
            let table = &mut *table;
            let row = table.row(self.key)?;
            let State::Live { lingers, .. } = row.state else { return None };
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

/// For a test of what a panic leaves behind: takes the seat of the one session there is, and panics in it.
#[cfg(test)]
pub(super) fn panic_within_only_session(worker: &Rc<Worker>) {
    let (index, generation, stream) = {
        let table = worker.sessions.table.borrow();
        let (index, row) = table.rows.iter().next().expect("a session");
        (index as u32, row.generation, row.stream.clone())
    };
    stream.unpark();
    let (key, cancel) = (SessionKey { index, generation }, Cancel::default());
    let listener = {
        let mut table = worker.sessions.table.borrow_mut();
        let row = table.row(key).expect("there");
        assert!(matches!(row.state, State::Parked), "it runs");
        row.state = State::Live { cancel: cancel.clone(), task: None, lingers: false };
        Arc::clone(&row.listener)
    };
    let seat = Seat {
        worker: Rc::clone(worker),
        stream,
        listener,
        requests: 0,
        proxied: None,
        cancel,
        early: None,
        key,
        is_busy: false,
        end: None,
        counted: 0,
    };
    worker.io.spawn(async move {
        let _seat = seat;
        panic!("meant by the test");
    });
}
