//! Bytes on their way through the proxy: a loan of a receive buffer, an owned buffer, or static bytes. A
//! chunk keeps the bytes' address beside their owner, since they are looked at many times for each request.
#![allow(unsafe_code, reason = "a pointer into what the chunk itself keeps alive")]

use std::cell::Cell;
use std::ptr::NonNull;
use std::rc::Rc;

use super::buffers::{Account, BufferPool, Charge, Loan};

/// A run of bytes. Dropping a loan gives its buffer back to the ring.
pub struct Chunk {
    /// The first of `len` initialised bytes within `backing`, which neither moves nor changes them while the
    /// chunk lives.
    data: NonNull<u8>,
    len: usize,
    backing: Backing,
}

enum Backing {
    Static,
    /// Owned and not split yet, so that the common response head costs no second allocation.
    Owned(Vec<u8>),
    Shared(Rc<Copied>),
    Loan(Loan),
}

/// Owned bytes that several chunks may share.
pub(super) struct Copied {
    bytes: Vec<u8>,
    hold: Cell<Hold>,
}

/// How owned bytes are counted.
#[derive(Default)]
pub(super) enum Hold {
    /// Nothing.
    #[default]
    Nothing,
    /// They are held against the budget.
    Charge(Charge),
    /// For want of budget, the chunks they were made of stay, and go on counting by the buffers or budget
    /// they hold.
    Sources(Rc<Vec<Chunk>>),
}

impl Copied {
    fn with_hold<R>(&self, look: impl FnOnce(&Hold) -> R) -> R {
        let hold = self.hold.take();
        let seen = look(&hold);
        self.hold.set(hold);
        seen
    }
}

impl Hold {
    fn account(&self) -> Option<Account> {
        match self {
            Self::Nothing => None,
            Self::Charge(charge) => charge.account(),
            Self::Sources(sources) => sources.first().and_then(Chunk::account),
        }
    }
}

impl Chunk {
    fn new(bytes: NonNull<[u8]>, backing: Backing) -> Self {
        Self { data: bytes.cast(), len: bytes.len(), backing }
    }

    /// Owned bytes.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        // A vector's bytes stay where they are when it moves.
        Self::new(NonNull::from(bytes.as_slice()), Backing::Owned(bytes))
    }

    /// Bytes that live for ever.
    #[must_use]
    pub const fn from_static(bytes: &'static [u8]) -> Self {
        Self { data: NonNull::from_ref(bytes).cast(), len: bytes.len(), backing: Backing::Static }
    }

    pub(super) fn from_loan(loan: Loan) -> Self {
        Self::new(NonNull::from(loan.bytes()), Backing::Loan(loan))
    }

    pub(super) fn from_copy(bytes: Vec<u8>, hold: Hold) -> Self {
        let data = NonNull::from(bytes.as_slice());
        Self::new(data, Backing::Shared(Rc::new(Copied { bytes, hold: Cell::new(hold) })))
    }

    /// Splits off the first `at` bytes (`at` <= len) and leaves the rest in `self`. No copy: both share the
    /// loan.
    ///
    /// # Panics
    /// When `at` > len.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        assert!(at <= self.len, "split beyond the end");
        if let Backing::Owned(bytes) = &mut self.backing {
            let bytes = std::mem::take(bytes);
            self.backing = Backing::Shared(Rc::new(Copied { bytes, hold: Cell::default() }));
        }
        let backing = match &self.backing {
            Backing::Static => Backing::Static,
            Backing::Shared(shared) => Backing::Shared(Rc::clone(shared)),
            Backing::Loan(loan) => Backing::Loan(loan.clone()),
            Backing::Owned(_) => unreachable!("made shared above"),
        };
        let head = Self { data: self.data, len: at, backing };
        self.advance(at);
        head
    }

    /// The same bytes once more. No copy.
    #[must_use]
    pub fn share(&mut self) -> Self {
        let len = self.len;
        let shared = self.split_to(len);
        (self.data, self.len) = (shared.data, len);
        shared
    }

    /// Drops the first `n` bytes (`n` <= len).
    ///
    /// # Panics
    /// When `n` > len.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len, "advance beyond the end");
        // SAFETY: at most one past the last of the bytes that `backing` keeps.
        self.data = unsafe { self.data.add(n) };
        self.len -= n;
    }

    /// Keeps the first `n` bytes; nothing happens when there are fewer.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n);
    }

    /// Whether the bytes sit in a receive buffer of the ring.
    #[must_use]
    pub const fn is_loan(&self) -> bool {
        matches!(self.backing, Backing::Loan(_))
    }

    /// Whether it keeps receive buffers from the ring.
    pub(super) fn pins(&self) -> bool {
        match &self.backing {
            Backing::Shared(copied) => copied.with_hold(|hold| matches!(hold, Hold::Sources(_))),
            _ => self.is_loan(),
        }
    }

    /// The stream that its bytes are counted against.
    pub(super) fn account(&self) -> Option<Account> {
        match &self.backing {
            Backing::Loan(loan) => loan.account(),
            Backing::Shared(copied) => copied.with_hold(Hold::account),
            _ => None,
        }
    }

    /// Bytes that are counted against its stream for it, if nobody shares it.
    pub(super) fn outstanding(&self) -> usize {
        match &self.backing {
            Backing::Loan(loan) => loan.size(),
            Backing::Shared(copied) => copied.with_hold(|hold| match hold {
                Hold::Nothing => 0,
                Hold::Charge(charge) => charge.bytes(),
                Hold::Sources(sources) => sources.iter().map(Self::outstanding).sum(),
            }),
            _ => 0,
        }
    }

    /// Bytes of the budget that come free with it.
    pub(super) fn releases(&self) -> usize {
        match &self.backing {
            Backing::Shared(copied) if Rc::strong_count(copied) == 1 => copied.with_hold(|hold| match hold {
                Hold::Charge(charge) => charge.cost(),
                _ => 0,
            }),
            _ => 0,
        }
    }

    /// The hold that counts for bytes made of this chunk.
    pub(super) fn into_hold(self) -> Hold {
        let counted = match &self.backing {
            Backing::Loan(_) => true,
            Backing::Shared(copied) => {
                // One list of sources is enough, however often the bytes are transformed.
                let sources = copied.with_hold(|hold| match hold {
                    Hold::Sources(sources) => Some(Rc::clone(sources)),
                    _ => None,
                });
                if let Some(sources) = sources {
                    return Hold::Sources(sources);
                }
                copied.with_hold(|hold| matches!(hold, Hold::Charge(_)))
            }
            _ => false,
        };
        if counted { Hold::Sources(Rc::new(vec![self])) } else { Hold::Nothing }
    }

    /// Lets go of the sources that count in its place, if the budget has room for it now.
    pub(super) fn settle(&self, pool: &Rc<BufferPool>, reserve: usize) {
        if self.pins()
            && let Backing::Shared(copied) = &self.backing
            && let Some(charge) = pool.charge_for(copied.bytes.len(), self.account(), reserve)
        {
            copied.hold.set(Hold::Charge(charge));
        }
    }

    pub(super) const fn loan(&self) -> Option<&Loan> {
        match &self.backing {
            Backing::Loan(loan) => Some(loan),
            _ => None,
        }
    }

    /// Appends to copied-out bytes that nobody shares, so that a stream of one-byte segments does not become
    /// a million allocations. `false` when that is impossible; nothing was changed then.
    pub(super) fn try_append(&mut self, more: &[u8], bytes_max: usize) -> bool {
        let Backing::Shared(shared) = &mut self.backing else { return false };
        let Some(copied) = Rc::get_mut(shared) else { return false };
        let start = self.data.as_ptr().addr() - copied.bytes.as_ptr().addr();
        if start + self.len != copied.bytes.len() || copied.bytes.len() + more.len() > bytes_max {
            return false;
        }
        let Hold::Charge(charge) = copied.hold.get_mut() else { return false };
        if !charge.grow(more.len()) {
            return false;
        }
        copied.bytes.extend_from_slice(more);
        // The bytes may have moved.
        let bytes = NonNull::from(&copied.bytes[start..]);
        (self.data, self.len) = (bytes.cast(), bytes.len());
        true
    }
}

impl Chunk {
    /// Gives up copied-out bytes before and after its own, if nobody shares them.
    pub(super) fn compact(&mut self) {
        let Backing::Shared(shared) = &mut self.backing else { return };
        let Some(copied) = Rc::get_mut(shared) else { return };
        let (start, before) = (self.data.as_ptr().addr() - copied.bytes.as_ptr().addr(), copied.bytes.len());
        copied.bytes.truncate(start + self.len);
        copied.bytes.drain(..start);
        copied.bytes.shrink_to_fit();
        if let Hold::Charge(charge) = copied.hold.get_mut() {
            charge.shrink(before - self.len);
        }
        // The bytes may have moved.
        self.data = NonNull::from(copied.bytes.as_slice()).cast();
    }
}

impl Default for Chunk {
    fn default() -> Self {
        Self::from_static(b"")
    }
}

impl std::ops::Deref for Chunk {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: see `data`; the borrow of `self` keeps `backing`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
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
            Backing::Static => "static",
            Backing::Owned(_) => "owned",
            Backing::Shared(_) => "shared",
            Backing::Loan(_) => "loan",
        };
        f.debug_struct("Chunk").field("backing", &backing).field("len", &self.len()).finish()
    }
}

#[cfg(test)]
mod tests;
