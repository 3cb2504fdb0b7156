//! Watches the listening sockets that the data plane holds too. A data plane can shut them down for every
//! holder, and that would outlive it. Then epoll(7) reports EPOLLHUP, although no event was asked for: new
//! connections do not wake the supervisor.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Events taken in one call.
const EVENTS: usize = 64;
/// Calls in a row: who shuts sockets down as fast as we look does not keep us here.
const CALLS: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Sentry {
    epoll: Epoll,
}

impl Sentry {
    /// Watches nothing yet.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> nix::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// Watches a socket, if it does not yet. Edge-triggered: a socket that cannot be mended is reported once.
    ///
    /// # Errors
    /// When the kernel has no room for more.
    pub fn watch(&self, socket: BorrowedFd<'_>) -> nix::Result<()> {
        match self.epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLET, 0)) {
            Err(Errno::EEXIST) => Ok(()),
            result => result,
        }
    }

    /// Readable when a socket was shut down.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Whether a socket was shut down since the last call.
    pub fn has_news(&self) -> bool {
        let mut has_news = false;
        let mut events = [EpollEvent::empty(); EVENTS];
        for _ in 0..CALLS {
            let Ok(count @ 1..) = self.epoll.wait(&mut events, EpollTimeout::ZERO) else { break };
            has_news |= events[..count].iter().any(|event| event.events().contains(EpollFlags::EPOLLHUP));
        }
        has_news
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{Backlog, Shutdown, listen, shutdown};

    use super::*;

    #[test]
    fn a_shutdown_is_news_each_time_and_a_connection_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let sentry = Sentry::new().expect("epoll");
        sentry.watch(listener.as_fd()).expect("watched");
        sentry.watch(listener.as_fd()).expect("watched already");
        let _client = TcpStream::connect(listener.local_addr().expect("name")).expect("connects");
        assert!(!sentry.has_news());
        for _ in 0..3 {
            shutdown(listener.as_raw_fd(), Shutdown::Both).expect("shut down");
            assert!(sentry.has_news());
            assert!(!sentry.has_news(), "once");
            listen(&listener, Backlog::new(8).expect("few")).expect("listens again");
            assert!(!sentry.has_news());
        }
        // One that is watched only after it was shut down.
        let late = Sentry::new().expect("epoll");
        shutdown(listener.as_raw_fd(), Shutdown::Both).expect("shut down");
        late.watch(listener.as_fd()).expect("watched");
        assert!(late.has_news());
    }
}
