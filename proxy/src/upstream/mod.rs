//! Upstreams: endpoints, balancing, pools of exchange slots, and connecting.
//!
//! `endpoint`, `balance` and `pool` are sans-IO; `slot`, `h1` and `connector` join them to the engine.

pub mod balance;
pub mod connector;
pub mod endpoint;
pub mod h1;
pub mod pool;
mod secure;
pub mod slot;
