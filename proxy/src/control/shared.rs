//! Memory shared between processes: the workers' counters in a memfd that the supervisor owns (so that they
//! outlive a data plane), and the steering slots in a mmapable BPF array (Documentation/bpf/map_array.rst),
//! or in private memory where there is none.
#![allow(unsafe_code, reason = "mmap(2), and atomics over memory that another process maps too")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use proxy_common::steer::{SLOT_DRAINING, SLOT_LIVE, SLOTS, WORKERS_MAX, WorkerSlot};

use crate::telemetry::counters::{CELLS, CounterBlock};
use crate::time::Time;

/// A run of mapped bytes, unmapped when the last user drops it.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: the memory is only ever accessed through atomics (CounterBlock is made of AtomicU64, a slot's
// fields are accessed as atomics).
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `length` bytes of `fd`, shared.
    fn shared(fd: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe {
            mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)
        }?;
        Ok(Self { base: base.cast(), length })
    }

    /// Zeroed memory of this process alone.
    fn private(length: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe {
            mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        Ok(Self { base: base.cast(), length })
    }

    /// The `T` at byte `offset`.
    fn at<T>(&self, offset: usize) -> NonNull<T> {
        let end = offset.checked_add(size_of::<T>());
        assert!(
            end.is_some_and(|end| end <= self.length),
            "{offset} is outside of a mapping of {} bytes",
            self.length
        );
        // SAFETY: `offset` lies within the mapping, as was just checked.
        let pointer = unsafe { self.base.add(offset) };
        assert!(pointer.cast::<T>().is_aligned(), "offset {offset} is not aligned");
        pointer.cast()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of our own mapping; whoever points into it holds an Arc of this
        // value.
        let result = unsafe { munmap(self.base.cast(), self.length) };
        debug_assert!(result.is_ok(), "munmap of our own mapping");
    }
}

/// Precedes the blocks in the counters' memfd, so that two builds that count differently never misread each
/// other.
const HEADER_BYTES: usize = 64;
const MAGIC: u64 = 0x31_65_63_69_75_6c_73_01;

fn counters_bytes(workers: usize) -> usize {
    HEADER_BYTES + workers * size_of::<CounterBlock>()
}

/// All workers' counter blocks: made by the supervisor, mapped by both processes.
#[derive(Clone, Debug)]
pub struct CountersMemory {
    mapping: Arc<Mapping>,
    fd: Arc<OwnedFd>,
    workers: usize,
}

/// The size cannot change any more: neither side can make the other fault by cutting the file.
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL.union(SealFlag::F_SEAL_SHRINK).union(SealFlag::F_SEAL_GROW);

impl CountersMemory {
    /// Zeroed blocks for `workers` (at most `WORKERS_MAX`).
    pub fn create(workers: usize) -> io::Result<Self> {
        if workers == 0 || workers > WORKERS_MAX as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fd = memfd_create("sluice-counters", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let length = counters_bytes(workers);
        ftruncate(&fd, i64::try_from(length).map_err(io::Error::other)?)?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(SEALS))?;
        let mapping = Mapping::shared(fd.as_fd(), length)?;
        let memory = Self { mapping: Arc::new(mapping), fd: Arc::new(fd), workers };
        for (cell, value) in memory.header().iter().zip([MAGIC, CELLS as u64, workers as u64]) {
            cell.store(value, Ordering::Relaxed);
        }
        Ok(memory)
    }

    /// Maps what `create` made in another process.
    pub fn open(fd: OwnedFd, workers: usize) -> io::Result<Self> {
        let refused =
            |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("counters memfd: {why}"));
        let seals = fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).map_err(|_| refused("not a memfd"))?;
        if !SealFlag::from_bits_retain(seals).contains(SEALS) {
            return Err(refused("its size is not sealed"));
        }
        let length = counters_bytes(workers);
        if workers == 0 || usize::try_from(fstat(&fd)?.st_size).ok() != Some(length) {
            return Err(refused("its size does not fit the number of workers"));
        }
        let mapping = Mapping::shared(fd.as_fd(), length)?;
        let memory = Self { mapping: Arc::new(mapping), fd: Arc::new(fd), workers };
        let header = memory.header().each_ref().map(|cell| cell.load(Ordering::Relaxed));
        if header != [MAGIC, CELLS as u64, workers as u64] {
            return Err(refused("made by a build that counts differently"));
        }
        Ok(memory)
    }

    fn header(&self) -> &[AtomicU64; 3] {
        // SAFETY: in bounds and aligned (`at` checks both), zeroes are valid, and the mapping lives as long
        // as `self`.
        unsafe { self.mapping.at::<[AtomicU64; 3]>(0).as_ref() }
    }

    /// A worker's block.
    #[must_use]
    pub fn block(&self, worker: usize) -> Option<Counters> {
        (worker < self.workers).then(|| Counters {
            mapping: Arc::clone(&self.mapping),
            offset: HEADER_BYTES + worker * size_of::<CounterBlock>(),
        })
    }

    /// Every block, in the workers' order.
    pub fn blocks(&self) -> impl Iterator<Item = Counters> + '_ {
        (0..self.workers).filter_map(|worker| self.block(worker))
    }

    /// For handing over.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One worker's counter block, mapped.
#[derive(Clone, Debug)]
pub struct Counters {
    mapping: Arc<Mapping>,
    offset: usize,
}

impl Counters {
    /// Private memory, for tests and for a process without a supervisor's memfd.
    ///
    /// # Panics
    /// When the kernel has not one page left.
    #[must_use]
    pub fn private() -> Self {
        let mapping = Mapping::private(size_of::<CounterBlock>()).expect("a page of anonymous memory");
        Self { mapping: Arc::new(mapping), offset: 0 }
    }
}

impl std::ops::Deref for Counters {
    type Target = CounterBlock;

    fn deref(&self) -> &CounterBlock {
        // SAFETY: in bounds and aligned (`at` checks both); a CounterBlock is atomics only, for which every
        // bit pattern is valid and which another process may change; the mapping lives as long as `self`.
        unsafe { self.mapping.at::<CounterBlock>(self.offset).as_ref() }
    }
}

const SLOTS_BYTES: usize = SLOTS as usize * size_of::<WorkerSlot>();

/// The whole steering array, mapped.
#[derive(Clone, Debug)]
pub struct SteeringSlots(Arc<Mapping>);

impl SteeringSlots {
    /// Maps the BPF array.
    pub fn map(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(Arc::new(Mapping::shared(fd, SLOTS_BYTES)?)))
    }

    /// Private memory: nobody steers by it, but the workers' states can still be read from it.
    pub fn private() -> io::Result<Self> {
        Ok(Self(Arc::new(Mapping::private(SLOTS_BYTES)?)))
    }

    /// The line of a worker of a slot generation. `None` when `worker` is not below `WORKERS_MAX`.
    #[must_use]
    pub fn slot(&self, slot_generation: u32, worker: usize) -> Option<SteeringSlot> {
        let worker = u32::try_from(worker).ok().filter(|worker| *worker < WORKERS_MAX)?;
        let index = (slot_generation % 2) * WORKERS_MAX + worker;
        Some(SteeringSlot {
            mapping: Arc::clone(&self.0),
            offset: index as usize * size_of::<WorkerSlot>(),
            generation: slot_generation,
        })
    }
}

/// One worker's line of the steering array (`proxy_common::steer::WorkerSlot`), mapped.
///
/// The control thread may hold a clone to read what the worker published; only the worker writes.
#[derive(Clone, Debug)]
pub struct SteeringSlot {
    mapping: Arc<Mapping>,
    offset: usize,
    generation: u32,
}

/// What a slot says now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotView {
    /// `SLOT_EMPTY`, `SLOT_LIVE` or `SLOT_DRAINING`.
    pub state: u32,
    /// Connections held.
    pub load: u32,
    /// When the loop last woke; `None` while it sleeps.
    pub running_since: Option<Time>,
    /// NUMA node.
    pub node: u32,
    /// Slot generation.
    pub generation: u32,
}

impl SteeringSlot {
    /// Private memory, for tests and for a machine without a steering program.
    ///
    /// # Panics
    /// When the kernel has not one page left.
    #[must_use]
    pub fn private() -> Self {
        let mapping = Mapping::private(size_of::<WorkerSlot>()).expect("a page of anonymous memory");
        Self { mapping: Arc::new(mapping), offset: 0, generation: 0 }
    }

    /// The slot generation that it was made for: what `live` is to publish.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The field at `field` bytes into the slot.
    fn word(&self, field: usize) -> &AtomicU32 {
        // SAFETY: in bounds and aligned (`at` checks both); every bit pattern is a valid u32, and whoever
        // else accesses the word does so with word-sized loads and stores (the BPF program, another process's
        // atomics); the mapping lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.mapping.at::<u32>(self.offset + field).as_ptr()) }
    }

    fn running_since(&self) -> &AtomicU64 {
        let field = std::mem::offset_of!(WorkerSlot, running_since);
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.mapping.at::<u64>(self.offset + field).as_ptr()) }
    }

    fn state(&self) -> &AtomicU32 {
        self.word(std::mem::offset_of!(WorkerSlot, state))
    }

    /// Takes new flows from now on. `generation` is the slot's own; a dead data plane's slots are cleared by
    /// it.
    pub fn live(&self, generation: u32, node: u32) {
        self.word(std::mem::offset_of!(WorkerSlot, generation)).store(generation, Ordering::Relaxed);
        self.word(std::mem::offset_of!(WorkerSlot, node)).store(node, Ordering::Relaxed);
        // After the fields that it makes valid.
        self.state().store(SLOT_LIVE, Ordering::Release);
    }

    /// Takes no new flows from now on.
    pub fn draining(&self) {
        self.state().store(SLOT_DRAINING, Ordering::Release);
    }

    /// Connections held now.
    pub fn load(&self, connections: u32) {
        self.word(std::mem::offset_of!(WorkerSlot, load)).store(connections, Ordering::Relaxed);
    }

    /// The loop woke at `now`.
    pub fn running(&self, now: Time) {
        self.running_since().store(now.as_nanos(), Ordering::Relaxed);
    }

    /// The loop is about to sleep.
    pub fn sleeping(&self) {
        self.running_since().store(0, Ordering::Relaxed);
    }

    /// What the slot says now; not a consistent cut over its fields.
    #[must_use]
    pub fn view(&self) -> SlotView {
        let running_since = self.running_since().load(Ordering::Relaxed);
        SlotView {
            state: self.state().load(Ordering::Acquire),
            load: self.word(std::mem::offset_of!(WorkerSlot, load)).load(Ordering::Relaxed),
            running_since: (running_since != 0).then(|| Time::from_nanos(running_since)),
            node: self.word(std::mem::offset_of!(WorkerSlot, node)).load(Ordering::Relaxed),
            generation: self.word(std::mem::offset_of!(WorkerSlot, generation)).load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::steer::SLOT_EMPTY;

    use super::*;
    use crate::telemetry::counters::Plain;

    #[test]
    fn both_sides_see_the_same_counters_and_blocks_do_not_overlap() {
        let ours = CountersMemory::create(3).expect("memfd");
        let theirs = CountersMemory::open(ours.fd().try_clone_to_owned().expect("dup"), 3).expect("open");
        for (worker, block) in theirs.blocks().enumerate() {
            block.add(Plain::Accepted, worker as u64 + 1);
            block.set(Plain::Open, 9);
        }
        let read = |counter| ours.blocks().map(|block| block.value(counter)).collect::<Vec<_>>();
        assert_eq!(read(Plain::Accepted), [1, 2, 3]);
        assert!(ours.block(3).is_none());
        // What a new data plane starts with: counters go on, gauges do not.
        ours.blocks().for_each(|block| block.reset_gauges());
        assert_eq!(read(Plain::Open), [0, 0, 0]);
        drop(theirs);
        let again = CountersMemory::open(ours.fd().try_clone_to_owned().expect("dup"), 3).expect("open");
        assert_eq!(again.block(2).expect("third").value(Plain::Accepted), 3);
    }

    #[test]
    fn a_memfd_that_could_shrink_or_does_not_fit_is_refused() {
        let ours = CountersMemory::create(2).expect("memfd");
        assert!(
            std::fs::File::from(ours.fd().try_clone_to_owned().expect("dup")).set_len(1).is_err(),
            "size is sealed"
        );
        assert!(CountersMemory::open(ours.fd().try_clone_to_owned().expect("dup"), 3).is_err());
        assert!(CountersMemory::open(ours.fd().try_clone_to_owned().expect("dup"), 0).is_err());
        ours.header()[1].store(CELLS as u64 + 1, Ordering::Relaxed);
        assert!(CountersMemory::open(ours.fd().try_clone_to_owned().expect("dup"), 2).is_err());
        let unsealed =
            memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
        ftruncate(&unsealed, i64::try_from(counters_bytes(2)).expect("small")).expect("truncate");
        assert!(CountersMemory::open(unsealed, 2).is_err());
        assert!(CountersMemory::create(0).is_err());
        assert!(CountersMemory::create(WORKERS_MAX as usize + 1).is_err());
    }

    #[test]
    fn a_slot_shows_what_its_worker_published() {
        let slots = SteeringSlots::private().expect("memory");
        let slot = slots.slot(1, 5).expect("in range");
        assert_eq!(slot.view(), SlotView::default());
        assert_eq!(slot.view().state, SLOT_EMPTY);
        slot.live(7, 1);
        slot.load(42);
        slot.running(Time::from_nanos(99));
        let expected = SlotView {
            state: SLOT_LIVE,
            load: 42,
            running_since: Some(Time::from_nanos(99)),
            node: 1,
            generation: 7,
        };
        assert_eq!(slots.slot(3, 5).expect("same parity, same line").view(), expected);
        slot.sleeping();
        slot.draining();
        assert_eq!((slot.view().state, slot.view().running_since), (SLOT_DRAINING, None));
        // Its neighbours, and the other generation's line, are untouched.
        for (generation, worker) in [(1, 4), (1, 6), (0, 5), (2, 5)] {
            assert_eq!(slots.slot(generation, worker).expect("in range").view(), SlotView::default());
        }
        assert!(slots.slot(0, WORKERS_MAX as usize).is_none());
    }

    #[test]
    fn slots_lie_where_the_bpf_program_reads_them() {
        let fd = memfd_create("test", MFdFlags::MFD_CLOEXEC).expect("memfd");
        ftruncate(&fd, i64::try_from(SLOTS_BYTES).expect("small")).expect("truncate");
        let slots = SteeringSlots::map(fd.as_fd()).expect("map");
        slots.slot(1, 2).expect("in range").load(77);
        let mut word = [0; 4];
        let at = (WORKERS_MAX as u64 + 2) * 64 + 4;
        std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::from(fd), &mut word, at).expect("read");
        assert_eq!(u32::from_ne_bytes(word), 77);
    }
}
