//! The settings of steering.

/// `[steering]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// How the reuseport program chooses a worker.
    pub policy: SteeringPolicy,
}

/// `steering.policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SteeringPolicy {
    /// Of two workers chosen by hash, the one with fewer connections.
    LeastLoaded,
    /// As `LeastLoaded`, among the workers of the NUMA node that received the packet.
    NumaLocal,
    /// The worker chosen by the flow's hash.
    Hash,
}
