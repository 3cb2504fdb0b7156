//! Listeners: their configuration, their sockets, and whom they admit.

pub mod admission;
mod defer;
pub mod model;
pub mod sockets;
pub mod sources;

pub use model::{Limits, Listener, Protocol, Timeouts};
