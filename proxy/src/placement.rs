//! Putting a thread on its core and its memory on the core's NUMA node: set_mempolicy(2). Both worker and supervisor use it, and neither
//! imports the other, so it stands here. hwloc2 finds the places (`supervisor::topology`); its bindings offer no memory binding.

/// Why a thread stays where it is. Worth a warning, never fatal.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The kernel refused the CPU.
    #[error("cannot pin to CPU {cpu}: {reason}")]
    Pin {
        /// Logical CPU.
        cpu: usize,
        /// Why.
        reason: std::io::Error,
    },
    /// The kernel refused the node.
    #[error("cannot bind memory to NUMA node {node}: {reason}")]
    Memory {
        /// NUMA node.
        node: usize,
        /// Why.
        reason: std::io::Error,
    },
}

/// Pins the calling thread to one logical CPU.
pub fn pin_current(_cpu: usize) -> Result<(), PlacementError> {
    unimplemented!()
}

/// Pins the calling thread to a set of logical CPUs (the control and log threads).
pub fn pin_current_to(_cpus: &[usize]) -> Result<(), PlacementError> {
    unimplemented!()
}

/// The calling thread's future pages come from this node, from others only when it is full.
pub fn bind_memory_current_thread(_node: usize) -> Result<(), PlacementError> {
    unimplemented!()
}
