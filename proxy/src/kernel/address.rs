//! Addresses in the form in which maps hold them.

use std::net::{IpAddr, SocketAddr};

use proxy_common::ListenerKey;

/// An address as both programs look it up.
pub(super) fn listener_key(address: SocketAddr) -> ListenerKey {
    ListenerKey { address: mapped(address.ip()), port: u32::from(address.port()) }
}

/// IPv4 as IPv4-mapped IPv6, in network order.
pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
