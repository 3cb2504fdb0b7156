//! The end: how it is asked for, and the receipt that says how it went.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::estate::Connections;
use super::super::notify;
use super::Supervisor;
use crate::config::model::Process;
use crate::control::life::{GRACE, LifeEvent, RunOutcome};
use crate::control::messages::Response;
use crate::sandbox;

/// What an end needs beside the data plane's: programs are detached, logs are written.
const MARGIN: Duration = Duration::from_secs(5);

impl Supervisor {
    pub(super) fn begin_stop(&mut self) {
        self.begin_ending(None);
        notify::stopping(GRACE + MARGIN);
        self.events.push_back(LifeEvent::Stop);
    }

    pub(super) fn begin_drain(&mut self) {
        let Process { drain_delay: delay, drain_timeout: timeout, .. } = self.estate.config.process;
        self.begin_ending(Some(timeout));
        notify::stopping(delay + timeout + GRACE + MARGIN);
        self.events.push_back(LifeEvent::Drain { delay, timeout });
    }

    /// A stop may cut a drain short; connections are counted from the first of both.
    fn begin_ending(&mut self, drain: Option<Duration>) {
        let before = self.estate.connections();
        let ending = self.ending.get_or_insert(Ending { before, after: before, drain });
        if drain.is_none() {
            ending.drain = None;
        }
    }
}

/// Connections at the begin of the end, and at the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    before: Connections,
    pub(super) after: Connections,
    /// How long they were given; `None`: no time, a stop.
    drain: Option<Duration>,
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, drain } = self;
        let cut = after.cut.saturating_sub(before.cut).saturating_add(after.open);
        let ended = after.ended.saturating_sub(before.ended);
        write!(formatter, "connections: {ended} ended by themselves, {cut} were cut")?;
        match drain {
            // Only a caller that knows the reason, the end of their time, asks for the alternate form.
            Some(timeout) if cut > 0 && formatter.alternate() => {
                write!(formatter, " after process.drain_timeout ({timeout:?})")
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn receipt(outcome: RunOutcome, restarts: u32, ending: Option<Ending>) -> Response {
    let pid = std::process::id();
    let connections = |ending: Option<String>| ending.map(|ending| format!("; {ending}")).unwrap_or_default();
    let restarts = match restarts {
        0 => String::new(),
        1 => "; its data plane had been restarted once".to_owned(),
        _ => format!("; its data plane had been restarted {restarts} times"),
    };
    match outcome {
        RunOutcome::Clean => {
            let connections = connections(ending.map(|ending| format!("{ending:#}")));
            Response::Done(format!("process {pid} ended in order{connections}{restarts}"))
        }
        RunOutcome::Forced => Response::Failed(format!(
            "process {pid} ended, but its data plane did not end by itself in time or crashed{}{restarts}",
            connections(ending.map(|ending| ending.to_string()))
        )),
        RunOutcome::NeverReady => {
            Response::Failed(format!("process {pid} ended: no data plane ever became ready"))
        }
    }
}

pub(super) fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match Signal::try_from(signal) {
            Ok(Signal::SIGSYS) => format!("killed by SIGSYS: {}", sandbox::HINT),
            Ok(signal) => format!("killed by {signal}"),
            Err(_) => format!("killed by signal {signal}"),
        },
        (None, Some(code)) => format!("exit status {code}"),
        (None, None) => status.to_string(),
    }
}
