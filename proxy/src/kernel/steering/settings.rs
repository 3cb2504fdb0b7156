//! What a configuration says about steering.

/// `[steering]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// How the reuseport program chooses.
    pub policy: SteeringPolicy,
}

/// `steering.policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteeringPolicy {
    /// The better of two candidates by hash.
    LeastLoaded,
    /// Workers of the NUMA node that received the packet, then least-loaded.
    NumaLocal,
    /// By flow hash.
    Hash,
}
