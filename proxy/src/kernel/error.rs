//! The errors of this room, with the remedy where one is known, and the holder of an interface.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::programs::ProgramError;
use aya::programs::xdp::XdpError;

/// The reason why a program or map cannot be used, with the remedy where one is known.
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
        /// The reason, and the remedy.
        reason: String,
    },
    /// Somebody else has the interface.
    #[error(
        "XDP on {interface}: another XDP program is attached, by {holder}; one program per interface: stop \
         that one or take the interface out of guard.interfaces"
    )]
    Held {
        /// The interface.
        interface: String,
        /// Its holder.
        holder: Holder,
    },
    /// SYNs are not answered with cookies.
    #[error("SYN cookies: {reason}")]
    Cookies {
        /// The reason.
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
        /// The reason, and the remedy.
        reason: String,
    },
    /// The table of bans is full.
    #[error(
        "{} bans hold, that is the most; `sluice unban` makes room, and networks belong into guard.deny",
        proxy_common::guard::BANS_MAX
    )]
    BansFull,
    /// Connections are not counted.
    #[error("cgroup v2: {reason}")]
    Cgroup {
        /// The reason, and the remedy.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("map {map}: {reason}")]
    Map {
        /// The map.
        map: &'static str,
        /// The reason.
        reason: String,
    },
}

impl KernelError {
    /// A map operation failed.
    pub(super) fn map(map: &'static str, error: impl std::error::Error + 'static) -> Self {
        Self::Map { map, reason: chain(&error) }
    }

    /// A map has no room for this many entries.
    pub(super) fn check_room(map: &'static str, entries: usize, most: u32) -> Result<(), Self> {
        if entries > most as usize {
            return Err(Self::Map { map, reason: format!("{entries} entries wanted, {most} are the most") });
        }
        Ok(())
    }
}

/// The holder of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An instance of Sluice, running or not.
    Instance {
        /// Its name.
        instance: String,
        /// Its run_dir.
        run_dir: PathBuf,
    },
    /// A guard of Sluice that no instance has pinned.
    Unpinned {
        /// The program's id.
        id: u32,
    },
    /// An XDP program that is not Sluice's, or whose name we may not read.
    Program {
        /// Its id; 0 where several are attached.
        id: u32,
        /// Its name, where the kernel tells us.
        name: Option<String>,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance { instance, run_dir } => {
                write!(f, "the instance \"{instance}\" ({})", run_dir.display())
            }
            Self::Unpinned { id } => write!(f, "a sluice without pins (program {id})"),
            Self::Program { id, name: Some(name) } => {
                write!(f, "program {id}, \"{name}\", which is not Sluice's")
            }
            Self::Program { id: 0, name: None } => f.write_str("several programs"),
            Self::Program { id, name: None } => write!(f, "program {id}"),
        }
    }
}

/// An error and all its causes, in one line.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
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
pub(super) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = errno_of(error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// The errno of this error itself, not of its causes. For transparent variants, aya's `source` skips the
/// error they hold, so `errno` would never meet an I/O error in one of them.
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
