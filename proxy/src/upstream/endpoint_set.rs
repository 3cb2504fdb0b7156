//! The endpoints of one upstream at one time. A set is published to workers apart from the configuration, so
//! that it can change while the configuration stays. Balancer, pools and TLS sessions follow it, each
//! endpoint by its identity. Today the configuration alone fills sets. Sans-IO.

use std::collections::HashSet;

use super::endpoint::{Endpoint, EndpointId};
use super::model;

/// See the module. Holds each identity once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSet {
    endpoints: Vec<Endpoint>,
    ids: HashSet<EndpointId>,
}

impl EndpointSet {
    /// These endpoints in their order. Of several with one identity the first counts.
    #[must_use]
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        let mut ids = HashSet::new();
        let endpoints = endpoints.into_iter().filter(|endpoint| ids.insert(endpoint.id())).collect();
        Self { endpoints, ids }
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter()
    }

    /// Whether this endpoint is among them.
    #[must_use]
    pub fn contains(&self, endpoint: EndpointId) -> bool {
        self.ids.contains(&endpoint)
    }
}

impl From<&model::Upstream> for EndpointSet {
    /// As configured.
    fn from(config: &model::Upstream) -> Self {
        Self::new(config.endpoints.iter().map(Endpoint::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_in_a_set_once() {
        let endpoint = |last, weight| Endpoint {
            address: ([10, 0, 0, last], 80).into(),
            label: format!("10.0.0.{last}:80").into(),
            weight,
        };
        let set = EndpointSet::new([endpoint(1, 1), endpoint(2, 1), endpoint(1, 9)]);
        let held: Vec<_> = set.iter().map(|endpoint| (&*endpoint.label, endpoint.weight)).collect();
        assert_eq!(held, [("10.0.0.1:80", 1), ("10.0.0.2:80", 1)]);
        assert!(set.contains(endpoint(2, 0).id()) && !set.contains(endpoint(3, 0).id()));
        assert_eq!(set, EndpointSet::new([endpoint(1, 1), endpoint(2, 1)]));
        assert_ne!(set, EndpointSet::new([endpoint(1, 2), endpoint(2, 1)]));
    }
}
