//! Floods of TCP segments with made-up sources, through a raw socket. They are bounded in number and run only
//! in a namespace that the test made.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

/// The kind of segments in a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// SYNs, with the options of an ordinary client.
    Syn,
    /// ACKs that belong to no connection.
    Ack,
}

/// Sends `count` segments to `target`, each from another source of 198.18.0.0/15 (RFC 2544). Returns how many
/// the kernel took. The caller runs it in the client's namespace, as root.
pub fn send(kind: Kind, target: SocketAddrV4, count: u32) -> u32 {
    send_from(kind, None, target, count)
}

/// Sends `count` SYNs in the name of `source`, each from another port; otherwise like `send`.
pub fn send_as(source: Ipv4Addr, target: SocketAddrV4, count: u32) -> u32 {
    send_from(Kind::Syn, Some(source), target, count)
}

fn send_from(kind: Kind, source: Option<Ipv4Addr>, target: SocketAddrV4, count: u32) -> u32 {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .expect("a raw socket");
    let to = SockaddrIn::from(SocketAddrV4::new(*target.ip(), 0));
    let mut taken = 0;
    for number in 0..count {
        let random = number.wrapping_mul(0x9e37_79b1);
        let address = source.unwrap_or_else(|| Ipv4Addr::from(0xc612_0000 | random >> 15));
        let source = SocketAddrV4::new(address, 1024 + (random % 60_000) as u16);
        let packet = packet(kind, source, target, random);
        match sendto(raw.as_raw_fd(), &packet, &to, MsgFlags::empty()) {
            Ok(_) => taken += 1,
            // The cable's queue is full.
            Err(Errno::ENOBUFS) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    taken
}

fn packet(kind: Kind, source: SocketAddrV4, target: SocketAddrV4, random: u32) -> Vec<u8> {
    // The SYN's options: MSS 1460, SACK, timestamps, no operation, window scale 7.
    let options: &[u8] = match kind {
        Kind::Syn => &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7],
        Kind::Ack => &[],
    };
    let flags = match kind {
        Kind::Syn => 0x02,
        Kind::Ack => 0x10,
    };
    let mut tcp = Vec::with_capacity(40);
    tcp.extend_from_slice(&source.port().to_be_bytes());
    tcp.extend_from_slice(&target.port().to_be_bytes());
    tcp.extend_from_slice(&random.to_be_bytes());
    tcp.extend_from_slice(&(random ^ 0x5bd1_e995).to_be_bytes());
    tcp.extend_from_slice(&[(5 + options.len() as u8 / 4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(options);
    let mut sum: u32 = 6 + tcp.len() as u32;
    let addresses = [source.ip().octets(), target.ip().octets()].concat();
    for pair in addresses.chunks(2).chain(tcp.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    // The kernel fills in length, number and checksum of the IP header.
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
    bytes.extend_from_slice(&addresses);
    bytes.extend_from_slice(&tcp);
    bytes
}

/// Time that all CPUs of the machine have spent in softirqs so far, in clock ticks. The kernel samples it.
#[must_use]
pub fn softirq_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("/proc/stat");
    let all = stat.lines().next().expect("a line of all CPUs");
    all.split_whitespace().nth(7).and_then(|ticks| ticks.parse().ok()).expect("softirq")
}
