//! A connection between the engine's accept and its first byte: it is admitted and parked, or shed with a
//! reason.

use std::rc::Rc;
use std::sync::Arc;

use crate::counters::{Counter, Plain};
use crate::error::ShedReason;
use crate::io::Stream;
use crate::listen::ListenerId;
use crate::session::context::Worker;
use crate::session::{room, table};

/// Takes a connection that was just accepted on a socket of this listener.
pub(super) fn accepted(worker: &Rc<Worker>, stream: Stream, id: ListenerId) {
    worker.counters.increment(Plain::Accepted);
    let snapshot = worker.snapshot();
    let Some(listener) = snapshot.traffic.listeners.get(id) else {
        return shed(worker, &stream, ShedReason::Draining);
    };
    let mut admitted = worker.sessions.admit(&stream, listener);
    if admitted == Err(ShedReason::MaxConnections) && room::make_room(worker) {
        admitted = worker.sessions.admit(&stream, listener);
    }
    match admitted {
        Ok(admitted) => table::open(worker, stream, (id, Arc::clone(listener)), admitted),
        Err(reason) => shed(worker, &stream, reason),
    }
}

/// Counts an accept that failed, or whose connection was gone when it was asked for its peer (ENOTCONN;
/// EINVAL for a socket shut both ways).
pub(super) fn failed(worker: &Worker, errno: i32) {
    let reason = match errno {
        libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => ShedReason::DescriptorsExhausted,
        _ => ShedReason::ClientGone,
    };
    worker.counters.increment(Counter::Shed(reason));
}

fn shed(worker: &Worker, stream: &Stream, reason: ShedReason) {
    worker.counters.increment(Counter::Shed(reason));
    stream.abort();
}
