//! Reads packets and listening sockets: Ethernet, 802.1Q and 802.1ad, RFC 791, RFC 8200, RFC 9293. Every read
//! is first checked against the packet's end.
//!
//! A packet that is not TCP, and one that the kernel refuses itself, passes with an error that says why. A
//! packet that hides a TCP header still has a source and a destination (`Network`), by which it is judged.
#![allow(
    unsafe_code,
    reason = "packet bytes and socket fields are raw pointers; every read is bounds-checked next to it"
)]

use core::arch::asm;

use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::{SkReuseportContext, XdpContext};
use proxy_common::ListenerKey;
use proxy_common::guard::Verdict;
use proxy_common::steer::Fallback;

use crate::maps::{self, Step};
use crate::route;

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
/// VLAN tags that are read at most: an outer 802.1ad or 802.1Q tag and an inner 802.1Q tag.
const TAGS_MAX: usize = 2;

const PROTOCOL_HOP_BY_HOP: u8 = 0;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ROUTING: u8 = 43;
const PROTOCOL_FRAGMENT: u8 = 44;
const PROTOCOL_AUTHENTICATION: u8 = 51;
const PROTOCOL_DESTINATION: u8 = 60;
const PROTOCOL_MOBILITY: u8 = 135;
const PROTOCOL_HIP: u8 = 139;
const PROTOCOL_SHIM6: u8 = 140;

/// IPv6 extension headers that are walked at most. RFC 8200 names six; only destination options may come
/// twice.
const EXTENSIONS_MAX: u32 = 8;

/// The highest offset in a frame at which a TCP header is read in place.
const NEAR_MAX: usize = 512;
/// The shortest TCP header in units of 8 bytes, which fragments count in. The last unit is not full.
const TCP_HEADER_UNITS: u16 = 3;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// An address as two words, as they lie in the packet. IPv4 is written as IPv4-mapped IPv6.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address(pub [u64; 2]);

impl Address {
    #[inline(always)]
    pub fn v4(address: u32) -> Self {
        let [a, b, c, d] = address.to_ne_bytes();
        Self([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
    }

    /// In network order.
    #[inline(always)]
    pub fn octets(self) -> [u8; 16] {
        let [high, low] = self.0.map(u64::to_ne_bytes);
        let [a, b, c, d, e, f, g, h] = high;
        let [i, j, k, l, m, n, o, p] = low;
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Both halves as numbers, the leading one first.
    #[inline(always)]
    pub fn halves(self) -> (u64, u64) {
        let [high, low] = self.0;
        (u64::from_be(high), u64::from_be(low))
    }
}

/// No host has it.
pub const UNSPECIFIED: Address = Address([0, 0]);

/// The piece of a TCP packet that a frame holds.
#[derive(Clone, Copy)]
enum Piece {
    Whole,
    /// The first fragment.
    First,
    /// The TCP header is not visible here.
    Hidden,
}

/// An IP packet with TCP. IPv4 addresses are IPv4-mapped.
pub struct Network {
    pub source: Address,
    pub destination: Address,
    /// It has a source route that is not at its end, which is at `last_destination`.
    pub is_routed: bool,
    pub last_destination: Address,
    pub is_v4: bool,
    /// The offsets in the frame of its IP header and of its TCP header.
    at: u32,
    tcp_at: u32,
    piece: Piece,
    /// The offset in the frame behind the packet; only for a fragment.
    end: u32,
    /// The verdict about a hidden header.
    hidden: Verdict,
}

/// A TCP segment as the guard judges it. IPv4 addresses are IPv4-mapped.
pub struct Segment {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub is_v4: bool,
    /// The offsets in the frame of its IP header and of its TCP header.
    pub network_at: u32,
    pub tcp_at: u32,
    /// It is a SYN without ACK, which asks for a connection.
    pub opens: bool,
    /// It has an ACK, and neither SYN nor RST.
    pub acknowledges: bool,
}

/// Returns the same value, hidden from the optimizer. The verifier wants the very pointer that was compared.
/// Left alone, the optimizer compares one sum and reads through another. (`black_box` does it too, but goes
/// through the stack.)
#[inline(always)]
pub fn opaque(pointer: usize) -> usize {
    let same: usize;
    // SAFETY: this moves one register to another. It needs an instruction: an empty block would share its
    // line with its neighbour, and the kernel refuses two lines for one instruction.
    unsafe {
        asm!("{0} = {1}", lateout(reg) same, in(reg) pointer, options(pure, nomem, nostack, preserves_flags))
    };
    same
}

/// Reads `N` bytes at `offset`, if the packet has them.
#[inline(always)]
fn read<const N: usize>(ctx: &XdpContext, offset: usize) -> Result<[u8; N], Verdict> {
    let start = opaque(ctx.data() + offset);
    if start + N > ctx.data_end() {
        return Err(Verdict::Truncated);
    }
    // SAFETY: `start..start + N` lies within the packet (checked above), and bytes need no alignment.
    Ok(unsafe { *(start as *const [u8; N]) })
}

/// Reads a word at `offset` as it lies there. Left alone, the compiler reads unaligned words byte by byte,
/// which the kernel's machines do not need.
#[inline(always)]
fn read_u32(ctx: &XdpContext, offset: usize) -> Result<u32, Verdict> {
    let start = opaque(ctx.data() + offset);
    if start + 4 > ctx.data_end() {
        return Err(Verdict::Truncated);
    }
    let word: u64;
    // SAFETY: `start..start + 4` lies within the packet (checked above). On machines without unaligned reads,
    // the kernel's verifier refuses the program.
    unsafe {
        asm!(
            "{0} = *(u32 *)({1} + 0)",
            lateout(reg) word,
            in(reg) start,
            options(pure, readonly, nostack, preserves_flags)
        );
    };
    Ok(word as u32)
}

/// Reads an IPv6 address at `offset`, as `read_u32` reads a word.
#[inline(always)]
fn read_address(ctx: &XdpContext, offset: usize) -> Result<Address, Verdict> {
    let start = opaque(ctx.data() + offset);
    if start + 16 > ctx.data_end() {
        return Err(Verdict::Truncated);
    }
    let (high, low): (u64, u64);
    // SAFETY: `start..start + 16` lies within the packet (checked above); otherwise as in `read_u32`.
    unsafe {
        asm!(
            "{0} = *(u64 *)({2} + 0)",
            "{1} = *(u64 *)({2} + 8)",
            out(reg) high,
            lateout(reg) low,
            in(reg) start,
            options(pure, readonly, nostack, preserves_flags)
        );
    };
    Ok(Address([high, low]))
}

#[inline(always)]
fn read_u16(ctx: &XdpContext, offset: usize) -> Result<u16, Verdict> {
    Ok(u16::from_be_bytes(read::<2>(ctx, offset)?))
}

/// Finds the IP packet in an Ethernet frame, and the TCP header in it.
#[inline(always)]
pub fn network(ctx: &XdpContext) -> Result<Network, Verdict> {
    let mut offset = 14;
    let mut ethertype = read_u16(ctx, 12)?;
    for _ in 0..TAGS_MAX {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = read_u16(ctx, offset + 2)?;
        offset += 4;
    }
    match ethertype {
        ETHERTYPE_V4 => network_v4(ctx, offset),
        ETHERTYPE_V6 => network_v6(ctx, offset),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Verdict::TooManyTags),
        _ => Err(Verdict::NotIp),
    }
}

#[inline(always)]
fn network_v4(ctx: &XdpContext, offset: usize) -> Result<Network, Verdict> {
    let [version_and_length, ..] = read::<20>(ctx, offset)?;
    let length = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || length < 20 {
        return Err(Verdict::Malformed);
    }
    let [protocol] = read::<1>(ctx, offset + 9)?;
    if protocol != PROTOCOL_TCP {
        return Err(Verdict::NotTcp);
    }
    let mut network = Network {
        source: Address::v4(read_u32(ctx, offset + 12)?),
        destination: Address::v4(read_u32(ctx, offset + 16)?),
        is_routed: false,
        last_destination: UNSPECIFIED,
        is_v4: true,
        at: offset as u32,
        tcp_at: (offset + length) as u32,
        piece: Piece::Whole,
        end: 0,
        hidden: Verdict::Fragment,
    };
    let fragment = read_u16(ctx, offset + 6)?;
    // More fragments follow, or this is not the first.
    if fragment & 0x3fff != 0 {
        // A short fragment is padded to the frame's least length, so its own length counts.
        network.end = (offset + usize::from(read_u16(ctx, offset + 2)?)) as u32;
        (network.piece, network.hidden) = piece(fragment & 0x1fff);
    }
    if length > 20
        && let Some(last) = route::v4(ctx, network.at + 20, network.tcp_at)
    {
        (network.is_routed, network.last_destination) = (true, last);
    }
    Ok(network)
}

/// The piece of a TCP packet that begins at this offset, in units of 8 bytes; the verdict is for a later one.
#[inline(always)]
fn piece(units: u16) -> (Piece, Verdict) {
    match units {
        0 => (Piece::First, Verdict::Fragment),
        // RFC 1858 and RFC 3128: it could overwrite what was judged in the first one.
        1..TCP_HEADER_UNITS => (Piece::Hidden, Verdict::FragmentOffset),
        _ => (Piece::Hidden, Verdict::Fragment),
    }
}

#[inline(always)]
fn network_v6(ctx: &XdpContext, offset: usize) -> Result<Network, Verdict> {
    let [version, ..] = read::<40>(ctx, offset)?;
    if version >> 4 != 6 {
        return Err(Verdict::Malformed);
    }
    let [next] = read::<1>(ctx, offset + 6)?;
    let mut network = Network {
        source: read_address(ctx, offset + 8)?,
        destination: read_address(ctx, offset + 24)?,
        is_routed: false,
        last_destination: UNSPECIFIED,
        is_v4: false,
        at: offset as u32,
        tcp_at: offset as u32 + 40,
        piece: Piece::Whole,
        end: 0,
        hidden: Verdict::Fragment,
    };
    if next != PROTOCOL_TCP {
        let end = offset + 40 + usize::from(read_u16(ctx, offset + 4)?);
        skip_extensions(ctx, &mut network, next, end as u32)?;
    }
    Ok(network)
}

/// Walks the extension headers (RFC 8200 section 4) to the TCP header. `end` is the offset behind the packet.
#[inline(always)]
fn skip_extensions(ctx: &XdpContext, network: &mut Network, next: u8, end: u32) -> Result<(), Verdict> {
    let mut walk = Walk {
        ctx,
        at: network.tcp_at,
        next,
        end,
        piece: Piece::Whole,
        hidden: Verdict::TooManyExtensions,
        is_routed: false,
        last: UNSPECIFIED,
    };
    maps::repeat(EXTENSIONS_MAX, &mut walk);
    (network.tcp_at, network.piece, network.end) = (walk.at, walk.piece, walk.end);
    (network.is_routed, network.last_destination) = (walk.is_routed, walk.last);
    network.hidden = walk.hidden;
    match walk.next {
        PROTOCOL_TCP => Ok(()),
        next if is_extension(next) => {
            network.piece = Piece::Hidden;
            Ok(())
        }
        _ => Err(Verdict::NotTcp),
    }
}

const fn is_extension(next: u8) -> bool {
    matches!(
        next,
        PROTOCOL_HOP_BY_HOP
            | PROTOCOL_DESTINATION
            | PROTOCOL_MOBILITY
            | PROTOCOL_HIP
            | PROTOCOL_SHIM6
            | PROTOCOL_ROUTING
            | PROTOCOL_FRAGMENT
            | PROTOCOL_AUTHENTICATION
    )
}

/// A walk over extension headers, which may lie behind the first buffer of the frame.
struct Walk<'a> {
    ctx: &'a XdpContext,
    /// The offset in the frame of the next header, and its kind.
    at: u32,
    next: u8,
    end: u32,
    piece: Piece,
    hidden: Verdict,
    /// A routing header names further destinations, of which this is the last.
    is_routed: bool,
    last: Address,
}

impl Walk<'_> {
    /// Ends the walk: what follows is not visible.
    #[inline(always)]
    fn hide(&mut self, reason: Verdict) -> bool {
        (self.piece, self.hidden) = (Piece::Hidden, reason);
        true
    }
}

impl Step for Walk<'_> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> bool {
        if !is_extension(self.next) {
            return true;
        }
        // RFC 7112: the first fragment has all headers.
        if matches!(self.piece, Piece::First) && self.at + 8 > self.end {
            return self.hide(Verdict::TinyFragment);
        }
        let Some([following, units, third, fourth]) = load::<4>(self.ctx, self.at) else {
            return self.hide(Verdict::Incomplete);
        };
        let length = match self.next {
            PROTOCOL_FRAGMENT => {
                let fragment = u16::from_be_bytes([third, fourth]);
                // A packet in one piece goes on (RFC 6946: the kernel does not treat it as a fragment).
                if fragment & 0xfff9 != 0 {
                    let (piece, hidden) = piece(fragment >> 3);
                    if matches!(piece, Piece::Hidden) {
                        self.next = following;
                        return self.hide(hidden);
                    }
                    self.piece = piece;
                }
                8
            }
            PROTOCOL_AUTHENTICATION => (u32::from(units) + 2) * 4,
            // The fourth byte is the number of segments left.
            PROTOCOL_ROUTING if fourth != 0 => {
                (self.is_routed, self.last) = (true, route::v6(self.ctx, self.at, third));
                return self.hide(Verdict::SourceRouted);
            }
            _ => (u32::from(units) + 1) * 8,
        };
        self.at += length;
        self.next = following;
        false
    }
}

/// Reads the TCP header of a packet. The error is the verdict about one that does not show it.
#[inline(always)]
pub fn segment(ctx: &XdpContext, network: &Network) -> Result<Segment, Verdict> {
    if matches!(network.piece, Piece::Hidden) {
        return Err(network.hidden);
    }
    let is_first = matches!(network.piece, Piece::First);
    if is_first && network.tcp_at + 20 > network.end {
        return Err(Verdict::TinyFragment);
    }
    // The verifier follows an offset only if it has a bound. `opaque` makes it the very number that is
    // compared.
    let at = opaque(network.tcp_at as usize);
    let header = if at <= NEAR_MAX { read::<20>(ctx, at) } else { Err(Verdict::Truncated) };
    let header = match header {
        Ok(header) => header,
        // It may lie behind the first buffer of the frame.
        Err(_) => match load::<20>(ctx, network.tcp_at) {
            Some(header) => header,
            None => return Err(Verdict::Incomplete),
        },
    };
    let [source_high, source_low, port_high, port_low, _, _, _, _, _, _, _, _, length, flags, ..] = header;
    if is_first {
        if network.tcp_at + u32::from(length >> 4) * 4 > network.end {
            return Err(Verdict::TinyFragment);
        }
        if flags & TCP_SYN != 0 {
            return Err(Verdict::SynFragment);
        }
    }
    if length >> 4 < 5 {
        return Err(Verdict::Malformed);
    }
    Ok(Segment {
        source: network.source,
        destination: network.destination,
        source_port: u16::from_be_bytes([source_high, source_low]),
        destination_port: u16::from_be_bytes([port_high, port_low]),
        is_v4: network.is_v4,
        network_at: network.at,
        tcp_at: network.tcp_at,
        opens: flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
        acknowledges: flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_ACK,
    })
}

/// Copies `N` bytes at `offset`; `None` beyond the frame's end. This costs more than `read`, but takes any
/// offset, also in frames of several buffers.
#[inline(always)]
pub fn load<const N: usize>(ctx: &XdpContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer is on this stack and as long as the length given. The kernel checks the offset.
    let result = unsafe { bpf_xdp_load_bytes(ctx.ctx, offset, bytes.as_mut_ptr().cast(), N as u32) };
    (result == 0).then_some(bytes)
}

/// Copies `bytes` to `offset`. Beyond the frame's end it copies nothing and returns false.
#[inline(always)]
pub fn store<const N: usize>(ctx: &XdpContext, offset: u32, bytes: &[u8; N]) -> bool {
    // SAFETY: as in `load`; the kernel only reads the buffer.
    unsafe { bpf_xdp_store_bytes(ctx.ctx, offset, bytes.as_ptr().cast_mut().cast(), N as u32) == 0 }
}

/// Changes the frame's length; false if there is no room, or the frame is in several buffers.
#[inline(always)]
pub fn resize(ctx: &XdpContext, length: u32) -> bool {
    // SAFETY: the helper only reads the context.
    let present = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    if present as usize != ctx.data_end() - ctx.data() {
        return false;
    }
    // SAFETY: nothing reads the packet through an earlier pointer afterwards.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx, length.wrapping_sub(present) as i32) == 0 }
}

/// The largest packet, IP header included, that the interface of the frame can carry, in bytes.
#[inline(always)]
pub fn mtu(ctx: &XdpContext) -> u32 {
    let mut mtu = 0;
    // SAFETY: 0 names the interface itself. The kernel writes one word; if the packet is too long, it fails
    // after writing.
    unsafe { bpf_check_mtu(ctx.ctx.cast(), 0, &raw mut mtu, 0, 0) };
    mtu
}

/// The listener of a flow, by the address that its socket is bound to.
#[inline(always)]
pub fn listener(ctx: &SkReuseportContext) -> Result<ListenerKey, Fallback> {
    let sk = ctx.sk().sock;
    if sk.is_null() {
        return Err(Fallback::UnknownFamily);
    }
    // All fields are read here, whole and volatile. Left alone, the optimizer would compute an address within
    // the socket or read a part of a field, and the verifier allows neither.
    // SAFETY: not null. The verifier turns each field access into a checked read of the socket.
    let (family, port, v4, v6) = unsafe {
        (
            (&raw const (*sk).family).read_volatile(),
            (&raw const (*sk).src_port).read_volatile(),
            (&raw const (*sk).src_ip4).read_volatile(),
            [
                (&raw const (*sk).src_ip6[0]).read_volatile(),
                (&raw const (*sk).src_ip6[1]).read_volatile(),
                (&raw const (*sk).src_ip6[2]).read_volatile(),
                (&raw const (*sk).src_ip6[3]).read_volatile(),
            ],
        )
    };
    let address = match family {
        AF_INET => [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), v4],
        AF_INET6 => v6,
        _ => return Err(Fallback::UnknownFamily),
    };
    // When a listener is shut down, it loses a port that the kernel chose, before its flows migrate. The
    // flows still have the port.
    let port = match ctx.migrating_sk() {
        // SAFETY: not null, since the flow exists; read as the fields above.
        Some(flow) if port == 0 => unsafe { (&raw const (*flow.sock).src_port).read_volatile() },
        _ => port,
    };
    let [a, b, c, d] = address.map(u64::from);
    // The words are in network order in memory. This puts the halves together as a little-endian machine
    // holds them.
    let address = (u128::from(c | (d << 32)) << 64) | u128::from(a | (b << 32));
    let address = address.to_ne_bytes();
    Ok(ListenerKey { address, port })
}
