//! Listening sockets and admission.

pub mod admission;
pub mod sockets;
