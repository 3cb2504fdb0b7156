//! The kernel's ring (io_uring(7)): SINGLE_ISSUER and DEFER_TASKRUN, one provided-buffer ring, one enter per
//! loop turn. Memory that an operation points to is kept here until its final completion, even if its stream
//! is gone.
#![allow(
    unsafe_code,
    reason = "submission entries point to memory, and the buffer ring is shared with the kernel"
)]

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use io_uring::types::{BufRingEntry, CancelBuilder, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, squeue};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::socket::{
    MsgFlags, Shutdown, SockaddrStorage, getpeername, getsockname, recv, setsockopt, shutdown, sockopt,
};
use nix::time::{ClockId, clock_gettime};

use super::buffers::{BufferPool, Class};
use super::restrictions;
use super::seam::{Completion, Op, Ring, Unreported};
use super::settings;
use super::socket;
use super::sqe::{self, ConnectMemory, SendMemory};
use super::token::{Kind, Token};
use crate::time::Time;

mod probe;

pub use self::probe::{ProbeError, RingFeatures, probe};

/// Buffers that the kernel has at least, or all if there are fewer: small ones, then blocks.
const OFFER_MIN: [u16; 2] = [256, 8];
/// The buffer group of each class.
const fn group(class: Class) -> u16 {
    class as u16
}
/// How long `stop` waits for cancelled operations. Operations still in flight then keep their memory for
/// ever.
const STOP_MAX: Duration = Duration::from_secs(2);
/// Completions read at once.
const BATCH: usize = 64;
/// Send memories kept for reuse.
const SPARE_MAX: usize = 256;

/// One worker's io_uring and the memory its operations point to.
pub struct KernelRing {
    /// Dropped first: the kernel forgets the ring before the memory below goes.
    ring: IoUring,
    /// By class; blocks only where there are any.
    provided: Vec<ProvidedBuffers>,
    pool: Rc<BufferPool>,
    /// By slot: a stream has one send and one connect in flight at most.
    sends: Vec<Option<Box<SendMemory>>>,
    connects: Vec<Option<Box<ConnectMemory>>>,
    #[expect(clippy::vec_box, reason = "a send's memory keeps its address when it moves between the tables")]
    spare: Vec<Box<SendMemory>>,
    /// Entries that found no place in the submission queue.
    backlog: VecDeque<squeue::Entry>,
    /// Operations without their final completion.
    in_flight: usize,
    enters: u64,
}

impl KernelRing {
    /// A ring for the calling thread, the only one that may use it.
    ///
    /// # Errors
    /// Those of io_uring_setup(2): ENOMEM for want of locked memory, EPERM where it is forbidden, EINVAL from
    /// a kernel too old.
    pub fn new(settings: settings::Ring, buffer_budget: usize) -> io::Result<Self> {
        let ring = build(settings.entries)?;
        let pool = BufferPool::new(settings.buffers, settings.buffer_size as usize, buffer_budget)?;
        let mut provided = vec![ProvidedBuffers::register(&ring, Class::Small, settings.buffers)?];
        if let Some(blocks) = u16::try_from(pool.block_count()).ok().filter(|&count| count > 0) {
            provided.push(ProvidedBuffers::register(&ring, Class::Block, blocks)?);
        }
        restrictions::enable(&ring)?;
        let mut ring = Self {
            ring,
            provided,
            pool,
            sends: Vec::new(),
            connects: Vec::new(),
            spare: Vec::new(),
            backlog: VecDeque::new(),
            in_flight: 0,
            enters: 0,
        };
        ring.give_buffers();
        Ok(ring)
    }

    fn give_buffers(&mut self) {
        let Self { provided, pool, .. } = self;
        provided.iter_mut().for_each(|provided| provided.give(pool));
    }

    fn enter(&mut self, wait: usize, timeout: Option<Duration>) -> io::Result<()> {
        self.enters += 1;
        let submitter = self.ring.submitter();
        let result = match timeout {
            None => submitter.submit_and_wait(wait),
            Some(Duration::ZERO) => self.enter_now(),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                submitter.submit_with_args(wait, &SubmitArgs::new().timespec(&timespec))
            }
        };
        tolerate(result)
    }

    /// Submits and runs deferred work without waiting.
    fn enter_now(&mut self) -> io::Result<usize> {
        let queued = {
            let mut queue = self.ring.submission();
            queue.sync();
            queue.len() as u32
        };
        // SAFETY: no argument is passed, and every queued entry points to memory that we keep.
        unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(queued, 0, EnterFlags::GETEVENTS.bits(), None)
        }
    }

    /// Queues an entry whose memory is kept in `sends` or `connects`, or that points to none. When the queue
    /// is full and the kernel takes nothing just now (EBUSY, EAGAIN), the entry waits in the backlog. The
    /// backlog is as bounded as the operations that streams have in flight.
    fn push(&mut self, entry: squeue::Entry) {
        self.in_flight += 1;
        if self.backlog.is_empty() && self.try_push(&entry) {
            return;
        }
        // An error here shows again, and is reported, at the next `wait`.
        let _ = self.enter(0, Some(Duration::ZERO));
        self.push_backlog();
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the memory the entry points to is boxed in `sends` or `connects` until the final
        // completion; descriptors are checked by the kernel.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn push_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_push(&entry) {
                return self.backlog.push_front(entry);
            }
        }
    }

    fn keep_send(&mut self, slot: usize, memory: Box<SendMemory>) -> &mut SendMemory {
        if self.sends.len() <= slot {
            self.sends.resize_with(slot + 1, || None);
        }
        let place = &mut self.sends[slot];
        assert!(place.is_none(), "one send at a time for a stream");
        place.insert(memory)
    }

    fn keep_connect(&mut self, slot: usize, memory: Box<ConnectMemory>) -> &ConnectMemory {
        if self.connects.len() <= slot {
            self.connects.resize_with(slot + 1, || None);
        }
        let place = &mut self.connects[slot];
        assert!(place.is_none(), "one connect at a time for a stream");
        place.insert(memory)
    }

    /// Takes back the memory a finished operation pointed to.
    fn reclaim(&mut self, token: Token) -> Vec<super::Chunk> {
        let slot = token.slot() as usize;
        match token.kind() {
            Kind::Send => {
                let Some(mut memory) = self.sends.get_mut(slot).and_then(Option::take) else {
                    return Vec::new();
                };
                let chunks = std::mem::take(&mut memory.chunks);
                if self.spare.len() < SPARE_MAX {
                    self.spare.push(memory);
                }
                chunks
            }
            Kind::Connect => {
                if let Some(place) = self.connects.get_mut(slot) {
                    *place = None;
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn translate(&mut self, entry: &cqueue::Entry) -> Option<Completion> {
        let (result, flags) = (entry.result(), entry.flags());
        let more = cqueue::more(flags);
        if !more {
            self.in_flight -= 1;
        }
        let buffer = cqueue::buffer_select(flags);
        if let Some(buffer) = buffer {
            self.provided[self.pool.class(buffer) as usize].offered -= 1;
        }
        // SAFETY: the kernel named the buffer in a completion, so it was given by `give_buffers`, holds
        // `result` bytes, and is ours again.
        let loan = buffer
            .map(|buffer| unsafe { self.pool.lend(buffer, usize::try_from(result).unwrap_or(0)) })
            .filter(|_| result > 0);
        let token = Token::from_raw(entry.user_data())?;
        // The kernel used up the buffers it was offered, but there are more: the next try finds them.
        let ran_out = result == -libc::ENOBUFS
            && token.kind() == Kind::Receive
            && self
                .provided
                .iter()
                .any(|provided| provided.offered == 0 && self.pool.has_returned(provided.class));
        let result = if ran_out { -libc::EINTR } else { result };
        let chunks = if more { Vec::new() } else { self.reclaim(token) };
        Some(Completion { token, result, more, loan, chunks })
    }
}

impl Ring for KernelRing {
    type Listener = OwnedFd;

    fn listener_fd(&self, listener: &OwnedFd) -> RawFd {
        listener.as_raw_fd()
    }

    fn now(&self) -> Time {
        // CLOCK_MONOTONIC cannot fail on Linux.
        clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Time::default(), |now| {
            Time::from_nanos(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
        })
    }

    fn pool(&self) -> &Rc<BufferPool> {
        &self.pool
    }

    fn submit(&mut self, token: Token, op: Op) {
        let slot = token.slot() as usize;
        let entry = match op {
            Op::Accept { fd } => sqe::accept(fd),
            Op::Receive { fd, multishot, class } => sqe::receive(fd, multishot, group(class)),
            Op::Send { fd, chunks, is_last } => {
                let mut memory = self.spare.pop().unwrap_or_else(|| Box::new(SendMemory::new()));
                memory.chunks = chunks;
                sqe::send(fd, self.keep_send(slot, memory), is_last)
            }
            Op::Connect { fd, address } => {
                sqe::connect(fd, self.keep_connect(slot, Box::new(ConnectMemory::new(address))))
            }
            Op::Close { fd } => sqe::close(fd),
            Op::Cancel { target } => sqe::cancel(target),
            Op::Watch { fd } => sqe::watch(fd),
        };
        self.push(entry.user_data(token.raw()));
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.give_buffers();
        self.push_backlog();
        let timeout = if self.backlog.is_empty() { timeout } else { Some(Duration::ZERO) };
        self.enter(1, timeout)
    }

    fn catch_up(&mut self) -> io::Result<()> {
        self.enters += 1;
        // The kernel (since 6.13) runs no more deferred work than the number of completions that is waited
        // for, or 20 if that is less.
        let all = self.ring.params().cq_entries() as usize;
        tolerate(self.ring.submitter().submit_with_args(all, &SubmitArgs::new().timespec(&Timespec::new())))
    }

    fn completions(&mut self, into: &mut Vec<Completion>) {
        let mut batch = [const { MaybeUninit::uninit() }; BATCH];
        loop {
            // By batches, since the queue's two indices are shared with the kernel and each look at them
            // costs a barrier.
            let read = self.ring.completion().fill(&mut batch).len();
            for entry in &batch[..read] {
                // SAFETY: `fill` wrote the first `read` entries.
                let entry = unsafe { entry.assume_init_ref() };
                if let Some(completion) = self.translate(entry) {
                    into.push(completion);
                }
            }
            if read < BATCH {
                return;
            }
        }
    }

    fn open(&mut self, address: SocketAddr) -> Result<RawFd, i32> {
        socket::open(address).map_err(|errno| errno as i32)
    }

    fn bind(&mut self, fd: RawFd, source: IpAddr) -> Result<(), i32> {
        // SAFETY: as in `prepare`.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        socket::bind_to(borrowed, source).map_err(|errno| errno as i32)
    }

    fn prepare(&mut self, fd: RawFd, accepted: bool) -> Result<SocketAddr, i32> {
        let peer = getpeername::<SockaddrStorage>(fd).map_err(|errno| errno as i32)?;
        if !accepted {
            // SAFETY: the engine owns the open descriptor and closes it only through us, later.
            let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
            setsockopt(&borrowed, sockopt::TcpNoDelay, &true).map_err(|errno| errno as i32)?;
        }
        socket_address(&peer)
    }

    fn local_address(fd: RawFd) -> Option<SocketAddr> {
        socket_address(&getsockname(fd).ok()?).ok()
    }

    fn shutdown(&mut self, fd: RawFd) -> Result<(), i32> {
        shutdown(fd, Shutdown::Write).map_err(|errno| errno as i32)
    }

    fn hold_back(&mut self, fd: RawFd) {
        let on: libc::c_int = 1;
        let (value, length) = ((&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t);
        // SAFETY: TCP_CORK (tcp(7)) takes one int, which is there for as long as the call takes.
        let _ = unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CORK, value, length) };
    }

    fn reset_on_close(&mut self, fd: RawFd) {
        // SAFETY: as in `prepare`.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        // A socket that is gone already needs no reset.
        let _ = setsockopt(&borrowed, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
    }

    fn stop(&mut self) {
        // An entry that never reached the kernel never completes.
        self.in_flight -= self.backlog.len();
        self.backlog.clear();
        let give_up = Instant::now() + STOP_MAX;
        while self.in_flight > 0 && Instant::now() < give_up {
            // Submits the queued entries first. Errors (nothing found, not yet) show as operations still in
            // flight.
            let _ = self.enter(0, Some(Duration::ZERO));
            let _ = self.ring.submitter().register_sync_cancel(Some(Timespec::new()), CancelBuilder::any());
            let _ = self.enter(1, Some(Duration::from_millis(10)));
            loop {
                let Some(entry) = self.ring.completion().next() else { break };
                if let Some(completion) = self.translate(&entry)
                    && completion.token.kind() == Kind::Accept
                    && completion.result >= 0
                {
                    self.close_now(completion.result);
                }
            }
        }
    }

    fn close_now(&mut self, fd: RawFd) {
        // SAFETY: the engine owned the descriptor and hands it over here for good.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }

    fn unacknowledged(&self) -> Rc<dyn Fn(RawFd) -> usize> {
        Rc::new(|fd| {
            let mut bytes: libc::c_int = 0;
            // SAFETY: SIOCOUTQ, as TIOCOUTQ is called for sockets (tcp(7)), writes one int, which is there
            // for as long as the call takes.
            let result = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
            if result < 0 { 0 } else { usize::try_from(bytes).unwrap_or(0) }
        })
    }

    fn unreported(&self) -> Rc<dyn Fn(RawFd) -> Option<Unreported>> {
        Rc::new(|fd| match recv(fd, &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) {
            Ok(1..) => Some(Unreported::Bytes),
            Err(Errno::EAGAIN | Errno::EINTR) => None,
            Ok(0) | Err(_) => Some(Unreported::End),
        })
    }

    fn enters(&self) -> u64 {
        self.enters
    }
}

impl Drop for KernelRing {
    fn drop(&mut self) {
        self.stop();
        if self.in_flight > 0 {
            // The kernel may still write to it: leaking is the safe end.
            std::mem::forget(Rc::clone(&self.pool));
            std::mem::forget(std::mem::take(&mut self.sends));
            std::mem::forget(std::mem::take(&mut self.connects));
            self.provided.iter_mut().for_each(ProvidedBuffers::leak);
        }
    }
}

impl std::fmt::Debug for KernelRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelRing").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

/// EINVAL for an address family that we never open.
fn socket_address(storage: &SockaddrStorage) -> Result<SocketAddr, i32> {
    if let Some(v4) = storage.as_sockaddr_in() {
        return Ok(SocketAddr::V4((*v4).into()));
    }
    storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())).ok_or(libc::EINVAL)
}

fn tolerate(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        // The time is over, a signal came, or the completion queue must be emptied first.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// It runs once it is restricted.
fn build(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_no_sqarray()
        .setup_r_disabled()
        .dontfork()
        .build(entries)
}

/// A ring of provided buffers (io_uring_register_buf_ring(3)): entries that we write and a tail that we
/// publish. The kernel gets no more buffers than it is likely to fill in one turn, the last returned ones
/// first, so that those in use stay in the cache.
struct ProvidedBuffers {
    class: Class,
    entries: NonNull<BufRingEntry>,
    count: u16,
    tail: u16,
    /// Buffers that the kernel has.
    offered: u16,
    /// How many it had after the last `give`.
    given: u16,
    /// The most that were filled in one turn, of late.
    peak: u16,
    leaked: bool,
}

impl ProvidedBuffers {
    fn register(ring: &IoUring, class: Class, count: u16) -> io::Result<Self> {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let length = std::num::NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        let provided = Self {
            class,
            entries: memory.cast(),
            count,
            tail: 0,
            offered: 0,
            given: 0,
            peak: 0,
            leaked: false,
        };
        let address = memory.as_ptr() as u64;
        // SAFETY: the memory is page-aligned, holds `count` zeroed entries, and outlives the ring:
        // `KernelRing` drops the ring first.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, count, group(class), 0) }?;
        Ok(provided)
    }

    /// Hands returned buffers to the kernel.
    fn give(&mut self, pool: &BufferPool) {
        let filled = self.given - self.offered;
        self.peak = filled.max(self.peak - (self.peak >> 8));
        let wanted = self.peak.saturating_mul(2).max(OFFER_MIN[self.class as usize]).min(self.count);
        let before = self.tail;
        let length = pool.size(self.class) as u32;
        pool.take_returned(self.class, usize::from(wanted.saturating_sub(self.offered)), |buffer| {
            let index = usize::from(self.tail & (self.count - 1));
            // SAFETY: `index` is below `count`. The kernel reads an entry only after the tail has passed it,
            // and it never has more buffers than there are entries, so this one is ours.
            let mut entry = unsafe { self.entries.add(index) };
            // SAFETY: as above; no other reference to it exists.
            let entry = unsafe { entry.as_mut() };
            entry.set_addr(pool.address(buffer) as u64);
            entry.set_len(length);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
        });
        self.offered += self.tail.wrapping_sub(before);
        self.given = self.offered;
        if self.tail != before {
            // SAFETY: the tail lies in the first entry, which is mapped, and is aligned for a u16.
            let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
            // SAFETY: the kernel only reads it; the interface asks for atomic access.
            unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
        }
    }

    const fn leak(&mut self) {
        self.leaked = true;
    }
}

impl Drop for ProvidedBuffers {
    fn drop(&mut self) {
        if !self.leaked {
            let bytes = usize::from(self.count) * size_of::<BufRingEntry>();
            // SAFETY: mapped in `register` with this length; the ring that knew it is gone (see the order of
            // fields in `KernelRing`).
            let _ = unsafe { munmap(self.entries.cast(), bytes) };
        }
    }
}

#[cfg(test)]
mod tests;
