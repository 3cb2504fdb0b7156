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

/// Generations that can have workers at the same time.
pub const GENERATIONS: u32 = SLOTS / WORKERS_MAX;

/// The slot of a worker.
#[must_use]
pub const fn slot_of(generation: u32, worker: u32) -> u32 {
    generation % GENERATIONS * WORKERS_MAX + worker
}

/// Most listener addresses that are steered.
pub const LISTENERS_MAX: u32 = crate::guard::LISTENERS_MAX;
/// Entries of the sockarray: listener index * `SLOTS` + slot.
pub const SOCKETS: u32 = LISTENERS_MAX * SLOTS;

/// `SteerConfig::policy`: leave every flow to the kernel's hash.
pub const POLICY_KERNEL: u32 = 0;
/// `SteerConfig::policy`: by flow hash among the workers that take new flows.
pub const POLICY_HASH: u32 = 1;
/// `SteerConfig::policy`: two candidates by flow hash, the one with fewer connections wins.
pub const POLICY_LEAST_LOADED: u32 = 2;
/// `SteerConfig::policy`: least-loaded among the workers of this NUMA node; none there: among all.
pub const POLICY_NUMA_LOCAL: u32 = 3;

/// Entry 0 of the steering configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteerConfig {
    /// `POLICY_…`
    pub policy: u32,
    /// Zero.
    pub reserved: u32,
    /// A worker running longer than this without sleeping gets no new flows; nanoseconds.
    pub stuck_after_nanos: u64,
}

const _: () = assert!(core::mem::size_of::<SteerConfig>() == 16);

/// What the steering program knows about one listener address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteerListener {
    /// Its stride in the sockarray, below `LISTENERS_MAX`.
    pub index: u32,
    /// Sockets of each generation (by `generation % GENERATIONS`), each at most `WORKERS_MAX`.
    pub sockets: [u32; GENERATIONS as usize],
}

const _: () = assert!(core::mem::size_of::<SteerListener>() == 12);

/// Declares why a flow was left to the kernel's own hash.
macro_rules! fallbacks {
    ($($(#[$meta:meta])* $variant:ident = $label:literal,)*) => {
        /// Why a flow was left to the kernel's own hash.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fallback { $($(#[$meta])* $variant,)* }

        impl Fallback {
            /// Every one, in counter order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in metrics and `/status`.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

fallbacks! {
    /// No policy is set.
    Unconfigured = "unconfigured",
    /// Neither IPv4 nor IPv6, or no listening socket in the context.
    UnknownFamily = "unknown_family",
    /// The listener's address is not in the table.
    UnknownListener = "unknown_listener",
    /// Every worker is gone, draining or stuck.
    NoLiveWorker = "no_live_worker",
    /// The kernel refused every socket that was chosen.
    SelectFailed = "select_failed",
}

/// Fallback reasons there are, and so entries of the counter array.
pub const FALLBACKS: u32 = Fallback::ALL.len() as u32;
