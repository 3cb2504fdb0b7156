//! The compiled routes: immutable, built once per snapshot, read by every worker without a lock.

use std::cmp::Reverse;
use std::sync::Arc;

use crate::config::model;

/// Routes in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct RouteTable {
    /// Longest prefix first; of equal length in byte order.
    any_host: Vec<Arc<model::Route>>,
}

impl RouteTable {
    /// Compiles a configuration's routes.
    #[must_use]
    pub fn new(routes: &[Arc<model::Route>]) -> Self {
        let mut any_host = routes.to_vec();
        any_host.sort_by_key(|route| Reverse(route.path_prefix.len()));
        Self { any_host }
    }

    /// Routes for hosts that no route names, longest prefix first.
    pub(super) fn any_host(&self) -> &[Arc<model::Route>] {
        &self.any_host
    }
}
