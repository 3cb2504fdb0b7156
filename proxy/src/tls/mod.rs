//! TLS, sans-IO.

pub mod hello;
