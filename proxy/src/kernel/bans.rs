//! The user side of bans: the table that the guard's program reads, and their bits in its prefilter.
//!
//! A ban's bits are set before it is entered and cleared after it is taken out. Bits are shared, so clearing
//! means making the bans' part of the bitmap anew: once for all that ended, by `sweep_bans`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{Array, HashMap, MapError};
use ipnet::IpNet;
use proxy_common::filter::{CHUNK_WORDS, Chunk};
use proxy_common::guard::{BANS_MAX, GUARD_BANS, GuardConfig};

use super::filter::Filter;
use super::loader::Programs;
use super::policy::FILTER;
use super::{KernelError, mapped};
use crate::control::bans::BanSource;
use crate::time::Time;

pub(super) const BANS: &str = "GUARD_BANS";

/// What the kernel's table holds. Only we write it, so it is read once, when it is adopted.
#[derive(Debug, Default)]
pub(super) struct Bans {
    /// When each ends, on the monotonic clock.
    ends: BTreeMap<BanSource, Time>,
    /// The first end; kept, since the supervisor's loop asks at every turn.
    next: Option<Time>,
    /// The bitmap still has bits of bans that are gone.
    stale: bool,
}

impl Bans {
    /// Bits of all of them.
    pub(super) fn filter(&self, multiplier: u64) -> Filter {
        Filter::new(multiplier, self.ends.keys().map(|source| prefix(*source)))
    }

    /// Of `GuardConfig::flags`.
    pub(super) fn flag(&self) -> u32 {
        if self.ends.is_empty() { 0 } else { GUARD_BANS }
    }
}

impl Programs {
    /// Bans a source until `end`, however long it was banned before; returns the end of the ban that this one
    /// replaces.
    ///
    /// # Errors
    /// `BansFull` when there are as many as can be and none of them is over; every other ban stays as it was.
    pub fn ban(&mut self, source: BanSource, end: Time, now: Time) -> Result<Option<Time>, KernelError> {
        let known = self.bans.ends.contains_key(&source);
        if !known && self.bans.ends.len() >= BANS_MAX as usize {
            self.sweep_bans(now)?;
            if self.bans.ends.len() >= BANS_MAX as usize {
                return Err(KernelError::BansFull);
            }
        }
        let [multiplier, _] = self.seeds;
        let bits = Filter::new(multiplier, std::iter::once(prefix(source)));
        // Should the table refuse it, the next sweep takes the bits back.
        let was_stale = std::mem::replace(&mut self.bans.stale, true);
        self.add_bits(&bits)?;
        let config = self.guard_config()?;
        let wanted = GuardConfig {
            flags: config.flags | GUARD_BANS,
            classes: config.classes | bits.classes,
            ..config
        };
        if config != wanted {
            self.write_config(wanted)?;
        }
        let mut table = self.map_mut::<HashMap<_, u64, u64>>(BANS)?;
        table.insert(source.key(), end.as_nanos(), 0).map_err(|error| KernelError::map(BANS, error))?;
        let before = self.bans.ends.insert(source, end);
        self.bans.stale = was_stale;
        self.bans.next =
            if before.is_some() { self.bans.ends.values().min().copied() } else { min(self.bans.next, end) };
        Ok(before.filter(|before| *before > now))
    }

    /// Lifts a ban; returns when it would have ended. `None` without one.
    ///
    /// # Errors
    /// When the table cannot be written; the ban holds then.
    pub fn unban(&mut self, source: BanSource, now: Time) -> Result<Option<Time>, KernelError> {
        if !self.bans.ends.contains_key(&source) {
            return Ok(None);
        }
        self.take_out(source)?;
        let end = self.bans.ends.remove(&source);
        self.bans.next = self.bans.ends.values().min().copied();
        self.bans.stale = true;
        Ok(end.filter(|end| *end > now))
    }

    /// Takes out the bans that are over, and the bits that nothing needs any more. The program itself looks
    /// at the time, so this frees room and spares look-ups, no more. Returns how many ended.
    ///
    /// # Errors
    /// When a map cannot be written; what was not swept is swept next time.
    pub fn sweep_bans(&mut self, now: Time) -> Result<usize, KernelError> {
        let over: Vec<BanSource> =
            self.bans.ends.iter().filter(|(_, end)| **end <= now).map(|(source, _)| *source).collect();
        for source in &over {
            self.take_out(*source)?;
            self.bans.ends.remove(source);
            self.bans.stale = true;
        }
        self.bans.next = self.bans.ends.values().min().copied();
        if self.bans.stale {
            let [multiplier, _] = self.seeds;
            let filter = self.lists.clone().union(&self.bans.filter(multiplier));
            let config = self.guard_config()?;
            let flags = config.flags & !GUARD_BANS | self.bans.flag();
            self.write_config(GuardConfig { flags, classes: filter.classes, ..config })?;
            self.write_filter(&filter)?;
            self.bans.stale = false;
        }
        Ok(over.len())
    }

    /// When there is something to sweep: the first end, or at once when bits are left over.
    #[must_use]
    pub fn next_ban_sweep(&self) -> Option<Time> {
        if self.bans.stale { Some(Time::from_nanos(0)) } else { self.bans.next }
    }

    /// Those that hold, by source, with their ends.
    pub fn bans(&self, now: Time) -> impl Iterator<Item = (BanSource, Time)> {
        self.bans.ends.iter().filter(move |(_, end)| **end > now).map(|(source, end)| (*source, *end))
    }

    /// Enters bans that other maps held; returns how many hold.
    pub(super) fn enter_bans(&mut self, bans: &[(BanSource, Time)], now: Time) -> Result<usize, KernelError> {
        for (source, end) in bans.iter().filter(|(_, end)| *end > now) {
            self.ban(*source, *end, now)?;
        }
        Ok(self.bans(now).count())
    }

    /// Learns what the kernel's table holds already.
    pub(super) fn read_bans(&mut self) -> Result<(), KernelError> {
        let table = self.map::<HashMap<_, u64, u64>>(BANS)?;
        let ends: BTreeMap<BanSource, Time> = table
            .iter()
            .map(|entry| entry.map(|(key, end)| (BanSource::of_key(key), Time::from_nanos(end))))
            .collect::<Result<_, _>>()
            .map_err(|error| KernelError::map(BANS, error))?;
        self.bans = Bans { next: ends.values().min().copied(), ends, stale: false };
        Ok(())
    }

    fn take_out(&mut self, source: BanSource) -> Result<(), KernelError> {
        match self.map_mut::<HashMap<_, u64, u64>>(BANS)?.remove(&source.key()) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(KernelError::map(BANS, error)),
        }
    }

    /// Sets bits in the kernel's bitmap.
    fn add_bits(&mut self, bits: &Filter) -> Result<(), KernelError> {
        for (&number, added) in &bits.chunks {
            let mut chunk: Chunk = self.filter.chunks.get(&number).map_or([0; CHUNK_WORDS], |known| **known);
            let known = chunk;
            chunk.iter_mut().zip(added.iter()).for_each(|(word, added)| *word |= added);
            if chunk != known {
                let mut map = self.map_mut::<Array<_, Chunk>>(FILTER)?;
                map.set(number, chunk, 0).map_err(|error| KernelError::map(FILTER, error))?;
                self.filter.chunks.insert(number, Box::new(chunk));
            }
        }
        self.filter.classes |= bits.classes;
        Ok(())
    }
}

fn min(next: Option<Time>, end: Time) -> Option<Time> {
    Some(next.map_or(end, |next| next.min(end)))
}

/// As a key of the tries.
fn prefix(source: BanSource) -> (u32, [u8; 16]) {
    match source.network() {
        IpNet::V4(net) => (128, mapped(IpAddr::V4(net.addr()))),
        IpNet::V6(net) => (64, mapped(IpAddr::V6(net.network()))),
    }
}
