//! The allow list and the deny list: tries of prefixes (BPF_MAP_TYPE_LPM_TRIE). A list changes in two steps.
//! New prefixes are added before the guard's configuration changes, stale ones are removed after it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use aya::maps::MapData;
use aya::maps::lpm_trie::{Key, LpmTrie};
use ipnet::IpNet;
use proxy_common::guard::PREFIXES_MAX;

use crate::kernel::address::mapped;
use crate::kernel::error::KernelError;
use crate::kernel::object::Object;

/// Prefix length and address, as in a trie's key, with the value. The value 0 exempts a prefix from a shorter
/// one.
pub(super) type Prefixes = BTreeMap<(u32, [u8; 16]), u32>;

/// Prefixes that have left the list but are still in the trie.
pub(super) struct Stale(Vec<Key<[u8; 16]>>);

/// The trie of one list.
pub(super) struct List {
    name: &'static str,
    trie: LpmTrie<MapData, [u8; 16], u32>,
}

impl List {
    /// Takes the map of this name out of the object.
    pub(super) fn take(object: &mut Object, name: &'static str) -> Result<Self, KernelError> {
        Ok(Self { name, trie: object.take_map(name)? })
    }

    /// Fails when the list is longer than the trie can hold.
    pub(super) fn check_room(&self, wanted: &Prefixes) -> Result<(), KernelError> {
        KernelError::check_room(self.name, wanted.len(), PREFIXES_MAX)
    }

    /// Inserts the prefixes that are missing or have another value; returns the stale ones.
    pub(super) fn add(&mut self, wanted: &Prefixes) -> Result<Stale, KernelError> {
        let failed = |error| KernelError::map(self.name, error);
        let present: Vec<_> = self.trie.iter().collect::<Result<_, _>>().map_err(failed)?;
        let present: Prefixes =
            present.into_iter().map(|(key, value)| ((key.prefix_len(), key.data()), value)).collect();
        let stale: Vec<_> = present.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        // The trie holds old and new prefixes for a moment. Where they do not fit together, some stale ones
        // go first.
        let room = PREFIXES_MAX as usize;
        let early = (present.len() + wanted.len()).saturating_sub(room).min(stale.len());
        let (early, late) = stale.split_at(early);
        for (length, address) in early {
            self.trie.remove(&Key::new(*length, *address)).map_err(failed)?;
        }
        for (&(length, address), value) in wanted {
            if present.get(&(length, address)) != Some(value) {
                self.trie.insert(&Key::new(length, address), value, 0).map_err(failed)?;
            }
        }
        Ok(Stale(late.iter().map(|(length, address)| Key::new(*length, *address)).collect()))
    }

    /// Removes the stale prefixes that `add` returned.
    pub(super) fn remove(&mut self, Stale(keys): &Stale) -> Result<(), KernelError> {
        for key in keys {
            self.trie.remove(key).map_err(|error| KernelError::map(self.name, error))?;
        }
        Ok(())
    }
}

/// The keys of a list. A short IPv6 prefix may cover the IPv4-mapped addresses, but must not list IPv4. So
/// all of IPv4 is exempted from it, unless the list has 0.0.0.0/0 too.
pub(super) fn prefixes(list: &[IpNet]) -> Prefixes {
    let mut keys = Prefixes::new();
    let all_v4 = (96, mapped(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
    for net in list {
        match net {
            IpNet::V4(net) => {
                keys.insert((96 + u32::from(net.prefix_len()), mapped(IpAddr::V4(net.network()))), 1);
            }
            IpNet::V6(net) => {
                if net.prefix_len() < 96 && net.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()) {
                    keys.entry(all_v4).or_insert(0);
                }
                keys.insert((u32::from(net.prefix_len()), net.network().octets()), 1);
            }
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_ipv6_prefix_spares_ipv4() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let v4 = (96, mapped(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(prefixes(&[net("::/0")]).get(&v4), Some(&0));
        assert_eq!(prefixes(&[net("::/0"), net("0.0.0.0/0")]).get(&v4), Some(&1));
        assert_eq!(prefixes(&[net("0.0.0.0/0"), net("::/0")]).get(&v4), Some(&1));
        assert_eq!(prefixes(&[net("2001:db8::/32")]).get(&v4), None);
        // Host bits do not change the key.
        assert_eq!(prefixes(&[net("10.1.2.3/8")]), prefixes(&[net("10.0.0.0/8")]));
    }
}
