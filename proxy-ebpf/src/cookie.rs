//! SYN cookies from XDP (RFC 4987 section 3.6): a SYN is answered in its own frame, before the kernel has
//! allocated anything for it. The kernel decides whether the listener needs cookies; it makes them and checks
//! them. While cookies are out, ACKs without a valid one are dropped.

use aya_ebpf::programs::XdpContext;
use proxy_common::cookie::{
    self, COOKIE_SACK, COOKIE_TIMESTAMPS, COOKIE_WINDOW_SCALE, COOKIES_LIVE_NANOS, CookieConfig,
};

use crate::connections::TCP_LISTEN;
use crate::maps::{self, Step};
use crate::packet::{self, Address, Segment};
use crate::sockets::{self, Headers};

const PROTOCOL_TCP: u8 = 6;
const TCP_SYN_ACK: u8 = 0x12;
const HOPS: u8 = 64;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
const OPTION_SCALE: u8 = 3;
const OPTION_SACK: u8 = 4;
const OPTION_TIMESTAMPS: u8 = 8;
/// Bytes that TCP options take at most.
const OPTIONS_MAX: u32 = 40;
/// Bytes of a segment that every IPv4 host takes (RFC 9293).
const MSS_MIN: u32 = 536;

/// Nanoseconds by which the time of the last cookie may be out of date, so that not every SYN of a flood
/// writes it.
const STALE_NANOS: u64 = 1_000_000_000;

/// What becomes of a SYN.
pub enum Answer {
    /// It was answered with a cookie: the frame is the answer.
    Sent,
    /// It needs a cookie, but more than enough were sent already.
    OverBudget,
    /// The kernel needs no cookie, or there is no listener.
    NotNeeded,
}

/// Answers a SYN with a cookie if the kernel needs one. The frame becomes the answer, unless `judge_only`.
#[inline(always)]
pub fn answer(ctx: &XdpContext, segment: &Segment, judge_only: bool) -> Answer {
    let (Some(config), Some(headers)) = (sockets::cookie_config(), sockets::headers()) else {
        return Answer::NotNeeded;
    };
    let (now, at) = (maps::now(), sockets::cookies_at());
    // In the midst of a flood, what is beyond the budget costs no look-up.
    let is_recent = at != 0 && now.saturating_sub(at) <= 2 * STALE_NANOS;
    if is_recent && !maps::has_cookie(now, config.cost_nanos, config.depth_nanos) {
        return Answer::OverBudget;
    }
    let Some(made) = sockets::look_up(ctx, segment, |found| {
        if found.state() != TCP_LISTEN {
            return None;
        }
        found.make_cookie(ctx, segment, headers)
    }) else {
        return Answer::NotNeeded;
    };
    let Some(cookie) = made else { return Answer::NotNeeded };
    if now.saturating_sub(at) > STALE_NANOS {
        sockets::set_cookies_at(now);
    }
    if !maps::take_cookie(now, config.cost_nanos, config.depth_nanos) {
        return Answer::OverBudget;
    }
    if judge_only || write(ctx, segment, config, headers, cookie, (now / 1_000_000) as u32) {
        Answer::Sent
    } else {
        Answer::NotNeeded
    }
}

/// What a segment other than a SYN acknowledges.
pub enum Acknowledged {
    /// A cookie: with this segment, its handshake is complete.
    Cookie,
    /// Nothing: it belongs to no connection and has no valid cookie.
    Nothing,
    /// A connection that there is, or the kernel's own handshake; or it is not known.
    Other,
}

/// Finds what a segment other than a SYN acknowledges. While no cookie is out, this costs one load.
#[inline(always)]
pub fn acknowledged(ctx: &XdpContext, segment: &Segment) -> Acknowledged {
    let at = sockets::cookies_at();
    if at == 0 || !segment.acknowledges {
        return Acknowledged::Other;
    }
    if maps::now().saturating_sub(at) > COOKIES_LIVE_NANOS {
        sockets::set_cookies_at(0);
        return Acknowledged::Other;
    }
    let Some(headers) = sockets::headers() else { return Acknowledged::Other };
    let found = sockets::look_up(ctx, segment, |found| {
        if found.state() == TCP_LISTEN { found.check_cookie(ctx, segment, headers) } else { NOT_ASKED }
    });
    match found {
        Some(0) => Acknowledged::Cookie,
        Some(sockets::NO_COOKIE) => Acknowledged::Nothing,
        _ => Acknowledged::Other,
    }
}

/// Neither an answer of the kernel about a cookie, nor an error of it.
const NOT_ASKED: i64 = 1;

/// The TCP options that a client offers with its SYN.
struct Offer<'a> {
    ctx: &'a XdpContext,
    /// Offsets in the frame: of the next option, and of the first byte behind the options.
    at: u32,
    end: u32,
    // These are not of type `Option`: the verifier refuses to store the value of an empty one.
    has_timestamp: bool,
    timestamp: u32,
    has_scale: bool,
    scale: u32,
    sack: bool,
}

impl Step for Offer<'_> {
    #[inline(always)]
    fn step(&mut self, _: u32) -> bool {
        if self.at >= self.end {
            return true;
        }
        let Some([kind, length]) = packet::load::<2>(self.ctx, self.at) else { return true };
        match (kind, length) {
            (OPTION_END, _) => return true,
            (OPTION_NOP, _) => {
                self.at += 1;
                return false;
            }
            (_, 0 | 1) => return true,
            (OPTION_SCALE, 3) => {
                if let Some([scale]) = packet::load::<1>(self.ctx, self.at + 2) {
                    (self.has_scale, self.scale) = (true, u32::from(scale));
                }
            }
            (OPTION_SACK, 2) => self.sack = true,
            (OPTION_TIMESTAMPS, 10) => {
                if let Some(stamp) = packet::load::<4>(self.ctx, self.at + 2) {
                    (self.has_timestamp, self.timestamp) = (true, u32::from_be_bytes(stamp));
                }
            }
            _ => {}
        }
        self.at += u32::from(length);
        false
    }
}

/// Turns the frame into the answer. On false nothing was changed.
#[inline(always)]
fn write(
    ctx: &XdpContext,
    segment: &Segment,
    config: &CookieConfig,
    headers: &mut Headers,
    cookie: u32,
    now_ms: u32,
) -> bool {
    let tcp = &mut headers.tcp;
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let options_at = segment.tcp_at + 20;
    let end = segment.tcp_at + u32::from(tcp[12] >> 4) * 4;
    let mut offer = Offer {
        ctx,
        at: options_at,
        end,
        has_timestamp: false,
        timestamp: 0,
        has_scale: false,
        scale: 0,
        sack: false,
    };
    maps::repeat(OPTIONS_MAX, &mut offer);

    let network = if segment.is_v4 { 20 } else { 40 };
    let mss = packet::mtu(ctx).saturating_sub(network + 20).clamp(MSS_MIN, 0xffff);
    let stamps = offer.has_timestamp && config.flags & COOKIE_TIMESTAMPS != 0;
    let length = if stamps { 40 } else { 24 };
    let Some(macs) = packet::load::<12>(ctx, 0) else { return false };
    if !packet::resize(ctx, segment.network_at + network + length) {
        return false;
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l] = macs;
    packet::store(ctx, 0, &[g, h, i, j, k, l, a, b, c, d, e, f]);

    tcp[0..2].copy_from_slice(&segment.destination_port.to_be_bytes());
    tcp[2..4].copy_from_slice(&segment.source_port.to_be_bytes());
    tcp[4..8].copy_from_slice(&cookie.to_be_bytes());
    tcp[8..12].copy_from_slice(&sequence.wrapping_add(1).to_be_bytes());
    tcp[12] = (length as u8 / 4) << 4;
    tcp[13] = TCP_SYN_ACK;
    tcp[14..16].copy_from_slice(&(config.window as u16).to_be_bytes());
    tcp[16..20].copy_from_slice(&[0; 4]);
    tcp[20] = OPTION_MSS;
    tcp[21] = 4;
    tcp[22..24].copy_from_slice(&(mss as u16).to_be_bytes());
    if stamps {
        let sack = offer.sack && config.flags & COOKIE_SACK != 0;
        let scales = offer.has_scale && config.flags & COOKIE_WINDOW_SCALE != 0;
        let scale = if scales { Some(offer.scale) } else { None };
        (tcp[24], tcp[25]) = if sack { (OPTION_SACK, 2) } else { (OPTION_NOP, OPTION_NOP) };
        (tcp[26], tcp[27]) = (OPTION_TIMESTAMPS, 10);
        tcp[28..32].copy_from_slice(&cookie::timestamp(now_ms, scale, sack).to_be_bytes());
        tcp[32..36].copy_from_slice(&offer.timestamp.to_be_bytes());
        (tcp[36], tcp[37], tcp[38], tcp[39]) = if scales {
            (OPTION_NOP, OPTION_SCALE, 3, config.window_scale as u8)
        } else {
            (OPTION_NOP, OPTION_NOP, OPTION_NOP, OPTION_NOP)
        };
    } else {
        // These bytes are not sent; as zeros they add nothing to the sum.
        tcp[24..40].copy_from_slice(&[0; 16]);
    }
    let pseudo = sum(&segment.source) + sum(&segment.destination) + u32::from(PROTOCOL_TCP) + length;
    let check = folded(pseudo + summed(&tcp[..40]));
    tcp[16..18].copy_from_slice(&check.to_be_bytes());

    write_ip(ctx, segment, &mut headers.ip, length);
    let tcp_at = segment.network_at + network;
    if stamps {
        headers.tcp.first_chunk::<40>().is_some_and(|tcp| packet::store(ctx, tcp_at, tcp))
    } else {
        headers.tcp.first_chunk::<24>().is_some_and(|tcp| packet::store(ctx, tcp_at, tcp))
    }
}

/// Writes an IP header without options, for `length` bytes of TCP from the segment's destination to its
/// source.
#[inline(always)]
fn write_ip(ctx: &XdpContext, segment: &Segment, ip: &mut [u8; 40], length: u32) {
    let (from, to) = (segment.destination.octets(), segment.source.octets());
    ip[0..12].copy_from_slice(&[0; 12]);
    if segment.is_v4 {
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&((20 + length) as u16).to_be_bytes());
        // The flag DF: the packet must not be fragmented.
        ip[6] = 0x40;
        ip[8] = HOPS;
        ip[9] = PROTOCOL_TCP;
        ip[12..16].copy_from_slice(&from[12..16]);
        ip[16..20].copy_from_slice(&to[12..16]);
        let check = folded(summed(&ip[..20]));
        ip[10..12].copy_from_slice(&check.to_be_bytes());
        if let Some(ip) = ip.first_chunk::<20>() {
            packet::store(ctx, segment.network_at, ip);
        }
    } else {
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        ip[6] = PROTOCOL_TCP;
        ip[7] = HOPS;
        ip[8..24].copy_from_slice(&from);
        ip[24..40].copy_from_slice(&to);
        packet::store(ctx, segment.network_at, ip);
    }
}

/// The sum of an address's 16-bit words, without the prefix of an IPv4-mapped address.
#[inline(always)]
fn sum(address: &Address) -> u32 {
    let words = |half: u64| {
        (half >> 48) as u32
            + (half >> 32 & 0xffff) as u32
            + (half >> 16 & 0xffff) as u32
            + (half & 0xffff) as u32
    };
    let (leading, trailing) = address.halves();
    let mapped = if leading == 0 && trailing >> 32 == 0xffff { 0xffff } else { 0 };
    words(leading) + words(trailing) - mapped
}

/// The sum of RFC 1071, not folded yet.
#[inline(always)]
fn summed(bytes: &[u8]) -> u32 {
    let mut sum = 0;
    for word in bytes.as_chunks::<2>().0 {
        sum += u32::from(u16::from_be_bytes(*word));
    }
    sum
}

#[inline(always)]
fn folded(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}
