//! Bytes that cannot change any more: memfd_create(2) with F_SEAL_*. Configuration and lists travel to the
//! data plane in these, and large answers travel back. The receiver verifies the seals before it reads.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// The most bytes that a receiver accepts in one memfd.
pub const BYTES_MAX: u64 = 64 << 20;

/// Why a descriptor was not taken for sealed bytes.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    /// Not a memfd, or a memfd that can still change.
    #[error("the descriptor is not a fully sealed memfd")]
    Unsealed,
    /// More than the receiver accepts.
    #[error("{bytes} bytes, {max} at most")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// Another error.
    #[error("memfd: {0}")]
    Io(#[from] std::io::Error),
}

const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_WRITE);

/// A sealed memfd with these bytes.
pub fn seal(name: &str, bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    let fd = OwnedFd::from(file);
    fcntl(&fd, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(fd)
}

/// Whether it is a memfd, sealed or not.
#[must_use]
pub fn is_memfd(fd: &OwnedFd) -> bool {
    // EINVAL: a file that knows no seals.
    fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).is_ok()
}

/// The bytes of a sealed memfd; at most `max`.
pub fn open(fd: OwnedFd, max: u64) -> Result<Vec<u8>, SealedError> {
    let seals = fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).map_err(|_| SealedError::Unsealed)?;
    if !SealFlag::from_bits_retain(seals).contains(SEALS) {
        return Err(SealedError::Unsealed);
    }
    let file = File::from(fd);
    let bytes = file.metadata()?.len();
    if bytes > max {
        return Err(SealedError::TooLarge { bytes, max });
    }
    let mut buffer = vec![0; usize::try_from(bytes).map_err(|_| SealedError::TooLarge { bytes, max })?];
    // At an offset: the file position is shared with the sender and may be anywhere.
    file.read_exact_at(&mut buffer, 0)?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_is_read_and_cannot_be_written() {
        for bytes in [Vec::new(), vec![7; 1], vec![3; 200_000]] {
            let fd = seal("test", &bytes).expect("memfd");
            let again = File::from(fd.try_clone().expect("dup"));
            assert!(again.write_at(b"x", 0).is_err(), "sealed against writing");
            assert!(again.set_len(1 << 30).is_err(), "sealed against growing");
            assert_eq!(open(fd, BYTES_MAX).expect("sealed"), bytes);
        }
    }

    #[test]
    fn unsealed_half_sealed_and_foreign_descriptors_are_refused() {
        let plain =
            || memfd_create("test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).expect("memfd");
        assert!(matches!(open(plain(), BYTES_MAX), Err(SealedError::Unsealed)));
        let half = plain();
        fcntl(&half, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK)).expect("seal");
        assert!(matches!(open(half, BYTES_MAX), Err(SealedError::Unsealed)));
        let (pipe, _keep) = nix::unistd::pipe().expect("pipe");
        assert!(matches!(open(pipe, BYTES_MAX), Err(SealedError::Unsealed)));
        let file = OwnedFd::from(tempfile::tempfile().expect("file"));
        assert!(open(file, BYTES_MAX).is_err());
    }

    #[test]
    fn the_receiver_bounds_what_it_reads() {
        let fd = seal("test", &[0; 11]).expect("memfd");
        assert!(matches!(open(fd, 10), Err(SealedError::TooLarge { bytes: 11, max: 10 })));
    }
}
