//! What the tests of pools share: limits, endpoints and times.

use std::net::SocketAddr;
use std::time::Duration;

use crate::time::Time;
use crate::upstream::endpoint::{Endpoint, EndpointId};
use crate::upstream::endpoint_set::EndpointSet;
use crate::upstream::model::PoolLimits;

pub(super) const LIMITS: PoolLimits = PoolLimits {
    max_idle: 4,
    idle_timeout: Duration::from_secs(60),
    max_lifetime: Duration::from_secs(3600),
};

fn address(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 80))
}

pub(super) fn endpoint(last: u8) -> EndpointId {
    address(last).into()
}

pub(super) fn set<const N: usize>(last: [u8; N]) -> EndpointSet {
    EndpointSet::new(last.map(|last| Endpoint { address: address(last), label: "".into(), weight: 1 }))
}

pub(super) fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}
