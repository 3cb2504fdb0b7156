//! The simulated world: descriptors, connections, origins, and what may happen to them next. Every choice is
//! drawn from the seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;

use super::connection::Connection;
use super::{FD_BASE, Faults, Observer, Peer, Script};
use crate::io::Chunk;
use crate::io::buffers::{BufferPool, Class, Loan};
use crate::io::seam::{Completion, Op, Unreported};
use crate::io::token::{Kind, Token};
use crate::time::Time;

/// Bytes of a segment.
const SEGMENT: usize = 1448;

pub(super) type Serve = Rc<RefCell<dyn FnMut() -> Script>>;

pub(super) struct World {
    pub(super) now: Time,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) connections: Vec<Connection>,
    /// Descriptors; lowest free first, as a kernel would.
    pub(super) files: Vec<Option<File>>,
    pub(super) origins: BTreeMap<SocketAddr, Origin>,
    pub(super) scripts: Vec<(Peer, Script)>,
    pub(super) posted: Vec<(RawFd, Completion)>,
    /// The next completions are all that are posted, not a portion.
    pub(super) catching_up: bool,
    /// Ended operations whose completion may come once more.
    pub(super) old: Vec<Token>,
    pub(super) watches: Vec<(Token, bool)>,
    /// When scripts want to be called.
    pub(super) wakes: BTreeSet<Time>,
    pub(super) observer: Option<Observer>,
    /// Nothing can happen any more unless a peer acts.
    pub(super) quiet: bool,
    /// Waits end here though no timer is due.
    pub(super) horizon: Option<Time>,
    /// A peer acted since this was last cleared.
    pub(super) acted: bool,
    pub(super) port: u16,
    /// The local addresses that sockets were bound to, in their order, and those that are none of this host.
    pub(super) bound: Vec<IpAddr>,
    pub(super) foreign: Vec<IpAddr>,
}

pub(super) enum File {
    Listener {
        accept: Option<Token>,
        backlog: VecDeque<usize>,
    },
    Socket {
        connection: Option<usize>,
        receive: Option<ArmedReceive>,
        send: Option<Sending>,
        connect: Option<(Token, SocketAddr)>,
    },
}

/// A send in flight.
pub(super) struct Sending {
    pub(super) token: Token,
    pub(super) chunks: Vec<Chunk>,
    is_last: bool,
}

/// A receive in flight.
#[derive(Clone, Copy)]
pub(super) struct ArmedReceive {
    token: Token,
    multishot: bool,
    class: Class,
    /// It took bytes, and nothing wakes it for an end or a reset any more.
    misses_end: bool,
}

pub(super) enum Origin {
    /// Connects succeed; connections wait for `Sim::accept`, or get a script.
    Listening { backlog: VecDeque<usize>, serve: Option<Serve> },
    /// Connects never complete.
    Silent,
    /// No local port is left for connects.
    Spent,
}

/// xorshift64*: enough for a schedule, and the same for ever. The state is not 0.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 11) as usize % bound
    }

    pub(super) fn chance(&mut self, in_thousand: u32) -> bool {
        self.below(1000) < in_thousand as usize
    }
}

/// An operation that begins, for the observer.
struct Started<'a>(Token, &'a Op);

impl fmt::Display for Started<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = self.0.slot();
        match self.1 {
            Op::Accept { fd } => write!(f, "fd {fd}: accept"),
            Op::Receive { fd, multishot, class } => {
                let shots = if *multishot { "multishot" } else { "single" };
                write!(f, "fd {fd} slot {slot}: receive, {shots}, {class:?}")
            }
            Op::Send { fd, chunks, is_last } => {
                let bytes: usize = chunks.iter().map(|chunk| chunk.len()).sum();
                let last = if *is_last { ", the last" } else { "" };
                write!(f, "fd {fd} slot {slot}: send {bytes} bytes in {} chunks{last}", chunks.len())
            }
            Op::Connect { fd, address } => write!(f, "fd {fd} slot {slot}: connect to {address}"),
            Op::Close { fd } => write!(f, "fd {fd} slot {slot}: close"),
            Op::Cancel { target } => write!(f, "slot {slot}: cancel {:?}", target.kind()),
            Op::Watch { fd } => write!(f, "fd {fd}: watch"),
        }
    }
}

/// The outcome of an operation, for the observer.
struct Done {
    fd: RawFd,
    token: Token,
    result: i32,
    more: bool,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fd, token, result, more } = self;
        let end = if *more { "" } else { ", the last" };
        write!(f, "fd {fd} slot {}: {:?} done: {result}{end}", token.slot(), token.kind())
    }
}

/// Moves the first `n` bytes out; by slices, since a debug build takes long over single ones.
pub(crate) fn take_front(queue: &mut VecDeque<u8>, n: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(n);
    let (front, back) = queue.as_slices();
    bytes.extend_from_slice(&front[..n.min(front.len())]);
    bytes.extend_from_slice(&back[..n - bytes.len()]);
    queue.drain(..n);
    bytes
}

impl World {
    pub(super) fn next_port(&mut self) -> u16 {
        self.port = self.port.wrapping_add(1).max(1024);
        self.port
    }

    pub(super) fn new_fd(&mut self, file: File) -> RawFd {
        let free = self.files.iter().position(Option::is_none).unwrap_or_else(|| {
            self.files.push(None);
            self.files.len() - 1
        });
        self.files[free] = Some(file);
        (FD_BASE + free) as RawFd
    }

    pub(super) fn file(&mut self, fd: RawFd) -> &mut File {
        self.files[fd as usize - FD_BASE].as_mut().expect("an operation on a closed descriptor")
    }

    pub(super) fn note(&mut self, what: fmt::Arguments<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(self.now, what);
        }
    }

    pub(super) fn post(&mut self, fd: RawFd, token: Token, result: i32, more: bool) {
        self.post_with(fd, token, result, more, None, Vec::new());
    }

    pub(super) fn post_with(
        &mut self,
        fd: RawFd,
        token: Token,
        result: i32,
        more: bool,
        loan: Option<Loan>,
        chunks: Vec<Chunk>,
    ) {
        if !more && self.old.len() < 256 {
            self.old.push(token);
        }
        self.note(format_args!("{}", Done { fd, token, result, more }));
        self.posted.push((fd, Completion { token, result, more, loan, chunks }));
    }

    /// Bytes that a socket took and its peer has not read.
    pub(super) fn unread_by_peer(&self, fd: RawFd) -> usize {
        self.connection(fd).map_or(0, |connection| connection.outward.len() + connection.withheld.len())
    }

    /// Something that a socket has received, and that its engine has not been told of.
    pub(super) fn unreported(&self, fd: RawFd) -> Option<Unreported> {
        let connection = self.connection(fd)?;
        let is_receive = |of: RawFd, posted: &Completion| of == fd && posted.token.kind() == Kind::Receive;
        let has_posted = self.posted.iter().any(|(of, posted)| is_receive(*of, posted) && posted.result > 0);
        if has_posted || !connection.inward.is_empty() {
            Some(Unreported::Bytes)
        } else {
            (connection.inward_fin || connection.is_broken()).then_some(Unreported::End)
        }
    }

    fn connection(&self, fd: RawFd) -> Option<&Connection> {
        let index = usize::try_from(fd).ok()?.checked_sub(FD_BASE)?;
        match self.files.get(index)?.as_ref()? {
            File::Socket { connection: Some(connection), .. } => self.connections.get(*connection),
            _ => None,
        }
    }

    /// The part of a submission that the kernel does at once.
    pub(super) fn start(&mut self, token: Token, op: Op) {
        self.note(format_args!("{}", Started(token, &op)));
        match op {
            Op::Accept { fd } => match self.file(fd) {
                File::Listener { accept, .. } => {
                    assert!(accept.replace(token).is_none(), "two accepts on one listener")
                }
                File::Socket { .. } => self.post(fd, token, -libc::EINVAL, false),
            },
            Op::Receive { fd, multishot, class } => match self.file(fd) {
                File::Socket { receive, .. } => {
                    let new = ArmedReceive { token, multishot, class, misses_end: false };
                    assert!(receive.replace(new).is_none(), "two receives on one socket")
                }
                File::Listener { .. } => self.post(fd, token, -libc::ENOTCONN, false),
            },
            Op::Send { fd, chunks, is_last } => match self.file(fd) {
                File::Socket { send, .. } => {
                    assert!(
                        !chunks.is_empty() && chunks.iter().all(|chunk| !chunk.is_empty()),
                        "an empty send"
                    );
                    let new = Sending { token, chunks, is_last };
                    assert!(send.replace(new).is_none(), "two sends on one socket");
                }
                File::Listener { .. } => self.post(fd, token, -libc::ENOTCONN, false),
            },
            Op::Connect { fd, address } => match self.file(fd) {
                File::Socket { connect, .. } => {
                    assert!(connect.replace((token, address)).is_none(), "two connects on one socket")
                }
                File::Listener { .. } => self.post(fd, token, -libc::EINVAL, false),
            },
            Op::Close { fd } => {
                self.close(fd);
                self.post(fd, token, 0, false);
            }
            Op::Cancel { target } => self.start_cancel(token, target),
            Op::Watch { .. } => self.watches.push((token, false)),
        }
    }

    pub(super) fn shutdown(&mut self, fd: RawFd) -> Result<(), i32> {
        let File::Socket { connection: Some(connection), send, .. } = self.file(fd) else {
            return Err(libc::ENOTCONN);
        };
        assert!(send.is_none(), "FIN overtakes a send");
        let connection = *connection;
        self.note(format_args!("fd {fd}: shutdown"));
        let connection = &mut self.connections[connection];
        connection.end_outward();
        if connection.is_broken() { Err(libc::ENOTCONN) } else { Ok(()) }
    }

    pub(super) fn start_cancel(&mut self, token: Token, target: Token) {
        let mut found = None;
        for (index, file) in self.files.iter_mut().enumerate() {
            let fd = (FD_BASE + index) as RawFd;
            match file {
                Some(File::Listener { accept, .. }) if *accept == Some(target) => {
                    *accept = None;
                    found = Some((fd, Vec::new()));
                }
                Some(File::Socket { receive, send, connect, .. }) => {
                    if receive.is_some_and(|receive| receive.token == target) {
                        *receive = None;
                        found = Some((fd, Vec::new()));
                    } else if send.as_ref().is_some_and(|send| send.token == target) {
                        found = send.take().map(|send| (fd, send.chunks));
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

    pub(super) fn close(&mut self, fd: RawFd) {
        let file = self.files[fd as usize - FD_BASE].take().expect("closed twice");
        match file {
            File::Listener { accept, .. } => assert!(accept.is_none(), "closed under an accept"),
            File::Socket { connection, receive, send, connect } => {
                assert!(
                    receive.is_none() && send.is_none() && connect.is_none(),
                    "closed under an operation"
                );
                let Some(connection) = connection else { return };
                let connection = &mut self.connections[connection];
                connection.engine_closed = true;
                if connection.reset_on_close || !connection.inward.is_empty() {
                    connection.reset_by_engine |= connection.broken_by_peer.is_none();
                    // The reset may overtake bytes that were sent before it.
                    connection.outward.clear();
                } else {
                    connection.end_outward();
                }
            }
        }
    }

    /// One thing that the kernel may do now on this descriptor. `None` when there is none.
    pub(super) fn step(&mut self, index: usize, pool: &Rc<BufferPool>) -> Option<()> {
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

    /// Whether `step` would find something to do.
    pub(super) fn can_move(&self, index: usize) -> bool {
        match &self.files[index] {
            None => false,
            Some(File::Listener { accept, backlog, .. }) => accept.is_some() && !backlog.is_empty(),
            Some(File::Socket { connect: Some((_, address)), .. }) => {
                !matches!(self.origins.get(address), Some(Origin::Silent))
            }
            Some(File::Socket { connection, receive, send, .. }) => connection.is_some_and(|connection| {
                let connection = &self.connections[connection];
                let writable = connection.peer_closed || connection.outward.len() < self.faults.window;
                let broken = connection.is_broken();
                let receives = receive.is_some_and(|receive| {
                    let ended = (broken || connection.inward_fin) && !receive.misses_end;
                    ended || !connection.inward.is_empty()
                });
                receives || (send.is_some() && (broken || writable))
            }),
        }
    }

    pub(super) fn step_accept(&mut self, index: usize, fd: RawFd) -> Option<()> {
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

    pub(super) fn step_receive(&mut self, index: usize, fd: RawFd, pool: &Rc<BufferPool>) -> Option<()> {
        let Some(File::Socket { connection: Some(connection), receive, .. }) = &mut self.files[index] else {
            return None;
        };
        let ArmedReceive { token, multishot, class, misses_end } = (*receive)?;
        let connection = &mut self.connections[*connection];
        if !connection.is_broken() && self.random.chance(self.faults.reset) {
            connection.break_by_peer(libc::ECONNRESET);
        }
        if connection.inward.is_empty() && misses_end {
            return None;
        }
        let end = if connection.is_broken() {
            Some(-connection.broken_by_peer.unwrap_or(libc::ECONNRESET))
        } else if connection.inward.is_empty() {
            if !connection.inward_fin {
                return None;
            }
            Some(0)
        } else if !pool.has_returned(class) || self.random.chance(self.faults.no_buffers) {
            Some(-libc::ENOBUFS)
        } else {
            None
        };
        if let Some(result) = end {
            *receive = None;
            self.post(fd, token, result, false);
            return Some(());
        }
        let most = connection.inward.len().min(pool.size(class));
        let n = if self.faults.short { 1 + self.random.below(most) } else { most };
        let bytes = take_front(&mut connection.inward, n);
        let Some(loan) = pool.lend_filled(class, &bytes) else {
            panic!("a free buffer that is not in the ring")
        };
        connection.delivered += n as u64;
        let more = multishot && !self.random.chance(self.faults.spurious_end);
        let misses_end = self.random.chance(self.faults.missed_end);
        *receive = more.then_some(ArmedReceive { token, multishot, class, misses_end });
        self.post_with(fd, token, n as i32, more, Some(loan), Vec::new());
        Some(())
    }

    pub(super) fn step_send(&mut self, index: usize, fd: RawFd) -> Option<()> {
        let Some(File::Socket { connection: Some(connection), send, .. }) = &mut self.files[index] else {
            return None;
        };
        let Sending { chunks, is_last, .. } = send.as_ref()?;
        let connection = &mut self.connections[*connection];
        assert!(!connection.outward_fin, "bytes after FIN");
        assert!(connection.withheld.is_empty(), "bytes after the last ones");
        let total: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        let room = self.faults.window.saturating_sub(connection.outward.len());
        let result = if connection.is_broken() || connection.peer_closed {
            -libc::EPIPE
        } else if room == 0 {
            return None;
        } else {
            let most = total.min(room);
            let n = if self.faults.short { 1 + self.random.below(most) } else { most };
            let mut left = n;
            for chunk in chunks {
                let part = &chunk[..left.min(chunk.len())];
                connection.outward.extend(part);
                left -= part.len();
            }
            if *is_last && n == total {
                let withheld = n % SEGMENT;
                connection.withheld.extend(connection.outward.drain(connection.outward.len() - withheld..));
            }
            n as i32
        };
        let Sending { token, chunks, .. } = send.take()?;
        self.post_with(fd, token, result, false, None, chunks);
        Some(())
    }

    pub(super) fn step_connect(&mut self, index: usize, fd: RawFd) -> Option<()> {
        let Some(File::Socket { connect, .. }) = &self.files[index] else { return None };
        let (token, address) = (*connect)?;
        let failed = self.random.chance(self.faults.connect_failure);
        let id = self.connections.len();
        let result = match self.origins.get_mut(&address) {
            Some(Origin::Silent) => return None,
            Some(Origin::Spent) => -libc::EADDRNOTAVAIL,
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
            self.connections.push(Connection::new(address));
        }
        self.post(fd, token, result, false);
        Some(())
    }

    pub(super) fn step_watches(&mut self) {
        for index in 0..self.watches.len() {
            if std::mem::take(&mut self.watches[index].1) {
                let (token, _) = self.watches[index];
                self.post(-2, token, 1, true);
            }
        }
    }

    /// Hands over posted completions in an order in which a kernel might: any between descriptors, the given
    /// one within each. Of much, a portion.
    pub(super) fn take_posted(&mut self, into: &mut Vec<Completion>) {
        let mut room = if std::mem::take(&mut self.catching_up) { usize::MAX } else { self.faults.portion };
        let mut queues: BTreeMap<RawFd, VecDeque<Completion>> = BTreeMap::new();
        for (fd, completion) in self.posted.drain(..) {
            queues.entry(fd).or_default().push_back(completion);
        }
        let mut queues: Vec<_> = queues.into_iter().collect();
        while !queues.is_empty() && room > 0 {
            let at = self.random.below(queues.len());
            into.extend(queues[at].1.pop_front());
            room -= 1;
            if queues[at].1.is_empty() {
                queues.swap_remove(at);
            }
        }
        let left = queues
            .into_iter()
            .flat_map(|(fd, queue)| queue.into_iter().map(move |completion| (fd, completion)));
        self.posted.extend(left);
    }

    /// Slips in a completion of something that ended: of a stream that is gone, so that only its generation
    /// tells.
    pub(super) fn post_stale(&mut self) {
        if self.old.is_empty() || !self.random.chance(self.faults.stale) {
            return;
        }
        let at = self.random.below(self.old.len());
        let token = self.old.swap_remove(at);
        let of_stream = !matches!(token.kind(), Kind::Accept | Kind::Watch | Kind::Discard | Kind::Close);
        let same = |old: &Token| {
            old.kind() == Kind::Close && (old.slot(), old.generation()) == (token.slot(), token.generation())
        };
        // The close itself must have been seen: until then the slot is the stream's.
        let closed = self.old.iter().any(same) && !self.posted.iter().any(|(_, posted)| same(&posted.token));
        if of_stream && closed {
            self.posted
                .push((-3, Completion { token, result: 0, more: false, loan: None, chunks: Vec::new() }));
        }
    }

    pub(super) fn check_invariants(&self) {
        for connection in &self.connections {
            let moving = connection.delivered + connection.inward.len() as u64;
            assert_eq!(connection.written, moving, "bytes to the engine");
        }
    }
}
