//! Routing, sans-IO: an immutable table, host, then path.

pub mod host;
pub mod matcher;
pub mod table;

pub use host::Host;
pub use table::RouteTable;
