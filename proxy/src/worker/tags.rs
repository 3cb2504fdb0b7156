//! What the tags of parked streams and timers mean to a worker: `Tag::kind`.

/// A parked downstream connection, and its timer; the key is a `SessionKey`.
pub const SESSION: u32 = 1;
/// An idle pooled connection; the key is the upstream's id (16 bits) and an `IdleKey` (48 bits).
pub const POOL_SLOT: u32 = 2;
/// A pool's timer; the key is the upstream's id.
pub const POOL_TIMER: u32 = 3;
/// The drain's deadline.
pub const DRAIN: u32 = 4;
