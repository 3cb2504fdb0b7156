//! Listeners: their configuration, their sockets, and the admission of their clients.

pub mod admission;
mod defer;
pub mod model;
pub mod sockets;
pub mod sources;

pub use model::{Limits, Listener, Protocol, Timeouts};
