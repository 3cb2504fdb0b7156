//! A descriptor of another process, taken with pidfd_getfd(2): both refer to the same open file, as
//! supervisor and data plane do with listening sockets. Also what a hostile holder of such a socket does.
#![allow(unsafe_code, reason = "neither nix nor std knows these calls")]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{SockaddrStorage, getsockname, getsockopt, sockopt};

/// A process that cannot be taken for a later one with its number.
fn open(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two numbers and no pointer.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = Errno::result(result).map(|fd| RawFd::try_from(fd).expect("a descriptor"))?;
    // SAFETY: the kernel just opened this descriptor for us, and no other owner knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn descriptor(process: &OwnedFd, fd: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three numbers and no pointer.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) };
    let fd = Errno::result(result).map(|fd| RawFd::try_from(fd).expect("a descriptor"))?;
    // SAFETY: as in `open`.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The descriptors of a process that are wanted. Needs root.
#[must_use]
pub fn descriptors(pid: u32, is_wanted: impl Fn(&OwnedFd) -> bool) -> Vec<OwnedFd> {
    let process = open(pid).expect("the process lives");
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors");
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers.filter_map(|fd| descriptor(&process, fd).ok()).filter(is_wanted).collect()
}

/// The sockets of a process that listen on this address. Needs root.
#[must_use]
pub fn listeners(pid: u32, address: SocketAddr) -> Vec<OwnedFd> {
    descriptors(pid, |fd| {
        getsockopt(fd, sockopt::AcceptConn) == Ok(true)
            && getsockname::<SockaddrStorage>(fd.as_raw_fd()) == Ok(SockaddrStorage::from(address))
    })
}

/// Ends whatever a socket does, as connect(2) with AF_UNSPEC does.
///
/// # Errors
/// Of connect(2).
pub fn disconnect(socket: &OwnedFd) -> nix::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the kernel reads the address, whose length is said, and which outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    Errno::result(result).map(drop)
}
