//! Whether this kernel's io_uring has what a worker needs.

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use super::{KernelRing, build};
use crate::io::buffers::Class;
use crate::io::restrictions::OPERATIONS;
use crate::io::seam::{Completion, Op, Ring};
use crate::io::settings;
use crate::io::token::{Kind, Token};

/// Features of the kernel's io_uring that matter to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFeatures {
    /// Completion queue entries of the probing ring; a ring of `entries` has twice as many.
    pub completion_entries: u32,
}

/// Why a worker could not run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The ring itself.
    #[error("io_uring with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1): {0}")]
    Setup(io::Error),
    /// The buffer ring.
    #[error("io_uring provided-buffer rings (Linux 5.19): {0}")]
    Buffers(io::Error),
    /// An operation.
    #[error("io_uring does not know {0}")]
    Operation(&'static str),
    /// A trial that failed.
    #[error("io_uring multishot receive into provided buffers (Linux 6.0): {0}")]
    Receive(String),
}

/// Tries the operations a worker needs by doing them: features are gated by this, never by a version number.
///
/// # Errors
/// Names the first thing that is missing.
pub fn probe() -> Result<RingFeatures, ProbeError> {
    let ring = build(8).map_err(ProbeError::Setup)?;
    let completion_entries = ring.params().cq_entries();
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known).map_err(ProbeError::Setup)?;
    for (code, name) in OPERATIONS {
        if !known.is_supported(code) {
            return Err(ProbeError::Operation(name));
        }
    }
    drop(ring);
    let settings = settings::Ring { entries: 8, buffers: 2, buffer_size: 64 };
    let mut ring = KernelRing::new(settings, 0).map_err(ProbeError::Buffers)?;
    receive_twice(&mut ring)?;
    Ok(RingFeatures { completion_entries })
}

/// One multishot receive must report two messages and stay armed.
fn receive_twice(ring: &mut KernelRing) -> Result<(), ProbeError> {
    use std::io::Write;
    let failed = |error: io::Error| ProbeError::Receive(error.to_string());
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().map_err(failed)?;
    ring.submit(
        Token::new(Kind::Receive, 0, 0),
        Op::Receive { fd: ours.as_raw_fd(), multishot: true, class: Class::Small },
    );
    for _ in 0..2 {
        theirs.write_all(b"x").map_err(failed)?;
        ring.wait(Some(Duration::from_secs(1))).map_err(failed)?;
        let mut completions = Vec::new();
        ring.completions(&mut completions);
        let [Completion { result: 1, more: true, loan: Some(_), .. }] = completions.as_slice() else {
            return Err(ProbeError::Receive(format!("{completions:?}")));
        };
    }
    ring.stop();
    Ok(())
}
