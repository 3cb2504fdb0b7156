//! Bytes on their way through the proxy: a loan of a receive buffer, an owned buffer, or static bytes.

/// A run of bytes. Dropping a loan gives its buffer back to the ring.
#[derive(Debug)]
#[derive(Default)]
pub struct Chunk(());

impl Chunk {
    /// Owned bytes.
    #[must_use]
    pub fn from_vec(_bytes: Vec<u8>) -> Self {
        unimplemented!()
    }

    /// Bytes that live for ever.
    #[must_use]
    pub fn from_static(_bytes: &'static [u8]) -> Self {
        unimplemented!()
    }

    /// Splits off the first `at` bytes (`at` <= len) and leaves the rest in `self`. No copy: both share the loan.
    pub fn split_to(&mut self, _at: usize) -> Self {
        unimplemented!()
    }

    /// Drops the first `n` bytes.
    pub fn advance(&mut self, _n: usize) {
        unimplemented!()
    }

    /// Keeps the first `n` bytes.
    pub fn truncate(&mut self, _n: usize) {
        unimplemented!()
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        unimplemented!()
    }
}
