//! The part of a configuration that workers serve by. It is replaced as a whole.

use std::sync::Arc;

use crate::listen::Listener;
use crate::route::RouteTable;
use crate::upstream::model::Upstream;

/// See the module. Cheap to clone: its parts are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// In the order of the configuration: a listening socket knows its listener by this index.
    pub listeners: Vec<Arc<Listener>>,
    /// The compiled routing table.
    pub routes: RouteTable,
    /// By the index that routes and listeners use.
    pub upstreams: Vec<Arc<Upstream>>,
}

impl Traffic {
    /// The listener of this name, if it still exists.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.name == name)
    }
}
