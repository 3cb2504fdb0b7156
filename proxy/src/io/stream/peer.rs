//! The address at the other end of a stream, as small as it can be kept: a worker holds as many as it has
//! connections.

use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// An address in two words: most are IPv4.
pub(in crate::io) enum PeerAddress {
    V4(SocketAddrV4),
    V6(Box<SocketAddrV6>),
    /// It is connected to from this local address.
    From(Box<(SocketAddr, IpAddr)>),
}

impl PeerAddress {
    pub(in crate::io) fn address(&self) -> SocketAddr {
        match self {
            Self::V4(address) => SocketAddr::V4(*address),
            Self::V6(address) => SocketAddr::V6(**address),
            Self::From(both) => both.0,
        }
    }

    /// The local address to connect from; `None`: the kernel chooses.
    pub(in crate::io) fn source(&self) -> Option<IpAddr> {
        if let Self::From(both) = self { Some(both.1) } else { None }
    }
}

impl From<SocketAddr> for PeerAddress {
    /// An IPv4-mapped address, which a socket of both families reports, is an IPv4 address from here on.
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => Self::V4(address),
            SocketAddr::V6(address) => match address.ip().to_ipv4_mapped() {
                Some(ip) => Self::V4(SocketAddrV4::new(ip, address.port())),
                None => Self::V6(Box::new(address)),
            },
        }
    }
}
