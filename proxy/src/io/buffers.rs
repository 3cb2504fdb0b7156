//! Receive buffers: the memory behind the provided-buffer rings, lent out one buffer at a time, and the
//! budget for bytes that were copied out of it. Every buffer is either the ring's (or on its way back) or on
//! loan, never both.
//!
//! There are two classes: small buffers, as many and as large as the configuration says, and beside them
//! blocks for streams that send a lot at a time. Blocks are a convenience: when there is none, small buffers
//! serve.
#![allow(unsafe_code, reason = "slices over memory shared with the kernel")]

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::rc::Rc;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

use super::chunk::{Chunk, Hold};
use super::settings::{BLOCK_BYTES, Ring};

/// What a separately copied fragment costs beside its bytes.
pub(super) const FRAGMENT_COST: usize = 96;

const HUGE_PAGE: usize = 2 << 20;

/// A class of buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `ring.buffer_size` bytes.
    Small,
    /// `BLOCK_BYTES`.
    Block,
}

/// The buffers of one worker and its budget for copies.
pub struct Pool {
    memory: NonNull<u8>,
    /// Bytes mapped.
    mapped: usize,
    /// Small buffers first, then blocks.
    buffers: Box<[Buffer]>,
    small: Shelf,
    blocks: Shelf,
    budget_max: usize,
    budget_used: Cell<usize>,
    /// By slot of the stream.
    ledger: RefCell<Vec<Entry>>,
    /// Accounts that fell to the mark they waited for.
    relieved: RefCell<Vec<(u32, u32)>>,
}

/// The buffers of one class.
struct Shelf {
    /// The id of the first; the others follow.
    first: u16,
    count: u16,
    size: usize,
    /// Where the first begins in the memory.
    offset: usize,
    /// Dropped loans that the ring has not been given back yet. The last returned is the first given again,
    /// being still in the cache.
    returned: RefCell<Vec<u16>>,
    loaned: Cell<usize>,
}

impl Shelf {
    fn new(first: u16, count: u16, size: usize, offset: usize) -> Self {
        let returned = RefCell::new((first..first + count).rev().collect());
        Self { first, count, size, offset, returned, loaned: Cell::new(0) }
    }
}

#[derive(Default)]
struct Buffer {
    /// Loans that share it; 0 while it is the ring's.
    shares: Cell<u32>,
    len: Cell<u32>,
    account: Cell<Option<Account>>,
}

impl Pool {
    /// `count` buffers (1 to 32768, a power of two) of `buffer_size` bytes, all in `take_returned` at first;
    /// and blocks, as many bytes, rounded down to a power of two of them.
    pub fn new(count: u16, buffer_size: usize, budget_max: usize) -> std::io::Result<Rc<Self>> {
        let invalid = || std::io::Error::from_raw_os_error(libc::EINVAL);
        let small =
            usize::from(count).checked_mul(buffer_size).filter(|&bytes| bytes > 0).ok_or_else(invalid)?;
        if !count.is_power_of_two() || u32::try_from(buffer_size).is_err() {
            return Err(invalid());
        }
        let blocks = Ring::blocks_beside(small);
        let mapped = (blocks * BLOCK_BYTES + small).next_multiple_of(HUGE_PAGE);
        let length = NonZeroUsize::new(mapped).ok_or_else(invalid)?;
        let (protection, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let memory = unsafe { mmap_anonymous(None, length, protection, flags) }?;
        // Only for speed: where there are no huge pages, small ones serve.
        // SAFETY: advice about our own fresh mapping, which changes none of its bytes.
        let _ = unsafe { madvise(memory, mapped, MmapAdvise::MADV_HUGEPAGE) };
        Ok(Rc::new(Self {
            memory: memory.cast(),
            mapped,
            buffers: (0..usize::from(count) + blocks).map(|_| Buffer::default()).collect(),
            small: Shelf::new(0, count, buffer_size, blocks * BLOCK_BYTES),
            blocks: Shelf::new(count, blocks as u16, BLOCK_BYTES, 0),
            budget_max,
            budget_used: Cell::new(0),
            ledger: RefCell::default(),
            relieved: RefCell::default(),
        }))
    }

    /// How many small buffers there are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.small.count)
    }

    /// Bytes in a small one.
    #[must_use]
    pub const fn buffer_size(&self) -> usize {
        self.small.size
    }

    /// Small buffers that are not on loan.
    #[must_use]
    pub fn free(&self) -> usize {
        self.count() - self.small.loaned.get()
    }

    /// How many blocks there are.
    pub(super) fn block_count(&self) -> usize {
        usize::from(self.blocks.count)
    }

    /// Whether streams may begin to receive into blocks: more than a quarter of them are free, and memory is
    /// not tight.
    pub(super) fn has_blocks(&self) -> bool {
        (self.block_count() - self.blocks.loaned.get()) * 4 > self.block_count() && !self.is_tight()
    }

    /// Buffers of either class on loan.
    #[must_use]
    pub const fn loaned(&self) -> usize {
        self.small.loaned.get() + self.blocks.loaned.get()
    }

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

    const fn shelf(&self, class: Class) -> &Shelf {
        match class {
            Class::Small => &self.small,
            Class::Block => &self.blocks,
        }
    }

    fn shelf_of(&self, buffer: u16) -> &Shelf {
        self.shelf(self.class(buffer))
    }

    /// What a buffer is.
    pub(super) const fn class(&self, buffer: u16) -> Class {
        if buffer < self.small.count { Class::Small } else { Class::Block }
    }

    /// Where a buffer begins, for the ring's own entries.
    pub(super) fn address(&self, buffer: u16) -> *mut u8 {
        assert!(usize::from(buffer) < self.buffers.len());
        let shelf = self.shelf_of(buffer);
        self.memory.as_ptr().wrapping_add(shelf.offset + usize::from(buffer - shelf.first) * shelf.size)
    }

    /// Bytes in a buffer of this class.
    pub(super) const fn size(&self, class: Class) -> usize {
        self.shelf(class).size
    }

    /// Takes up to `most` buffers whose loans ended, to hand them to the kernel.
    pub(super) fn take_returned(&self, class: Class, most: usize, mut each: impl FnMut(u16)) {
        let mut returned = self.shelf(class).returned.borrow_mut();
        let kept = returned.len().saturating_sub(most);
        for buffer in returned.drain(kept..).rev() {
            each(buffer);
        }
    }

    /// Whether `take_returned` would give something.
    pub(super) fn has_returned(&self, class: Class) -> bool {
        !self.shelf(class).returned.borrow().is_empty()
    }

    /// Lends a buffer that the kernel has filled with `len` bytes.
    ///
    /// # Safety
    /// `buffer` came from `take_returned`, the kernel initialised `len` bytes of it and will not touch it
    /// until it is handed over again.
    pub(super) unsafe fn lend(self: &Rc<Self>, buffer: u16, len: usize) -> Loan {
        let (state, shelf) = (&self.buffers[usize::from(buffer)], self.shelf_of(buffer));
        assert!(state.shares.get() == 0 && len <= shelf.size, "a completion named a buffer on loan");
        state.shares.set(1);
        state.len.set(len as u32);
        shelf.loaned.set(shelf.loaned.get() + 1);
        Loan { pool: Rc::clone(self), buffer }
    }

    /// Fills a returned buffer with `bytes` and lends it: what a kernel does, for the simulated ring. `None`
    /// when no buffer is free.
    pub(super) fn lend_filled(self: &Rc<Self>, class: Class, bytes: &[u8]) -> Option<Loan> {
        let shelf = self.shelf(class);
        assert!(bytes.len() <= shelf.size);
        let buffer = shelf.returned.borrow_mut().pop()?;
        // SAFETY: the buffer is in bounds, not on loan (it was in `returned`) and not the kernel's, so
        // nothing else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address(buffer), bytes.len()) };
        // SAFETY: it was just taken and filled, and no kernel is involved.
        Some(unsafe { self.lend(buffer, bytes.len()) })
    }

    /// Copies bytes to the heap under the budget, leaving `reserve` of it to others. `account` goes on
    /// counting them.
    pub(super) fn copy(
        self: &Rc<Self>,
        bytes: &[u8],
        account: Option<Account>,
        reserve: usize,
    ) -> Option<Chunk> {
        let charge = self.charge_for(bytes.len(), account, reserve)?;
        Some(Chunk::from_copy(bytes.to_vec(), Hold::Charge(charge)))
    }

    /// Holds bytes against the budget if it has room for them, leaving `reserve` of it to others.
    pub(super) fn charge_for(
        self: &Rc<Self>,
        bytes: usize,
        account: Option<Account>,
        reserve: usize,
    ) -> Option<Charge> {
        self.has_room(bytes, reserve).then(|| Charge::new(self, account, bytes))
    }

    /// Whether the budget has room for so many bytes beside `reserve`.
    pub(super) const fn has_room(&self, bytes: usize, reserve: usize) -> bool {
        self.budget_used.get() + bytes + FRAGMENT_COST + reserve <= self.budget_max
    }

    /// Counts bytes that were made of `source`, and go on for the same stream: against the budget like a
    /// copy, and where that has no room the source stays with them. So whatever becomes of received bytes,
    /// they hold budget or receive buffers.
    pub(super) fn made_of(self: &Rc<Self>, source: Chunk, bytes: Vec<u8>, reserve: usize) -> Chunk {
        let (account, released) = (source.account(), source.releases());
        // What the source held already is nobody else's.
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
    pub(super) fn made_of_all(
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

    /// Less than a quarter of the buffers are free.
    pub(super) fn is_pressed(&self) -> bool {
        self.free() * 4 < self.count()
    }

    /// The same, or more than a quarter of the budget is used.
    pub(super) fn is_tight(&self) -> bool {
        self.is_pressed() || self.budget_used() * 4 > self.budget_max()
    }

    /// A quarter of the budget: what streams that hold much leave to those that hold little.
    pub(super) const fn budget_reserve(&self) -> usize {
        self.budget_max / 4
    }

    /// Streams (slot, generation) whose account fell to the mark they waited for.
    pub(super) fn take_relieved(&self, into: &mut Vec<(u32, u32)>) {
        into.append(&mut self.relieved.borrow_mut());
    }

    pub(super) fn has_relieved(&self) -> bool {
        !self.relieved.borrow().is_empty()
    }

    /// Counts that must agree; for tests and the simulation.
    ///
    /// # Panics
    /// When they do not.
    pub fn check_invariants(&self) {
        for shelf in [&self.small, &self.blocks] {
            let first = usize::from(shelf.first);
            let buffers = &self.buffers[first..first + usize::from(shelf.count)];
            let on_loan = buffers.iter().filter(|buffer| buffer.shares.get() > 0).count();
            assert_eq!(on_loan, shelf.loaned.get(), "loan count");
            let mut seen = vec![false; buffers.len()];
            for &buffer in shelf.returned.borrow().iter() {
                let at = usize::from(buffer) - first;
                assert!(!std::mem::replace(&mut seen[at], true), "buffer {buffer} returned twice");
                assert_eq!(buffers[at].shares.get(), 0, "buffer {buffer} returned while on loan");
            }
        }
        for buffer in &self.buffers {
            assert!(
                buffer.shares.get() > 0 || buffer.account.get().is_none(),
                "an account of a buffer not on loan"
            );
        }
        assert!(self.budget_used.get() <= self.budget_max, "budget");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length. Loans hold an `Rc` of the pool, and the
        // ring holds one until the kernel no longer knows the memory, so nothing refers to it.
        let _ = unsafe { munmap(self.memory.cast(), self.mapped) };
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("count", &self.count())
            .field("loaned", &self.loaned())
            .finish_non_exhaustive()
    }
}

/// A share of one receive buffer. The buffer goes back to the ring when the last share drops.
pub struct Loan {
    pool: Rc<Pool>,
    buffer: u16,
}

impl Loan {
    fn state(&self) -> &Buffer {
        &self.pool.buffers[usize::from(self.buffer)]
    }

    /// Received bytes in the buffer.
    pub(super) fn len(&self) -> usize {
        self.state().len.get() as usize
    }

    /// The received bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: while shares exist the buffer is ours alone, its first `len` bytes were initialised by
        // whoever lent it, and nobody writes to it; the borrow of `self` keeps the share, and so the memory,
        // alive.
        unsafe { std::slice::from_raw_parts(self.pool.address(self.buffer), self.len()) }
    }

    /// Counts the whole buffer against a stream until it is returned.
    pub(super) fn charge_to(&mut self, account: Account) {
        self.pool.charge(account, self.pool.shelf_of(self.buffer).size);
        let before = self.state().account.replace(Some(account));
        debug_assert!(before.is_none(), "a buffer is charged once");
    }

    /// Bytes of the whole buffer.
    pub(super) fn size(&self) -> usize {
        self.pool.shelf_of(self.buffer).size
    }

    /// The stream it is charged to.
    pub(super) fn account(&self) -> Option<Account> {
        self.state().account.get()
    }
}

impl Clone for Loan {
    fn clone(&self) -> Self {
        let shares = &self.state().shares;
        shares.set(shares.get().checked_add(1).expect("fewer than 2^32 shares"));
        Self { pool: Rc::clone(&self.pool), buffer: self.buffer }
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let state = self.state();
        state.shares.set(state.shares.get() - 1);
        if state.shares.get() == 0 {
            let shelf = self.pool.shelf_of(self.buffer);
            if let Some(account) = state.account.take() {
                self.pool.release(account, shelf.size);
            }
            shelf.loaned.set(shelf.loaned.get() - 1);
            shelf.returned.borrow_mut().push(self.buffer);
        }
    }
}

impl std::fmt::Debug for Loan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loan").field("buffer", &self.buffer).field("len", &self.len()).finish_non_exhaustive()
    }
}

/// No mark to report at.
const NO_RELIEF: u32 = u32::MAX;

/// Whose bytes these are: the stream in a slot. What it has received and nobody has dropped yet is counted in
/// the pool's ledger: whole buffers for loans, bytes for copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// Of its stream.
    pub(super) slot: u32,
    /// Of its stream: what is dropped after the slot changed hands counts for nobody.
    pub(super) generation: u32,
    /// Grows whenever the stream begins anew, as a pooled connection does after an exchange: what is dropped
    /// later counts for nobody.
    pub(super) epoch: u32,
}

/// One slot's line of the ledger.
#[derive(Clone, Copy, Debug)]
struct Entry {
    generation: u32,
    epoch: u32,
    /// Below 2^32: all buffers are at most 32,768 of 64 KiB and 4,096 blocks, and copies stop at their bound.
    outstanding: u32,
    /// Report to the pool when `outstanding` falls to this; `NO_RELIEF`: never.
    relief_at: u32,
}

impl Entry {
    const fn is_of(&self, account: Account) -> bool {
        self.generation == account.generation && self.epoch == account.epoch
    }
}

impl Pool {
    /// A new stream is in this slot, or the same begins anew.
    pub(super) fn open_account(&self, account: Account) {
        let mut ledger = self.ledger.borrow_mut();
        let slot = account.slot as usize;
        let fresh = Entry {
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
    pub(super) fn outstanding(&self, account: Account) -> usize {
        self.with_entry(account, |entry| entry.outstanding as usize).unwrap_or_default()
    }

    /// Asks to be reported by `take_relieved` once `outstanding` is at most `mark`; it must be above it now.
    pub(super) fn await_relief(&self, account: Account, mark: usize) {
        debug_assert!(self.outstanding(account) > mark);
        self.with_entry(account, |entry| entry.relief_at = mark as u32);
    }

    /// Whether a report at a mark is awaited, or on its way.
    #[cfg(test)]
    pub(super) fn awaits_relief(&self, account: Account) -> bool {
        let reported = self.relieved.borrow().contains(&(account.slot, account.generation));
        reported || self.with_entry(account, |entry| entry.relief_at != NO_RELIEF).unwrap_or_default()
    }

    /// Whether nothing is counted against anybody.
    #[cfg(test)]
    pub(super) fn is_ledger_empty(&self) -> bool {
        self.ledger.borrow().iter().all(|entry| entry.outstanding == 0)
    }

    /// The ledger beside what is on loan: the rest is copies, which the budget holds.
    ///
    /// # Panics
    /// When they differ.
    #[cfg(test)]
    pub(super) fn check_ledger(&self) {
        let mut ledger: Vec<Entry> = self.ledger.borrow().clone();
        for (buffer, state) in self.buffers.iter().enumerate() {
            let Some(account) = state.account.get() else { continue };
            let Some(entry) = ledger.get_mut(account.slot as usize).filter(|entry| entry.is_of(account))
            else {
                continue;
            };
            let size = self.shelf_of(buffer as u16).size as u32;
            entry.outstanding = entry.outstanding.checked_sub(size).expect("a loan is counted");
        }
        let copies: usize = ledger.iter().map(|entry| entry.outstanding as usize).sum();
        assert!(
            copies <= self.budget_used(),
            "{copies} bytes counted beside loans, {} of the budget used",
            self.budget_used()
        );
    }

    fn charge(&self, account: Account, bytes: usize) {
        self.with_entry(account, |entry| entry.outstanding += bytes as u32);
    }

    fn release(&self, account: Account, bytes: usize) {
        let is_relieved = self.with_entry(account, |entry| {
            entry.outstanding -= bytes as u32;
            let is_relieved = entry.relief_at != NO_RELIEF && entry.outstanding <= entry.relief_at;
            if is_relieved {
                entry.relief_at = NO_RELIEF;
            }
            is_relieved
        });
        if is_relieved == Some(true) {
            self.relieved.borrow_mut().push((account.slot, account.generation));
        }
    }

    /// The account's line, unless its slot has changed hands.
    fn with_entry<R>(&self, account: Account, with: impl FnOnce(&mut Entry) -> R) -> Option<R> {
        let mut ledger = self.ledger.borrow_mut();
        let entry = ledger.get_mut(account.slot as usize)?;
        entry.is_of(account).then(|| with(entry))
    }
}

/// Heap bytes held against the budget, and against a stream if they were received for one.
pub(super) struct Charge {
    pool: Rc<Pool>,
    account: Option<Account>,
    bytes: usize,
}

impl Charge {
    fn new(pool: &Rc<Pool>, account: Option<Account>, bytes: usize) -> Self {
        pool.budget_used.set(pool.budget_used.get() + bytes + FRAGMENT_COST);
        if let Some(account) = account {
            pool.charge(account, bytes);
        }
        Self { pool: Rc::clone(pool), account, bytes }
    }

    /// The stream that they were received for.
    pub(super) const fn account(&self) -> Option<Account> {
        self.account
    }

    /// Bytes held.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it takes of the budget.
    pub(super) const fn cost(&self) -> usize {
        self.bytes + FRAGMENT_COST
    }

    /// Holds `more` bytes; `false` when the budget has no room.
    pub(super) fn grow(&mut self, more: usize) -> bool {
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
    pub(super) fn shrink(&mut self, less: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lends_each_buffer_once() {
        let pool = Pool::new(4, 16, 0).expect("memory");
        let loans: Vec<_> =
            (0..4u8).map(|n| pool.lend_filled(Class::Small, &[n; 16]).expect("free")).collect();
        assert!(pool.lend_filled(Class::Small, b"x").is_none());
        for (n, loan) in loans.iter().enumerate() {
            assert_eq!(loan.bytes(), [n as u8; 16]);
        }
        pool.check_invariants();
        drop(loans);
        assert_eq!(pool.free(), 4);
        pool.check_invariants();
    }

    #[test]
    fn relief_is_reported_once_at_the_mark() {
        let pool = Pool::new(4, 16, 0).expect("memory");
        let account = Account { slot: 7, generation: 3, epoch: 0 };
        pool.open_account(account);
        let mut loans: Vec<_> = (0..4).map(|_| pool.lend_filled(Class::Small, b"x").expect("free")).collect();
        loans.iter_mut().for_each(|loan| loan.charge_to(account));
        pool.await_relief(account, 32);
        loans.pop();
        assert!(!pool.has_relieved());
        loans.pop();
        loans.pop();
        let mut relieved = Vec::new();
        pool.take_relieved(&mut relieved);
        assert_eq!(relieved, [(7, 3)]);
    }

    #[test]
    fn what_a_former_stream_received_does_not_count_for_its_successor() {
        let pool = Pool::new(4, 16, 1 << 10).expect("memory");
        let [former, successor] = [0, 1].map(|generation| Account { slot: 2, generation, epoch: 0 });
        pool.open_account(former);
        let mut loan = pool.lend_filled(Class::Small, b"x").expect("free");
        loan.charge_to(former);
        let copy = pool.copy(b"yy", Some(former), 0).expect("room");
        assert_eq!(pool.outstanding(former), 18);
        pool.open_account(successor);
        let mut late = pool.lend_filled(Class::Small, b"x").expect("free");
        late.charge_to(former);
        assert_eq!((pool.outstanding(former), pool.outstanding(successor)), (0, 0));
        drop((loan, copy, late));
        assert_eq!((pool.outstanding(successor), pool.free(), pool.budget_used()), (0, 4, 0));
        pool.check_invariants();
    }

    #[test]
    fn copies_stop_at_the_budget() {
        let pool = Pool::new(2, 16, 2 * (FRAGMENT_COST + 10)).expect("memory");
        let account = Account { slot: 0, generation: 0, epoch: 0 };
        pool.open_account(account);
        let first = pool.copy(&[1; 10], Some(account), 0).expect("room");
        let second = pool.copy(&[2; 10], None, 0).expect("room");
        assert!(pool.copy(&[3; 1], None, 0).is_none());
        assert_eq!((pool.budget_used(), pool.outstanding(account)), (2 * (FRAGMENT_COST + 10), 10));
        drop(first);
        assert!(pool.copy(&[3; 10], None, 1).is_none(), "the reserve is kept");
        drop(second);
        assert_eq!((pool.budget_used(), pool.outstanding(account)), (0, 0));
    }

    #[test]
    fn small_fragments_grow_one_copy() {
        let pool = Pool::new(2, 16, 4096).expect("memory");
        let account = Account { slot: 0, generation: 0, epoch: 0 };
        pool.open_account(account);
        let mut chunk = pool.copy(b"a", Some(account), 0).expect("room");
        for _ in 0..9 {
            assert!(chunk.try_append(b"b", 10));
        }
        assert!(!chunk.try_append(b"c", 10));
        assert_eq!(&*chunk, b"abbbbbbbbb");
        assert_eq!((pool.budget_used(), pool.outstanding(account)), (10 + FRAGMENT_COST, 10));
        let head = chunk.split_to(2);
        assert!(!chunk.try_append(b"c", 100), "shared bytes are left alone");
        chunk.compact();
        assert_eq!(pool.budget_used(), 10 + FRAGMENT_COST, "nor are they given up");
        drop(head);
        chunk.truncate(7);
        chunk.compact();
        assert_eq!(
            (&*chunk, pool.budget_used(), pool.outstanding(account)),
            (&b"bbbbbbb"[..], 7 + FRAGMENT_COST, 7)
        );
        assert!(chunk.try_append(b"d", 10) && *chunk == *b"bbbbbbbd");
        drop(chunk);
        assert_eq!((pool.budget_used(), pool.outstanding(account)), (0, 0));
    }
}
