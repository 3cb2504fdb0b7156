//! Listening sockets and admission.

pub mod admission;
