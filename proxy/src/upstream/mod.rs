//! Upstreams: endpoints, balancing, pools of connections, and connecting. To exchanges they are leases.
//!
//! `endpoint`, `balance` and `pool` are sans-IO; `connection`, `h1`, `attempts` and `connector` join them to
//! the engine.

pub mod attempts;
pub mod balance;
pub mod connection;
pub mod connector;
pub mod endpoint;
pub mod h1;
pub mod model;
pub mod pool;
pub mod registry;
mod secure;
