//! Attaches the guard to interfaces. Either the link that an earlier run pinned is taken over, or a new one
//! is made. If another program has the interface, the error names its holder.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use aya::programs::links::{FdLink, Link, LinkError};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, loaded_programs};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use super::pins::{self, PinError, Pins, xdp_link};
use super::settings::GuardMode;
use crate::kernel::error::{Holder, KernelError, chain, errno};
use crate::kernel::links::{Device, Occupied, XdpMode, explain_frames};
use crate::kernel::object::{GUARD, Object, explain_program};

/// The holder of the interface, in this thread's network namespace. `None`: nobody has it, or the kernel does
/// not tell.
#[must_use]
pub fn holder(interface: &str) -> Option<Holder> {
    let index = if_nametoindex(interface).ok()?;
    Device::read(index).ok()?.xdp.map(|occupied| holder_of(occupied.program))
}

/// The holder whose program has this id.
fn holder_of(id: u32) -> Holder {
    let pinned = pins::instances()
        .into_iter()
        .find(|pinned| pinned.interfaces.iter().any(|(_, program)| *program == Some(id)));
    if let Some(pinned) = pinned {
        return Holder::Instance { instance: pinned.instance, run_dir: pinned.run_dir };
    }
    // The kernel tells names of programs only to CAP_SYS_ADMIN.
    let program = loaded_programs().flatten().find(|program| program.id() == id);
    match program.and_then(|program| program.name_as_str().map(str::to_owned)) {
        Some(name) if name == GUARD => Holder::Unpinned { id },
        name => Holder::Program { id, name },
    }
}

/// The program's descriptor. The program is loaded if it is not yet.
pub(super) fn program_fd(object: &mut Object) -> Result<BorrowedFd<'_>, KernelError> {
    Ok(loaded(object)?.fd().map_err(|error| explain_program("guard", &error))?.as_fd())
}

fn loaded(object: &mut Object) -> Result<&mut Xdp, KernelError> {
    let program: &mut Xdp = object.program_mut(GUARD)?;
    if program.fd().is_err() {
        program.load().map_err(|error| explain_program("guard", &error))?;
    }
    Ok(program)
}

/// The link that keeps the program on an interface.
#[derive(Debug)]
enum Hold {
    /// The link ends with this process.
    Process(XdpLink),
    /// The link stays until its pin is removed and this descriptor is closed.
    Pinned(FdLink),
}

/// An interface that the guard was attached to.
#[derive(Debug)]
struct Attached {
    mode: XdpMode,
    /// The interface's number; another interface of the same name has another.
    index: u32,
    /// The program's id; 0 if the kernel does not tell.
    program: u32,
    hold: Hold,
}

/// Whether the guard is on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Here,
    /// It is, but the interface has this name now.
    Renamed(String),
    /// It was until a moment ago; why it is not.
    Lost(&'static str),
    /// It was not.
    Absent,
}

/// The interfaces that the guard is attached to, and the folder that pins their links.
#[derive(Debug, Default)]
pub(super) struct Interfaces {
    attached: BTreeMap<String, Attached>,
    /// Dropped after the links.
    pins: Option<Pins>,
}

impl Interfaces {
    /// Attaches the program to one interface.
    pub(super) fn attach(
        &mut self,
        object: &mut Object,
        interface: &str,
        mode: GuardMode,
    ) -> Result<XdpMode, KernelError> {
        let refused = |reason: String| KernelError::Attach { interface: interface.to_owned(), reason };
        if let Some(Attached { mode, .. }) = self.attached.get(interface) {
            return Ok(*mode);
        }
        if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
            return Err(refused(no_interface()));
        }
        let index = if_nametoindex(interface).map_err(|_| refused(no_interface()))?;
        // If netlink is refused, the attach itself will fail on an occupied interface.
        let device = || Device::read(index).ok();
        if let Some(kind) = device().and_then(|device| device.foreign_frames()) {
            return Err(refused(explain_frames(kind)));
        }
        let program = loaded(object)?;
        let on = || device().and_then(|device| device.xdp);
        let id = program.info().map_or(0, |info| info.id());
        if let Some((mode, hold)) = self.adopt_link(program, interface, mode, on())? {
            self.attached.insert(interface.to_owned(), Attached { mode, index, program: id, hold });
            return Ok(mode);
        }
        if let Some(on) = on() {
            return Err(KernelError::Held { interface: interface.to_owned(), holder: holder_of(on.program) });
        }
        let (mode, link) = attach_anew(program, interface, mode)?;
        let hold = match &self.pins {
            None => Hold::Process(link),
            Some(pins) => {
                let link = FdLink::try_from(link)
                    .map_err(|_| refused("this kernel's XDP has no links to pin".to_owned()))?;
                Hold::Pinned(pins.pin_link(&xdp_link(interface), link)?)
            }
        };
        self.attached.insert(interface.to_owned(), Attached { mode, index, program: id, hold });
        Ok(mode)
    }

    /// See `GuardProgram::look`.
    pub(super) fn look(&mut self, interface: &str) -> Presence {
        let Some(Attached { index, program, .. }) = self.attached.get(interface) else {
            return Presence::Absent;
        };
        let is_ours = |on: Occupied| *program == 0 || on.program == 0 || on.program == *program;
        let lost = match Device::read(*index) {
            Ok(device) if !device.xdp.is_some_and(is_ours) => "its XDP program had been detached",
            Ok(device) if device.name != interface => {
                // Without another one of that name, the interface that we know is the one that was meant.
                if if_nametoindex(interface).is_err() {
                    return Presence::Renamed(device.name);
                }
                "another interface has its name now"
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => "the interface had gone",
            // On doubt nothing is detached.
            Ok(_) | Err(_) => return Presence::Here,
        };
        if let Err(error) = self.detach(interface) {
            tracing::debug!(interface, "its old XDP link: {error}");
        }
        Presence::Lost(lost)
    }

    /// Detaches the program from one interface, if it is attached.
    pub(super) fn detach(&mut self, interface: &str) -> Result<(), KernelError> {
        match self.attached.remove(interface) {
            None => Ok(()),
            Some(Attached { hold: Hold::Process(link), .. }) => link.detach().map_err(|error| {
                KernelError::Attach { interface: interface.to_owned(), reason: chain(&error) }
            }),
            // The link is dropped after its pin is removed.
            Some(Attached { hold: Hold::Pinned(_link), .. }) => {
                self.pins.as_ref().map_or(Ok(()), |pins| pins.unpin_link(&xdp_link(interface)))
            }
        }
    }

    /// Detaches the program from the interfaces that only an earlier run guarded.
    pub(super) fn detach_others(&mut self, interfaces: &[String]) -> Result<(), KernelError> {
        let Some(pins) = &self.pins else { return Ok(()) };
        for other in pins.interfaces().iter().filter(|interface| !interfaces.contains(interface)) {
            tracing::info!(interface = other, "not in guard.interfaces any more: XDP detached");
            pins.unpin_link(&xdp_link(other))?;
        }
        Ok(())
    }

    /// The interfaces that the program is attached to.
    pub(super) fn attached(&self) -> impl Iterator<Item = (&str, XdpMode)> {
        self.attached.iter().map(|(interface, attached)| (interface.as_str(), attached.mode))
    }

    /// Pins links in this folder from now on.
    pub(super) fn pin_to(&mut self, pins: Pins) {
        self.pins = Some(pins);
    }

    /// From now on the pins outlive this process, unless `release` removes them.
    pub(super) fn keep_pins(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.keep();
        }
    }

    /// Detaches the program everywhere and removes every pin.
    pub(super) fn release(self) -> Result<(), PinError> {
        drop(self.attached);
        self.pins.map_or(Ok(()), |mut pins| pins.remove())
    }

    /// Puts the program on the interface's pinned link, if that link still judges this interface in a wanted
    /// mode. Any other pinned link is removed.
    fn adopt_link(
        &self,
        program: &mut Xdp,
        interface: &str,
        wanted: GuardMode,
        on: Option<Occupied>,
    ) -> Result<Option<(XdpMode, Hold)>, KernelError> {
        let Some(pins) = &self.pins else { return Ok(None) };
        let Some(link) = pins.link(&xdp_link(interface)) else { return Ok(None) };
        let linked = link.info().map(|info| info.program_id()).unwrap_or_default();
        let mode = on.filter(|on| on.program == linked).and_then(|on| on.mode);
        let Some(mode) = mode.filter(|mode| modes(wanted).contains(mode)) else {
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
        let link = XdpLink::try_from(link).map_err(unlinked)?;
        let id = program
            .attach_to_link(link)
            .map_err(|error| refused(format!("its pinned link: {}", chain(&error))))?;
        let link = program.take_link(id).map_err(|error| refused(chain(&error)))?;
        let link = FdLink::try_from(link).map_err(unlinked)?;
        Ok(Some((mode, Hold::Pinned(link))))
    }
}

/// The XDP modes that a setting allows, in the order in which they are tried.
const fn modes(wanted: GuardMode) -> &'static [XdpMode] {
    match wanted {
        GuardMode::Auto => &[XdpMode::Driver, XdpMode::Generic],
        GuardMode::Driver => &[XdpMode::Driver],
        GuardMode::Generic => &[XdpMode::Generic],
    }
}

/// Attaches the program to an interface that has none.
fn attach_anew(
    program: &mut Xdp,
    interface: &str,
    wanted: GuardMode,
) -> Result<(XdpMode, XdpLink), KernelError> {
    let refused = |reason: String| KernelError::Attach { interface: interface.to_owned(), reason };
    let mut reasons = Vec::new();
    for &mode in modes(wanted) {
        let flag = match mode {
            XdpMode::Driver => aya::programs::XdpMode::Driver,
            XdpMode::Generic => aya::programs::XdpMode::Skb,
        };
        match program.attach(interface, flag) {
            Ok(link) => {
                let link = program.take_link(link).map_err(|error| refused(chain(&error)))?;
                return Ok((mode, link));
            }
            Err(error) => {
                let reason = explain_attach(interface, mode, &error);
                reasons.push(format!("{} mode: {reason}", mode.label()));
                if !is_driver_limit(&error) {
                    break;
                }
            }
        }
    }
    Err(refused(reasons.join("; ")))
}

fn no_interface() -> String {
    "there is no interface of this name here; `ip -br link` lists them".to_owned()
}

/// Whether the error is a limit of the driver, so that another mode may work.
fn is_driver_limit(error: &ProgramError) -> bool {
    matches!(
        errno(error).map(Errno::from_raw),
        Some(
            Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE | Errno::ENOSPC | Errno::ENOSYS | Errno::ENOMEM
        )
    )
}

/// Explains an attach error to an operator.
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
             id): one program per interface; stop that one or take the interface out of guard.interfaces"
        ),
        (Some(Errno::EEXIST), _) => format!(
            "an XDP program is attached in the other mode (`ip link show dev {interface}` shows it): one \
             program per interface; detach that one first"
        ),
        (Some(Errno::EINVAL | Errno::ERANGE), XdpMode::Driver) => format!(
            "its driver refuses XDP with the present settings ({error}): usually too large an MTU, LRO, or a \
             virtual interface that is part of another: use guard.mode = \"generic\""
        ),
        _ => chain(error),
    }
}

/// Tests of the explanations, which need no interface in that state.
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
