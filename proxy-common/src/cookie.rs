//! SYN cookies: the layout that both sides share (Documentation/networking/ip-sysctl.rst,
//! net/ipv4/syncookies.c).
//!
//! The kernel makes and checks the cookies. A cookie has no bits for window scale and SACK. These travel in
//! the timestamp, in the kernel's own encoding, since the kernel reads them back.

/// `CookieConfig::flags`: answers carry timestamps, and with them the options below.
pub const COOKIE_TIMESTAMPS: u32 = 1;
/// `CookieConfig::flags`: SACK is offered to clients that offer it.
pub const COOKIE_SACK: u32 = 1 << 1;
/// `CookieConfig::flags`: window scaling is offered to clients that offer it.
pub const COOKIE_WINDOW_SCALE: u32 = 1 << 2;

/// The only value of the configuration map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CookieConfig {
    /// `COOKIE_…`
    pub flags: u32,
    /// The window of the answer, in bytes: the room that the kernel will have, at most 65535.
    pub window: u32,
    /// The window scale that the kernel will use, 0 to 14.
    pub window_scale: u32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds that one answer takes from the budget of all: one second divided by the rate.
    pub cost_nanos: u64,
    /// Nanoseconds that a full budget holds.
    pub depth_nanos: u64,
}

const _: () = assert!(core::mem::size_of::<CookieConfig>() == 32);

/// Nanoseconds after the last cookie in which a client may still answer one. The kernel takes none that is
/// older than two minutes.
pub const COOKIES_LIVE_NANOS: u64 = 130 * 1_000_000_000;

/// The number of low bits of a timestamp that hold options.
const OPTION_BITS: u32 = 6;
/// The value for "no window scaling".
const NO_SCALE: u32 = 15;
const SACK: u32 = 1 << 4;

/// The timestamp that later tells the kernel which options a client offered. `now_ms` is the kernel's clock
/// in milliseconds; the timestamp is never ahead of it.
#[inline(always)]
#[must_use]
pub const fn timestamp(now_ms: u32, window_scale: Option<u32>, sack: bool) -> u32 {
    let scale = match window_scale {
        // RFC 7323: at most 14, whatever is offered.
        Some(scale) if scale > 14 => 14,
        Some(scale) => scale,
        None => NO_SCALE,
    };
    let options = scale | if sack { SACK } else { 0 };
    let stamp = now_ms & !((1 << OPTION_BITS) - 1) | options;
    if stamp > now_ms { stamp.wrapping_sub(1 << OPTION_BITS) } else { stamp }
}
