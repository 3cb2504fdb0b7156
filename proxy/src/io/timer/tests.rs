//! Tests of `io::timer`.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum WheelStep {
    Arm(u64),
    Disarm(usize),
    Advance(u64),
    AdvanceToNext,
}

fn step() -> impl Strategy<Value = WheelStep> {
    let span =
        prop_oneof![0u64..10_000_000, 0u64..5_000_000_000, 0u64..10_000_000_000_000, Just(u64::MAX / 2)];
    prop_oneof![
        4 => span.clone().prop_map(WheelStep::Arm),
        2 => (0usize..64).prop_map(WheelStep::Disarm),
        2 => (0u64..20_000_000_000).prop_map(WheelStep::Advance),
        1 => span.prop_map(|s| WheelStep::Advance(s / 4)),
        2 => Just(WheelStep::AdvanceToNext),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn behaves_like_a_sorted_map(
        start in 0u64..(1 << 50),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut now = Time::from_nanos(start);
        let mut wheel = Wheel::new(now);
        let mut model: BTreeMap<(u64, u64), TimerKey> = BTreeMap::new();
        let mut keys = Vec::new();
        let mut serial = 0u64;
        let tick = |t: Time| t.as_nanos().div_ceil(1 << TICK_BITS);
        for step in steps {
            match step {
                WheelStep::Arm(span) => {
                    let deadline = now + Duration::from_nanos(span);
                    let key = wheel.arm(deadline, (tick(deadline), serial));
                    model.insert((tick(deadline), serial), key);
                    keys.push((key, (tick(deadline), serial)));
                    serial += 1;
                }
                WheelStep::Disarm(at) if !keys.is_empty() => {
                    let (key, id) = keys[at % keys.len()];
                    prop_assert_eq!(wheel.disarm(key).is_some(), model.remove(&id).is_some());
                }
                WheelStep::Disarm(_) => {}
                WheelStep::Advance(_) | WheelStep::AdvanceToNext => {
                    let to = match step {
                        WheelStep::Advance(span) => now + Duration::from_nanos(span),
                        _ => wheel.next_wake().unwrap_or(now).max(now),
                    };
                    if let Some((&(first, _), _)) = model.first_key_value() {
                        // Never too late, and exact unless something was disarmed.
                        let wake = wheel.next_wake().expect("armed").as_nanos();
                        prop_assert!(wake <= first.saturating_mul(1 << TICK_BITS).max(now.as_nanos()));
                    }
                    now = to;
                    let mut fired = Vec::new();
                    wheel.advance(now, &mut fired);
                    let passed = now.as_nanos() >> TICK_BITS;
                    let rest = model.split_off(&(passed + 1, 0));
                    let mut expected: Vec<_> = std::mem::replace(&mut model, rest).into_keys().collect();
                    fired.sort_unstable();
                    expected.sort_unstable();
                    prop_assert_eq!(fired, expected);
                }
            }
            prop_assert_eq!(wheel.len(), model.len());
            prop_assert_eq!(wheel.next_wake().is_none(), model.is_empty());
        }
    }
}

#[test]
fn sleeping_to_each_wake_needs_one_wake_per_timer() {
    let start = Time::from_nanos(12_345_678_901);
    let mut wheel = Wheel::new(start);
    for seconds in [1u64, 75, 600, 86_400] {
        wheel.arm(start + Duration::from_secs(seconds), seconds);
    }
    let (mut wakes, mut fired) = (0, Vec::new());
    while let Some(wake) = wheel.next_wake() {
        wheel.advance(wake, &mut fired);
        wakes += 1;
    }
    assert_eq!(fired, [1, 75, 600, 86_400]);
    assert_eq!(wakes, 4);
}
