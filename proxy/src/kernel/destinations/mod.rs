//! Destinations: the programs `sluice_connect4` and `sluice_connect6` on this process's cgroup
//! (proxy-ebpf/src/destinations.rs). They keep data planes from connecting to anything but these addresses.
//! Other processes of the cgroup are not judged.
//!
//! The maps are `DESTINATIONS_ALLOWED`, `DESTINATIONS_PLANES`, `DESTINATIONS_PIDS` and `DESTINATIONS_JUDGED`.
//! Only the programs themselves use `DESTINATIONS_LOGGED`.
//!
//! The kernel asks the programs of the cgroup in which a socket was made. Accepted sockets belong to the
//! cgroup of their listener, which is this process's at its start. Links are not pinned: they end with this
//! process, and so does every data plane.

mod pids;

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use aya::maps::{HashMap, MapData, MapError};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use caps::{CapSet, Capability};
use proxy_common::destinations::{DESTINATIONS_MAX, Destination, Judged, PidNamespace, TCP};

use super::address::mapped;
use super::cgroup;
use super::error::{KernelError, chain, errno};
use super::maps::{Counters, Single};
use super::object::{CONNECT, Object, explain_program};

const ALLOWED: &str = "DESTINATIONS_ALLOWED";
const PLANES: &str = "DESTINATIONS_PLANES";
const PIDS: &str = "DESTINATIONS_PIDS";
const JUDGED: &str = "DESTINATIONS_JUDGED";

/// Says, without an attempt, whether this process may attach the programs.
///
/// # Errors
/// The reason why not, with advice.
pub fn find() -> Result<(), String> {
    if !may_attach(|capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)) {
        return Err(
            "CAP_BPF or CAP_NET_ADMIN is missing; start as root, or give both (config/sluice.service)"
                .to_owned(),
        );
    }
    pids::namespace().map_err(|error| format!("/proc/self/ns/pid: {error}"))?;
    cgroup::own().map(drop).map_err(|error| error.to_string())
}

/// CAP_SYS_ADMIN stands for both others.
fn may_attach(has: impl Fn(Capability) -> bool) -> bool {
    has(Capability::CAP_SYS_ADMIN) || has(Capability::CAP_BPF) && has(Capability::CAP_NET_ADMIN)
}

/// The programs and their maps. See the module.
pub struct DestinationsProgram {
    allowed: HashMap<MapData, Destination, u8>,
    planes: HashMap<MapData, u32, u8>,
    pids: Single<PidNamespace>,
    judged: Counters,
    /// The content of `allowed`.
    known: HashSet<Destination>,
    /// The links that keep the programs on each cgroup. A cgroup is known by its device and inode, since its
    /// path may lead to another one later.
    links: Vec<((u64, u64), Vec<FdLink>)>,
}

impl DestinationsProgram {
    pub(super) fn new(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self {
            allowed: object.take_map(ALLOWED)?,
            planes: object.take_map(PLANES)?,
            pids: Single::take(object, PIDS)?,
            judged: Counters::take(object, JUDGED)?,
            known: HashSet::new(),
            links: Vec::new(),
        })
    }

    /// Puts the programs on the cgroup that this process is in now, if they are not there; returns its path.
    /// They stay on cgroups that it was in before, since its older sockets belong to those.
    pub(super) fn start(&mut self, object: &mut Object) -> Result<PathBuf, KernelError> {
        let (path, cgroup) = cgroup::own()?;
        let id = cgroup
            .metadata()
            .map(|folder| (folder.dev(), folder.ino()))
            .map_err(|error| KernelError::Cgroup { reason: format!("{}: {error}", path.display()) })?;
        if self.links.iter().any(|(attached, _)| *attached == id) {
            return Ok(path);
        }
        let namespace =
            pids::namespace().map_err(|error| KernelError::Load(format!("/proc/self/ns/pid: {error}")))?;
        self.pids.write(namespace)?;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            let hint = match errno(error) {
                Some(libc::E2BIG) => ": as many programs are there as the kernel allows",
                Some(libc::EPERM) => {
                    ": a program is there that tolerates no other, or the rights are missing"
                }
                _ => "",
            };
            let (path, error) = (path.display(), chain(error));
            KernelError::Cgroup {
                reason: format!("the programs that judge connects, on {path}: {error}{hint}"),
            }
        };
        let mut links = Vec::new();
        for name in CONNECT {
            let program: &mut CgroupSockAddr = object.program_mut(name)?;
            if program.fd().is_err() {
                program.load().map_err(|error| explain_program("connect", &error))?;
            }
            // A link takes no flags; other programs on the cgroup stay attached.
            let link = program.attach(&cgroup, CgroupAttachMode::Single).map_err(|error| failed(&error))?;
            let link = program.take_link(link).map_err(|error| failed(&error))?;
            links.push(FdLink::try_from(link).map_err(|error| failed(&error))?);
        }
        self.links.push((id, links));
        Ok(path)
    }

    /// Whether data planes are judged.
    #[must_use]
    pub const fn is_judging(&self) -> bool {
        !self.links.is_empty()
    }

    /// Data planes connect to these addresses by TCP, and to no others from now on. What is new is allowed
    /// before what is gone is forbidden.
    ///
    /// # Errors
    /// When the map is full or cannot be written. A part of the new addresses may be allowed then; those of
    /// before are.
    pub fn allow(&mut self, addresses: &BTreeSet<SocketAddr>) -> Result<(), KernelError> {
        // Two link-local addresses that differ in their interface alone are one destination.
        let wanted: HashSet<Destination> = addresses.iter().copied().map(destination).collect();
        KernelError::check_room(ALLOWED, wanted.len(), DESTINATIONS_MAX)?;
        let failed = |error: MapError| KernelError::map(ALLOWED, error);
        for new in wanted.difference(&self.known).copied().collect::<Vec<_>>() {
            self.allowed.insert(new, 0, 0).map_err(failed)?;
            self.known.insert(new);
        }
        for gone in self.known.difference(&wanted).copied().collect::<Vec<_>>() {
            missing_is_fine(self.allowed.remove(&gone)).map_err(failed)?;
            self.known.remove(&gone);
        }
        Ok(())
    }

    /// Judges the connects of this process from now on. It must live, or be a child that was not reaped,
    /// until `release`.
    ///
    /// # Errors
    /// When the map is full or cannot be written.
    pub fn judge(&mut self, pid: u32) -> Result<(), KernelError> {
        self.planes.insert(pid, 0, 0).map_err(|error| KernelError::map(PLANES, error))
    }

    /// Judges this process no longer: it is dead.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn release(&mut self, pid: u32) -> Result<(), KernelError> {
        missing_is_fine(self.planes.remove(&pid)).map_err(|error| KernelError::map(PLANES, error))
    }

    /// How many addresses are allowed.
    #[must_use]
    pub fn allowed(&self) -> usize {
        self.known.len()
    }

    /// Connects of data planes that failed since they went elsewhere.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn refused(&self) -> Result<u64, KernelError> {
        Ok(self.judged.sums()?.get(Judged::Refused as usize).copied().unwrap_or(0))
    }
}

/// The outcome of a removal: an entry that is not there is removed.
fn missing_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if errno(&error) == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn destination(address: SocketAddr) -> Destination {
    Destination { address: mapped(address.ip()), port: address.port(), protocol: TCP }
}

#[cfg(test)]
mod tests {
    use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN};

    use super::*;

    #[test]
    fn what_attaching_takes() {
        for (given, expected) in [
            (&[][..], false),
            (&[CAP_BPF], false),
            (&[CAP_NET_ADMIN], false),
            (&[CAP_BPF, CAP_NET_ADMIN], true),
            (&[CAP_SYS_ADMIN], true),
        ] {
            assert_eq!(may_attach(|capability| given.contains(&capability)), expected, "{given:?}");
        }
    }
}
