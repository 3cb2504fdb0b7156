//! Choosing an endpoint, sans-IO. Each upstream has one balancer on each worker: workers share nothing, and a
//! random start keeps them from marching in step.
//!
//! `round_robin` is the one way to choose today. Another one (least-request, p2c-ewma, Maglev) is a file
//! beside it, which implements `Balance`, and a variant of `Policy`. Whatever the way, endpoints whose
//! connects fail come last (`failing`).

mod failing;
mod round_robin;

use std::rc::Rc;

use self::failing::Failing;
use self::round_robin::RoundRobin;
use super::endpoint::{Endpoint, EndpointId, Tried};
use super::endpoint_set::EndpointSet;
use crate::time::Time;

/// A way to choose among endpoints.
trait Balance {
    /// The endpoints are these from now on.
    fn follow(&mut self, endpoints: &[Rc<Endpoint>]);

    /// The position of the next endpoint that `may` be picked; `None` if there is none. `endpoints` are those
    /// that were followed last.
    fn pick(
        &mut self,
        endpoints: &[Rc<Endpoint>],
        turn: Turn,
        may: impl Fn(&Endpoint) -> bool,
    ) -> Option<usize>;
}

/// Whose turn a pick is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A new exchange's.
    Next,
    /// That of an exchange whose attempt failed. It leaves the turn alone: otherwise exchanges that retry
    /// would always leave the same endpoint to the next.
    Stay,
}

/// The ways that there are.
#[derive(Debug)]
enum Policy {
    RoundRobin(RoundRobin),
}

impl Balance for Policy {
    fn follow(&mut self, endpoints: &[Rc<Endpoint>]) {
        match self {
            Self::RoundRobin(turns) => turns.follow(endpoints),
        }
    }

    fn pick(
        &mut self,
        endpoints: &[Rc<Endpoint>],
        turn: Turn,
        may: impl Fn(&Endpoint) -> bool,
    ) -> Option<usize> {
        match self {
            Self::RoundRobin(turns) => turns.pick(endpoints, turn, may),
        }
    }
}

/// The endpoints that one worker chooses from, and its way to choose.
#[derive(Debug)]
pub struct Balancer {
    /// The worker's own copies: a count of references that workers share would cost each request a cache line
    /// that another worker wrote.
    endpoints: Vec<Rc<Endpoint>>,
    policy: Policy,
    failing: Failing,
}

impl Balancer {
    /// In turn. `random` places the start.
    #[must_use]
    pub fn round_robin(endpoints: &EndpointSet, random: u64) -> Self {
        let endpoints = own(endpoints);
        let policy = Policy::RoundRobin(RoundRobin::new(&endpoints, random));
        Self { endpoints, policy, failing: Failing::default() }
    }

    /// Chooses from these from now on.
    pub fn follow(&mut self, endpoints: &EndpointSet) {
        self.endpoints = own(endpoints);
        self.policy.follow(&self.endpoints);
        self.failing.follow(endpoints);
    }

    /// The next endpoint that this exchange has not tried yet; `None` if there is none. Endpoints whose
    /// connects fail come after the others.
    pub fn pick(&mut self, tried: &Tried, turn: Turn, now: Time) -> Option<&Rc<Endpoint>> {
        let Self { endpoints, policy, failing } = self;
        let untried = |endpoint: &Endpoint| !tried.contains(endpoint);
        let good = |endpoint: &Endpoint| untried(endpoint) && !failing.avoids(endpoint.id(), now);
        let picked = if failing.is_empty() { None } else { policy.pick(endpoints, turn, good) };
        let position = picked.or_else(|| policy.pick(endpoints, turn, untried))?;
        endpoints.get(position)
    }

    /// A connect to this endpoint begins.
    pub fn connecting(&mut self, endpoint: EndpointId, now: Time) {
        self.failing.connecting(endpoint, now);
    }

    /// A connect to this endpoint succeeded, or failed through its own fault.
    pub fn connected(&mut self, endpoint: EndpointId, is_good: bool, now: Time) {
        if is_good {
            self.failing.connected(endpoint);
        } else {
            self.failing.failed(endpoint, now);
        }
    }
}

fn own(endpoints: &EndpointSet) -> Vec<Rc<Endpoint>> {
    endpoints.iter().cloned().map(Rc::new).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn endpoint(last: u8) -> Endpoint {
        Endpoint { address: ([10, 0, 0, last], 80).into(), label: "".into(), weight: u32::from(last) }
    }

    fn picks(balancer: &mut Balancer, now: Time) -> Vec<u32> {
        let mut pick = || balancer.pick(&Tried::default(), Turn::Next, now).expect("an endpoint").weight;
        (0..12).map(|_| pick()).collect()
    }

    #[test]
    fn a_failing_endpoint_comes_last_until_it_is_due() {
        let mut balancer = Balancer::round_robin(&EndpointSet::new([1, 2, 3].map(endpoint)), 0);
        let [first, second, third] = [1, 2, 3].map(endpoint);
        let now = Time::default();
        balancer.connected(third.id(), false, now);
        assert!(!picks(&mut balancer, now).contains(&3));
        let mut tried = Tried::default();
        tried.insert(&first);
        tried.insert(&second);
        assert_eq!(balancer.pick(&tried, Turn::Stay, now).map(|picked| picked.weight), Some(3));
        balancer.connected(first.id(), false, now);
        balancer.connected(second.id(), false, now);
        assert!(picks(&mut balancer, now).contains(&3), "all fail: each has its turn");
        balancer.connected(first.id(), true, now);
        assert!(!picks(&mut balancer, now).contains(&3));
        assert!(picks(&mut balancer, now + Duration::from_secs(1)).contains(&3), "it is due");
    }
}
