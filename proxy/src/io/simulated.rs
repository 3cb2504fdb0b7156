//! A ring without a kernel: in-memory sockets, scripted peers, virtual time, and every liberty a real kernel may take, drawn from a
//! seed: short reads and writes, completions of different sockets in any order, delays, resets, no buffers, failed connects.
//!
//! The engine above it is the real one. Tests make an engine with `Sim::engine`, drive peers by hand or by scripts, and
//! turn with `Sim::run`, which checks the engine's and its own invariants after every turn.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use super::Chunk;
use super::buffers::{Loan, Pool};
use super::engine::{Engine, Handler};
use super::handle::Settings;
use super::seam::{Completion, Op, Ring};
use super::token::{Kind, Token};
use crate::time::Time;

/// Descriptors start here, so that a confusion with slots shows.
const FD_BASE: usize = 1000;
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
    /// A connect fails.
    pub connect_failure: u32,
    /// An accept fails, with EMFILE or ECONNABORTED.
    pub accept_failure: u32,
    /// A completion of an operation that ended long ago comes again.
    pub stale: u32,
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
            connect_failure: 0,
            accept_failure: 0,
            stale: 0,
            window: 64 << 10,
        }
    }

    /// Everything that does not break a connection.
    #[must_use]
    pub const fn rough() -> Self {
        Self { delay: 400, no_buffers: 30, spurious_end: 30, accept_failure: 30, stale: 30, window: 8 << 10, ..Self::mild() }
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
type Serve = Rc<RefCell<dyn FnMut() -> Script>>;

struct World {
    now: Time,
    random: Random,
    faults: Faults,
    connections: Vec<Connection>,
    /// Descriptors; lowest free first, as a kernel would.
    files: Vec<Option<File>>,
    origins: BTreeMap<SocketAddr, Origin>,
    scripts: Vec<(Peer, Script)>,
    posted: Vec<(RawFd, Completion)>,
    /// Ended operations whose completion may come once more.
    old: Vec<Token>,
    watches: Vec<(Token, bool)>,
    /// Nothing can happen any more unless a peer acts.
    quiet: bool,
    /// A peer acted since this was last cleared.
    acted: bool,
    /// Time does not jump beyond this.
    horizon: Option<Time>,
    port: u16,
}

enum File {
    Listener {
        address: SocketAddr,
        accept: Option<Token>,
        backlog: VecDeque<usize>,
    },
    Socket {
        connection: Option<usize>,
        receive: Option<(Token, bool)>,
        send: Option<(Token, Vec<Chunk>)>,
        connect: Option<(Token, SocketAddr)>,
    },
}

enum Origin {
    /// Connects succeed; connections wait for `Sim::accept`, or get a script.
    Listening { backlog: VecDeque<usize>, serve: Option<Serve> },
    /// Connects never complete.
    Silent,
}

/// One connection, seen from the peer's end. `in_*` runs to the engine, `out_*` to the peer.
struct Connection {
    peer: SocketAddr,
    local: SocketAddr,
    inward: VecDeque<u8>,
    inward_fin: bool,
    outward: VecDeque<u8>,
    outward_fin: bool,
    /// The peer or its host broke the connection; what the engine's socket says then.
    broken_by_peer: Option<i32>,
    /// The engine did.
    reset_by_engine: bool,
    /// The engine has no descriptor of it any more.
    engine_closed: bool,
    peer_closed: bool,
    reset_on_close: bool,
    written: u64,
    delivered: u64,
}

/// xorshift64*: enough for a schedule, and the same for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    fn chance(&mut self, in_thousand: u32) -> bool {
        self.below(1000) < in_thousand as usize
    }
}

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
            old: Vec::new(),
            watches: Vec::new(),
            quiet: false,
            acted: false,
            horizon: None,
            port: 40_000,
        }));
        let pool = Pool::new(memory.buffers, memory.buffer_size, memory.budget).expect("memory for the buffers");
        let ring = SimRing { world: Rc::clone(&world), pool, queue: Vec::new(), enters: 0 };
        (Engine::new(ring, settings), Self(world))
    }

    /// A listening socket for `Engine::add_listener`.
    #[must_use]
    pub fn listener(&self, address: SocketAddr) -> SimListener {
        let mut world = self.0.borrow_mut();
        let fd = world.new_fd(File::Listener { address, accept: None, backlog: VecDeque::new() });
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
        let Some(File::Listener { address, backlog, .. }) = world.files[listener.fd as usize - FD_BASE].as_mut() else {
            panic!("not a listener")
        };
        let address = *address;
        backlog.push_back(id);
        world.connections.push(Connection::new(peer, address));
        Peer { world: Rc::clone(&self.0), connection: id }
    }

    /// Connects to this address succeed from now on; take them with `accept`.
    pub fn origin(&self, address: SocketAddr) {
        self.0.borrow_mut().origins.insert(address, Origin::Listening { backlog: VecDeque::new(), serve: None });
    }

    /// Connects to this address succeed from now on; `make` gives each connection its script.
    pub fn serve(&self, address: SocketAddr, make: impl FnMut() -> Script + 'static) {
        let serve: Serve = Rc::new(RefCell::new(make));
        self.0.borrow_mut().origins.insert(address, Origin::Listening { backlog: VecDeque::new(), serve: Some(serve) });
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

    /// Turns the engine until `done` says so (`true`), or until nothing can happen any more and no timer is armed (`false`).
    /// Checks invariants after every turn.
    ///
    /// # Panics
    /// On a broken invariant, or when 100,000 turns were not enough.
    pub fn run<H: Handler>(&self, engine: &mut Engine<SimRing>, handler: &mut H, mut done: impl FnMut(&mut H) -> bool) -> bool {
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

    /// Turns the engine for this long: what is due later does not happen.
    pub fn settle<H: Handler>(&self, engine: &mut Engine<SimRing>, handler: &mut H, duration: Duration) {
        let end = self.now() + duration;
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
            bytes.extend(c.outward.drain(..max.min(c.outward.len())));
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

    /// Closes in good order.
    pub fn close(&self) {
        self.act(|c| {
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

    /// Falls silent: the engine's host gives the connection up.
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

impl Connection {
    fn new(peer: SocketAddr, local: SocketAddr) -> Self {
        Self {
            peer,
            local,
            inward: VecDeque::new(),
            inward_fin: false,
            outward: VecDeque::new(),
            outward_fin: false,
            broken_by_peer: None,
            reset_by_engine: false,
            engine_closed: false,
            peer_closed: false,
            reset_on_close: false,
            written: 0,
            delivered: 0,
        }
    }

    const fn is_broken(&self) -> bool {
        self.broken_by_peer.is_some() || self.reset_by_engine
    }

    fn break_by_peer(&mut self, errno: i32) {
        self.broken_by_peer = Some(errno);
        self.written -= self.inward.len() as u64;
        self.inward.clear();
        self.peer_closed = true;
    }
}

impl World {
    fn next_port(&mut self) -> u16 {
        self.port = self.port.wrapping_add(1).max(1024);
        self.port
    }

    fn new_fd(&mut self, file: File) -> RawFd {
        let free = self.files.iter().position(Option::is_none).unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        self.files[free] = Some(file);
        (FD_BASE + free) as RawFd
    }

    fn file(&mut self, fd: RawFd) -> &mut File {
        self.files[fd as usize - FD_BASE].as_mut().expect("an operation on a closed descriptor")
    }

    fn post(&mut self, fd: RawFd, token: Token, result: i32, more: bool) {
        self.post_with(fd, token, result, more, None, Vec::new());
    }

    fn post_with(&mut self, fd: RawFd, token: Token, result: i32, more: bool, loan: Option<Loan>, chunks: Vec<Chunk>) {
        if !more && self.old.len() < 256 {
            self.old.push(token);
        }
        self.posted.push((fd, Completion { token, result, more, loan, chunks }));
    }

    /// What the kernel does with a submission at once.
    fn start(&mut self, token: Token, op: Op) {
        match op {
            Op::Accept { fd } => match self.file(fd) {
                File::Listener { accept, .. } => assert!(accept.replace(token).is_none(), "two accepts on one listener"),
                File::Socket { .. } => self.post(fd, token, -libc::EINVAL, false),
            },
            Op::Receive { fd, multishot } => match self.file(fd) {
                File::Socket { receive, .. } => {
                    assert!(receive.replace((token, multishot)).is_none(), "two receives on one socket")
                }
                File::Listener { .. } => self.post(fd, token, -libc::ENOTCONN, false),
            },
            Op::Send { fd, chunks } => match self.file(fd) {
                File::Socket { send, .. } => {
                    assert!(!chunks.is_empty() && chunks.iter().all(|chunk| !chunk.is_empty()), "an empty send");
                    assert!(send.replace((token, chunks)).is_none(), "two sends on one socket");
                }
                File::Listener { .. } => self.post(fd, token, -libc::ENOTCONN, false),
            },
            Op::Connect { fd, address } => match self.file(fd) {
                File::Socket { connect, .. } => {
                    assert!(connect.replace((token, address)).is_none(), "two connects on one socket")
                }
                File::Listener { .. } => self.post(fd, token, -libc::EINVAL, false),
            },
            Op::Shutdown { fd } => self.start_shutdown(fd, token),
            Op::Close { fd } => {
                self.close(fd);
                self.post(fd, token, 0, false);
            }
            Op::Cancel { target } => self.start_cancel(token, target),
            Op::Watch { .. } => self.watches.push((token, false)),
        }
    }

    fn start_shutdown(&mut self, fd: RawFd, token: Token) {
        let File::Socket { connection: Some(connection), send, .. } = self.file(fd) else {
            return self.post(fd, token, -libc::ENOTCONN, false);
        };
        assert!(send.is_none(), "FIN overtakes a send");
        let connection = *connection;
        let connection = &mut self.connections[connection];
        connection.outward_fin = true;
        let result = if connection.is_broken() { -libc::ENOTCONN } else { 0 };
        self.post(fd, token, result, false);
    }

    fn start_cancel(&mut self, token: Token, target: Token) {
        let mut found = None;
        for (index, file) in self.files.iter_mut().enumerate() {
            let fd = (FD_BASE + index) as RawFd;
            match file {
                Some(File::Listener { accept, .. }) if *accept == Some(target) => {
                    *accept = None;
                    found = Some((fd, Vec::new()));
                }
                Some(File::Socket { receive, send, connect, .. }) => {
                    if receive.is_some_and(|(token, _)| token == target) {
                        *receive = None;
                        found = Some((fd, Vec::new()));
                    } else if send.as_ref().is_some_and(|(token, _)| *token == target) {
                        found = send.take().map(|(_, chunks)| (fd, chunks));
                    } else if connect.is_some_and(|(token, _)| token == target) {
                        *connect = None;
                        found = Some((fd, Vec::new()));
                    }
                }
                _ => {}
            }
        }
        let Some((fd, chunks)) = found else { return self.post(-1, token, -libc::ENOENT, false) };
        // The two completions may come in either order.
        let cancel_first = self.random.chance(500);
        if cancel_first {
            self.post(fd, token, 0, false);
        }
        self.post_with(fd, target, -libc::ECANCELED, false, None, chunks);
        if !cancel_first {
            self.post(fd, token, 0, false);
        }
    }

    fn close(&mut self, fd: RawFd) {
        let file = self.files[fd as usize - FD_BASE].take().expect("closed twice");
        match file {
            File::Listener { accept, .. } => assert!(accept.is_none(), "closed under an accept"),
            File::Socket { connection, receive, send, connect } => {
                assert!(receive.is_none() && send.is_none() && connect.is_none(), "closed under an operation");
                let Some(connection) = connection else { return };
                let connection = &mut self.connections[connection];
                connection.engine_closed = true;
                if connection.reset_on_close || !connection.inward.is_empty() {
                    connection.reset_by_engine |= connection.broken_by_peer.is_none();
                } else {
                    connection.outward_fin = true;
                }
            }
        }
    }

    /// Whether `step` would find something to do, resets apart, which strike whenever they like.
    fn could_move(&self, index: usize) -> bool {
        match &self.files[index] {
            None => false,
            Some(File::Listener { accept, backlog, .. }) => accept.is_some() && !backlog.is_empty(),
            Some(File::Socket { connection, receive, send, connect }) => {
                let connection = connection.map(|id| &self.connections[id]);
                let receives = |c: &Connection| c.is_broken() || c.inward_fin || !c.inward.is_empty();
                let sends = |c: &Connection| c.is_broken() || c.peer_closed || c.outward.len() < self.faults.window;
                let connects = |address| !matches!(self.origins.get(address), Some(Origin::Silent));
                receive.is_some() && connection.is_some_and(receives)
                    || send.is_some() && connection.is_some_and(sends)
                    || connect.as_ref().is_some_and(|(_, address)| connects(address))
            }
        }
    }

    /// One thing that the kernel may do now on this descriptor. `None` when there is none.
    fn step(&mut self, index: usize, pool: &Rc<Pool>) -> Option<()> {
        let fd = (FD_BASE + index) as RawFd;
        let first = self.random.below(3);
        match self.files[index].as_ref()? {
            File::Listener { .. } => self.step_accept(index, fd),
            File::Socket { .. } => (0..3).find_map(|n| match (first + n) % 3 {
                0 => self.step_receive(index, fd, pool),
                1 => self.step_send(index, fd),
                _ => self.step_connect(index, fd),
            }),
        }
    }

    fn step_accept(&mut self, index: usize, fd: RawFd) -> Option<()> {
        let Some(File::Listener { accept, backlog, .. }) = &mut self.files[index] else { return None };
        let token = (*accept)?;
        if backlog.is_empty() {
            return None;
        }
        if self.random.chance(self.faults.accept_failure) {
            *accept = None;
            let errno = if self.random.chance(500) { libc::EMFILE } else { libc::ECONNABORTED };
            self.post(fd, token, -errno, false);
            return Some(());
        }
        let more = !self.random.chance(self.faults.spurious_end);
        let connection = backlog.pop_front();
        if !more {
            *accept = None;
        }
        let new = self.new_fd(File::Socket { connection, receive: None, send: None, connect: None });
        self.post(fd, token, new, more);
        Some(())
    }

    fn step_receive(&mut self, index: usize, fd: RawFd, pool: &Rc<Pool>) -> Option<()> {
        let Some(File::Socket { connection: Some(connection), receive, .. }) = &mut self.files[index] else { return None };
        let (token, multishot) = (*receive)?;
        let connection = &mut self.connections[*connection];
        if !connection.is_broken() && self.random.chance(self.faults.reset) {
            connection.break_by_peer(libc::ECONNRESET);
        }
        let end = if connection.is_broken() {
            Some(-connection.broken_by_peer.unwrap_or(libc::ECONNRESET))
        } else if connection.inward.is_empty() {
            if !connection.inward_fin {
                return None;
            }
            Some(0)
        } else if pool.free() == 0 || self.random.chance(self.faults.no_buffers) {
            Some(-libc::ENOBUFS)
        } else {
            None
        };
        if let Some(result) = end {
            *receive = None;
            self.post(fd, token, result, false);
            return Some(());
        }
        let most = connection.inward.len().min(pool.buffer_size());
        let n = if self.faults.short { 1 + self.random.below(most) } else { most };
        let bytes: Vec<u8> = connection.inward.drain(..n).collect();
        let Some(loan) = pool.lend_filled(&bytes) else { panic!("a free buffer that is not in the ring") };
        connection.delivered += n as u64;
        let more = multishot && !self.random.chance(self.faults.spurious_end);
        if !more {
            *receive = None;
        }
        self.post_with(fd, token, n as i32, more, Some(loan), Vec::new());
        Some(())
    }

    fn step_send(&mut self, index: usize, fd: RawFd) -> Option<()> {
        let Some(File::Socket { connection: Some(connection), send, .. }) = &mut self.files[index] else { return None };
        let (_, chunks) = send.as_ref()?;
        let connection = &mut self.connections[*connection];
        assert!(!connection.outward_fin, "bytes after FIN");
        let total: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        let room = self.faults.window.saturating_sub(connection.outward.len());
        let result = if connection.is_broken() || connection.peer_closed {
            -libc::EPIPE
        } else if room == 0 {
            return None;
        } else {
            let most = total.min(room);
            let n = if self.faults.short { 1 + self.random.below(most) } else { most };
            let bytes = chunks.iter().flat_map(|chunk| chunk.iter().copied());
            connection.outward.extend(bytes.take(n));
            n as i32
        };
        let (token, chunks) = send.take()?;
        self.post_with(fd, token, result, false, None, chunks);
        Some(())
    }

    fn step_connect(&mut self, index: usize, fd: RawFd) -> Option<()> {
        let Some(File::Socket { connect, .. }) = &self.files[index] else { return None };
        let (token, address) = (*connect)?;
        let failed = self.random.chance(self.faults.connect_failure);
        let local = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 254), self.next_port()));
        let id = self.connections.len();
        let result = match self.origins.get_mut(&address) {
            Some(Origin::Silent) => return None,
            None => -libc::ECONNREFUSED,
            Some(_) if failed => -libc::ETIMEDOUT,
            Some(Origin::Listening { backlog, serve: None }) => {
                backlog.push_back(id);
                0
            }
            Some(Origin::Listening { serve: Some(_), .. }) => 0,
        };
        let Some(File::Socket { connect, connection, .. }) = &mut self.files[index] else { return None };
        *connect = None;
        if result == 0 {
            *connection = Some(id);
            self.connections.push(Connection::new(address, local));
        }
        self.post(fd, token, result, false);
        Some(())
    }

    fn step_watches(&mut self) {
        for index in 0..self.watches.len() {
            if std::mem::take(&mut self.watches[index].1) {
                let (token, _) = self.watches[index];
                self.post(-2, token, 1, true);
            }
        }
    }

    /// Posts in an order in which a kernel might: any between descriptors, the given one within each.
    fn take_posted(&mut self, into: &mut Vec<Completion>) {
        let mut queues: BTreeMap<RawFd, VecDeque<Completion>> = BTreeMap::new();
        for (fd, completion) in self.posted.drain(..) {
            queues.entry(fd).or_default().push_back(completion);
        }
        let mut queues: Vec<_> = queues.into_values().collect();
        while !queues.is_empty() {
            let at = self.random.below(queues.len());
            into.extend(queues[at].pop_front());
            if queues[at].is_empty() {
                queues.swap_remove(at);
            }
        }
    }

    /// Slips in a completion of something that ended: of a stream that is gone, so that only its generation tells.
    fn post_stale(&mut self) {
        if self.old.is_empty() || !self.random.chance(self.faults.stale) {
            return;
        }
        let at = self.random.below(self.old.len());
        let token = self.old.swap_remove(at);
        let of_stream = !matches!(token.kind(), Kind::Accept | Kind::Watch | Kind::Discard | Kind::Close);
        let same =
            |old: &Token| old.kind() == Kind::Close && (old.slot(), old.generation()) == (token.slot(), token.generation());
        // The close itself must have been seen: until then the slot is the stream's.
        let closed = self.old.iter().any(same) && !self.posted.iter().any(|(_, posted)| same(&posted.token));
        if of_stream && closed {
            self.posted.push((-3, Completion { token, result: 0, more: false, loan: None, chunks: Vec::new() }));
        }
    }

    fn check_invariants(&self) {
        for connection in &self.connections {
            let moving = connection.delivered + connection.inward.len() as u64;
            assert_eq!(connection.written, moving, "bytes to the engine");
        }
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
                    let index = (start + offset) % count;
                    if world.random.chance(delay) {
                        delayed |= world.could_move(index);
                        break;
                    }
                    moves = if world.step(index, &self.pool).is_some() { moves - 1 } else { 0 };
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
        let until = timeout.map(|timeout| start + timeout).into_iter().chain(self.world.borrow().horizon).min();
        self.world.borrow_mut().quiet = false;
        for _ in 0..STEPS_MAX {
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
                match until {
                    Some(until) => world.now = until.max(world.now),
                    None => world.quiet = true,
                }
                return Ok(());
            }
        }
        Ok(())
    }

    fn completions(&mut self, into: &mut Vec<Completion>) {
        self.world.borrow_mut().take_posted(into);
    }

    fn open(&mut self, _address: SocketAddr) -> Result<RawFd, i32> {
        let file = File::Socket { connection: None, receive: None, send: None, connect: None };
        Ok(self.world.borrow_mut().new_fd(file))
    }

    fn prepare(&mut self, fd: RawFd, accepted: bool) -> Result<(SocketAddr, SocketAddr), i32> {
        let mut world = self.world.borrow_mut();
        let File::Socket { connection: Some(connection), .. } = world.file(fd) else { return Err(libc::ENOTCONN) };
        let connection = *connection;
        let connection = &world.connections[connection];
        if accepted && connection.is_broken() {
            return Err(libc::ENOTCONN);
        }
        Ok((connection.peer, connection.local))
    }

    fn reset_on_close(&mut self, fd: RawFd) {
        let mut world = self.world.borrow_mut();
        if let File::Socket { connection: Some(connection), .. } = world.file(fd) {
            let connection = *connection;
            world.connections[connection].reset_on_close = true;
        }
    }

    fn stop(&mut self) {
        self.queue.clear();
        let mut world = self.world.borrow_mut();
        let posted = std::mem::take(&mut world.posted);
        drop(posted);
        for file in world.files.iter_mut().flatten() {
            match file {
                File::Listener { accept, .. } => *accept = None,
                File::Socket { receive, send, connect, .. } => {
                    (*receive, *send, *connect) = (None, None, None);
                }
            }
        }
        world.watches.clear();
    }

    fn close_now(&mut self, fd: RawFd) {
        self.world.borrow_mut().close(fd);
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
