//! Source routes: packets that go on to further addresses. The kernel follows them only where it is told to
//! (`accept_source_route`, `seg6_enabled`). If a route ends at this host, the kernel delivers the packet,
//! whatever destination its IP header had on the wire.

use aya_ebpf::programs::XdpContext;

use crate::maps::{self, Step};
use crate::packet::{self, Address, UNSPECIFIED};

/// IPv4 options (RFC 791 section 3.1): the end, a filler of one byte, loose and strict source routes.
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LOOSE_ROUTE: u8 = 131;
const OPTION_STRICT_ROUTE: u8 = 137;
/// The shortest route: three bytes and an address.
const ROUTE_MIN: u8 = 7;
/// Bytes that IPv4 options take at most.
const OPTIONS_MAX: u32 = 40;

/// IPv6 routing headers whose last address is the first one or the only one (RFC 6275 section 6.4, RFC 8754).
const ROUTING_HOME: u8 = 2;
const ROUTING_SEGMENTS: u8 = 4;

/// The last address of an IPv4 packet's source route that is not at its end. The options are between both
/// offsets.
#[inline(always)]
pub fn v4(ctx: &XdpContext, from: u32, end: u32) -> Option<Address> {
    let mut options = Options { ctx, at: from, end, is_routed: false, last: 0 };
    maps::repeat(OPTIONS_MAX, &mut options);
    if options.is_routed { Some(Address::v4(options.last)) } else { None }
}

/// A walk over the options of an IPv4 packet.
struct Options<'a> {
    ctx: &'a XdpContext,
    /// The offsets in the frame of the next option, and behind the options.
    at: u32,
    end: u32,
    is_routed: bool,
    last: u32,
}

impl Step for Options<'_> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> bool {
        if self.at >= self.end {
            return true;
        }
        // What is read behind the options is part of the TCP header. A frame that ends here shows none.
        let Some([kind, length, next]) = packet::load::<3>(self.ctx, self.at) else { return true };
        match (kind, length) {
            (OPTION_END, _) => return true,
            (OPTION_NOP, _) => {
                self.at += 1;
                return false;
            }
            // The kernel refuses it.
            (_, 0 | 1) => return true,
            // `next` counts from 1, and is behind the route once all addresses were visited.
            (OPTION_LOOSE_ROUTE | OPTION_STRICT_ROUTE, ROUTE_MIN..) if next <= length => {
                if let Some(last) = packet::load::<4>(self.ctx, self.at + u32::from(length) - 4) {
                    (self.is_routed, self.last) = (true, u32::from_ne_bytes(last));
                }
                return true;
            }
            _ => {}
        }
        self.at += u32::from(length);
        false
    }
}

/// The last address of an IPv6 routing header of this kind. The kernel follows no other kinds than these,
/// unless it is a router for networks of sensors (RFC 6554).
#[inline(always)]
pub fn v6(ctx: &XdpContext, at: u32, kind: u8) -> Address {
    if !matches!(kind, ROUTING_HOME | ROUTING_SEGMENTS) {
        return UNSPECIFIED;
    }
    let half = |at| packet::load::<8>(ctx, at).map_or(0, u64::from_ne_bytes);
    Address([half(at + 8), half(at + 16)])
}
