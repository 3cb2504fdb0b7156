//! Bytes on their way through the proxy: a loan of a receive buffer, an owned buffer, or static bytes.

use std::rc::Rc;

use super::buffers::{Charge, Loan};

/// A run of bytes. Dropping a loan gives its buffer back to the ring.
pub struct Chunk {
    backing: Backing,
    start: usize,
    end: usize,
}

enum Backing {
    Static(&'static [u8]),
    /// Owned and not split yet, so that the common response head costs no second allocation.
    Owned(Vec<u8>),
    Shared(Rc<Copied>),
    Loan(Loan),
}

/// Owned bytes that several chunks may share, with what they are charged to.
pub(super) struct Copied {
    pub(super) bytes: Vec<u8>,
    pub(super) charge: Option<Charge>,
}

impl Chunk {
    /// Owned bytes.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let end = bytes.len();
        Self { backing: Backing::Owned(bytes), start: 0, end }
    }

    /// Bytes that live for ever.
    #[must_use]
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { backing: Backing::Static(bytes), start: 0, end: bytes.len() }
    }

    pub(super) fn from_loan(loan: Loan) -> Self {
        let end = loan.len();
        Self { backing: Backing::Loan(loan), start: 0, end }
    }

    pub(super) fn from_copied(copied: Copied) -> Self {
        let end = copied.bytes.len();
        Self { backing: Backing::Shared(Rc::new(copied)), start: 0, end }
    }

    /// Splits off the first `at` bytes (`at` <= len) and leaves the rest in `self`. No copy: both share the loan.
    ///
    /// # Panics
    /// When `at` > len.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        let middle = self.start + at;
        assert!(middle <= self.end, "split beyond the end");
        if let Backing::Owned(bytes) = &mut self.backing {
            let bytes = std::mem::take(bytes);
            self.backing = Backing::Shared(Rc::new(Copied { bytes, charge: None }));
        }
        let backing = match &self.backing {
            Backing::Static(bytes) => Backing::Static(bytes),
            Backing::Shared(shared) => Backing::Shared(Rc::clone(shared)),
            Backing::Loan(loan) => Backing::Loan(loan.clone()),
            Backing::Owned(_) => unreachable!("made shared above"),
        };
        let head = Self { backing, start: self.start, end: middle };
        self.start = middle;
        head
    }

    /// Drops the first `n` bytes (`n` <= len).
    ///
    /// # Panics
    /// When `n` > len.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len(), "advance beyond the end");
        self.start += n;
    }

    /// Keeps the first `n` bytes; nothing happens when there are fewer.
    pub fn truncate(&mut self, n: usize) {
        self.end = self.end.min(self.start + n);
    }

    /// Whether the bytes sit in a receive buffer of the ring.
    #[must_use]
    pub const fn is_loan(&self) -> bool {
        matches!(self.backing, Backing::Loan(_))
    }

    pub(super) const fn loan(&self) -> Option<&Loan> {
        match &self.backing {
            Backing::Loan(loan) => Some(loan),
            _ => None,
        }
    }

    /// Appends to copied-out bytes that nobody shares, so that a stream of one-byte segments does not become a million
    /// allocations. `false` when that is impossible; nothing was changed then.
    pub(super) fn try_append(&mut self, more: &[u8], bytes_max: usize) -> bool {
        let Backing::Shared(shared) = &mut self.backing else { return false };
        let Some(copied) = Rc::get_mut(shared) else { return false };
        if self.end != copied.bytes.len() || copied.bytes.len() + more.len() > bytes_max {
            return false;
        }
        let Some(charge) = &mut copied.charge else { return false };
        if !charge.grow(more.len()) {
            return false;
        }
        copied.bytes.extend_from_slice(more);
        self.end = copied.bytes.len();
        true
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::from_static(b"")
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = match &self.backing {
            Backing::Static(bytes) => bytes,
            Backing::Owned(bytes) => bytes.as_slice(),
            Backing::Shared(shared) => shared.bytes.as_slice(),
            Backing::Loan(loan) => loan.bytes(),
        };
        &bytes[self.start..self.end]
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Chunk {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from_vec(bytes)
    }
}

impl From<&'static [u8]> for Chunk {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from_static(bytes)
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let backing = match &self.backing {
            Backing::Static(_) => "static",
            Backing::Owned(_) => "owned",
            Backing::Shared(_) => "shared",
            Backing::Loan(_) => "loan",
        };
        f.debug_struct("Chunk").field("backing", &backing).field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::buffers::{Account, Pool};
    use super::*;

    #[test]
    fn a_loan_returns_when_its_last_piece_drops() {
        let pool = Pool::new(4, 64, 1 << 20).expect("memory");
        let account = Account::new(0, 0);
        let mut loan = pool.lend_filled(b"hello world").expect("a free buffer");
        loan.charge_to(&account);
        let mut chunk = Chunk::from_loan(loan);
        assert_eq!((pool.free(), account.outstanding()), (3, 64));
        let head = chunk.split_to(5);
        let space = chunk.split_to(1);
        assert_eq!((&*head, &*space, &*chunk), (&b"hello"[..], &b" "[..], &b"world"[..]));
        drop(head);
        drop(chunk);
        assert_eq!((pool.free(), account.outstanding()), (3, 64));
        drop(space);
        assert_eq!((pool.free(), account.outstanding()), (4, 0));
    }

    proptest! {
        #[test]
        fn any_splitting_keeps_the_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), cuts in prop::collection::vec((0usize..64, 0u8..3), 0..20), kind in 0u8..3) {
            let pool = Pool::new(2, 64, 1 << 20).expect("memory");
            let mut chunk = match kind {
                0 => Chunk::from_vec(bytes.clone()),
                1 => Chunk::from_static(Box::leak(bytes.clone().into_boxed_slice())),
                _ => Chunk::from_loan(pool.lend_filled(&bytes).expect("a free buffer")),
            };
            let mut model = bytes;
            for (at, what) in cuts {
                let at = at.min(model.len());
                match what {
                    0 => {
                        let head = chunk.split_to(at);
                        prop_assert_eq!(&*head, &model[..at]);
                        model.drain(..at);
                    }
                    1 => {
                        chunk.advance(at);
                        model.drain(..at);
                    }
                    _ => {
                        chunk.truncate(at);
                        model.truncate(at);
                    }
                }
                prop_assert_eq!(&*chunk, &model[..]);
            }
            drop(chunk);
            prop_assert_eq!(pool.free(), 2);
        }
    }
}
