//! The other end of the control socket: the requests of `sluice stop`, `drain`, `reload`, `status` and the
//! ban commands. None waits for ever: a supervisor that takes no request, or that does not keep the time that
//! it named, hangs or is stopped, and the error says what to do.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, SendTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::run_dir::{self, CONTROL_SOCKET};
use crate::control::messages::{Request, Response};

/// A longer answer is not one of ours.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// A supervisor answers a status in a second, and anything else at once; if only that the request is in work.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// For the process to be gone after its receipt.
const END_WAIT: Duration = Duration::from_secs(1);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("no sluice runs in {} (process.run_dir; name another with --run-dir)", .0.display())]
    Absent(PathBuf),
    /// The socket belongs to somebody else.
    #[error("{}: permission denied; the control socket belongs to the user who started sluice", .0.display())]
    Denied(PathBuf),
    /// It ended before it answered.
    #[error("no answer from the supervisor: {0}")]
    Silent(io::Error),
    /// It lives and does not answer.
    #[error("no answer from the supervisor (process {pid}) in time: {state}")]
    Hangs {
        /// Its process id, or `unknown`.
        pid: String,
        /// How it is, with advice.
        state: Stopped,
    },
    /// It answered something else.
    #[error("unintelligible answer from the supervisor: {0}")]
    Malformed(serde_json::Error),
}

/// Whether a signal or a debugger stopped the process, whose id is in the field.
#[derive(Debug)]
pub enum Stopped {
    /// It did.
    Yes(String),
    /// Something else keeps it.
    No(String),
}

impl fmt::Display for Stopped {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Yes(pid) => write!(formatter, "it is stopped; `kill -CONT {pid}` lets it go on"),
            Self::No(pid) => write!(
                formatter,
                "it hangs, or the machine is overloaded; see its log, and try again. If it stays so, \
                 `kill -KILL {pid}` ends it with its data plane, then start sluice again"
            ),
        }
    }
}

/// Asks and waits for the outcome.
///
/// # Errors
/// When there is no supervisor, or no answer.
pub fn ask(run_dir: &Path, request: &Request) -> Result<Response, AskError> {
    ask_within(run_dir, request, ANSWER_WAIT)
}

fn ask_within(run_dir: &Path, request: &Request, wait: Duration) -> Result<Response, AskError> {
    let mut stream = dial(&run_dir.join(CONTROL_SOCKET), wait).map_err(|errno| match errno {
        Errno::EACCES | Errno::EPERM => AskError::Denied(run_dir.join(CONTROL_SOCKET)),
        // Its queue is full of clients that it does not take.
        Errno::EAGAIN => hangs(run_dir::runs_in(run_dir).unwrap_or_else(|| "unknown".to_owned())),
        _ => AskError::Absent(run_dir.to_owned()),
    })?;
    let supervisor =
        getsockopt(&stream, PeerCredentials).map_err(|errno| AskError::Silent(errno.into()))?.pid();
    let silent = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => hangs(supervisor.to_string()),
        _ => AskError::Silent(error),
    };
    let mut line = serde_json::to_vec(request).map_err(AskError::Malformed)?;
    line.push(b'\n');
    stream.write_all(&line).map_err(silent)?;
    stream.set_read_timeout(Some(wait)).map_err(AskError::Silent)?;
    let mut reader = BufReader::new(Read::by_ref(&mut stream)).take(ANSWER_BYTES_MAX);
    let response = loop {
        let mut answer = Vec::new();
        reader.read_until(b'\n', &mut answer).map_err(silent)?;
        if answer.is_empty() {
            return Err(AskError::Silent(io::ErrorKind::UnexpectedEof.into()));
        }
        match serde_json::from_slice(&answer).map_err(AskError::Malformed)? {
            Response::Begun { within_ms } => {
                let within = Duration::from_millis(within_ms).saturating_add(wait);
                reader.get_ref().get_ref().set_read_timeout(Some(within)).map_err(AskError::Silent)?;
            }
            response => break response,
        }
    };
    if request.ends() {
        // Its process ends right after the receipt, and with it this connection.
        let _ = stream.set_read_timeout(Some(wait));
        let _ = stream.read(&mut [0]);
        wait_until_gone(supervisor);
    }
    Ok(response)
}

/// A connection whose making and writes end within `wait`: neither has a bound of its own where the other
/// side takes nothing.
fn dial(path: &Path, wait: Duration) -> nix::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(
        &fd,
        SendTimeout,
        &TimeVal::milliseconds(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)),
    )?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

fn hangs(pid: String) -> AskError {
    let state = match state_of(&pid) {
        Some('T' | 't') => Stopped::Yes(pid.clone()),
        _ => Stopped::No(pid.clone()),
    };
    AskError::Hangs { pid, state }
}

/// The state that /proc/PID/stat shows; `None`: there is no such process.
fn state_of(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The state is the first field after the name, which is in parentheses and may contain anything.
    stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next())
}

/// The kernel closes a process's connections shortly before it is gone. A starter of a successor must not see
/// both.
fn wait_until_gone(pid: i32) {
    let start = std::time::Instant::now();
    while start.elapsed() < END_WAIT {
        if matches!(state_of(&pid.to_string()), None | Some('Z' | 'X')) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const WAIT: Duration = Duration::from_millis(100);

    fn listener() -> (tempfile::TempDir, UnixListener) {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = UnixListener::bind(folder.path().join(CONTROL_SOCKET)).expect("bind");
        (folder, listener)
    }

    #[test]
    fn nobody_waits_for_a_supervisor_that_does_not_answer() {
        let (folder, listener) = listener();
        for request in [Request::Status, Request::Stop, Request::Drain, Request::Reload, Request::Bans] {
            let error = ask_within(folder.path(), &request, WAIT).expect_err("silent").to_string();
            let pid = std::process::id();
            assert!(error.contains(&format!("process {pid}")) && error.contains("it hangs"), "{error}");
        }
        // Nor for one that does not even take connections.
        let mut waiting = Vec::new();
        while let Ok(stream) = dial(&folder.path().join(CONTROL_SOCKET), WAIT) {
            assert!(waiting.len() < 10_000, "the queue has a bound");
            waiting.push(stream);
        }
        let error = ask_within(folder.path(), &Request::Stop, WAIT).expect_err("silent");
        assert!(matches!(error, AskError::Hangs { .. }), "{error}");
        drop(listener);
        let error = ask_within(folder.path(), &Request::Stop, WAIT).expect_err("silent");
        assert!(matches!(error, AskError::Absent(_)), "{error}");
    }

    #[test]
    fn a_request_in_work_is_given_the_time_that_it_takes() {
        let (folder, listener) = listener();
        let supervisor = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accept");
            stream.write_all(b"{\"begun\":{\"within_ms\":10000}}\n").expect("write");
            std::thread::sleep(3 * WAIT);
            stream.write_all(b"{\"done\":\"well\"}\n").expect("write");
        });
        let response = ask_within(folder.path(), &Request::Reload, WAIT).expect("an answer");
        assert!(matches!(response, Response::Done(text) if text == "well"));
        supervisor.join().expect("no panic");
    }
}
