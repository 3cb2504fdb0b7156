//! `process.run_dir`: the lock that makes an instance the only one of its name, and the control socket. The
//! lock is flock(2) on a file that is never removed, so that there is no moment without it; the kernel frees
//! it when its holder dies, however it dies.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, umask};

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
    /// Everybody could put files there.
    #[error("{} can be written by every user (mode {mode:04o}); choose another process.run_dir or `chmod \
        o-w` it", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
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
    path: PathBuf,
    control: Option<UnixListener>,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes the directory if it is missing, takes the lock, replaces a stale socket.
    ///
    /// # Errors
    /// When another supervisor holds it, or when the directory is not safe or not usable.
    pub fn claim(path: &Path) -> Result<Self, RunDirError> {
        let failed = |action| move |reason| RunDirError::Io { path: path.to_owned(), action, reason };
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed("create"))?;
            // The umask may have taken bits away that `sluice status` of another administrator needs.
            fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed("chmod"))?;
        }
        let mode = fs::metadata(path).map_err(failed("stat"))?.permissions().mode() & 0o7777;
        if mode & 0o002 != 0 {
            return Err(RunDirError::Open { path: path.to_owned(), mode });
        }
        let lock = take_lock(path)?;
        let control = bind_control(path)?;
        Ok(Self { path: path.to_owned(), control: Some(control), _lock: lock })
    }

    /// The control socket; `None` once it was closed.
    #[must_use]
    pub fn control(&self) -> Option<&UnixListener> {
        self.control.as_ref()
    }

    /// The instance's name: the directory's.
    #[must_use]
    pub fn instance(&self) -> String {
        self.path.file_name().map_or_else(|| "sluice".into(), |name| name.to_string_lossy().into_owned())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.control = None;
        // While the lock is still held, so that it cannot be a successor's.
        let _ = fs::remove_file(self.path.join(CONTROL_SOCKET));
    }
}

fn take_lock(directory: &Path) -> Result<Flock<File>, RunDirError> {
    let path = directory.join(LOCK);
    let failed = |action| {
        let path = path.clone();
        move |reason| RunDirError::Io { path, action, reason }
    };
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(flags)
        .open(&path);
    let file = file.map_err(failed("open"))?;
    let mut lock =
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(file, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => {
                RunDirError::Held { path: directory.to_owned(), holder: holder(file) }
            }
            other => RunDirError::Io { path: path.clone(), action: "lock", reason: other.into() },
        })?;
    lock.set_len(0).map_err(failed("write"))?;
    lock.rewind().map_err(failed("write"))?;
    writeln!(lock, "{}", std::process::id()).map_err(failed("write"))?;
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
/// `Held` when somebody runs there.
pub fn take_lock_of(directory: &Path) -> Result<Option<Flock<File>>, RunDirError> {
    let Ok(file) = File::open(directory.join(LOCK)) else { return Ok(None) };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            Err(RunDirError::Held { path: directory.to_owned(), holder: holder(file) })
        }
        // It cannot be told, so nobody is held off.
        Err(_) => Ok(None),
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

fn bind_control(directory: &Path) -> Result<UnixListener, RunDirError> {
    let path = directory.join(CONTROL_SOCKET);
    let failed = |action| {
        let path = path.clone();
        move |reason| RunDirError::Io { path, action, reason }
    };
    // The process that left it is dead: we hold the lock.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove the stale socket")(error));
        }
        _ => {}
    }
    // Only our user may connect, from the first moment on. The umask belongs to the process, which has one
    // thread that makes files.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&path);
    umask(before);
    let listener = listener.map_err(failed("bind"))?;
    listener.set_nonblocking(true).map_err(failed("set non-blocking"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_directory_is_made_held_once_and_left_clean() {
        let base = tempfile::tempdir().expect("directory");
        let path = base.path().join("deep/edge");
        let first = RunDir::claim(&path).expect("claim");
        assert_eq!(first.instance(), "edge");
        assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o7777, 0o755);
        let socket = path.join(CONTROL_SOCKET);
        assert_eq!(fs::metadata(&socket).expect("stat").permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&socket).expect("connect");
        assert_eq!(runs_in(&path), Some(std::process::id().to_string()));
        assert!(matches!(take_lock_of(&path), Err(RunDirError::Held { .. })));
        // A file description of its own, so flock refuses within one process too.
        let error = RunDir::claim(&path).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        UnixStream::connect(&socket).expect("the loser leaves the winner's socket alone");
        drop(first);
        assert!(!socket.exists());
        assert_eq!(runs_in(&path), None);
        let lock = take_lock_of(&path).expect("free").expect("there");
        assert!(matches!(RunDir::claim(&path), Err(RunDirError::Held { .. })), "a start is held off");
        drop(lock);
        RunDir::claim(&path).expect("free again");
    }

    #[test]
    fn what_a_crash_left_is_replaced() {
        let base = tempfile::tempdir().expect("directory");
        drop(UnixListener::bind(base.path().join(CONTROL_SOCKET)).expect("stale socket"));
        fs::write(base.path().join(LOCK), "99999999\nrubbish").expect("stale lock");
        let held = RunDir::claim(base.path()).expect("claim");
        assert_eq!(
            fs::read_to_string(base.path().join(LOCK)).expect("read"),
            format!("{}\n", std::process::id())
        );
        UnixStream::connect(base.path().join(CONTROL_SOCKET)).expect("connect");
        drop(held);
    }

    #[test]
    fn a_directory_for_everybody_and_a_symlinked_lock_are_refused() {
        let base = tempfile::tempdir().expect("directory");
        fs::set_permissions(base.path(), Permissions::from_mode(0o1777)).expect("chmod");
        assert!(matches!(RunDir::claim(base.path()), Err(RunDirError::Open { mode: 0o1777, .. })));
        fs::set_permissions(base.path(), Permissions::from_mode(0o755)).expect("chmod");
        let victim = base.path().join("victim");
        fs::write(&victim, "precious").expect("write");
        std::os::unix::fs::symlink(&victim, base.path().join(LOCK)).expect("symlink");
        assert!(matches!(RunDir::claim(base.path()), Err(RunDirError::Io { action: "open", .. })));
        assert_eq!(fs::read_to_string(victim).expect("read"), "precious");
    }
}
