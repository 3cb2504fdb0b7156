//! Sessions that stay with the listener instead of travelling in tickets. A session of TLS 1.3 is taken out
//! when it is resumed, so that early data is accepted once (RFC 8446 §8.1). A session of 1.2 stays. Each has
//! an age and a size, since it keeps a client's certificates.

use std::fmt;
use std::sync::Arc;

use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};
use rustls::time_provider::TimeProvider;

use super::client_auth;

/// Held at once, about; the oldest leave. One has 300 bytes beside its client's certificates.
const SESSIONS_MAX: usize = 16_384;
/// Caches that they are in, by a byte of their random names. A cache of rustls searches all its sessions to
/// take one out, and has a lock.
const SHELVES: usize = 64;
/// The longest state that is kept: a client decides how many certificates it shows.
const STATE_BYTES_MAX: usize = 4 << 10;
/// Seconds that each is good for, as rustls tells clients of 1.3.
const LIFETIME: u64 = 24 * 3600;

/// See the module.
pub struct StoredSessions {
    clock: Arc<dyn TimeProvider>,
    shelves: Vec<Arc<ServerSessionMemoryCache>>,
    /// When none is good any more, since the lists of revoked certificates have ended.
    ends_at: Option<i64>,
}

impl StoredSessions {
    /// None yet.
    #[must_use]
    pub fn new(clock: Arc<dyn TimeProvider>, ends_at: Option<i64>) -> Self {
        Self {
            clock,
            ends_at,
            shelves: (0..SHELVES).map(|_| ServerSessionMemoryCache::new(SESSIONS_MAX / SHELVES)).collect(),
        }
    }

    fn now(&self) -> Option<u64> {
        self.clock.current_time().map(|time| time.as_secs())
    }

    fn shelf(&self, id: &[u8]) -> &ServerSessionMemoryCache {
        &self.shelves[usize::from(id.last().copied().unwrap_or_default()) % SHELVES]
    }

    /// The session's own bytes, if it is good still.
    fn good(&self, mut kept: Vec<u8>) -> Option<Vec<u8>> {
        let made_at = u64::from_be_bytes(*kept.last_chunk()?);
        kept.truncate(kept.len() - size_of::<u64>());
        // A clock that was set back makes none last.
        let age = self.now()?.checked_sub(made_at)?;
        (age <= LIFETIME && !client_auth::is_over(self.ends_at)).then_some(kept)
    }
}

impl StoresServerSessions for StoredSessions {
    fn put(&self, id: Vec<u8>, mut state: Vec<u8>) -> bool {
        let Some(made_at) = self.now().filter(|_| state.len() <= STATE_BYTES_MAX) else { return false };
        state.extend(made_at.to_be_bytes());
        self.shelf(&id).put(id, state)
    }

    fn get(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.good(self.shelf(id).get(id)?)
    }

    fn take(&self, id: &[u8]) -> Option<Vec<u8>> {
        self.good(self.shelf(id).take(id)?)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for StoredSessions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StoredSessions")
    }
}

#[cfg(test)]
mod tests;
