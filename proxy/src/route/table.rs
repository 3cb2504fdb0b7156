//! The compiled routes: immutable, made once for each configuration, read by every worker without a lock.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::sync::Arc;

use super::host::Host;
use super::model::{self, RoutePath};

/// All routes of a configuration. Cheap to clone: workers and processes share the tables.
#[derive(Clone, Default)]
pub struct RouteTable(pub(super) Arc<Tables>);

#[derive(Default)]
pub(super) struct Tables {
    routes: Vec<Arc<model::Route>>,
    /// Routes that name no listener.
    pub(super) common: HostTable,
    /// Routes that name listeners, by the name.
    pub(super) own: HashMap<Box<str>, HostTable>,
}

impl RouteTable {
    /// Compiles routes; of two for the same requests the first counts.
    #[must_use]
    pub fn new(routes: Vec<Arc<model::Route>>) -> Self {
        let mut common = HostTable::default();
        let mut own: HashMap<Box<str>, HostTable> = HashMap::new();
        for route in &routes {
            if route.listeners.is_empty() {
                common.insert(route);
            }
            for name in &route.listeners {
                own.entry(name.as_str().into()).or_default().insert(route);
            }
        }
        common.finish();
        own.values_mut().for_each(HostTable::finish);
        Self(Arc::new(Tables { routes, common, own }))
    }

    /// The routes it was made of, in file order.
    #[must_use]
    pub fn routes(&self) -> &[Arc<model::Route>] {
        &self.0.routes
    }
}

impl std::fmt::Debug for RouteTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.routes.fmt(formatter)
    }
}

impl PartialEq for RouteTable {
    fn eq(&self, other: &Self) -> bool {
        self.0.routes == other.0.routes
    }
}

/// Routes by host.
#[derive(Clone, Debug, Default)]
pub(super) struct HostTable {
    pub(super) names: HashMap<Box<str>, PathTable>,
    pub(super) addresses: HashMap<Ipv6Addr, PathTable>,
    /// By the name behind `*.`.
    pub(super) under: HashMap<Box<str>, PathTable>,
    /// Bit n: a wildcard with n labels behind `*.` is there. A name has at most 127.
    pub(super) under_labels: u128,
    /// For hosts that no route names.
    pub(super) any: PathTable,
}

impl HostTable {
    fn insert(&mut self, route: &Arc<model::Route>) {
        if route.hosts.is_empty() {
            self.any.insert(route);
        }
        for host in &route.hosts {
            let paths = match host {
                Host::Name(name) => self.names.entry(name.clone()).or_default(),
                Host::Ipv6(address) => self.addresses.entry(*address).or_default(),
                Host::Under(name) => {
                    let labels = name.bytes().filter(|&byte| byte == b'.').count() + 1;
                    self.under_labels |= 1 << labels.min(127);
                    self.under.entry(name.clone()).or_default()
                }
            };
            paths.insert(route);
        }
    }

    fn finish(&mut self) {
        let tables =
            self.names.values_mut().chain(self.addresses.values_mut()).chain(self.under.values_mut());
        tables.chain([&mut self.any]).for_each(PathTable::finish);
    }
}

/// Routes of one host, by path.
#[derive(Clone, Debug, Default)]
pub(super) struct PathTable {
    /// In byte order, each path once.
    pub(super) entries: Vec<Entry>,
}

/// One path, and the routes that name it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) path: Box<str>,
    pub(super) exact: Option<Arc<model::Route>>,
    pub(super) prefix: Option<Arc<model::Route>>,
    /// The entry with the longest prefix route whose path begins this one's.
    pub(super) parent: Option<u32>,
}

impl PathTable {
    fn insert(&mut self, route: &Arc<model::Route>) {
        let (path, exact, prefix) = match &route.path {
            RoutePath::Exact(path) => (path, Some(Arc::clone(route)), None),
            RoutePath::Prefix(path) => (path, None, Some(Arc::clone(route))),
        };
        self.entries.push(Entry { path: path.clone(), exact, prefix, parent: None });
    }

    /// Sorts the entries, joins entries with the same path, and finds the parents.
    fn finish(&mut self) {
        // Stable: of equal paths the first stays first.
        self.entries.sort_by(|a, b| a.path.cmp(&b.path));
        self.entries.dedup_by(|later, first| {
            let same = later.path == first.path;
            if same {
                first.exact = first.exact.take().or(later.exact.take());
                first.prefix = first.prefix.take().or(later.prefix.take());
            }
            same
        });
        self.entries.shrink_to_fit();
        // In byte order a prefix of a path stands before it, and only paths with that prefix stand between.
        let mut open: Vec<u32> = Vec::new();
        for index in 0..self.entries.len() {
            while let Some(&last) = open.last()
                && !self.entries[index].path.starts_with(&*self.entries[last as usize].path)
            {
                open.pop();
            }
            self.entries[index].parent = open.last().copied();
            if self.entries[index].prefix.is_some() {
                open.push(index as u32);
            }
        }
    }
}
