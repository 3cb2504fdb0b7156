//! Listening sockets and admission.

pub mod acceptor;
pub mod admission;
mod defer;
pub mod sockets;
pub mod sources;
