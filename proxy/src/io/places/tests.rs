//! Tests of `io::places`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOBODY: [i32; 0] = [];
const A: Source = Source(1);
const B: Source = Source(2);
const C: Source = Source(3);

fn at(milliseconds: u64) -> Time {
    Time::from_nanos(milliseconds * 1_000_000)
}

/// The owners of all decisions until there is none; those that give way are negative.
fn settle(places: &mut Places<i32>, max: u64, now: Time) -> Vec<i32> {
    let decisions = std::iter::from_fn(|| places.poll(max, now));
    decisions
        .map(|decision| match decision {
            Decision::Take(owner) => owner,
            Decision::GiveWay { owner, .. } => -owner,
        })
        .collect()
}

#[test]
fn a_source_is_an_address_or_a_network_of_64_bits() {
    let source = |text: &str| Source::from(text.parse::<IpAddr>().expect("an address"));
    assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"));
    assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:2"));
    assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    assert_ne!(source("::1"), source("0.0.0.1"));
    for (address, shown) in [("192.0.2.1", "192.0.2.1"), ("2001:db8:0:7::1", "2001:db8:0:7::/64")] {
        assert_eq!(source(address).to_string(), shown);
    }
}

#[test]
fn who_finds_room_takes_it_at_once_and_others_wait_in_their_order() {
    let mut places = Places::default();
    let first = places.wait(A, 1);
    assert_eq!(settle(&mut places, 2, at(0)), [1]);
    for owner in 2..=4 {
        places.wait(A, owner);
    }
    assert_eq!(settle(&mut places, 2, at(0)), [2]);
    assert_eq!((places.used(), places.waiting()), (2, 2));
    places.leave(first);
    assert_eq!(settle(&mut places, 2, at(0)), [3]);
    // The bound may change.
    assert_eq!(settle(&mut places, 3, at(0)), [4]);
    assert_eq!(settle(&mut places, 2, at(0)), NOBODY, "nobody is sent away for that");
}

#[test]
fn the_source_that_holds_the_least_comes_next() {
    let mut places = Places::default();
    for owner in 1..=6 {
        places.wait(A, owner);
    }
    assert_eq!(settle(&mut places, 3, at(0)), [1, 2, 3]);
    places.wait(B, 7);
    places.wait(B, 8);
    places.wait(C, 9);
    assert_eq!(settle(&mut places, 4, at(0)), [7], "it came before C");
    assert_eq!(settle(&mut places, 7, at(0)), [9, 8, 4]);
}

#[test]
fn who_waits_for_its_peer_gives_way_the_greediest_source_s_longest_first() {
    let mut places = Places::default();
    let keys: Vec<_> = [(A, 1), (B, 2), (A, 3), (A, 4), (B, 5)]
        .map(|(source, owner)| {
            let key = places.wait(source, owner);
            assert_eq!(settle(&mut places, 5, at(0)), [owner]);
            key
        })
        .into();
    places.wait(C, 6);
    assert_eq!(settle(&mut places, 5, at(60_000)), NOBODY, "all are at work");
    assert_eq!(places.gives_way_at(5), None);
    // B's has been resting for longer, but A holds more. The last one's peer went on.
    for (index, since) in [(1, 10), (2, 40), (3, 30), (0, 20)] {
        places.rest(keys[index], at(since));
    }
    places.work(keys[0]);
    assert_eq!(places.gives_way_at(5), Some(at(3030)));
    assert_eq!(settle(&mut places, 5, at(3029)), NOBODY);
    assert_eq!(settle(&mut places, 5, at(3030)), [-4, 6]);
    // A holds no more than B now, whose resting member has rested for longer.
    places.wait(C, 7);
    assert_eq!(settle(&mut places, 5, at(3030)), [-2, 7]);
    assert_eq!(places.used(), 5);
}

#[test]
fn nobody_gives_way_to_a_source_that_holds_more() {
    let mut places = Places::default();
    for owner in 1..=3 {
        places.hold(A, 1, owner);
    }
    let key = places.hold(B, 1, 4);
    places.rest(key, at(0));
    places.wait(A, 5);
    assert_eq!(places.gives_way_at(4), None);
    assert_eq!(settle(&mut places, 4, at(60_000)), NOBODY);
    // To one that holds as many it does.
    let key = places.wait(B, 6);
    assert_eq!(settle(&mut places, 4, at(60_000)), [-4, 6]);
    places.leave(key);
    assert_eq!(settle(&mut places, 4, at(60_000)), [5]);
}

#[test]
fn the_more_wait_the_less_patience_there_is() {
    for (waiting, patience) in
        [(1, 3000), (300, 3000), (512, 2000), (1024, 1000), (2048, 500), (10_240, 100), (20_000, 100)]
    {
        let mut places = Places::default();
        for owner in 0..256 {
            let key = places.hold(Source(owner), 1, 0);
            places.rest(key, at(0));
        }
        for source in 0..waiting {
            places.wait(Source(1000 + source), 1);
        }
        assert_eq!(places.poll(256, at(50)), None);
        assert_eq!(places.gives_way_at(256), Some(at(patience)), "{waiting}");
    }
}

#[test]
fn a_queue_passes_in_time_and_is_forgotten() {
    let mut places = Places::default();
    let mut keys = BTreeMap::new();
    for owner in 1..=404 {
        keys.insert(owner, places.wait(Source(owner as u64), owner));
    }
    // Nobody who has a place ever goes on.
    let mut now = at(10_000);
    let take = |places: &mut Places<i32>, now| {
        let owners = settle(places, 4, now);
        owners.iter().filter(|&&owner| owner > 0).for_each(|owner| places.rest(keys[owner], now));
    };
    while places.waiting() > 0 {
        take(&mut places, now);
        now = places.gives_way_at(4).unwrap_or(now);
    }
    assert!((at(13_900)..=at(20_000)).contains(&now), "{now:?}: 100 ms at least for each four");
    let patience = |places: &Places<i32>| places.lately.patience(4);
    places.poll(4, now + TURNOVER);
    let later = patience(&places);
    assert!(later < PATIENCE_MAX, "the queue was long a moment ago");
    places.poll(4, now + 3 * TURNOVER);
    assert_eq!(patience(&places), PATIENCE_MAX);
    // Not longer than the moment before, but than this.
    let long = Lately { began: now, longest: 80, longest_before: 0 };
    let mut lately = long;
    lately.note(5, now + (TURNOVER - Duration::from_millis(1)));
    assert_eq!(lately.patience(4), Duration::from_millis(200));
    lately.note(5, now + TURNOVER);
    assert_eq!(lately.patience(4), Duration::from_millis(200));
    lately.note(5, now + 2 * TURNOVER);
    assert_eq!(lately.patience(4), PATIENCE_MAX);
    lately = long;
    lately.note(5, now + 2 * TURNOVER);
    assert_eq!(lately.patience(4), PATIENCE_MAX);
}

#[test]
fn who_is_spared_keeps_its_place_and_rests_from_then_on() {
    let mut places = Places::default();
    let key = places.hold(A, 1, 1);
    places.rest(key, at(0));
    places.wait(B, 2);
    let Some(Decision::GiveWay { key: named, owner: 1, source: A }) = places.poll(1, at(3000)) else {
        panic!("it gives way")
    };
    assert_eq!((named, places.used()), (key, 0));
    places.spare(key, at(3000));
    assert_eq!((places.used(), settle(&mut places, 1, at(5999))), (1, vec![]));
    assert_eq!(settle(&mut places, 1, at(6000)), [-1, 2]);
    // It has to leave, and what it does meanwhile changes nothing.
    places.rest(key, at(2000));
    places.work(key);
    places.grow(key, 5);
    assert_eq!(places.used(), 1);
    places.leave(key);
    assert_eq!(places.used(), 1);
}

#[test]
fn weights_count_and_the_heaviest_source_gives_way() {
    let mut places = Places::default();
    let light: Vec<_> = (1..=3).map(|owner| places.hold(A, 10, owner)).collect();
    let heavy = places.hold(B, 25, 4);
    light.iter().chain([&heavy]).for_each(|&key| places.rest(key, at(0)));
    assert_eq!(places.relieve(55), None);
    places.grow(heavy, 10);
    let gone = |decision| match decision {
        Some(Decision::GiveWay { owner, .. }) => owner,
        _ => 0,
    };
    assert_eq!((gone(places.relieve(55)), places.used()), (4, 30));
    assert_eq!(gone(places.relieve(29)), 1, "the longest resting");
    assert_eq!((gone(places.relieve(0)), gone(places.relieve(0)), gone(places.relieve(0))), (2, 3, 0));
}

/// The same rules, told without any order that is kept.
#[derive(Default)]
struct Model {
    members: BTreeMap<PlaceKey, (Source, u64, State, i32)>,
    lately: Lately,
}

impl Model {
    fn held(&self, source: Source) -> u64 {
        self.members.values().filter(|(of, _, state, _)| *of == source && state.holds()).map(|m| m.1).sum()
    }

    fn used(&self) -> u64 {
        self.members.values().filter(|(_, _, state, _)| state.holds()).map(|member| member.1).sum()
    }

    fn next(&self) -> Option<(u64, PlaceKey)> {
        let waiting = self.members.iter().filter_map(|(&key, &(source, _, state, _))| match state {
            State::Waiting(order) => Some((self.held(source), order, key)),
            _ => None,
        });
        waiting.min().map(|(held, _, key)| (held, key))
    }

    fn greediest(&self) -> Option<(u64, Time, PlaceKey)> {
        let resting = self.members.iter().filter_map(|(&key, &(source, _, state, _))| match state {
            State::Resting(since) => Some((Reverse(self.held(source)), since, source, key)),
            _ => None,
        });
        resting.min().map(|(Reverse(held), since, _, key)| (held, since, key))
    }

    fn poll(&mut self, max: u64, now: Time) -> Option<i32> {
        let waiting = self.members.values().filter(|m| matches!(m.2, State::Waiting(_))).count();
        self.lately.note(waiting, now);
        let (needy, next) = self.next()?;
        if self.used() < max {
            return self.change(next, State::Working);
        }
        let (held, since, key) = self.greediest()?;
        if held < needy || now < since + self.lately.patience(max) {
            return None;
        }
        self.change(key, State::Gone).map(|owner| -owner)
    }

    fn change(&mut self, key: PlaceKey, state: State) -> Option<i32> {
        let member = self.members.get_mut(&key)?;
        member.2 = state;
        Some(member.3)
    }
}

proptest! {
    #[test]
    fn every_decision_is_the_model_s(
        steps in prop::collection::vec((0..9_u8, 0..4_u64, 0..40_usize, 0..2000_u64), 1..200),
    ) {
        let (mut places, mut model) = (Places::default(), Model::default());
        let (mut now, mut owner, mut order) = (at(0), 0, 0);
        for (step, source, pick, wait) in steps {
            let (source, max) = (Source(source), 6);
            let keys: Vec<_> = model.members.keys().copied().collect();
            let picked = keys.get(pick % keys.len().max(1)).copied();
            owner += 1;
            match (step, picked) {
                (0..=2, _) => {
                    let key = places.wait(source, owner);
                    model.members.insert(key, (source, 1, State::Waiting(order), owner));
                    order += 1;
                }
                (3, _) => {
                    let key = places.hold(source, wait % 3, owner);
                    model.members.insert(key, (source, wait % 3, State::Working, owner));
                }
                (4 | 5, Some(key)) => {
                    places.rest(key, now);
                    if model.members[&key].2.holds() {
                        model.change(key, State::Resting(now));
                    }
                }
                (6, Some(key)) => {
                    places.work(key);
                    if model.members[&key].2.holds() {
                        model.change(key, State::Working);
                    }
                }
                (7, Some(key)) => {
                    places.leave(key);
                    model.members.remove(&key);
                }
                (8, Some(key)) => {
                    places.grow(key, 1);
                    model.members.get_mut(&key).expect("there").1 += 1;
                }
                _ => {}
            }
            now = now + Duration::from_millis(wait);
            loop {
                let expected = model.poll(max, now);
                let decided = places.poll(max, now).map(|decision| match decision {
                    Decision::Take(owner) => owner,
                    Decision::GiveWay { owner, .. } => -owner,
                });
                prop_assert_eq!(decided, expected);
                prop_assert_eq!(places.used(), model.used());
                if expected.is_none() {
                    break;
                }
            }
            prop_assert_eq!(places.is_empty(), model.members.is_empty());
        }
        for key in model.members.keys() {
            places.leave(*key);
        }
        prop_assert!(places.is_empty() && places.used() == 0 && places.standings.is_empty());
        prop_assert!(places.by_need.is_empty() && places.by_greed.is_empty());
        prop_assert!(places.waiting.is_empty() && places.resting.is_empty());
    }
}
