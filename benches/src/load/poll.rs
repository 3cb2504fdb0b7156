//! epoll(7) with a timeout in nanoseconds (epoll_pwait2), edge-triggered, so that a loop turn is one call.
#![allow(unsafe_code, reason = "nix has no epoll_pwait2")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

const EVENTS_MAX: usize = 256;

/// Descriptors, each with a token.
pub(super) struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    /// Waits end as precisely as the kernel can: the timer slack of 50 µs is turned off for this thread.
    pub(super) fn new() -> io::Result<Self> {
        nix::sys::prctl::set_timerslack(1)?;
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); EVENTS_MAX],
        })
    }

    /// Reports events of `fd` as `token` until it is closed.
    pub(super) fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        let interest =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.epoll.add(fd, EpollEvent::new(interest, token))?)
    }

    /// Appends the descriptors that became ready. After `timeout` or a signal there may be none.
    pub(super) fn wait(
        &mut self,
        timeout: Option<Duration>,
        into: &mut Vec<(u64, EpollFlags)>,
    ) -> io::Result<()> {
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let events = self.events.as_mut_ptr().cast::<libc::epoll_event>();
        // SAFETY: EpollEvent is a transparent epoll_event, and there is room for EVENTS_MAX of them.
        // `timeout` is null or points to a live timespec.
        let count = unsafe {
            libc::epoll_pwait2(
                self.epoll.0.as_raw_fd(),
                events,
                EVENTS_MAX as libc::c_int,
                timeout,
                std::ptr::null(),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        };
        into.extend(self.events[..count].iter().map(|event| (event.data(), event.events())));
        Ok(())
    }
}
