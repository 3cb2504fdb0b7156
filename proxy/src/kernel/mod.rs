//! The user side of XDP and steering: loading the embedded object, filling its maps, reading its counters.
//! Only the supervisor uses this. What the programs do is in `proxy-ebpf`; what both sides agree on is in
//! `proxy-common`.

mod attach;
mod bans;
mod cgroup;
mod connections;
mod cookies;
mod counters;
mod cut;
mod filter;
pub mod guard;
mod loader;
mod netns;
mod occupied;
mod ours;
pub mod pins;
mod policy;
pub mod steering;
mod sysctl;

use std::net::{IpAddr, SocketAddr};

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::programs::xdp::XdpError;
use proxy_common::ListenerKey;

pub use attach::{Holder, holder};
pub use connections::Counted;
pub use counters::Steered;
pub use cut::cut;
pub use loader::Programs;
pub use sysctl::Sysctls;

/// How an XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Driver,
    /// In the generic hook (after the kernel allocated the packet).
    Generic,
}

impl XdpMode {
    /// As `guard.mode` and `/status` spell it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Generic => "generic",
        }
    }
}

/// What went wrong, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The object could not be loaded.
    #[error("eBPF: {0}")]
    Load(String),
    /// XDP could not be attached.
    #[error("XDP on {interface}: {reason}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Somebody else has the interface.
    #[error(
        "XDP on {interface}: another XDP program is attached, by {holder}; one program per interface: stop \
         that one or take the \
         interface out of guard.interfaces"
    )]
    Held {
        /// The interface.
        interface: String,
        /// Who.
        holder: Holder,
    },
    /// SYNs are not answered with cookies.
    #[error("SYN cookies: {reason}")]
    Cookies {
        /// Why.
        reason: String,
    },
    /// A map could not be pinned.
    #[error("pins: {0}")]
    Pin(String),
    /// The sockets of a listener address could not be steered.
    #[error("steering of {address}: {reason}")]
    Steer {
        /// The listener address.
        address: SocketAddr,
        /// Why, and what to do.
        reason: String,
    },
    /// As many bans hold as there can be.
    #[error(
        "{} bans hold, that is the most; `sluice unban` makes room, and networks belong into guard.deny",
        proxy_common::guard::BANS_MAX
    )]
    BansFull,
    /// Connections are not counted.
    #[error("cgroup v2: {reason}")]
    Cgroup {
        /// Why, and what to do.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("map {map}: {reason}")]
    Map {
        /// The map.
        map: &'static str,
        /// Why.
        reason: String,
    },
}

impl KernelError {
    /// A map operation failed.
    fn map(map: &'static str, error: impl std::error::Error + 'static) -> Self {
        Self::Map { map, reason: chain(&error) }
    }
}

/// An error with all its causes in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let line = error.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = error.source();
    }
    text
}

/// The errno at the bottom of an error's causes.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = errno_of(error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// The errno that this very error holds. aya's transparent variants answer `source` with the source of what
/// they hold, so an I/O error in one of them is never among the causes.
fn errno_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    if let Some(error) = error.downcast_ref::<ProgramError>() {
        return match error {
            ProgramError::IOError(error) => error.raw_os_error(),
            ProgramError::NetlinkError(error) | ProgramError::XdpError(XdpError::NetlinkError(error)) => {
                error.raw_os_error()
            }
            ProgramError::MapError(error) => errno_of(error),
            _ => None,
        };
    }
    if let Some(MapError::IoError(error)) = error.downcast_ref::<MapError>() {
        return error.raw_os_error();
    }
    error.downcast_ref::<std::io::Error>()?.raw_os_error()
}

/// An address as both programs look it up.
fn listener_key(address: SocketAddr) -> ListenerKey {
    ListenerKey { address: mapped(address.ip()), port: u32::from(address.port()) }
}

/// IPv4 as IPv4-mapped IPv6, in network order.
fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
