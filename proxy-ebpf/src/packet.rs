//! What the programs read from a packet and from a listening socket: Ethernet, 802.1Q and 802.1ad, RFC 791,
//! RFC 8200, RFC 9293. Every read is checked against the packet's end first; whatever is not understood is an
//! error that says which, and passes.
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

const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const ETHERTYPE_V4: u16 = 0x0800;
const ETHERTYPE_V6: u16 = 0x86dd;
/// An outer 802.1ad or 802.1Q tag and an inner 802.1Q tag.
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
/// Extension headers walked. RFC 8200 names six, once each but for destination options.
const EXTENSIONS_MAX: usize = 8;

const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// An address, IPv4 as IPv4-mapped: two words as they lie in the packet.
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

    /// As numbers: the leading and the trailing half.
    #[inline(always)]
    pub fn halves(self) -> (u64, u64) {
        let [high, low] = self.0;
        (u64::from_be(high), u64::from_be(low))
    }
}

/// What the guard judges: a TCP segment's addresses (IPv4 as IPv4-mapped) and what kind it is.
pub struct Segment {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
    pub is_v4: bool,
    /// Where its IP header begins in the frame, and where its TCP header.
    pub network_at: u32,
    pub tcp_at: u32,
    /// A SYN without ACK: asks for a connection.
    pub opens: bool,
    /// No SYN and no RST, with an ACK.
    pub acknowledges: bool,
}

/// The same value, of which the optimizer knows nothing. The verifier wants the very pointer that was
/// compared; left alone, the optimizer compares one sum and reads through another. (`black_box` does it by
/// way of the stack.)
#[inline(always)]
pub fn opaque(pointer: usize) -> usize {
    let same: usize;
    // SAFETY: moves one register to another. It takes an instruction, since the line of an empty one would be
    // that of its neighbour, and the kernel refuses two lines for one instruction.
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

/// Reads a word at `offset` as it lies there. Left alone, the target reads unaligned words byte by byte; the
/// kernel's machines need not.
#[inline(always)]
fn read_u32(ctx: &XdpContext, offset: usize) -> Result<u32, Verdict> {
    let start = opaque(ctx.data() + offset);
    if start + 4 > ctx.data_end() {
        return Err(Verdict::Truncated);
    }
    let word: u64;
    // SAFETY: `start..start + 4` lies within the packet (checked above); the kernel's verifier refuses
    // unaligned reads of packets where the machine has none.
    unsafe {
        asm!("{0} = *(u32 *)({1} + \
            0)", lateout(reg) word, in(reg) start, options(pure, readonly, nostack, preserves_flags))
    };
    Ok(word as u32)
}

/// Reads an IPv6 address at `offset`; as `read_u32`.
#[inline(always)]
fn read_address(ctx: &XdpContext, offset: usize) -> Result<Address, Verdict> {
    let start = opaque(ctx.data() + offset);
    if start + 16 > ctx.data_end() {
        return Err(Verdict::Truncated);
    }
    let (high, low): (u64, u64);
    // SAFETY: `start..start + 16` lies within the packet (checked above); as in `read_u32`.
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

/// Finds the TCP segment in an Ethernet frame.
#[inline(always)]
pub fn parse(ctx: &XdpContext) -> Result<Segment, Verdict> {
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
        ETHERTYPE_V4 => parse_v4(ctx, offset),
        ETHERTYPE_V6 => parse_v6(ctx, offset),
        ETHERTYPE_VLAN | ETHERTYPE_QINQ => Err(Verdict::TooManyTags),
        _ => Err(Verdict::NotIp),
    }
}

#[inline(always)]
fn parse_v4(ctx: &XdpContext, offset: usize) -> Result<Segment, Verdict> {
    let [version_and_length, ..] = read::<20>(ctx, offset)?;
    let length = usize::from(version_and_length & 0x0f) * 4;
    if version_and_length >> 4 != 4 || length < 20 {
        return Err(Verdict::Malformed);
    }
    // More fragments follow, or this is not the first.
    if read_u16(ctx, offset + 6)? & 0x3fff != 0 {
        return Err(Verdict::Fragment);
    }
    let [protocol] = read::<1>(ctx, offset + 9)?;
    if protocol != PROTOCOL_TCP {
        return Err(Verdict::NotTcp);
    }
    let source = Address::v4(read_u32(ctx, offset + 12)?);
    let destination = Address::v4(read_u32(ctx, offset + 16)?);
    parse_tcp(ctx, offset, offset + length, source, destination, true)
}

#[inline(always)]
fn parse_v6(ctx: &XdpContext, offset: usize) -> Result<Segment, Verdict> {
    let [version, ..] = read::<40>(ctx, offset)?;
    if version >> 4 != 6 {
        return Err(Verdict::Malformed);
    }
    let [next] = read::<1>(ctx, offset + 6)?;
    let source = read_address(ctx, offset + 8)?;
    let destination = read_address(ctx, offset + 24)?;
    let tcp = skip_extensions(ctx, offset + 40, next)?;
    parse_tcp(ctx, offset, tcp, source, destination, false)
}

/// Walks the extension headers (RFC 8200 section 4) to the TCP header.
#[inline(always)]
fn skip_extensions(ctx: &XdpContext, mut offset: usize, mut next: u8) -> Result<usize, Verdict> {
    for _ in 0..EXTENSIONS_MAX {
        if next == PROTOCOL_TCP {
            return Ok(offset);
        }
        let length = match next {
            PROTOCOL_HOP_BY_HOP
            | PROTOCOL_DESTINATION
            | PROTOCOL_MOBILITY
            | PROTOCOL_HIP
            | PROTOCOL_SHIM6
            | PROTOCOL_ROUTING
            | PROTOCOL_FRAGMENT
            | PROTOCOL_AUTHENTICATION => read::<4>(ctx, offset)?,
            _ => return Err(Verdict::NotTcp),
        };
        let [following, units, _, segments_left] = length;
        let length = match next {
            // Only a packet in one piece goes on (RFC 6946: the kernel does not treat it as a fragment).
            PROTOCOL_FRAGMENT => {
                if read_u16(ctx, offset + 2)? & 0xfff9 != 0 {
                    return Err(Verdict::Fragment);
                }
                8
            }
            PROTOCOL_AUTHENTICATION => (usize::from(units) + 2) * 4,
            PROTOCOL_ROUTING if segments_left != 0 => return Err(Verdict::SourceRouted),
            _ => (usize::from(units) + 1) * 8,
        };
        offset += length;
        next = following;
    }
    if next == PROTOCOL_TCP { Ok(offset) } else { Err(Verdict::TooManyExtensions) }
}

#[inline(always)]
fn parse_tcp(
    ctx: &XdpContext,
    network: usize,
    offset: usize,
    source: Address,
    destination: Address,
    is_v4: bool,
) -> Result<Segment, Verdict> {
    let header = read::<20>(ctx, offset)?;
    let [source_high, source_low, port_high, port_low, _, _, _, _, _, _, _, _, length, flags, ..] = header;
    if length >> 4 < 5 {
        return Err(Verdict::Malformed);
    }
    Ok(Segment {
        source,
        destination,
        source_port: u16::from_be_bytes([source_high, source_low]),
        destination_port: u16::from_be_bytes([port_high, port_low]),
        is_v4,
        network_at: network as u32,
        tcp_at: offset as u32,
        opens: flags & (TCP_SYN | TCP_ACK) == TCP_SYN,
        acknowledges: flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_ACK,
    })
}

/// Copies `N` bytes at `offset`, wherever in the frame that is; `None` beyond its end. Dearer than `read`,
/// but the offset may be anything.
#[inline(always)]
pub fn load<const N: usize>(ctx: &XdpContext, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer is on this stack and as long as is said; the kernel checks the offset.
    let result = unsafe { bpf_xdp_load_bytes(ctx.ctx, offset, bytes.as_mut_ptr().cast(), N as u32) };
    (result == 0).then_some(bytes)
}

/// Copies `bytes` to `offset`. False beyond the frame's end: nothing happens then.
#[inline(always)]
pub fn store<const N: usize>(ctx: &XdpContext, offset: u32, bytes: &[u8; N]) -> bool {
    // SAFETY: as in `load`; the kernel only reads the buffer.
    unsafe { bpf_xdp_store_bytes(ctx.ctx, offset, bytes.as_ptr().cast_mut().cast(), N as u32) == 0 }
}

/// Makes the frame so long; false when there is no room, or it is in several buffers.
#[inline(always)]
pub fn resize(ctx: &XdpContext, length: u32) -> bool {
    // SAFETY: reads the context.
    let present = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    if present as usize != ctx.data_end() - ctx.data() {
        return false;
    }
    // SAFETY: nothing reads the packet through a pointer from before.
    unsafe { bpf_xdp_adjust_tail(ctx.ctx, length.wrapping_sub(present) as i32) == 0 }
}

/// The most that fits into a packet of the interface that the frame came in, IP header included.
#[inline(always)]
pub fn mtu(ctx: &XdpContext) -> u32 {
    let mut mtu = 0;
    // SAFETY: 0 names the interface itself; the kernel writes a word, and fails for packets that are too long
    // after it has.
    unsafe { bpf_check_mtu(ctx.ctx.cast(), 0, &raw mut mtu, 0, 0) };
    mtu
}

/// The listener that a flow came to, by the address its socket is bound to.
#[inline(always)]
pub fn listener(ctx: &SkReuseportContext) -> Result<ListenerKey, Fallback> {
    let sk = ctx.sk().sock;
    if sk.is_null() {
        return Err(Fallback::UnknownFamily);
    }
    // All fields are read here, whole and volatile: the verifier allows neither a computed address within a
    // socket nor a part of a field, and that is what the optimizer makes of reads that depend on the family.
    // SAFETY: not null; the verifier turns each field access into a checked read of the socket.
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
    // Shutting a listener down takes away a port that nobody bound it to by number, before its flows migrate;
    // they still have it.
    let port = match ctx.migrating_sk() {
        // SAFETY: not null, since there is one; read as the fields above.
        Some(flow) if port == 0 => unsafe { (&raw const (*flow.sock).src_port).read_volatile() },
        _ => port,
    };
    let [a, b, c, d] = address.map(u64::from);
    // Both are in network order in memory; the halves are put together as the little-endian machine holds
    // them.
    let address = (u128::from(c | (d << 32)) << 64) | u128::from(a | (b << 32));
    let address = address.to_ne_bytes();
    Ok(ListenerKey { address, port })
}
