//! Listening sockets and admission.

pub mod acceptor;
pub mod admission;
pub mod sockets;
