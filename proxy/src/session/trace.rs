//! What an exchange leaves for the access log on its way: made only while the log is on, so that without it
//! each of the places that tell it something costs one comparison.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::Outcome;
use crate::config::model;
use crate::error::{CloseReason, RefusalReason};
use crate::http::forward::RequestId;
use crate::http::message::RequestHead;
use crate::io::Stream;
use crate::telemetry::access::Record;
use crate::telemetry::access::record::Phases;
use crate::time::Time;
use crate::worker::context::Worker;
use crate::worker::sessions::Seat;

/// See the module. Dropped without `finish`, it leaves a record all the same: of a session that a panic or
/// the worker's end cut off.
#[derive(Debug)]
pub struct Trace(Box<Inner>);

#[derive(Debug)]
struct Inner {
    /// The record is written, or none is due.
    done: Cell<bool>,
    worker: Rc<Worker>,
    listener: Arc<model::Listener>,
    /// Knows of its TLS.
    stream: Stream,
    client: std::net::SocketAddr,
    started: Time,
    accept: Option<u32>,
    head: Option<Box<RequestHead>>,
    connection_request: u64,
    /// Bytes received on the connection before those of this exchange.
    received_before: u64,
    received: Cell<u64>,
    protocol: Cell<Option<&'static str>>,
    request_id: Cell<Option<RequestId>>,
    server_name: RefCell<Option<Box<str>>>,
    status: Cell<Option<u16>>,
    refused: Cell<Option<RefusalReason>>,
    sent: Cell<u64>,
    route: RefCell<Option<String>>,
    upstream: RefCell<Option<Arc<model::Upstream>>>,
    endpoint: Cell<usize>,
    attempts: Cell<u32>,
    reused: Cell<Option<bool>>,
    /// When the phase that goes on now began.
    mark: Cell<Time>,
    phases: Cell<Phases>,
}

/// The phases that `Trace::reached` ends, in their order; some may never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The head is whole.
    Head,
    /// A body that is read whole is here; to the log the route's phase ends with it.
    Body,
    /// A connection is leased, or none is idle.
    Pool,
    /// A connection is made, or could not be.
    Connect,
    /// The response's head is there.
    FirstByte,
    /// The response was handed over whole.
    LastByte,
}

impl Trace {
    /// Of an exchange whose first byte is here; `None` while the access log is off. `first`: of a
    /// connection's first, when its head is due, and how long after the accept that is.
    #[must_use]
    pub fn begin(seat: &Seat, first: Option<(Time, Duration)>) -> Option<Self> {
        seat.worker.access.as_ref()?;
        let now = seat.worker.io.now();
        Some(Self(Box::new(Inner {
            done: Cell::new(false),
            worker: Rc::clone(&seat.worker),
            listener: Arc::clone(&seat.listener),
            stream: seat.stream.clone(),
            client: seat.client(),
            started: now,
            accept: first.map(|(due, given)| saturated(given.saturating_sub(due.since(now)))),
            head: None,
            connection_request: seat.requests + 1,
            received_before: seat.counted(),
            received: Cell::new(0),
            protocol: Cell::default(),
            request_id: Cell::default(),
            server_name: RefCell::default(),
            status: Cell::default(),
            refused: Cell::default(),
            sent: Cell::default(),
            route: RefCell::default(),
            upstream: RefCell::default(),
            endpoint: Cell::default(),
            attempts: Cell::default(),
            reused: Cell::default(),
            mark: Cell::new(now),
            phases: Cell::default(),
        })))
    }

    /// Nothing was asked: no record.
    pub fn discard(self) {
        self.0.done.set(true);
    }

    /// Remembers the head, as it was forwarded: its exchange goes on without it.
    #[must_use]
    pub fn keep(mut self, head: RequestHead) -> Self {
        self.0.head = Some(Box::new(head));
        self
    }

    /// Writes the record. `head`: as it was forwarded, if it was ever whole and is not kept. `closed`: why
    /// the connection ends with this.
    pub fn finish(self, seat: &Seat, head: Option<&RequestHead>, closed: Option<CloseReason>) {
        let inner = &*self.0;
        inner.received.set(seat.stream.progress().received.saturating_sub(inner.received_before));
        inner.done.set(true);
        inner.write(head, closed);
    }

    /// A phase is over.
    pub fn reached(&self, step: Step) {
        let inner = &*self.0;
        let took = inner.lap();
        let mut phases = inner.phases.get();
        let phase = match step {
            Step::Head => &mut phases.head,
            Step::Body => &mut phases.route,
            Step::Pool => &mut phases.pool,
            Step::Connect => &mut phases.connect,
            Step::FirstByte => &mut phases.first_byte,
            Step::LastByte => &mut phases.last_byte,
        };
        *phase = Some(phase.unwrap_or(0).saturating_add(took));
        inner.phases.set(phases);
    }

    /// The route is known.
    pub fn routed(&self, route: &str) {
        let inner = &*self.0;
        let took = inner.lap();
        inner.phases.set(Phases { route: Some(took), ..inner.phases.get() });
        *inner.route.borrow_mut() = Some(route.to_owned());
    }

    /// An endpoint is about to be tried. What the last attempt waited for its response counts to
    /// `first_byte`.
    pub fn attempt(&self, upstream: &Arc<model::Upstream>, endpoint: usize) {
        let inner = &*self.0;
        if inner.attempts.get() > 0 {
            self.reached(Step::FirstByte);
        }
        inner.attempts.set(inner.attempts.get() + 1);
        inner.endpoint.set(endpoint);
        inner.reused.set(None);
        let mut known = inner.upstream.borrow_mut();
        if !known.as_ref().is_some_and(|known| Arc::ptr_eq(known, upstream)) {
            *known = Some(Arc::clone(upstream));
        }
    }

    /// The attempt has its connection.
    pub fn connected(&self, reused: bool) {
        self.reached(if reused { Step::Pool } else { Step::Connect });
        self.0.reused.set(Some(reused));
    }

    /// The final response's head goes to the client.
    pub fn answered(&self, status: u16) {
        self.reached(Step::FirstByte);
        self.0.status.set(Some(status));
    }

    /// Bytes were queued for the client.
    pub fn sent(&self, bytes: u64) {
        self.0.sent.set(self.0.sent.get() + bytes);
    }

    /// The id that was made for a request whose own, if it has one, is not known.
    pub fn name(&self, id: RequestId) {
        self.0.request_id.set(Some(id));
    }

    /// Something else than the request's version goes over the connection.
    pub fn protocol(&self, protocol: &'static str) {
        self.0.protocol.set(Some(protocol));
    }

    /// What a client's hello named.
    pub fn server_name(&self, name: Option<&str>) {
        *self.0.server_name.borrow_mut() = name.map(Box::from);
    }

    /// How the exchange ended.
    pub fn ended(&self, outcome: Outcome) {
        if let Outcome::Answered { refused, .. } = outcome {
            self.0.refused.set(refused);
        }
    }
}

impl Inner {
    /// Microseconds since the last call.
    fn lap(&self) -> u32 {
        let now = self.worker.io.now();
        saturated(now.since(self.mark.replace(now)))
    }

    fn write(&self, head: Option<&RequestHead>, closed: Option<CloseReason>) {
        let Some(log) = &self.worker.access else { return };
        let took = self.worker.io.now().since(self.started);
        let head = head.or(self.head.as_deref());
        let made = self.request_id.get();
        let request_id = head.and_then(RequestHead::request_id).or(made.as_ref().map(RequestId::as_str));
        let upstream = self.upstream.borrow();
        let upstream = upstream.as_deref();
        self.stream.summary(|tls| {
            log.send(&Record {
                unix_micros: super::unix_micros()
                    .saturating_sub(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                request_id: request_id.unwrap_or_default(),
                client: self.client,
                listener: &self.listener.name,
                protocol: self.protocol.get(),
                request: head,
                tls,
                server_name: self.server_name.borrow().as_deref(),
                status: self.status.get(),
                refused: self.refused.get(),
                closed,
                received: self.received.get(),
                sent: self.sent.get(),
                route: self.route.borrow().as_deref(),
                upstream: upstream.map(|upstream| upstream.name.as_str()),
                endpoint: upstream
                    .and_then(|upstream| Some(upstream.endpoints.get(self.endpoint.get())?.label.as_str())),
                attempts: self.attempts.get(),
                upstream_reused: self.reused.get(),
                connection_request: self.connection_request,
                phases: Phases {
                    handshake: tls.filter(|_| self.connection_request == 1).map(|(tls, _)| tls.micros()),
                    accept: self.accept,
                    total: saturated(took),
                    ..self.phases.get()
                },
            })
        });
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if !self.0.done.get() {
            self.0.write(
                None,
                Some(if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Stopped }),
            );
        }
    }
}

fn saturated(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
