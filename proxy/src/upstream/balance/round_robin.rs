//! Smooth weighted round-robin: endpoints in turn, each as often as its weight says, and as evenly spread as
//! that allows.

use std::rc::Rc;

use super::{Balance, Turn};
use crate::upstream::endpoint::Endpoint;

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

    fn pick(
        &mut self,
        endpoints: &[Rc<Endpoint>],
        turn: Turn,
        may: impl Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        match &mut self.turns {
            Turns::Equal { next } => {
                let position = in_turn(*next, endpoints, may)?;
                if turn == Turn::Next {
                    *next = (position + 1) % endpoints.len();
                }
                Some(position)
            }
            Turns::Weighted { credits } => weighted(endpoints, &self.weights, credits, turn, may),
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
        weighted(endpoints, weights, &mut credits, Turn::Next, |_| true);
    }
    credits
}

fn in_turn(next: usize, endpoints: &[Rc<Endpoint>], may: impl Fn(&Endpoint) -> bool) -> Option<usize> {
    let count = endpoints.len();
    (0..count).map(|step| next.wrapping_add(step) % count).find(|&position| may(&endpoints[position]))
}

fn weighted(
    endpoints: &[Rc<Endpoint>],
    weights: &[u32],
    credits: &mut [i64],
    turn: Turn,
    may: impl Fn(&Endpoint) -> bool,
) -> Option<usize> {
    let mut best: Option<(usize, i64)> = None;
    let mut gained = 0;
    for (position, (endpoint, &weight)) in endpoints.iter().zip(weights).enumerate() {
        if weight == 0 || !may(endpoint) {
            continue;
        }
        let credit = credits[position] + i64::from(weight);
        if turn == Turn::Next {
            credits[position] = credit;
        }
        gained += i64::from(weight);
        if best.is_none_or(|(_, most)| credit > most) {
            best = Some((position, credit));
        }
    }
    let (best, _) = best?;
    if turn == Turn::Next {
        credits[best] -= gained;
    }
    Some(best)
}

#[cfg(test)]
mod tests;
