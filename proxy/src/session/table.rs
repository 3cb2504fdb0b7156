//! The table of downstream connections. An idle connection is a row here and nothing else: its stream is
//! parked and one timer is armed. A future is made at the first byte of a request. Between the requests of a
//! busy connection it lingers for a moment, since the next request comes soon.
//!
//! ```text
//! state      event                                          next state
//! ---------- ---------------------------------------------- ---------------------------------------
//! (accept)   `tcp` listener without a PROXY header          Live
//!            any other                                      Parked
//! Parked     bytes                                          Live
//!            FIN, error, deadline                           removed
//!            drain                                          removed; without a request so far Parked,
//!                                                           for `DRAIN_GRACE` at most
//! Live       response sent, no further byte is here         lingering if busy, else Parked
//!            handshake or PROXY header read, no byte yet    Parked
//!            connection closed or reset, panic              removed
//!            drain                                          Live until its next boundary
//! lingering  bytes                                          Live
//!            `LINGER` is over, drain                        Parked
//!            FIN, error                                     removed
//! ```
//!
//! A lingering row is `RowState::Live` with `lingers`. A stop resets the connection of every row.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::context::Worker;
use super::room::{Plan, Waiting};
use super::seat::Proxied;
#[cfg(test)]
use super::seat::Seat;
use super::start::start;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, HandshakeFailure, ShedReason};
use crate::exchange::Signal;
use crate::io::executor::TaskKey;
use crate::io::places::Source;
use crate::io::stream::Tag;
use crate::io::{Chunk, Stream, StreamError, TimerKey, tags};
use crate::listen::admission::{Admission, Admitted, Note};
use crate::listen::sources::{Sources, Ticket};
use crate::listen::{Listener, ListenerId, Protocol};
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::records::Violation;
use crate::upstream::pin::Pin;

/// How long a connection that has sent nothing yet may wait for its first request once a drain began.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a session's future waits for the next request before it is dropped.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Sessions of one worker that may linger at once.
pub(super) const LINGERING_MAX: usize = 1024;

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
    pub(super) table: RefCell<Table>,
    /// Which connections give way to newcomers.
    pub(super) plan: RefCell<Plan>,
}

#[derive(Debug)]
pub(super) struct Table {
    rows: Slab<Row>,
    generation: u32,
    /// Sessions that linger.
    pub(super) lingering: usize,
    pub(super) admission: Admission,
}

#[derive(Debug)]
pub(super) struct Row {
    generation: u32,
    pub(super) stream: Stream,
    /// The listener that accepted it, and its configuration then or since.
    pub(super) listener_id: ListenerId,
    pub(super) listener: Arc<Listener>,
    pub(super) requests: u64,
    /// Received bytes that are already in the counters.
    pub(super) counted: u64,
    /// The place where the connection's source counts it.
    pub(super) ticket: Option<Ticket>,
    /// The connection begins with a PROXY header, which has not come yet.
    pub(super) awaits_header: bool,
    /// The client has begun a hello, a request head or a PROXY header that is not whole.
    pub(super) begins: bool,
    /// The client is slow with a request's body, or in taking a response.
    pub(super) is_slow: bool,
    /// It was told to give way, and its session ends in this loop turn.
    leaves: bool,
    /// The addresses in that header, if it held any.
    pub(super) proxied: Option<Rc<Proxied>>,
    /// The connection to an endpoint that belongs to this one, while no future holds it.
    pub(super) pin: Pin,
    pub(super) state: RowState,
    /// When the connection last began to wait for a request, or within one for a slow client.
    pub(super) since: Time,
    /// When a parked row is closed or looked at again, or a lingering row is parked.
    due: Time,
    /// The row's only timer and when it fires: at `due` or before. Moving the timer with every request would
    /// cost more than an early firing now and then.
    timer: Option<(TimerKey, Time)>,
}

#[derive(Debug)]
pub(super) enum RowState {
    /// Between requests, without a future.
    Parked,
    /// With a future: within a request, or between requests if it lingers. `task` is `None` until the future
    /// is spawned.
    Live { cancel: Signal, task: Option<TaskKey>, lingers: bool },
}

impl Sessions {
    /// An empty table for up to `connections_max` connections.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self {
            table: RefCell::new(Table {
                rows: Slab::new(),
                generation: 0,
                lingering: 0,
                admission: Admission::new(connections_max),
            }),
            plan: RefCell::default(),
        }
    }

    /// From now on no source has more connections than `sources` allow.
    pub fn limit_sources(&self, sources: Arc<Sources>) {
        self.table.borrow_mut().admission.limit_sources(sources);
    }

    /// Admits one more connection, or says why not.
    pub fn admit(&self, stream: &Stream, listener: &Listener) -> Result<Admitted, ShedReason> {
        let source = || (!awaits_header(stream, listener)).then(|| stream.peer().ip());
        self.table.borrow_mut().admission.admit(source)
    }

    /// The states of the rows, checked against the table's own counts.
    #[cfg(test)]
    pub(crate) fn check(&self) -> Seen {
        let table = self.table.borrow();
        let mut found = Seen { open: table.rows.len(), parked: vec![], timed: vec![], lingering: vec![] };
        for (index, row) in &table.rows {
            let tag = SessionKey { index: index as u32, generation: row.generation }.tag();
            assert!(row.timer.is_none_or(|(_, at)| at <= row.due), "a row's timer fires after it is due");
            match row.state {
                RowState::Parked => {
                    found.parked.push(tag);
                    found.timed.push(tag);
                }
                RowState::Live { task, lingers, .. } => {
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
fn awaits_header(stream: &Stream, listener: &Listener) -> bool {
    listener.proxy_protocol && listener.trusts(stream.peer().ip())
}

pub(super) fn take_note(worker: &Worker, note: Option<Note>) {
    match note {
        Some(Note::AtLimit) => worker.counters.increment(Counter::Shed(ShedReason::ConnectionsPerIp)),
        Some(Note::Uncounted) => worker.counters.increment(Plain::SourcesUncounted),
        None => {}
    }
}

/// Opens a session for a connection that was admitted.
pub fn open(
    worker: &Rc<Worker>,
    stream: Stream,
    (listener_id, listener): (ListenerId, Arc<Listener>),
    admitted: Admitted,
) {
    take_note(worker, admitted.note);
    worker.counters.increment(Plain::Open);
    let due = worker.io.after(worker.patience(listener.patience()));
    let awaits_header = awaits_header(&stream, &listener);
    // The server may speak first.
    let starts_now = !awaits_header && matches!(listener.protocol, Protocol::Tcp { .. });
    let key = {
        let table = &mut *worker.sessions.table.borrow_mut();
        let generation = table.generation;
        table.generation = generation.wrapping_add(1);
        let index = table.rows.insert(Row {
            generation,
            stream,
            listener_id,
            listener,
            requests: 0,
            counted: 0,
            ticket: admitted.ticket,
            awaits_header,
            begins: false,
            is_slow: false,
            leaves: false,
            proxied: None,
            pin: Pin::default(),
            state: RowState::Parked,
            since: worker.io.now(),
            due,
            timer: None,
        });
        SessionKey { index: index as u32, generation }
    };
    if starts_now { start(worker, key, Chunk::default(), due) } else { park(worker, key, due) }
}

/// The state of the table, for tests.
#[cfg(test)]
pub(crate) struct Seen {
    pub(crate) open: usize,
    /// Tags of parked rows.
    pub(crate) parked: Vec<Tag>,
    /// Tags of rows that lie idle until their timer fires.
    pub(crate) timed: Vec<Tag>,
    /// Futures of rows between two requests, which that timer ends.
    pub(crate) lingering: Vec<TaskKey>,
}

impl Worker {
    /// How long a client may take to send its first bytes: no more than `DRAIN_GRACE` once a drain began.
    fn patience(&self, patience: Duration) -> Duration {
        if self.is_draining() { patience.min(DRAIN_GRACE) } else { patience }
    }

    /// When the first request head is due, for a connection whose handshake ends now.
    #[must_use]
    pub fn first_head_due(&self, listener: &Listener) -> Time {
        self.io.after(self.patience(listener.timeouts.request_header))
    }
}

/// Makes a connection idle data until its next byte, or until `due`.
pub(super) fn park(worker: &Rc<Worker>, key: SessionKey, due: Time) {
    let stream = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.state = RowState::Parked;
        row.set_due(worker, key, due);
        row.stream.clone()
    };
    stream.park(key.tag());
}

/// Handles bytes on a parked connection, or its end.
pub fn woken(worker: &Rc<Worker>, bits: u64) {
    let key = SessionKey::from_bits(bits);
    let (stream, listener, requests, parked_due) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        if !matches!(row.state, RowState::Parked) {
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
    // The time limit of the first head runs from the accept, later limits from the first byte of a head.
    let due = if requests == 0 { parked_due } else { worker.io.after(listener.timeouts.request_header) };
    start(worker, key, first, due);
}

/// The reason for the end of a connection that broke. `reset` is the reason if its peer reset it.
pub const fn broken(error: StreamError, reset: CloseReason) -> CloseReason {
    match error {
        StreamError::Reset => reset,
        StreamError::Evicted => CloseReason::Overloaded,
        StreamError::GaveWay => CloseReason::GaveWay,
        StreamError::Os(_) | StreamError::Unbound(_) => CloseReason::SocketError,
        StreamError::Tls(_) | StreamError::Truncated => CloseReason::TlsBroken,
    }
}

/// Handles the timer of a row.
pub fn timed_out(worker: &Rc<Worker>, bits: u64) {
    let key = SessionKey::from_bits(bits);
    let (stream, reason) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.timer = None;
        let due = row.due;
        match row.state {
            // The timer is armed again at the next boundary.
            RowState::Live { lingers: false, .. } => return,
            _ if worker.io.now() < due => return row.set_due(worker, key, due),
            RowState::Live { task, .. } => {
                drop(table);
                // This drops the session's seat, which parks the row.
                return task.into_iter().for_each(|task| worker.io.cancel_task(task));
            }
            RowState::Parked => {}
        }
        let (due, reason) = row.deadline();
        if worker.io.now() < due {
            let look = worker.io.after(row.listener.timeouts.keep_alive.max(LINGER));
            // A client that takes its last response meanwhile is idle from then on.
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

/// Drops the futures of lingering sessions, which parks their rows.
fn park_lingering(worker: &Rc<Worker>) {
    let tasks: Vec<_> = {
        let table = worker.sessions.table.borrow();
        let tasks = table.rows.iter().filter_map(|(_, row)| match row.state {
            RowState::Live { task, lingers: true, .. } => task,
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

/// Closes a connection, if it has waited for its client ever since it was seen to. An idle connection is
/// closed in order. Any other is reset, which ends its session in this loop turn.
pub(super) fn give_way(worker: &Rc<Worker>, waiting: &Waiting) -> bool {
    let (stream, task) = {
        let mut table = worker.sessions.table.borrow_mut();
        let table = &mut *table;
        let Some(row) = table.row(waiting.key) else { return false };
        if !row.waits() || row.since != waiting.since {
            return false;
        }
        let task = match row.state {
            RowState::Live { lingers: true, task, .. } => task,
            RowState::Parked if row.requests > 0 => None,
            _ => {
                row.leaves = true;
                row.stream.give_way();
                table.admission.leave();
                return true;
            }
        };
        (row.stream.clone(), task)
    };
    // This drops the session's seat, which parks the row.
    task.into_iter().for_each(|task| worker.io.cancel_task(task));
    close_parked(worker, waiting.key, &stream, CloseReason::GaveWay);
    true
}

/// Closes idle connections; the others end at their next boundary.
pub fn drain(worker: &Rc<Worker>) {
    park_lingering(worker);
    let parked: Vec<_> = {
        let mut table = worker.sessions.table.borrow_mut();
        table.admission.drain();
        let rows = table.rows.iter().filter_map(|(index, row)| {
            let key = SessionKey { index: index as u32, generation: row.generation };
            matches!(row.state, RowState::Parked).then(|| (key, row.due, row.requests, row.stream.clone()))
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
                RowState::Parked => true,
                RowState::Live { cancel, .. } => {
                    cancel.give();
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

pub(super) fn remove(worker: &Worker, key: SessionKey, reason: CloseReason) {
    // Runs in drops, also while a panic unwinds: a table that is borrowed then must not panic again.
    let removed = worker.sessions.table.try_borrow_mut().ok().and_then(|mut table| {
        let row = table.row(key)?;
        let (ticket, leaves) = (row.ticket, row.leaves);
        table.admission.release(ticket, leaves);
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
        // Costs one comparison while debug logs are off.
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
    /// When a parked row is to be closed, and why. It is idle only once the client has taken its last
    /// response, which may stay queued long after its session parked.
    fn deadline(&self) -> (Time, CloseReason) {
        let (moved_at, timeouts) = (self.stream.progress().sent_at.max(self.since), &self.listener.timeouts);
        if self.listener.tls.is_some() && !self.stream.is_secure() {
            (self.due, CloseReason::TlsHandshake)
        } else if self.requests == 0 {
            let reason = match self.listener.protocol {
                Protocol::TlsPassthrough { .. } => CloseReason::HelloTimeout,
                _ => CloseReason::RequestHeaderTimeout,
            };
            (self.due, reason)
        } else if is_flushed(&self.stream) {
            (moved_at + timeouts.keep_alive, CloseReason::KeepAliveTimeout)
        } else {
            (moved_at + timeouts.send, CloseReason::SendTimeout)
        }
    }

    /// Whether the connection waits for its client: for a request, for the rest of what begins one, or long
    /// for more of a body.
    fn waits(&self) -> bool {
        let waits = match self.state {
            RowState::Parked => true,
            RowState::Live { lingers, .. } => lingers || self.begins || self.is_slow,
        };
        waits && self.stream.error().is_none()
    }

    fn source(&self) -> Source {
        self.proxied.as_ref().map_or_else(|| self.stream.peer(), |proxied| proxied.source).ip().into()
    }

    pub(super) fn set_due(&mut self, worker: &Worker, key: SessionKey, due: Time) {
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
    /// Shows the connections that wait for their clients, of so many rows at most. They lie evenly spread
    /// over the table.
    pub(super) fn each_waiting(&self, rows_max: usize, mut show: impl FnMut(Waiting)) {
        let step = self.rows.len().div_ceil(rows_max).max(1);
        for (index, row) in self.rows.iter().step_by(step).filter(|(_, row)| row.waits()) {
            let key = SessionKey { index: index as u32, generation: row.generation };
            show(Waiting { key, since: row.since, source: row.source() });
        }
    }

    pub(super) fn row(&mut self, key: SessionKey) -> Option<&mut Row> {
        self.rows.get_mut(key.index as usize).filter(|row| row.generation == key.generation)
    }
}

/// For a test of the state after a panic: takes the seat of the only session, and panics in it.
#[cfg(test)]
pub(crate) fn panic_within_only_session(worker: &Rc<Worker>) {
    let (index, generation, stream) = {
        let table = worker.sessions.table.borrow();
        let (index, row) = table.rows.iter().next().expect("a session");
        (index as u32, row.generation, row.stream.clone())
    };
    stream.unpark();
    let (key, cancel) = (SessionKey { index, generation }, Signal::default());
    let listener = {
        let mut table = worker.sessions.table.borrow_mut();
        let row = table.row(key).expect("there");
        assert!(matches!(row.state, RowState::Parked), "it runs");
        row.state = RowState::Live { cancel: cancel.clone(), task: None, lingers: false };
        (row.listener_id, Arc::clone(&row.listener))
    };
    let seat = Seat::new(worker, key, cancel, stream, listener);
    worker.io.spawn(async move {
        let _seat = seat;
        panic!("meant by the test");
    });
}
