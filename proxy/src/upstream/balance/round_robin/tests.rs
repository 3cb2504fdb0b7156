//! Tests of `upstream::balance::round_robin`.

use proptest::prelude::*;

use super::*;
use crate::upstream::endpoint::Tried;

/// Endpoints with these weights.
fn endpoints(weights: &[u32]) -> Vec<Rc<Endpoint>> {
    let endpoint = |(position, &weight): (usize, &u32)| {
        let address = ([10, 0, (position >> 8) as u8, position as u8], 80).into();
        Rc::new(Endpoint { address, label: "".into(), weight })
    };
    weights.iter().enumerate().map(endpoint).collect()
}

/// A balancer with the endpoints that it follows.
struct Stage {
    endpoints: Vec<Rc<Endpoint>>,
    balancer: RoundRobin,
}

impl Stage {
    fn new(weights: &[u32], random: u64) -> Self {
        let endpoints = endpoints(weights);
        let balancer = RoundRobin::new(&endpoints, random);
        Self { endpoints, balancer }
    }

    fn follow(&mut self, weights: &[u32]) {
        self.endpoints = endpoints(weights);
        self.balancer.follow(&self.endpoints);
    }

    fn pick(&mut self, tried: &Tried) -> Option<usize> {
        let turn = if tried.is_empty() { Turn::Next } else { Turn::Stay };
        self.balancer.pick(&self.endpoints, turn, |endpoint| !tried.contains(endpoint))
    }

    fn picks(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.pick(&Tried::default()).expect("an endpoint")).collect()
    }
}

#[test]
fn takes_each_in_turn_from_any_start() {
    for start in [0, 1, 2, 7, u64::MAX] {
        let mut counts = [0; 3];
        for position in Stage::new(&[1; 3], start).picks(30) {
            counts[position] += 1;
        }
        assert_eq!(counts, [10, 10, 10], "start {start}");
    }
}

#[test]
fn spreads_the_turns_of_a_heavy_endpoint() {
    assert_eq!(Stage::new(&[5, 1, 1], 0).picks(7), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(Stage::new(&[1, 0, 1], 0).picks(4), [0, 2, 0, 2]);
    assert_eq!(Stage::new(&[0, 0], 3).pick(&Tried::default()), None);
    assert_eq!(Stage::new(&[0], 3).pick(&Tried::default()), None);
}

#[test]
fn skips_what_this_exchange_tried() {
    for (weights, left) in [([1; 3], 3), ([3, 1, 2], 3), ([3, 0, 2], 2)] {
        let mut stage = Stage::new(&weights, 0);
        let mut tried = Tried::default();
        for _ in 0..left {
            let position = stage.pick(&tried).expect("one is left");
            assert!(!tried.contains(&stage.endpoints[position]));
            tried.insert(&stage.endpoints[position]);
        }
        assert_eq!(stage.pick(&tried), None);
    }
    assert_eq!(Stage::new(&[], 0).pick(&Tried::default()), None);
}

#[test]
fn survives_a_shrinking_upstream_and_takes_new_weights() {
    for weights in [vec![1; 6], vec![1, 2, 3, 4, 5, 6]] {
        let mut stage = Stage::new(&weights, 5);
        assert!(stage.pick(&Tried::default()).is_some());
        stage.follow(&weights[..1]);
        assert_eq!(stage.pick(&Tried::default()), Some(0));
    }
    let mut stage = Stage::new(&[1, 1], 0);
    assert_eq!(stage.picks(1), [0]);
    stage.follow(&[1, 1]);
    assert_eq!(stage.picks(1), [1], "goes on where it was");
    stage.follow(&[0, 1]);
    assert_eq!(stage.picks(3), [1, 1, 1]);
}

#[test]
fn what_was_tried_stays_tried_wherever_it_stands() {
    let mut stage = Stage::new(&[1; 3], 0);
    let mut tried = Tried::default();
    tried.insert(&stage.endpoints[2]);
    stage.endpoints.remove(0);
    stage.balancer.follow(&stage.endpoints);
    assert_eq!([stage.pick(&tried), stage.pick(&tried)], [Some(0), Some(0)]);
}

#[test]
fn a_retry_leaves_the_turn_alone() {
    for weights in [vec![1; 2], vec![1, 2, 3]] {
        let (mut quiet, mut busy) = (Stage::new(&weights, 0), Stage::new(&weights, 0));
        for _ in 0..12 {
            let first = quiet.pick(&Tried::default()).expect("an endpoint");
            assert_eq!(busy.pick(&Tried::default()), Some(first));
            let mut tried = Tried::default();
            tried.insert(&busy.endpoints[first]);
            assert_ne!(busy.pick(&tried), Some(first));
        }
    }
}

#[test]
fn a_start_takes_bounded_work() {
    let mut stage = Stage::new(&[vec![256; 4000], vec![255]].concat(), u64::MAX - 7);
    assert!(stage.pick(&Tried::default()).is_some());
}

proptest! {
    /// Whatever the start and wherever one begins to count, and whether or not another exchange retried
    /// before.
    #[test]
    fn shares_are_exact(
        weights in prop::collection::vec(0_u32..9, 1..6),
        start in any::<u64>(),
        before in 0_usize..20,
    ) {
        let sum: u32 = weights.iter().sum();
        prop_assume!(sum > 0);
        let mut stage = Stage::new(&weights, start);
        stage.picks(before);
        let mut counts = vec![0; weights.len()];
        for position in stage.picks(3 * sum as usize) {
            counts[position] += 1;
        }
        let expected: Vec<u32> = if weights.iter().all(|weight| *weight == weights[0]) {
            vec![3 * sum / weights.len() as u32; weights.len()]
        } else {
            weights.iter().map(|weight| 3 * weight).collect()
        };
        prop_assert_eq!(counts, expected);
    }
}
