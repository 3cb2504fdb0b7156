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
    pool.put(endpoint(1), 'a', at(0), at(1)).expect("room");
    pool.put(endpoint(1), 'b', at(0), at(2)).expect("room");
    pool.put(endpoint(2), 'c', at(0), at(2)).expect("room");
    assert_eq!(connection(pool.take(endpoint(1), at(3))), Some('b'));
    assert_eq!(connection(pool.take(endpoint(1), at(3))), Some('a'));
    assert!(matches!(pool.take(endpoint(1), at(3)), Taken::Nothing));
    assert_eq!(connection(pool.take(endpoint(2), at(3))), Some('c'));
}

#[test]
fn refuses_above_max_idle_past_its_lifetime_and_for_unknown_endpoints() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    assert_eq!(pool.put(endpoint(1), 9, at(0), at(3600)), Err((9, PoolCloseReason::MaxLifetime)));
    assert_eq!(pool.put(endpoint(3), 9, at(0), at(1)), Err((9, PoolCloseReason::NotReusable)));
    for number in 0..4 {
        pool.put(endpoint(1), number, at(0), at(1)).expect("room");
    }
    assert_eq!(pool.put(endpoint(1), 9, at(0), at(1)), Err((9, PoolCloseReason::MaxIdle)));
    assert_eq!(pool.len(), 4);
}

#[test]
fn expires_by_idleness_and_by_age() {
    let mut pool = IdlePool::new(LIMITS, &set([1]));
    pool.put(endpoint(1), 'i', at(0), at(10)).expect("room");
    pool.put(endpoint(1), 'l', at(0), at(3590)).expect("room");
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
    let old = pool.put(endpoint(1), 'a', at(0), at(1)).expect("room");
    assert_eq!(connection(pool.take(endpoint(1), at(1))), Some('a'));
    let new = pool.put(endpoint(1), 'b', at(0), at(1)).expect("room");
    assert_eq!(pool.remove(old), None);
    assert_eq!(pool.remove(PoolKey::from_bits(new.to_bits())), Some('b'));
    assert!(pool.is_empty());
}

#[test]
fn a_reload_gives_back_what_lost_its_endpoint() {
    let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
    pool.put(endpoint(1), 'a', at(0), at(1)).expect("room");
    pool.put(endpoint(2), 'b', at(0), at(1)).expect("room");
    assert_eq!(pool.follow(&set([2, 3])), vec!['a']);
    assert_eq!(pool.len(), 1);
    assert_eq!(connection(pool.take(endpoint(2), at(2))), Some('b'));
    assert!(matches!(pool.take(endpoint(1), at(2)), Taken::Nothing));
}

proptest! {
    /// Whatever happens, a connection is in exactly one place: idle, in use, or closed.
    #[test]
    fn conserves_connections(steps in prop::collection::vec((0..5u8, 1..4u8, 0..40u64), 1..200)) {
        let mut pool = IdlePool::new(LIMITS, &set([1, 2]));
        let (mut clock, mut born, mut closed) = (0, 0_u32, 0_u32);
        let mut held: Vec<(EndpointId, u32, Time)> = Vec::new();
        let mut keys = Vec::new();
        for (step, last, passed) in steps {
            clock += passed;
            let now = at(clock);
            match step {
                0 => {
                    held.push((endpoint(last), born, now));
                    born += 1;
                }
                1 => {
                    if let Some((endpoint, connection, made)) = held.pop() {
                        match pool.put(endpoint, connection, made, now) {
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
                            PoolCloseReason::IdleTimeout | PoolCloseReason::MaxLifetime
                        ));
                        closed += 1;
                    }
                }
            }
            prop_assert!(pool.len() <= LIMITS.max_idle);
            prop_assert_eq!(pool.len() as u32 + held.len() as u32 + closed, born);
            prop_assert_eq!(pool.check().len(), pool.len());
        }
        closed += pool.drain().count() as u32;
        prop_assert_eq!(held.len() as u32 + closed, born);
    }
}
