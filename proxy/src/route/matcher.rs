//! Finds a request's route: the most specific host first, then within it the exact path or the longest
//! prefix.
//!
//! The host decides alone. If its routes have none for the path, the routes of a wildcard or of any host do
//! not stand in. So a host's requests never reach a route that was meant for others.
//!
//! The cost of a lookup is bounded by the configuration: one hash of the host and one for each count of
//! labels that a wildcard has, one binary search for the path, and a step for each prefix that begins
//! another.

use std::cmp::Ordering;
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::model;
use super::table::{HostTable, PathTable, RouteTable};
use crate::http::authority;

/// How specific a host is that a route names: any, a wildcard by its length, exactly this one.
type HostRank = usize;

/// How specific a path is: a prefix by its length, exactly this one.
type PathRank = usize;

const EXACT: usize = usize::MAX;

impl RouteTable {
    /// The route for a request that came in by `listener`; `path` as it is forwarded, without the query.
    /// `None`: 404.
    #[must_use]
    pub fn find(&self, listener: &str, authority: &str, path: &str) -> Option<&Arc<model::Route>> {
        let own = if self.0.own.is_empty() { None } else { self.0.own.get(listener) };
        let Some(own) = own.and_then(|own| own.paths(authority)) else {
            return self.0.common.paths(authority)?.1.find(path).map(|(_, route)| route);
        };
        let Some(common) = self.0.common.paths(authority) else {
            return own.1.find(path).map(|(_, route)| route);
        };
        match own.0.cmp(&common.0) {
            Ordering::Greater => own.1.find(path).map(|(_, route)| route),
            Ordering::Less => common.1.find(path).map(|(_, route)| route),
            // The same host: of two routes for the same path, the route that names the listener.
            Ordering::Equal => match (own.1.find(path), common.1.find(path)) {
                (Some((own, route)), Some((common, _))) if own >= common => Some(route),
                (own, common) => common.or(own).map(|(_, route)| route),
            },
        }
    }

    /// The route for a connection over TLS that came in by `listener` and names this server, in lower case.
    /// Of the routes that name the listener, it is the route with the most specific host.
    #[must_use]
    pub fn find_by_name(&self, listener: &str, server_name: &str) -> Option<&Arc<model::Route>> {
        self.0.own.get(listener)?.paths(server_name)?.1.find("/").map(|(_, route)| route)
    }
}

impl HostTable {
    /// The paths of the most specific host that has any.
    fn paths(&self, authority: &str) -> Option<(HostRank, &PathTable)> {
        let any = || (!self.any.entries.is_empty()).then_some((0, &self.any));
        if self.names.is_empty() && self.under.is_empty() && self.addresses.is_empty() {
            return any();
        }
        let host = authority::host(authority);
        if let Some(address) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let found = address.parse::<Ipv6Addr>().ok().and_then(|address| self.addresses.get(&address));
            return found.map(|paths| (EXACT, paths)).or_else(any);
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        if let Some(paths) = self.names.get(host) {
            return Some((EXACT, paths));
        }
        self.longest_wildcard(host).or_else(any)
    }

    /// Cuts the host at its labels from the end, as far as wildcards go.
    fn longest_wildcard(&self, host: &str) -> Option<(HostRank, &PathTable)> {
        let mut longest = None;
        let dots = memchr::memrchr_iter(b'.', host.as_bytes()).take_while(|&dot| dot > 0);
        for (labels, dot) in (1..128).zip(dots) {
            if self.under_labels >> labels == 0 {
                break;
            }
            if self.under_labels >> labels & 1 != 0
                && let Some(paths) = self.under.get(&host[dot + 1..])
            {
                longest = Some((host.len() - dot, paths));
            }
        }
        longest
    }
}

impl PathTable {
    /// The route with exactly this path, else the longest prefix that ends at a segment boundary. `/` begins
    /// every path, the `*` of OPTIONS too.
    fn find(&self, path: &str) -> Option<(PathRank, &Arc<model::Route>)> {
        let first = self.entries.first()?;
        if let (1, "/", Some(root)) = (self.entries.len(), &*first.path, &first.prefix) {
            if path == "/"
                && let Some(exact) = &first.exact
            {
                return Some((EXACT, exact));
            }
            return Some((1, root));
        }
        if path == "*" {
            return first.prefix.as_ref().filter(|_| &*first.path == "/").map(|route| (1, route));
        }
        let (mut candidate, common) = match self.entries.binary_search_by(|entry| (*entry.path).cmp(path)) {
            Ok(same) => {
                let entry = &self.entries[same];
                if let Some(route) = &entry.exact {
                    return Some((EXACT, route));
                }
                (Some(same), path.len())
            }
            // A prefix of the path also begins the entry before the path's place: it is that entry or one of
            // its parents.
            Err(0) => return None,
            Err(place) => (Some(place - 1), common_length(&self.entries[place - 1].path, path)),
        };
        while let Some(index) = candidate {
            let entry = &self.entries[index];
            if let Some(route) = &entry.prefix
                && entry.path.len() <= common
                && ends_segment(&entry.path, path)
            {
                return Some((entry.path.len(), route));
            }
            candidate = entry.parent.map(|parent| parent as usize);
        }
        None
    }
}

/// How many bytes both begin with.
fn common_length(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// Whether `prefix`, which begins `path`, ends at one of its segments' ends.
fn ends_segment(prefix: &str, path: &str) -> bool {
    prefix.ends_with('/') || path.len() == prefix.len() || path.as_bytes()[prefix.len()] == b'/'
}

#[cfg(test)]
mod tests;
