//! The workers' counters in a memfd that the supervisor owns, so that they outlive a data plane.
#![allow(unsafe_code, reason = "atomics over memory that another process maps too")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;
use proxy_common::steer::WORKERS_MAX;

use super::mapping::Mapping;
use super::{CELLS, CounterBlock};

/// Precedes the blocks in the counters' memfd, so that two builds that count differently never misread each
/// other.
const HEADER_BYTES: usize = 64;
/// A worker counts no further in its life: bytes at 100 GB/s for eight days.
const COUNT_MAX: u64 = 1 << 56;
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
        memory.write_header();
        Ok(memory)
    }

    /// The data plane that wrote here is dead. Counters go on, gauges begin anew. The header is written
    /// again, since no data plane starts with another one. Numbers that no count reaches are taken
    /// back: their sums would overflow.
    pub fn renew(&self) {
        self.write_header();
        for block in self.blocks() {
            block.reset_gauges();
            block.cells.iter().filter(|cell| cell.load(Ordering::Relaxed) > COUNT_MAX).for_each(|cell| {
                cell.store(0, Ordering::Relaxed);
            });
        }
    }

    fn write_header(&self) {
        for (cell, value) in self.header().iter().zip([MAGIC, CELLS as u64, self.workers as u64]) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Maps the memory that `create` made in another process.
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

    /// All blocks, in the workers' order.
    pub fn blocks(&self) -> impl Iterator<Item = Counters> + '_ {
        (0..self.workers).filter_map(|worker| self.block(worker))
    }

    /// The memfd, to be handed to the other process.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Plain;

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
        // The start of a new data plane: counters go on, gauges do not, whatever the last one wrote.
        theirs.header().iter().for_each(|cell| cell.store(u64::MAX, Ordering::Relaxed));
        theirs.block(0).expect("first").set(Plain::Requests, u64::MAX);
        ours.renew();
        assert_eq!(read(Plain::Requests), [0, 0, 0], "no count");
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
}
