//! Memory that several processes map: reached through atomics alone.
#![allow(unsafe_code, reason = "mmap(2)")]

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// A run of mapped bytes, unmapped when the last user drops it.
#[derive(Debug)]
pub(crate) struct Mapping {
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
    pub(crate) fn shared(fd: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe {
            mmap(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, fd, 0)
        }?;
        Ok(Self { base: base.cast(), length })
    }

    /// Zeroed memory of this process alone.
    pub(crate) fn private(length: usize) -> io::Result<Self> {
        let size = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe {
            mmap_anonymous(None, size, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        Ok(Self { base: base.cast(), length })
    }

    /// The `T` at byte `offset`.
    pub(crate) fn at<T>(&self, offset: usize) -> NonNull<T> {
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
        // SAFETY: base and length are our own mapping's; every user that points into it holds an Arc of this
        // value.
        let result = unsafe { munmap(self.base.cast(), self.length) };
        debug_assert!(result.is_ok(), "munmap of our own mapping");
    }
}
