//! Notices of changes of this host's interfaces and addresses (rtnetlink(7)), and the addresses themselves. A
//! notice only says that something changed: whoever is told looks at the present state. So lost notices
//! (ENOBUFS) need no other treatment than a look at everything.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnet::IpNet;
use netlink_packet_core::NetlinkBuffer;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use super::netlink::{self, BYTES_MAX, Netlink};

/// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// Datagrams taken before anything else has its turn.
const DATAGRAMS_PER_TURN: usize = 256;
/// RTM_NEWLINK, RTM_DELLINK; RTM_NEWADDR, RTM_DELADDR; RTM_NEWROUTE, RTM_DELROUTE.
const LINKS: [u16; 2] = [16, 17];
const ADDRESSES: [u16; 2] = [20, 21];
const ROUTES: [u16; 2] = [24, 25];
/// Where `struct rtmsg` has its type, and RTN_LOCAL.
const ROUTE_TYPE_AT: usize = 7;
const LOCAL: u8 = 2;

/// What may have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Interfaces were made, removed, renamed or set otherwise.
    pub links: bool,
    /// Addresses of this host came or went.
    pub locals: bool,
}

impl Changes {
    /// Everything may have.
    pub const ALL: Self = Self { links: true, locals: true };

    /// Both together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self { links: self.links || other.links, locals: self.locals || other.locals }
    }

    fn of(datagram: &[u8]) -> Self {
        let (mut changes, mut rest) = (Self::default(), datagram);
        while !rest.is_empty() {
            // What is not understood may be anything.
            let Ok(message) = NetlinkBuffer::new_checked(rest) else { return Self::ALL };
            let kind = message.message_type();
            changes.links |= LINKS.contains(&kind);
            changes.locals |= ADDRESSES.contains(&kind);
            // A router may learn thousands of routes a second that are not local.
            changes.locals |= ROUTES.contains(&kind) && message.payload().get(ROUTE_TYPE_AT) == Some(&LOCAL);
            rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        }
        changes
    }
}

/// Tells of changes in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct Follower {
    netlink: Netlink,
}

impl Follower {
    /// Begins to listen.
    ///
    /// # Errors
    /// When netlink is refused.
    pub fn new() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::follow(GROUPS)? })
    }

    /// Takes the notices that wait. Never waits itself.
    #[must_use]
    pub fn take(&self) -> Changes {
        let (mut changes, mut buffer) = (Changes::default(), vec![0; BYTES_MAX]);
        for _ in 0..DATAGRAMS_PER_TURN {
            match self.netlink.receive(&mut buffer) {
                Ok(datagram) => changes = changes.union(Changes::of(datagram)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: some are lost.
                Err(_) => changes = Changes::ALL,
            }
        }
        changes
    }
}

impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }
}

/// The addresses and prefixes that are local in this thread's network namespace, of every routing table: an
/// IPv6 address once it was found to be free (DAD), and prefixes that a route makes local (AnyIP).
///
/// # Errors
/// When netlink is refused, or says something that we do not understand.
pub fn locals() -> io::Result<BTreeSet<IpNet>> {
    let mut found = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        question.header.kind = RouteType::Local;
        match netlink::dump(SockProtocol::NetlinkRoute, &RouteNetlinkMessage::GetRoute(question)) {
            Ok(routes) => found.extend(routes.iter().filter_map(local)),
            // This kernel has no IPv6.
            Err(error)
                if family == AddressFamily::Inet6
                    && [Some(Errno::EAFNOSUPPORT as i32), Some(Errno::EOPNOTSUPP as i32)]
                        .contains(&error.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The prefix that a route makes local.
fn local(message: &RouteNetlinkMessage) -> Option<IpNet> {
    let RouteNetlinkMessage::NewRoute(route) = message else { return None };
    if route.header.kind != RouteType::Local {
        return None;
    }
    let destination = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    // A route for everything names no destination.
    let address = destination.or(match route.header.address_family {
        AddressFamily::Inet => Some(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)),
        AddressFamily::Inet6 => Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)),
        _ => None,
    })?;
    IpNet::new(address, route.header.destination_prefix_length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with a header, a body that begins with zeros, and a route's type.
    fn message(kind: u16, route_type: u8) -> Vec<u8> {
        let mut bytes = vec![0; 16 + 12];
        bytes[0] = 28;
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16 + ROUTE_TYPE_AT] = route_type;
        bytes
    }

    #[test]
    fn a_notice_says_what_to_look_at() {
        let links = Changes { links: true, locals: false };
        let locals = Changes { links: false, locals: true };
        for (kind, route_type, expected) in [
            (16, 0, links),
            (17, 0, links),
            (20, 0, locals),
            (21, 0, locals),
            (24, LOCAL, locals),
            (25, LOCAL, locals),
            (24, 1, Changes::default()),
            (28, LOCAL, Changes::default()),
        ] {
            assert_eq!(Changes::of(&message(kind, route_type)), expected, "{kind} {route_type}");
        }
        assert_eq!(Changes::of(&[message(16, 0), message(21, 0)].concat()), Changes::ALL);
        assert_eq!(Changes::of(&[]), Changes::default());
    }

    #[test]
    fn what_is_not_understood_may_be_anything() {
        let whole = message(28, 0);
        for length in 1..whole.len() {
            assert_eq!(Changes::of(&whole[..length]), Changes::ALL, "{length}");
        }
        let mut endless = whole;
        endless[0] = 0;
        assert_eq!(Changes::of(&endless), Changes::ALL);
    }

    #[test]
    fn the_loopback_is_local() {
        match locals() {
            Ok(found) => assert!(
                found.contains(&"127.0.0.0/8".parse().expect("a prefix"))
                    && found.contains(&"127.0.0.1/32".parse().expect("an address")),
                "{found:?}"
            ),
            // A sandbox may refuse netlink.
            Err(error) => assert!(
                matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT)),
                "{error}"
            ),
        }
    }
}
