//! Ends the connections between one source and our listeners (sock_diag(7), SOCK_DESTROY). The guard drops
//! the source's packets already; cutting spares client and worker the wait for a timeout. The kernel filters
//! the dump, so the cost is one walk over its table of connections.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use nix::sys::socket::SockProtocol;

use super::netlink::{BYTES_MAX, Netlink};

/// At most so many connections are ended at once. Further ones end by their timeouts, since their packets are
/// dropped.
const CUT_MAX: usize = 1 << 16;

/// NLMSG_ERROR, NLMSG_DONE, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY.
const ERROR: u16 = 2;
const DONE: u16 = 3;
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// NLM_F_REQUEST with NLM_F_ACK, or with NLM_F_DUMP.
const ACKNOWLEDGED: u16 = 1 | 4;
const DUMP: u16 = 1 | 0x300;
/// Bytes of `struct nlmsghdr`; in `struct inet_diag_msg`, where `id` begins and how long it is.
const HEADER: usize = 16;
const ID_AT: usize = 4;
const ID: usize = 48;
/// INET_DIAG_REQ_BYTECODE, INET_DIAG_BC_D_COND.
const BYTECODE: u16 = 1;
const DESTINATION: u8 = 8;
/// A bit for each TCP state, except SYN_SENT, TIME_WAIT, CLOSE and LISTEN: no connection of a client is in
/// these.
const STATES: u32 = 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;

/// Ends every connection from `source` to `listeners`; returns the number of connections it ended.
///
/// # Errors
/// When the kernel cannot do it (CONFIG_INET_DIAG_DESTROY) or forbids it. The connections end by their
/// timeouts then.
pub fn cut(source: IpNet, listeners: &[SocketAddr]) -> io::Result<usize> {
    let netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    // An IPv4 client may be connected to a socket of either family.
    let families: &[i32] =
        if source.addr().is_ipv4() { &[libc::AF_INET, libc::AF_INET6] } else { &[libc::AF_INET6] };
    let mut found = Vec::new();
    for &family in families {
        netlink.send(&message(BY_FAMILY, DUMP, family as u8, STATES, &[0; ID], &condition(source)))?;
        collect(&netlink, listeners, &mut found)?;
    }
    let mut ended = 0;
    for (family, id) in &found {
        netlink.send(&message(DESTROY, ACKNOWLEDGED, *family, u32::MAX, id, &[]))?;
        match error_of(netlink.receive(&mut [0; 4096])?) {
            Ok(()) => ended += 1,
            // The connection ended by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ended)
}

/// A `struct inet_diag_req_v2` with its header and one attribute.
fn message(kind: u16, flags: u16, family: u8, states: u32, id: &[u8; ID], bytecode: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one request at a time on one socket
    message.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend(states.to_ne_bytes());
    message.extend(id);
    if !bytecode.is_empty() {
        message.extend((4 + bytecode.len() as u16).to_ne_bytes());
        message.extend(BYTECODE.to_ne_bytes());
        message.extend(bytecode);
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// The condition "the peer is in `source`": `struct inet_diag_bc_op` and `struct inet_diag_hostcond`.
fn condition(source: IpNet) -> Vec<u8> {
    let (family, octets) = match source.network() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let length = (4 + 8 + octets.len()) as u8;
    let mut condition = vec![DESTINATION, length];
    // Where the filter continues for other peers: beyond its end, which skips the socket.
    condition.extend((u16::from(length) + 4).to_ne_bytes());
    condition.extend([family as u8, source.prefix_len(), 0, 0]);
    condition.extend((-1i32).to_ne_bytes()); // any port
    condition.extend(octets);
    condition
}

/// Reads a dump to its end and keeps the connections to our listeners.
fn collect(netlink: &Netlink, listeners: &[SocketAddr], into: &mut Vec<(u8, [u8; ID])>) -> io::Result<()> {
    let mut buffer = vec![0; BYTES_MAX];
    loop {
        let mut rest = netlink.receive(&mut buffer)?;
        if rest.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        while let Some(header) = rest.first_chunk::<HEADER>() {
            let [a, b, c, d, kind_low, kind_high, ..] = *header;
            let length = u32::from_ne_bytes([a, b, c, d]) as usize;
            let Some(message) = rest.get(..length.max(HEADER)) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            match u16::from_ne_bytes([kind_low, kind_high]) {
                DONE => return Ok(()),
                ERROR => return error_of(message),
                _ => into.extend(entry(message, listeners).filter(|_| into.len() < CUT_MAX)),
            }
            rest = rest.get(length.max(HEADER).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The connection that a message of the dump describes, if it is to one of our listeners.
fn entry(message: &[u8], listeners: &[SocketAddr]) -> Option<(u8, [u8; ID])> {
    let body = message.get(HEADER..)?;
    let family = *body.first()?;
    let id: [u8; ID] = body.get(ID_AT..)?.first_chunk().copied()?;
    let port = u16::from_be_bytes([id[0], id[1]]);
    let source: [u8; 16] = id.get(4..)?.first_chunk().copied()?;
    let [a, b, c, d, ..] = source;
    let local = match i32::from(family) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        _ => IpAddr::V6(Ipv6Addr::from(source)).to_canonical(),
    };
    let ours = |listener: &SocketAddr| {
        listener.port() == port && (listener.ip().is_unspecified() || listener.ip().to_canonical() == local)
    };
    listeners.iter().any(ours).then_some((family, id))
}

/// The error that an NLMSG_ERROR carries; code 0 means success.
fn error_of(message: &[u8]) -> io::Result<()> {
    let code =
        message.get(HEADER..).and_then(|body| body.first_chunk::<4>()).ok_or(io::ErrorKind::UnexpectedEof)?;
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

#[cfg(test)]
mod tests;
