//! The part of a configuration that workers serve by. It is replaced as a whole.

use std::sync::Arc;

use crate::listen::Listeners;
use crate::route::RouteTable;
use crate::upstream::model::Upstream;

/// See the module. Cheap to clone: its parts are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// By the numbers that sockets and connections know them by.
    pub listeners: Listeners,
    /// The compiled routing table.
    pub routes: RouteTable,
    /// By the index that routes and listeners use.
    pub upstreams: Vec<Arc<Upstream>>,
}
