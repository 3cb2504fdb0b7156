//! The ledger: bytes that each stream has received and nobody has dropped yet. A loan counts as a whole
//! buffer, a copy by its bytes.

use super::BufferPool;

/// No mark to report at.
const NO_RELIEF: u32 = u32::MAX;

/// Names the owner of received bytes: the stream in a slot. The pool's ledger counts all that the stream has
/// received and nobody has dropped yet: whole buffers for loans, bytes for copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Of its stream.
    pub(in crate::io) slot: u32,
    /// Of its stream: bytes dropped after the slot changed hands count for nobody.
    pub(in crate::io) generation: u32,
    /// Grows whenever the stream begins anew, as a pooled connection does after an exchange. Older bytes that
    /// are dropped later count for nobody.
    pub(in crate::io) epoch: u32,
}

/// One slot's line of the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    generation: u32,
    epoch: u32,
    /// Below 2^32: all buffers are at most 32,768 of 64 KiB and 4,096 blocks, and copies stop at their bound.
    outstanding: u32,
    /// Report to the pool when `outstanding` falls to this; `NO_RELIEF`: never.
    relief_at: u32,
}

impl Line {
    const fn is_of(&self, account: Account) -> bool {
        self.generation == account.generation && self.epoch == account.epoch
    }
}

impl BufferPool {
    /// Streams (slot, generation) whose account fell to the mark they waited for.
    pub(in crate::io) fn take_relieved(&self, into: &mut Vec<(u32, u32)>) {
        into.append(&mut self.relieved.borrow_mut());
    }

    pub(in crate::io) fn has_relieved(&self) -> bool {
        !self.relieved.borrow().is_empty()
    }

    /// A new stream is in this slot, or the same begins anew.
    pub(in crate::io) fn open_account(&self, account: Account) {
        let mut ledger = self.ledger.borrow_mut();
        let slot = account.slot as usize;
        let fresh = Line {
            generation: account.generation,
            epoch: account.epoch,
            outstanding: 0,
            relief_at: NO_RELIEF,
        };
        if ledger.len() <= slot {
            ledger.resize(slot + 1, fresh);
        }
        ledger[slot] = fresh;
    }

    /// Bytes received and not dropped, wherever they now sit.
    pub(in crate::io) fn outstanding(&self, account: Account) -> usize {
        self.with_line(account, |line| line.outstanding as usize).unwrap_or_default()
    }

    /// Asks to be reported by `take_relieved` once `outstanding` is at most `mark`; it must be above it now.
    pub(in crate::io) fn await_relief(&self, account: Account, mark: usize) {
        debug_assert!(self.outstanding(account) > mark);
        self.with_line(account, |line| line.relief_at = mark as u32);
    }

    /// Whether a report at a mark is awaited, or on its way.
    #[cfg(test)]
    pub(in crate::io) fn awaits_relief(&self, account: Account) -> bool {
        let reported = self.relieved.borrow().contains(&(account.slot, account.generation));
        reported || self.with_line(account, |line| line.relief_at != NO_RELIEF).unwrap_or_default()
    }

    /// Whether nothing is counted against anybody.
    #[cfg(test)]
    pub(in crate::io) fn is_ledger_empty(&self) -> bool {
        self.ledger.borrow().iter().all(|line| line.outstanding == 0)
    }

    /// Compares the ledger with the loans: the rest is copies, which the budget holds.
    ///
    /// # Panics
    /// When they differ.
    #[cfg(test)]
    pub(in crate::io) fn check_ledger(&self) {
        let mut ledger: Vec<Line> = self.ledger.borrow().clone();
        for (buffer, state) in self.buffers.iter().enumerate() {
            let Some(account) = state.account.get() else { continue };
            let Some(line) = ledger.get_mut(account.slot as usize).filter(|line| line.is_of(account)) else {
                continue;
            };
            let size = self.shelf_of(buffer as u16).size as u32;
            line.outstanding = line.outstanding.checked_sub(size).expect("a loan is counted");
        }
        let copies: usize = ledger.iter().map(|line| line.outstanding as usize).sum();
        assert!(
            copies <= self.budget_used(),
            "{copies} bytes counted beside loans, {} of the budget used",
            self.budget_used()
        );
    }

    pub(super) fn charge(&self, account: Account, bytes: usize) {
        self.with_line(account, |line| line.outstanding += bytes as u32);
    }

    pub(super) fn release(&self, account: Account, bytes: usize) {
        let is_relieved = self.with_line(account, |line| {
            line.outstanding -= bytes as u32;
            let is_relieved = line.relief_at != NO_RELIEF && line.outstanding <= line.relief_at;
            if is_relieved {
                line.relief_at = NO_RELIEF;
            }
            is_relieved
        });
        if is_relieved == Some(true) {
            self.relieved.borrow_mut().push((account.slot, account.generation));
        }
    }

    /// The account's line, unless its slot has changed hands.
    fn with_line<R>(&self, account: Account, with: impl FnOnce(&mut Line) -> R) -> Option<R> {
        let mut ledger = self.ledger.borrow_mut();
        let line = ledger.get_mut(account.slot as usize)?;
        line.is_of(account).then(|| with(line))
    }
}
