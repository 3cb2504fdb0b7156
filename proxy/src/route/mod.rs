//! Routing, sans-IO: an immutable table, host then longest path prefix.

pub mod matcher;
pub mod table;

pub use table::RouteTable;
