//! The relay's io_uring (io_uring(7)): one provided-buffer ring, direct descriptors, one enter per loop turn.
//! The relay never looks at received bytes: it sends the very buffer that the kernel filled. So no reference
//! to buffer memory exists here.
#![allow(
    unsafe_code,
    reason = "submission entries point to memory, and the buffer ring is shared with the kernel"
)]

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{BufRingEntry, CancelBuilder, DestinationSlot, Fd, Fixed};
use io_uring::{IoUring, cqueue, opcode};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// The only buffer group.
const GROUP: u16 = 0;
/// IORING_REGISTER_FILE_ALLOC_RANGE of linux/io_uring.h.
const REGISTER_FILE_ALLOC_RANGE: libc::c_uint = 25;
/// The most buffers in one send.
pub(super) const GATHER_MAX: usize = 64;
const HUGE_PAGE: usize = 2 << 20;

/// A received buffer: its index and its filled bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub(super) buffer: u16,
    pub(super) length: u16,
}

/// The memory to which a gathering send points. The kernel has copied it once the entry is submitted
/// (IORING_FEAT_SUBMIT_STABLE).
struct Gather {
    vectors: [libc::iovec; GATHER_MAX],
    header: libc::msghdr,
}

/// Options and addresses to which entries point. They are boxed and never change.
struct Constants {
    upstream: SockaddrStorage,
    on: libc::c_int,
    reset: libc::linger,
}

/// The ring and all memory to which its operations point.
pub(super) struct Ring {
    ring: IoUring,
    provided: NonNull<BufRingEntry>,
    memory: NonNull<u8>,
    constants: Box<Constants>,
    #[expect(clippy::vec_box, reason = "a submitted header keeps its address while the table grows")]
    gathers: Vec<Box<Gather>>,
    gathers_used: usize,
    /// Buffers that the kernel does not have. The last one given back is used first, since it is still in the
    /// cache.
    free: Vec<u16>,
    /// For each entry of the provided ring, the last buffer put there. `places` is the reverse. A bundle
    /// fills buffers in the ring's order.
    order: Vec<u16>,
    places: Vec<u16>,
    buffers: u16,
    buffer_size: u32,
    /// How many buffers the kernel should have.
    offer: u16,
    /// How many buffers the kernel has.
    offered: u16,
    tail: u16,
    enters: u64,
    completions: u64,
}

impl Ring {
    /// A ring for the calling thread with `2 * connections` direct descriptors. Accepted connections take the
    /// first half.
    pub(super) fn new(
        entries: u32,
        connections: u32,
        buffers: u16,
        buffer_size: u16,
        upstream: SocketAddr,
    ) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_no_sqarray()
            .setup_cqsize(entries * 4)
            .dontfork()
            .build(entries)?;
        if !ring.params().is_feature_submit_stable() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "io_uring without SUBMIT_STABLE"));
        }
        ring.submitter().register_files_sparse(connections * 2)?;
        limit_allocation(ring.as_raw_fd(), connections)?;
        let provided: NonNull<BufRingEntry> = map(usize::from(buffers) * size_of::<BufRingEntry>())?.cast();
        let memory = map((usize::from(buffers) * usize::from(buffer_size)).next_multiple_of(HUGE_PAGE))?;
        // SAFETY: the mapping is page-aligned, holds `buffers` zeroed entries and is never unmapped.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(provided.as_ptr() as u64, buffers, GROUP, 0)
        }?;
        Ok(Self {
            ring,
            provided,
            memory,
            constants: Box::new(Constants {
                upstream: upstream.into(),
                on: 1,
                reset: libc::linger { l_onoff: 1, l_linger: 0 },
            }),
            gathers: Vec::new(),
            gathers_used: 0,
            free: (0..buffers).rev().collect(),
            order: vec![0; usize::from(buffers)],
            places: vec![0; usize::from(buffers)],
            buffers,
            buffer_size: u32::from(buffer_size),
            offer: buffers.min(256),
            offered: 0,
            tail: 0,
            enters: 0,
            completions: 0,
        })
    }

    pub(super) const fn enters(&self) -> u64 {
        self.enters
    }

    pub(super) const fn completions(&self) -> u64 {
        self.completions
    }

    /// How many buffers hold no waiting bytes. The kernel may have some of them.
    pub(super) fn unused(&self) -> usize {
        self.free.len() + usize::from(self.offered)
    }

    /// Offers more buffers from now on, since the kernel found none.
    pub(super) fn offer_more(&mut self) {
        self.offer = self.offer.saturating_mul(2).min(self.buffers);
    }

    /// Submits the queued entries, waits for a completion, and takes all completions.
    pub(super) fn turn(&mut self, into: &mut Vec<cqueue::Entry>) -> io::Result<()> {
        self.give_buffers();
        self.enter(1)?;
        if self.ring.submission().is_empty() {
            self.gathers_used = 0;
        }
        into.extend(self.ring.completion());
        self.completions += into.len() as u64;
        Ok(())
    }

    fn enter(&mut self, wait: usize) -> io::Result<()> {
        self.enters += 1;
        match self.ring.submit_and_wait(wait) {
            Ok(_) => Ok(()),
            // A signal came, or the completion queue must be emptied first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the buffers that a completion names from the kernel, in the order of their bytes.
    pub(super) fn take(&mut self, completion: &cqueue::Entry, mut each: impl FnMut(Chunk)) {
        let Some(first) = cqueue::buffer_select(completion.flags()) else { return };
        let mut left = u32::try_from(completion.result()).unwrap_or(0);
        let mut place = usize::from(self.places[usize::from(first)]);
        if left == 0 {
            self.offered -= 1;
            self.free.push(first);
        }
        while left > 0 {
            let length = left.min(self.buffer_size);
            self.offered -= 1;
            each(Chunk { buffer: self.order[place], length: length as u16 });
            left -= length;
            place = (place + 1) & usize::from(self.buffers - 1);
        }
    }

    pub(super) fn give_back(&mut self, chunk: Chunk) {
        self.free.push(chunk.buffer);
    }

    fn give_buffers(&mut self) {
        let before = self.tail;
        while self.offered < self.offer
            && let Some(buffer) = self.free.pop()
        {
            let address = self.address(buffer);
            let index = usize::from(self.tail & (self.buffers - 1));
            self.order[index] = buffer;
            self.places[usize::from(buffer)] = index as u16;
            // SAFETY: `index` is below the mapping's count of entries.
            let mut entry = unsafe { self.provided.add(index) };
            // SAFETY: the kernel reads an entry only after the tail has passed it. There are no more buffers
            // than entries, so this entry is ours alone. It holds plain integers.
            let entry = unsafe { entry.as_mut() };
            entry.set_addr(address as u64);
            entry.set_len(self.buffer_size);
            entry.set_bid(buffer);
            self.tail = self.tail.wrapping_add(1);
            self.offered += 1;
        }
        if self.tail != before {
            // SAFETY: the tail lies in the first entry, which is mapped.
            let tail = unsafe { BufRingEntry::tail(self.provided.as_ptr()) };
            // SAFETY: the tail is aligned, mapped for ever, and only read by the kernel. The interface asks
            // for atomic access.
            unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
        }
    }

    fn address(&self, buffer: u16) -> *mut u8 {
        self.memory.as_ptr().wrapping_add(usize::from(buffer) * self.buffer_size as usize)
    }

    /// Makes room for a chain of entries. A submission in between would cut the chain.
    fn room_for(&mut self, entries: usize) -> io::Result<()> {
        loop {
            let queue = self.ring.submission();
            if queue.capacity() - queue.len() >= entries {
                return Ok(());
            }
            drop(queue);
            self.enter(0)?;
        }
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: entries point to buffer memory and constants, which live as long as the ring, and to
        // gathers, which stay until they are submitted. The kernel checks descriptors itself.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(0)?;
        }
        Ok(())
    }

    /// Accepts into direct descriptors until cancelled.
    pub(super) fn accept(&mut self, listener: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_raw_fd())).allocate_file_index(true).build();
        self.push(&entry.user_data(token))
    }

    /// Completes each time the descriptor becomes readable.
    pub(super) fn watch(&mut self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        self.push(&entry.user_data(token))
    }

    /// Opens and connects an upstream socket as direct descriptor `index`. The socket, the option and the
    /// connect complete separately.
    pub(super) fn open(&mut self, index: u32, tokens: [u64; 3]) -> io::Result<()> {
        let address = &self.constants.upstream;
        let family = if address.as_sockaddr_in().is_some() { libc::AF_INET } else { libc::AF_INET6 };
        let slot = DestinationSlot::try_from_slot_target(index).map_err(|_| io::ErrorKind::InvalidInput)?;
        let socket = opcode::Socket::new(family, libc::SOCK_STREAM, 0).file_index(Some(slot)).build();
        let on = &raw const self.constants.on;
        let option = set(index, libc::IPPROTO_TCP, libc::TCP_NODELAY, on.cast(), size_of::<libc::c_int>());
        let connect = opcode::Connect::new(Fixed(index), address.as_ptr(), address.len()).build();
        self.room_for(3)?;
        self.push(&socket.flags(Flags::IO_LINK).user_data(tokens[0]))?;
        self.push(&option.flags(Flags::IO_LINK).user_data(tokens[1]))?;
        self.push(&connect.user_data(tokens[2]))
    }

    /// Receives until the end, an error, or a lack of buffers.
    pub(super) fn receive(&mut self, index: u32, token: u64) -> io::Result<()> {
        self.push(&opcode::RecvMultiBundle::new(Fixed(index), GROUP).build().user_data(token))
    }

    /// Sends the whole chunk or fails.
    pub(super) fn send(&mut self, index: u32, chunk: Chunk, token: u64) -> io::Result<()> {
        let address = self.address(chunk.buffer);
        let entry = opcode::Send::new(Fixed(index), address, u32::from(chunk.length))
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(&entry.user_data(token))
    }

    /// Sends several whole chunks, at most `GATHER_MAX`, or fails.
    pub(super) fn send_several(
        &mut self,
        index: u32,
        chunks: impl Iterator<Item = Chunk>,
        token: u64,
    ) -> io::Result<()> {
        if self.gathers_used == self.gathers.len() {
            // SAFETY: plain integers and pointers, for which all zeros is a valid, empty value.
            self.gathers.push(Box::new(unsafe { std::mem::zeroed() }));
        }
        let mut count = 0;
        for (place, chunk) in chunks.take(GATHER_MAX).enumerate() {
            let base = self.address(chunk.buffer).cast();
            self.gathers[self.gathers_used].vectors[place] =
                libc::iovec { iov_base: base, iov_len: usize::from(chunk.length) };
            count = place + 1;
        }
        let gather = &mut self.gathers[self.gathers_used];
        self.gathers_used += 1;
        gather.header.msg_iov = gather.vectors.as_mut_ptr();
        gather.header.msg_iovlen = count;
        let flags = (libc::MSG_WAITALL | libc::MSG_NOSIGNAL) as u32;
        let entry = opcode::SendMsg::new(Fixed(index), &raw const gather.header).flags(flags).build();
        self.push(&entry.user_data(token))
    }

    pub(super) fn shutdown(&mut self, index: u32, token: u64) -> io::Result<()> {
        self.push(&opcode::Shutdown::new(Fixed(index), libc::SHUT_WR).build().user_data(token))
    }

    /// Cancels the operation that has this token.
    pub(super) fn cancel(&mut self, target: u64, token: u64) -> io::Result<()> {
        self.push(&opcode::AsyncCancel2::new(CancelBuilder::user_data(target)).build().user_data(token))
    }

    /// Makes a later close send a reset.
    pub(super) fn reset_on_close(&mut self, index: u32, token: u64) -> io::Result<()> {
        let reset = &raw const self.constants.reset;
        let entry = set(index, libc::SOL_SOCKET, libc::SO_LINGER, reset.cast(), size_of::<libc::linger>());
        self.push(&entry.user_data(token))
    }

    pub(super) fn close(&mut self, index: u32, token: u64) -> io::Result<()> {
        self.push(&opcode::Close::new(Fixed(index)).build().user_data(token))
    }
}

/// `value` must live until the operation's completion.
fn set(index: u32, level: i32, name: i32, value: *const libc::c_void, length: usize) -> Entry {
    opcode::SetSockOpt::new(Fixed(index), level as u32, name as u32, value, length as u32).build()
}

/// Limits the direct descriptors of accepted sockets to those below `count`. The relay numbers the rest
/// itself.
fn limit_allocation(ring: RawFd, count: u32) -> io::Result<()> {
    // struct io_uring_file_index_range: off, len, resv.
    let range: [u32; 4] = [0, count, 0, 0];
    // SAFETY: the kernel reads 16 bytes from `range`, which has that many. The crate has no call for this.
    let result = unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring, REGISTER_FILE_ALLOC_RANGE, range.as_ptr(), 0)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Zeroed memory that is never unmapped, since the kernel may use it until a dropped ring's last operation is
/// over.
fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    let length = NonZeroUsize::new(bytes).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: a fresh anonymous mapping at an address that the kernel chooses touches no existing memory.
    let memory = unsafe {
        mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
    }?;
    if bytes >= HUGE_PAGE {
        // SAFETY: advice about a mapping of our own; a refusal only costs speed.
        let _ = unsafe { madvise(memory, bytes, MmapAdvise::MADV_HUGEPAGE) };
    }
    Ok(memory.cast())
}
