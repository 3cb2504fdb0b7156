//! One downstream connection, from its first byte to its end, as straight-line async functions that await
//! only in-memory queues. `table` holds a row for each connection, with a future only within a request and
//! for a moment after it.
//!
//! `context` and `traffic` are the state that sessions share. `start` decides how a connection's next bytes
//! are read. The stages follow: `proxied`, `handshake`, `early`, `h1`, `passthrough`, `tunnel`. `record`
//! makes entries of the access log.
//!
//! `crowd` and `room` decide who waits and who gives way while there are too many of them.
//!
//! `table`, `seat` and `start` refer to each other: a row becomes a session, and a session a row again. The
//! stages refer to each other too, since each leads to the next.

pub mod context;
pub mod crowd;
pub(crate) mod early;
pub mod h1;
mod handshake;
mod passthrough;
mod proxied;
pub mod record;
pub mod room;
pub mod seat;
mod start;
pub mod table;
#[cfg(test)]
mod tests;
pub mod traffic;
mod tunnel;
