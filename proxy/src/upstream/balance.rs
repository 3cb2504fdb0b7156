//! Choosing an endpoint, sans-IO. One balancer per upstream and worker: workers share nothing, and a random
//! start keeps them from marching in step.

use super::endpoint::Tried;

/// Takes endpoints in turn, each as often as its weight says and as evenly spread as that allows: in every
/// run of as many picks as the weights' sum each has had exactly its share.
#[derive(Clone, Debug)]
pub struct RoundRobin {
    weights: Vec<u32>,
    turns: Turns,
}

#[derive(Clone, Debug)]
enum Turns {
    /// All weights are the same: the position of the next.
    Equal { next: usize },
    /// Smooth weighted round-robin: at each pick every endpoint gains its weight, the one that has most is
    /// taken and pays what all gained. Their sum stays zero.
    Weighted { credits: Vec<i64> },
}

/// Steps of endpoints that the start may take: a random start is not worth more.
const START_STEPS_MAX: u64 = 1 << 16;

impl RoundRobin {
    /// Starts at a position made from `random`. A weight of 0 is never picked.
    #[must_use]
    pub fn new(weights: Vec<u32>, random: u64) -> Self {
        let turns = if weights.windows(2).all(|two| two[0] == two[1]) && weights.first() != Some(&0) {
            Turns::Equal { next: random as usize }
        } else {
            Turns::Weighted { credits: vec![0; weights.len()] }
        };
        let sum: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let steps = (random % sum.max(1)).min(START_STEPS_MAX / weights.len().max(1) as u64);
        let mut balancer = Self { weights, turns };
        if matches!(balancer.turns, Turns::Weighted { .. }) {
            for _ in 0..steps {
                balancer.pick(balancer.weights.len(), &Tried::default());
            }
        }
        balancer
    }

    /// Takes a new snapshot's weights. What does not change goes on where it is.
    pub fn configure(&mut self, weights: Vec<u32>, random: u64) {
        if weights != self.weights {
            *self = Self::new(weights, random);
        }
    }

    /// The next of `count` endpoints that this exchange has not tried yet; `None` when there is none.
    pub fn pick(&mut self, count: usize, tried: &Tried) -> Option<usize> {
        match &mut self.turns {
            Turns::Equal { next } => in_turn(next, count, tried),
            Turns::Weighted { credits } if count == credits.len() => weighted(&self.weights, credits, tried),
            // An exchange of an older snapshot, which has other endpoints.
            Turns::Weighted { .. } => in_turn(&mut 0, count, tried),
        }
    }
}

fn in_turn(next: &mut usize, count: usize, tried: &Tried) -> Option<usize> {
    for step in 0..count {
        let index = next.wrapping_add(step) % count;
        if !tried.contains(index) {
            *next = (index + 1) % count;
            return Some(index);
        }
    }
    None
}

fn weighted(weights: &[u32], credits: &mut [i64], tried: &Tried) -> Option<usize> {
    let mut best: Option<usize> = None;
    let mut gained = 0;
    for (index, &weight) in weights.iter().enumerate() {
        if weight == 0 || tried.contains(index) {
            continue;
        }
        credits[index] += i64::from(weight);
        gained += i64::from(weight);
        if best.is_none_or(|best| credits[index] > credits[best]) {
            best = Some(index);
        }
    }
    credits[best?] -= gained;
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn picks(balancer: &mut RoundRobin, endpoints: usize, count: usize) -> Vec<usize> {
        (0..count).map(|_| balancer.pick(endpoints, &Tried::default()).expect("an endpoint")).collect()
    }

    #[test]
    fn takes_each_in_turn_from_any_start() {
        for start in [0, 1, 2, 7, u64::MAX] {
            let mut balancer = RoundRobin::new(vec![1; 3], start);
            let mut counts = [0; 3];
            for index in picks(&mut balancer, 3, 30) {
                counts[index] += 1;
            }
            assert_eq!(counts, [10, 10, 10], "start {start}");
        }
    }

    #[test]
    fn spreads_the_turns_of_a_heavy_endpoint() {
        let mut balancer = RoundRobin::new(vec![5, 1, 1], 0);
        assert_eq!(picks(&mut balancer, 3, 7), [0, 0, 1, 0, 2, 0, 0]);
        let mut balancer = RoundRobin::new(vec![1, 0, 1], 0);
        assert_eq!(picks(&mut balancer, 3, 4), [0, 2, 0, 2]);
        assert_eq!(RoundRobin::new(vec![0, 0], 3).pick(2, &Tried::default()), None);
        assert_eq!(RoundRobin::new(vec![0], 3).pick(1, &Tried::default()), None);
    }

    #[test]
    fn skips_what_this_exchange_tried() {
        for (weights, left) in [(vec![1; 3], 3), (vec![3, 1, 2], 3), (vec![3, 0, 2], 2)] {
            let mut balancer = RoundRobin::new(weights, 0);
            let mut tried = Tried::default();
            for _ in 0..left {
                let index = balancer.pick(3, &tried).expect("one is left");
                assert!(!tried.contains(index));
                tried.insert(index);
            }
            assert_eq!(balancer.pick(3, &tried), None);
            assert_eq!(balancer.pick(0, &Tried::default()), None);
        }
    }

    #[test]
    fn survives_a_shrinking_upstream_and_takes_new_weights() {
        for weights in [vec![1; 6], vec![1, 2, 3, 4, 5, 6]] {
            let mut balancer = RoundRobin::new(weights, 5);
            assert!(balancer.pick(6, &Tried::default()).is_some());
            assert_eq!(balancer.pick(1, &Tried::default()), Some(0));
        }
        let mut balancer = RoundRobin::new(vec![1, 1], 0);
        assert_eq!(picks(&mut balancer, 2, 1), [0]);
        balancer.configure(vec![1, 1], 0);
        assert_eq!(picks(&mut balancer, 2, 1), [1], "goes on where it was");
        balancer.configure(vec![0, 1], 0);
        assert_eq!(picks(&mut balancer, 2, 3), [1, 1, 1]);
    }

    #[test]
    fn a_start_takes_bounded_work() {
        let mut balancer = RoundRobin::new([vec![256; 4000], vec![255]].concat(), u64::MAX - 7);
        assert!(balancer.pick(4001, &Tried::default()).is_some());
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
            let mut balancer = RoundRobin::new(weights.clone(), start);
            picks(&mut balancer, weights.len(), before);
            let mut counts = vec![0; weights.len()];
            for index in picks(&mut balancer, weights.len(), 3 * sum as usize) {
                counts[index] += 1;
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
