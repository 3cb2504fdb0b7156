//! The steering slots: each worker's published state, in a mmapable BPF array
//! (Documentation/bpf/map_array.rst), or in a memfd where there is none. Steering reads them, and so does the
//! supervisor's watchdog.
#![allow(unsafe_code, reason = "atomics over memory that a BPF program and another process map too")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use proxy_common::steer::{SLOT_DRAINING, SLOT_EMPTY, SLOT_LIVE, SLOTS, WORKERS_MAX, WorkerSlot, slot_of};

use crate::counters::mapping::Mapping;
use crate::time::Time;

const SLOTS_BYTES: usize = SLOTS as usize * size_of::<WorkerSlot>();

/// The whole steering array, mapped.
#[derive(Clone, Debug)]
pub struct SteeringSlots {
    mapping: Arc<Mapping>,
    fd: Arc<OwnedFd>,
}

impl SteeringSlots {
    /// Maps the BPF array, or the memory that `create` made in another process.
    ///
    /// # Errors
    /// When the kernel refuses the mapping.
    pub fn map(fd: OwnedFd) -> io::Result<Self> {
        let mapping = Mapping::shared(fd.as_fd(), SLOTS_BYTES)?;
        Ok(Self { mapping: Arc::new(mapping), fd: Arc::new(fd) })
    }

    /// A memfd of the same shape: nobody steers by it, but the workers' states can still be read from it.
    ///
    /// # Errors
    /// When the kernel refuses memory or a descriptor.
    pub fn create() -> io::Result<Self> {
        let fd = memfd_create("sluice-slots", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        ftruncate(&fd, i64::try_from(SLOTS_BYTES).map_err(io::Error::other)?)?;
        // Its size cannot change any more: neither side can make the other fault by cutting the file.
        let seals = SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(fd)
    }

    /// The descriptor, to be handed to the other process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The line of a worker of a slot generation. `None` when `worker` is not below `WORKERS_MAX`.
    #[must_use]
    pub fn slot(&self, slot_generation: u32, worker: usize) -> Option<SteeringSlot> {
        let worker = u32::try_from(worker).ok().filter(|worker| *worker < WORKERS_MAX)?;
        let index = slot_of(slot_generation, worker);
        Some(SteeringSlot {
            mapping: Arc::clone(&self.mapping),
            offset: index as usize * size_of::<WorkerSlot>(),
            generation: slot_generation,
        })
    }
}

/// One worker's line of the steering array (`proxy_common::steer::WorkerSlot`), mapped.
///
/// The control thread and the supervisor may read the worker's state; only the worker writes while it lives.
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

    /// Its worker is gone.
    pub fn clear(&self) {
        self.state().store(SLOT_EMPTY, Ordering::Release);
        self.load(0);
        self.sleeping();
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
    use super::*;

    #[test]
    fn a_slot_shows_what_its_worker_published() {
        let slots = SteeringSlots::create().expect("memory");
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
        let slots = SteeringSlots::create().expect("memory");
        slots.slot(1, 2).expect("in range").load(77);
        let mut word = [0; 4];
        let at = (WORKERS_MAX as u64 + 2) * 64 + 4;
        let file = std::fs::File::from(slots.fd().try_clone_to_owned().expect("dup"));
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut word, at).expect("read");
        assert_eq!(u32::from_ne_bytes(word), 77);
        assert!(file.set_len(0).is_err(), "whoever holds it cannot cut it");
        let same = SteeringSlots::map(file.into()).expect("map");
        assert_eq!(same.slot(1, 2).expect("in range").view().load, 77);
        slots.slot(1, 2).expect("in range").clear();
        assert_eq!(same.slot(1, 2).expect("in range").view(), SlotView::default());
    }
}
