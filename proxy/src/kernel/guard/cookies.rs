//! SYN cookies need some settings of this network namespace. This file changes some of them, and tells the
//! guard's program the others (`proxy-ebpf/src/cookie.rs`).
//!
//! The kernel asks for cookies while a listener's request queue is full. A flood in the name of one source
//! never fills it: that source's SYNs are dropped above its rate, an honest client's among them. So with
//! `auto`, while the program notes such a flood, the kernel is made to ask for a cookie for every SYN.

use std::time::Duration;

use proxy_common::cookie::{COOKIE_SACK, COOKIE_TIMESTAMPS, COOKIE_WINDOW_SCALE, CookieConfig};
use proxy_common::guard::GUARD_COOKIES;
use tracing::{info, warn};

use super::settings::{Guard, SynCookies};
use crate::kernel::error::KernelError;
use crate::kernel::maps::Single;
use crate::kernel::object::Object;
use crate::kernel::sysctl::Sysctls;
use crate::time::Time;

const CONFIG: &str = "COOKIE_CONFIG";
const SYNCOOKIES: &str = "tcp_syncookies";
/// Nanoseconds of the rate of cookies that may be sent at once.
const BURST_NANOS: u64 = 100_000_000;
/// How often it is looked whether SYNs exceed a source's rate.
const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// How long SYNs have to keep to their sources' rates before the kernel decides alone again.
const CALM_AFTER: Duration = Duration::from_secs(30);
/// Bytes of net.core.rmem_max by default, for when it cannot be read.
const RMEM_MAX: u64 = 212_992;
/// The largest first window of the kernel, in bytes: 44 segments of Ethernet.
const WINDOW_MAX: u64 = 64_240;

/// The map that tells the program how to build a cookie's answer.
pub(super) struct Cookies {
    config: Single<CookieConfig>,
    /// The kernel settings allow cookies.
    are_possible: bool,
    /// The setting of `tcp_syncookies` without a flood, if `auto` may change it.
    calm: Option<String>,
    /// Every SYN gets a cookie, since a source's SYNs exceed its rate.
    is_pressed: bool,
    next_look: Time,
}

impl Cookies {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self {
            config: Single::take(object, CONFIG)?,
            are_possible: false,
            calm: None,
            is_pressed: false,
            next_look: Time::from_nanos(0),
        })
    }

    /// The flag of `GuardConfig` that turns cookies on, if they are wanted and possible.
    pub(super) fn flag(&self, mode: SynCookies) -> u32 {
        if self.are_possible && mode != SynCookies::Off { GUARD_COOKIES } else { 0 }
    }

    /// Changes the settings that cookies need. Returns the losses under attack that a setting causes because
    /// it could not be changed.
    pub(super) fn prepare(
        &mut self,
        guard: &Guard,
        sysctls: &mut Sysctls,
    ) -> Result<Vec<String>, KernelError> {
        let mode = guard.syn_cookies;
        let failed = |reason: String| KernelError::Cookies { reason };
        let mut lacks = Vec::new();
        let present = sysctls.read(SYNCOOKIES).map_err(failed)?;
        let set = match (mode, present.as_str()) {
            (SynCookies::Off, _) => return Ok(lacks),
            // With 1 the kernel asks for cookies while a listener's request queue is full.
            (SynCookies::Auto, "0") => sysctls.set(SYNCOOKIES, "1"),
            // A run that crashed during a flood left it so.
            (SynCookies::Auto, "2") if sysctls.before(SYNCOOKIES).is_some_and(|before| before != "2") => {
                sysctls.set(SYNCOOKIES, "1")
            }
            (SynCookies::Auto, _) => Ok(()),
            (SynCookies::Always, _) => sysctls.set(SYNCOOKIES, "2"),
        };
        match set {
            Ok(()) => {}
            Err(error) if present == "0" => return Err(failed(error)),
            Err(error) => {
                lacks.push(format!("a cookie for every SYN: only while a request queue is full ({error})"))
            }
        }
        // The value 2 adds no random offset for each connection, so that the kernel can read the options
        // back.
        let timestamps = match sysctls.read("tcp_timestamps").as_deref() {
            Ok("0") => Err("net.ipv4.tcp_timestamps is 0".to_owned()),
            Ok("2") => Ok(()),
            _ => sysctls.set("tcp_timestamps", "2"),
        };
        let mut config = config(guard.syn_cookies_rate, sysctls);
        match timestamps {
            Ok(()) => config.flags |= COOKIE_TIMESTAMPS,
            Err(error) => lacks.push(format!("window scale and SACK of connections with a cookie ({error})")),
        }
        self.config.write(config)?;
        self.are_possible = true;
        let calm = sysctls.read(SYNCOOKIES).map_err(failed)?;
        let follows = mode == SynCookies::Auto && !guard.dry_run && guard.syn_rate_per_ip.is_some();
        self.calm = (follows && calm != "2").then_some(calm);
        Ok(lacks)
    }

    /// When `follow` has something to do; `None`: never.
    pub(super) fn next_look(&self) -> Option<Time> {
        self.calm.as_ref().map(|_| self.next_look)
    }

    /// Has the kernel ask for a cookie for every SYN while SYNs exceed a source's rate. The program noted
    /// that last at `pressed_at`.
    pub(super) fn follow(&mut self, pressed_at: u64, now: Time, sysctls: &mut Sysctls) {
        let Some(calm) = &self.calm else { return };
        self.next_look = now + LOOK_PAUSE;
        let wanted = pressed_at != 0 && now < Time::from_nanos(pressed_at) + CALM_AFTER;
        if wanted == self.is_pressed {
            return;
        }
        let set = sysctls.set(SYNCOOKIES, if wanted { "2" } else { calm });
        match set {
            Ok(()) if wanted => warn!(
                "SYNs exceed a source's rate (guard.syn_rate_per_ip): every SYN is answered with a cookie \
                 until {} s have passed without",
                CALM_AFTER.as_secs()
            ),
            Ok(()) => info!("no source's SYNs exceed its rate any more: cookies only where a queue is full"),
            Err(error) => {
                warn!("guard.syn_cookies cannot follow floods any more: {error}");
                // Trying again would fail again.
                self.calm = None;
            }
        }
        self.is_pressed = wanted;
    }
}

/// The options that the kernel will choose when it sees the cookie again (tcp_select_initial_window). With
/// another window scale, every window of the connection would be misread.
fn config(rate: u32, sysctls: &Sysctls) -> CookieConfig {
    let is_on = |name| sysctls.read(name).is_ok_and(|value| value != "0");
    let rmem = sysctls.read("tcp_rmem").unwrap_or_default();
    let mut rmem = rmem.split_whitespace().skip(1).map(|value| value.parse::<u64>().unwrap_or(0));
    let (default, max) = (rmem.next().unwrap_or(131_072), rmem.next().unwrap_or(6 << 20));
    let core = std::fs::read_to_string("/proc/sys/net/core/rmem_max");
    let core = core.ok().and_then(|value| value.trim().parse().ok()).unwrap_or(RMEM_MAX);
    let cost_nanos = 1_000_000_000 / u64::from(rate.clamp(1, 1_000_000_000));
    CookieConfig {
        cost_nanos,
        depth_nanos: cost_nanos.max(BURST_NANOS),
        flags: if is_on("tcp_sack") { COOKIE_SACK } else { 0 }
            | if is_on("tcp_window_scaling") { COOKIE_WINDOW_SCALE } else { 0 },
        // Half of a socket's memory is for payload.
        window: (default / 2).clamp(536, WINDOW_MAX) as u32,
        window_scale: window_scale(max.max(core)),
        reserved: 0,
    }
}

fn window_scale(space: u64) -> u32 {
    space.max(1).ilog2().saturating_sub(15).min(14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_scale_is_the_kernels() {
        for (space, scale) in
            [(0, 0), (65_535, 0), (65_536, 1), (212_992, 2), (6_291_456, 7), (33_554_432, 10), (1 << 40, 14)]
        {
            assert_eq!(window_scale(space), scale, "{space}");
        }
    }
}
