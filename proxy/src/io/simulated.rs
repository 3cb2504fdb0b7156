//! A ring without a kernel: in-memory sockets, scripted peers, virtual time, and every liberty a real kernel
//! may take, drawn from a seed: short reads and writes, completions of different sockets in any order,
//! delays, resets, no buffers, failed connects.
//!
//! The engine above it is the real one. Tests make an engine with `Sim::engine`, drive peers by hand or by
//! scripts, and turn with `Sim::run`, which checks the engine's and its own invariants after every turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

mod world;

pub(crate) use self::world::Random;
#[cfg(test)]
pub(crate) use self::world::take_front;
use self::world::{Connection, File, Origin, Serve, World};
use super::buffers::Pool;
use super::engine::{Engine, Handler};
use super::handle::Settings;
use super::seam::{Completion, Op, Ring};
use super::token::{Kind, Token};
use crate::time::Time;

/// Descriptors start here, so that a confusion with slots shows.
const FD_BASE: usize = 1000;
/// This end of every connection.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 1)), 80);
/// Steps of the world in one wait.
const STEPS_MAX: usize = 256;

/// How unkind the world is. Chances are in 1000 and drawn per step.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Receives and sends move a random part of what they could.
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

/// The other end of a connection of the engine; cheap to clone. Dropping it changes nothing.
#[derive(Clone)]
pub struct Peer {
    world: Rc<RefCell<World>>,
    connection: usize,
}

/// A listening socket in the simulation.
#[derive(Clone, Copy, Debug)]
pub struct SimListener {
    fd: RawFd,
}

/// The ring over a world.
pub struct SimRing {
    world: Rc<RefCell<World>>,
    pool: Rc<Pool>,
    queue: Vec<(Token, Op)>,
    enters: u64,
}

/// Called again and again while the connection lives: reads what came, writes what it likes, closes.
pub type Script = Box<dyn FnMut(&Peer)>;

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
        }));
        let pool =
            Pool::new(memory.buffers, memory.buffer_size, memory.budget).expect("memory for the buffers");
        let ring = SimRing { world: Rc::clone(&world), pool, queue: Vec::new(), enters: 0 };
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
        let mut world = self.0.borrow_mut();
        let peer = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), world.next_port()));
        let id = world.connections.len();
        let Some(File::Listener { backlog, .. }) = world.files[listener.fd as usize - FD_BASE].as_mut()
        else {
            panic!("not a listener")
        };
        backlog.push_back(id);
        world.connections.push(Connection::new(peer));
        Peer { world: Rc::clone(&self.0), connection: id }
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
        Some(Peer { world: Rc::clone(&self.0), connection })
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

    /// Turns the engine for this long; what is due later does not happen.
    pub fn settle<H: Handler>(&self, engine: &mut Engine<SimRing>, handler: &mut H, within: Duration) {
        let end = self.now() + within;
        self.0.borrow_mut().horizon = Some(end);
        self.run(engine, handler, |_| self.now() >= end);
        self.0.borrow_mut().horizon = None;
    }
}

impl Peer {
    fn with<T>(&self, act: impl FnOnce(&mut Connection) -> T) -> T {
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

    /// At most `max` bytes of what has come.
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

impl SimRing {
    /// Calls scripts without holding the world, since they act on it.
    fn run_scripts(&self) {
        let mut scripts = std::mem::take(&mut self.world.borrow_mut().scripts);
        for (peer, script) in &mut scripts {
            script(peer);
        }
        scripts.retain(|(peer, _)| peer.with(|c| !c.is_broken() && !c.peer_closed));
        let mut world = self.world.borrow_mut();
        scripts.append(&mut world.scripts);
        world.scripts = scripts;
    }

    /// Gives scripts to connections that reached serving origins.
    fn serve(&self, from: usize) {
        let made = self.world.borrow().connections.len();
        for connection in from..made {
            let address = self.world.borrow().connections[connection].peer;
            let serve = match self.world.borrow().origins.get(&address) {
                Some(Origin::Listening { serve: Some(serve), .. }) => Rc::clone(serve),
                _ => continue,
            };
            let script = (serve.borrow_mut())();
            let peer = Peer { world: Rc::clone(&self.world), connection };
            self.world.borrow_mut().scripts.push((peer, script));
        }
    }

    /// Lets the world move. Returns whether something could have moved but was delayed.
    fn step(&self) -> bool {
        let world = &mut *self.world.borrow_mut();
        let count = world.files.len();
        let mut delayed = false;
        if count > 0 {
            let start = world.random.below(count);
            for offset in 0..count {
                let mut moves = 1 + world.random.below(4);
                while moves > 0 {
                    let delay = world.faults.delay;
                    if world.random.chance(delay) {
                        delayed |= world.can_move((start + offset) % count);
                        break;
                    }
                    moves = if world.step((start + offset) % count, &self.pool).is_some() {
                        moves - 1
                    } else {
                        0
                    };
                }
            }
        }
        world.step_watches();
        world.post_stale();
        delayed
    }
}

impl Ring for SimRing {
    type Listener = SimListener;

    fn listener_fd(&self, listener: &SimListener) -> RawFd {
        listener.fd
    }

    fn now(&self) -> Time {
        self.world.borrow().now
    }

    fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    fn submit(&mut self, token: Token, op: Op) {
        self.queue.push((token, op));
    }

    fn wait(&mut self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.enters += 1;
        for (token, op) in self.queue.drain(..) {
            self.world.borrow_mut().start(token, op);
        }
        let start = self.world.borrow().now;
        let until = timeout.map(|timeout| start + timeout);
        self.world.borrow_mut().quiet = false;
        for _ in 0..STEPS_MAX {
            let now = self.world.borrow().now;
            self.world.borrow_mut().wakes.retain(|&wake| wake > now);
            let from = self.world.borrow().connections.len();
            self.run_scripts();
            let delayed = self.step();
            self.serve(from);
            let mut world = self.world.borrow_mut();
            if !world.posted.is_empty() || timeout == Some(Duration::ZERO) {
                let pause = world.random.below(200_000) as u64;
                world.now = world.now + Duration::from_nanos(pause);
                return Ok(());
            }
            if delayed || std::mem::take(&mut world.acted) {
                world.now = world.now + Duration::from_millis(1);
                if until.is_some_and(|until| world.now >= until) {
                    return Ok(());
                }
            } else {
                // Nothing happens until a timer fires, until the test wants to look, or until a script waits
                // no longer.
                let end = [until, world.horizon].into_iter().flatten().min();
                match (end, world.wakes.first().copied()) {
                    (Some(end), wake) if wake.is_none_or(|wake| end <= wake) => {
                        world.now = end.max(world.now)
                    }
                    (_, Some(wake)) => {
                        world.now = wake;
                        continue;
                    }
                    _ => world.quiet = true,
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn catch_up(&mut self) -> std::io::Result<()> {
        self.world.borrow_mut().catching_up = true;
        Ok(())
    }

    fn completions(&mut self, into: &mut Vec<Completion>) {
        self.world.borrow_mut().take_posted(into);
    }

    fn open(&mut self, _address: SocketAddr) -> Result<RawFd, i32> {
        let mut world = self.world.borrow_mut();
        let chance = world.faults.open_failure;
        if chance > 0 && world.random.chance(chance) {
            return Err(libc::EMFILE);
        }
        Ok(world.new_fd(File::Socket { connection: None, receive: None, send: None, connect: None }))
    }

    fn prepare(&mut self, fd: RawFd, accepted: bool) -> Result<SocketAddr, i32> {
        let mut world = self.world.borrow_mut();
        let File::Socket { connection: Some(connection), .. } = world.file(fd) else {
            return Err(libc::ENOTCONN);
        };
        let connection = *connection;
        let connection = &world.connections[connection];
        if accepted && connection.is_broken() {
            return Err(libc::ENOTCONN);
        }
        Ok(connection.peer)
    }

    fn local_address(_fd: RawFd) -> Option<SocketAddr> {
        Some(LOCAL)
    }

    fn reset_on_close(&mut self, fd: RawFd) {
        let mut world = self.world.borrow_mut();
        if let File::Socket { connection: Some(connection), .. } = world.file(fd) {
            let connection = *connection;
            world.connections[connection].reset_on_close = true;
        }
    }

    fn stop(&mut self) {
        let queue = std::mem::take(&mut self.queue);
        let mut world = self.world.borrow_mut();
        let posted = std::mem::take(&mut world.posted);
        for file in world.files.iter_mut().flatten() {
            match file {
                File::Listener { accept, .. } => *accept = None,
                File::Socket { receive, send, connect, .. } => {
                    (*receive, *send, *connect) = (None, None, None);
                }
            }
        }
        world.watches.clear();
        // What was queued is still carried out, but only closes outlast the cancel. Connections that nobody
        // was told of go.
        let queued =
            queue.into_iter().filter_map(|(_, op)| if let Op::Close { fd } = op { Some(fd) } else { None });
        let accepted =
            posted.iter().map(|(_, posted)| posted).filter(|posted| posted.token.kind() == Kind::Accept);
        for fd in queued.chain(accepted.map(|accepted| accepted.result).filter(|fd| *fd >= 0)) {
            world.close(fd);
        }
        // Loans in it go back to the pool.
        drop(posted);
    }

    fn close_now(&mut self, fd: RawFd) {
        self.world.borrow_mut().close(fd);
    }

    fn unacknowledged(&self) -> Rc<dyn Fn(RawFd) -> usize> {
        let world = Rc::clone(&self.world);
        Rc::new(move |fd| world.borrow().unread_by_peer(fd))
    }

    fn enters(&self) -> u64 {
        self.enters
    }
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SimRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimRing").field("enters", &self.enters).finish_non_exhaustive()
    }
}
