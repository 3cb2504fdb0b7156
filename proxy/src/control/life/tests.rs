//! Tests of `control::life`.

use proptest::prelude::*;

use super::*;

fn at(milliseconds: u64) -> Time {
    Time::from_nanos(milliseconds * 1_000_000)
}

const DIED: LifeEvent = LifeEvent::Died { clean: false };

fn drain(timeout: Duration) -> LifeEvent {
    LifeEvent::Drain { delay: Duration::ZERO, timeout }
}

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
    assert_eq!(life.handle(drain(timeout), at(100)), [LifeAction::SendDrain { timeout }]);
    assert_eq!(life.handle(drain(timeout), at(101)), []);
    assert_eq!(life.handle(LifeEvent::Drained, at(110)), [LifeAction::Retire]);
    assert_eq!(life.handle(LifeEvent::Tick, at(1_100)), [], "retired already");
    assert_eq!(life.next_deadline(), Some(at(35_100)));
    assert_eq!(
        life.handle(LifeEvent::Died { clean: true }, at(2_000)),
        [LifeAction::Clear, LifeAction::Exit(RunOutcome::Clean)]
    );
}

#[test]
fn a_delayed_drain_serves_on_until_the_delay_or_a_second_drain_ends_it() {
    let (delay, timeout) = (Duration::from_secs(10), Duration::from_secs(30));
    let asked = LifeEvent::Drain { delay, timeout };
    let leaving = || {
        let mut life = serving();
        assert_eq!(life.handle(asked, at(100)), [LifeAction::SendLeave]);
        assert!(life.is_ending() && life.is_open());
        assert_eq!(life.next_deadline(), Some(at(10_100)));
        assert_eq!(life.handle(LifeEvent::Drained, at(200)), [], "nobody drains yet");
        assert_eq!(life.handle(LifeEvent::Tick, at(10_099)), []);
        life
    };
    for (event, now) in [(LifeEvent::Tick, at(10_100)), (asked, at(300))] {
        let mut life = leaving();
        assert_eq!(life.handle(event, now), [LifeAction::SendDrain { timeout }]);
        assert!(!life.is_open());
        let deadline = now + timeout + GRACE;
        assert_eq!(life.state(), LifeState::Draining { retire_at: Some(now + RETIRE_AFTER), deadline });
    }
    assert_eq!(leaving().handle(LifeEvent::Stop, at(300)), [LifeAction::SendStop]);
    assert_eq!(leaving().handle(LifeEvent::Hung, at(300)), [LifeAction::Kill]);
    let exit = LifeAction::Exit(RunOutcome::Forced);
    assert_eq!(leaving().handle(DIED, at(300)), [LifeAction::Clear, exit], "none is started");
    // Nobody was told yet that it is ready.
    assert_eq!(started().handle(asked, at(1)), [LifeAction::SendDrain { timeout }]);
}

#[test]
fn a_drain_without_an_answer_retires_later_and_kills_at_last() {
    let mut life = serving();
    let _ = life.handle(drain(Duration::from_secs(2)), at(0));
    assert_eq!(life.handle(LifeEvent::Tick, at(1_000)), [LifeAction::Retire]);
    assert_eq!(life.handle(LifeEvent::Tick, at(7_000)), [LifeAction::Kill]);
    assert_eq!(life.handle(DIED, at(7_001)), [LifeAction::Clear, LifeAction::Exit(RunOutcome::Forced)]);
}

#[test]
fn a_stop_cuts_a_drain_short_and_a_hanging_data_plane_is_killed() {
    let mut life = serving();
    let _ = life.handle(drain(Duration::from_secs(30)), at(0));
    assert_eq!(life.handle(LifeEvent::Stop, at(1)), [LifeAction::SendStop]);
    assert_eq!(life.handle(LifeEvent::Stop, at(2)), []);
    assert_eq!(life.handle(LifeEvent::Tick, at(5_001)), [LifeAction::Kill]);
    assert_eq!(life.handle(LifeEvent::Stop, at(5_002)), []);
    assert_eq!(life.handle(DIED, at(5_003)), [LifeAction::Clear, LifeAction::Exit(RunOutcome::Forced)]);
}

#[test]
fn nothing_is_started_once_the_end_was_asked_for() {
    for ask in [LifeEvent::Stop, drain(Duration::ZERO)] {
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
                LifeAction::SendLeave | LifeAction::SendDrain { .. } | LifeAction::SendStop => {
                    assert!(self.alive && life.is_ending())
                }
                LifeAction::Clear => {
                    assert!(!self.alive && !self.cleared);
                    self.cleared = true;
                }
                LifeAction::Retire => {
                    assert!(life.is_ending() && !life.is_open());
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

#[test]
fn a_hung_one_is_killed_for_that_reason_and_a_healthy_one_is_replaced_at_once() {
    let mut life = serving();
    for generation in 2..12 {
        let begun = at(u64::from(generation) * 100_000);
        let _ = life.handle(LifeEvent::Ready, begun);
        assert_eq!(life.handle(LifeEvent::Hung, begun + HEALTHY_AFTER), [LifeAction::Kill]);
        assert_eq!(life.handle(LifeEvent::Hung, begun + HEALTHY_AFTER), [], "once");
        let died = life.handle(DIED, begun + HEALTHY_AFTER);
        assert_eq!(died, [LifeAction::Clear, LifeAction::Spawn { generation }], "no backoff");
    }
    let _ = life.handle(DIED, at(2_000_000));
    let deaths: Vec<_> = life.deaths().filter(|(_, count)| *count > 0).collect();
    assert_eq!(deaths, [(DeathReason::Crashed, 1), (DeathReason::Hung, 10)]);
    // An end in order is no death.
    let mut life = serving();
    let _ = life.handle(LifeEvent::Stop, at(5));
    let _ = life.handle(LifeEvent::Died { clean: true }, at(6));
    assert_eq!(life.deaths().map(|(_, count)| count).sum::<u64>(), 0);
}

fn events() -> impl Strategy<Value = (u64, u8)> {
    (0..6_000_u64, 0..15_u8)
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
                9 if pause < 600 => {
                    let delay = Duration::from_millis(pause.saturating_sub(300));
                    LifeEvent::Drain { delay, timeout: Duration::from_millis(pause) }
                }
                10 if pause < 300 => LifeEvent::Stop,
                11 => LifeEvent::Drained,
                12 => LifeEvent::Hung,
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
