//! An endpoint of an upstream, and who it is. Everything that outlives a set of endpoints follows identities,
//! never positions: a set may change between two attempts of one exchange. Sans-IO.

use std::net::SocketAddr;
use std::sync::Arc;

use super::model;

/// Who an endpoint is, within its upstream: its transport address. With the upstream's name it is the same on
/// every node, and after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(SocketAddr);

impl From<SocketAddr> for EndpointId {
    fn from(address: SocketAddr) -> Self {
        Self(address)
    }
}

/// One member of a set of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: SocketAddr,
    /// For logs and metrics: the address as the configuration has it.
    pub label: Arc<str>,
    /// Share of the requests, relative to the others'; 0: none.
    pub weight: u32,
}

impl Endpoint {
    /// Who it is.
    #[must_use]
    pub const fn id(&self) -> EndpointId {
        EndpointId(self.address)
    }
}

impl From<&model::Endpoint> for Endpoint {
    fn from(configured: &model::Endpoint) -> Self {
        let model::Endpoint { address, label, weight } = configured;
        Self { address: *address, label: Arc::clone(label), weight: *weight }
    }
}

/// Endpoints that failed one exchange. `upstream.retry.attempts` bounds how many, so a short list is enough.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    failed: Vec<EndpointId>,
}

impl Tried {
    /// Notes that this endpoint failed.
    pub fn insert(&mut self, endpoint: &Endpoint) {
        if !self.contains(endpoint) {
            self.failed.push(endpoint.id());
        }
    }

    /// Whether it failed.
    #[must_use]
    pub fn contains(&self, endpoint: &Endpoint) -> bool {
        self.failed.iter().any(|failed| *failed == endpoint.id())
    }

    /// How many failed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.failed.len()
    }

    /// Whether none did.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.failed.is_empty()
    }

    /// Forgets all: if every endpoint was tried and attempts are left, the next attempt may take any.
    pub fn clear(&mut self) {
        self.failed.clear();
    }
}
