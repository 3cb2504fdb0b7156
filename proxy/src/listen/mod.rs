//! Listeners: their configuration, their identities and sockets, and the admission of their clients.

pub mod admission;
pub mod capacity;
mod defer;
pub mod identity;
pub mod model;
mod set;
pub mod sockets;
pub mod sources;

pub use identity::{ListenKey, ListenerId, ListenerIds, Transport};
pub use model::{Listener, ListenerLimits, Protocol, Reading, Timeouts};
pub use set::{Listeners, Unnumbered};
