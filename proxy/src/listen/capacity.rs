//! How many downstream connections a limit on descriptors allows, sans-IO. The plan, which judges the hard
//! limit of this host, and each data plane, which goes by its own, calculate alike.

/// Descriptors of a process beside sockets and workers: logs, maps, memfds, epoll, the channel.
const SPARE: u64 = 64;
/// Of a worker: its ring, its command eventfd, its counters' and slot's mappings.
const PER_WORKER: u64 = 4;
/// Of the descriptors that are left, one in so many is kept for upstream connections: an idle client has
/// none, and a busy one shares a pool. A request that finds none left is answered with 503 and counted
/// (`overloaded`).
const UPSTREAM_SHARE: u64 = 5;

/// A data plane, as far as descriptors are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Each has a listening socket for each address.
    pub workers: usize,
    /// Of all listeners.
    pub addresses: usize,
    /// `process.max_connections`; 0: as many as the descriptors allow.
    pub connections_wanted: u64,
}

impl Capacity {
    /// Downstream connections that fit into a descriptor limit, over all workers, or `connections_wanted` if
    /// that is fewer.
    #[must_use]
    pub fn connections_max(self, descriptors: u64) -> u64 {
        let left = descriptors.saturating_sub(self.fixed());
        let fitting = left - left.div_ceil(UPSTREAM_SHARE);
        if self.connections_wanted == 0 { fitting } else { fitting.min(self.connections_wanted) }
    }

    /// Descriptors for a number of downstream connections, with the upstream's share.
    #[must_use]
    pub fn descriptors_for(self, connections: u64) -> u64 {
        let share = connections.div_ceil(UPSTREAM_SHARE - 1);
        self.fixed().saturating_add(connections).saturating_add(share)
    }

    fn fixed(self) -> u64 {
        self.workers as u64 * (self.addresses as u64 + PER_WORKER) + SPARE
    }
}
