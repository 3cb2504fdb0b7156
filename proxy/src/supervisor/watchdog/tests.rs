//! Tests of `supervisor::watchdog`.

use super::*;

const PATIENCE: Duration = Duration::from_secs(8);

fn at(milliseconds: u64) -> Time {
    Time::from_nanos(milliseconds * 1_000_000)
}

/// A data plane with two workers, seen every second.
#[derive(Default)]
struct World {
    watchdog: Watchdog,
    now: u64,
    /// The control thread answers.
    answers: bool,
    workers: [Option<Time>; 2],
}

impl World {
    /// Looks once after so many milliseconds.
    fn look(&mut self, after: u64) -> Look {
        self.now += after;
        let look = self.watchdog.look(at(self.now), PATIENCE, self.workers.into_iter());
        if let Look::Ping(ping) = look
            && self.answers
        {
            self.watchdog.answered(ping);
        }
        look
    }

    /// Looks every second until it is hung: after how many seconds.
    fn hangs_after(&mut self) -> (u64, Silent) {
        let start = self.now;
        for _ in 0..100 {
            if let Look::Hung(silent) = self.look(1000) {
                return ((self.now - start) / 1000, silent);
            }
        }
        panic!("never hung: {:?}", self.watchdog);
    }
}

#[test]
fn an_idle_data_plane_is_pinged_and_never_hung() {
    let mut world = World { answers: true, ..World::default() };
    for ping in 1..1000 {
        assert_eq!(world.look(1000), Look::Ping(ping));
        assert_eq!(world.look(1), Look::Fine, "not before its time");
    }
    assert_eq!(world.watchdog.silence(), None);
}

#[test]
fn a_control_thread_that_stops_answering_hangs_after_its_time() {
    let mut world = World { answers: true, ..World::default() };
    let _ = world.look(1000);
    world.answers = false;
    let _ = world.look(1000);
    assert_eq!(world.watchdog.silence(), None);
    let _ = (world.look(1000), world.look(1000));
    assert_eq!(world.watchdog.silence(), Some((Silent::ControlThread, Duration::from_secs(2))));
    assert_eq!(world.hangs_after(), (6, Silent::ControlThread));
    // Late as it is, an answer counts; one to an older ping does not.
    world.watchdog.answered(1);
    assert_eq!(world.look(1000), Look::Hung(Silent::ControlThread));
    world.watchdog.answered(2);
    assert_eq!(world.look(1000), Look::Ping(3));
}

#[test]
fn all_workers_have_to_be_stuck() {
    let mut world = World { answers: true, ..World::default() };
    world.workers = [Some(at(1)), None];
    for _ in 0..50 {
        assert!(!matches!(world.look(1000), Look::Hung(_)), "the other sleeps");
    }
    for turn in 0..50 {
        world.workers[1] = Some(at(100 + turn));
        assert!(!matches!(world.look(1000), Look::Hung(_)), "the other turns");
    }
    assert_eq!(world.hangs_after(), (8, Silent::Workers));
    world.workers[0] = None;
    assert!(matches!(world.look(1000), Look::Ping(_)));
}

#[test]
fn time_that_the_supervisor_missed_does_not_count() {
    let mut world = World { workers: [Some(at(1)); 2], ..World::default() };
    let _ = world.look(1000);
    // Stopped for an hour, three times: each counts as two looks.
    for _ in 0..3 {
        assert_eq!(world.look(3_600_000), Look::Fine);
    }
    assert_eq!(world.watchdog.silence().map(|(_, silence)| silence), Some(Duration::from_secs(6)));
    world.watchdog.answered(1);
    world.workers = [None; 2];
    assert!(matches!(world.look(1000), Look::Ping(_)));
    assert_eq!(world.watchdog.silence(), None);
}

#[test]
fn another_patience_counts_from_the_next_look_on() {
    let mut watchdog = Watchdog::default();
    let hour = Duration::from_secs(3600);
    assert_eq!(watchdog.look(at(0), hour, std::iter::empty()), Look::Ping(1));
    assert_eq!(watchdog.next_look(), at(5_000));
    assert_eq!(
        watchdog.look(at(5_000), Duration::from_secs(2), std::iter::empty()),
        Look::Hung(Silent::ControlThread)
    );
}
