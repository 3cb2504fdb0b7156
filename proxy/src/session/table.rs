//! The table of downstream connections. An idle connection is a row here and nothing else: its stream is
//! parked and one timer is armed. A future is made at the first byte of a request and lingers for a moment
//! after each of a busy connection, whose next request comes soon.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::context::Worker;
use super::seat::Proxied;
#[cfg(test)]
use super::seat::Seat;
use super::start::start;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, HandshakeFailure, ShedReason};
use crate::exchange::Signal;
use crate::io::executor::TaskKey;
use crate::io::stream::Tag;
use crate::io::{Chunk, Stream, StreamError, TimerKey, tags};
use crate::listen::admission::{Admission, Admitted, Note};
use crate::listen::sources::{Sources, Ticket};
use crate::listen::{Listener, Protocol};
use crate::time::Time;
use crate::tls::alert::Alert;
use crate::tls::records::Violation;

/// How long a connection that has not sent anything yet may still do so when a drain begins.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// How long a session's future waits for the next request before it is dropped.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Futures that may wait at once on a worker.
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
    pub(super) listener: Arc<Listener>,
    pub(super) requests: u64,
    /// Received bytes that the counters know of.
    pub(super) counted: u64,
    /// Where its source counts it.
    pub(super) ticket: Option<Ticket>,
    /// The connection begins with a PROXY header, which has not come yet.
    pub(super) awaits_header: bool,
    /// What that header said.
    pub(super) proxied: Option<Rc<Proxied>>,
    pub(super) state: RowState,
    /// When the connection last came to wait for a request.
    pub(super) since: Time,
    /// When a parked row is closed or looked at again, or a lingering one parked.
    due: Time,
    /// The row's only timer and when it fires: at `due` or before. Moving it with every request would cost
    /// more than one that fires early now and then.
    timer: Option<(TimerKey, Time)>,
}

#[derive(Debug)]
pub(super) enum RowState {
    /// Between requests, without a future.
    Parked,
    /// With a future: within a request, or between requests if it lingers. No task: it is about to be
    /// spawned.
    Live { cancel: Signal, task: Option<TaskKey>, lingers: bool },
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
    pub fn admit(&self, stream: &Stream, listener: &Listener) -> Result<Admitted, ShedReason> {
        let source = || (!awaits_header(stream, listener)).then(|| stream.peer().ip());
        self.table.borrow_mut().admission.admit(source)
    }

    /// What the rows say, checked against the table's own counts.
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
pub fn open(worker: &Rc<Worker>, stream: Stream, listener: Arc<Listener>, admitted: Admitted) {
    take_note(worker, admitted.note);
    worker.counters.increment(Plain::Open);
    let due = worker.io.after(worker.patience(listener.patience()));
    let awaits_header = awaits_header(&stream, &listener);
    // Whoever speaks first.
    let starts_now = !awaits_header && matches!(listener.protocol, Protocol::Tcp { .. });
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
            state: RowState::Parked,
            since: worker.io.now(),
            due,
            timer: None,
        });
        SessionKey { index: index as u32, generation }
    };
    if starts_now { start(worker, key, Chunk::default(), due) } else { park(worker, key, due) }
}

/// What the table says of itself, for tests.
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
    /// How long somebody who has not sent anything yet may take: not so long once a drain has begun.
    fn patience(&self, patience: Duration) -> Duration {
        if self.is_draining() { patience.min(DRAIN_GRACE) } else { patience }
    }

    /// When the first request head is due of a connection whose handshake is over now.
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

/// A parked connection spoke or died.
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
    // The first head is due since the accept, later ones since their first byte.
    let due = if requests == 0 { parked_due } else { worker.io.after(listener.timeouts.request_header) };
    start(worker, key, first, due);
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
            RowState::Live { lingers: false, .. } => return,
            _ if worker.io.now() < due => return row.set_due(worker, key, due),
            RowState::Live { task, .. } => {
                drop(table);
                // Dropping its seat parks it.
                return task.into_iter().for_each(|task| worker.io.cancel_task(task));
            }
            RowState::Parked => {}
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

/// Closes what is idle; the others end at their next boundary.
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
    pub(super) fn row(&mut self, key: SessionKey) -> Option<&mut Row> {
        self.rows.get_mut(key.index as usize).filter(|row| row.generation == key.generation)
    }
}

/// For a test of what a panic leaves behind: takes the seat of the one session there is, and panics in it.
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
        Arc::clone(&row.listener)
    };
    let seat = Seat::new(worker, key, cancel, (stream, listener));
    worker.io.spawn(async move {
        let _seat = seat;
        panic!("meant by the test");
    });
}
