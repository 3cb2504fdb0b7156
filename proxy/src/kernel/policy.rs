//! What the programs are told: the guard's lists, rates and listener addresses, and the steering policy.
//!
//! Changes are made in an order in which every state between is the old policy, the new one, or the stricter
//! of both for a source that is on neither list: additions, then the configuration, then removals; the
//! prefilter's bits are set before the additions and cleared after the removals.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap};
use ipnet::IpNet;
use proxy_common::ListenerKey;
use proxy_common::filter::{CHUNK_WORDS, CHUNKS, Chunk};
use proxy_common::guard::{
    GUARD_ALLOW, GUARD_CONNECTIONS, GUARD_COOKIES, GUARD_DENY, GUARD_DRY_RUN, GUARD_SYN_RATE, GuardConfig,
    LISTENERS_MAX, PREFIXES_MAX,
};
use proxy_common::steer::{POLICY_HASH, POLICY_LEAST_LOADED, POLICY_NUMA_LOCAL, SteerConfig};

use super::filter::Filter;
use super::guard::{Guard, SynCookies};
use super::loader::Programs;
use super::ours::{ListenerPlan, Mains};
use super::steering::{Steering, SteeringPolicy};
use super::{KernelError, mapped};

const CONFIG: &str = "GUARD_CONFIG";
const PORTS: &str = "GUARD_PORTS";
const LISTENERS: &str = "GUARD_LISTENERS";
const ALLOW: &str = "GUARD_ALLOW";
const DENY: &str = "GUARD_DENY";
pub(super) const FILTER: &str = "GUARD_FILTER";
const STEER_CONFIG: &str = "STEER_CONFIG";

/// Prefix length and address, as in a trie's key; the value is 0 where a prefix is exempt from a shorter one.
pub(super) type Prefixes = BTreeMap<(u32, [u8; 16]), u32>;

impl Programs {
    /// Writes allow, deny, rates, `dry_run` and the addresses whose packets are judged.
    pub fn apply_guard(&mut self, guard: &Guard, listeners: &[SocketAddr]) -> Result<(), KernelError> {
        let allow = prefixes(&guard.allow);
        let deny = prefixes(&guard.deny);
        let plan = ListenerPlan::new(listeners);
        bounded(ALLOW, allow.len(), PREFIXES_MAX)?;
        bounded(DENY, deny.len(), PREFIXES_MAX)?;
        bounded(LISTENERS, plan.exact().count(), LISTENERS_MAX)?;
        let [multiplier, _] = self.seeds;
        // Only what lists a source needs bits: an exemption is looked up where a shorter prefix has some.
        let listed = allow.iter().chain(&deny).filter(|(_, value)| **value != 0).map(|(key, _)| *key);
        let lists = Filter::new(multiplier, listed);
        let filter = lists.clone().union(&self.bans.filter(multiplier));
        // Until the end, and should something fail on the way, the bits of both stay.
        self.lists = std::mem::take(&mut self.lists).union(&lists);

        // Bits before prefixes: the program must look up whatever a trie holds.
        let both = self.filter.clone().union(&filter);
        self.write_filter(&both)?;
        let present = self.guard_config()?;
        self.write_config(GuardConfig { classes: both.classes, ..present })?;
        let stale_allow = self.add_prefixes(ALLOW, &allow)?;
        let stale_deny = self.add_prefixes(DENY, &deny)?;

        self.write_connections(guard)?;
        // A main address that changes is looked up while it does.
        let mains = plan.mains();
        let kept = mains.common(self.mains);
        let stale_listeners = self.add_listeners(&plan)?;
        self.write_ports(&plan.words(kept))?;
        let mut config = guard_config(guard, self.seeds, mains, both.classes);
        config.flags |= self.bans.flag();
        if self.cookies && guard.syn_cookies != SynCookies::Off {
            config.flags |= GUARD_COOKIES;
        }
        self.write_config(config)?;
        self.mains = mains;
        if kept != mains {
            self.write_ports(&plan.words(mains))?;
        }

        self.remove_listeners(&stale_listeners)?;
        self.remove_prefixes(ALLOW, &stale_allow)?;
        self.remove_prefixes(DENY, &stale_deny)?;
        self.write_config(GuardConfig { classes: filter.classes, ..config })?;
        self.write_filter(&filter)?;
        self.lists = lists;
        Ok(())
    }

    /// Learns what adopted maps hold: their seeds choose buckets and bits, so they stay as long as the maps
    /// do.
    pub(super) fn adopt_maps(&mut self) -> Result<(), KernelError> {
        let config = self.guard_config()?;
        if config.configured != 0 {
            self.seeds = config.seeds;
            self.mains = Mains::new(config.main_v4, config.main_v6);
        }
        let bits = self.map::<Array<_, Chunk>>(FILTER)?;
        let mut known = Filter { classes: config.classes, ..Filter::default() };
        for number in 0..CHUNKS {
            let chunk: Chunk = bits.get(&number, 0).map_err(|error| KernelError::map(FILTER, error))?;
            if chunk != [0; CHUNK_WORDS] {
                known.chunks.insert(number, Box::new(chunk));
            }
        }
        self.lists = known.clone();
        self.filter = known;
        self.read_bans()
    }

    /// Sets policy and `stuck_after`.
    pub fn apply_steering(&mut self, steering: Steering, stuck_after: Duration) -> Result<(), KernelError> {
        let policy = match steering.policy {
            SteeringPolicy::LeastLoaded => POLICY_LEAST_LOADED,
            SteeringPolicy::NumaLocal => POLICY_NUMA_LOCAL,
            SteeringPolicy::Hash => POLICY_HASH,
        };
        let config = SteerConfig { policy, reserved: 0, stuck_after_nanos: nanos(stuck_after) };
        self.map_mut::<Array<_, SteerConfig>>(STEER_CONFIG)?
            .set(0, config, 0)
            .map_err(|error| KernelError::map(STEER_CONFIG, error))
    }

    /// What the guard's program reads now.
    pub(super) fn guard_config(&self) -> Result<GuardConfig, KernelError> {
        self.map::<Array<_, GuardConfig>>(CONFIG)?.get(&0, 0).map_err(|error| KernelError::map(CONFIG, error))
    }

    /// What the steering program reads now.
    pub(super) fn steer_config(&self) -> Result<SteerConfig, KernelError> {
        self.map::<Array<_, SteerConfig>>(STEER_CONFIG)?
            .get(&0, 0)
            .map_err(|error| KernelError::map(STEER_CONFIG, error))
    }

    /// Inserts what is missing or different; returns the prefixes that have to go.
    fn add_prefixes(
        &mut self,
        name: &'static str,
        wanted: &Prefixes,
    ) -> Result<Vec<Key<[u8; 16]>>, KernelError> {
        let failed = |error| KernelError::map(name, error);
        let mut trie = self.map_mut::<LpmTrie<_, [u8; 16], u32>>(name)?;
        let present: Vec<_> = trie.iter().collect::<Result<_, _>>().map_err(failed)?;
        let present: Prefixes =
            present.into_iter().map(|(key, value)| ((key.prefix_len(), key.data()), value)).collect();
        let stale: Vec<_> = present.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        // The trie holds both for a moment; where that is too much, the old ones go first.
        let room = PREFIXES_MAX as usize;
        let early = (present.len() + wanted.len()).saturating_sub(room).min(stale.len());
        let (early, late) = stale.split_at(early);
        for (length, address) in early {
            trie.remove(&Key::new(*length, *address)).map_err(failed)?;
        }
        for (&(length, address), value) in wanted {
            if present.get(&(length, address)) != Some(value) {
                trie.insert(&Key::new(length, address), value, 0).map_err(failed)?;
            }
        }
        Ok(late.iter().map(|(length, address)| Key::new(*length, *address)).collect())
    }

    fn remove_prefixes(&mut self, name: &'static str, stale: &[Key<[u8; 16]>]) -> Result<(), KernelError> {
        let mut trie = self.map_mut::<LpmTrie<_, [u8; 16], u32>>(name)?;
        for key in stale {
            trie.remove(key).map_err(|error| KernelError::map(name, error))?;
        }
        Ok(())
    }

    /// Lets the addresses of `plan` be looked up as well; returns those that have to go.
    fn add_listeners(&mut self, plan: &ListenerPlan) -> Result<Vec<ListenerKey>, KernelError> {
        let failed = |error| KernelError::map(LISTENERS, error);
        let wanted: HashSet<ListenerKey> = plan.exact().collect();
        let mut exact = self.map_mut::<HashMap<_, ListenerKey, u32>>(LISTENERS)?;
        let present: HashSet<ListenerKey> = exact.keys().collect::<Result<_, _>>().map_err(failed)?;
        let mut stale: Vec<ListenerKey> = present.difference(&wanted).copied().collect();
        // There is room for two configurations; what an earlier change that failed has left goes at once.
        for key in stale.drain(LISTENERS_MAX.min(stale.len() as u32) as usize..) {
            exact.remove(&key).map_err(failed)?;
        }
        for key in wanted.difference(&present) {
            exact.insert(key, 1, 0).map_err(failed)?;
        }
        Ok(stale)
    }

    fn remove_listeners(&mut self, stale: &[ListenerKey]) -> Result<(), KernelError> {
        let mut exact = self.map_mut::<HashMap<_, ListenerKey, u32>>(LISTENERS)?;
        for key in stale {
            exact.remove(key).map_err(|error| KernelError::map(LISTENERS, error))?;
        }
        Ok(())
    }

    fn write_ports(&mut self, words: &[u64]) -> Result<(), KernelError> {
        let failed = |error| KernelError::map(PORTS, error);
        let mut ports = self.map_mut::<Array<_, u64>>(PORTS)?;
        for (word, bits) in (0..).zip(words) {
            if ports.get(&word, 0).map_err(failed)? != *bits {
                ports.set(word, bits, 0).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Makes the bitmap in the kernel equal to `wanted`.
    pub(super) fn write_filter(&mut self, wanted: &Filter) -> Result<(), KernelError> {
        const CLEAR: Chunk = [0; CHUNK_WORDS];
        // What is known of the kernel's bitmap is borrowed apart from the map, and is kept right chunk by
        // chunk.
        let mut known = std::mem::take(&mut self.filter);
        let numbers: BTreeSet<u32> = known.chunks.keys().chain(wanted.chunks.keys()).copied().collect();
        let result = self.map_mut::<Array<_, Chunk>>(FILTER).and_then(|mut map| {
            for number in numbers {
                let chunk = wanted.chunks.get(&number);
                if known.chunks.get(&number) != chunk {
                    map.set(number, chunk.map_or(&CLEAR, |chunk| chunk), 0)
                        .map_err(|error| KernelError::map(FILTER, error))?;
                    match chunk {
                        Some(chunk) => known.chunks.insert(number, chunk.clone()),
                        None => known.chunks.remove(&number),
                    };
                }
            }
            known.classes = wanted.classes;
            Ok(())
        });
        self.filter = known;
        result
    }

    pub(super) fn write_config(&mut self, config: GuardConfig) -> Result<(), KernelError> {
        self.map_mut::<Array<_, GuardConfig>>(CONFIG)?
            .set(0, config, 0)
            .map_err(|error| KernelError::map(CONFIG, error))
    }
}

fn bounded(map: &'static str, entries: usize, most: u32) -> Result<(), KernelError> {
    if entries > most as usize {
        return Err(KernelError::Map {
            map,
            reason: format!("{entries} entries wanted, {most} are the most"),
        });
    }
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn guard_config(guard: &Guard, seeds: [u64; 2], mains: Mains, classes: u32) -> GuardConfig {
    let mut flags = 0;
    for (flag, set) in [
        (GUARD_DRY_RUN, guard.dry_run),
        (GUARD_ALLOW, !guard.allow.is_empty()),
        (GUARD_DENY, !guard.deny.is_empty()),
        (GUARD_SYN_RATE, guard.syn_rate_per_ip.is_some()),
        (GUARD_CONNECTIONS, guard.connections_per_ip.is_some()),
    ] {
        if set {
            flags |= flag;
        }
    }
    let [main_v4, main_v6] = mains.words();
    let cost = 1_000_000_000 / u64::from(guard.syn_rate_per_ip.unwrap_or(1).clamp(1, 1_000_000_000));
    GuardConfig {
        flags,
        configured: 1,
        syn_cost_nanos: cost,
        syn_depth_nanos: cost * u64::from(guard.syn_burst_per_ip.max(1)),
        seeds,
        main_v4,
        main_v6,
        classes,
        reserved: 0,
    }
}

/// The keys of a list. An IPv6 prefix so short that it covers the IPv4-mapped addresses must not catch IPv4:
/// that part is exempted, unless the list has all of IPv4 too.
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
    use crate::kernel::guard::GuardMode;

    #[test]
    fn a_short_ipv6_prefix_spares_ipv4() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let v4 = (96, mapped(IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
        assert_eq!(prefixes(&[net("::/0")]).get(&v4), Some(&0));
        assert_eq!(prefixes(&[net("::/0"), net("0.0.0.0/0")]).get(&v4), Some(&1));
        assert_eq!(prefixes(&[net("0.0.0.0/0"), net("::/0")]).get(&v4), Some(&1));
        assert_eq!(prefixes(&[net("2001:db8::/32")]).get(&v4), None);
        // Host bits do not make another key.
        assert_eq!(prefixes(&[net("10.1.2.3/8")]), prefixes(&[net("10.0.0.0/8")]));
    }

    #[test]
    fn a_bucket_holds_the_burst() {
        let guard = |rate, burst| Guard {
            interfaces: Vec::new(),
            mode: GuardMode::Auto,
            dry_run: false,
            allow: Vec::new(),
            deny: Vec::new(),
            syn_rate_per_ip: rate,
            syn_burst_per_ip: burst,
            ban_for: Duration::from_secs(60),
            connections_per_ip: None,
            syn_cookies: SynCookies::Off,
        };
        let guard_config = |guard: &Guard| super::guard_config(guard, [0; 2], Mains::NONE, 0);
        let config = guard_config(&guard(Some(1000), 2000));
        assert_eq!(
            (config.flags, config.syn_cost_nanos, config.syn_depth_nanos),
            (GUARD_SYN_RATE, 1_000_000, 2_000_000_000)
        );
        assert_eq!(guard_config(&guard(None, 2000)).flags, 0);
        // The extremes neither divide by zero nor overflow.
        assert_eq!(
            guard_config(&guard(Some(1), u32::MAX)).syn_depth_nanos,
            u64::from(u32::MAX) * 1_000_000_000
        );
        assert_eq!(guard_config(&guard(Some(u32::MAX), 0)).syn_depth_nanos, 1);
    }
}
