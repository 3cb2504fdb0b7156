//! Opens the access log for the data plane, which opens no configured path itself: at the start, and again
//! when it was rotated.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;

use crate::config::model::{AccessLog, LogFormat};
use crate::control::messages::LogLook;
use crate::folder::{Folder, FolderError};
use crate::telemetry::logging;

/// Clients' addresses and requests are not for everybody.
const MODE: Mode = Mode::from_bits_truncate(0o640);

/// The access log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("log.access = \"{}\": {}", path.display(), explain(reason))]
pub struct OpenError {
    path: PathBuf,
    reason: io::Error,
}

/// How lines of the log look on our standard error.
#[must_use]
pub fn look(format: LogFormat) -> LogLook {
    logging::look(match format {
        LogFormat::Auto => None,
        LogFormat::Json => Some(false),
        LogFormat::Text => Some(true),
    })
}

/// The output of the access log; `None`: it is off.
///
/// # Errors
/// When the file cannot be opened for appending.
pub fn open(log: &AccessLog) -> Result<Option<OwnedFd>, OpenError> {
    let (path, opened) = match log {
        AccessLog::Off => return Ok(None),
        AccessLog::Stdout => (Path::new("stdout"), io::stdout().as_fd().try_clone_to_owned()),
        AccessLog::File(path) => (path.as_path(), append(path)),
    };
    opened.map(Some).map_err(|reason| OpenError { path: path.to_owned(), reason })
}

fn append(path: &Path) -> io::Result<OwnedFd> {
    let (folder, name) = Folder::of_file(path).map_err(|error| match error {
        FolderError::Io { reason, .. } => reason,
        other => io::Error::other(other),
    })?;
    // A FIFO that nobody reads would keep a blocking open, and with it the supervisor, for ever.
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK;
    let file = folder.open_file(&name, flags, MODE)?;
    if let Some(doubt) = folder.doubt()
        && !folder.is_only_name(&name, &file)?
    {
        return Err(io::Error::other(format!("is a file with another name elsewhere, and {doubt}")));
    }
    // Writing may block: it only keeps the log thread.
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
    fcntl(&file, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
    Ok(file.into())
}

fn explain(reason: &io::Error) -> String {
    match reason.raw_os_error() {
        Some(libc::ENXIO) => "a FIFO that nobody reads, or a socket".to_owned(),
        Some(libc::ENOENT) => "its folder does not exist".to_owned(),
        Some(libc::EISDIR) => "is a folder".to_owned(),
        _ => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_made_or_appended_to_and_belongs_to_few() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("access.log");
        for text in ["a\n", "b\n"] {
            let fd = open(&AccessLog::File(path.clone())).expect("opens").expect("is on");
            std::fs::File::from(fd).write_all(text.as_bytes()).expect("write");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("text"), "a\nb\n");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o137, 0);
        assert!(open(&AccessLog::Off).expect("nothing to open").is_none());
        assert!(open(&AccessLog::Stdout).expect("open").is_some());
    }

    #[test]
    fn what_cannot_be_opened_says_why_and_never_waits() {
        let folder = tempfile::tempdir().expect("folder");
        let fifo = folder.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("fifo");
        for (path, why) in [
            (fifo, "a FIFO that nobody reads, or a socket"),
            (folder.path().to_owned(), "is a folder"),
            (folder.path().join("not/there"), "its folder does not exist"),
        ] {
            let error = open(&AccessLog::File(path.clone())).expect_err(why).to_string();
            assert_eq!(error, format!("log.access = \"{}\": {why}", path.display()));
        }
    }

    #[test]
    fn in_a_folder_of_others_no_link_is_followed() {
        let folder = tempfile::tempdir().expect("folder");
        let (victim, log) = (folder.path().join("victim"), folder.path().join("logs/access.log"));
        std::fs::create_dir(folder.path().join("logs")).expect("made");
        std::fs::write(&victim, "").expect("written");
        let set_mode = |mode| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path().join("logs"), mode).expect("chmod");
        };
        symlink(&victim, &log).expect("link");
        set_mode(0o755);
        open(&AccessLog::File(log.clone())).expect("a link that only we can have put");
        set_mode(0o775);
        let error = open(&AccessLog::File(log.clone())).expect_err("somebody's link").to_string();
        assert!(error.contains("is a symbolic link") && error.contains("mode 0775"), "{error}");
        std::fs::remove_file(&log).expect("removed");
        std::fs::hard_link(&victim, &log).expect("link");
        let error = open(&AccessLog::File(log.clone())).expect_err("somebody's link").to_string();
        assert!(error.contains("another name"), "{error}");
        std::fs::remove_file(&log).expect("removed");
        open(&AccessLog::File(log)).expect("a new file");
    }
}
