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

use super::settings::{BLOCK_BYTES, Ring};

mod budget;
mod ledger;

pub(super) use self::budget::Charge;
pub use self::ledger::Account;
use self::ledger::Line;

/// The cost of a separately copied fragment beside its bytes.
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
pub struct BufferPool {
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
    ledger: RefCell<Vec<Line>>,
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

impl BufferPool {
    /// `count` small buffers (1 to 32768, a power of two) of `buffer_size` bytes, and as many bytes of
    /// blocks, their count rounded down to a power of two. All are in `take_returned` at first.
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

    const fn shelf(&self, class: Class) -> &Shelf {
        match class {
            Class::Small => &self.small,
            Class::Block => &self.blocks,
        }
    }

    fn shelf_of(&self, buffer: u16) -> &Shelf {
        self.shelf(self.class(buffer))
    }

    /// The class of a buffer.
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

    /// Fills a returned buffer with `bytes` and lends it, as a kernel does; for the simulated ring. `None`
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

    /// Less than a quarter of the buffers are free.
    pub(super) fn is_pressed(&self) -> bool {
        self.free() * 4 < self.count()
    }

    /// The same, or more than a quarter of the budget is used.
    pub(super) fn is_tight(&self) -> bool {
        self.is_pressed() || self.budget_used() * 4 > self.budget_max()
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

impl Drop for BufferPool {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `new` with this length. Loans hold an `Rc` of the pool, and the
        // ring holds one until the kernel no longer knows the memory, so nothing refers to it.
        let _ = unsafe { munmap(self.memory.cast(), self.mapped) };
    }
}

impl std::fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BufferPool")
            .field("count", &self.count())
            .field("loaned", &self.loaned())
            .finish_non_exhaustive()
    }
}

/// A share of one receive buffer. The buffer goes back to the ring when the last share drops.
pub struct Loan {
    pool: Rc<BufferPool>,
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
        // SAFETY: while shares exist the buffer is ours alone. The caller of `lend` vouched that its first
        // `len` bytes are initialised, and nobody writes to it. The borrow of `self` keeps the share alive,
        // and so the memory.
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

#[cfg(test)]
mod tests;
