//! Tests of `tls::sessions`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::UnixTime;

use super::*;

#[derive(Debug, Default)]
struct Clock(AtomicU64);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

fn sessions() -> (Arc<Clock>, StoredSessions) {
    let clock = Arc::new(Clock::default());
    (Arc::clone(&clock), StoredSessions::new(clock, None))
}

fn id(number: usize) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

#[test]
fn one_of_1_3_is_good_once_and_one_of_1_2_again() {
    let (_, sessions) = sessions();
    assert!(sessions.can_cache() && sessions.put(id(1), vec![1]));
    assert_eq!((sessions.get(&id(1)), sessions.get(&id(1))), (Some(vec![1]), Some(vec![1])));
    assert_eq!(
        (sessions.take(&id(1)), sessions.take(&id(1)), sessions.get(&id(1))),
        (Some(vec![1]), None, None)
    );
}

#[test]
fn the_oldest_leave_and_none_is_long() {
    let (_, sessions) = sessions();
    (0..2 * SESSIONS_MAX).for_each(|number| assert!(sessions.put(id(number), vec![7; 300])));
    let kept: Vec<usize> =
        (0..2 * SESSIONS_MAX).filter(|&number| sessions.get(&id(number)).is_some()).collect();
    assert_eq!(kept, (SESSIONS_MAX..2 * SESSIONS_MAX).collect::<Vec<_>>());
    assert!(
        sessions.put(id(0), vec![7; STATE_BYTES_MAX]) && !sessions.put(id(1), vec![7; STATE_BYTES_MAX + 1])
    );
    assert_eq!((sessions.get(&id(0)), sessions.get(&id(1))), (Some(vec![7; STATE_BYTES_MAX]), None));
}

#[test]
fn none_outlives_what_its_client_was_told() {
    let (clock, sessions) = sessions();
    for (at, is_good) in [(1_000_000 + LIFETIME, true), (1_000_000 + LIFETIME + 1, false), (999_999, false)] {
        clock.0.store(1_000_000, Ordering::Relaxed);
        assert!(sessions.put(id(1), vec![1]));
        clock.0.store(at, Ordering::Relaxed);
        assert_eq!(
            (sessions.get(&id(1)).is_some(), sessions.take(&id(1)).is_some()),
            (is_good, is_good),
            "{at}"
        );
    }
}
