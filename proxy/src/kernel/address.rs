//! Addresses in the form that maps hold.

use std::net::{IpAddr, SocketAddr};

use proxy_common::ListenerKey;

/// A listener's address as the guard and steering look it up.
pub(super) fn listener_key(address: SocketAddr) -> ListenerKey {
    ListenerKey { address: mapped(address.ip()), port: u32::from(address.port()) }
}

/// An address in network order; IPv4 becomes IPv4-mapped IPv6.
pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
