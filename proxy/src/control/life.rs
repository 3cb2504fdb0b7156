//! The life of the data plane as the supervisor sees it: one table, sans-IO. Events and `now` go in, actions
//! come out; the same table drives production and the simulation below.
//!
//! ```text
//!            Begin            Ready
//!   Idle ──────────▶ Starting ─────▶ Ready
//!                     ▲  │ Died        │ Died
//!      until, or at   │  ▼             ▼
//!      once the first Backoff ◀────────┘        Violation, StartFailed, a deadline: Kill ─▶ Killing ─▶ Died
//!      time
//!   Drain: Starting/Ready ─▶ Draining ─▶ Died ─▶ Ended        Stop: … ─▶ Stopping ─▶ Died ─▶ Ended
//! ```
//!
//! Invariants: at most one data plane lives; a dead one's slots are cleared before the next starts; after
//! Drain or Stop none is started; every state that waits has a deadline.
//!
//! That at most one lives is known here and in `supervisor::planes`. What follows from it: one half of the
//! steering array and one set of counter blocks are enough, and a status has room for one data plane.

use std::time::Duration;

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
    /// Its process was reaped.
    Died {
        /// Exit status 0.
        clean: bool,
    },
    /// Let exchanges end for at most this long, then exit.
    Drain {
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
            LifeState::Backoff { until } => Some(until),
            LifeState::Idle | LifeState::Ready { .. } | LifeState::Killing | LifeState::Ended => None,
        }
    }

    /// Takes an event and returns the actions, in order. An event that has no place in the current state does
    /// nothing.
    #[must_use]
    pub fn handle(&mut self, event: LifeEvent, now: Time) -> Vec<LifeAction> {
        match event {
            LifeEvent::Begin if self.state == LifeState::Idle => self.spawn(now),
            LifeEvent::Begin => Vec::new(),
            LifeEvent::SpawnFailed | LifeEvent::Died { .. } => {
                self.died(event == LifeEvent::Died { clean: true }, now)
            }
            LifeEvent::Ready => self.ready(now),
            LifeEvent::StartFailed => {
                self.refused |= matches!(self.state, LifeState::Starting { .. });
                self.kill()
            }
            LifeEvent::Violation => self.kill(),
            LifeEvent::Drain { timeout } => self.drain(timeout, now),
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

    fn kill(&mut self) -> Vec<LifeAction> {
        match self.state {
            LifeState::Starting { .. }
            | LifeState::Ready { .. }
            | LifeState::Draining { .. }
            | LifeState::Stopping { .. } => {
                self.forced |= self.ending;
                self.state = LifeState::Killing;
                vec![LifeAction::Kill]
            }
            LifeState::Idle | LifeState::Killing | LifeState::Backoff { .. } | LifeState::Ended => Vec::new(),
        }
    }

    fn died(&mut self, clean: bool, now: Time) -> Vec<LifeAction> {
        let healthy = match self.state {
            LifeState::Idle | LifeState::Backoff { .. } | LifeState::Ended => return Vec::new(),
            LifeState::Ready { since } => now.since(since) >= HEALTHY_AFTER,
            LifeState::Starting { .. }
            | LifeState::Draining { .. }
            | LifeState::Stopping { .. }
            | LifeState::Killing => false,
        };
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

    fn drain(&mut self, timeout: Duration, now: Time) -> Vec<LifeAction> {
        self.ending = true;
        match self.state {
            LifeState::Starting { .. } | LifeState::Ready { .. } => {
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
            LifeState::Starting { .. } | LifeState::Ready { .. } | LifeState::Draining { .. } => {
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
            LifeState::Starting { deadline }
            | LifeState::Stopping { deadline }
            | LifeState::Draining { deadline, .. }
                if now >= deadline =>
            {
                self.kill()
            }
            LifeState::Draining { retire_at: Some(at), .. } if now >= at => self.retire(),
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(milliseconds: u64) -> Time {
        Time::from_nanos(milliseconds * 1_000_000)
    }

    const DIED: LifeEvent = LifeEvent::Died { clean: false };

    fn started() -> Life {
        let mut life = Life::new();
        assert_eq!(life.handle(LifeEvent::Begin, at(0)), [LifeAction::Spawn { generation: 1 }]);
        life
    }

    fn serving() -> Life {
        let mut life = started();
        assert_eq!(life.handle(LifeEvent::Ready, at(1)), []);
        assert_eq!(life.state(), LifeState::Ready { since: at(1) });
        life
    }

    #[test]
    fn one_crash_restarts_at_once_and_more_back_off() {
        let mut life = serving();
        assert_eq!(life.handle(DIED, at(10)), [LifeAction::Clear, LifeAction::Spawn { generation: 2 }]);
        let mut now = at(10);
        for (generation, delay) in (3..).zip([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000_u64]) {
            assert_eq!(life.handle(DIED, now), [LifeAction::Clear]);
            let until = now + Duration::from_millis(delay);
            assert_eq!(life.next_deadline(), Some(until));
            assert_eq!(life.handle(LifeEvent::Tick, Time::from_nanos(until.as_nanos() - 1)), []);
            now = until;
            assert_eq!(life.handle(LifeEvent::Tick, now), [LifeAction::Spawn { generation }]);
        }
        assert_eq!(life.restarts(), 10);
        // Healthy for long enough, the next crash is a first one again.
        let _ = life.handle(LifeEvent::Ready, now);
        assert_eq!(
            life.handle(DIED, now + HEALTHY_AFTER),
            [LifeAction::Clear, LifeAction::Spawn { generation: 12 }]
        );
    }

    #[test]
    fn a_short_health_does_not_reset_the_backoff() {
        let mut life = serving();
        let _ = life.handle(DIED, at(10));
        let _ = life.handle(LifeEvent::Ready, at(20));
        assert_eq!(life.handle(DIED, at(29_000)), [LifeAction::Clear]);
        assert_eq!(life.state(), LifeState::Backoff { until: at(29_100) });
    }

    #[test]
    fn one_that_never_gets_ready_is_killed_and_nothing_is_tried_for_ever() {
        let mut life = started();
        assert_eq!(life.next_deadline(), Some(at(0) + START_TIMEOUT));
        assert_eq!(life.handle(LifeEvent::Tick, at(30_000)), [LifeAction::Kill]);
        assert_eq!(life.handle(LifeEvent::Ready, at(30_000)), [], "too late");
        assert_eq!(life.state(), LifeState::Killing);
        let mut now = at(30_000);
        let mut deaths = 0;
        loop {
            let actions = life.handle(DIED, now);
            deaths += 1;
            if actions.contains(&LifeAction::Exit(RunOutcome::NeverReady)) {
                break;
            }
            now = now + BACKOFF_MAX;
            let _ = life.handle(LifeEvent::Tick, now);
        }
        assert_eq!((deaths, life.state()), (NEVER_READY_MAX, LifeState::Ended));
    }

    #[test]
    fn a_first_start_that_is_refused_ends_and_a_later_one_is_tried_again() {
        let mut life = started();
        assert_eq!(life.handle(LifeEvent::StartFailed, at(5)), [LifeAction::Kill]);
        assert_eq!(life.handle(DIED, at(6)), [LifeAction::Clear, LifeAction::Exit(RunOutcome::NeverReady)]);

        let mut life = serving();
        let _ = life.handle(DIED, at(10));
        assert_eq!(life.handle(LifeEvent::StartFailed, at(11)), [LifeAction::Kill]);
        assert_eq!(life.handle(DIED, at(12)), [LifeAction::Clear]);
        assert!(matches!(life.state(), LifeState::Backoff { .. }));
    }

    #[test]
    fn a_drain_retires_the_sockets_once_and_ends_clean() {
        let timeout = Duration::from_secs(30);
        let mut life = serving();
        assert_eq!(life.handle(LifeEvent::Drain { timeout }, at(100)), [LifeAction::SendDrain { timeout }]);
        assert_eq!(life.handle(LifeEvent::Drain { timeout }, at(101)), []);
        assert_eq!(life.handle(LifeEvent::Drained, at(110)), [LifeAction::Retire]);
        assert_eq!(life.handle(LifeEvent::Tick, at(1_100)), [], "retired already");
        assert_eq!(life.next_deadline(), Some(at(35_100)));
        assert_eq!(
            life.handle(LifeEvent::Died { clean: true }, at(2_000)),
            [LifeAction::Clear, LifeAction::Exit(RunOutcome::Clean)]
        );
    }

    #[test]
    fn a_drain_without_an_answer_retires_later_and_kills_at_last() {
        let mut life = serving();
        let _ = life.handle(LifeEvent::Drain { timeout: Duration::from_secs(2) }, at(0));
        assert_eq!(life.handle(LifeEvent::Tick, at(1_000)), [LifeAction::Retire]);
        assert_eq!(life.handle(LifeEvent::Tick, at(7_000)), [LifeAction::Kill]);
        assert_eq!(life.handle(DIED, at(7_001)), [LifeAction::Clear, LifeAction::Exit(RunOutcome::Forced)]);
    }

    #[test]
    fn a_stop_cuts_a_drain_short_and_a_hanging_data_plane_is_killed() {
        let mut life = serving();
        let _ = life.handle(LifeEvent::Drain { timeout: Duration::from_secs(30) }, at(0));
        assert_eq!(life.handle(LifeEvent::Stop, at(1)), [LifeAction::SendStop]);
        assert_eq!(life.handle(LifeEvent::Stop, at(2)), []);
        assert_eq!(life.handle(LifeEvent::Tick, at(5_001)), [LifeAction::Kill]);
        assert_eq!(life.handle(LifeEvent::Stop, at(5_002)), []);
        assert_eq!(life.handle(DIED, at(5_003)), [LifeAction::Clear, LifeAction::Exit(RunOutcome::Forced)]);
    }

    #[test]
    fn nothing_is_started_once_the_end_was_asked_for() {
        for ask in [LifeEvent::Stop, LifeEvent::Drain { timeout: Duration::ZERO }] {
            let mut life = serving();
            let _ = life.handle(DIED, at(10));
            let _ = life.handle(DIED, at(11));
            assert!(matches!(life.state(), LifeState::Backoff { .. }));
            assert_eq!(life.handle(ask, at(12)), [LifeAction::Exit(RunOutcome::Clean)]);
            assert_eq!(life.handle(LifeEvent::Tick, at(60_000)), []);

            let mut life = serving();
            assert_eq!(life.handle(LifeEvent::Violation, at(10)), [LifeAction::Kill]);
            assert_eq!(life.handle(ask, at(11)), []);
            assert_eq!(life.handle(DIED, at(12)), [LifeAction::Clear, LifeAction::Exit(RunOutcome::Forced)]);
        }
    }

    #[test]
    fn a_process_that_cannot_be_started_counts_as_a_death() {
        let mut life = started();
        assert_eq!(
            life.handle(LifeEvent::SpawnFailed, at(0)),
            [LifeAction::Clear, LifeAction::Spawn { generation: 2 }]
        );
        assert_eq!(life.handle(LifeEvent::SpawnFailed, at(0)), [LifeAction::Clear]);
        assert_eq!(life.state(), LifeState::Backoff { until: at(100) });
    }

    /// The world around the table: at most one process, which obeys SIGKILL and nothing else reliably.
    #[derive(Default)]
    struct World {
        alive: bool,
        killed: bool,
        cleared: bool,
        exited: bool,
        retired: u32,
    }

    impl World {
        fn apply(&mut self, life: &Life, actions: &[LifeAction]) {
            for action in actions {
                assert!(!self.exited, "{action:?} after the end");
                match action {
                    LifeAction::Spawn { generation } => {
                        assert!(!self.alive, "two data planes");
                        assert!(!life.is_ending(), "a start after the end was asked for");
                        assert!(self.cleared || *generation == 1, "a dead one's slots were left");
                        self.alive = true;
                        self.killed = false;
                        self.cleared = false;
                    }
                    LifeAction::Kill => {
                        assert!(self.alive && !self.killed);
                        self.killed = true;
                    }
                    LifeAction::SendDrain { .. } | LifeAction::SendStop => {
                        assert!(self.alive && life.is_ending())
                    }
                    LifeAction::Clear => {
                        assert!(!self.alive && !self.cleared);
                        self.cleared = true;
                    }
                    LifeAction::Retire => {
                        assert!(life.is_ending());
                        self.retired += 1;
                    }
                    LifeAction::Exit(_) => {
                        assert!(!self.alive, "left a data plane behind");
                        self.exited = true;
                    }
                }
            }
            assert!(self.retired <= 1);
            let waits = matches!(
                life.state(),
                LifeState::Idle | LifeState::Ready { .. } | LifeState::Killing | LifeState::Ended
            );
            assert!(waits || life.next_deadline().is_some(), "{:?} waits for ever", life.state());
        }
    }

    fn events() -> impl Strategy<Value = (u64, u8)> {
        (0..6_000_u64, 0..14_u8)
    }

    proptest! {
        #[test]
        fn whatever_happens_the_invariants_hold_and_it_ends_when_asked(
            steps in proptest::collection::vec(events(), 1..120),
        ) {
            let mut life = Life::new();
            let mut world = World::default();
            let mut now = at(1);
            let actions = life.handle(LifeEvent::Begin, now);
            world.apply(&life, &actions);
            for (pause, kind) in steps {
                now = now + Duration::from_millis(pause);
                let event = match kind {
                    0 => LifeEvent::Begin,
                    1..4 => LifeEvent::Ready,
                    4 => LifeEvent::StartFailed,
                    5 => LifeEvent::Violation,
                    6..9 if world.alive => {
                        world.alive = false;
                        LifeEvent::Died { clean: kind == 6 }
                    }
                    9 if pause < 600 => LifeEvent::Drain { timeout: Duration::from_millis(pause) },
                    10 if pause < 300 => LifeEvent::Stop,
                    11 => LifeEvent::Drained,
                    _ => LifeEvent::Tick,
                };
                let actions = life.handle(event, now);
                world.apply(&life, &actions);
                if world.exited {
                    return Ok(());
                }
            }
            // Left alone, with nothing but time and the kernel's SIGKILL, a stop always comes to its end.
            let actions = life.handle(LifeEvent::Stop, now);
            world.apply(&life, &actions);
            for _ in 0..4 {
                if world.exited {
                    break;
                }
                if world.killed && world.alive {
                    world.alive = false;
                    let actions = life.handle(DIED, now);
                    world.apply(&life, &actions);
                } else if let Some(deadline) = life.next_deadline() {
                    now = deadline;
                    let actions = life.handle(LifeEvent::Tick, now);
                    world.apply(&life, &actions);
                }
            }
            prop_assert!(world.exited, "{life:?}");
        }
    }
}
