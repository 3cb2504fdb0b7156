//! Choosing an endpoint, sans-IO. One balancer per upstream and worker: workers share nothing, and a random start keeps them from
//! marching in step.

use super::endpoint::Tried;

/// Takes endpoints in turn.
#[derive(Clone, Copy, Debug)]
pub struct RoundRobin {
    next: usize,
}

impl RoundRobin {
    /// Starts at a position made from `random`.
    #[must_use]
    pub const fn new(random: u64) -> Self {
        Self { next: random as usize }
    }

    /// The next of `count` endpoints that this exchange has not tried yet; `None` when all were tried.
    pub fn pick(&mut self, count: usize, tried: &Tried) -> Option<usize> {
        for step in 0..count {
            let index = self.next.wrapping_add(step) % count;
            if !tried.contains(index) {
                self.next = (index + 1) % count;
                return Some(index);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_each_in_turn_from_any_start() {
        for start in [0, 1, 2, 7, u64::MAX] {
            let mut balancer = RoundRobin::new(start);
            let mut counts = [0; 3];
            for _ in 0..30 {
                counts[balancer.pick(3, &Tried::default()).expect("three endpoints")] += 1;
            }
            assert_eq!(counts, [10, 10, 10], "start {start}");
        }
    }

    #[test]
    fn skips_what_this_exchange_tried() {
        let mut balancer = RoundRobin::new(0);
        let mut tried = Tried::default();
        for _ in 0..3 {
            let index = balancer.pick(3, &tried).expect("one is left");
            assert!(!tried.contains(index));
            tried.insert(index);
        }
        assert_eq!(balancer.pick(3, &tried), None);
        assert_eq!(balancer.pick(0, &Tried::default()), None);
    }

    #[test]
    fn survives_a_shrinking_upstream() {
        let mut balancer = RoundRobin::new(5);
        assert!(balancer.pick(6, &Tried::default()).is_some());
        assert_eq!(balancer.pick(1, &Tried::default()), Some(0));
    }
}
