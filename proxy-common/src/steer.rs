//! The steering array: what a worker publishes about itself, and what the reuseport program reads.

/// Slots in the steering array, the sockarray's stride per listener, and so the most workers that can
/// exist at once over all generations. Slot = (generation % 2) * `WORKERS_MAX` + worker.
pub const SLOTS: u32 = 256;
/// The most workers of one data plane.
pub const WORKERS_MAX: u32 = SLOTS / 2;

/// `WorkerSlot::state`: nobody publishes here.
pub const SLOT_EMPTY: u32 = 0;
/// `WorkerSlot::state`: a worker takes new flows.
pub const SLOT_LIVE: u32 = 1;
/// `WorkerSlot::state`: a worker finishes what it has and takes no new flows.
pub const SLOT_DRAINING: u32 = 2;

/// One worker's line in the mmapable steering array: a cache line each, so that workers never share one.
///
/// The worker writes with relaxed atomics, the program reads plain words; a torn view only costs a less
/// good choice.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerSlot {
    /// `SLOT_EMPTY`, `SLOT_LIVE` or `SLOT_DRAINING`.
    pub state: u32,
    /// Connections the worker holds now: the load that `least-loaded` compares.
    pub load: u32,
    /// CLOCK_MONOTONIC nanoseconds since which the worker has been running without going to sleep in
    /// `io_uring_enter`; 0 while it sleeps. Older than `stuck_after`: no new flows.
    pub running_since: u64,
    /// NUMA node of the worker's core.
    pub node: u32,
    /// Generation of the data plane that publishes here.
    pub generation: u32,
    /// Zero.
    pub reserved: [u32; 10],
}

const _: () = assert!(core::mem::size_of::<WorkerSlot>() == 64);
