//! The maps of steering: the slots in which workers publish their state, and the entries that the reuseport
//! program reads.

/// Slots in the steering array. This is also the sockarray's stride per listener, and so the most workers
/// that can exist at once over all generations. Slot = (generation % 2) * `WORKERS_MAX` + worker.
pub const SLOTS: u32 = 256;
/// The most workers of one data plane.
pub const WORKERS_MAX: u32 = SLOTS / 2;

/// `WorkerSlot::state`: no worker publishes here.
pub const SLOT_EMPTY: u32 = 0;
/// `WorkerSlot::state`: a worker takes new flows.
pub const SLOT_LIVE: u32 = 1;
/// `WorkerSlot::state`: a worker finishes its connections and takes no new flows.
pub const SLOT_DRAINING: u32 = 2;

/// One worker's slot in the steering array, which user space maps into its memory. It is a cache line, so
/// that workers never share one.
///
/// The worker writes with relaxed atomics, the program reads plain words. A torn view only costs a less good
/// choice.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerSlot {
    /// `SLOT_EMPTY`, `SLOT_LIVE` or `SLOT_DRAINING`.
    pub state: u32,
    /// Connections the worker holds now: the load that `least-loaded` compares.
    pub load: u32,
    /// Since when the worker has been running without going to sleep in `io_uring_enter`, in nanoseconds of
    /// CLOCK_MONOTONIC; 0 while it sleeps. A worker that runs for longer than `stuck_after` gets no new
    /// flows.
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

/// The most listener addresses that are steered.
pub const LISTENERS_MAX: u32 = crate::guard::LISTENERS_MAX;
/// Entries of the sockarray. The index of a socket is listener index * `SLOTS` + slot.
pub const SOCKETS: u32 = LISTENERS_MAX * SLOTS;

/// `SteerConfig::policy`: leave every flow to the kernel's hash.
pub const POLICY_KERNEL: u32 = 0;
/// `SteerConfig::policy`: by flow hash among the workers that take new flows.
pub const POLICY_HASH: u32 = 1;
/// `SteerConfig::policy`: two candidates by flow hash; the one with fewer connections wins.
pub const POLICY_LEAST_LOADED: u32 = 2;
/// `SteerConfig::policy`: least-loaded among the workers of this NUMA node; if there is none, among all.
pub const POLICY_NUMA_LOCAL: u32 = 3;

/// Entry 0 of the steering configuration.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteerConfig {
    /// `POLICY_…`
    pub policy: u32,
    /// Zero.
    pub reserved: u32,
    /// Nanoseconds: a worker that runs for longer without sleeping gets no new flows.
    pub stuck_after_nanos: u64,
}

const _: () = assert!(core::mem::size_of::<SteerConfig>() == 16);

/// The entry of one listener address for the steering program.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteerListener {
    /// Its stride in the sockarray, below `LISTENERS_MAX`.
    pub index: u32,
    /// The number of sockets of each generation (by `generation % GENERATIONS`), each at most `WORKERS_MAX`.
    pub sockets: [u32; GENERATIONS as usize],
}

const _: () = assert!(core::mem::size_of::<SteerListener>() == 12);

/// Declares the reasons why a flow is left to the kernel's own hash, each with its label.
macro_rules! fallbacks {
    ($($(#[$meta:meta])* $variant:ident = $label:literal,)*) => {
        /// Why a flow was left to the kernel's own hash.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fallback { $($(#[$meta])* $variant,)* }

        impl Fallback {
            /// Every reason, in counter order.
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

/// The number of reasons, and so of entries in the counter array.
pub const FALLBACKS: u32 = Fallback::ALL.len() as u32;
