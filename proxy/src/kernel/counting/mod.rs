//! Counting: the `sock_ops` program `sluice_count` on this process's cgroup (proxy-ebpf/src/connections.rs).
//! It counts the live connections of our listeners by source; it knows our listeners from the guard's maps.
//! The guard's program reads the counts and drops handshakes above the limit.
//!
//! The maps are `SOURCES_CONFIG`, `SOURCES_COUNTS`, `SOURCES_ARMED` and `SOURCES_TALLIES`.
//!
//! Only the program itself uses `SOURCES_SOCKETS`, which remembers for each socket where its connection is
//! counted.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use aya::maps::{Array, IterableMap, MapData};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, SockOps};
use proxy_common::sources::{self, Armed, Bucket, CountConfig, KERNEL_BITS, Tally};

use super::address::mapped;
use super::cgroup;
use super::error::{KernelError, chain};
use super::maps::{Counters, Single, random_seeds};
use super::netns;
use super::object::{COUNT, Object};

const CONFIG: &str = "SOURCES_CONFIG";
const COUNTS: &str = "SOURCES_COUNTS";
const ARMED: &str = "SOURCES_ARMED";
const TALLIES: &str = "SOURCES_TALLIES";

/// Connections that the program has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Connections that were established and counted.
    pub opened: u64,
    /// The counted connections that have ended.
    pub closed: u64,
    /// Connections that were established but not counted, for want of room in the table or of memory.
    pub uncounted: u64,
}

/// The program and its maps. See the module.
pub struct CountingProgram {
    config: Single<CountConfig>,
    counts: Array<MapData, Bucket>,
    armed: Single<Armed>,
    tallies: Counters,
    /// The seeds choose a source's buckets for as long as the counts live.
    seeds: [u64; sources::ROWS as usize],
    /// The link that keeps the program on the cgroup.
    link: Option<FdLink>,
}

impl CountingProgram {
    pub(super) fn new(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self {
            config: Single::take(object, CONFIG)?,
            counts: object.take_map(COUNTS)?,
            armed: Single::take(object, ARMED)?,
            tallies: Counters::take(object, TALLIES)?,
            seeds: random_seeds(),
            link: None,
        })
    }

    /// Counts the connections of every listener that this process creates from now on; returns the cgroup's
    /// path.
    pub(super) fn start(&mut self, object: &mut Object) -> Result<PathBuf, KernelError> {
        let (path, cgroup) = cgroup::own()?;
        if self.link.is_some() {
            return Ok(path);
        }
        let failed = |error: &(dyn std::error::Error + 'static)| KernelError::Cgroup {
            reason: format!("the program that counts connections, on {}: {}", path.display(), chain(error)),
        };
        let program: &mut SockOps = object.program_mut(COUNT)?;
        if program.fd().is_err() {
            program.load().map_err(|error| failed(&error))?;
        }
        // A link takes no flags; other programs on the cgroup stay attached.
        let link = program.attach(cgroup, CgroupAttachMode::Single).map_err(|error| failed(&error))?;
        let link = program.take_link(link).map_err(|error| failed(&error))?;
        self.link = Some(FdLink::try_from(link).map_err(|error| failed(&error))?);
        Ok(path)
    }

    /// Whether connections are counted.
    #[must_use]
    pub const fn is_counting(&self) -> bool {
        self.link.is_some()
    }

    /// When the guard last noted SYNs above their source's rate, in nanoseconds of CLOCK_MONOTONIC; 0: never.
    pub(super) fn pressed_at(&self) -> Result<u64, KernelError> {
        Ok(self.armed.read()?.pressed_at)
    }

    /// Writes how many connections a source may have (`None`: any number), and our network namespace.
    pub(super) fn set_limit(&mut self, connections_per_ip: Option<u32>) -> Result<(), KernelError> {
        self.config.write(CountConfig {
            limit: connections_per_ip.unwrap_or(0).into(),
            // Without the cookie, connections to the same address and port in other namespaces would count as
            // well.
            netns_cookie: netns::cookie().unwrap_or(0),
            seeds: self.seeds,
        })
    }

    /// The table of counts, for tests that fill it.
    #[must_use]
    pub fn counts(&self) -> BorrowedFd<'_> {
        self.counts.map().fd().as_fd()
    }

    /// The number of a source's live connections. The source of an IPv6 address is its /64.
    ///
    /// # Errors
    /// When the counts cannot be read.
    pub fn connections_of(&self, source: IpAddr) -> Result<u64, KernelError> {
        let bits = u128::from_be_bytes(mapped(source));
        let key = sources::key((bits >> 64) as u64, bits as u64);
        let mut count = 0;
        for (row, seed) in (0..).zip(self.seeds) {
            let place = sources::place(key, seed, row, KERNEL_BITS);
            let bucket =
                self.counts.get(&place.bucket, 0).map_err(|error| KernelError::map(COUNTS, error))?;
            count += bucket.iter().map(|entry| sources::count(*entry, place.tag, KERNEL_BITS)).sum::<u64>();
        }
        Ok(count)
    }

    /// The number of live connections that brought their source to its limit. Above 0, the guard looks up the
    /// socket of each ACK.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn at_limit(&self) -> Result<u64, KernelError> {
        Ok(self.armed.read()?.at_limit)
    }

    /// The connections counted so far.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn counted(&self) -> Result<Counted, KernelError> {
        let mut counted = Counted::default();
        for (tally, sum) in Tally::ALL.iter().zip(self.tallies.sums()?) {
            match tally {
                Tally::Opened => counted.opened = sum,
                Tally::Closed => counted.closed = sum,
                Tally::NoRoom | Tally::NoStorage => counted.uncounted += sum,
            }
        }
        Ok(counted)
    }
}
