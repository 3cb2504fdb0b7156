//! The table of bans: each source with the end of its ban. The guard's program only reads it and no other
//! process writes it, so it is read once, when it is adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData, MapError};
use ipnet::IpNet;
use proxy_common::guard::BANS_MAX;

use super::filter::Filter;
use crate::control::bans::BanSource;
use crate::kernel::address::mapped;
use crate::kernel::error::KernelError;
use crate::kernel::object::Object;
use crate::time::Time;

/// The map's name, and its pin's name.
pub(super) const BANS: &str = "GUARD_BANS";

/// The table, and its contents.
pub(super) struct Bans {
    table: HashMap<MapData, u64, u64>,
    ends: BTreeMap<BanSource, Time>,
    /// The same bans ordered by their end. The supervisor's loop asks for the first end at every turn.
    by_end: BTreeSet<(Time, BanSource)>,
}

impl Bans {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self { table: object.take_map(BANS)?, ends: BTreeMap::new(), by_end: BTreeSet::new() })
    }

    /// Reads the bans of an adopted table.
    pub(super) fn adopt(&mut self) -> Result<(), KernelError> {
        self.ends = read(&self.table)?.into_iter().collect();
        self.by_end = self.ends.iter().map(|(source, end)| (*end, *source)).collect();
        Ok(())
    }

    /// Whether a ban of this source fits.
    pub(super) fn has_room_for(&self, source: BanSource) -> bool {
        self.ends.contains_key(&source) || self.ends.len() < BANS_MAX as usize
    }

    /// Enters a ban. If the source was banned already, returns the end of that ban.
    pub(super) fn insert(&mut self, source: BanSource, end: Time) -> Result<Option<Time>, KernelError> {
        self.table.insert(source.key(), end.as_nanos(), 0).map_err(|error| KernelError::map(BANS, error))?;
        let before = self.ends.insert(source, end);
        if let Some(before) = before {
            self.by_end.remove(&(before, source));
        }
        self.by_end.insert((end, source));
        Ok(before)
    }

    /// Removes a ban and returns its end; `None` if the source is not banned.
    pub(super) fn remove(&mut self, source: BanSource) -> Result<Option<Time>, KernelError> {
        let Some(end) = self.ends.get(&source).copied() else { return Ok(None) };
        match self.table.remove(&source.key()) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(KernelError::map(BANS, error)),
        }
        self.ends.remove(&source);
        self.by_end.remove(&(end, source));
        Ok(Some(end))
    }

    /// Every ban in the table, with its end.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BanSource, Time)> {
        self.ends.iter().map(|(source, end)| (*source, *end))
    }

    /// The bans that are over, the first end first.
    pub(super) fn over(&self, now: Time) -> impl Iterator<Item = BanSource> {
        self.by_end.iter().take_while(move |(end, _)| *end <= now).map(|(_, source)| *source)
    }

    /// The first end.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.by_end.first().map(|(end, _)| *end)
    }

    /// The prefilter's bits of all bans.
    pub(super) fn filter(&self, multiplier: u64) -> Filter {
        Filter::new(multiplier, self.ends.keys().map(|source| prefix(*source)))
    }

    /// Whether the table has no ban.
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// The prefilter's bits of one source.
pub(super) fn filter_of(source: BanSource, multiplier: u64) -> Filter {
    Filter::new(multiplier, std::iter::once(prefix(source)))
}

/// The bans in a pinned table that was not adopted.
pub(super) fn read_from(map: MapData) -> Result<Vec<(BanSource, Time)>, KernelError> {
    let table = Map::from_map_data(map).and_then(HashMap::try_from);
    read(&table.map_err(|error| KernelError::map(BANS, error))?)
}

fn read(table: &HashMap<MapData, u64, u64>) -> Result<Vec<(BanSource, Time)>, KernelError> {
    let entries =
        table.iter().map(|entry| entry.map(|(key, end)| (BanSource::of_key(key), Time::from_nanos(end))));
    entries.collect::<Result<_, _>>().map_err(|error| KernelError::map(BANS, error))
}

/// The source as a trie's key.
fn prefix(source: BanSource) -> (u32, [u8; 16]) {
    match source.network() {
        IpNet::V4(net) => (128, mapped(IpAddr::V4(net.addr()))),
        IpNet::V6(net) => (64, mapped(IpAddr::V6(net.network()))),
    }
}
