//! The user side of SYN cookies: the settings of this network namespace that they need, and what the guard's
//! program is told of the others (`proxy-ebpf/src/cookie.rs`).

use proxy_common::cookie::{COOKIE_SACK, COOKIE_TIMESTAMPS, COOKIE_WINDOW_SCALE, CookieConfig};
use proxy_common::guard::GUARD_COOKIES;

use super::settings::SynCookies;
use crate::kernel::error::KernelError;
use crate::kernel::maps::Single;
use crate::kernel::object::Object;
use crate::kernel::sysctl::Sysctls;

const CONFIG: &str = "COOKIE_CONFIG";
/// net.core.rmem_max where it cannot be read: the kernel's default.
const RMEM_MAX: u64 = 212_992;
/// What the kernel advertises first at most: 44 segments of Ethernet.
const WINDOW_MAX: u64 = 64_240;

/// The map that tells the program how to answer.
pub(super) struct Cookies {
    config: Single<CookieConfig>,
    /// The settings allow that SYNs are answered with cookies.
    are_possible: bool,
}

impl Cookies {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self { config: Single::take(object, CONFIG)?, are_possible: false })
    }

    /// Of `GuardConfig::flags`.
    pub(super) fn flag(&self, mode: SynCookies) -> u32 {
        if self.are_possible && mode != SynCookies::Off { GUARD_COOKIES } else { 0 }
    }

    /// Changes the settings that cookies need; returns what is lost under attack for want of a setting.
    pub(super) fn prepare(
        &mut self,
        mode: SynCookies,
        sysctls: &mut Sysctls,
    ) -> Result<Vec<String>, KernelError> {
        let failed = |reason: String| KernelError::Cookies { reason };
        let mut lacks = Vec::new();
        let present = sysctls.read("tcp_syncookies").map_err(failed)?;
        let set = match (mode, present.as_str()) {
            (SynCookies::Off, _) => return Ok(lacks),
            // 1: the kernel says that a cookie is needed once the listener's request queue is full.
            (SynCookies::Auto, "0") => sysctls.set("tcp_syncookies", "1"),
            (SynCookies::Auto, _) => Ok(()),
            (SynCookies::Always, _) => sysctls.set("tcp_syncookies", "2"),
        };
        match set {
            Ok(()) => {}
            Err(error) if present == "0" => return Err(failed(error)),
            Err(error) => {
                lacks.push(format!("a cookie for every SYN: only while a request queue is full ({error})"))
            }
        }
        // Without an offset of each connection's own, or the kernel could not read the options back.
        let timestamps = match sysctls.read("tcp_timestamps").as_deref() {
            Ok("0") => Err("net.ipv4.tcp_timestamps is 0".to_owned()),
            Ok("2") => Ok(()),
            _ => sysctls.set("tcp_timestamps", "2"),
        };
        let mut config = config(sysctls);
        match timestamps {
            Ok(()) => config.flags |= COOKIE_TIMESTAMPS,
            Err(error) => lacks.push(format!("window scale and SACK of connections with a cookie ({error})")),
        }
        self.config.write(config)?;
        self.are_possible = true;
        Ok(lacks)
    }
}

/// As the kernel will choose when it sees the cookie again (tcp_select_initial_window): another window scale
/// would garble every window.
fn config(sysctls: &Sysctls) -> CookieConfig {
    let is_on = |name| sysctls.read(name).is_ok_and(|value| value != "0");
    let rmem = sysctls.read("tcp_rmem").unwrap_or_default();
    let mut rmem = rmem.split_whitespace().skip(1).map(|value| value.parse::<u64>().unwrap_or(0));
    let (default, max) = (rmem.next().unwrap_or(131_072), rmem.next().unwrap_or(6 << 20));
    let core = std::fs::read_to_string("/proc/sys/net/core/rmem_max");
    let core = core.ok().and_then(|value| value.trim().parse().ok()).unwrap_or(RMEM_MAX);
    CookieConfig {
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
