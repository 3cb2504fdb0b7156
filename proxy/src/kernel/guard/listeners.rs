//! Our listeners' addresses, in the form that the guard looks up. Each port has a state for each family. One
//! main address per family needs no look-up; all others are in a map of exact addresses. `ListenerPlan`
//! computes this, `Listeners` writes it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use aya::maps::{Array, HashMap, MapData};
use proxy_common::ListenerKey;
use proxy_common::guard::{
    GuardConfig, LISTENER_KEYS_MAX, LISTENERS_MAX, PORT_ANY, PORT_FAMILY_BITS, PORT_HIDDEN, PORT_LOOKUP,
    PORT_MAIN, PORT_WORDS, port_place,
};

use crate::kernel::address::listener_key;
use crate::kernel::error::KernelError;
use crate::kernel::object::Object;

const PORTS: &str = "GUARD_PORTS";
const LISTENERS: &str = "GUARD_LISTENERS";

/// The main address of each family, which `PORT_MAIN` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mains {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Mains {
    /// No main address: no packet goes to an unspecified address.
    pub(super) const NONE: Self = Self { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED };

    /// The main addresses in a configuration of the program.
    pub(super) fn of(config: &GuardConfig) -> Self {
        let address = |[high, low]: [u64; 2]| {
            Ipv6Addr::from_bits(u128::from(u64::from_be(high)) << 64 | u128::from(u64::from_be(low)))
        };
        Self {
            v4: address(config.main_v4).to_ipv4_mapped().unwrap_or(Self::NONE.v4),
            v6: address(config.main_v6),
        }
    }

    /// The main addresses in the form that the configuration has.
    pub(super) fn words(self) -> [[u64; 2]; 2] {
        // Network order in memory.
        let words = |bits: u128| [((bits >> 64) as u64).to_be(), (bits as u64).to_be()];
        [words(self.v4.to_ipv6_mapped().to_bits()), words(self.v6.to_bits())]
    }

    /// The main addresses that both have.
    pub(super) fn common(self, other: Self) -> Self {
        Self {
            v4: if self.v4 == other.v4 { self.v4 } else { Self::NONE.v4 },
            v6: if self.v6 == other.v6 { self.v6 } else { Self::NONE.v6 },
        }
    }
}

/// A family's part of a plan.
#[derive(Debug, Default, PartialEq, Eq)]
struct Family {
    /// Ports on which every address is ours.
    any: BTreeSet<u16>,
    /// Addresses by port, on all other ports.
    exact: BTreeMap<u16, BTreeSet<IpAddr>>,
}

impl Family {
    /// The address that stands alone on most ports.
    fn main(&self) -> Option<IpAddr> {
        let mut ports = BTreeMap::<IpAddr, usize>::new();
        for addresses in self.exact.values().filter(|addresses| addresses.len() == 1) {
            for address in addresses {
                *ports.entry(*address).or_default() += 1;
            }
        }
        ports.into_iter().max_by_key(|(_, ports)| *ports).map(|(address, _)| address)
    }

    /// Adds the port that stands for every port.
    fn add_hidden(&mut self) {
        if self.any.is_empty() {
            let all: BTreeSet<IpAddr> = self.exact.values().flatten().copied().collect();
            self.exact.extend((!all.is_empty()).then_some((PORT_HIDDEN, all)));
        } else {
            self.exact.remove(&PORT_HIDDEN);
            self.any.insert(PORT_HIDDEN);
        }
    }

    /// The state (`PORT_…`) of each port with a listener. `main` is the main address that the program knows.
    fn states(&self, main: IpAddr) -> impl Iterator<Item = (u16, u64)> {
        let any = self.any.iter().map(|port| (*port, PORT_ANY));
        any.chain(self.exact.iter().map(move |(port, addresses)| {
            let alone = addresses.len() == 1 && addresses.contains(&main);
            (*port, if alone { PORT_MAIN } else { PORT_LOOKUP })
        }))
    }
}

/// The addresses of all listeners.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListenerPlan {
    v4: Family,
    v6: Family,
}

impl ListenerPlan {
    /// Plans the look-up of these addresses. A listener on `[::]` takes IPv4 too, unless an IPv4 listener has
    /// the port.
    pub(super) fn new(listeners: &[SocketAddr]) -> Self {
        let canonical = || listeners.iter().map(|address| (address.ip().to_canonical(), address.port()));
        let v4_ports: BTreeSet<u16> =
            canonical().filter(|(ip, _)| ip.is_ipv4()).map(|(_, port)| port).collect();
        let mut plan = Self { v4: Family::default(), v6: Family::default() };
        for (ip, port) in canonical() {
            let family = if ip.is_ipv4() { &mut plan.v4 } else { &mut plan.v6 };
            if ip.is_unspecified() {
                family.any.insert(port);
            } else {
                family.exact.entry(port).or_default().insert(ip);
            }
            if ip.is_unspecified() && ip.is_ipv6() && !v4_ports.contains(&port) {
                plan.v4.any.insert(port);
            }
        }
        for family in [&mut plan.v4, &mut plan.v6] {
            family.exact.retain(|port, _| !family.any.contains(port));
            family.add_hidden();
        }
        plan
    }

    /// The main addresses that spare the most look-ups.
    pub(super) fn mains(&self) -> Mains {
        let mut mains = Mains::NONE;
        if let Some(IpAddr::V4(address)) = self.v4.main() {
            mains.v4 = address;
        }
        if let Some(IpAddr::V6(address)) = self.v6.main() {
            mains.v6 = address;
        }
        mains
    }

    /// Every exact address, main addresses included: while a main address changes, its ports are looked up.
    fn exact(&self) -> impl Iterator<Item = ListenerKey> {
        let families = [&self.v4, &self.v6].into_iter().flat_map(|family| &family.exact);
        families.flat_map(|(&port, addresses)| {
            addresses.iter().map(move |ip| listener_key(SocketAddr::new(*ip, port)))
        })
    }

    /// The whole port array, for a program that knows these main addresses.
    fn words(&self, mains: Mains) -> Vec<u64> {
        let mut words = vec![0; PORT_WORDS as usize];
        let v4 = self.v4.states(IpAddr::from(mains.v4)).map(|(port, state)| (port, state, 0));
        let v6 = self.v6.states(IpAddr::from(mains.v6)).map(|(port, state)| (port, state, PORT_FAMILY_BITS));
        for (port, state, family) in v4.chain(v6) {
            let (word, shift) = port_place(port);
            words[word as usize] |= state << (shift + family);
        }
        words
    }
}

/// Exact addresses that are no longer ours but are still in the map.
pub(super) struct Stale(Vec<ListenerKey>);

/// The maps of ports and of exact addresses.
pub(super) struct Listeners {
    ports: Array<MapData, u64>,
    exact: HashMap<MapData, ListenerKey, u32>,
}

impl Listeners {
    pub(super) fn take(object: &mut Object) -> Result<Self, KernelError> {
        Ok(Self { ports: object.take_map(PORTS)?, exact: object.take_map(LISTENERS)? })
    }

    /// Fails when there are more exact addresses than the map can hold.
    pub(super) fn check_room(plan: &ListenerPlan) -> Result<(), KernelError> {
        let listeners = plan.exact().filter(|key| key.port != u32::from(PORT_HIDDEN));
        KernelError::check_room(LISTENERS, listeners.count(), LISTENERS_MAX)
    }

    /// Adds the exact addresses of `plan`; returns the stale ones.
    pub(super) fn add(&mut self, plan: &ListenerPlan) -> Result<Stale, KernelError> {
        let failed = |error| KernelError::map(LISTENERS, error);
        let wanted: HashSet<ListenerKey> = plan.exact().collect();
        let present: HashSet<ListenerKey> = self.exact.keys().collect::<Result<_, _>>().map_err(failed)?;
        let mut stale: Vec<ListenerKey> = present.difference(&wanted).copied().collect();
        // The map has room for two configurations. Addresses that an earlier, failed change left behind go at
        // once.
        for key in stale.drain(LISTENER_KEYS_MAX.min(stale.len() as u32) as usize..) {
            self.exact.remove(&key).map_err(failed)?;
        }
        for key in wanted.difference(&present) {
            self.exact.insert(key, 1, 0).map_err(failed)?;
        }
        Ok(Stale(stale))
    }

    /// Removes the stale addresses that `add` returned.
    pub(super) fn remove(&mut self, Stale(keys): &Stale) -> Result<(), KernelError> {
        for key in keys {
            self.exact.remove(key).map_err(|error| KernelError::map(LISTENERS, error))?;
        }
        Ok(())
    }

    /// Writes the ports of `plan`, for a program that knows these main addresses.
    pub(super) fn write_ports(&mut self, plan: &ListenerPlan, mains: Mains) -> Result<(), KernelError> {
        let failed = |error| KernelError::map(PORTS, error);
        for (word, bits) in (0..).zip(plan.words(mains)) {
            if self.ports.get(&word, 0).map_err(failed)? != bits {
                self.ports.set(word, bits, 0).map_err(failed)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
