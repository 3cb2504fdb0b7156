//! The steering slots: each worker's published state, in a mmapable BPF array
//! (Documentation/bpf/map_array.rst), or in private memory where there is none.
#![allow(unsafe_code, reason = "atomics over memory that a BPF program and another process map too")]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use proxy_common::steer::{SLOT_DRAINING, SLOT_LIVE, SLOTS, WORKERS_MAX, WorkerSlot, slot_of};

use crate::counters::mapping::Mapping;
use crate::time::Time;

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
        let index = slot_of(slot_generation, worker);
        Some(SteeringSlot {
            mapping: Arc::clone(&self.0),
            offset: index as usize * size_of::<WorkerSlot>(),
            generation: slot_generation,
        })
    }
}

/// One worker's line of the steering array (`proxy_common::steer::WorkerSlot`), mapped.
///
/// The control thread may hold a clone to read the worker's state; only the worker writes.
#[derive(Clone, Debug)]
pub struct SteeringSlot {
    mapping: Arc<Mapping>,
    offset: usize,
    generation: u32,
}

/// The content of a slot.
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

    /// The slot generation that it was made for, which `live` publishes.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The field at `field` bytes into the slot.
    fn word(&self, field: usize) -> &AtomicU32 {
        // SAFETY: in bounds and aligned (`at` checks both); every bit pattern is a valid u32, and all others
        // access the word with word-sized loads and stores (the BPF program, another process's atomics); the
        // mapping lives as long as `self`.
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

    /// The content of the slot; not a consistent cut over its fields.
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
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use proxy_common::steer::SLOT_EMPTY;

    use super::*;

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
