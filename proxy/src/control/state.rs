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

use std::time::Duration;

use crate::time::Time;

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
pub enum Event {
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
pub enum Action {
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
    /// It is dead: clear its steering slots, drop its channel.
    Clear,
    /// No data plane will accept from the listening sockets again: shut them down.
    Retire,
    /// Leave.
    Exit(Outcome),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Clean,
    /// The data plane did not end by itself in time, or died while it was asked to end: connections were cut.
    Forced,
    /// No data plane ever became ready.
    NeverReady,
}

/// Where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
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
    state: State,
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
            state: State::Idle,
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
    pub fn state(&self) -> State {
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
            State::Starting { deadline } | State::Stopping { deadline } => Some(deadline),
            State::Draining { retire_at, deadline } => {
                Some(retire_at.map_or(deadline, |at| at.min(deadline)))
            }
            State::Backoff { until } => Some(until),
            State::Idle | State::Ready { .. } | State::Killing | State::Ended => None,
        }
    }

    /// Takes an event and returns the actions, in order. An event that has no place in the current state does
    /// nothing.
    #[must_use]
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Action> {
        match event {
            Event::Begin if self.state == State::Idle => self.spawn(now),
            Event::Begin => Vec::new(),
            Event::SpawnFailed | Event::Died { .. } => self.died(event == Event::Died { clean: true }, now),
            Event::Ready => self.ready(now),
            Event::StartFailed => {
                self.refused |= matches!(self.state, State::Starting { .. });
                self.kill()
            }
            Event::Violation => self.kill(),
            Event::Drain { timeout } => self.drain(timeout, now),
            Event::Drained => self.retire(),
            Event::Stop => self.stop(now),
            Event::Tick => self.tick(now),
        }
    }

    fn spawn(&mut self, now: Time) -> Vec<Action> {
        self.generation = self.generation.wrapping_add(1);
        self.state = State::Starting { deadline: now + START_TIMEOUT };
        vec![Action::Spawn { generation: self.generation }]
    }

    fn ready(&mut self, now: Time) -> Vec<Action> {
        if matches!(self.state, State::Starting { .. }) {
            self.state = State::Ready { since: now };
            self.ever_ready = true;
        }
        Vec::new()
    }

    fn kill(&mut self) -> Vec<Action> {
        match self.state {
            State::Starting { .. }
            | State::Ready { .. }
            | State::Draining { .. }
            | State::Stopping { .. } => {
                self.forced |= self.ending;
                self.state = State::Killing;
                vec![Action::Kill]
            }
            State::Idle | State::Killing | State::Backoff { .. } | State::Ended => Vec::new(),
        }
    }

    fn died(&mut self, clean: bool, now: Time) -> Vec<Action> {
        let healthy = match self.state {
            State::Idle | State::Backoff { .. } | State::Ended => return Vec::new(),
            State::Ready { since } => now.since(since) >= HEALTHY_AFTER,
            State::Starting { .. } | State::Draining { .. } | State::Stopping { .. } | State::Killing => {
                false
            }
        };
        let mut actions = vec![Action::Clear];
        if self.ending {
            self.state = State::Ended;
            let outcome = if self.forced || !clean { Outcome::Forced } else { Outcome::Clean };
            actions.push(Action::Exit(outcome));
            return actions;
        }
        self.failures = if healthy { 1 } else { self.failures.saturating_add(1) };
        if !self.ever_ready && (self.refused || self.failures >= NEVER_READY_MAX) {
            self.state = State::Ended;
            actions.push(Action::Exit(Outcome::NeverReady));
            return actions;
        }
        self.restarts = self.restarts.saturating_add(1);
        let delay = backoff(self.failures);
        if delay.is_zero() {
            actions.extend(self.spawn(now));
        } else {
            self.state = State::Backoff { until: now + delay };
        }
        actions
    }

    fn drain(&mut self, timeout: Duration, now: Time) -> Vec<Action> {
        self.ending = true;
        match self.state {
            State::Starting { .. } | State::Ready { .. } => {
                self.state =
                    State::Draining { retire_at: Some(now + RETIRE_AFTER), deadline: now + timeout + GRACE };
                vec![Action::SendDrain { timeout }]
            }
            State::Idle | State::Backoff { .. } => self.end_at_once(),
            State::Draining { .. } | State::Stopping { .. } | State::Killing | State::Ended => Vec::new(),
        }
    }

    fn stop(&mut self, now: Time) -> Vec<Action> {
        self.ending = true;
        match self.state {
            State::Starting { .. } | State::Ready { .. } | State::Draining { .. } => {
                self.state = State::Stopping { deadline: now + GRACE };
                vec![Action::SendStop]
            }
            State::Idle | State::Backoff { .. } => self.end_at_once(),
            // A second stop changes nothing: Ctrl-C reaches us from the terminal and through our parent, and
            // `GRACE` is short.
            State::Stopping { .. } | State::Killing | State::Ended => Vec::new(),
        }
    }

    /// Nothing lives, so nothing has to end.
    fn end_at_once(&mut self) -> Vec<Action> {
        self.state = State::Ended;
        vec![Action::Exit(Outcome::Clean)]
    }

    fn retire(&mut self) -> Vec<Action> {
        if let State::Draining { retire_at: retire_at @ Some(_), .. } = &mut self.state {
            *retire_at = None;
            return vec![Action::Retire];
        }
        Vec::new()
    }

    fn tick(&mut self, now: Time) -> Vec<Action> {
        match self.state {
            State::Starting { deadline }
            | State::Stopping { deadline }
            | State::Draining { deadline, .. }
                if now >= deadline =>
            {
                self.kill()
            }
            State::Draining { retire_at: Some(at), .. } if now >= at => self.retire(),
            State::Backoff { until } if now >= until => self.spawn(now),
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

    const DIED: Event = Event::Died { clean: false };

    fn started() -> Life {
        let mut life = Life::new();
        assert_eq!(life.handle(Event::Begin, at(0)), [Action::Spawn { generation: 1 }]);
        life
    }

    fn serving() -> Life {
        let mut life = started();
        assert_eq!(life.handle(Event::Ready, at(1)), []);
        assert_eq!(life.state(), State::Ready { since: at(1) });
        life
    }

    #[test]
    fn one_crash_restarts_at_once_and_more_back_off() {
        let mut life = serving();
        assert_eq!(life.handle(DIED, at(10)), [Action::Clear, Action::Spawn { generation: 2 }]);
        let mut now = at(10);
        for (generation, delay) in (3..).zip([100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000, 5_000_u64]) {
            assert_eq!(life.handle(DIED, now), [Action::Clear]);
            let until = now + Duration::from_millis(delay);
            assert_eq!(life.next_deadline(), Some(until));
            assert_eq!(life.handle(Event::Tick, Time::from_nanos(until.as_nanos() - 1)), []);
            now = until;
            assert_eq!(life.handle(Event::Tick, now), [Action::Spawn { generation }]);
        }
        assert_eq!(life.restarts(), 10);
        // Healthy for long enough, the next crash is a first one again.
        let _ = life.handle(Event::Ready, now);
        assert_eq!(life.handle(DIED, now + HEALTHY_AFTER), [Action::Clear, Action::Spawn { generation: 12 }]);
    }

    #[test]
    fn a_short_health_does_not_reset_the_backoff() {
        let mut life = serving();
        let _ = life.handle(DIED, at(10));
        let _ = life.handle(Event::Ready, at(20));
        assert_eq!(life.handle(DIED, at(29_000)), [Action::Clear]);
        assert_eq!(life.state(), State::Backoff { until: at(29_100) });
    }

    #[test]
    fn one_that_never_gets_ready_is_killed_and_nothing_is_tried_for_ever() {
        let mut life = started();
        assert_eq!(life.next_deadline(), Some(at(0) + START_TIMEOUT));
        assert_eq!(life.handle(Event::Tick, at(30_000)), [Action::Kill]);
        assert_eq!(life.handle(Event::Ready, at(30_000)), [], "too late");
        assert_eq!(life.state(), State::Killing);
        let mut now = at(30_000);
        let mut deaths = 0;
        loop {
            let actions = life.handle(DIED, now);
            deaths += 1;
            if actions.contains(&Action::Exit(Outcome::NeverReady)) {
                break;
            }
            now = now + BACKOFF_MAX;
            let _ = life.handle(Event::Tick, now);
        }
        assert_eq!((deaths, life.state()), (NEVER_READY_MAX, State::Ended));
    }

    #[test]
    fn a_first_start_that_is_refused_ends_and_a_later_one_is_tried_again() {
        let mut life = started();
        assert_eq!(life.handle(Event::StartFailed, at(5)), [Action::Kill]);
        assert_eq!(life.handle(DIED, at(6)), [Action::Clear, Action::Exit(Outcome::NeverReady)]);

        let mut life = serving();
        let _ = life.handle(DIED, at(10));
        assert_eq!(life.handle(Event::StartFailed, at(11)), [Action::Kill]);
        assert_eq!(life.handle(DIED, at(12)), [Action::Clear]);
        assert!(matches!(life.state(), State::Backoff { .. }));
    }

    #[test]
    fn a_drain_retires_the_sockets_once_and_ends_clean() {
        let timeout = Duration::from_secs(30);
        let mut life = serving();
        assert_eq!(life.handle(Event::Drain { timeout }, at(100)), [Action::SendDrain { timeout }]);
        assert_eq!(life.handle(Event::Drain { timeout }, at(101)), []);
        assert_eq!(life.handle(Event::Drained, at(110)), [Action::Retire]);
        assert_eq!(life.handle(Event::Tick, at(1_100)), [], "retired already");
        assert_eq!(life.next_deadline(), Some(at(35_100)));
        assert_eq!(
            life.handle(Event::Died { clean: true }, at(2_000)),
            [Action::Clear, Action::Exit(Outcome::Clean)]
        );
    }

    #[test]
    fn a_drain_without_an_answer_retires_later_and_kills_at_last() {
        let mut life = serving();
        let _ = life.handle(Event::Drain { timeout: Duration::from_secs(2) }, at(0));
        assert_eq!(life.handle(Event::Tick, at(1_000)), [Action::Retire]);
        assert_eq!(life.handle(Event::Tick, at(7_000)), [Action::Kill]);
        assert_eq!(life.handle(DIED, at(7_001)), [Action::Clear, Action::Exit(Outcome::Forced)]);
    }

    #[test]
    fn a_stop_cuts_a_drain_short_and_a_hanging_data_plane_is_killed() {
        let mut life = serving();
        let _ = life.handle(Event::Drain { timeout: Duration::from_secs(30) }, at(0));
        assert_eq!(life.handle(Event::Stop, at(1)), [Action::SendStop]);
        assert_eq!(life.handle(Event::Stop, at(2)), []);
        assert_eq!(life.handle(Event::Tick, at(5_001)), [Action::Kill]);
        assert_eq!(life.handle(Event::Stop, at(5_002)), []);
        assert_eq!(life.handle(DIED, at(5_003)), [Action::Clear, Action::Exit(Outcome::Forced)]);
    }

    #[test]
    fn nothing_is_started_once_the_end_was_asked_for() {
        for ask in [Event::Stop, Event::Drain { timeout: Duration::ZERO }] {
            let mut life = serving();
            let _ = life.handle(DIED, at(10));
            let _ = life.handle(DIED, at(11));
            assert!(matches!(life.state(), State::Backoff { .. }));
            assert_eq!(life.handle(ask, at(12)), [Action::Exit(Outcome::Clean)]);
            assert_eq!(life.handle(Event::Tick, at(60_000)), []);

            let mut life = serving();
            assert_eq!(life.handle(Event::Violation, at(10)), [Action::Kill]);
            assert_eq!(life.handle(ask, at(11)), []);
            assert_eq!(life.handle(DIED, at(12)), [Action::Clear, Action::Exit(Outcome::Forced)]);
        }
    }

    #[test]
    fn a_process_that_cannot_be_started_counts_as_a_death() {
        let mut life = started();
        assert_eq!(life.handle(Event::SpawnFailed, at(0)), [Action::Clear, Action::Spawn { generation: 2 }]);
        assert_eq!(life.handle(Event::SpawnFailed, at(0)), [Action::Clear]);
        assert_eq!(life.state(), State::Backoff { until: at(100) });
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
        fn apply(&mut self, life: &Life, actions: &[Action]) {
            for action in actions {
                assert!(!self.exited, "{action:?} after the end");
                match action {
                    Action::Spawn { generation } => {
                        assert!(!self.alive, "two data planes");
                        assert!(!life.is_ending(), "a start after the end was asked for");
                        assert!(self.cleared || *generation == 1, "a dead one's slots were left");
                        self.alive = true;
                        self.killed = false;
                        self.cleared = false;
                    }
                    Action::Kill => {
                        assert!(self.alive && !self.killed);
                        self.killed = true;
                    }
                    Action::SendDrain { .. } | Action::SendStop => assert!(self.alive && life.is_ending()),
                    Action::Clear => {
                        assert!(!self.alive && !self.cleared);
                        self.cleared = true;
                    }
                    Action::Retire => {
                        assert!(life.is_ending());
                        self.retired += 1;
                    }
                    Action::Exit(_) => {
                        assert!(!self.alive, "left a data plane behind");
                        self.exited = true;
                    }
                }
            }
            assert!(self.retired <= 1);
            let waits =
                matches!(life.state(), State::Idle | State::Ready { .. } | State::Killing | State::Ended);
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
            let actions = life.handle(Event::Begin, now);
            world.apply(&life, &actions);
            for (pause, kind) in steps {
                now = now + Duration::from_millis(pause);
                let event = match kind {
                    0 => Event::Begin,
                    1..4 => Event::Ready,
                    4 => Event::StartFailed,
                    5 => Event::Violation,
                    6..9 if world.alive => {
                        world.alive = false;
                        Event::Died { clean: kind == 6 }
                    }
                    9 if pause < 600 => Event::Drain { timeout: Duration::from_millis(pause) },
                    10 if pause < 300 => Event::Stop,
                    11 => Event::Drained,
                    _ => Event::Tick,
                };
                let actions = life.handle(event, now);
                world.apply(&life, &actions);
                if world.exited {
                    return Ok(());
                }
            }
            // Left alone, with nothing but time and the kernel's SIGKILL, a stop always comes to its end.
            let actions = life.handle(Event::Stop, now);
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
                    let actions = life.handle(Event::Tick, now);
                    world.apply(&life, &actions);
                }
            }
            prop_assert!(world.exited, "{life:?}");
        }
    }
}
