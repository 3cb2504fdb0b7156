//! Finds a request's route: host, then the longest path prefix that ends at a segment boundary.

use std::sync::Arc;

use super::table::RouteTable;
use crate::config::model;

impl RouteTable {
    /// The route for a request; `path` as it is forwarded, without the query. `None`: 404.
    #[must_use]
    pub fn find(&self, _authority: &str, path: &str) -> Option<&Arc<model::Route>> {
        self.any_host().iter().find(|route| prefix_matches(&route.path_prefix, path))
    }
}

/// Whether `prefix` covers `path` up to a segment boundary. `/` covers every path, the `*` of OPTIONS too.
fn prefix_matches(prefix: &str, path: &str) -> bool {
    if prefix == "/" {
        return true;
    }
    match path.strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
        None => false,
    }
}
