//! An exchange's record and the connection that carries it: together they are an entry in the access log.

use std::cell::Cell;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::context::Worker;
use super::seat::Seat;
use crate::error::CloseReason;
use crate::exchange::record::{Carrier, Record, saturated_micros};
use crate::http::message::RequestHead;
use crate::io::Stream;
use crate::listen::Listener;
use crate::time::Time;

/// An exchange's record with its connection. Dropping it without `finish` writes an entry too: for a session
/// that a panic or the worker's end cut off.
#[derive(Debug)]
pub struct Logged(Box<Inner>);

#[derive(Debug)]
struct Inner {
    record: Record,
    /// The entry is written, or none is due.
    done: Cell<bool>,
    worker: Rc<Worker>,
    listener: Arc<Listener>,
    /// The client's connection, which knows what its TLS agreed upon.
    stream: Stream,
    client: SocketAddr,
    accept: Option<u32>,
    head: Option<Box<RequestHead>>,
    connection_request: u64,
    /// Bytes received on the connection before those of this exchange.
    received_before: u64,
    received: Cell<u64>,
}

impl Logged {
    /// Begins the record of an exchange whose first byte is here; `None` while the access log is off.
    /// `first`, for a connection's first exchange: when its head is due, and how long after the accept that
    /// is.
    #[must_use]
    pub fn begin(seat: &Seat, first: Option<(Time, Duration)>) -> Option<Self> {
        seat.worker.access.as_ref()?;
        let now = seat.worker.io.now();
        Some(Self(Box::new(Inner {
            record: Record::new(seat.worker.io.clone()),
            done: Cell::new(false),
            worker: Rc::clone(&seat.worker),
            listener: Arc::clone(&seat.listener),
            stream: seat.stream.clone(),
            client: seat.client(),
            accept: first.map(|(due, given)| saturated_micros(given.saturating_sub(due.since(now)))),
            head: None,
            connection_request: seat.requests + 1,
            received_before: seat.counted(),
            received: Cell::new(0),
        })))
    }

    /// Writes no entry, since the client asked for nothing.
    pub fn discard(self) {
        self.0.done.set(true);
    }

    /// Keeps the head as it was forwarded, for a tunnel that goes on without it.
    #[must_use]
    pub fn keep(mut self, head: RequestHead) -> Self {
        self.0.head = Some(Box::new(head));
        self
    }

    /// Writes the entry. `head`: the request as it was forwarded; `None` if it never was whole, or if `keep`
    /// has it. `closed`: why the connection ends with this exchange, if it does.
    pub fn finish(self, seat: &Seat, head: Option<&RequestHead>, closed: Option<CloseReason>) {
        let inner = &*self.0;
        inner.received.set(seat.stream.progress().received.saturating_sub(inner.received_before));
        inner.done.set(true);
        inner.write(head, closed);
    }
}

impl Deref for Logged {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.0.record
    }
}

impl Inner {
    fn write(&self, head: Option<&RequestHead>, closed: Option<CloseReason>) {
        let Some(log) = &self.worker.access else { return };
        self.stream.agreed(|tls| {
            self.record.write(
                log,
                &Carrier {
                    client: self.client,
                    listener: &self.listener.name,
                    request: head.or(self.head.as_deref()),
                    tls,
                    closed,
                    received: self.received.get(),
                    connection_request: self.connection_request,
                    accept: self.accept,
                },
            );
        });
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        if !self.0.done.get() {
            self.0.write(
                None,
                Some(if std::thread::panicking() { CloseReason::Panicked } else { CloseReason::Stopped }),
            );
        }
    }
}
