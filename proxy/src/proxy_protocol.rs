//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`), sans-IO: the header before a
//! connection's first byte, which names the client that a proxy opened the connection for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest line of version 1, its CRLF included.
const LINE_BYTES_MAX: usize = 107;
const LINE_START: &[u8] = b"PROXY ";
/// The first bytes of version 2; no HTTP request and no other protocol in use begins with them.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and transport, length of the rest.
const FIXED_BYTES: usize = 16;
const INET_BYTES: usize = 12;
const INET6_BYTES: usize = 36;
const UNIX_BYTES: usize = 216;

/// The longest header there is: version 2 has 16 bits for the length of addresses and TLVs.
pub const BYTES_MAX: usize = FIXED_BYTES + u16::MAX as usize;

/// The client that the connection was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// The proxy opened it for itself, as for a health check: the connection's own addresses hold.
    Local,
    /// A client whose address is no TCP address, or is not known (UNKNOWN, AF_UNSPEC, AF_UNIX, datagrams):
    /// the connection's own addresses hold.
    Unknown,
    /// This client, which connected to that address. IPv4-mapped IPv6 addresses are shown as IPv4.
    Tcp {
        /// The client.
        source: SocketAddr,
        /// The address that the client connected to.
        destination: SocketAddr,
    },
}

/// The result of reading the start of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The header is not whole yet.
    NeedMore,
    /// A whole header.
    Header {
        /// The header.
        header: Header,
        /// The number of its bytes, TLVs included.
        consumed: usize,
    },
}

/// Why the bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes begin like neither version.
    #[error("no PROXY header")]
    Signature,
    /// Version 1: the line does not end within 107 bytes, or not with CRLF.
    #[error("the PROXY line does not end")]
    Line,
    /// Version 1: a malformed word.
    #[error("malformed PROXY line")]
    Word,
    /// Version 2: a version, command, family or transport that does not exist.
    #[error("unknown PROXY version, command or family")]
    Kind,
    /// Version 2: shorter than its addresses.
    #[error("a PROXY header too short for its addresses")]
    Length,
}

/// Looks for a header at the start of `bytes`: the bytes of the last call, with more at their end. Once the
/// result is not `NeedMore`, more bytes do not change it.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Error> {
    if starts(bytes, SIGNATURE) {
        if bytes.len() < SIGNATURE.len() { Ok(Parsed::NeedMore) } else { parse_v2(bytes) }
    } else if starts(bytes, LINE_START) {
        parse_v1(bytes)
    } else {
        Err(Error::Signature)
    }
}

/// Whether `bytes` is `expected` as far as both go.
fn starts(bytes: &[u8], expected: &[u8]) -> bool {
    bytes.iter().zip(expected).all(|(byte, expected)| byte == expected)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Error> {
    let visible = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', visible) else {
        return if visible.len() == LINE_BYTES_MAX { Err(Error::Line) } else { Ok(Parsed::NeedMore) };
    };
    let line = visible[..end].strip_suffix(b"\r").ok_or(Error::Line)?;
    let words = line.strip_prefix(LINE_START).ok_or(Error::Word)?;
    let words = std::str::from_utf8(words).map_err(|_| Error::Word)?;
    let mut words = words.split(' ');
    let header = match words.next() {
        // The rest of the line must not be looked at.
        Some("UNKNOWN") => Header::Unknown,
        Some(family @ ("TCP4" | "TCP6")) => {
            let parsed = [words.next(), words.next(), words.next(), words.next(), words.next()];
            let [Some(source), Some(destination), Some(source_port), Some(destination_port), None] = parsed
            else {
                return Err(Error::Word);
            };
            let address = |text: &str, port: &str| match family {
                "TCP4" => Some(SocketAddr::new(IpAddr::V4(text.parse().ok()?), decimal_port(port)?)),
                _ => Some(socket_address(IpAddr::V6(text.parse().ok()?), decimal_port(port)?)),
            };
            Header::Tcp {
                source: address(source, source_port).ok_or(Error::Word)?,
                destination: address(destination, destination_port).ok_or(Error::Word)?,
            }
        }
        _ => return Err(Error::Word),
    };
    Ok(Parsed::Header { header, consumed: end + 1 })
}

/// Digits without a leading zero.
fn decimal_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain)
}

fn socket_address(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Error> {
    // Each byte is judged as soon as it is there, so that no byte after it can change the result.
    let Some(&command) = bytes.get(12) else { return Ok(Parsed::NeedMore) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(Error::Kind),
    };
    let Some(&kind) = bytes.get(13) else { return Ok(Parsed::NeedMore) };
    // Nothing in a LOCAL header counts, its family included.
    if !is_local && (kind >> 4 > 3 || kind & 15 > 2) {
        return Err(Error::Kind);
    }
    let Some(&[high, low]) = bytes.get(14..FIXED_BYTES).and_then(|length| length.first_chunk()) else {
        return Ok(Parsed::NeedMore);
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    let needed = match kind >> 4 {
        _ if is_local => 0,
        1 => INET_BYTES,
        2 => INET6_BYTES,
        3 => UNIX_BYTES,
        _ => 0,
    };
    if length < needed {
        return Err(Error::Length);
    }
    let Some(rest) = bytes.get(FIXED_BYTES..FIXED_BYTES + length) else { return Ok(Parsed::NeedMore) };
    let header = match kind {
        _ if is_local => Some(Header::Local),
        0x11 => inet(rest),
        0x21 => inet6(rest),
        _ => Some(Header::Unknown),
    };
    let header = header.ok_or(Error::Length)?;
    Ok(Parsed::Header { header, consumed: FIXED_BYTES + length })
}

fn inet(rest: &[u8]) -> Option<Header> {
    let (&source, rest) = rest.split_first_chunk::<4>()?;
    let (&destination, ports) = rest.split_first_chunk::<4>()?;
    Some(tcp(
        IpAddr::V4(Ipv4Addr::from(source)),
        IpAddr::V4(Ipv4Addr::from(destination)),
        *ports.first_chunk()?,
    ))
}

fn inet6(rest: &[u8]) -> Option<Header> {
    let (&source, rest) = rest.split_first_chunk::<16>()?;
    let (&destination, ports) = rest.split_first_chunk::<16>()?;
    Some(tcp(
        IpAddr::V6(Ipv6Addr::from(source)),
        IpAddr::V6(Ipv6Addr::from(destination)),
        *ports.first_chunk()?,
    ))
}

fn tcp(source: IpAddr, destination: IpAddr, [a, b, c, d]: [u8; 4]) -> Header {
    Header::Tcp {
        source: socket_address(source, u16::from_be_bytes([a, b])),
        destination: socket_address(destination, u16::from_be_bytes([c, d])),
    }
}

/// Writes a version 2 header, without TLVs: at most 52 bytes. Addresses of both families are sent as IPv6.
pub fn encode(header: Header, out: &mut Vec<u8>) {
    out.extend_from_slice(SIGNATURE);
    let Header::Tcp { source, destination } = header else {
        out.extend_from_slice(&[if header == Header::Local { 0x20 } else { 0x21 }, 0, 0, 0]);
        return;
    };
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            out.extend_from_slice(&[0x21, 0x11, 0, INET_BYTES as u8]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            out.extend_from_slice(&[0x21, 0x21, 0, INET6_BYTES as u8]);
            out.extend_from_slice(&octets(from));
            out.extend_from_slice(&octets(to));
        }
    }
    out.extend_from_slice(&source.port().to_be_bytes());
    out.extend_from_slice(&destination.port().to_be_bytes());
}

#[cfg(test)]
mod tests;
