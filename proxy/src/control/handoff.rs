//! The channel between supervisor and data plane: one Unix SEQPACKET socket pair, one JSON message per
//! packet, descriptors as SCM_RIGHTS (unix(7), cmsg(3)). The kernel takes at most 253 descriptors in one
//! message, so many travel in numbered batches.
#![allow(
    unsafe_code,
    reason = "received descriptors are raw numbers in a control message, which only recvmsg(2) vouches for"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::unix::AsyncFd;

/// Descriptors in one message.
pub const DESCRIPTORS_MAX: usize = 250;
/// Bytes of one message. Longer content travels in a sealed memfd.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Room for the kernel's most descriptors in one message, rounded up to words so that the buffer is aligned
/// for `cmsghdr`.
const CONTROL_WORDS: usize = (size_of::<libc::cmsghdr>() + 253 * size_of::<RawFd>()).div_ceil(8) + 2;

/// Why nothing was sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The other end is gone.
    #[error("the other end closed the channel")]
    Closed,
    /// Nothing to read, or no room to write; poll and try again.
    #[error("the channel is not ready")]
    WouldBlock,
    /// More than `MESSAGE_BYTES_MAX` bytes.
    #[error("a message of more than {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    /// More descriptors than one message carries, or than the receiver asked for, or than it may hold.
    #[error("more descriptors than expected, or than this process may hold")]
    TooManyDescriptors,
    /// A descriptor that the message does not go with.
    #[error("a descriptor that does not belong to its message")]
    Stray,
    /// Not a message that this side knows.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Another error.
    #[error("channel: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ChannelError {
    fn from(errno: Errno) -> Self {
        match errno {
            // ETOOMANYREFS: too many descriptors in flight; the receiver takes them out as it reads.
            Errno::EAGAIN | Errno::ETOOMANYREFS | Errno::ENOBUFS => Self::WouldBlock,
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            Errno::EMSGSIZE => Self::TooLong,
            other => Self::Io(other.into()),
        }
    }
}

/// One end. Never blocks.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// A received message and the descriptors that came with it.
#[derive(Debug)]
pub struct Received<M> {
    /// The message.
    pub message: M,
    /// Its descriptors, close-on-exec; dropping closes them.
    pub descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// Both ends, close-on-exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self(one), Self(other)))
    }

    /// Registers with the tokio runtime that we are in.
    ///
    /// # Errors
    /// When the reactor does not take it.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: `as_raw_fd` always names the descriptor that `self` owns, which stays open until the
        // AsyncFd drops it, after it has deregistered it.
        unsafe { AsyncFd::register(self) }.map_err(io::Error::from)
    }

    /// Sends a message with its descriptors, whole or not at all.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ChannelError> {
        let bytes =
            serde_json::to_vec(message).map_err(|error| ChannelError::Malformed(error.to_string()))?;
        self.send_bytes(&bytes, descriptors)
    }

    fn send_bytes(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(ChannelError::TooLong);
        }
        if descriptors.len() > DESCRIPTORS_MAX {
            return Err(ChannelError::TooManyDescriptors);
        }
        let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            match sendmsg::<()>(self.0.as_raw_fd(), &[io::IoSlice::new(bytes)], control, flags, None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The next message, with at most `descriptors_max` descriptors. Every error but `WouldBlock` means that
    /// the other end is gone or does not keep to the protocol; nothing that it sent stays open then.
    pub fn receive<M: DeserializeOwned>(&self, descriptors_max: usize) -> Result<Received<M>, ChannelError> {
        let mut descriptors = Vec::new();
        let message = self.receive_into(&mut descriptors, descriptors_max)?;
        Ok(Received { message, descriptors })
    }

    /// The same for a sender that is not trusted. All descriptors that came are added to `descriptors`, also
    /// those of a message that is refused: the caller decides when they are closed.
    pub fn receive_into<M: DeserializeOwned>(
        &self,
        descriptors: &mut Vec<OwnedFd>,
        descriptors_max: usize,
    ) -> Result<M, ChannelError> {
        // One byte more than allowed, so that a longer message shows.
        let mut bytes = vec![0; MESSAGE_BYTES_MAX + 1];
        let (length, truncated, mut came) = self.receive_bytes(&mut bytes)?;
        let count = came.len();
        descriptors.append(&mut came);
        if length == 0 && count == 0 {
            return Err(ChannelError::Closed);
        }
        if length > MESSAGE_BYTES_MAX {
            return Err(ChannelError::TooLong);
        }
        if truncated || count > descriptors_max {
            return Err(ChannelError::TooManyDescriptors);
        }
        serde_json::from_slice(&bytes[..length]).map_err(|error| ChannelError::Malformed(error.to_string()))
    }

    /// Throws the next message away, however it looks; its descriptors. `None`: none waits.
    #[must_use]
    pub fn discard(&self) -> Option<Vec<OwnedFd>> {
        self.receive_bytes(&mut [0; 1]).ok().map(|(_, _, descriptors)| descriptors)
    }

    /// The length, whether descriptors were cut off, and the descriptors that arrived.
    fn receive_bytes(&self, bytes: &mut [u8]) -> Result<(usize, bool, Vec<OwnedFd>), ChannelError> {
        let mut control = [0_u64; CONTROL_WORDS];
        let mut slice = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: `msghdr` is plain data for which all zeroes is a valid value (no name, no buffers).
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut slice;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = size_of_val(&control);
        let length = loop {
            // SAFETY: `header` points to one iovec over `bytes` and to `control`, both writable for the
            // lengths given and alive until the call returns.
            let result = unsafe {
                libc::recvmsg(
                    self.0.as_raw_fd(),
                    &raw mut header,
                    libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT,
                )
            };
            match Errno::result(result) {
                Ok(length) => break usize::try_from(length).unwrap_or_default(),
                Err(Errno::EINTR) => {}
                // The other end was closed while it had something to read. That is told once, before what it
                // said itself; after that comes the end.
                Err(Errno::ECONNRESET) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let descriptors = take_descriptors(&header);
        Ok((length, header.msg_flags & libc::MSG_CTRUNC != 0, descriptors))
    }
}

/// Takes ownership of every descriptor that `recvmsg` put into the control buffer, also of a truncated
/// message: nothing leaks.
fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut descriptors = Vec::new();
    // SAFETY: the kernel filled `msg_control` and set `msg_controllen`; CMSG_FIRSTHDR stays within them or
    // returns null.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !next.is_null() {
        // SAFETY: not null, so it points to a whole header in the control buffer, which is aligned to 8
        // bytes.
        let current = unsafe { *next };
        if current.cmsg_level == libc::SOL_SOCKET && current.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: CMSG_LEN(0) only computes the size of a header.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = current.cmsg_len.saturating_sub(empty) / size_of::<RawFd>();
            // SAFETY: `next` is a whole header, and its data begins right after it.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors from `data` on.
                let place = unsafe { data.add(index) };
                // SAFETY: as above; `read_unaligned` asks for no alignment.
                let raw = unsafe { place.read_unaligned() };
                // SAFETY: `recvmsg` has just made this descriptor for us, and nobody else knows its number.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: `next` came from CMSG_FIRSTHDR or CMSG_NXTHDR on this same header.
        next = unsafe { libc::CMSG_NXTHDR(header, next) };
    }
    descriptors
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Channel {
    /// For an end that was inherited. It must be a SEQPACKET socket; anything else fails at the first
    /// message.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

#[cfg(test)]
mod tests;
