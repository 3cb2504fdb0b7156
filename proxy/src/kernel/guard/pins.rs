//! Pins in bpffs under the instance's name (bpf(2), BPF_OBJ_PIN). The guard's maps and links outlive
//! supervisor and data plane by them. The instance that holds the lock of a run_dir owns the folder.
//!
//! ```text
//! <bpffs>/sluice/<instance>/owner        → the run_dir, as a symbolic link
//!                           layout       → `guard::LAYOUT` of the maps
//!                           GUARD_…        a map
//!                           xdp-<name>     the link to an interface; dots, which bpffs refuses, are colons
//! ```

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use nix::mount::{MsFlags, mount};
use proxy_common::guard;

use super::bans::{self, BANS};
use crate::control::bans::BanSource;
use crate::folder::{Folder, FolderError};
use crate::kernel::error::{KernelError, chain};
use crate::kernel::object::Object;
use crate::time::Time;

/// The usual place of bpffs. Sluice mounts it here when it is not mounted anywhere.
const BPFFS: &str = "/sys/fs/bpf";
/// The folder of all instances of Sluice in bpffs.
const SLUICE: &str = "sluice";
const OWNER: &str = "owner";
const LAYOUT: &str = "layout";
const XDP: &str = "xdp-";
/// Begins the names of the maps that are pinned. All other maps end with the supervisor.
const MAPS: &str = "GUARD_";
/// Begins the name of a new map until it takes the place of the pinned one.
const NEXT: &str = "next-";

/// The reason why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is no bpffs.
    #[error("no bpffs: {0}; `mount -t bpf bpf /sys/fs/bpf` mounts it")]
    NoBpffs(String),
    /// Another instance has the name.
    #[error(
        "the instance \"{instance}\" of {} has this name and pins in {}; give process.run_dir another last \
         component, or remove those pins by `sluice stop --run-dir {}`",
        owner.display(), folder.display(), owner.display()
    )]
    Taken {
        /// The name.
        instance: String,
        /// Its run_dir.
        owner: PathBuf,
        /// Where it pins.
        folder: PathBuf,
    },
    /// Somebody else could put other maps and links there.
    #[error("{0}; remove it, or mount bpffs with mode=0700")]
    Unsafe(FolderError),
    /// Another error.
    #[error("{}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
}

/// An instance's folder. Dropping it removes the pins that this run made, unless `keep` was called.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    keep: bool,
}

/// The pins of an instance, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Its name.
    pub instance: String,
    /// Its run_dir.
    pub run_dir: PathBuf,
    /// The folder.
    pub folder: PathBuf,
    /// The interfaces that it filters, each with the program's id where the kernel tells it.
    pub interfaces: Vec<(String, Option<u32>)>,
    /// The number of bans that hold, where the kernel lets us read them.
    pub bans: Option<usize>,
}

/// Whether the maps that were pinned before can be used.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kernel) enum Found {
    /// No map was pinned.
    Nothing,
    /// The pinned maps fit and are used.
    Fitting,
    /// The pinned maps do not fit, for this reason. `None`: their bans could not be read.
    Older { reason: String, bans: Option<Vec<(BanSource, Time)>> },
}

impl Pins {
    /// Claims the folder of the instance; makes it, and mounts bpffs, where missing. Call this with the
    /// run_dir's lock held.
    ///
    /// # Errors
    /// When bpffs cannot be mounted, or another run_dir has this name.
    pub fn claim(run_dir: &Path) -> Result<Self, PinError> {
        let bpffs = bpffs().map_or_else(mount_bpffs, Ok)?;
        let folder = bpffs.join(SLUICE).join(instance(run_dir));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |reason| PinError::Io { path, reason }
        };
        let mut tries = 0;
        let made = loop {
            let parent = folder.parent().unwrap_or(&bpffs);
            make(parent).map_err(failed(parent))?;
            match make(&folder) {
                // The last other instance has just ended and removed the parent folder.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < 3 => tries += 1,
                result => break result.map_err(failed(&folder))?,
            }
        };
        // Where bpffs was mounted without a mode, everybody may make folders in it.
        Folder::open(&folder).map_err(PinError::Unsafe)?;
        let owner = folder.join(OWNER);
        match fs::read_link(&owner) {
            Ok(other) if other != run_dir => {
                return Err(PinError::Taken { instance: instance(run_dir), owner: other, folder });
            }
            Ok(_) => {}
            Err(_) => symlink(run_dir, &owner).map_err(failed(&owner))?,
        }
        Ok(Self { folder, keep: !made })
    }

    /// The folder of the instance, if there is one.
    #[must_use]
    pub fn find(run_dir: &Path) -> Option<Self> {
        let folder = bpffs()?.join(SLUICE).join(instance(run_dir));
        Folder::open(&folder).ok()?;
        (fs::read_link(folder.join(OWNER)).ok()? == run_dir).then_some(Self { folder, keep: true })
    }

    /// Describes the pins in it.
    #[must_use]
    pub fn pinned(&self, now: Time) -> Pinned {
        let mut found = described(&self.folder);
        let bans = self.bans();
        found.bans = bans.map(|bans| bans.iter().filter(|(_, end)| *end > now).count());
        found
    }

    /// From now on the pins outlive this process; only `remove` removes them.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// Removes every pin. A program is detached by that, unless a process still holds its link.
    ///
    /// # Errors
    /// The pin that could not be removed.
    pub fn remove(&mut self) -> Result<(), PinError> {
        self.keep = true;
        // The owner goes last: if an error leaves other pins, it still says whose they are.
        for name in names(&self.folder).into_iter().filter(|name| name != OWNER).chain([OWNER.to_owned()]) {
            remove(&self.folder.join(name))?;
        }
        let gone = |path: &Path| match fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        gone(&self.folder).map_err(|reason| PinError::Io { path: self.folder.clone(), reason })?;
        // The parent folder stays while it holds other instances.
        let _ = self.folder.parent().map(gone);
        Ok(())
    }

    /// The interfaces whose links are pinned.
    pub(super) fn interfaces(&self) -> BTreeSet<String> {
        names(&self.folder).iter().filter_map(|name| interface(name)).collect()
    }

    /// The link that is pinned under this name.
    pub(super) fn link(&self, name: &str) -> Option<FdLink> {
        PinnedLink::from_pin(self.folder.join(name)).ok().map(FdLink::from)
    }

    /// Pins a link. The caller must keep the link open: a pinned link that nobody holds is detached by
    /// `unpin_link` at once.
    pub(super) fn pin_link(&self, name: &str, link: FdLink) -> Result<FdLink, KernelError> {
        let pinned = link
            .pin(self.folder.join(name))
            .map_err(|error| KernelError::Pin(format!("{name}: {}", chain(&error))));
        pinned.map(FdLink::from)
    }

    /// Removes the pin of a link. Its program is detached once no process holds the link.
    pub(super) fn unpin_link(&self, name: &str) -> Result<(), KernelError> {
        self.unpin(&self.folder.join(name))
    }

    /// Pins the new object's maps beside the ones that are pinned already, and tells which of them to use.
    pub(in crate::kernel) fn compare(&self, object: &Object) -> Result<Found, KernelError> {
        let pinned: BTreeSet<String> =
            names(&self.folder).into_iter().filter(|name| name.starts_with(MAPS)).collect();
        let mut misfits = Vec::new();
        for (name, map) in object.maps().filter(|(name, _)| name.starts_with(MAPS)) {
            let next = self.folder.join(format!("{NEXT}{name}"));
            // An earlier start that failed may have left it.
            self.unpin(&next)?;
            map.pin(&next).map_err(|error| KernelError::Pin(format!("{name}: {}", chain(&error))))?;
            if pinned.contains(name) {
                misfits
                    .extend(difference(&self.folder.join(name), &next).map(|what| format!("{name} {what}")));
            } else {
                misfits.push(format!("{name} is new"));
            }
        }
        if pinned.is_empty() {
            return Ok(Found::Nothing);
        }
        let layout = fs::read_link(self.folder.join(LAYOUT)).unwrap_or_default();
        if layout.as_os_str().as_bytes() != guard::LAYOUT.to_string().as_bytes() {
            misfits.insert(0, format!("layout {:?} instead of {}", layout, guard::LAYOUT));
        }
        if misfits.is_empty() {
            return Ok(Found::Fitting);
        }
        Ok(Found::Older { reason: misfits.join(", "), bans: self.bans() })
    }

    /// The bans in the pinned table, where they can be read.
    fn bans(&self) -> Option<Vec<(BanSource, Time)>> {
        bans::read_from(MapData::from_pin(self.folder.join(BANS)).ok()?).ok()
    }

    /// Replaces the pinned maps by the new ones. An attached program keeps its own maps until it is replaced.
    pub(in crate::kernel) fn take_next(&self) -> Result<(), KernelError> {
        let failed = |what: &str, error: io::Error| KernelError::Pin(format!("{what}: {error}"));
        // The layout is missing meanwhile, so no later start takes over a half-replaced set of maps.
        let layout = self.folder.join(LAYOUT);
        self.unpin(&layout)?;
        self.maps().iter().try_for_each(|(_, path)| self.unpin(path))?;
        for name in names(&self.folder) {
            if let Some(map) = name.strip_prefix(NEXT) {
                fs::rename(self.folder.join(&name), self.folder.join(map))
                    .map_err(|error| failed(map, error))?;
            }
        }
        symlink(guard::LAYOUT.to_string(), layout).map_err(|error| failed(LAYOUT, error))
    }

    /// Removes the new maps; the pinned ones stay.
    pub(in crate::kernel) fn drop_next(&self) -> Result<(), KernelError> {
        names(&self.folder)
            .iter()
            .filter(|name| name.starts_with(NEXT))
            .try_for_each(|name| self.unpin(&self.folder.join(name)))
    }

    /// Name and path of every map that is pinned.
    pub(in crate::kernel) fn maps(&self) -> Vec<(String, PathBuf)> {
        let maps = names(&self.folder).into_iter().filter(|name| name.starts_with(MAPS));
        maps.map(|name| (name.clone(), self.folder.join(name))).collect()
    }

    fn unpin(&self, path: &Path) -> Result<(), KernelError> {
        remove(path).map_err(|error| KernelError::Pin(error.to_string()))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = self.remove()
        {
            tracing::warn!("pins of a start that failed stay: {error}");
        }
    }
}

/// Every instance that has pins.
#[must_use]
pub fn instances() -> Vec<Pinned> {
    let Some(bpffs) = bpffs() else { return Vec::new() };
    let parent = bpffs.join(SLUICE);
    let folders = names(&parent).into_iter().map(|name| parent.join(name));
    folders.filter(|folder| Folder::open(folder).is_ok()).map(|folder| described(&folder)).collect()
}

fn described(folder: &Path) -> Pinned {
    let program = |name: &str| {
        Some(FdLink::from(PinnedLink::from_pin(folder.join(name)).ok()?).info().ok()?.program_id())
    };
    let interfaces =
        names(folder).iter().filter_map(|name| Some((interface(name)?, program(name)))).collect();
    Pinned {
        instance: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        run_dir: fs::read_link(folder.join(OWNER)).unwrap_or_default(),
        folder: folder.to_owned(),
        interfaces,
        bans: None,
    }
}

/// The last component of run_dir.
fn instance(run_dir: &Path) -> String {
    run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The file name of the link to an interface.
pub(super) fn xdp_link(interface: &str) -> String {
    format!("{XDP}{}", interface.replace('.', ":"))
}

/// The interface that a link's file name stands for. An interface's own name has no colon.
fn interface(name: &str) -> Option<String> {
    name.strip_prefix(XDP).map(|interface| interface.replace(':', "."))
}

/// Where bpffs is mounted.
fn bpffs() -> Option<PathBuf> {
    bpffs_of(&fs::read_to_string("/proc/self/mounts").unwrap_or_default())
}

/// The first place where bpffs is mounted; the usual one before others.
fn bpffs_of(mounts: &str) -> Option<PathBuf> {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut places: Vec<PathBuf> = fields
        .filter(|fields| fields.get(2) == Some(&"bpf"))
        .filter_map(|fields| fields.get(1).map(PathBuf::from))
        .collect();
    places.sort_by_key(|place| place != Path::new(BPFFS));
    places.into_iter().next()
}

fn mount_bpffs() -> Result<PathBuf, PinError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700")) {
        Ok(()) => {
            tracing::info!("bpffs was not mounted; it is now, on {BPFFS}");
            Ok(PathBuf::from(BPFFS))
        }
        Err(errno) => Err(PinError::NoBpffs(format!(
            "it is not mounted, and mounting it on {BPFFS} failed: {}",
            errno.desc()
        ))),
    }
}

/// Makes a folder; false if it existed already.
fn make(folder: &Path) -> io::Result<bool> {
    match DirBuilder::new().mode(0o755).create(folder) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Names in a folder; none when it cannot be read.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn remove(path: &Path) -> Result<(), PinError> {
    match fs::remove_file(path) {
        Err(reason) if reason.kind() != io::ErrorKind::NotFound => {
            Err(PinError::Io { path: path.to_owned(), reason })
        }
        _ => Ok(()),
    }
}

/// The difference between a pinned map and the new object's map of the same name.
fn difference(pinned: &Path, next: &Path) -> Option<String> {
    let (Ok(pinned), Ok(next)) = (MapInfo::from_pin(pinned), MapInfo::from_pin(next)) else {
        return Some("cannot be opened".to_owned());
    };
    if pinned.map_type().ok() != next.map_type().ok() {
        return Some("is of another type".to_owned());
    }
    let fields = [
        ("key size", pinned.key_size(), next.key_size()),
        ("value size", pinned.value_size(), next.value_size()),
        ("size", pinned.max_entries(), next.max_entries()),
        ("flags", pinned.map_flags(), next.map_flags()),
    ];
    let (what, old, new) = fields.into_iter().find(|(_, old, new)| old != new)?;
    Some(format!("has {what} {old} instead of {new}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_bpffs_is_preferred() {
        let mounts =
            "sysfs /sys sysfs rw 0 0\nbpf /mnt/bpf bpf rw 0 0\nnone /sys/fs/bpf bpf rw,mode=700 0 0\n";
        assert_eq!(bpffs_of(mounts), Some(PathBuf::from("/sys/fs/bpf")));
        assert_eq!(bpffs_of("bpf /mnt/bpf bpf rw 0 0\n"), Some(PathBuf::from("/mnt/bpf")));
        assert_eq!(bpffs_of("bpf /sys/fs/bpf tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn an_interface_is_found_again_in_its_pins_name() {
        for name in ["eth0", "eth0.100", "wlp3s0-x"] {
            let file = xdp_link(name);
            assert!(!file.contains('.'), "{file}");
            assert_eq!(interface(&file).as_deref(), Some(name));
        }
        assert_eq!(interface("GUARD_BANS"), None);
    }
}
