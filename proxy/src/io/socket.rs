//! Sockets to connect with (socket(7), ip(7)): how they are made, and given a local address.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, setsockopt, socket, sockopt,
};

/// A socket fit to connect to `address`. Not SOCK_NONBLOCK, as `sqe::accept` says.
pub(super) fn open(address: SocketAddr) -> Result<RawFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(IntoRawFd::into_raw_fd)
}

/// Has the socket connect from this local address.
pub(super) fn bind_to(socket: BorrowedFd<'_>, source: IpAddr) -> Result<(), Errno> {
    // Otherwise a port would be taken here, for one connection, whatever its peer.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    // Not a `SockaddrStorage`, whose size would not tell the family to a filter of system calls.
    match source {
        IpAddr::V4(ip) => bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(ip, 0))),
        IpAddr::V6(ip) => bind(socket.as_raw_fd(), &SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0))),
    }
}
