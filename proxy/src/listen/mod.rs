//! Listeners: their configuration, their sockets, and the admission of their clients.

pub mod admission;
pub mod capacity;
mod defer;
pub mod model;
pub mod sockets;
pub mod sources;

pub use model::{Limits, Listener, Protocol, Timeouts};
