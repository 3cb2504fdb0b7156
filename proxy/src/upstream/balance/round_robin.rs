//! Smooth weighted round-robin: endpoints in turn, each as often as its weight says, and as evenly spread as
//! that allows.

use std::rc::Rc;

use super::Balance;
use crate::upstream::endpoint::{Endpoint, Tried};

/// In every run of as many picks as the sum of the weights, each endpoint has exactly its share.
#[derive(Clone, Debug)]
pub(super) struct RoundRobin {
    weights: Vec<u32>,
    turns: Turns,
    /// Places the start.
    random: u64,
}

#[derive(Clone, Debug)]
enum Turns {
    /// All weights are the same: the position of the next.
    Equal { next: usize },
    /// At each pick every endpoint gains its weight. The endpoint that has most is taken, and pays the gains
    /// of all. The sum of credits stays zero.
    Weighted { credits: Vec<i64> },
}

/// A limit on the work of finding a random start: credits gained on the way to it.
const START_STEPS_MAX: u64 = 1 << 16;

impl RoundRobin {
    /// Starts at a position made from `random`. A weight of 0 is never picked.
    pub(super) fn new(endpoints: &[Rc<Endpoint>], random: u64) -> Self {
        let weights = weights(endpoints);
        let turns = if weights.windows(2).all(|two| two[0] == two[1]) && weights.first() != Some(&0) {
            Turns::Equal { next: random as usize }
        } else {
            Turns::Weighted { credits: start(endpoints, &weights, random) }
        };
        Self { weights, turns, random }
    }
}

impl Balance for RoundRobin {
    /// The turns go on while the weights stay as they are, in their order; else they start anew.
    fn follow(&mut self, endpoints: &[Rc<Endpoint>]) {
        if weights(endpoints) != self.weights {
            *self = Self::new(endpoints, self.random);
        }
    }

    fn pick(&mut self, endpoints: &[Rc<Endpoint>], tried: &Tried) -> Option<usize> {
        match &mut self.turns {
            Turns::Equal { next } => in_turn(next, endpoints, tried),
            Turns::Weighted { credits } => weighted(endpoints, &self.weights, credits, tried),
        }
    }
}

fn weights(endpoints: &[Rc<Endpoint>]) -> Vec<u32> {
    endpoints.iter().map(|endpoint| endpoint.weight).collect()
}

/// The credits after a random number of picks.
fn start(endpoints: &[Rc<Endpoint>], weights: &[u32], random: u64) -> Vec<i64> {
    let mut credits = vec![0; weights.len()];
    let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
    let steps = (random % sum.max(1)).min(START_STEPS_MAX / weights.len().max(1) as u64);
    for _ in 0..steps {
        weighted(endpoints, weights, &mut credits, &Tried::default());
    }
    credits
}

fn in_turn(next: &mut usize, endpoints: &[Rc<Endpoint>], tried: &Tried) -> Option<usize> {
    let count = endpoints.len();
    for step in 0..count {
        let position = next.wrapping_add(step) % count;
        if !tried.contains(&endpoints[position]) {
            *next = (position + 1) % count;
            return Some(position);
        }
    }
    None
}

fn weighted(
    endpoints: &[Rc<Endpoint>],
    weights: &[u32],
    credits: &mut [i64],
    tried: &Tried,
) -> Option<usize> {
    let mut best: Option<usize> = None;
    let mut gained = 0;
    for (position, (endpoint, &weight)) in endpoints.iter().zip(weights).enumerate() {
        if weight == 0 || tried.contains(endpoint) {
            continue;
        }
        credits[position] += i64::from(weight);
        gained += i64::from(weight);
        if best.is_none_or(|best| credits[position] > credits[best]) {
            best = Some(position);
        }
    }
    credits[best?] -= gained;
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            self.balancer.pick(&self.endpoints, tried)
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
}
