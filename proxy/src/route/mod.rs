//! Routing, sans-IO: an immutable table, host, then path.

pub mod host;
pub mod matcher;
pub mod model;
pub mod table;

pub use host::Host;
pub use model::{Action, Redirect, Respond, Route, RoutePath};
pub use table::RouteTable;
