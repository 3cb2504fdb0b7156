//! Ethernet frames written byte by byte, for the guard's fixtures.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// 802.1Q.
pub(crate) const VLAN: u16 = 0x8100;
/// 802.1ad.
pub(crate) const QINQ: u16 = 0x88a8;
/// TCP flags.
pub(crate) const SYN: u8 = 0x02;
/// TCP flags.
pub(crate) const ACK: u8 = 0x10;
/// TCP flags.
pub(crate) const RST: u8 = 0x04;
/// Next header of TCP.
pub(crate) const TCP: u8 = 6;

/// A frame that a test builds. By default it is TCP from `source` to `destination`.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    source: IpAddr,
    source_port: u16,
    destination: SocketAddr,
    tags: Vec<u16>,
    flags: u8,
    protocol: u8,
    /// IPv4 options or IPv6 extension headers, and the kind of the first.
    between: Vec<u8>,
    first: Option<u8>,
    /// IPv4 flags and fragment offset.
    fragment: u16,
    data_offset: u8,
    tcp_options: Vec<u8>,
    payload: usize,
    /// Bytes of the TCP segment that the packet has; the rest of the frame is padding.
    cut: Option<usize>,
}

impl Frame {
    /// A SYN with 10 bytes of payload, without tags or options.
    pub(crate) fn syn(source: &str, destination: &str) -> Self {
        Self {
            source: source.parse().expect("an address"),
            source_port: 40_000,
            destination: destination.parse().expect("an address and port"),
            tags: Vec::new(),
            flags: SYN,
            protocol: TCP,
            between: Vec::new(),
            first: None,
            fragment: 0x4000,
            data_offset: 5,
            tcp_options: Vec::new(),
            payload: 10,
            cut: None,
        }
    }

    /// VLAN tags, outermost first.
    pub(crate) fn tags(mut self, tags: &[u16]) -> Self {
        self.tags = tags.to_vec();
        self
    }

    /// The source port instead of 40,000.
    pub(crate) fn source_port(mut self, port: u16) -> Self {
        self.source_port = port;
        self
    }

    /// TCP flags.
    pub(crate) fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// The protocol instead of TCP.
    pub(crate) fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// IPv4 options: this many words of no-operation.
    pub(crate) fn options(mut self, words: usize) -> Self {
        self.between = vec![1; words * 4];
        self
    }

    /// An IPv4 option of this kind that names these addresses, of which the one at `next` comes next.
    pub(crate) fn route(mut self, kind: u8, next: u8, addresses: &[&str]) -> Self {
        let length = u8::try_from(3 + 4 * addresses.len()).expect("at most 39 bytes");
        self.between = vec![1, kind, length, next];
        for address in addresses {
            self.between.extend(address.parse::<Ipv4Addr>().expect("an address").octets());
        }
        self
    }

    /// IPv4 flags and fragment offset as they stand in the header.
    pub(crate) fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    /// Adds an IPv6 extension header: its kind and its bytes after the next-header field.
    pub(crate) fn extension(mut self, kind: u8, rest: &[u8]) -> Self {
        // Each header names the kind of the next one; the last header names the protocol.
        match self.first {
            None => self.first = Some(kind),
            Some(_) => {
                let at = self.last_extension();
                self.between[at] = kind;
            }
        }
        self.between.push(self.protocol);
        self.between.extend_from_slice(rest);
        self
    }

    /// Only this many bytes of the TCP segment are in the packet, and a whole frame's padding behind it.
    pub(crate) fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    /// TCP data offset in words.
    pub(crate) fn data_offset(mut self, words: u8) -> Self {
        self.data_offset = words;
        self
    }

    /// TCP options, a multiple of four bytes.
    pub(crate) fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_options = options.to_vec();
        self.data_offset = 5 + u8::try_from(options.len() / 4).expect("at most 40 bytes");
        self
    }

    /// The offset in bytes at which the last extension header begins.
    fn last_extension(&self) -> usize {
        let mut at = 0;
        let mut kind = self.first.expect("there is one");
        loop {
            let length = match kind {
                44 => 8,
                51 => (usize::from(self.between[at + 1]) + 2) * 4,
                _ => (usize::from(self.between[at + 1]) + 1) * 8,
            };
            if at + length >= self.between.len() {
                return at;
            }
            kind = self.between[at];
            at += length;
        }
    }

    /// The length in bytes up to the end of the last header that the guard reads.
    pub(crate) fn header_len(&self) -> usize {
        self.bytes().len() - self.payload
    }

    /// The frame's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for (tag, id) in self.tags.iter().zip(100u16..) {
            bytes.extend_from_slice(&tag.to_be_bytes());
            bytes.extend_from_slice(&id.to_be_bytes());
        }
        let mut tcp = self.tcp();
        tcp.truncate(self.cut.unwrap_or(tcp.len()));
        match (self.source, self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                self.v4(&mut bytes, source, destination, tcp.len())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                self.v6(&mut bytes, source, destination, tcp.len())
            }
            _ => panic!("one family"),
        }
        bytes.extend_from_slice(&tcp);
        if self.cut.is_some() {
            // Padding that would pass for the rest of a harmless header.
            bytes.extend_from_slice(&[0x50; 64]);
        }
        bytes
    }

    fn v4(&self, bytes: &mut Vec<u8>, source: Ipv4Addr, destination: Ipv4Addr, rest: usize) {
        let header = 20 + self.between.len();
        bytes.extend_from_slice(&[0x08, 0x00, 0x40 | u8::try_from(header / 4).expect("a header length"), 0]);
        bytes.extend_from_slice(&u16::try_from(header + rest).expect("a length").to_be_bytes());
        bytes.extend_from_slice(&[0, 1]);
        bytes.extend_from_slice(&self.fragment.to_be_bytes());
        bytes.extend_from_slice(&[64, self.protocol, 0, 0]);
        bytes.extend_from_slice(&source.octets());
        bytes.extend_from_slice(&destination.octets());
        bytes.extend_from_slice(&self.between);
    }

    fn v6(&self, bytes: &mut Vec<u8>, source: Ipv6Addr, destination: Ipv6Addr, rest: usize) {
        bytes.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend_from_slice(&u16::try_from(self.between.len() + rest).expect("a length").to_be_bytes());
        bytes.extend_from_slice(&[self.first.unwrap_or(self.protocol), 64]);
        bytes.extend_from_slice(&source.octets());
        bytes.extend_from_slice(&destination.octets());
        bytes.extend_from_slice(&self.between);
    }

    fn tcp(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&self.source_port.to_be_bytes());
        bytes.extend_from_slice(&self.destination.port().to_be_bytes());
        bytes.extend_from_slice(&[
            0,
            0,
            0,
            1,
            0,
            0,
            0,
            2,
            self.data_offset << 4,
            self.flags,
            0xff,
            0xff,
            0,
            0,
            0,
            0,
        ]);
        bytes.extend_from_slice(&self.tcp_options);
        bytes.resize(bytes.len() + self.payload, 0x2a);
        bytes
    }
}
