//! Memory shared between processes: counters in a memfd, steering slots in a mmapable map.

use crate::telemetry::counters::CounterBlock;
use crate::time::Time;

/// One worker's counter block, mapped.
#[derive(Clone, Debug)]
pub struct Counters(());

impl Counters {
    /// Private memory, for tests and for a process without a supervisor's memfd.
    #[must_use]
    pub fn private() -> Self {
        unimplemented!()
    }
}

impl std::ops::Deref for Counters {
    type Target = CounterBlock;

    fn deref(&self) -> &CounterBlock {
        unimplemented!()
    }
}

/// One worker's line of the steering array (`proxy_common::steer::WorkerSlot`), mapped.
#[derive(Debug)]
pub struct SteeringSlot(());

impl SteeringSlot {
    /// Private memory, for tests and for a machine without a steering program.
    #[must_use]
    pub fn private() -> Self {
        unimplemented!()
    }

    /// Takes new flows from now on.
    pub fn live(&self, _generation: u32, _node: u32) {
        unimplemented!()
    }

    /// Takes no new flows from now on.
    pub fn draining(&self) {
        unimplemented!()
    }

    /// Connections held now.
    pub fn load(&self, _connections: u32) {
        unimplemented!()
    }

    /// The loop woke at `now`.
    pub fn running(&self, _now: Time) {
        unimplemented!()
    }

    /// The loop is about to sleep.
    pub fn sleeping(&self) {
        unimplemented!()
    }
}
