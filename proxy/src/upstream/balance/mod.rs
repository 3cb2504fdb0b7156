//! Choosing an endpoint, sans-IO. Each upstream has one balancer on each worker: workers share nothing, and a
//! random start keeps them from marching in step.
//!
//! `round_robin` is the one way to choose today. Another one (least-request, p2c-ewma, Maglev) is a file
//! beside it, which implements `Balance`, and a variant of `Policy`.

mod round_robin;

use std::rc::Rc;

use self::round_robin::RoundRobin;
use super::endpoint::{Endpoint, Tried};
use super::endpoint_set::EndpointSet;

/// A way to choose among endpoints.
trait Balance {
    /// The endpoints are these from now on.
    fn follow(&mut self, endpoints: &[Rc<Endpoint>]);

    /// The position of the next endpoint that this exchange has not tried yet; `None` if there is none.
    /// `endpoints` are those that were followed last.
    fn pick(&mut self, endpoints: &[Rc<Endpoint>], tried: &Tried) -> Option<usize>;
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

    fn pick(&mut self, endpoints: &[Rc<Endpoint>], tried: &Tried) -> Option<usize> {
        match self {
            Self::RoundRobin(turns) => turns.pick(endpoints, tried),
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
}

impl Balancer {
    /// In turn. `random` places the start.
    #[must_use]
    pub fn round_robin(endpoints: &EndpointSet, random: u64) -> Self {
        let endpoints = own(endpoints);
        let policy = Policy::RoundRobin(RoundRobin::new(&endpoints, random));
        Self { endpoints, policy }
    }

    /// Chooses from these from now on.
    pub fn follow(&mut self, endpoints: &EndpointSet) {
        self.endpoints = own(endpoints);
        self.policy.follow(&self.endpoints);
    }

    /// The next endpoint that this exchange has not tried yet; `None` if there is none.
    pub fn pick(&mut self, tried: &Tried) -> Option<&Rc<Endpoint>> {
        let position = self.policy.pick(&self.endpoints, tried)?;
        self.endpoints.get(position)
    }
}

fn own(endpoints: &EndpointSet) -> Vec<Rc<Endpoint>> {
    endpoints.iter().cloned().map(Rc::new).collect()
}
