//! What the supervisor sees of the data plane: the watchdog's looks, and the status.

use std::time::Duration;

use tracing::{error, warn};

use super::Supervisor;
use crate::control::life::{LifeEvent, LifeState};
use crate::control::messages::{Response, ToDataPlane};
use crate::control::now;
use crate::control::status::{DataPlaneStatus, Status, SupervisorStatus};
use crate::supervisor::allowance::Allowance;
use crate::supervisor::process;
use crate::supervisor::watchdog::{Look, Watchdog};
use crate::time::Time;

/// Mendings of listening sockets: so many at once, and one in so long. More are no accident.
pub(super) const MENDINGS: Allowance = Allowance::new(8, Duration::from_secs(10));
/// How long until sockets are looked at again that could not be mended.
const MEND_AGAIN: Duration = Duration::from_secs(1);

impl Supervisor {
    /// When `watch_data_plane` has something to do; `None`: nothing is watched now.
    pub(super) fn next_watch(&self) -> Option<Time> {
        self.estate.config.process.watchdog.filter(|_| self.is_watched())?;
        self.planes.watchdog().map(Watchdog::next_look)
    }

    /// A data plane that starts or stops has a deadline for that.
    fn is_watched(&self) -> bool {
        let state = self.life.state();
        matches!(state, LifeState::Ready { .. } | LifeState::Leaving { .. } | LifeState::Draining { .. })
    }

    /// Looks whether the data plane still works.
    pub(super) fn watch_data_plane(&mut self, now: Time) {
        let Some(patience) = self.estate.config.process.watchdog.filter(|_| self.is_watched()) else {
            return;
        };
        let Some(plane) = self.planes.current() else { return };
        let since = self.estate.worker_slots().map(|slot| slot.view().running_since);
        let before = plane.watchdog.silence();
        match plane.watchdog.look(now, patience, since) {
            // As an order, which is never dropped: a lost ping would look like a silent data plane.
            Look::Ping(id) => plane.order(ToDataPlane::Ping { id }),
            Look::Hung(silent) => {
                let pid = plane.pid();
                error!(pid, "the data plane hangs: {silent}, for {patience:?} (process.watchdog)");
                self.events.push_back(LifeEvent::Hung);
            }
            Look::Fine => {}
        }
        let silence = plane.watchdog.silence();
        match (before, silence) {
            (None, Some((silent, silence))) => {
                warn!("the data plane is silent: {silent}, for {silence:?} so far")
            }
            (Some(_), None) => warn!("the data plane works again"),
            _ => {}
        }
    }

    /// Answers the client that asked; a question that is not open any more is ignored.
    pub(super) fn answer_status(&mut self, question: u64, data_plane: Option<DataPlaneStatus>, now: Time) {
        if let Some((id, _)) = self.asked.remove(&question) {
            let status = Status { supervisor: Some(self.status(data_plane.is_some())), data_plane };
            self.clients.answer(id, &Response::Status(Box::new(status)), now);
        }
    }

    /// Our half. `answers`: whether the data plane was heard of, as far as this question goes.
    pub(super) fn status(&self, answers: bool) -> SupervisorStatus {
        SupervisorStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            instance: self.run_dir.instance(),
            uptime_seconds: now().since(self.started).as_secs(),
            restarts: self.life.restarts(),
            data_plane_state: self.data_plane_state(answers).to_owned(),
            listeners_restored: self.estate.listeners_restored,
            deaths: self.life.deaths().map(|(reason, count)| (reason.label().to_owned(), count)).collect(),
            process: self.planes.pid().map(process::status).unwrap_or_default(),
            sandbox: self.estate.sandbox.labels(),
            destinations: self.estate.destinations_status(),
            guard: self.estate.guard_status(),
            steering: self.estate.steering_status(),
            degraded: self.estate.lacks(),
            key_log: self.estate.key_log.as_ref().map(|log| log.path().display().to_string()),
            reload: self.reload_status(),
        }
    }

    /// When listening sockets are looked at again, some of which could not be mended.
    pub(super) fn next_mending(&self) -> Option<Time> {
        self.mend_at.filter(|_| self.life.is_open())
    }

    /// Has listening sockets listen again that another process shut down. The data plane is replaced if that
    /// happens again and again, or if it may be the one that keeps a socket from listening.
    pub(super) fn mend_listeners(&mut self, now: Time) {
        self.mend_at = None;
        if !self.life.is_open() {
            // They are about to be shut down anyway.
            return;
        }
        let (mended, is_whole) = self.estate.mend_listeners();
        let is_news = std::mem::replace(&mut self.listeners_are_whole, is_whole) && !is_whole;
        if !is_whole {
            self.mend_at = Some(now + MEND_AGAIN);
        }
        let is_too_often = mended > 0 && !self.mendings.take(now);
        if is_too_often {
            error!("listening sockets are shut down again and again; the data plane is replaced");
        }
        if is_too_often || is_news {
            self.events.push_back(LifeEvent::Violation);
        }
    }

    fn data_plane_state(&self, answers: bool) -> &'static str {
        let is_silent = self.planes.watchdog().is_some_and(|watchdog| watchdog.silence().is_some());
        match self.life.state() {
            LifeState::Idle | LifeState::Starting { .. } => "starting",
            LifeState::Ready { .. } | LifeState::Leaving { .. } | LifeState::Draining { .. }
                if is_silent || !answers =>
            {
                "hung"
            }
            LifeState::Ready { .. } => "serving",
            LifeState::Leaving { .. } => "leaving",
            LifeState::Draining { .. } => "draining",
            LifeState::Stopping { .. } => "stopping",
            LifeState::Killing => "killed",
            LifeState::Backoff { .. } => "waiting",
            LifeState::Ended => "ended",
        }
    }
}
