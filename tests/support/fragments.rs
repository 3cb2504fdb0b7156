//! Clients that write their own IP packets, so that a TCP segment comes in fragments of any size (RFC 791).
//! The kernel of the namespace must not have the source's address, or it would reset the connections. Bounded
//! in number and time.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

const SYN: u8 = 0x02;
const PUSH: u8 = 0x08;
const ACK: u8 = 0x10;
const MORE: u16 = 0x2000;
/// The sequence number of every SYN.
const FIRST: u32 = 1000;
/// A client has waited this long for nothing, or this long in all.
const QUIET: Duration = Duration::from_millis(1500);
const LIMIT: Duration = Duration::from_secs(8);

/// The clients of one source. The caller runs everything in the client's namespace, as root.
#[derive(Debug)]
pub struct Clients {
    raw: OwnedFd,
    packets: OwnedFd,
    source: Ipv4Addr,
    target: SocketAddrV4,
}

/// A segment that came from the target.
struct Segment {
    port: u16,
    sequence: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Clients {
    /// Clients from `source` to `target`.
    #[must_use]
    pub fn new(source: Ipv4Addr, target: SocketAddrV4) -> Self {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
            .expect("a raw socket");
        let packets =
            socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, SockProtocol::EthIp)
                .expect("a packet socket");
        setsockopt(&packets, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000)).expect("a timeout");
        Self { raw, packets, source, target }
    }

    /// Opens a connection from each of these ports and asks for `/`. The SYNs come in fragments of `syn`
    /// bytes, everything else in fragments of `rest` bytes. Returns how many got a response with `inside`.
    /// The connections stay open.
    #[must_use]
    pub fn served(&self, ports: Range<u16>, syn: Option<usize>, rest: Option<usize>) -> usize {
        let mut served = BTreeSet::new();
        for port in ports.clone() {
            self.send(port, (FIRST, 0), SYN, &[], syn);
        }
        let start = Instant::now();
        let mut heard = start;
        while served.len() < ports.len() && heard.elapsed() < QUIET && start.elapsed() < LIMIT {
            let Some(segment) = self.receive() else { continue };
            heard = Instant::now();
            if segment.flags == SYN | ACK {
                let numbers = (FIRST + 1, segment.sequence.wrapping_add(1));
                self.send(segment.port, numbers, ACK, &[], rest);
                self.send(segment.port, numbers, ACK | PUSH, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", rest);
            } else if segment.payload.ends_with(b"inside") {
                served.insert(segment.port);
            }
        }
        served.len()
    }

    fn send(
        &self,
        port: u16,
        (sequence, acknowledged): (u32, u32),
        flags: u8,
        payload: &[u8],
        piece: Option<usize>,
    ) {
        let mut tcp = Vec::new();
        tcp.extend_from_slice(&port.to_be_bytes());
        tcp.extend_from_slice(&self.target.port().to_be_bytes());
        tcp.extend_from_slice(&sequence.to_be_bytes());
        tcp.extend_from_slice(&acknowledged.to_be_bytes());
        tcp.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend_from_slice(payload);
        let addresses = [self.source.octets(), self.target.ip().octets()].concat();
        let check = checksum(&[&addresses[..], &[0, 6], &(tcp.len() as u16).to_be_bytes(), &tcp].concat());
        tcp[16..18].copy_from_slice(&check.to_be_bytes());
        let piece = piece.unwrap_or(tcp.len());
        let id = port ^ (u16::from(flags) << 8) ^ payload.len() as u16;
        let to = SockaddrIn::from(SocketAddrV4::new(*self.target.ip(), 0));
        let count = tcp.len().div_ceil(piece);
        for (number, bytes) in tcp.chunks(piece).enumerate() {
            let more = if number + 1 < count { MORE } else { 0 };
            let fragment = more | (number * piece / 8) as u16;
            // The kernel fills in length and checksum of the IP header.
            let mut packet = vec![0x45, 0, 0, 0];
            packet.extend_from_slice(&id.to_be_bytes());
            packet.extend_from_slice(&fragment.to_be_bytes());
            packet.extend_from_slice(&[64, 6, 0, 0]);
            packet.extend_from_slice(&addresses);
            packet.extend_from_slice(bytes);
            sendto(self.raw.as_raw_fd(), &packet, &to, MsgFlags::empty()).expect("sent");
        }
    }

    /// The next segment from the target to the source, if one comes soon.
    fn receive(&self) -> Option<Segment> {
        let mut bytes = [0; 65_536];
        let length = recv(self.packets.as_raw_fd(), &mut bytes, MsgFlags::empty()).ok()?;
        let length = length.min(usize::from(u16::from_be_bytes([bytes[2], bytes[3]])));
        let (ip, tcp) = bytes[..length].split_at_checked(usize::from(bytes[0] & 0x0f) * 4)?;
        let is_ours = ip.len() >= 20
            && tcp.len() >= 20
            && ip[9] == 6
            && ip[12..16] == self.target.ip().octets()
            && ip[16..20] == self.source.octets();
        is_ours.then(|| Segment {
            port: u16::from_be_bytes([tcp[2], tcp[3]]),
            sequence: u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]),
            flags: tcp[13] & 0x17,
            payload: tcp.get(usize::from(tcp[12] >> 4) * 4..).unwrap_or_default().to_vec(),
        })
    }
}

/// The checksum of RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}
