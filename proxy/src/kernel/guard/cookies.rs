//! SYN cookies need some settings of this network namespace. This file changes some of them, and tells the
//! guard's program the others (`proxy-ebpf/src/cookie.rs`).

use proxy_common::cookie::{COOKIE_SACK, COOKIE_TIMESTAMPS, COOKIE_WINDOW_SCALE, CookieConfig};
use proxy_common::guard::GUARD_COOKIES;

use super::settings::SynCookies;
use crate::kernel::error::KernelError;
use crate::kernel::maps::Single;
use crate::kernel::object::Object;
use crate::kernel::sysctl::Sysctls;

const CONFIG: &str = "COOKIE_CONFIG";
/// Bytes of net.core.rmem_max by default, for when it cannot be read.
const RMEM_MAX: u64 = 212_992;
/// The largest first window of the kernel, in bytes: 44 segments of Ethernet.
const WINDOW_MAX: u64 = 64_240;

/// The map that tells the program how to build a cookie's answer.
pub(super) struct Cookies {
    config: Single<CookieConfig>,
    /// The kernel settings allow cookies.
    are_possible: bool,
}

impl Cookies {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self { config: Single::take(object, CONFIG)?, are_possible: false })
    }

    /// The flag of `GuardConfig` that turns cookies on, if they are wanted and possible.
    pub(super) fn flag(&self, mode: SynCookies) -> u32 {
        if self.are_possible && mode != SynCookies::Off { GUARD_COOKIES } else { 0 }
    }

    /// Changes the settings that cookies need. Returns the losses under attack that a setting causes because
    /// it could not be changed.
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
            // With 1 the kernel asks for cookies while a listener's request queue is full.
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
        // The value 2 adds no random offset for each connection, so that the kernel can read the options
        // back.
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

/// The options that the kernel will choose when it sees the cookie again (tcp_select_initial_window). With
/// another window scale, every window of the connection would be misread.
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
