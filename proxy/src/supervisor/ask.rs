//! The other end of the control socket: the requests of `sluice stop`, `drain`, `reload`, `status` and the
//! ban commands, and how long they wait for the outcome.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

use super::run_dir::CONTROL_SOCKET;
use crate::control::messages::{Request, Response};

/// A longer answer is not one of ours.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// A supervisor answers a status in a second, and anything else at once.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// A reload may wait for another reload and for a data plane. Each has its own deadline.
const RELOAD_WAIT: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no sluice runs in {} (process.run_dir; name another with --run-dir)", .0.display())]
    Absent(PathBuf),
    /// The socket belongs to somebody else.
    #[error("{}: permission denied; the control socket belongs to the user who started sluice", .0.display())]
    Denied(PathBuf),
    /// It ended or fell silent before it answered.
    #[error("no answer from the supervisor: {0}")]
    Silent(io::Error),
    /// It answered something else.
    #[error("unintelligible answer from the supervisor: {0}")]
    Malformed(serde_json::Error),
}

/// Asks and waits for the outcome.
///
/// # Errors
/// When there is no supervisor, or no answer.
pub fn ask(run_dir: &Path, request: &Request) -> Result<Response, AskError> {
    let path = run_dir.join(CONTROL_SOCKET);
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => AskError::Denied(path),
        _ => AskError::Absent(run_dir.to_owned()),
    })?;
    // The supervisor bounds stop and drain by itself: it kills a data plane that does not end in time.
    let supervisor =
        getsockopt(&stream, PeerCredentials).map_err(|errno| AskError::Silent(errno.into()))?.pid();
    let wait = match request {
        Request::Stop | Request::Drain => None,
        Request::Reload => Some(RELOAD_WAIT),
        _ => Some(ANSWER_WAIT),
    };
    stream.set_read_timeout(wait).map_err(AskError::Silent)?;
    let mut line = serde_json::to_vec(request).map_err(AskError::Malformed)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(AskError::Silent)?;
    let mut answer = Vec::new();
    BufReader::new(Read::by_ref(&mut stream))
        .take(ANSWER_BYTES_MAX)
        .read_until(b'\n', &mut answer)
        .map_err(AskError::Silent)?;
    if answer.is_empty() {
        return Err(AskError::Silent(io::ErrorKind::UnexpectedEof.into()));
    }
    let response = serde_json::from_slice(&answer).map_err(AskError::Malformed)?;
    if request.ends() {
        // Its process ends right after the receipt, and with it this connection.
        let _ = stream.set_read_timeout(Some(ANSWER_WAIT));
        let _ = stream.read(&mut [0]);
        wait_until_gone(supervisor);
    }
    Ok(response)
}

/// The kernel closes a process's connections shortly before it is gone. A starter of a successor must not see
/// both.
fn wait_until_gone(pid: i32) {
    for _ in 0..1_000 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The state is the first field after the name, which is in parentheses and may contain anything.
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().next());
        if state.is_none_or(|state| state == "Z" || state == "X") {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
