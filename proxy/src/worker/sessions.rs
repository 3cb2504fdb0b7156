//! The table of downstream connections. Between requests a connection is a row here and nothing else: its stream is parked and one
//! timer is armed. A future exists from the first byte of a request to the next boundary.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::context::Worker;
use super::tags;
use crate::config::model;
use crate::error::{CloseReason, ShedReason};
use crate::io::handle::TimerKey;
use crate::io::stream::Tag;
use crate::io::{Chunk, Stream, StreamError};
use crate::listen::admission::Admission;
use crate::session::downstream;
use crate::session::exchange::Cancel;
use crate::telemetry::counters::{Counter, Plain};
use crate::time::Time;

/// How long a connection that has not sent anything yet may still do so when a drain begins.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

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
    admission: Admission,
}

#[derive(Debug)]
struct Row {
    generation: u32,
    stream: Stream,
    listener: Arc<model::Listener>,
    requests: u64,
    counted: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Parked { timer: TimerKey, due: Time },
    Running { cancel: Cancel },
}

impl Sessions {
    /// Holds up to `connections_max`.
    #[must_use]
    pub fn new(connections_max: usize) -> Self {
        Self { table: RefCell::new(Table { rows: Slab::new(), generation: 0, admission: Admission::new(connections_max) }) }
    }

    /// Takes one more connection, or says why not.
    pub fn admit(&self) -> Result<(), ShedReason> {
        self.table.borrow_mut().admission.admit()
    }

    /// Connections held now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.table.borrow().admission.open()
    }
}

/// Opens a session for a connection that was admitted.
pub fn open(worker: &Rc<Worker>, stream: Stream, listener: Arc<model::Listener>) {
    worker.counters.increment(Plain::Open);
    let due = worker.io.after(listener.timeouts.request_header);
    let key = {
        let table = &mut *worker.sessions.table.borrow_mut();
        let generation = table.generation;
        table.generation = generation.wrapping_add(1);
        // Replaced at once by `park`, which needs the key.
        let state = State::Running { cancel: Cancel::default() };
        let index = table.rows.insert(Row { generation, stream, listener, requests: 0, counted: 0, state });
        SessionKey { index: index as u32, generation }
    };
    park(worker, key, due);
}

/// Makes a connection idle data until its next byte, or until `due`.
fn park(worker: &Rc<Worker>, key: SessionKey, due: Time) {
    let tag = Tag { kind: tags::SESSION, key: key.to_bits() };
    let timer = worker.io.timer_at(due, tag);
    let stream = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.state = State::Parked { timer, due };
        row.stream.clone()
    };
    stream.park(tag);
}

/// A parked connection spoke or died.
pub fn woken(worker: &Rc<Worker>, bits: u64) {
    let key = SessionKey::from_bits(bits);
    let (stream, listener, requests, parked_due) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        let State::Parked { timer, due } = row.state else { return };
        worker.io.cancel_timer(timer);
        (row.stream.clone(), Arc::clone(&row.listener), row.requests, due)
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
    let seat = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        row.state = State::Running { cancel: cancel.clone() };
        Seat {
            worker: Rc::clone(worker),
            key,
            stream: row.stream.clone(),
            listener: Arc::clone(&row.listener),
            requests: row.requests,
            cancel,
            end: None,
            counted: row.counted,
        }
    };
    worker.io.spawn(downstream::serve(seat, first, due));
}

/// Why a connection ended that broke; `reset` if its client did it.
pub const fn broken(error: StreamError, reset: CloseReason) -> CloseReason {
    match error {
        StreamError::Reset => reset,
        StreamError::Evicted => CloseReason::Overloaded,
        StreamError::Os(_) => CloseReason::SocketError,
    }
}

/// The timer of a parked connection fired.
pub fn timed_out(worker: &Rc<Worker>, bits: u64) {
    let key = SessionKey::from_bits(bits);
    let (stream, reason) = {
        let mut table = worker.sessions.table.borrow_mut();
        let Some(row) = table.row(key) else { return };
        if !matches!(row.state, State::Parked { .. }) {
            return;
        }
        let fresh = row.requests == 0;
        (row.stream.clone(), if fresh { CloseReason::RequestHeaderTimeout } else { CloseReason::KeepAliveTimeout })
    };
    close_parked(worker, key, &stream, reason);
}

fn close_parked(worker: &Rc<Worker>, key: SessionKey, stream: &Stream, reason: CloseReason) {
    stream.unpark();
    // A client that has not taken its last response by now gets no more time for it.
    match stream.poll_flushed(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(())) => stream.close(),
        _ => stream.abort(),
    }
    remove(worker, key, reason);
}

/// Closes what is idle; the others end at their next boundary.
pub fn drain(worker: &Rc<Worker>) {
    let parked: Vec<_> = {
        let mut table = worker.sessions.table.borrow_mut();
        table.admission.drain();
        let rows = table.rows.iter().filter_map(|(index, row)| {
            let State::Parked { timer, due } = row.state else { return None };
            let key = SessionKey { index: index as u32, generation: row.generation };
            Some((key, timer, due, row.requests, row.stream.clone()))
        });
        rows.collect()
    };
    for (key, timer, due, requests, stream) in parked {
        worker.io.cancel_timer(timer);
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
    let left: Vec<_> = {
        let table = worker.sessions.table.borrow();
        let rows = table.rows.iter().map(|(index, row)| {
            let parked = match &row.state {
                State::Parked { timer, .. } => Some(*timer),
                State::Running { cancel } => {
                    cancel.cancel();
                    None
                }
            };
            (SessionKey { index: index as u32, generation: row.generation }, parked, row.stream.clone())
        });
        rows.collect()
    };
    for (key, parked, stream) in left {
        stream.abort();
        if let Some(timer) = parked {
            stream.unpark();
            worker.io.cancel_timer(timer);
            remove(worker, key, CloseReason::Draining);
        }
    }
}

fn remove(worker: &Worker, key: SessionKey, reason: CloseReason) {
    // Runs in drops, also while a panic unwinds: a table that is borrowed then must not panic again.
    let removed = worker.sessions.table.try_borrow_mut().ok().and_then(|mut table| {
        table.row(key)?;
        table.admission.release();
        Some(table.rows.remove(key.index as usize))
    });
    if removed.is_some() {
        worker.counters.decrement(Plain::Open);
        worker.counters.increment(Counter::Closed(reason));
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
    key: SessionKey,
    end: Option<CloseReason>,
    /// Received bytes that the counters know of.
    counted: u64,
}

impl Seat {
    /// Counts what was received since the last call.
    pub fn count_received(&mut self) {
        let received = self.stream.progress().received;
        self.worker.counters.add(Plain::ReceivedBytes, received.saturating_sub(self.counted));
        self.counted = received;
    }

    /// The session ends with its connection: the caller has closed or aborted it.
    pub fn end(mut self, reason: CloseReason) {
        self.end = Some(reason);
    }

    /// The session ends, its connection waits for the next request.
    pub fn park(self) {
        let due = self.worker.io.after(self.listener.timeouts.keep_alive);
        let (worker, key) = (Rc::clone(&self.worker), self.key);
        if let Some(row) = worker.sessions.table.borrow_mut().row(key) {
            row.requests = self.requests;
            row.counted = self.counted;
        }
        park(&worker, key, due);
        // The row is parked now, so dropping the seat leaves it.
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let parked = self.end.is_none()
            && self
                .worker
                .sessions
                .table
                .try_borrow_mut()
                .is_ok_and(|mut table| table.row(self.key).is_none_or(|row| matches!(row.state, State::Parked { .. })));
        if parked {
            return;
        }
        if self.end.is_none() {
            // Nobody said how it ended: a panic, or the executor was dropped.
            self.stream.abort();
        }
        let unsaid = if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Draining };
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
    let (listener, timer) = {
        let mut table = worker.sessions.table.borrow_mut();
        let row = table.row(key).expect("there");
        let State::Parked { timer, .. } = row.state else { panic!("it runs") };
        row.state = State::Running { cancel: cancel.clone() };
        (Arc::clone(&row.listener), timer)
    };
    worker.io.cancel_timer(timer);
    let seat = Seat { worker: Rc::clone(worker), stream, listener, requests: 0, cancel, key, end: None, counted: 0 };
    worker.io.spawn(async move {
        let _seat = seat;
        panic!("meant by the test");
    });
}
