//! One downstream connection, from its first byte to its end: straight-line async functions that await only
//! in-memory queues. Between requests a connection is a row of the table and no future.
//!
//! `table`, `seat` and `start` hold each other: a row becomes a session and a session a row again. So do the
//! stages that a connection goes through (`proxied`, `handshake`, `h1`, `tunnel`).

pub mod context;
pub(crate) mod early;
pub mod h1;
mod handshake;
mod passthrough;
mod proxied;
pub mod record;
pub mod seat;
mod start;
pub mod table;
#[cfg(test)]
mod tests;
pub mod traffic;
mod tunnel;
