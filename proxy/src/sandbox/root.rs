//! An empty root: a folder that was removed while it was open. Nobody can make a file in such a folder, and
//! without CAP_SYS_CHROOT and without a descriptor of another folder nobody leaves it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use caps::{CapSet, Capability};

/// The supervisor's descriptor of such a folder. A data plane starts in it.
#[derive(Debug)]
pub struct EmptyFolder(File);

impl EmptyFolder {
    /// Makes it inside of a folder that is ours; nothing stays there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(within: &Path) -> io::Result<Self> {
        let path = within.join(format!("empty-{}", std::process::id()));
        // A supervisor with our process id, as in a container, may have died between the next steps.
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // The data plane's user may not even look for a name in it.
        DirBuilder::new().mode(0o500).create(&path)?;
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        fs::remove_dir(&path)?;
        opened.map(Self)
    }

    /// A path to start a process in. It leads there in processes that have this descriptor.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

/// Whether a data plane of ours may change its root.
pub(super) fn find() -> Result<(), String> {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_CHROOT) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err("CAP_SYS_CHROOT is missing; start as root, or give the capability (config/sluice.service)"
                .to_owned())
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Makes the current folder the root. It has to be an empty folder, of which the capability to leave is given
/// up next.
pub(super) fn enter() -> io::Result<()> {
    // The kernel lists nothing of a removed folder: the first entry is an error.
    if fs::read_dir(".")?.next().is_some_and(|entry| entry.is_ok()) {
        return Err(io::Error::other("the folder that should be the root is not empty"));
    }
    nix::unistd::chroot(".")?;
    nix::unistd::chdir("/")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_gone_and_takes_no_file() {
        let within = tempfile::tempdir().expect("a folder");
        // One that a crash left behind is no obstacle.
        fs::create_dir(within.path().join(format!("empty-{}", std::process::id()))).expect("made");
        let folder = EmptyFolder::make(within.path()).expect("made");
        assert_eq!(fs::read_dir(within.path()).expect("a folder").count(), 0);
        assert!(fs::metadata(folder.path()).expect("reachable").is_dir());
        assert!(fs::write(folder.path().join("x"), "").is_err());
        assert!(fs::create_dir(folder.path().join("x")).is_err());
    }
}
