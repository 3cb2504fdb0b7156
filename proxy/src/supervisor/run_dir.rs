//! `process.run_dir`: the lock that makes an instance the only one of its name, and the control socket. The
//! lock is flock(2) on a file that is never removed, so that there is no moment without it; the kernel frees
//! it when its holder dies, however it dies.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};

use crate::folder::{Folder, FolderError};

/// Its name in `run_dir`.
pub const CONTROL_SOCKET: &str = "control.sock";
const LOCK: &str = "lock";

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Another supervisor holds it.
    #[error("{} is in use: sluice runs already as process {holder} (process.run_dir names the instance; one \
        per instance)", path.display())]
    Held {
        /// The directory.
        path: PathBuf,
        /// Process id as the holder wrote it, or `unknown`.
        holder: String,
    },
    /// Another user could put files there, or put another folder in its place.
    #[error(
        "process.run_dir: {0}; it and every folder above it must belong to root or to the user who \
        starts Sluice, and be writable by nobody else: mend owner and mode, or choose another folder"
    )]
    Unsafe(FolderError),
    /// Another error.
    #[error("process.run_dir: cannot {action} {}: {}", path.display(), explain(reason))]
    Io {
        /// The file.
        path: PathBuf,
        /// The action that failed.
        action: &'static str,
        /// Why it failed.
        reason: io::Error,
    },
}

impl From<FolderError> for RunDirError {
    fn from(error: FolderError) -> Self {
        match error {
            FolderError::Io { path, action, reason } => Self::Io { path, action, reason },
            other => Self::Unsafe(other),
        }
    }
}

/// Advice for the operator who starts Sluice.
fn explain(reason: &io::Error) -> String {
    match reason.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "{reason}; it belongs to another user: start as root or as that user, or choose another \
                 folder"
            )
        }
        io::ErrorKind::NotFound => format!("{reason}; it has to be a folder that can be made here"),
        io::ErrorKind::ReadOnlyFilesystem => format!("{reason}; under systemd name it in RuntimeDirectory="),
        _ => reason.to_string(),
    }
}

/// A held run_dir with a listening control socket. Dropping it removes the socket, then frees the lock.
#[derive(Debug)]
pub struct RunDir {
    folder: Folder,
    control: Option<UnixListener>,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes the directory if it is missing, takes the lock, replaces a stale socket.
    ///
    /// # Errors
    /// When another supervisor holds it, or when the directory is not safe or not usable.
    pub fn claim(path: &Path) -> Result<Self, RunDirError> {
        // Everybody may look into it: another administrator's `sluice status` says whose it is.
        let folder = Folder::make(path)?;
        let lock = take_lock(&folder)?;
        let control = bind_control(&folder)?;
        Ok(Self { folder, control: Some(control), _lock: lock })
    }

    /// The directory, for the files in it.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The control socket; `None` once it was closed.
    #[must_use]
    pub fn control(&self) -> Option<&UnixListener> {
        self.control.as_ref()
    }

    /// The instance's name: the directory's.
    #[must_use]
    pub fn instance(&self) -> String {
        let name = self.folder.path().file_name();
        name.map_or_else(|| "sluice".into(), |name| name.to_string_lossy().into_owned())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.control = None;
        // While the lock is still held, so that it cannot be a successor's.
        let _ = self.folder.remove(CONTROL_SOCKET);
    }
}

/// Why something of the directory cannot be used.
fn failed(folder: &Folder, name: &str, action: &'static str) -> impl FnOnce(io::Error) -> RunDirError {
    let path = folder.path().join(name);
    move |reason| RunDirError::Io { path, action, reason }
}

fn take_lock(folder: &Folder) -> Result<Flock<File>, RunDirError> {
    // Whoever may open the file may lock it, so nobody else may.
    let file = folder.own_file(LOCK).map_err(failed(folder, LOCK, "open"))?;
    let mut lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => {
                RunDirError::Held { path: folder.path().to_owned(), holder: holder(file) }
            }
            other => failed(folder, LOCK, "lock")(other.into()),
        })?;
    let written =
        lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{}", std::process::id()));
    written.map_err(failed(folder, LOCK, "write"))?;
    Ok(lock)
}

/// The process that runs in a directory, by its id or as `unknown`; `None`: none.
#[must_use]
pub fn runs_in(directory: &Path) -> Option<String> {
    match take_lock_of(directory) {
        Err(RunDirError::Held { holder, .. }) => Some(holder),
        _ => None,
    }
}

/// Holds off a start in a directory that is there; the lock file is neither made nor written.
///
/// # Errors
/// `Held` when somebody runs there; else when the directory is not one that we would run in.
pub fn take_lock_of(directory: &Path) -> Result<Option<Flock<File>>, RunDirError> {
    let folder = match Folder::open(directory) {
        Ok(folder) => folder,
        Err(FolderError::Io { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let found = folder.find_own_file(LOCK).map_err(failed(&folder, LOCK, "open"))?;
    let Some(file) = found else { return Ok(None) };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            Err(RunDirError::Held { path: directory.to_owned(), holder: holder(file) })
        }
        Err((_, errno)) => Err(failed(&folder, LOCK, "lock")(errno.into())),
    }
}

fn holder(file: File) -> String {
    let mut text = String::new();
    let read = file.take(32).read_to_string(&mut text);
    let pid = text.trim();
    if read.is_ok() && !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()) {
        pid.to_owned()
    } else {
        "unknown".into()
    }
}

fn bind_control(folder: &Folder) -> Result<UnixListener, RunDirError> {
    // The process that left it is dead: we hold the lock.
    folder.remove(CONTROL_SOCKET).map_err(failed(folder, CONTROL_SOCKET, "remove the stale socket"))?;
    // Only our user may connect, from the first moment on. The umask belongs to the process, which has one
    // thread that makes files. The path is as good as the descriptor: nobody else can move a part of it.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(folder.path().join(CONTROL_SOCKET));
    umask(before);
    let listener = listener.map_err(failed(folder, CONTROL_SOCKET, "bind"))?;
    listener.set_nonblocking(true).map_err(failed(folder, CONTROL_SOCKET, "set non-blocking"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests;
