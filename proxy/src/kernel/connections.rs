//! The user side of exact connections per source: attaching the program that counts, its limit, and what it
//! counted (`proxy-ebpf/src/connections.rs`).

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use aya::maps::{Array, Map, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, SockOps};
use proxy_common::sources::{self, Armed, Bucket, CountConfig, KERNEL_BITS, Tally};

use super::guard::Guard;
use super::loader::{Programs, missing, program_mut};
use super::{KernelError, cgroup, chain, mapped, netns};

pub(super) const COUNT: &str = "sluice_count";
const CONFIG: &str = "SOURCES_CONFIG";
const COUNTS: &str = "SOURCES_COUNTS";
const ARMED: &str = "SOURCES_ARMED";
const TALLIES: &str = "SOURCES_TALLIES";

/// Connections that the program has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Established and counted, all together.
    pub opened: u64,
    /// Of those: ended.
    pub closed: u64,
    /// Established and not counted: no room in the table, or no memory.
    pub uncounted: u64,
}

impl Programs {
    /// Counts the connections of listeners that this process creates from now on; returns the cgroup's path.
    /// Which listeners are ours is up to `apply_guard`.
    ///
    /// # Errors
    /// Why nothing is counted. What the guard limits stays unlimited then.
    pub fn count_connections(&mut self) -> Result<PathBuf, KernelError> {
        let (path, cgroup) = cgroup::own()?;
        if self.counting.is_some() {
            return Ok(path);
        }
        let failed = |error: &(dyn std::error::Error + 'static)| KernelError::Cgroup {
            reason: format!("the program that counts connections, on {}: {}", path.display(), chain(error)),
        };
        let program: &mut SockOps = program_mut(&mut self.ebpf, COUNT)?;
        if program.fd().is_err() {
            program.load().map_err(|error| failed(&error))?;
        }
        // Links take no flags, and always stand beside those of others.
        let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(|error| failed(&error))?;
        let link = program.take_link(link).map_err(|error| failed(&error))?;
        self.counting = Some(FdLink::try_from(link).map_err(|error| failed(&error))?);
        Ok(path)
    }

    /// Whether connections are counted.
    #[must_use]
    pub const fn counts_connections(&self) -> bool {
        self.counting.is_some()
    }

    /// Writes the limit, and whose connections count.
    pub(super) fn write_connections(&mut self, guard: &Guard) -> Result<(), KernelError> {
        // Seeds live as long as the counts that were placed by them.
        let present = self
            .map::<Array<_, CountConfig>>(CONFIG)?
            .get(&0, 0)
            .map_err(|error| KernelError::map(CONFIG, error))?;
        let config = CountConfig {
            limit: guard.connections_per_ip.unwrap_or(0).into(),
            // Without it connections to the same address and port in other namespaces would count as well.
            netns_cookie: netns::cookie().unwrap_or(0),
            seeds: if present.seeds == [0; 2] {
                self.seeds.map(|seed| seed.rotate_left(32))
            } else {
                present.seeds
            },
        };
        let mut map = self.map_mut::<Array<_, CountConfig>>(CONFIG)?;
        map.set(0, config, 0).map_err(|error| KernelError::map(CONFIG, error))
    }

    /// The table of counts: for tests that fill it.
    pub fn counts(&self) -> Result<BorrowedFd<'_>, KernelError> {
        match self.ebpf.map(COUNTS) {
            Some(Map::Array(map)) => Ok(map.fd().as_fd()),
            _ => Err(missing(COUNTS)),
        }
    }

    /// Live connections of a source (an IPv6 one is its /64).
    pub fn connections_of(&self, source: IpAddr) -> Result<u64, KernelError> {
        let config = self
            .map::<Array<_, CountConfig>>(CONFIG)?
            .get(&0, 0)
            .map_err(|error| KernelError::map(CONFIG, error))?;
        let bits = u128::from_be_bytes(mapped(source));
        let key = sources::key((bits >> 64) as u64, bits as u64);
        let buckets = self.map::<Array<_, Bucket>>(COUNTS)?;
        let mut count = 0;
        for (row, seed) in (0..).zip(config.seeds) {
            let place = sources::place(key, seed, row, KERNEL_BITS);
            let bucket = buckets.get(&place.bucket, 0).map_err(|error| KernelError::map(COUNTS, error))?;
            count += bucket.iter().map(|entry| sources::count(*entry, place.tag, KERNEL_BITS)).sum::<u64>();
        }
        Ok(count)
    }

    /// Live connections that brought their source to its limit: while there are any, ACKs are looked up.
    pub fn connections_at_limit(&self) -> Result<u64, KernelError> {
        let armed =
            self.map::<Array<_, Armed>>(ARMED)?.get(&0, 0).map_err(|error| KernelError::map(ARMED, error))?;
        Ok(armed.at_limit)
    }

    /// What was counted.
    pub fn counted(&self) -> Result<Counted, KernelError> {
        let tallies = self.map::<PerCpuArray<_, u64>>(TALLIES)?;
        let mut counted = Counted::default();
        for tally in Tally::ALL {
            let values =
                tallies.get(&(*tally as u32), 0).map_err(|error| KernelError::map(TALLIES, error))?;
            let sum: u64 = values.iter().sum();
            match tally {
                Tally::Opened => counted.opened = sum,
                Tally::Closed => counted.closed = sum,
                Tally::NoRoom | Tally::NoStorage => counted.uncounted += sum,
            }
        }
        Ok(counted)
    }
}
