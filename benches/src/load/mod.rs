//! HTTP/1.1 load that wrk and h2load cannot make: requests at a fixed rate, and many idle connections.

pub mod arrivals;
pub mod histogram;
pub mod hold;
mod poll;
mod response;
pub mod tls;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};

/// Lets this process open as many descriptors as the hard limit allows.
///
/// # Errors
/// getrlimit(2) or setrlimit(2) fails.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// A non-blocking socket that connects to `target`. It becomes writable when the connect is over.
fn start_connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    use std::os::fd::AsRawFd;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    if let Some(source) = source {
        // The port is chosen at the connect, when both addresses are known, so each source has all ports.
        setsockopt(&fd, sockopt::IpBindAddressNoPort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(target)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
        Err(error) => Err(error.into()),
    }
}

/// The request that a connection repeats.
fn request(target: SocketAddr, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: sluice-load\r\nAccept: */*\r\n\r\n")
        .into_bytes()
}
