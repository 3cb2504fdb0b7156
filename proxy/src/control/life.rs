//! The life of the data plane as the supervisor sees it: one table, sans-IO. Events and `now` go in, actions
//! come out; the same table drives production and the simulation below.
//!
//! ```text
//!            Begin            Ready
//!   Idle ──────────▶ Starting ─────▶ Ready
//!                     ▲  │ Died        │ Died
//!      until, or at   │  ▼             ▼
//!      once the first Backoff ◀────────┘        Violation, StartFailed, a deadline: Kill ─▶ Killing ─▶ Died
//!      time                                        or Hung
//!   Drain: Starting/Ready ─▶ Draining ─▶ Died ─▶ Ended        Stop: … ─▶ Stopping ─▶ Died ─▶ Ended
//!   Drain with a delay: Ready ─▶ Leaving ── until, or a second Drain ──▶ Draining
//! ```
//!
//! Invariants: at most one data plane lives; a dead one's slots are cleared before the next starts; after
//! Drain or Stop none is started; every state that waits has a deadline.
//!
//! That at most one lives is known here and in `supervisor::planes`. What follows from it: one half of the
//! steering array and one set of counter blocks are enough, and a status has room for one data plane.

use std::time::Duration;

use crate::error::DeathReason;
use crate::time::Time;

/// The half of the steering array that every data plane gets. A data plane that replaces a dead one takes the
/// same half over, since the sockets stay where they are.
pub const SLOT_GENERATION: u32 = 1;
/// How long a data plane may take until it is ready.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than asked a drain or a stop may take before the data plane is killed.
pub const GRACE: Duration = Duration::from_secs(5);
/// How long a drain waits for the data plane to say that it is draining, before the listening sockets are
/// shut down anyway.
pub const RETIRE_AFTER: Duration = Duration::from_secs(1);
/// Ready for so long, a data plane counts as healthy: its death is a first one again.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(30);
/// Delay before the second restart in a row; each further one doubles it.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// The longest delay.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Data planes that may die before any became ready; then the supervisor gives up, since nothing ever worked
/// here.
pub const NEVER_READY_MAX: u32 = 5;

/// Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeEvent {
    /// Start the first data plane.
    Begin,
    /// The process could not be started.
    SpawnFailed,
    /// The data plane says that all its workers accept.
    Ready,
    /// The data plane says that it cannot start, and why is logged.
    StartFailed,
    /// It closed its channel, or broke the protocol.
    Violation,
    /// The watchdog has not heard of it for `process.watchdog`.
    Hung,
    /// Its process was reaped.
    Died {
        /// Exit status 0.
        clean: bool,
    },
    /// Let exchanges end for at most this long, then exit.
    Drain {
        /// `process.drain_delay`: until then everything is served on, and `/readyz` says that we leave.
        delay: Duration,
        /// `process.drain_timeout`
        timeout: Duration,
    },
    /// The data plane drains, and only waits for the listening sockets to be shut down.
    Drained,
    /// Exit now.
    Stop,
    /// Time passed; `next_deadline` says when this is due.
    Tick,
}

/// Actions for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeAction {
    /// Start a data plane.
    Spawn {
        /// Its number, from 1.
        generation: u32,
    },
    /// Tell it that it will drain soon, and serves on.
    SendLeave,
    /// Tell it to drain.
    SendDrain {
        /// At most this long.
        timeout: Duration,
    },
    /// Tell it to stop.
    SendStop,
    /// SIGKILL.
    Kill,
    /// It is dead: clear its steering slots and gauges.
    Clear,
    /// No data plane will accept from the listening sockets again: shut them down.
    Retire,
    /// Leave.
    Exit(RunOutcome),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunOutcome {
    /// As asked.
    Clean,
    /// The data plane did not end by itself in time, or died while it was asked to end: connections were cut.
    Forced,
    /// No data plane ever became ready.
    NeverReady,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeState {
    /// Before `Begin`.
    Idle,
    /// Started, not ready.
    Starting {
        /// Killed then.
        deadline: Time,
    },
    /// Serving.
    Ready {
        /// Since when.
        since: Time,
    },
    /// Serving, and about to drain.
    Leaving {
        /// When the drain begins.
        until: Time,
        /// Of that drain.
        timeout: Duration,
    },
    /// Asked to drain and exit.
    Draining {
        /// When the listening sockets are shut down at the latest; `None`: done.
        retire_at: Option<Time>,
        /// Killed then.
        deadline: Time,
    },
    /// Asked to exit now.
    Stopping {
        /// Killed then.
        deadline: Time,
    },
    /// SIGKILL was sent.
    Killing,
    /// Dead; the next one starts then.
    Backoff {
        /// When.
        until: Time,
    },
    /// Nothing happens any more.
    Ended,
}

/// The table.
#[derive(Debug)]
pub struct Life {
    state: LifeState,
    /// Of the current or last data plane; 0 before the first.
    generation: u32,
    restarts: u32,
    /// Deaths in a row.
    failures: u32,
    /// Why the data plane that dies next was killed.
    killed_for: Option<DeathReason>,
    /// Deaths that nobody asked for, by reason.
    deaths: [u64; DeathReason::ALL.len()],
    ever_ready: bool,
    /// A data plane said that it cannot start.
    refused: bool,
    /// Drain or Stop was asked for.
    ending: bool,
    /// It was killed, or died, while it was asked to end.
    forced: bool,
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

impl Life {
    /// Before the first data plane.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: LifeState::Idle,
            generation: 0,
            restarts: 0,
            failures: 0,
            killed_for: None,
            deaths: [0; DeathReason::ALL.len()],
            ever_ready: false,
            refused: false,
            ending: false,
            forced: false,
        }
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> LifeState {
        self.state
    }

    /// Number of the current or last data plane; 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Data planes started after the death of another.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.restarts
    }

    /// Data planes that died or were killed; not those that ended as they were told.
    pub fn deaths(&self) -> impl Iterator<Item = (DeathReason, u64)> + '_ {
        DeathReason::ALL.iter().map(|reason| (*reason, self.deaths[reason.index()]))
    }

    /// Whether Drain or Stop was asked for.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending
    }

    /// When `Tick` is due.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Time> {
        match self.state {
            LifeState::Starting { deadline } | LifeState::Stopping { deadline } => Some(deadline),
            LifeState::Draining { retire_at, deadline } => {
                Some(retire_at.map_or(deadline, |at| at.min(deadline)))
            }
            LifeState::Backoff { until } | LifeState::Leaving { until, .. } => Some(until),
            LifeState::Idle | LifeState::Ready { .. } | LifeState::Killing | LifeState::Ended => None,
        }
    }

    /// Whether its listening sockets have to take clients: until a drain or a stop begins.
    #[must_use]
    pub fn is_open(&self) -> bool {
        !self.ending || matches!(self.state, LifeState::Leaving { .. })
    }

    /// Takes an event and returns the actions, in order. An event that has no place in the current state does
    /// nothing.
    #[must_use]
    pub fn handle(&mut self, event: LifeEvent, now: Time) -> Vec<LifeAction> {
        match event {
            LifeEvent::Begin if self.state == LifeState::Idle => self.spawn(now),
            LifeEvent::Begin => Vec::new(),
            LifeEvent::SpawnFailed => {
                self.killed_for = Some(DeathReason::Failed);
                self.died(false, now)
            }
            LifeEvent::Died { clean } => self.died(clean, now),
            LifeEvent::Ready => self.ready(now),
            LifeEvent::StartFailed => {
                self.refused |= matches!(self.state, LifeState::Starting { .. });
                self.kill(DeathReason::Failed, now)
            }
            LifeEvent::Violation => self.kill(DeathReason::Protocol, now),
            LifeEvent::Hung => self.kill(DeathReason::Hung, now),
            LifeEvent::Drain { delay, timeout } => self.drain(delay, timeout, now),
            LifeEvent::Drained => self.retire(),
            LifeEvent::Stop => self.stop(now),
            LifeEvent::Tick => self.tick(now),
        }
    }

    fn spawn(&mut self, now: Time) -> Vec<LifeAction> {
        self.generation = self.generation.wrapping_add(1);
        self.state = LifeState::Starting { deadline: now + START_TIMEOUT };
        vec![LifeAction::Spawn { generation: self.generation }]
    }

    fn ready(&mut self, now: Time) -> Vec<LifeAction> {
        if matches!(self.state, LifeState::Starting { .. }) {
            self.state = LifeState::Ready { since: now };
            self.ever_ready = true;
        }
        Vec::new()
    }

    fn kill(&mut self, reason: DeathReason, now: Time) -> Vec<LifeAction> {
        if self.is_healthy(now) {
            // Its death is a first one, although it is no longer `Ready` when it comes.
            self.failures = 0;
        }
        match self.state {
            LifeState::Starting { .. }
            | LifeState::Ready { .. }
            | LifeState::Leaving { .. }
            | LifeState::Draining { .. }
            | LifeState::Stopping { .. } => {
                self.forced |= self.ending;
                self.killed_for = Some(reason);
                self.state = LifeState::Killing;
                vec![LifeAction::Kill]
            }
            LifeState::Idle | LifeState::Killing | LifeState::Backoff { .. } | LifeState::Ended => Vec::new(),
        }
    }

    fn died(&mut self, clean: bool, now: Time) -> Vec<LifeAction> {
        let reason = self.killed_for.take();
        if matches!(self.state, LifeState::Idle | LifeState::Backoff { .. } | LifeState::Ended) {
            return Vec::new();
        }
        if !(self.ending && clean) {
            self.deaths[reason.unwrap_or(DeathReason::Crashed).index()] += 1;
        }
        let healthy = self.is_healthy(now);
        let mut actions = vec![LifeAction::Clear];
        if self.ending {
            self.state = LifeState::Ended;
            let outcome = if self.forced || !clean { RunOutcome::Forced } else { RunOutcome::Clean };
            actions.push(LifeAction::Exit(outcome));
            return actions;
        }
        self.failures = if healthy { 1 } else { self.failures.saturating_add(1) };
        if !self.ever_ready && (self.refused || self.failures >= NEVER_READY_MAX) {
            self.state = LifeState::Ended;
            actions.push(LifeAction::Exit(RunOutcome::NeverReady));
            return actions;
        }
        self.restarts = self.restarts.saturating_add(1);
        let delay = backoff(self.failures);
        if delay.is_zero() {
            actions.extend(self.spawn(now));
        } else {
            self.state = LifeState::Backoff { until: now + delay };
        }
        actions
    }

    fn is_healthy(&self, now: Time) -> bool {
        matches!(self.state, LifeState::Ready { since } if now.since(since) >= HEALTHY_AFTER)
    }

    fn drain(&mut self, delay: Duration, timeout: Duration, now: Time) -> Vec<LifeAction> {
        self.ending = true;
        match self.state {
            LifeState::Ready { .. } if !delay.is_zero() => {
                self.state = LifeState::Leaving { until: now + delay, timeout };
                vec![LifeAction::SendLeave]
            }
            // One that is not ready yet has told no probe that it is. A second drain ends the delay.
            LifeState::Starting { .. } | LifeState::Ready { .. } | LifeState::Leaving { .. } => {
                self.state = LifeState::Draining {
                    retire_at: Some(now + RETIRE_AFTER),
                    deadline: now + timeout + GRACE,
                };
                vec![LifeAction::SendDrain { timeout }]
            }
            LifeState::Idle | LifeState::Backoff { .. } => self.end_at_once(),
            LifeState::Draining { .. }
            | LifeState::Stopping { .. }
            | LifeState::Killing
            | LifeState::Ended => Vec::new(),
        }
    }

    fn stop(&mut self, now: Time) -> Vec<LifeAction> {
        self.ending = true;
        match self.state {
            LifeState::Starting { .. }
            | LifeState::Ready { .. }
            | LifeState::Leaving { .. }
            | LifeState::Draining { .. } => {
                self.state = LifeState::Stopping { deadline: now + GRACE };
                vec![LifeAction::SendStop]
            }
            LifeState::Idle | LifeState::Backoff { .. } => self.end_at_once(),
            // A second stop changes nothing: Ctrl-C reaches us from the terminal and through our parent, and
            // `GRACE` is short.
            LifeState::Stopping { .. } | LifeState::Killing | LifeState::Ended => Vec::new(),
        }
    }

    /// Nothing lives, so nothing has to end.
    fn end_at_once(&mut self) -> Vec<LifeAction> {
        self.state = LifeState::Ended;
        vec![LifeAction::Exit(RunOutcome::Clean)]
    }

    fn retire(&mut self) -> Vec<LifeAction> {
        if let LifeState::Draining { retire_at: retire_at @ Some(_), .. } = &mut self.state {
            *retire_at = None;
            return vec![LifeAction::Retire];
        }
        Vec::new()
    }

    fn tick(&mut self, now: Time) -> Vec<LifeAction> {
        match self.state {
            LifeState::Starting { deadline } if now >= deadline => self.kill(DeathReason::StartTimeout, now),
            LifeState::Stopping { deadline } | LifeState::Draining { deadline, .. } if now >= deadline => {
                self.kill(DeathReason::EndTimeout, now)
            }
            LifeState::Draining { retire_at: Some(at), .. } if now >= at => self.retire(),
            LifeState::Leaving { until, timeout } if now >= until => self.drain(Duration::ZERO, timeout, now),
            LifeState::Backoff { until } if now >= until => self.spawn(now),
            _ => Vec::new(),
        }
    }
}

/// The delay after so many deaths in a row: a single crash restarts at once.
fn backoff(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => BACKOFF_FIRST.saturating_mul(1 << (more - 2).min(16)).min(BACKOFF_MAX),
    }
}

#[cfg(test)]
mod tests;
