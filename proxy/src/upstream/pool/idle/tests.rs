//! Tests of `upstream::pool::idle`.

use proptest::prelude::*;

use super::super::testing::{LIMITS, at, endpoint, set};
use super::*;

fn connection<C>(taken: Taken<C>) -> Option<C> {
    match taken {
        Taken::Connection { connection, .. } => Some(connection),
        Taken::Expired(..) | Taken::Nothing => None,
    }
}

#[test]
fn reuses_the_last_first_and_only_for_its_endpoint() {
    let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
    pool.put(endpoint(1), 'a', at(0), at(1), true).expect("room");
    pool.put(endpoint(1), 'b', at(0), at(2), true).expect("room");
    pool.put(endpoint(2), 'c', at(0), at(2), true).expect("room");
    assert_eq!(connection(pool.take(endpoint(1), at(3))), Some('b'));
    assert_eq!(connection(pool.take(endpoint(1), at(3))), Some('a'));
    assert!(matches!(pool.take(endpoint(1), at(3)), Taken::Nothing));
    assert_eq!(connection(pool.take(endpoint(2), at(3))), Some('c'));
}

#[test]
fn refuses_what_it_may_not_keep() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    assert_eq!(pool.put(endpoint(1), 9, at(0), at(3600), true), Err((9, PoolCloseReason::MaxLifetime)));
    assert_eq!(pool.put(endpoint(3), 9, at(0), at(1), true), Err((9, PoolCloseReason::NotReusable)));
    for number in 0..4 {
        pool.put(endpoint(1), number, at(0), at(1), false).expect("room");
    }
    let refused = pool.put(endpoint(1), 9, at(0), at(1), false);
    assert_eq!(refused, Err((9, PoolCloseReason::MaxIdle)), "the worker has no room for more");
    pool.configure(PoolLimits { max_idle: 0, ..LIMITS });
    let refused = pool.put(endpoint(1), 9, at(0), at(1), true);
    assert_eq!(refused, Err((9, PoolCloseReason::MaxIdle)), "none is wanted");
    assert_eq!(pool.len(), 4);
}

#[test]
fn keeps_as_many_as_were_in_use_of_late() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    for number in 0..7 {
        pool.put(endpoint(1), number, at(0), at(number), true).expect("room");
    }
    assert_eq!(pool.next_deadline(), Some(at(10)), "the first of those above max_idle");
    // The last that came is in use, again and again.
    for second in 7..12 {
        assert_eq!(connection(pool.take(endpoint(1), at(second))), Some(6));
        pool.put(endpoint(1), 6, at(0), at(second), true).expect("room");
    }
    assert_eq!(pool.poll_expired(at(9)), None);
    assert_eq!(pool.poll_expired(at(11)), Some((0, PoolCloseReason::MaxIdle)));
    assert_eq!(pool.poll_expired(at(11)), Some((1, PoolCloseReason::MaxIdle)));
    assert_eq!(pool.poll_expired(at(11)), None);
    assert_eq!(pool.poll_expired(at(12)), Some((2, PoolCloseReason::MaxIdle)));
    assert_eq!((pool.poll_expired(at(60)), pool.len()), (None, 4), "max_idle stay for idle_timeout");
    assert_eq!(pool.poll_expired(at(63)), Some((3, PoolCloseReason::IdleTimeout)));
}

#[test]
fn a_lifetime_that_ends_before_the_idle_time_is_seen_behind_others() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    pool.put(endpoint(1), 'i', at(3000), at(3570), true).expect("room");
    pool.put(endpoint(1), 'l', at(0), at(3580), true).expect("room");
    assert_eq!(pool.next_deadline(), Some(at(3600)));
    assert_eq!(pool.poll_expired(at(3610)), Some(('l', PoolCloseReason::MaxLifetime)));
    assert_eq!(pool.next_deadline(), Some(at(3630)));
    // New limits hold for those that are idle too.
    pool.configure(PoolLimits { max_lifetime: std::time::Duration::from_secs(605), ..LIMITS });
    assert_eq!(pool.next_deadline(), Some(at(3605)));
    pool.configure(PoolLimits { idle_timeout: std::time::Duration::from_secs(5), ..LIMITS });
    assert_eq!(pool.poll_expired(at(3575)), Some(('i', PoolCloseReason::IdleTimeout)));
}

#[test]
fn expires_by_idleness_and_by_age() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    pool.put(endpoint(1), 'i', at(0), at(10), true).expect("room");
    pool.put(endpoint(1), 'l', at(0), at(3590), true).expect("room");
    assert_eq!(pool.next_deadline(), Some(at(70)));
    assert_eq!(pool.poll_expired(at(69)), None);
    assert_eq!(pool.poll_expired(at(70)), Some(('i', PoolCloseReason::IdleTimeout)));
    assert_eq!(pool.next_deadline(), Some(at(3600)));
    assert!(matches!(pool.take(endpoint(1), at(3600)), Taken::Expired('l', PoolCloseReason::MaxLifetime)));
    assert_eq!(pool.next_deadline(), None);
}

#[test]
fn a_stale_key_removes_nothing() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    let old = pool.put(endpoint(1), 'a', at(0), at(1), true).expect("room");
    assert_eq!(connection(pool.take(endpoint(1), at(1))), Some('a'));
    let new = pool.put(endpoint(1), 'b', at(0), at(1), true).expect("room");
    assert_eq!(pool.remove(old), None);
    assert_eq!(pool.remove(PoolKey::from_bits(new.to_bits())), Some('b'));
    assert!(pool.is_empty());
}

#[test]
fn a_reload_gives_back_what_lost_its_endpoint() {
    let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
    pool.put(endpoint(1), 'a', at(0), at(1), true).expect("room");
    pool.put(endpoint(2), 'b', at(0), at(1), true).expect("room");
    assert_eq!(pool.follow(&set([2, 3])), vec!['a']);
    assert_eq!(pool.len(), 1);
    assert_eq!(connection(pool.take(endpoint(2), at(2))), Some('b'));
    assert!(matches!(pool.take(endpoint(1), at(2)), Taken::Nothing));
}

proptest! {
    /// Whatever happens, a connection is in exactly one place: idle, in use, or closed.
    #[test]
    fn conserves_connections(
        steps in prop::collection::vec((0..5u8, 1..4u8, 0..40u64, any::<bool>()), 1..200)
    ) {
        let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
        let (mut clock, mut born, mut closed) = (0, 0_u32, 0_u32);
        let mut held: Vec<(EndpointId, u32, Time)> = Vec::new();
        let mut keys = Vec::new();
        for (step, last, passed, has_room) in steps {
            clock += passed;
            let now = at(clock);
            match step {
                0 => {
                    held.push((endpoint(last), born, now));
                    born += 1;
                }
                1 => {
                    if let Some((endpoint, connection, made)) = held.pop() {
                        match pool.put(endpoint, connection, made, now, has_room) {
                            Ok(key) => keys.push(key),
                            Err(_) => closed += 1,
                        }
                    }
                }
                2 => match pool.take(endpoint(last), now) {
                    Taken::Connection { connection, born: made } => {
                        held.push((endpoint(last), connection, made));
                    }
                    Taken::Expired(..) => closed += 1,
                    Taken::Nothing => {}
                },
                3 => {
                    if let Some(key) = keys.pop()
                        && pool.remove(key).is_some()
                    {
                        closed += 1;
                    }
                }
                _ => {
                    while let Some((_, reason)) = pool.poll_expired(now) {
                        prop_assert!(matches!(
                            reason,
                            PoolCloseReason::IdleTimeout
                                | PoolCloseReason::MaxLifetime
                                | PoolCloseReason::MaxIdle
                        ));
                        closed += 1;
                    }
                }
            }
            prop_assert_eq!(pool.len() as u32 + held.len() as u32 + closed, born);
            prop_assert_eq!(pool.check().len(), pool.len());
        }
        while pool.drain().is_some() {
            closed += 1;
        }
        prop_assert_eq!(held.len() as u32 + closed, born);
    }
}
