//! Submission entries, one function for each operation (io_uring_enter(2)), and the memory that some of them
//! point to. The ring that pushes an entry keeps this memory until the operation's final completion.
#![allow(unsafe_code, reason = "an all-zero msghdr")]

use std::net::SocketAddr;
use std::os::fd::RawFd;

use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{CancelBuilder, Fd};

use super::Chunk;
use super::token::Token;

/// The memory a send points to. Boxed by its owner, so that it stays where it is.
pub(super) struct SendMemory {
    /// The bytes.
    pub(super) chunks: Vec<Chunk>,
    vectors: Vec<libc::iovec>,
    header: libc::msghdr,
}

impl SendMemory {
    pub(super) fn new() -> Self {
        // SAFETY: msghdr is plain integers and pointers, for which all zeros is a valid, empty value.
        let header = unsafe { std::mem::zeroed() };
        Self { chunks: Vec::new(), vectors: Vec::new(), header }
    }
}

/// The memory a connect points to.
pub(super) struct ConnectMemory {
    address: nix::sys::socket::SockaddrStorage,
}

impl ConnectMemory {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address: address.into() }
    }
}

/// Accepts until cancelled. Not SOCK_NONBLOCK: on a non-blocking socket io_uring reports EAGAIN instead of
/// waiting.
pub(super) fn accept(fd: RawFd) -> Entry {
    opcode::AcceptMulti::new(Fd(fd)).flags(libc::SOCK_CLOEXEC).build()
}

pub(super) fn receive(fd: RawFd, multishot: bool, group: u16) -> Entry {
    if multishot {
        opcode::RecvMulti::new(Fd(fd), group).build()
    } else {
        opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
            .buf_group(group)
            .build()
            .flags(Flags::BUFFER_SELECT)
    }
}

/// Sends `memory.chunks`: one by send, several by sendmsg. Short results are wanted, so that slow progress is
/// seen as progress. `is_last`: a last segment that is not full waits for shutdown(2).
pub(super) fn send(fd: RawFd, memory: &mut SendMemory, is_last: bool) -> Entry {
    let flags = libc::MSG_NOSIGNAL | if is_last { libc::MSG_MORE } else { 0 };
    if let [chunk] = memory.chunks.as_slice() {
        // A longer chunk cannot be: a stream's high-water mark is far below 4 GiB.
        return opcode::Send::new(Fd(fd), chunk.as_ptr(), chunk.len() as u32).flags(flags).build();
    }
    memory.vectors.clear();
    memory.vectors.extend(
        memory
            .chunks
            .iter()
            .map(|chunk| libc::iovec { iov_base: chunk.as_ptr().cast_mut().cast(), iov_len: chunk.len() }),
    );
    memory.header.msg_iov = memory.vectors.as_mut_ptr();
    memory.header.msg_iovlen = memory.vectors.len();
    opcode::SendMsg::new(Fd(fd), &raw const memory.header).flags(flags as u32).build()
}

pub(super) fn connect(fd: RawFd, memory: &ConnectMemory) -> Entry {
    use nix::sys::socket::SockaddrLike;
    opcode::Connect::new(Fd(fd), memory.address.as_ptr(), memory.address.len()).build()
}

pub(super) fn close(fd: RawFd) -> Entry {
    opcode::Close::new(Fd(fd)).build()
}

pub(super) fn cancel(target: Token) -> Entry {
    opcode::AsyncCancel2::new(CancelBuilder::user_data(target.raw())).build()
}

pub(super) fn watch(fd: RawFd) -> Entry {
    opcode::PollAdd::new(Fd(fd), libc::POLLIN as u32).multi(true).build()
}
