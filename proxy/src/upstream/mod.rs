//! Upstreams: endpoints, balancing, pools of connections, and connecting. To exchanges they are leases.
//!
//! `registry` has the upstreams of one worker, `group` is one of them. An exchange's `attempts` ask its
//! balancer (`balance`) for an endpoint, and for a connection first `parked`, then `connect`. `h1` carries
//! the exchange. `pin` keeps connections that belong to one client.
//!
//! The endpoints of a group are a set of their own (`endpoint_set`), which may change while the configuration
//! stays; each is known by its identity (`endpoint`).
//!
//! `endpoint`, `endpoint_set`, `balance`, `pool` and `sources` are sans-IO; the other files join them to the
//! engine.

pub mod attempts;
pub mod balance;
mod connect;
pub mod connection;
pub mod endpoint;
pub mod endpoint_set;
pub mod group;
pub mod h1;
mod handshake;
pub mod model;
mod parked;
pub mod pin;
pub mod pool;
pub mod registry;
mod sources;
mod tls_sessions;
mod warning;
