//! A connection to an endpoint that belongs to one client's connection. NTLM and Negotiate authenticate a
//! connection: whoever sends the next request over it speaks as that user.
//!
//! From the first such credentials on, or from a response that asks for them, the connection serves the
//! requests of that client's connection to the same upstream, in their order, and nobody else. It never
//! returns to the pool, and closes with the client's connection. If it dies before, the client's next request
//! begins without one, and the scheme starts again.

use std::cell::Cell;
use std::rc::Rc;

use super::attempts::Attempts;
use super::connection::Connection;
use super::endpoint::Endpoint;
use super::group::{Group, Upstream};
use crate::error::PoolCloseReason;
use crate::exchange::lease::{Asked, Upstreams};

/// The pinned connection of one client's connection, while it carries no exchange. There is one: if another
/// upstream pins a connection too, the earlier one closes.
#[derive(Default)]
pub struct Pin(Cell<Option<Box<Pinned>>>);

#[derive(Debug)]
struct Pinned {
    group: Rc<Group>,
    endpoint: Rc<Endpoint>,
    /// `None` once it is taken.
    connection: Option<Connection>,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").finish_non_exhaustive()
    }
}

impl Pin {
    /// Takes the content of another one, which is empty then.
    pub fn take_over(&self, other: &Self) {
        self.0.set(other.0.take());
    }

    /// The connection that is pinned to this upstream, with its endpoint.
    pub(super) fn take(&self, group: &Rc<Group>) -> Option<(Rc<Endpoint>, Connection)> {
        let mut pinned = self.0.take()?;
        if !Rc::ptr_eq(&pinned.group, group) {
            self.0.set(Some(pinned));
            return None;
        }
        Some((Rc::clone(&pinned.endpoint), pinned.connection.take()?))
    }

    /// Keeps a connection after an exchange that left it clean.
    pub(super) fn keep(&self, group: &Rc<Group>, endpoint: Rc<Endpoint>, connection: Connection) {
        if !connection.stream().is_reusable() {
            let reason = connection.unfit();
            return connection.release(reason);
        }
        connection.stream().begin_anew();
        let pinned = Pinned { group: Rc::clone(group), endpoint, connection: Some(connection) };
        self.0.set(Some(Box::new(pinned)));
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.release(PoolCloseReason::Pinned);
        }
    }
}

/// A lease's knowledge of the pin.
#[derive(Debug)]
pub(super) struct Pinning<'p> {
    pin: Option<&'p Pin>,
    endpoint: Option<Rc<Endpoint>>,
    /// The connection belongs to the client's.
    is_pinned: Cell<bool>,
}

impl<'p> Pinning<'p> {
    /// `is_pinned`: the connection belongs to the client's already.
    pub(super) const fn new(pin: Option<&'p Pin>, endpoint: Option<Rc<Endpoint>>, is_pinned: bool) -> Self {
        Self { pin, endpoint, is_pinned: Cell::new(is_pinned) }
    }

    /// The connection's endpoint.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.as_deref()
    }

    /// From now on the connection belongs to the client's, if `binds`.
    pub(super) fn note(&self, binds: bool) {
        if binds {
            self.is_pinned.set(true);
        }
    }

    /// Keeps a connection after an exchange that left it clean, if it belongs to the client's; else it comes
    /// back.
    pub(super) fn keep(self, group: &Rc<Group>, connection: Connection) -> Option<Connection> {
        if !self.is_pinned.get() {
            return Some(connection);
        }
        match (self.pin, self.endpoint) {
            (Some(pin), Some(endpoint)) => pin.keep(group, endpoint, connection),
            _ => connection.close_used(),
        }
        None
    }
}

/// A snapshot's upstreams, as the requests of one client's connection see them.
#[derive(Debug)]
pub struct ForClient<'s> {
    /// The upstreams.
    pub upstreams: &'s [Upstream],
    /// That connection's pin.
    pub pin: &'s Pin,
}

impl Upstreams for ForClient<'_> {
    type Attempts<'a>
        = Attempts<'a>
    where
        Self: 'a;

    fn attempts<'a>(&'a self, upstream: usize, asked: &'a Asked<'a>) -> Attempts<'a> {
        Attempts::of_client(&self.upstreams[upstream], asked, self.pin)
    }
}
