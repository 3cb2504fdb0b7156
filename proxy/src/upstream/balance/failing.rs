//! Endpoints whose connects fail. Each is tried after all others for a while, which grows with every failure:
//! a connect that comes to nothing costs a request up to `connect_timeout`. Sans-IO.
//!
//! | an endpoint is | `avoids` | `connecting` | `failed` | `connected` |
//! |---|---|---|---|---|
//! | good | no | | avoided | |
//! | avoided | yes | | for longer | good |
//! | due, since the while is over | no | avoided, for as long again | avoided, for longer | good |
//!
//! So one request at a time finds out whether an endpoint is back.

use std::collections::HashMap;
use std::time::Duration;

use crate::time::Time;
use crate::upstream::endpoint::EndpointId;
use crate::upstream::endpoint_set::EndpointSet;

/// How long an endpoint is avoided after its first failure.
const WHILE_MIN: Duration = Duration::from_secs(1);
/// How long it is avoided at most.
const WHILE_MAX: Duration = Duration::from_secs(30);

/// See the module. Holds no more endpoints than the current set.
#[derive(Debug, Default)]
pub(super) struct Failing(HashMap<EndpointId, Avoided>);

#[derive(Clone, Copy, Debug)]
struct Avoided {
    until: Time,
    duration: Duration,
}

impl Failing {
    /// Forgets endpoints that are gone.
    pub(super) fn follow(&mut self, endpoints: &EndpointSet) {
        self.0.retain(|endpoint, _| endpoints.contains(*endpoint));
    }

    /// Whether none is.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this endpoint comes after the others.
    pub(super) fn avoids(&self, endpoint: EndpointId, now: Time) -> bool {
        self.0.get(&endpoint).is_some_and(|avoided| now < avoided.until)
    }

    /// A connect begins.
    pub(super) fn connecting(&mut self, endpoint: EndpointId, now: Time) {
        if let Some(avoided) = self.0.get_mut(&endpoint) {
            avoided.until = now + avoided.duration;
        }
    }

    /// A connect failed.
    pub(super) fn failed(&mut self, endpoint: EndpointId, now: Time) {
        let duration =
            self.0.get(&endpoint).map_or(WHILE_MIN, |avoided| (avoided.duration * 2).min(WHILE_MAX));
        self.0.insert(endpoint, Avoided { until: now + duration, duration });
    }

    /// A connect succeeded.
    pub(super) fn connected(&mut self, endpoint: EndpointId) {
        self.0.remove(&endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(last: u8) -> EndpointId {
        std::net::SocketAddr::from(([10, 0, 0, last], 80)).into()
    }

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn an_endpoint_is_avoided_for_longer_after_each_failure() {
        let mut failing = Failing::default();
        let mut now = 0;
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            failing.failed(endpoint(1), at(now));
            assert!(failing.avoids(endpoint(1), at(now + seconds * 1000 - 1)), "{seconds} s");
            assert!(!failing.avoids(endpoint(1), at(now + seconds * 1000)), "{seconds} s");
            assert!(!failing.avoids(endpoint(2), at(now)));
            now += seconds * 1000;
        }
        failing.connected(endpoint(1));
        failing.failed(endpoint(1), at(now));
        assert!(!failing.avoids(endpoint(1), at(now + 1000)), "it begins anew");
        failing.follow(&EndpointSet::default());
        assert!(failing.is_empty());
    }

    #[test]
    fn one_request_finds_out_whether_it_is_back() {
        let mut failing = Failing::default();
        failing.failed(endpoint(1), at(0));
        assert!(!failing.avoids(endpoint(1), at(1000)));
        failing.connecting(endpoint(1), at(1000));
        assert!(failing.avoids(endpoint(1), at(1001)), "the others do not wait for it too");
        failing.connected(endpoint(1));
        assert!(!failing.avoids(endpoint(1), at(1002)));
    }
}
