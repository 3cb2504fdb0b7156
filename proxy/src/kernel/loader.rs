//! Loading the embedded object and attaching its programs (bpf(2), Documentation/networking/xdp).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::{Map, MapError};
use aya::programs::xdp::XdpLinkId;
use aya::programs::{ProgramError, SkReuseport, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use nix::errno::Errno;

use super::bans::Bans;
use super::filter::Filter;
use super::ours::Mains;
use super::steering::Placement;
use super::{KernelError, XdpMode, chain, errno};
use crate::config::model;

/// The object that `cargo xtask ebpf` built; a check fails when it is older than its sources.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy-ebpf/prebuilt/sluice.bpf.o"));

/// Program and map names of the object (proxy-ebpf/src/main.rs and maps.rs).
pub(super) const GUARD: &str = "sluice_guard";
pub(super) const STEER: &str = "sluice_steer";
pub(super) const SLOTS: &str = "STEER_SLOTS";

/// The loaded object: programs, maps and links. Dropping it detaches XDP.
///
/// The steering program stays with the listening sockets until they are closed, and goes on working: the
/// kernel keeps it and its maps for them.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) attached: BTreeMap<String, (XdpMode, XdpLinkId)>,
    pub(super) placement: Placement,
    /// The guard's prefilter, as the kernel has it.
    pub(super) filter: Filter,
    /// The part of it that the lists need.
    pub(super) lists: Filter,
    pub(super) bans: Bans,
    /// The addresses that the guard's program knows without a look-up.
    pub(super) mains: Mains,
    /// Choose the SYN buckets of a source; for as long as the buckets live.
    pub(super) seeds: [u64; proxy_common::guard::SYN_ROWS as usize],
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs").field("attached", &self.attached).finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads the embedded object into the kernel: maps and the steering program. The guard's program follows with its first
    /// interface.
    pub fn load() -> Result<Self, KernelError> {
        Self::load_object(OBJECT)
    }

    /// Loads another object than the embedded one: for the tests of one that was just built. `object` must be aligned to 8 bytes.
    pub fn load_object(object: &[u8]) -> Result<Self, KernelError> {
        let mut ebpf = match load_maps(object) {
            // Before Linux 5.11 maps counted against RLIMIT_MEMLOCK, and too low a limit was EPERM.
            Err(error) if errno(&error) == Some(libc::EPERM) && raise_memlock() => load_maps(object),
            result => result,
        }
        .map_err(|error| explain_load(&error))?;
        if !matches!(ebpf.map(SLOTS), Some(Map::Array(_))) {
            return Err(missing(SLOTS));
        }

        let program: &mut SkReuseport = program_mut(&mut ebpf, STEER)?;
        program.load().map_err(|error| explain_program("steering", &error))?;
        let logger = EbpfLogger::init(&mut ebpf)
            .inspect_err(|error| tracing::warn!(%error, "diagnostics of the eBPF programs will not be logged"))
            .ok();
        let random = std::hash::RandomState::new();
        let seeds = std::array::from_fn(|row| std::hash::BuildHasher::hash_one(&random, row));
        Ok(Self {
            ebpf,
            attached: BTreeMap::new(),
            placement: Placement::default(),
            filter: Filter::default(),
            lists: Filter::default(),
            bans: Bans::default(),
            mains: Mains::NONE,
            seeds,
            logger,
        })
    }

    /// Attaches the guard to one interface; with `Auto` driver mode is tried first, then generic.
    ///
    /// Until `apply_guard` was called every packet passes, and is counted as `unconfigured`.
    pub fn attach_guard(&mut self, interface: &str, mode: model::GuardMode) -> Result<XdpMode, KernelError> {
        let refused = |reason: String| KernelError::Attach { interface: interface.to_owned(), reason };
        if let Some((mode, _)) = self.attached.get(interface) {
            return Ok(*mode);
        }
        if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
            return Err(refused(no_interface()));
        }
        let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
        if program.fd().is_err() {
            program.load().map_err(|error| explain_program("guard", &error))?;
        }
        let modes: &[XdpMode] = match mode {
            model::GuardMode::Auto => &[XdpMode::Driver, XdpMode::Generic],
            model::GuardMode::Driver => &[XdpMode::Driver],
            model::GuardMode::Generic => &[XdpMode::Generic],
        };
        let mut reasons = Vec::new();
        for &mode in modes {
            let flag = match mode {
                XdpMode::Driver => aya::programs::XdpMode::Driver,
                XdpMode::Generic => aya::programs::XdpMode::Skb,
            };
            match program.attach(interface, flag) {
                Ok(link) => {
                    self.attached.insert(interface.to_owned(), (mode, link));
                    return Ok(mode);
                }
                Err(error) => {
                    reasons.push(format!("{} mode: {}", mode.label(), explain_attach(interface, mode, &error)));
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
        let Some((_, link)) = self.attached.remove(interface) else { return Ok(()) };
        let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
        program.detach(link).map_err(|error| KernelError::Attach { interface: interface.to_owned(), reason: chain(&error) })
    }

    /// The interfaces that the guard is attached to.
    pub fn attached(&self) -> impl Iterator<Item = (&str, XdpMode)> {
        self.attached.iter().map(|(interface, (mode, _))| (interface.as_str(), *mode))
    }

    /// The mmapable array of `WorkerSlot`s, for the data plane.
    ///
    /// # Panics
    ///
    /// Never: `load` fails for an object without it.
    #[must_use]
    #[expect(clippy::expect_used, reason = "the object was checked for this map when it was loaded")]
    pub fn slots(&self) -> BorrowedFd<'_> {
        match self.ebpf.map(SLOTS) {
            Some(Map::Array(map)) => Some(map.fd().as_fd()),
            _ => None,
        }
        .expect("the object has an array of slots")
    }

    /// Writes what the programs had to say to the log (target `sluice_bpf`): rare diagnostics, never one per packet. Call it
    /// now and then.
    pub fn flush_logs(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// A program's descriptor, loaded if need be: for BPF_PROG_TEST_RUN.
    pub fn guard_fd(&mut self) -> Result<BorrowedFd<'_>, KernelError> {
        let program: &mut Xdp = program_mut(&mut self.ebpf, GUARD)?;
        if program.fd().is_err() {
            program.load().map_err(|error| explain_program("guard", &error))?;
        }
        Ok(program.fd().map_err(|error| explain_program("guard", &error))?.as_fd())
    }

    /// A map by its name.
    pub(super) fn map<'a, M>(&'a self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<&'a Map, Error = MapError>,
    {
        let map = self.ebpf.map(name).ok_or_else(|| missing(name))?;
        M::try_from(map).map_err(|error| KernelError::map(name, error))
    }

    /// A map by its name, to write.
    pub(super) fn map_mut<'a, M>(&'a mut self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<&'a mut Map, Error = MapError>,
    {
        let map = self.ebpf.map_mut(name).ok_or_else(|| missing(name))?;
        M::try_from(map).map_err(|error| KernelError::map(name, error))
    }
}

fn load_maps(object: &[u8]) -> Result<Ebpf, EbpfError> {
    EbpfLoader::new().load(object)
}

/// A program of the object, as its own type.
pub(super) fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or_else(|| KernelError::Load(format!("the object has no program {name}")))?;
    program.try_into().map_err(|error: ProgramError| KernelError::Load(format!("{name}: {}", chain(&error))))
}

fn missing(name: &'static str) -> KernelError {
    KernelError::Map { map: name, reason: "the object has no such map".to_owned() }
}

/// Whether the limit was raised, so that another try makes sense.
fn raise_memlock() -> bool {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return false };
    if soft == RLIM_INFINITY {
        return false;
    }
    setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok()
        || (soft < hard && setrlimit(Resource::RLIMIT_MEMLOCK, hard, hard).is_ok())
}

fn explain_load(error: &EbpfError) -> KernelError {
    let hint = match errno(error).map(Errno::from_raw) {
        Some(Errno::EPERM | Errno::EACCES) => {
            ": loading needs CAP_BPF and CAP_NET_ADMIN (or root), and before Linux 5.11 a higher RLIMIT_MEMLOCK"
        }
        Some(Errno::ENOSYS) => ": this kernel is built without bpf(2)",
        Some(Errno::ENOMEM) => ": the kernel has no memory left for the maps (about 9 MiB)",
        _ => "",
    };
    KernelError::Load(format!("{}{hint}", chain(error)))
}

fn explain_program(which: &str, error: &ProgramError) -> KernelError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let hint = match io_error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => ": loading needs CAP_BPF and CAP_NET_ADMIN (or root)",
            Some(Errno::EINVAL | Errno::EACCES) => ": the kernel's verifier refused it (Linux 5.18 or later is needed)",
            _ => "",
        };
        // The reason is at the end of the verifier's log, before its statistics.
        let log = verifier_log.to_string();
        let statistics = ["verification time", "stack depth", "processed "];
        let telling = |line: &&str| !line.trim().is_empty() && !statistics.iter().any(|start| line.starts_with(start));
        let mut tail: Vec<&str> = log.lines().rev().filter(telling).take(4).collect();
        tail.reverse();
        return KernelError::Load(format!("{which} program: {io_error}{hint} [{}]", tail.join(" | ")));
    }
    KernelError::Load(format!("{which} program: {}", chain(error)))
}

fn no_interface() -> String {
    "there is no interface of this name here; `ip -br link` lists them".to_owned()
}

/// Whether another mode may do what this one could not.
fn is_driver_limit(error: &ProgramError) -> bool {
    matches!(
        errno(error).map(Errno::from_raw),
        Some(Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE | Errno::ENOSPC | Errno::ENOSYS | Errno::ENOMEM)
    )
}

/// What an attach error means to whoever runs the proxy.
fn explain_attach(interface: &str, mode: XdpMode, error: &ProgramError) -> String {
    if matches!(error, ProgramError::UnknownInterface { .. }) {
        return no_interface();
    }
    match (errno(error).map(Errno::from_raw), mode) {
        (Some(Errno::ENODEV), _) => no_interface(),
        (Some(Errno::EPERM | Errno::EACCES), _) => "not permitted: needs CAP_NET_ADMIN and CAP_BPF (or root)".to_owned(),
        (Some(Errno::EOPNOTSUPP), XdpMode::Driver) => {
            "its driver has no XDP (lo never has): use guard.mode = \"generic\" or \"auto\"".to_owned()
        }
        (Some(Errno::EOPNOTSUPP), XdpMode::Generic) => "this kernel is built without generic XDP".to_owned(),
        (Some(Errno::EBUSY), _) => format!(
            "another XDP program is attached (another sluice, or `ip link show dev {interface}` names its id): one program per \
             interface; stop that one or take the interface out of guard.interfaces"
        ),
        (Some(Errno::EEXIST), _) => format!(
            "an XDP program is attached in the other mode (`ip link show dev {interface}` shows it): one program per interface; \
             detach that one first"
        ),
        (Some(Errno::EINVAL | Errno::ERANGE), XdpMode::Driver) => format!(
            "its driver refuses XDP with the present settings ({error}): usually too large an MTU, LRO, or a virtual \
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

    #[test]
    fn the_embedded_object_is_aligned_and_names_what_the_loader_looks_up() {
        assert_eq!(OBJECT.as_ptr() as usize % 8, 0);
        let object = aya_names(OBJECT);
        for name in [GUARD, STEER, SLOTS] {
            assert!(object.contains(name), "{name}");
        }
    }

    fn aya_names(object: &[u8]) -> String {
        String::from_utf8_lossy(object).into_owned()
    }
}
