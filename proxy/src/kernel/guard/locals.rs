//! The addresses of this host. A listener on the unspecified address takes packets to these and to no others.
//! Whole prefixes can be local too (AnyIP: `ip route add local 192.0.2.0/24 dev lo`).
//!
//! Addresses are in a hash, prefixes in a trie, which only packets to other addresses pay for.

use std::collections::{BTreeSet, HashSet};

use aya::maps::{HashMap, MapData, MapError};
use ipnet::IpNet;
use proxy_common::guard::{GUARD_LOCAL_NETS, GUARD_LOCALS, LOCALS_MAX};

use super::lists::{self, List, prefixes};
use crate::kernel::address::mapped;
use crate::kernel::error::KernelError;
use crate::kernel::object::Object;

const LOCALS: &str = "GUARD_LOCALS";
const NETS: &str = "GUARD_LOCAL_NETS";

/// The flags of `GuardConfig` that are decided here.
pub(super) const FLAGS: u32 = GUARD_LOCALS | GUARD_LOCAL_NETS;

/// Addresses and prefixes that are no longer local but are still in the maps.
pub(super) struct Stale {
    addresses: Vec<[u8; 16]>,
    nets: lists::Stale,
}

/// The maps of addresses and of prefixes, and their contents.
pub(super) struct Locals {
    addresses: HashMap<MapData, [u8; 16], u8>,
    nets: List,
    /// `None`: nobody keeps the list. What an earlier run left in the maps is out of date.
    kept: Option<BTreeSet<IpNet>>,
}

impl Locals {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self { addresses: object.take_map(LOCALS)?, nets: List::take(object, NETS)?, kept: None })
    }

    /// The flags of `GuardConfig` that tell the program which maps to ask.
    pub(super) fn flags(&self) -> u32 {
        let Some(kept) = &self.kept else { return 0 };
        let has_nets = kept.iter().any(|local| !is_address(local));
        GUARD_LOCALS | if has_nets { GUARD_LOCAL_NETS } else { 0 }
    }

    /// Adds what is missing from the maps; returns what is stale.
    pub(super) fn add(&mut self, wanted: BTreeSet<IpNet>) -> Result<Stale, KernelError> {
        let failed = |error| KernelError::map(LOCALS, error);
        let wanted: BTreeSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        let (addresses, nets): (Vec<IpNet>, Vec<IpNet>) = wanted.iter().partition(|local| is_address(local));
        let addresses: HashSet<[u8; 16]> = addresses.iter().map(|local| mapped(local.addr())).collect();
        KernelError::check_room(LOCALS, addresses.len(), LOCALS_MAX)?;
        let nets = prefixes(&nets);
        self.nets.check_room(&nets)?;
        let present: HashSet<[u8; 16]> = self.addresses.keys().collect::<Result<_, _>>().map_err(failed)?;
        let mut stale: Vec<[u8; 16]> = present.difference(&addresses).copied().collect();
        // Where old and new addresses do not fit together, some stale ones go first.
        let room = LOCALS_MAX as usize;
        let early = (stale.len() + addresses.len()).saturating_sub(room).min(stale.len());
        for address in stale.drain(..early) {
            self.addresses.remove(&address).map_err(failed)?;
        }
        for address in addresses.difference(&present) {
            self.addresses.insert(address, 1, 0).map_err(failed)?;
        }
        let nets = self.nets.add(&nets)?;
        self.kept = Some(wanted);
        Ok(Stale { addresses: stale, nets })
    }

    /// Removes the stale ones that `add` returned.
    pub(super) fn remove(&mut self, stale: &Stale) -> Result<(), KernelError> {
        for address in &stale.addresses {
            match self.addresses.remove(address) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(KernelError::map(LOCALS, error)),
            }
        }
        self.nets.remove(&stale.nets)
    }

    /// The list that is kept.
    pub(super) fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.kept.iter().flatten().copied()
    }

    /// Nobody keeps the list any more.
    pub(super) fn forget(&mut self) {
        self.kept = None;
    }
}

fn is_address(local: &IpNet) -> bool {
    local.prefix_len() == local.max_prefix_len()
}
