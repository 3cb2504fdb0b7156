//! What an exchange remembers about the endpoints of its upstream, sans-IO. An endpoint is named by its index
//! in the snapshot that the exchange holds, and by its address everywhere that outlives a snapshot (pools).

/// Endpoints that failed this exchange, by index. Holds as many as `upstream.retry.attempts` allows, so a
/// short list is enough.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    indices: Vec<usize>,
}

impl Tried {
    /// Notes that this endpoint failed.
    pub fn insert(&mut self, index: usize) {
        if !self.contains(index) {
            self.indices.push(index);
        }
    }

    /// Whether it failed.
    #[must_use]
    pub fn contains(&self, index: usize) -> bool {
        self.indices.contains(&index)
    }

    /// How many failed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether none did.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Forgets all: when every endpoint was tried and attempts are left, the next attempt may take any.
    pub fn clear(&mut self) {
        self.indices.clear();
    }
}
