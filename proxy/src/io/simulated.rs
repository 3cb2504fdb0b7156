//! A ring without a kernel: in-memory sockets, scripted peers, virtual time. It takes every liberty a real
//! kernel may take, drawn from a seed: short reads and writes, completions of different sockets in any order,
//! delays, resets, no buffers, failed connects.
//!
//! The engine above it is the real one. Tests make an engine with `Sim::engine`, drive peers by hand or by
//! scripts, and turn with `Sim::run`, which checks the engine's and its own invariants after every turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

mod connection;
mod peer;
mod ring;
mod world;

use self::connection::Connection;
pub use self::peer::{Peer, Script};
pub use self::ring::SimRing;
pub(crate) use self::world::Random;
#[cfg(test)]
pub(crate) use self::world::take_front;
use self::world::{File, Origin, Serve, World};
use super::buffers::BufferPool;
use super::engine::{Engine, Handler};
use super::settings::Settings;
use crate::time::Time;

/// Descriptors start here, so that a confusion with slots shows.
const FD_BASE: usize = 1000;

/// How unkind the world is. Chances are in 1000 and drawn per step.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Receives and sends move a random part of the bytes they could.
    pub short: bool,
    /// A possible step happens later.
    pub delay: u32,
    /// The peer's host resets a connection.
    pub reset: u32,
    /// A receive finds no buffer although there is one.
    pub no_buffers: u32,
    /// A multishot operation ends early.
    pub spurious_end: u32,
    /// A multishot receive that takes bytes misses an end or a reset after them, until it is armed anew or
    /// more bytes come.
    pub missed_end: u32,
    /// A connect fails.
    pub connect_failure: u32,
    /// A connect finds no descriptor.
    pub open_failure: u32,
    /// An accept fails, with EMFILE or ECONNABORTED.
    pub accept_failure: u32,
    /// A completion of an operation that ended long ago comes again.
    pub stale: u32,
    /// Completions that one wait hands over, at most; the others come with later ones.
    pub portion: usize,
    /// Bytes that a socket takes before its peer has read them.
    pub window: usize,
}

impl Faults {
    /// No faults, but everything is still short and in any order.
    #[must_use]
    pub const fn mild() -> Self {
        Self {
            short: true,
            delay: 200,
            reset: 0,
            no_buffers: 0,
            spurious_end: 0,
            missed_end: 0,
            connect_failure: 0,
            open_failure: 0,
            accept_failure: 0,
            stale: 0,
            portion: usize::MAX,
            window: 64 << 10,
        }
    }

    /// Everything that does not break a connection.
    #[must_use]
    pub const fn rough() -> Self {
        Self {
            delay: 400,
            no_buffers: 30,
            spurious_end: 30,
            missed_end: 200,
            accept_failure: 30,
            stale: 30,
            portion: 4,
            window: 8 << 10,
            ..Self::mild()
        }
    }

    /// Everything.
    #[must_use]
    pub const fn hostile() -> Self {
        Self { reset: 10, connect_failure: 100, ..Self::rough() }
    }
}

/// Sizes of the simulated ring's memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Receive buffers, a power of two.
    pub buffers: u16,
    /// Bytes in each.
    pub buffer_size: usize,
    /// Bytes for copies.
    pub budget: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self { buffers: 256, buffer_size: 4096, budget: 4 << 20 }
    }
}

/// The world: makes listeners, clients and origins; cheap to clone.
#[derive(Clone)]
pub struct Sim(Rc<RefCell<World>>);

/// A listening socket in the simulation.
#[derive(Clone, Copy, Debug)]
pub struct SimListener {
    fd: RawFd,
}

/// Told of every operation and completion, with the time.
pub type Observer = Box<dyn FnMut(Time, fmt::Arguments<'_>)>;

impl Sim {
    /// A world and an engine in it.
    ///
    /// # Panics
    /// When there is no memory for the buffers.
    #[must_use]
    pub fn engine(seed: u64, faults: Faults, memory: Memory, settings: Settings) -> (Engine<SimRing>, Self) {
        let world = Rc::new(RefCell::new(World {
            now: Time::from_nanos(1_000_000_000),
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            faults,
            connections: Vec::new(),
            files: Vec::new(),
            origins: BTreeMap::new(),
            scripts: Vec::new(),
            posted: Vec::new(),
            catching_up: false,
            old: Vec::new(),
            watches: Vec::new(),
            wakes: BTreeSet::new(),
            observer: None,
            quiet: false,
            horizon: None,
            acted: false,
            port: 40_000,
            bound: Vec::new(),
            foreign: Vec::new(),
        }));
        let pool = BufferPool::new(memory.buffers, memory.buffer_size, memory.budget)
            .expect("memory for the buffers");
        let ring = SimRing::new(Rc::clone(&world), pool);
        (Engine::new(ring, settings), Self(world))
    }

    /// A listening socket for `Engine::add_listener`.
    #[must_use]
    pub fn listener(&self) -> SimListener {
        let mut world = self.0.borrow_mut();
        let fd = world.new_fd(File::Listener { accept: None, backlog: VecDeque::new() });
        SimListener { fd }
    }

    /// A client connects; it may write at once.
    ///
    /// # Panics
    /// When the listener is none.
    #[must_use]
    pub fn connect(&self, listener: SimListener) -> Peer {
        self.connect_from(Ipv4Addr::new(192, 0, 2, 1), listener)
    }

    /// The same from this address.
    pub fn connect_from(&self, source: Ipv4Addr, listener: SimListener) -> Peer {
        let mut world = self.0.borrow_mut();
        let peer = SocketAddr::from((source, world.next_port()));
        let id = world.connections.len();
        let Some(File::Listener { backlog, .. }) = world.files[listener.fd as usize - FD_BASE].as_mut()
        else {
            panic!("not a listener")
        };
        backlog.push_back(id);
        world.connections.push(Connection::new(peer));
        Peer::new(&self.0, id)
    }

    /// Connects to this address succeed from now on; take them with `accept`.
    pub fn origin(&self, address: SocketAddr) {
        self.0
            .borrow_mut()
            .origins
            .insert(address, Origin::Listening { backlog: VecDeque::new(), serve: None });
    }

    /// Connects to this address succeed from now on; `make` gives each connection its script.
    pub fn serve(&self, address: SocketAddr, make: impl FnMut() -> Script + 'static) {
        let serve: Serve = Rc::new(RefCell::new(make));
        self.0
            .borrow_mut()
            .origins
            .insert(address, Origin::Listening { backlog: VecDeque::new(), serve: Some(serve) });
    }

    /// Connects to this address never complete from now on.
    pub fn silence(&self, address: SocketAddr) {
        self.0.borrow_mut().origins.insert(address, Origin::Silent);
    }

    /// No local port is left for connects to this address from now on.
    pub fn spend_ports(&self, address: SocketAddr) {
        self.0.borrow_mut().origins.insert(address, Origin::Spent);
    }

    /// This host has no such address.
    pub fn lacks(&self, address: IpAddr) {
        self.0.borrow_mut().foreign.push(address);
    }

    /// The local addresses that sockets were bound to so far, in their order.
    #[must_use]
    pub fn bound(&self) -> Vec<IpAddr> {
        self.0.borrow().bound.clone()
    }

    /// Connections that the engine made to this address so far.
    #[must_use]
    pub fn connections_to(&self, address: SocketAddr) -> usize {
        self.0.borrow().connections.iter().filter(|connection| connection.peer == address).count()
    }

    /// Connects to this address are refused again.
    pub fn refuse(&self, address: SocketAddr) {
        self.0.borrow_mut().origins.remove(&address);
    }

    /// The next connection that the engine made to an origin.
    #[must_use]
    pub fn accept(&self, address: SocketAddr) -> Option<Peer> {
        let mut world = self.0.borrow_mut();
        let Some(Origin::Listening { backlog, .. }) = world.origins.get_mut(&address) else { return None };
        let connection = backlog.pop_front()?;
        Some(Peer::new(&self.0, connection))
    }

    /// Makes the watched descriptors readable once.
    pub fn signal(&self) {
        self.0.borrow_mut().watches.iter_mut().for_each(|(_, ready)| *ready = true);
    }

    /// Virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.0.borrow().now
    }

    /// Has `observer` told of all that happens from now on.
    pub fn observe(&self, observer: Observer) {
        self.0.borrow_mut().observer = Some(observer);
    }

    /// Waits end at this time although no timer is due; `None`: they do not.
    pub fn set_horizon(&self, horizon: Option<Time>) {
        self.0.borrow_mut().horizon = horizon;
    }

    /// Nothing can happen any more unless somebody acts: no operation can move, no script waits for its time.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.0.borrow().quiet
    }

    /// Counts of the world that must agree.
    ///
    /// # Panics
    /// When they do not.
    pub fn check_invariants(&self) {
        self.0.borrow().check_invariants();
    }

    /// Moves virtual time forward.
    pub fn advance(&self, by: Duration) {
        let mut world = self.0.borrow_mut();
        world.now = world.now + by;
    }

    /// Changes the faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// Sockets the engine has open, listeners apart.
    #[must_use]
    pub fn open_sockets(&self) -> usize {
        self.0.borrow().files.iter().filter(|file| matches!(file, Some(File::Socket { .. }))).count()
    }

    /// Turns the engine until `done` says so (`true`), or until nothing can happen any more and no timer is
    /// armed (`false`). Checks invariants after every turn.
    ///
    /// # Panics
    /// On a broken invariant, or when 100,000 turns were not enough.
    pub fn run<H: Handler>(
        &self,
        engine: &mut Engine<SimRing>,
        handler: &mut H,
        mut done: impl FnMut(&mut H) -> bool,
    ) -> bool {
        for _ in 0..100_000 {
            if done(handler) {
                return true;
            }
            engine.turn(handler).expect("the simulated ring does not fail");
            engine.check_invariants();
            self.0.borrow().check_invariants();
            if self.0.borrow().quiet && engine.is_quiet() {
                return done(handler);
            }
        }
        panic!("no end in 100,000 turns");
    }

    /// Turns the engine for this long; events due later do not happen.
    pub fn settle<H: Handler>(&self, engine: &mut Engine<SimRing>, handler: &mut H, within: Duration) {
        let end = self.now() + within;
        self.0.borrow_mut().horizon = Some(end);
        self.run(engine, handler, |_| self.now() >= end);
        self.0.borrow_mut().horizon = None;
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("now", &self.now()).finish_non_exhaustive()
    }
}
