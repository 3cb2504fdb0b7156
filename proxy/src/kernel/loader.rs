//! Loading the embedded object and attaching its programs (bpf(2), Documentation/networking/xdp).

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use aya::maps::{Map, MapError};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, SkReuseport, Xdp};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use nix::errno::Errno;

use super::attach::Hold;
use super::bans::Bans;
use super::filter::Filter;
use super::ours::Mains;
use super::pins::{Found, PinError, Pins};
use super::steering::Placement;
use super::{KernelError, XdpMode, chain, errno};
use crate::time::Time;

/// The object that `cargo xtask ebpf` built; a check fails when it is older than its sources.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy-ebpf/prebuilt/sluice.bpf.o"));

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
    pub(super) attached: BTreeMap<String, (XdpMode, Hold)>,
    /// Where maps and links outlive us; dropped after the links.
    pub(super) pins: Option<Pins>,
    /// The program that counts connections, on our cgroup.
    pub(super) counting: Option<FdLink>,
    /// SYNs may be answered with cookies.
    pub(super) cookies: bool,
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
    /// Loads the embedded object into the kernel: maps and the steering program. The guard's program follows
    /// with its first interface.
    pub fn load() -> Result<Self, KernelError> {
        Self::load_object(OBJECT)
    }

    /// Loads another object than the embedded one: for the tests of one that was just built. `object` must be
    /// aligned to 8 bytes.
    pub fn load_object(object: &[u8]) -> Result<Self, KernelError> {
        Self::new(load_maps(object, &[])?)
    }

    /// Loads the embedded object over the maps that an earlier run pinned, or pins new ones where they do not
    /// fit; what was found goes to the log.
    ///
    /// # Errors
    /// What cannot be loaded or pinned. What an earlier run left stays then.
    pub fn load_pinned(pins: Pins, now: Time) -> Result<Self, KernelError> {
        let fresh = load_maps(OBJECT, &[])?;
        let mut programs = match pins.compare(&fresh)? {
            Found::Nothing => {
                pins.take_next()?;
                Self::new(fresh)?
            }
            Found::Fitting => {
                pins.drop_next()?;
                drop(fresh);
                let mut programs = Self::new(load_maps(OBJECT, &pins.maps())?)?;
                programs.adopt_maps()?;
                let bans = programs.bans(now).count();
                tracing::info!(
                    "the maps that an earlier run left are taken over: counters go on, {bans} bans hold"
                );
                programs
            }
            Found::Older { reason, bans } => {
                pins.take_next()?;
                let mut programs = Self::new(fresh)?;
                let kept = match bans {
                    Some(bans) => format!("{} bans hold", programs.enter_bans(&bans, now)?),
                    None => "its bans are lost".to_owned(),
                };
                let lost = "its counters and rate buckets begin anew";
                tracing::warn!("the maps that an earlier run left do not fit ({reason}): {lost}, {kept}");
                programs
            }
        };
        programs.pins = Some(pins);
        Ok(programs)
    }

    /// From now on pins outlive us, unless `release` removes them.
    pub fn keep_pins(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.keep();
        }
    }

    /// Detaches and removes every pin: an end in order.
    ///
    /// # Errors
    /// What stays pinned, and so attached.
    pub fn release(self) -> Result<(), PinError> {
        let Self { attached, pins, .. } = self;
        drop(attached);
        pins.map_or(Ok(()), |mut pins| pins.remove())
    }

    /// Over maps that are there.
    fn new(mut ebpf: Ebpf) -> Result<Self, KernelError> {
        if !matches!(ebpf.map(SLOTS), Some(Map::Array(_))) {
            return Err(missing(SLOTS));
        }

        let program: &mut SkReuseport = program_mut(&mut ebpf, STEER)?;
        program.load().map_err(|error| explain_program("steering", &error))?;
        let logger = EbpfLogger::init(&mut ebpf)
            .inspect_err(
                |error| tracing::warn!(%error, "diagnostics of the eBPF programs will not be logged"),
            )
            .ok();
        let random = std::hash::RandomState::new();
        let seeds = std::array::from_fn(|row| std::hash::BuildHasher::hash_one(&random, row));
        Ok(Self {
            ebpf,
            attached: BTreeMap::new(),
            pins: None,
            counting: None,
            cookies: false,
            placement: Placement::default(),
            filter: Filter::default(),
            lists: Filter::default(),
            bans: Bans::default(),
            mains: Mains::NONE,
            seeds,
            logger,
        })
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

    /// Writes what the programs had to say to the log (target `sluice_bpf`): rare diagnostics, never one per
    /// packet. Call it now and then.
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

/// Makes the object's maps, but those that are pinned somewhere.
fn load_maps(object: &[u8], pinned: &[(String, PathBuf)]) -> Result<Ebpf, KernelError> {
    let load = || {
        let mut loader = EbpfLoader::new();
        for (name, path) in pinned {
            loader.map_pin_path(name, path);
        }
        loader.load(object)
    };
    let loaded = match load() {
        // Before Linux 5.11 maps counted against RLIMIT_MEMLOCK, and too low a limit was EPERM.
        Err(error) if errno(&error) == Some(libc::EPERM) && raise_memlock() => load(),
        result => result,
    };
    loaded.map_err(|error| explain_load(&error))
}

/// A program of the object, as its own type.
pub(super) fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| KernelError::Load(format!("the object has no program {name}")))?;
    program.try_into().map_err(|error: ProgramError| KernelError::Load(format!("{name}: {}", chain(&error))))
}

pub(super) fn missing(name: &'static str) -> KernelError {
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
            ": loading needs CAP_BPF and CAP_NET_ADMIN (or root), and before Linux 5.11 a higher \
             RLIMIT_MEMLOCK"
        }
        Some(Errno::ENOSYS) => ": this kernel is built without bpf(2)",
        Some(Errno::ENOMEM) => ": the kernel has no memory left for the maps (about 9 MiB)",
        _ => "",
    };
    KernelError::Load(format!("{}{hint}", chain(error)))
}

pub(super) fn explain_program(which: &str, error: &ProgramError) -> KernelError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let hint = match io_error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM) => ": loading needs CAP_BPF and CAP_NET_ADMIN (or root)",
            Some(Errno::EINVAL | Errno::EACCES) => {
                ": the kernel's verifier refused it (Linux 5.18 or later is needed)"
            }
            _ => "",
        };
        // The reason is at the end of the verifier's log, before its statistics.
        let log = verifier_log.to_string();
        let statistics = ["verification time", "stack depth", "processed "];
        let telling =
            |line: &&str| !line.trim().is_empty() && !statistics.iter().any(|start| line.starts_with(start));
        let mut tail: Vec<&str> = log.lines().rev().filter(telling).take(4).collect();
        tail.reverse();
        return KernelError::Load(format!("{which} program: {io_error}{hint} [{}]", tail.join(" | ")));
    }
    KernelError::Load(format!("{which} program: {}", chain(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

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
