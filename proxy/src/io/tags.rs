//! The meaning to a worker of the tags of listening sockets, parked streams and timers: `Tag::kind`.

use std::num::NonZero;

/// A parked downstream connection, and its timer; the key is a `SessionKey`.
pub const SESSION: NonZero<u32> = NonZero::<u32>::MIN;
/// An idle pooled connection; the key is the upstream's id (16 bits) and a `PoolKey` (48 bits).
pub const POOLED: NonZero<u32> = SESSION.saturating_add(1);
/// A pool's timer; the key is the upstream's id.
pub const POOL_TIMER: NonZero<u32> = POOLED.saturating_add(1);
/// The drain's deadline.
pub const DRAIN: NonZero<u32> = POOL_TIMER.saturating_add(1);
/// The time at which a handshake has to give way to others.
pub const CROWD: NonZero<u32> = LISTENER.saturating_add(1);
/// A listening socket; the key is a `ListenerId`.
pub const LISTENER: NonZero<u32> = DRAIN.saturating_add(1);
