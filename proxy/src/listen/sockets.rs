//! Listening sockets, bound by the supervisor: one per worker and address, a SO_REUSEPORT group (socket(7))
//! each, so that every worker has an accept queue of its own. IPV6_V6ONLY (ipv6(7)) is chosen so that `[::]`
//! also takes IPv4 unless the port has an IPv4 listener.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, getsockname,
    getsockopt, listen, setsockopt, shutdown, socket, sockopt,
};

use super::defer::{defer_accept, disconnect};
use super::identity::{ListenKey, Transport};
use super::model::Listener;
use super::set::Listeners;

/// `BindError::what` of the admin listener.
const ADMIN: &str = "admin";
/// Connections that wait for the admin endpoints.
const ADMIN_BACKLOG: u32 = 64;

/// Why an address is not listened on.
#[derive(Debug, thiserror::Error)]
#[error("{what} {address}: {}", self.explain())]
pub struct BindError {
    /// Whose address.
    pub what: String,
    /// The address.
    pub address: SocketAddr,
    /// The kernel's error.
    pub errno: Errno,
}

impl BindError {
    /// The reason, and advice.
    #[must_use]
    pub fn explain(&self) -> &'static str {
        match self.errno {
            Errno::EADDRINUSE => "the address is in use by another process (`ss -ltnp` names it)",
            Errno::EACCES => {
                "a port below net.ipv4.ip_unprivileged_port_start needs root or CAP_NET_BIND_SERVICE"
            }
            Errno::EADDRNOTAVAIL if self.what == ADMIN => {
                "this host has no such address now (`ip address` lists those that it has)"
            }
            // An IPv6 address that is still tested (`tentative`) counts as none.
            Errno::EADDRNOTAVAIL => {
                "this host has no such address now (`ip address` lists those that it has); \
                 listener.freebind = true listens before the address is there"
            }
            Errno::EAFNOSUPPORT => "this kernel has no such address family (IPv6 disabled?)",
            Errno::EMFILE | Errno::ENFILE => "no descriptor left; raise LimitNOFILE= or `ulimit -n`",
            other => other.desc(),
        }
    }
}

/// One address of a listener.
#[derive(Debug)]
pub struct Bound {
    /// Its address is as bound: a port of 0 is replaced by the kernel's choice.
    pub key: ListenKey,
    /// Index = worker.
    pub sockets: Vec<OwnedFd>,
    group: Group,
}

impl Bound {
    /// Has every socket listen that does not, and takes back what else its other holders may have changed.
    /// Returns how many did not listen and do now.
    ///
    /// # Errors
    /// Of the first socket that cannot listen; the others are mended.
    pub fn mend(&self) -> (usize, nix::Result<()>) {
        let (mut mended, mut outcome) = (0, Ok(()));
        for fd in &self.sockets {
            match self.group.mend(fd) {
                Ok(listened) => mended += usize::from(!listened),
                Err(errno) => outcome = outcome.and(Err(errno)),
            }
        }
        (mended, outcome)
    }

    /// Ends listening; `mend` begins it anew. What another holder did to the sockets is forgotten, and who
    /// waits in their queues is reset.
    ///
    /// # Errors
    /// Of the first socket that refuses.
    pub fn disconnect(&self) -> nix::Result<()> {
        self.sockets.iter().try_for_each(disconnect)
    }
}

/// The same for the admin listener, whose holder may have it non-blocking. Returns whether it listened.
///
/// # Errors
/// When it cannot listen.
pub fn mend_admin(address: SocketAddr, fd: &OwnedFd) -> nix::Result<bool> {
    take_options_back(fd)?;
    let listened = listens(fd, address);
    if !listened {
        disconnect(fd)?;
        listen(fd, backlog(ADMIN_BACKLOG))?;
    }
    Ok(listened)
}

/// As `Bound::disconnect`.
///
/// # Errors
/// When it refuses.
pub fn disconnect_admin(fd: &OwnedFd) -> nix::Result<()> {
    disconnect(fd)
}

/// Accepted sockets inherit these options, and every holder of a listening socket can set them. With
/// SO_LINGER a successor's connections would be reset, or keep a worker waiting, when they are closed.
fn take_options_back(fd: &OwnedFd) -> nix::Result<()> {
    setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 })?;
    setsockopt(fd, sockopt::TcpNoDelay, &true)
}

/// Whether a socket listens, on the port of this address.
fn listens(fd: &OwnedFd, address: SocketAddr) -> bool {
    getsockopt(fd, sockopt::AcceptConn) == Ok(true)
        && local_address(fd.as_fd(), address).is_ok_and(|found| found == address)
}

/// Binds and listens on every address of every listener, once per worker.
pub fn bind_all(listeners: &Listeners, workers: usize) -> Result<Vec<Bound>, BindError> {
    let all: Vec<SocketAddr> = listeners.iter().flat_map(|(_, listener)| addresses(listener)).collect();
    let mut bound = Vec::with_capacity(all.len());
    for (id, listener) in listeners.iter() {
        for group in groups(listener, &all) {
            let (group, sockets) = group.bind(workers).map_err(|errno| group.error(listener, errno))?;
            let key = ListenKey { listener: id, address: group.address, transport: Transport::Tcp };
            bound.push(Bound { key, sockets, group });
        }
    }
    Ok(bound)
}

/// Tries every address, and the admin's, and takes none: why it could not be listened on.
#[must_use]
pub fn probe(listeners: &[Arc<Listener>], admin: Option<SocketAddr>) -> Vec<BindError> {
    let all: Vec<SocketAddr> = listeners.iter().flat_map(|listener| addresses(listener)).collect();
    let of_listeners = listeners.iter().flat_map(|listener| {
        let refused = |group: &Group| group.probe().err().map(|errno| group.error(listener, errno));
        groups(listener, &all).filter_map(|group| refused(&group)).collect::<Vec<_>>()
    });
    let of_admin = admin.and_then(|address| bind_admin(address).err());
    of_listeners.chain(of_admin).collect()
}

/// Binds the admin listener: one socket, no group.
pub fn bind_admin(address: SocketAddr) -> Result<(SocketAddr, OwnedFd), BindError> {
    let error = |errno| BindError { what: ADMIN.into(), address, errno };
    let make = || {
        let fd = open(address, is_v6only(address, &[address]), false)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        listen(&fd, backlog(ADMIN_BACKLOG))?;
        Ok((local_address(fd.as_fd(), address)?, fd))
    };
    make().map_err(error)
}

/// Shuts listening sockets down for every process that holds them: new clients are refused from now on.
/// Closing would not do, since the data plane holds duplicates.
pub fn retire(bound: &[Bound]) {
    for fd in bound.iter().flat_map(|bound| &bound.sockets) {
        // ENOTCONN: it was shut down before.
        let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
    }
}

/// One for each address of a listener; `all` are those of every listener.
fn groups(listener: &Listener, all: &[SocketAddr]) -> impl Iterator<Item = Group> {
    addresses(listener).map(|address| Group {
        address,
        v6only: is_v6only(address, all),
        backlog: backlog(listener.backlog),
        defer_accept: listener.defer_accept,
        freebind: listener.freebind,
    })
}

fn addresses(listener: &Listener) -> impl Iterator<Item = SocketAddr> {
    listener.addresses.iter().copied().map(canonical)
}

/// IPv4-mapped IPv6 addresses are IPv4 addresses.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) if address.is_ipv6() => SocketAddr::new(ip.into(), address.port()),
        _ => address,
    }
}

/// Whether `address` must leave IPv4 alone: all but `[::]` do by nature, and `[::]` does when an IPv4
/// listener has its port.
fn is_v6only(address: SocketAddr, all: &[SocketAddr]) -> bool {
    address.is_ipv6()
        && (!address.ip().is_unspecified()
            || all.iter().any(|other| other.is_ipv4() && other.port() == address.port()))
}

/// The kernel cuts it to net.core.somaxconn in any case.
fn backlog(wanted: u32) -> Backlog {
    i32::try_from(wanted).ok().and_then(|wanted| Backlog::new(wanted).ok()).unwrap_or(Backlog::MAXCONN)
}

/// The settings that the sockets of one address share.
#[derive(Clone, Copy, Debug)]
struct Group {
    address: SocketAddr,
    v6only: bool,
    backlog: Backlog,
    defer_accept: bool,
    freebind: bool,
}

impl Group {
    fn error(&self, listener: &Listener, errno: Errno) -> BindError {
        BindError { what: format!("listener \"{}\"", listener.name), address: self.address, errno }
    }

    /// The address with the port that the kernel chose, if that was left to it. A socket without SO_REUSEPORT
    /// finds out whether anybody has the port, another Sluice of the same user included, whose group ours
    /// would join without a word. It is closed before the group is bound.
    fn probe(&self) -> nix::Result<SocketAddr> {
        let probe = open(self.address, self.v6only, self.freebind)?;
        bind(probe.as_raw_fd(), &SockaddrStorage::from(self.address))?;
        local_address(probe.as_fd(), self.address)
    }

    /// The group with the port that the kernel chose, if that was left to it.
    fn bind(self, workers: usize) -> nix::Result<(Self, Vec<OwnedFd>)> {
        let group = Self { address: self.probe()?, ..self };
        let sockets: Vec<OwnedFd> = (0..workers).map(|_| group.join()).collect::<nix::Result<_>>()?;
        // Listening begins when all are bound, so the group is whole before the first connection.
        sockets.iter().try_for_each(|fd| group.listen(fd))?;
        Ok((group, sockets))
    }

    /// A socket of the group, bound.
    fn join(&self) -> nix::Result<OwnedFd> {
        let fd = open(self.address, self.v6only, self.freebind)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(self.address))?;
        Ok(fd)
    }

    /// On a socket that listens already, it sets the backlog.
    fn listen(&self, fd: &OwnedFd) -> nix::Result<()> {
        if self.defer_accept {
            defer_accept(fd)?;
        }
        listen(fd, self.backlog)
    }

    /// Whether the socket listened. A socket that was shut down keeps its port, and its place in the group.
    fn mend(&self, fd: &OwnedFd) -> nix::Result<bool> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_NONBLOCK) {
            fcntl(fd, FcntlArg::F_SETFL(flags.difference(OFlag::O_NONBLOCK)))?;
        }
        take_options_back(fd)?;
        let listened = listens(fd, self.address);
        if !listened {
            disconnect(fd)?;
        }
        self.listen(fd)?;
        if listens(fd, self.address) { Ok(listened) } else { Err(Errno::EADDRNOTAVAIL) }
    }
}

/// A TCP socket, close-on-exec, that may take an address over from connections in TIME_WAIT. Not O_NONBLOCK:
/// io_uring would report EAGAIN on such a socket instead of waiting for a connection.
fn open(address: SocketAddr, v6only: bool, freebind: bool) -> nix::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    // Accepted sockets inherit it, which spares one system call for each.
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only)?;
    }
    if freebind {
        // IPv6 sockets take it at this level too.
        setsockopt(&fd, sockopt::IpFreebind, &true)?;
    }
    Ok(fd)
}

fn local_address(fd: BorrowedFd<'_>, wanted: SocketAddr) -> nix::Result<SocketAddr> {
    let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let port = name.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::port);
    let port = port
        .or_else(|| name.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::port))
        .ok_or(Errno::EAFNOSUPPORT)?;
    let mut address = wanted;
    address.set_port(port);
    Ok(address)
}

#[cfg(test)]
mod tests;
