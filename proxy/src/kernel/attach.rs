//! The guard on interfaces: taken over from the pin that an earlier run left, attached anew, or refused with
//! the holder's name.

use aya::programs::Xdp;
use aya::programs::links::{FdLink, LinkError};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{ProgramError, loaded_programs};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use std::fmt;
use std::path::PathBuf;

use super::guard::GuardMode;
use super::loader::{GUARD, Programs, program_mut};
use super::occupied::{Occupied, occupied};
use super::pins::xdp_link;
use super::{KernelError, XdpMode, chain, errno, pins};

/// What keeps the program on an interface.
#[derive(Debug)]
pub(super) enum Hold {
    /// The loaded program: it goes with this process.
    Program(XdpLinkId),
    /// A pinned link: it stays until the pin is removed and this is dropped.
    Pinned(FdLink),
}

/// Who has an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// An instance of Sluice, running or not.
    Instance {
        /// Its name.
        instance: String,
        /// Its run_dir.
        run_dir: PathBuf,
    },
    /// A program that no instance has pinned.
    Program {
        /// Its id.
        id: u32,
        /// Its name, where we may know it.
        name: Option<String>,
    },
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance { instance, run_dir } => {
                write!(f, "the instance \"{instance}\" ({})", run_dir.display())
            }
            Self::Program { id, name: Some(name) } if name == GUARD => {
                write!(f, "a sluice without pins (program {id})")
            }
            Self::Program { id, name: Some(name) } => {
                write!(f, "program {id}, \"{name}\", which is not Sluice's")
            }
            Self::Program { id: 0, name: None } => f.write_str("several programs"),
            Self::Program { id, name: None } => write!(f, "program {id}"),
        }
    }
}

impl Holder {
    /// Of the program with this id.
    fn new(id: u32) -> Self {
        let pinned = pins::instances()
            .into_iter()
            .find(|pinned| pinned.interfaces.iter().any(|(_, program)| *program == Some(id)));
        if let Some(pinned) = pinned {
            return Self::Instance { instance: pinned.instance, run_dir: pinned.run_dir };
        }
        // The kernel gives names to CAP_SYS_ADMIN only.
        let program = loaded_programs().flatten().find(|program| program.id() == id);
        Self::Program { id, name: program.and_then(|program| program.name_as_str().map(str::to_owned)) }
    }
}

/// Who has the interface, in this thread's network namespace; `None`: nobody, or the kernel does not say.
#[must_use]
pub fn holder(interface: &str) -> Option<Holder> {
    let index = if_nametoindex(interface).ok()?;
    occupied(index).ok().flatten().map(|occupied| Holder::new(occupied.program))
}

impl Programs {
    /// Puts the guard on one interface; with `Auto` driver mode is tried first, then generic. Where an
    /// earlier run of this instance left it pinned, its program is replaced in one step: no packet goes
    /// unjudged.
    ///
    /// Until `apply_guard` was called every packet passes, and is counted as `unconfigured`.
    pub fn attach_guard(&mut self, interface: &str, mode: GuardMode) -> Result<XdpMode, KernelError> {
        let refused = |reason: String| KernelError::Attach { interface: interface.to_owned(), reason };
        if let Some((mode, _)) = self.attached.get(interface) {
            return Ok(*mode);
        }
        if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
            return Err(refused(no_interface()));
        }
        let index = if_nametoindex(interface).map_err(|_| refused(no_interface()))?;
        self.guard_fd()?;
        // Where netlink is refused, the attach itself finds out.
        let on = || occupied(index).ok().flatten();
        if let Some(mode) = self.adopt_link(interface, mode, on())? {
            return Ok(mode);
        }
        if let Some(on) = on() {
            return Err(KernelError::Held {
                interface: interface.to_owned(),
                holder: Holder::new(on.program),
            });
        }
        let modes: &[XdpMode] = match mode {
            GuardMode::Auto => &[XdpMode::Driver, XdpMode::Generic],
            GuardMode::Driver => &[XdpMode::Driver],
            GuardMode::Generic => &[XdpMode::Generic],
        };
        let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
        let mut reasons = Vec::new();
        for &mode in modes {
            let flag = match mode {
                XdpMode::Driver => aya::programs::XdpMode::Driver,
                XdpMode::Generic => aya::programs::XdpMode::Skb,
            };
            match program.attach(interface, flag) {
                Ok(link) => {
                    self.hold(interface, mode, link)?;
                    return Ok(mode);
                }
                Err(error) => {
                    reasons.push(format!(
                        "{} mode: {}",
                        mode.label(),
                        explain_attach(interface, mode, &error)
                    ));
                    if !is_driver_limit(&error) {
                        break;
                    }
                }
            }
        }
        Err(refused(reasons.join("; ")))
    }

    /// Detaches the guard from one interface; nothing happens when it was not attached.
    pub fn detach_guard(&mut self, interface: &str) -> Result<(), KernelError> {
        match self.attached.remove(interface) {
            None => Ok(()),
            Some((_, Hold::Program(link))) => {
                let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
                let refused =
                    |error| KernelError::Attach { interface: interface.to_owned(), reason: chain(&error) };
                program.detach(link).map_err(refused)
            }
            // The link is dropped after its pin.
            Some((_, Hold::Pinned(_link))) => {
                self.pins.as_ref().map_or(Ok(()), |pins| pins.unpin_link(&xdp_link(interface)))
            }
        }
    }

    /// Detaches the guard from what an earlier run guarded and this one shall not.
    pub fn detach_others(&mut self, interfaces: &[String]) -> Result<(), KernelError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for other in pins.interfaces().iter().filter(|interface| !interfaces.contains(interface)) {
            tracing::info!(interface = other, "not in guard.interfaces any more: XDP detached");
            pins.unpin_link(&xdp_link(other))?;
        }
        Ok(())
    }

    /// The interfaces that the guard is attached to.
    pub fn attached(&self) -> impl Iterator<Item = (&str, XdpMode)> {
        self.attached.iter().map(|(interface, (mode, _))| (interface.as_str(), *mode))
    }

    /// Replaces the program of a pinned link, if there is one that still judges this interface in a mode that
    /// is asked for.
    fn adopt_link(
        &mut self,
        interface: &str,
        wanted: GuardMode,
        on: Option<Occupied>,
    ) -> Result<Option<XdpMode>, KernelError> {
        let Some(pins) = &self.pins else { return Ok(None) };
        let Some(link) = pins.link(&xdp_link(interface)) else { return Ok(None) };
        let linked = link.info().map(|info| info.program_id()).unwrap_or_default();
        let mode = on.filter(|on| on.program == linked).and_then(|on| on.mode);
        let fits = |mode: &XdpMode| match wanted {
            GuardMode::Auto => true,
            GuardMode::Driver => *mode == XdpMode::Driver,
            GuardMode::Generic => *mode == XdpMode::Generic,
        };
        let Some(mode) = mode.filter(fits) else {
            let why = if mode.is_some() {
                "is attached in another mode than guard.mode asks for"
            } else {
                "is of an interface that is gone"
            };
            tracing::warn!(
                interface,
                "the pinned XDP link {why}: it is removed, and packets pass unjudged until the new one is \
                 attached"
            );
            return pins.unpin_link(&xdp_link(interface)).map(|()| None);
        };
        let refused = |reason: String| KernelError::Attach { interface: interface.to_owned(), reason };
        let unlinked = |error: LinkError| refused(format!("its pinned link: {}", chain(&error)));
        let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
        let link = XdpLink::try_from(link).map_err(unlinked)?;
        let id = program
            .attach_to_link(link)
            .map_err(|error| refused(format!("its pinned link: {}", chain(&error))))?;
        let link = program.take_link(id).map_err(|error| refused(chain(&error)))?;
        self.attached
            .insert(interface.to_owned(), (mode, Hold::Pinned(FdLink::try_from(link).map_err(unlinked)?)));
        Ok(Some(mode))
    }

    /// Keeps a new link, pinned where there are pins.
    fn hold(&mut self, interface: &str, mode: XdpMode, link: XdpLinkId) -> Result<(), KernelError> {
        let hold = match &self.pins {
            None => Hold::Program(link),
            Some(pins) => {
                let refused =
                    |reason: String| KernelError::Attach { interface: interface.to_owned(), reason };
                let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
                let link = program.take_link(link).map_err(|error| refused(chain(&error)))?;
                let link = FdLink::try_from(link)
                    .map_err(|_| refused("this kernel's XDP has no links to pin".to_owned()))?;
                Hold::Pinned(pins.pin_link(&xdp_link(interface), link)?)
            }
        };
        self.attached.insert(interface.to_owned(), (mode, hold));
        Ok(())
    }
}

fn no_interface() -> String {
    "there is no interface of this name here; `ip -br link` lists them".to_owned()
}

/// Whether another mode may do what this one could not.
fn is_driver_limit(error: &ProgramError) -> bool {
    matches!(
        errno(error).map(Errno::from_raw),
        Some(
            Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE | Errno::ENOSPC | Errno::ENOSYS | Errno::ENOMEM
        )
    )
}

/// What an attach error means to whoever runs the proxy.
fn explain_attach(interface: &str, mode: XdpMode, error: &ProgramError) -> String {
    if matches!(error, ProgramError::UnknownInterface { .. }) {
        return no_interface();
    }
    match (errno(error).map(Errno::from_raw), mode) {
        (Some(Errno::ENODEV), _) => no_interface(),
        (Some(Errno::EPERM | Errno::EACCES), _) => {
            "not permitted: needs CAP_NET_ADMIN and CAP_BPF (or root)".to_owned()
        }
        (Some(Errno::EOPNOTSUPP), XdpMode::Driver) => {
            "its driver has no XDP (lo never has): use guard.mode = \"generic\" or \"auto\"".to_owned()
        }
        (Some(Errno::EOPNOTSUPP), XdpMode::Generic) => "this kernel is built without generic XDP".to_owned(),
        (Some(Errno::EBUSY), _) => format!(
            "another XDP program is attached (another sluice, or `ip link show dev {interface}` names its \
             id): one program per \
             interface; stop that one or take the interface out of guard.interfaces"
        ),
        (Some(Errno::EEXIST), _) => format!(
            "an XDP program is attached in the other mode (`ip link show dev {interface}` shows it): one \
             program per interface; \
             detach that one first"
        ),
        (Some(Errno::EINVAL | Errno::ERANGE), XdpMode::Driver) => format!(
            "its driver refuses XDP with the present settings ({error}): usually too large an MTU, LRO, or a \
             virtual \
             interface that is part of another: use guard.mode = \"generic\""
        ),
        _ => chain(error),
    }
}

/// Only so that a test can check the explanations without an interface in that state.
#[cfg(test)]
mod tests {
    use super::*;

    fn syscall(errno: Errno) -> ProgramError {
        ProgramError::IOError(std::io::Error::from_raw_os_error(errno as i32))
    }

    #[test]
    fn attach_errors_say_what_to_do() {
        for (errno, mode, expected) in [
            (Errno::EOPNOTSUPP, XdpMode::Driver, "generic"),
            (Errno::EBUSY, XdpMode::Generic, "one program per interface"),
            (Errno::EEXIST, XdpMode::Driver, "other mode"),
            (Errno::EPERM, XdpMode::Driver, "CAP_NET_ADMIN"),
            (Errno::ENODEV, XdpMode::Generic, "ip -br link"),
        ] {
            let text = explain_attach("eth0", mode, &syscall(errno));
            assert!(text.contains(expected), "{errno}: {text}");
        }
    }

    #[test]
    fn only_a_drivers_limits_let_auto_go_on() {
        assert!(is_driver_limit(&syscall(Errno::EOPNOTSUPP)));
        assert!(is_driver_limit(&syscall(Errno::EINVAL)));
        for errno in [Errno::EBUSY, Errno::EEXIST, Errno::EPERM, Errno::ENODEV] {
            assert!(!is_driver_limit(&syscall(errno)), "{errno}");
        }
    }
}
