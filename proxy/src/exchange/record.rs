//! The facts that an exchange collects for the access log. A record exists only while the log is on; without
//! one, each place that would tell it something costs one comparison.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::outcome::Outcome;
use super::unix_micros;
use crate::access_log::entry::Phases;
use crate::access_log::{AccessSender, Entry};
use crate::error::{CloseReason, RefusalReason};
use crate::http::forward::RequestId;
use crate::http::message::RequestHead;
use crate::io::Io;
use crate::time::Time;
use crate::tls::agreed::Agreed;

/// The status in the log of a client that left before it got one.
const STATUS_LEFT: u16 = 499;

/// See the module.
#[derive(Debug)]
pub struct Record {
    io: Io,
    started: Time,
    protocol: Cell<Option<&'static str>>,
    request_id: Cell<Option<RequestId>>,
    server_name: RefCell<Option<Box<str>>>,
    status: Cell<Option<u16>>,
    refused: Cell<Option<RefusalReason>>,
    sent: Cell<u64>,
    route: RefCell<Option<String>>,
    upstream: RefCell<Option<Arc<str>>>,
    endpoint: RefCell<Option<Arc<str>>>,
    attempts: Cell<u32>,
    reused: Cell<Option<bool>>,
    /// When the present phase began.
    mark: Cell<Time>,
    phases: Cell<Phases>,
}

/// The phases that `Record::reached` ends, in their order; some may never come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The head is whole.
    Head,
    /// A body that is read whole before it is sent is here. The log counts its time to the phase `route`.
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

/// The facts that a connection adds to an exchange's entry in the log.
#[derive(Clone, Copy, Debug)]
pub struct Carrier<'a> {
    /// The client.
    pub client: SocketAddr,
    /// `listener.name`
    pub listener: &'a str,
    /// The request as it was forwarded, if its head was ever whole.
    pub request: Option<&'a RequestHead>,
    /// The client's TLS.
    pub tls: Option<&'a Agreed>,
    /// Why the connection ends with this exchange; `None`: it goes on.
    pub closed: Option<CloseReason>,
    /// Bytes that the client sent since the exchange before.
    pub received: u64,
    /// Which request of its connection it is, from 1.
    pub connection_request: u64,
    /// From the accept to the first byte, in microseconds.
    pub accept: Option<u32>,
}

impl Record {
    /// A record of an exchange whose first byte came now.
    #[must_use]
    pub fn new(io: Io) -> Self {
        let now = io.now();
        Self {
            io,
            started: now,
            protocol: Cell::default(),
            request_id: Cell::default(),
            server_name: RefCell::default(),
            status: Cell::default(),
            refused: Cell::default(),
            sent: Cell::default(),
            route: RefCell::default(),
            upstream: RefCell::default(),
            endpoint: RefCell::default(),
            attempts: Cell::default(),
            reused: Cell::default(),
            mark: Cell::new(now),
            phases: Cell::default(),
        }
    }

    /// Ends a phase: the time since the phase before counts to it.
    pub fn reached(&self, ended: Phase) {
        let took = self.lap();
        let mut phases = self.phases.get();
        let phase = match ended {
            Phase::Head => &mut phases.head,
            Phase::Body => &mut phases.route,
            Phase::Pool => &mut phases.pool,
            Phase::Connect => &mut phases.connect,
            Phase::FirstByte => &mut phases.first_byte,
            Phase::LastByte => &mut phases.last_byte,
        };
        *phase = Some(phase.unwrap_or(0).saturating_add(took));
        self.phases.set(phases);
    }

    /// The route is known.
    pub fn routed(&self, route: &str) {
        let took = self.lap();
        self.phases.set(Phases { route: Some(took), ..self.phases.get() });
        *self.route.borrow_mut() = Some(route.to_owned());
    }

    /// An endpoint is about to be tried. The last attempt's wait for its response counts to `first_byte`.
    pub fn attempt(&self, upstream: &Arc<str>, endpoint: &Arc<str>) {
        if self.attempts.get() > 0 {
            self.reached(Phase::FirstByte);
        }
        self.attempts.set(self.attempts.get() + 1);
        self.reused.set(None);
        *self.upstream.borrow_mut() = Some(Arc::clone(upstream));
        *self.endpoint.borrow_mut() = Some(Arc::clone(endpoint));
    }

    /// The attempt has its connection.
    pub fn connected(&self, reused: bool) {
        self.reached(if reused { Phase::Pool } else { Phase::Connect });
        self.reused.set(Some(reused));
    }

    /// The final response's head goes to the client.
    pub fn answered(&self, status: u16) {
        self.reached(Phase::FirstByte);
        self.status.set(Some(status));
    }

    /// Bytes were queued for the client.
    pub fn sent(&self, bytes: u64) {
        self.sent.set(self.sent.get() + bytes);
    }

    /// Notes the id that was made for a request, for the case that its own is not known.
    pub fn name(&self, id: RequestId) {
        self.request_id.set(Some(id));
    }

    /// Notes that the connection carries this protocol, and no HTTP request.
    pub fn protocol(&self, protocol: &'static str) {
        self.protocol.set(Some(protocol));
    }

    /// Notes the server name in a client's hello.
    pub fn server_name(&self, name: Option<&str>) {
        *self.server_name.borrow_mut() = name.map(Box::from);
    }

    /// How the exchange ended.
    pub fn ended(&self, outcome: Outcome) {
        match outcome {
            Outcome::Answered { refused, .. } => self.refused.set(refused),
            // No status was sent; other proxies log this one.
            Outcome::Left => self.status.set(self.status.get().or(Some(STATUS_LEFT))),
            _ => {}
        }
    }

    /// Writes the entry.
    pub fn write(&self, log: &AccessSender, carrier: &Carrier<'_>) {
        let took = self.io.now().since(self.started);
        let made = self.request_id.get();
        let request_id =
            carrier.request.and_then(RequestHead::request_id).or(made.as_ref().map(RequestId::as_str));
        let is_first = carrier.connection_request == 1;
        log.send(&Entry {
            unix_micros: unix_micros().saturating_sub(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            request_id: request_id.unwrap_or_default(),
            client: carrier.client,
            listener: carrier.listener,
            protocol: self.protocol.get(),
            request: carrier.request,
            tls: carrier.tls,
            server_name: self.server_name.borrow().as_deref(),
            status: self.status.get(),
            refused: self.refused.get(),
            closed: carrier.closed,
            received: carrier.received,
            sent: self.sent.get(),
            route: self.route.borrow().as_deref(),
            upstream: self.upstream.borrow().as_deref(),
            endpoint: self.endpoint.borrow().as_deref(),
            attempts: self.attempts.get(),
            upstream_reused: self.reused.get(),
            connection_request: carrier.connection_request,
            phases: Phases {
                handshake: carrier.tls.filter(|_| is_first).map(Agreed::micros),
                accept: carrier.accept,
                total: saturated_micros(took),
                ..self.phases.get()
            },
        });
    }

    /// Microseconds since the last call.
    fn lap(&self) -> u32 {
        let now = self.io.now();
        saturated_micros(now.since(self.mark.replace(now)))
    }
}

/// The duration in microseconds, cut to `u32::MAX` (71 minutes).
#[must_use]
pub fn saturated_micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}
