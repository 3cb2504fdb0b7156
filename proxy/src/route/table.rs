//! The compiled routes: immutable, built once per snapshot, read by every worker without a lock.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::config::model;

/// Routes by host. Only those for any host are built.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// For hosts that no route names.
    pub(super) any_host: PathTable,
}

impl RouteTable {
    /// Compiles a configuration's routes; of equal prefixes the first counts.
    #[must_use]
    pub fn new(routes: &[Arc<model::Route>]) -> Self {
        Self { any_host: PathTable::new(routes.to_vec()) }
    }
}

/// Routes of one host by path prefix.
#[derive(Clone, Debug)]
pub(super) struct PathTable {
    /// One for each length that a prefix has, longest first. A lookup costs one binary search a length: what a client sends
    /// cannot make it cost more, as cutting a path of a thousand slashes at each of them would.
    pub(super) groups: Vec<PrefixGroup>,
}

/// Routes whose prefixes have the same length.
#[derive(Clone, Debug)]
pub(super) struct PrefixGroup {
    /// Bytes of each prefix.
    pub(super) length: usize,
    /// By prefix, in byte order, each once.
    pub(super) routes: Vec<Arc<model::Route>>,
}

impl PathTable {
    fn new(mut routes: Vec<Arc<model::Route>>) -> Self {
        // Stable: of equal prefixes the first stays first.
        routes.sort_by(|a, b| {
            let key = |route: &model::Route| Reverse(route.path_prefix.len());
            key(a).cmp(&key(b)).then_with(|| a.path_prefix.cmp(&b.path_prefix))
        });
        routes.dedup_by(|later, earlier| later.path_prefix == earlier.path_prefix);
        let groups = routes.chunk_by(|a, b| a.path_prefix.len() == b.path_prefix.len());
        let groups = groups.map(|routes| PrefixGroup { length: routes[0].path_prefix.len(), routes: routes.to_vec() });
        Self { groups: groups.collect() }
    }
}
