//! The file that SSLKEYLOGFILE names, for secrets of handshakes. A reader of the file can read the traffic.
//! The variable alone therefore does nothing: it takes `sluice run --allow-key-log` too. The data plane is
//! handed the open file.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::Uid;
use tracing::warn;

use crate::folder::{Folder, FolderError};
use crate::telemetry::key_log::warning;

/// The variable.
pub const VARIABLE: &str = "SSLKEYLOGFILE";

/// Nobody's but ours.
const MODE: Mode = Mode::from_bits_truncate(0o600);

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE} = \"{}\": {reason}", path.display())]
pub struct OpenError {
    path: PathBuf,
    reason: String,
}

/// A key log that is written to.
#[derive(Debug)]
pub struct KeyLog {
    path: PathBuf,
    file: OwnedFd,
}

impl KeyLog {
    /// Opens the file that the variable names, if that is allowed, and warns of the consequence.
    ///
    /// # Errors
    /// When it is allowed and the file cannot be used: it cannot be opened, is no regular file, or is another
    /// user's to read.
    pub fn open(is_allowed: bool, variable: Option<OsString>) -> Result<Option<Self>, OpenError> {
        let path = variable.filter(|name| !name.is_empty()).map(PathBuf::from);
        let Some(path) = path else {
            if is_allowed {
                warn!("--allow-key-log has no effect: {VARIABLE} is not set");
            }
            return Ok(None);
        };
        if !is_allowed {
            warn!(
                "{VARIABLE} is set and ignored: secrets are written with `sluice run --allow-key-log` only"
            );
            return Ok(None);
        }
        // For readers of the status, who may be in another folder.
        let path = std::path::absolute(&path).unwrap_or(path);
        match append(&path) {
            Ok(file) => {
                warn!("{}", warning(&path.display().to_string()));
                Ok(Some(Self { path, file }))
            }
            Err(reason) => Err(OpenError { path, reason }),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// For handing over to a data plane.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn append(path: &Path) -> Result<OwnedFd, String> {
    let file = open(path)?;
    let found = file.metadata().map_err(|error| error.to_string())?;
    if !found.is_file() {
        return Err("is no regular file".to_owned());
    }
    if found.uid() != Uid::effective().as_raw() || found.mode() & 0o077 != 0 || found.nlink() != 1 {
        return Err("others may read or write it; remove it, or make it yours alone: chmod 600".to_owned());
    }
    Ok(file.into())
}

fn open(path: &Path) -> Result<File, String> {
    if path.is_symlink() {
        return Err("is a symbolic link".to_owned());
    }
    let (folder, name) = Folder::of_file(path).map_err(|error| match error {
        FolderError::Io { reason, .. } => explain(&reason),
        other => other.to_string(),
    })?;
    // Not for ever at a FIFO that nobody reads.
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK;
    folder.open_file(&name, flags, MODE).map_err(|error| explain(&error))
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ELOOP) => "is a symbolic link".to_owned(),
        Some(libc::ENXIO) => "is no regular file".to_owned(),
        Some(libc::ENOENT) => "its folder does not exist".to_owned(),
        Some(libc::EISDIR) => "is a folder".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn it_takes_both_the_variable_and_the_permission() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("keys");
        for (is_allowed, variable) in
            [(false, Some(path.clone())), (true, None), (true, Some(PathBuf::new()))]
        {
            assert!(
                KeyLog::open(is_allowed, variable.map(OsString::from)).expect("nothing to open").is_none()
            );
            assert!(!path.exists());
        }
        for line in ["a\n", "b\n"] {
            let log = KeyLog::open(true, Some(path.clone().into())).expect("opens").expect("is on");
            assert_eq!(log.path(), path);
            std::fs::File::from(log.fd().try_clone_to_owned().expect("dup"))
                .write_all(line.as_bytes())
                .expect("write");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "a\nb\n");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, MODE.bits());
    }

    #[test]
    fn a_file_that_is_not_ours_alone_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = |name: &str| folder.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        std::fs::write(path("shared"), "").expect("a file");
        std::fs::set_permissions(path("shared"), std::fs::Permissions::from_mode(0o644)).expect("a mode");
        std::os::unix::fs::symlink(path("target"), path("link")).expect("a link");
        for (name, why) in [
            ("fifo", "is no regular file"),
            ("shared", "others may read or write it; remove it, or make it yours alone: chmod 600"),
            ("link", "is a symbolic link"),
            (".", "is a folder"),
            ("not/there", "its folder does not exist"),
        ] {
            let error = KeyLog::open(true, Some(path(name).into())).expect_err(why).to_string();
            assert!(
                error.starts_with("SSLKEYLOGFILE = \"") && error.ends_with(&format!("\": {why}")),
                "{error}"
            );
        }
        assert!(!path("target").exists());
    }
}
