//! The ring over a simulated world: operations move as the world likes, in virtual time.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::Duration;

use super::SimListener;
use super::peer::Peer;
use super::world::{File, Origin, World};
use crate::io::buffers::BufferPool;
use crate::io::seam::{Completion, Op, Ring, Unreported};
use crate::io::token::{Kind, Token};
use crate::time::Time;

/// This end of every connection.
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 1, 1)), 80);
/// Steps of the world in one wait.
const STEPS_MAX: usize = 256;

/// The ring over a world.
pub struct SimRing {
    world: Rc<RefCell<World>>,
    pool: Rc<BufferPool>,
    queue: Vec<(Token, Op)>,
    enters: u64,
}

impl SimRing {
    pub(super) fn new(world: Rc<RefCell<World>>, pool: Rc<BufferPool>) -> Self {
        Self { world, pool, queue: Vec::new(), enters: 0 }
    }

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
            let peer = Peer::new(&self.world, connection);
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

    fn pool(&self) -> &Rc<BufferPool> {
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

    fn bind(&mut self, _fd: RawFd, source: IpAddr) -> Result<(), i32> {
        let mut world = self.world.borrow_mut();
        if world.foreign.contains(&source) {
            return Err(libc::EADDRNOTAVAIL);
        }
        world.bound.push(source);
        Ok(())
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

    fn shutdown(&mut self, fd: RawFd) -> Result<(), i32> {
        self.world.borrow_mut().shutdown(fd)
    }

    fn hold_back(&mut self, _fd: RawFd) {}

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
        // Queued operations are still carried out, but only closes outlast the cancel. Connections that
        // nobody was told of go.
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

    fn unreported(&self) -> Rc<dyn Fn(RawFd) -> Option<Unreported>> {
        let world = Rc::clone(&self.world);
        Rc::new(move |fd| world.borrow().unreported(fd))
    }

    fn enters(&self) -> u64 {
        self.enters
    }
}

impl std::fmt::Debug for SimRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimRing").field("enters", &self.enters).finish_non_exhaustive()
    }
}
