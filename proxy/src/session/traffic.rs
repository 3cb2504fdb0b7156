//! The part of a configuration that decides about traffic: what workers serve by. It is replaced as a whole.

use std::sync::Arc;

use crate::listen::Listener;
use crate::route::RouteTable;
use crate::upstream::model::Upstream;

/// See the module. Cheap to clone: its parts are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// In the order of the configuration, which sockets know them by.
    pub listeners: Vec<Arc<Listener>>,
    /// Compiled.
    pub routes: RouteTable,
    /// By the index that routes and listeners use.
    pub upstreams: Vec<Arc<Upstream>>,
}

impl Traffic {
    /// The listener of this name, if there is one still.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Arc<Listener>> {
        self.listeners.iter().find(|listener| listener.name == name)
    }
}
