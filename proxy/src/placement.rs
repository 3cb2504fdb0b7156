//! Putting a thread on its core (core_affinity, sched_setaffinity) and its memory on the core's NUMA node:
//! set_mempolicy(2). Worker and supervisor both need it and neither may import the other, so it stands here.
//! hwloc2 finds the places (`supervisor::topology`) but its bindings offer no memory binding; this is the
//! call that hwloc makes.
#![allow(unsafe_code, reason = "set_mempolicy has no safe wrapper")]

use std::io;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Nodes that fit the mask handed to the kernel: CONFIG_NODES_SHIFT is at most 10.
const NODES_MAX: usize = 1024;
const WORD_BITS: usize = libc::c_ulong::BITS as usize;

/// Why a thread stays where it is. Worth a warning, never fatal.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The kernel refused the CPU.
    #[error("cannot pin to CPU {cpu}: {reason}")]
    Pin {
        /// Logical CPU.
        cpu: usize,
        /// The kernel's error.
        reason: io::Error,
    },
    /// The kernel refused the node.
    #[error("cannot bind memory to NUMA node {node}: {reason}")]
    Memory {
        /// NUMA node.
        node: usize,
        /// The kernel's error.
        reason: io::Error,
    },
}

/// Pins the calling thread to one logical CPU.
pub fn pin_current(cpu: usize) -> Result<(), PlacementError> {
    // core_affinity indexes a fixed set without a check of its own.
    if cpu >= CpuSet::count() {
        return Err(PlacementError::Pin { cpu, reason: io::ErrorKind::InvalidInput.into() });
    }
    if core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
        Ok(())
    } else {
        Err(PlacementError::Pin { cpu, reason: io::Error::last_os_error() })
    }
}

/// Lets the calling thread run on any of these logical CPUs (the control and log threads). Threads it starts
/// inherit that.
pub fn pin_current_to(cpus: &[usize]) -> Result<(), PlacementError> {
    let first = cpus.first().copied().unwrap_or_default();
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).map_err(|error| PlacementError::Pin { cpu, reason: error.into() })?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
        .map_err(|error| PlacementError::Pin { cpu: first, reason: error.into() })
}

/// Takes the calling thread's future pages from this node, and from others only when it is full
/// (MPOL_PREFERRED). A full node then costs latency, where a strict binding would cost the process.
pub fn bind_memory_current_thread(node: usize) -> Result<(), PlacementError> {
    if node >= NODES_MAX {
        return Err(PlacementError::Memory { node, reason: io::ErrorKind::InvalidInput.into() });
    }
    let mut mask = [0 as libc::c_ulong; NODES_MAX / WORD_BITS];
    mask[node / WORD_BITS] |= 1 << (node % WORD_BITS);
    // SAFETY: the kernel reads `maxnode - 1` bits of the mask, which is NODES_MAX bits long and outlives the
    // call, and writes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_PREFERRED, mask.as_ptr(), NODES_MAX) };
    if result == 0 {
        Ok(())
    } else {
        Err(PlacementError::Memory { node, reason: io::Error::last_os_error() })
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::sched_getaffinity;

    use super::*;

    fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(Pid::from_raw(0)).expect("our affinity");
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect()
    }

    #[test]
    fn a_pinned_thread_is_allowed_one_cpu() {
        let ours = allowed();
        let last = *ours.last().expect("a CPU");
        std::thread::spawn(move || {
            pin_current(last).expect("an allowed CPU");
            assert_eq!(allowed(), [last]);
            pin_current_to(&ours).expect("allowed CPUs");
            assert_eq!(allowed(), ours);
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn a_cpu_or_node_that_is_not_there_is_an_error() {
        let before = allowed();
        assert!(pin_current(1_000).is_err());
        assert!(pin_current(1 << 20).is_err());
        assert!(pin_current_to(&[]).is_err());
        assert!(pin_current_to(&[1 << 20]).is_err());
        assert!(bind_memory_current_thread(900).is_err());
        assert!(bind_memory_current_thread(1 << 20).is_err());
        assert_eq!(allowed(), before);
    }

    #[test]
    fn memory_binds_to_node_zero() {
        std::thread::spawn(|| {
            if let Err(PlacementError::Memory { reason, .. }) = bind_memory_current_thread(0) {
                assert_eq!(
                    reason.raw_os_error(),
                    Some(libc::ENOSYS),
                    "refused only by a kernel without NUMA: {reason}"
                );
                return;
            }
            let policy = std::fs::read_to_string("/proc/thread-self/numa_maps").expect("numa_maps");
            assert!(
                policy.contains(" prefer:0 ") || policy.contains(" prefer (many):0 "),
                "{}",
                policy.lines().next().unwrap_or_default()
            );
        })
        .join()
        .expect("no panic");
    }
}
