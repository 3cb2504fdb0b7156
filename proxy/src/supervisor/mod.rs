//! The supervisor: privileged, small, never reads a byte from a client.

pub mod plan;
pub mod topology;
