//! The budget for bytes outside the ring's buffers: copies of received bytes, and bytes that were made of
//! them.

use std::rc::Rc;

use super::{Account, BufferPool, FRAGMENT_COST};
use crate::io::chunk::{Chunk, Hold};

impl BufferPool {
    /// Bytes of the budget in use.
    #[must_use]
    pub const fn budget_used(&self) -> usize {
        self.budget_used.get()
    }

    /// The whole budget.
    #[must_use]
    pub const fn budget_max(&self) -> usize {
        self.budget_max
    }

    /// A quarter of the budget, which streams that hold much leave to streams that hold little.
    pub(in crate::io) const fn budget_reserve(&self) -> usize {
        self.budget_max / 4
    }

    /// Copies bytes to the heap under the budget, leaving `reserve` of it to others. `account` goes on
    /// counting them.
    pub(in crate::io) fn copy(
        self: &Rc<Self>,
        bytes: &[u8],
        account: Option<Account>,
        reserve: usize,
    ) -> Option<Chunk> {
        let charge = self.charge_for(bytes.len(), account, reserve)?;
        Some(Chunk::from_copy(bytes.to_vec(), Hold::Charge(charge)))
    }

    /// Holds bytes against the budget if it has room for them, leaving `reserve` of it to others.
    pub(in crate::io) fn charge_for(
        self: &Rc<Self>,
        bytes: usize,
        account: Option<Account>,
        reserve: usize,
    ) -> Option<Charge> {
        self.has_room(bytes, reserve).then(|| Charge::new(self, account, bytes))
    }

    /// Whether the budget has room for so many bytes beside `reserve`.
    pub(in crate::io) const fn has_room(&self, bytes: usize, reserve: usize) -> bool {
        self.budget_used.get() + bytes + FRAGMENT_COST + reserve <= self.budget_max
    }

    /// Counts bytes that were made of `source` and go on for the same stream. They count against the budget
    /// like a copy; where it has no room, the source stays with them. So received bytes always hold budget or
    /// receive buffers, however they are transformed.
    pub(in crate::io) fn made_of(self: &Rc<Self>, source: Chunk, bytes: Vec<u8>, reserve: usize) -> Chunk {
        let (account, released) = (source.account(), source.releases());
        // A source that held budget frees it for these bytes, so no reserve is left to others.
        let reserve = if released > 0 { 0 } else { reserve };
        let hold =
            if self.budget_used.get() - released + bytes.len() + FRAGMENT_COST + reserve <= self.budget_max {
                drop(source);
                Hold::Charge(Charge::new(self, account, bytes.len()))
            } else {
                source.into_hold()
            };
        Chunk::from_copy(bytes, hold)
    }

    /// The same for bytes that were made of several chunks: no chunks where the budget had room.
    pub(in crate::io) fn made_of_all(
        self: &Rc<Self>,
        sources: Vec<Chunk>,
        bytes: Vec<u8>,
        account: Account,
    ) -> Chunk {
        let hold = if sources.is_empty() {
            self.charge_for(bytes.len(), Some(account), 0).map_or(Hold::Nothing, Hold::Charge)
        } else {
            Hold::Sources(Rc::new(sources))
        };
        Chunk::from_copy(bytes, hold)
    }
}

/// Heap bytes held against the budget, and against a stream if they were received for one.
pub(in crate::io) struct Charge {
    pool: Rc<BufferPool>,
    account: Option<Account>,
    bytes: usize,
}

impl Charge {
    fn new(pool: &Rc<BufferPool>, account: Option<Account>, bytes: usize) -> Self {
        pool.budget_used.set(pool.budget_used.get() + bytes + FRAGMENT_COST);
        if let Some(account) = account {
            pool.charge(account, bytes);
        }
        Self { pool: Rc::clone(pool), account, bytes }
    }

    /// The stream that they were received for.
    pub(in crate::io) const fn account(&self) -> Option<Account> {
        self.account
    }

    /// Bytes held.
    pub(in crate::io) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes that it takes of the budget.
    pub(in crate::io) const fn cost(&self) -> usize {
        self.bytes + FRAGMENT_COST
    }

    /// Holds `more` bytes; `false` when the budget has no room.
    pub(in crate::io) fn grow(&mut self, more: usize) -> bool {
        if self.pool.budget_used.get() + more + self.pool.budget_reserve() > self.pool.budget_max {
            return false;
        }
        self.pool.budget_used.set(self.pool.budget_used.get() + more);
        self.bytes += more;
        if let Some(account) = self.account {
            self.pool.charge(account, more);
        }
        true
    }

    /// Holds `less` bytes no more.
    pub(in crate::io) fn shrink(&mut self, less: usize) {
        self.pool.budget_used.set(self.pool.budget_used.get() - less);
        self.bytes -= less;
        if let Some(account) = self.account {
            self.pool.release(account, less);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.pool.budget_used.set(self.pool.budget_used.get() - self.bytes - FRAGMENT_COST);
        if let Some(account) = self.account {
            self.pool.release(account, self.bytes);
        }
    }
}
