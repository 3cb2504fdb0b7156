//! The local addresses that the connections of one upstream are made from, and which of them have ports left.
//! Sans-IO.
//!
//! A connection has a local port for itself among those to the same endpoint from the same address. When all
//! are taken, the kernel says so after a search of the whole range, in a loop turn of the worker. So a pair
//! of endpoint and address that had none left rests for a while, which grows until a connect succeeds.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::endpoint::EndpointId;
use super::endpoint_set::EndpointSet;
use crate::time::Time;

/// How long a pair rests the first time.
const REST_MIN: Duration = Duration::from_millis(100);
/// How long it rests at most.
const REST_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Sources {
    addresses: Vec<IpAddr>,
    /// The turn.
    next: usize,
    resting: HashMap<(EndpointId, Option<IpAddr>), Rest>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Time,
    duration: Duration,
}

/// Every address rests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoneLeft;

impl Sources {
    /// Of these addresses, or of the kernel's choice if there are none.
    pub(super) fn new(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.to_vec(), next: 0, resting: HashMap::new() }
    }

    /// Takes new addresses.
    pub(super) fn configure(&mut self, addresses: &[IpAddr]) {
        if self.addresses != addresses {
            *self = Self::new(addresses);
        }
    }

    /// Forgets endpoints that are gone.
    pub(super) fn follow(&mut self, endpoints: &EndpointSet) {
        self.resting.retain(|(endpoint, _), _| endpoints.contains(*endpoint));
    }

    /// The address for the next connection; `None`: the kernel chooses.
    pub(super) fn pick(&mut self, endpoint: SocketAddr, now: Time) -> Result<Option<IpAddr>, NoneLeft> {
        if self.addresses.is_empty() {
            return if self.rests(endpoint, None, now) { Err(NoneLeft) } else { Ok(None) };
        }
        let count = self.addresses.len();
        for step in 0..count {
            let position = (self.next + step) % count;
            let address = self.addresses[position];
            if address.is_ipv4() == endpoint.is_ipv4() && !self.rests(endpoint, Some(address), now) {
                self.next = (position + 1) % count;
                return Ok(Some(address));
            }
        }
        Err(NoneLeft)
    }

    /// This address had no port left for this endpoint, or cannot be used.
    pub(super) fn failed(&mut self, endpoint: SocketAddr, address: Option<IpAddr>, now: Time) {
        let key = (EndpointId::from(endpoint), address);
        let duration = self.resting.get(&key).map_or(REST_MIN, |rest| (rest.duration * 2).min(REST_MAX));
        self.resting.insert(key, Rest { until: now + duration, duration });
    }

    /// A connection was made.
    pub(super) fn connected(&mut self, endpoint: SocketAddr, address: Option<IpAddr>) {
        if !self.resting.is_empty() {
            self.resting.remove(&(EndpointId::from(endpoint), address));
        }
    }

    fn rests(&self, endpoint: SocketAddr, address: Option<IpAddr>, now: Time) -> bool {
        let rests = |rest: &Rest| now < rest.until;
        !self.resting.is_empty()
            && self.resting.get(&(EndpointId::from(endpoint), address)).is_some_and(rests)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_nanos(ms * 1_000_000)
    }

    fn endpoint(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 80).into()
    }

    #[test]
    fn addresses_take_turns_each_for_its_family() {
        let addresses: Vec<IpAddr> =
            ["192.0.2.1", "2001:db8::1", "192.0.2.2"].map(|text| text.parse().expect("address")).to_vec();
        let mut sources = Sources::new(&addresses);
        let picked: Vec<_> = (0..4).map(|_| sources.pick(endpoint(1), at(0))).collect();
        let [first, v6, second] = [0, 1, 2].map(|index| Ok(Some(addresses[index])));
        assert_eq!(picked, [first, second, first, second]);
        assert_eq!(sources.pick("[2001:db8::9]:80".parse().expect("address"), at(0)), v6);
        sources.configure(&[]);
        assert_eq!(sources.pick(endpoint(1), at(0)), Ok(None));
    }

    #[test]
    fn an_address_without_ports_rests_longer_each_time_and_for_its_endpoint_alone() {
        let mut sources = Sources::new(&[]);
        let mut now = 0;
        for rest in [100, 200, 400, 800, 1000, 1000] {
            assert_eq!(sources.pick(endpoint(1), at(now)), Ok(None));
            sources.failed(endpoint(1), None, at(now));
            assert_eq!(sources.pick(endpoint(1), at(now + rest - 1)), Err(NoneLeft));
            assert_eq!(sources.pick(endpoint(2), at(now)), Ok(None));
            now += rest;
        }
        sources.connected(endpoint(1), None);
        sources.failed(endpoint(1), None, at(now));
        assert_eq!(sources.pick(endpoint(1), at(now + 100)), Ok(None), "it begins anew");
    }

    #[test]
    fn another_address_stands_in() {
        let [first, second] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let mut sources = Sources::new(&[first, second]);
        sources.failed(endpoint(1), Some(first), at(0));
        assert_eq!(sources.pick(endpoint(1), at(0)), Ok(Some(second)));
        assert_eq!(sources.pick(endpoint(1), at(0)), Ok(Some(second)));
        sources.failed(endpoint(1), Some(second), at(50));
        assert_eq!(sources.pick(endpoint(1), at(50)), Err(NoneLeft));
        assert_eq!(sources.pick(endpoint(1), at(100)), Ok(Some(first)));
        sources.follow(&EndpointSet::default());
        assert!(sources.resting.is_empty());
    }
}
