//! The other end of a connection in the simulation: driven by hand, or by a script.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use super::connection::Connection;
use super::world::{self, World};
use crate::time::Time;

/// Called again and again while the connection lives: reads bytes that came, writes any it likes, closes.
pub type Script = Box<dyn FnMut(&Peer)>;

/// The other end of a connection of the engine; cheap to clone. Dropping it changes nothing.
#[derive(Clone)]
pub struct Peer {
    world: Rc<RefCell<World>>,
    connection: usize,
}

impl Peer {
    pub(super) fn new(world: &Rc<RefCell<World>>, connection: usize) -> Self {
        Self { world: Rc::clone(world), connection }
    }

    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> T {
        act(&mut self.world.borrow_mut().connections[self.connection])
    }

    /// This end's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.with(|c| c.peer)
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.world.borrow().now
    }

    /// Scripts are called at this time, if it is not over, even if nothing else happens.
    pub fn wake_at(&self, at: Time) {
        let mut world = self.world.borrow_mut();
        if at > world.now {
            world.wakes.insert(at);
        }
    }

    /// Like `with`, and notes when `act` says that it changed something.
    fn act(&self, act: impl FnOnce(&mut Connection) -> bool) {
        let world = &mut *self.world.borrow_mut();
        world.acted |= act(&mut world.connections[self.connection]);
    }

    /// Sends bytes.
    pub fn write(&self, bytes: &[u8]) {
        self.act(|c| {
            let open = !c.peer_closed && !c.inward_fin && !c.is_broken();
            if open {
                c.inward.extend(bytes);
                c.written += bytes.len() as u64;
            }
            open && !bytes.is_empty()
        });
    }

    /// Everything that has come.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        self.read_at_most(usize::MAX)
    }

    /// At most `max` of the bytes that have come.
    #[must_use]
    pub fn read_at_most(&self, max: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.act(|c| {
            let n = max.min(c.outward.len());
            bytes = world::take_front(&mut c.outward, n);
            !bytes.is_empty()
        });
        bytes
    }

    /// Sent and not yet received by the engine.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.with(|c| c.inward.len())
    }

    /// Sends FIN.
    pub fn shutdown_write(&self) {
        self.act(|c| !std::mem::replace(&mut c.inward_fin, true));
    }

    /// Closes: in good order if everything that came was read, else with a reset, as a host does.
    pub fn close(&self) {
        self.act(|c| {
            if !c.outward.is_empty() && !c.peer_closed {
                c.break_by_peer(libc::ECONNRESET);
                return true;
            }
            c.inward_fin = true;
            !std::mem::replace(&mut c.peer_closed, true)
        });
    }

    /// Resets.
    pub fn reset(&self) {
        self.act(|c| {
            c.break_by_peer(libc::ECONNRESET);
            true
        });
    }

    /// Falls silent for ever: the engine's host gives the connection up.
    pub fn vanish(&self) {
        self.act(|c| {
            c.break_by_peer(libc::ETIMEDOUT);
            true
        });
    }

    /// The engine sent FIN and everything before it was read.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.with(|c| c.outward_fin && c.outward.is_empty() && !c.is_broken())
    }

    /// The connection was reset, by either side.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.with(|c| c.is_broken())
    }

    /// The engine holds no descriptor of it any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.with(|c| c.engine_closed)
    }

    /// Has `script` called whenever the world moves, until the peer closed or the connection broke.
    pub fn script(&self, script: impl FnMut(&Self) + 'static) {
        let entry = (self.clone(), Box::new(script) as Script);
        self.world.borrow_mut().scripts.push(entry);
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("connection", &self.connection).finish_non_exhaustive()
    }
}
