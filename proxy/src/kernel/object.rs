//! The object file that holds all eBPF programs, loaded into the kernel (bpf(2)). A program is loaded with
//! its first use. Each map is taken out by the program type that owns it.

use std::path::PathBuf;

use aya::maps::{Map, MapError};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use aya_log::EbpfLogger;
use nix::errno::Errno;

use super::error::{KernelError, chain, errno};

/// The object that `cargo xtask ebpf` built; a check fails when it is older than its sources.
static EMBEDDED: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("CARGO_MANIFEST_DIR"), "/../proxy-ebpf/prebuilt/sluice.bpf.o"));

/// Names of the programs, as proxy-ebpf/src/main.rs declares them.
pub(super) const GUARD: &str = "sluice_guard";
pub(super) const STEER: &str = "sluice_steer";
pub(super) const COUNT: &str = "sluice_count";
pub(super) const CONNECT: [&str; 2] = ["sluice_connect4", "sluice_connect6"];

/// The programs, and the maps that no program type has taken. Loading a program needs the descriptors of its
/// maps, so a map that was taken must stay open.
pub(super) struct Object {
    ebpf: Ebpf,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
}

impl Object {
    /// Loads the embedded object. Maps that are pinned at these paths are used instead of new ones.
    pub(super) fn embedded(pinned: &[(String, PathBuf)]) -> Result<Self, KernelError> {
        Self::load(EMBEDDED, pinned)
    }

    /// Loads an object and makes its maps, except the maps that are pinned at these paths. `object` must be
    /// aligned to 8 bytes.
    pub(super) fn load(object: &[u8], pinned: &[(String, PathBuf)]) -> Result<Self, KernelError> {
        let load = || {
            let mut loader = EbpfLoader::new();
            for (name, path) in pinned {
                loader.map_pin_path(name, path);
            }
            loader.load(object)
        };
        let loaded = match load() {
            // Before Linux 5.11 maps counted against RLIMIT_MEMLOCK; a limit that was too low gave EPERM.
            Err(error) if errno(&error) == Some(libc::EPERM) && raise_memlock() => load(),
            result => result,
        };
        let ebpf = loaded.map_err(|error| explain_load(&error))?;
        Ok(Self { ebpf, logger: None })
    }

    /// The maps that no program type has taken, with their names.
    pub(super) fn maps(&self) -> impl Iterator<Item = (&str, &Map)> {
        self.ebpf.maps()
    }

    /// Hands a map to the program type that owns it.
    pub(super) fn take_map<M>(&mut self, name: &'static str) -> Result<M, KernelError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let missing = || KernelError::Map { map: name, reason: "the object has no such map".to_owned() };
        let map = self.ebpf.take_map(name).ok_or_else(missing)?;
        M::try_from(map).map_err(|error| KernelError::map(name, error))
    }

    /// Finds a program.
    pub(super) fn program_mut<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, KernelError>
    where
        &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        let program = self
            .ebpf
            .program_mut(name)
            .ok_or_else(|| KernelError::Load(format!("the object has no program {name}")))?;
        program
            .try_into()
            .map_err(|error: ProgramError| KernelError::Load(format!("{name}: {}", chain(&error))))
    }

    /// Collects the programs' diagnostics from now on.
    pub(super) fn start_logs(&mut self) {
        self.logger = EbpfLogger::init(&mut self.ebpf)
            .inspect_err(
                |error| tracing::warn!(%error, "diagnostics of the eBPF programs will not be logged"),
            )
            .ok();
    }

    /// Writes the collected diagnostics to the log.
    pub(super) fn flush_logs(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }
}

/// Raises RLIMIT_MEMLOCK; returns whether that worked, so that another try makes sense.
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

/// Explains why a program was not loaded. `which` names the program in the message.
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
        assert_eq!(EMBEDDED.as_ptr() as usize % 8, 0);
        let object = aya_names(EMBEDDED);
        for name in [GUARD, STEER, COUNT, CONNECT[0], CONNECT[1], "STEER_SLOTS"] {
            assert!(object.contains(name), "{name}");
        }
    }

    fn aya_names(object: &[u8]) -> String {
        String::from_utf8_lossy(object).into_owned()
    }
}
