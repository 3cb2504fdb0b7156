//! Upstreams: endpoints, balancing, pools of exchange slots, and connecting.
//!
//! `endpoint`, `balance` and `pool` are sans-IO; `slot`, `h1` and `connector` join them to the engine.

pub mod balance;
pub mod endpoint;
pub mod pool;
