//! One connected socket as engine and session share it. `Inner` holds all state of it, by subject; engine and
//! session meet nowhere else.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Context;

use super::closing::{Closing, Manner, Phase};
use super::lists::{List, Lists};
use super::peer::PeerAddress;
use super::receiving::{ReceiveOp, Receiving};
use super::secure::Secure;
use super::sending::{Fin, Sending};
use super::{StreamError, Tag};
use crate::io::Chunk;
use crate::io::buffers::Account;
use crate::io::shared::Shared;
use crate::time::Time;

/// A stream and its place in the engine.
pub(in crate::io) struct StreamState {
    pub(in crate::io) shared: Rc<Shared>,
    pub(in crate::io) slot: u32,
    pub(in crate::io) generation: u32,
    /// Of its account.
    epoch: Cell<u32>,
    /// Clones of `Stream`.
    handles: Cell<u32>,
    pub(in crate::io) inner: RefCell<Inner>,
}

/// Where the connect operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum ConnectOp {
    /// None in flight.
    Idle,
    /// In flight.
    Armed,
    /// In flight, and its cancel too.
    Cancelling,
}

/// See the module.
pub(in crate::io) struct Inner {
    /// -1 before it is opened and after it is closed.
    pub(in crate::io) fd: RawFd,
    pub(in crate::io) peer: PeerAddress,
    pub(in crate::io) phase: Phase,
    pub(in crate::io) connect: ConnectOp,
    pub(in crate::io) receiving: Receiving,
    pub(in crate::io) sending: Sending,
    pub(in crate::io) closing: Closing,
    /// Cancels in flight, of any operation.
    pub(in crate::io) cancels: u8,
    pub(in crate::io) lists: Lists,
    /// Only while the stream carries TLS.
    pub(in crate::io) secure: Option<Box<Secure>>,
    /// The tag that the engine reports instead of waking a task.
    pub(in crate::io) parked: Option<Tag>,
}

impl Inner {
    /// A connection that was accepted.
    pub(in crate::io) fn accepted(fd: RawFd, peer: SocketAddr, now: Time) -> Self {
        Self::new(fd, peer.into(), Phase::Open, true, now)
    }

    /// A connection that is to be made, from this address.
    pub(in crate::io) fn connecting(peer: SocketAddr, source: Option<IpAddr>, now: Time) -> Self {
        let peer = source.map_or_else(|| peer.into(), |source| PeerAddress::From(Box::new((peer, source))));
        Self::new(-1, peer, Phase::Connecting, false, now)
    }

    fn new(fd: RawFd, peer: PeerAddress, phase: Phase, is_fresh: bool, now: Time) -> Self {
        Self {
            fd,
            peer,
            phase,
            connect: ConnectOp::Idle,
            receiving: Receiving::new(is_fresh, now),
            sending: Sending::new(now),
            closing: Closing::default(),
            cancels: 0,
            lists: Lists::default(),
            secure: None,
            parked: None,
        }
    }

    /// Operations whose final completion has not come yet, the closing of the descriptor apart.
    pub(in crate::io) fn in_flight_ops(&self) -> usize {
        usize::from(matches!(self.receiving.operation, ReceiveOp::Armed | ReceiveOp::Cancelling))
            + usize::from(self.sending.is_in_flight())
            + usize::from(self.connect != ConnectOp::Idle)
            + usize::from(self.cancels)
    }

    /// Whether our end of the connection comes behind the queued bytes, and has not been sent yet.
    pub(in crate::io) fn is_ending(&self) -> bool {
        match self.phase {
            Phase::Open => self.sending.fin == Fin::Wanted,
            Phase::Closing => self.sending.fin != Fin::Sent && self.closing.manner == Manner::Fin,
            _ => false,
        }
    }

    /// Whether somebody waits for bytes.
    pub(in crate::io) const fn is_read(&self) -> bool {
        self.receiving.waiting.has_task() || self.parked.is_some()
    }

    pub(in crate::io) fn wake_all(&mut self) {
        self.receiving.waiting.wake();
        self.sending.waiting.wake();
    }

    /// Starts the end: the engine cancels operations in flight, then closes. Bytes queued either way are
    /// thrown away; bytes in flight stay counted until their operation completes.
    pub(in crate::io) fn end(&mut self, reset: bool) {
        if matches!(self.phase, Phase::Ending { .. } | Phase::Closed) {
            return;
        }
        self.phase = Phase::Ending { reset };
        self.parked = None;
        self.receiving.queue.clear();
        if let Some(secure) = &mut self.secure {
            secure.drop_plain();
        }
        self.sending.clear();
        self.wake_all();
    }

    /// Ends a close that takes too long. A connection whose bytes are not all sent, or that must not leave
    /// anything behind, is reset.
    pub(in crate::io) fn cut_close(&mut self) {
        self.end(!self.sending.is_flushed() || self.closing.manner != Manner::Fin);
    }

    /// Whether neither its session nor an end has closed it. Bytes may be queued before it is connected.
    pub(super) const fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Open)
    }

    /// Why nothing more can be written, if that is so.
    pub(super) fn write_result(&self) -> Result<(), StreamError> {
        match (self.sending.error(), self.phase) {
            (Some(error), _) => Err(error),
            (None, Phase::Ending { .. } | Phase::Closed) => Err(StreamError::Reset),
            _ => Ok(()),
        }
    }
}

impl StreamState {
    pub(in crate::io) fn new(shared: &Rc<Shared>, slot: u32, generation: u32, inner: Inner) -> Rc<Self> {
        let state = Self {
            shared: Rc::clone(shared),
            slot,
            generation,
            epoch: Cell::new(0),
            handles: Cell::new(0),
            inner: RefCell::new(inner),
        };
        shared.pool.open_account(state.account());
        Rc::new(state)
    }

    /// Clones of `Stream` that there are.
    #[cfg(test)]
    pub(in crate::io) const fn handles(&self) -> u32 {
        self.handles.get()
    }

    pub(super) fn add_handle(&self) {
        self.handles.set(self.handles.get() + 1);
    }

    /// Says whether it was the last.
    pub(super) fn drop_handle(&self) -> bool {
        let handles = self.handles.get() - 1;
        self.handles.set(handles);
        handles == 0
    }

    /// The account that counts the stream's received bytes.
    pub(in crate::io) const fn account(&self) -> Account {
        Account { slot: self.slot, generation: self.generation, epoch: self.epoch.get() }
    }

    /// Opens another account: bytes received before count for nobody.
    pub(super) fn renew_account(&self) {
        self.epoch.set(self.epoch.get().wrapping_add(1));
        self.shared.pool.open_account(self.account());
    }

    /// Queues bytes as they are to be sent.
    pub(super) fn queue(self: &Rc<Self>, inner: &mut Inner, chunk: Chunk) {
        let is_open = inner.is_live() && inner.sending.fin == Fin::No;
        if chunk.is_empty() || !is_open || inner.sending.error().is_some() {
            return;
        }
        inner.sending.push(chunk, &self.shared.spares);
        if !inner.sending.is_in_flight() {
            self.mark(inner);
        }
    }

    /// Has the task woken when something was received, or reading ended.
    pub(super) fn await_bytes(self: &Rc<Self>, inner: &mut Inner, cx: &Context<'_>) {
        inner.receiving.waiting.register(cx);
        if inner.receiving.waits_for_demand() {
            self.mark(inner);
        }
    }

    /// Has the engine look at the stream in this loop turn.
    #[inline]
    pub(in crate::io) fn mark(self: &Rc<Self>, inner: &mut Inner) {
        if !inner.lists.contains(List::Dirty) && inner.phase != Phase::Closed {
            inner.lists.enter(List::Dirty);
            self.shared.push_dirty(self);
        }
    }

    /// Resets an open connection for this error, which its session is told.
    pub(in crate::io) fn reset_for(self: &Rc<Self>, inner: &mut Inner, error: StreamError) {
        if matches!(inner.phase, Phase::Ending { .. } | Phase::Closed) {
            return;
        }
        inner.sending.fail(error);
        inner.receiving.end = Some(Err(error));
        let parked = inner.parked;
        self.end(inner, true);
        if parked.is_some() {
            // Unlike the session's own abort this is news to it.
            inner.parked = parked;
            self.shared.push_parked(self);
        }
    }

    /// Starts the close, in the manner that is set.
    pub(super) fn close(self: &Rc<Self>, inner: &mut Inner) {
        match inner.phase {
            Phase::Open => {
                self.say_end(inner);
                if inner.is_broken() {
                    inner.closing.refuse();
                }
                inner.phase = Phase::Closing;
                inner.parked = None;
                inner.receiving.queue.clear();
                // Nothing is opened or sealed any more.
                inner.secure = None;
                inner.receiving.release();
                inner.receiving.waiting.wake();
                self.mark(inner);
            }
            Phase::Connecting => self.end(inner, false),
            _ => {}
        }
    }

    pub(super) fn end(self: &Rc<Self>, inner: &mut Inner, reset: bool) {
        inner.end(reset);
        self.mark(inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_stream_stays_small() {
        // Beside it: two words of its `Rc`. benches/NOTES.md lists the other costs of an idle connection.
        assert!(size_of::<StreamState>() <= 232, "{} bytes", size_of::<StreamState>());
    }
}
