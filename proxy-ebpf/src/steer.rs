//! Steering (sk_reuseport): chooses the worker's socket that takes a new flow, or a flow whose listening
//! socket goes away.
//!
//! A worker publishes its load, and since when it has been running. A worker that drains, died or hangs gets
//! no new flow. On any doubt the kernel's own hash decides, and the reason is counted.

use aya_ebpf::bindings::sk_action::SK_PASS;
use aya_ebpf::programs::SkReuseportContext;
use aya_log_ebpf::warn;
use proxy_common::steer::{
    Fallback, POLICY_HASH, POLICY_KERNEL, POLICY_NUMA_LOCAL, SLOT_LIVE, SLOTS, SteerConfig, SteerListener,
    WORKERS_MAX,
};

use crate::{maps, packet};

/// Slots tried by hash before all slots are tried in order. If half of the slots are usable, 255 of 256 flows
/// end here.
const PROBES: u32 = 8;
/// A worker on any NUMA node will do.
const ANY_NODE: u32 = u32::MAX;

/// A worker that may take the flow.
#[derive(Clone, Copy)]
struct Candidate {
    slot: u32,
    load: u32,
}

/// Always passes the flow: if no worker was chosen, the kernel chooses one.
#[inline(always)]
pub fn run(ctx: &SkReuseportContext) -> u32 {
    match steer(ctx) {
        Ok(slot) => {
            maps::count_selected(slot);
            if ctx.migrating_sk().is_some() {
                maps::count_migrated();
            }
        }
        Err(fallback) => maps::count_fallback(fallback),
    }
    SK_PASS
}

#[inline(always)]
fn steer(ctx: &SkReuseportContext) -> Result<u32, Fallback> {
    let config = maps::steer_config().ok_or(Fallback::Unconfigured)?;
    if config.policy == POLICY_KERNEL {
        return Err(Fallback::Unconfigured);
    }
    let key = packet::listener(ctx)?;
    let listener = maps::steer_listener(&key).ok_or(Fallback::UnknownListener)?;
    let mut search = Search::new(listener, config, ctx.hash());
    let (first, second) = search.run(config.policy).ok_or(Fallback::NoLiveWorker)?;

    let base = listener.index.wrapping_mul(SLOTS);
    let Err(error) = maps::select(ctx, base.wrapping_add(first.slot)) else { return Ok(first.slot) };
    if let Some(second) = second
        && maps::select(ctx, base.wrapping_add(second.slot)).is_ok()
    {
        return Ok(second.slot);
    }
    if maps::may_log_steering(search.now) {
        warn!(
            ctx,
            "steering: the kernel refused the socket of slot {} of listener {}: {}",
            first.slot,
            listener.index,
            error
        );
    }
    Err(Fallback::SelectFailed)
}

/// A search for up to two usable workers, among the slots that have a socket at one listener. These slots are
/// numbered without gaps.
struct Search {
    even: u32,
    total: u32,
    now: u64,
    stuck_after: u64,
    hash: u32,
    probe: u32,
    node: u32,
    /// How many workers are wanted.
    wanted: u32,
    found: u32,
    first: Candidate,
    second: Candidate,
}

impl Search {
    #[inline(always)]
    fn new(listener: &SteerListener, config: &SteerConfig, hash: u32) -> Self {
        let [even, odd] = listener.sockets;
        let even = if even > WORKERS_MAX { WORKERS_MAX } else { even };
        let odd = if odd > WORKERS_MAX { WORKERS_MAX } else { odd };
        Self {
            even,
            total: even + odd,
            now: maps::now(),
            stuck_after: config.stuck_after_nanos,
            hash,
            probe: hash,
            node: ANY_NODE,
            wanted: if config.policy == POLICY_HASH { 1 } else { 2 },
            found: 0,
            first: Candidate { slot: 0, load: 0 },
            second: Candidate { slot: 0, load: 0 },
        }
    }

    /// The best worker, and the runner-up if there is one.
    #[inline(always)]
    fn run(&mut self, policy: u32) -> Option<(Candidate, Option<Candidate>)> {
        if policy == POLICY_NUMA_LOCAL {
            self.node = maps::numa_node();
            maps::repeat(PROBES + self.total, self);
        }
        if self.found == 0 {
            self.node = ANY_NODE;
            self.probe = self.hash;
            maps::repeat(PROBES + self.total, self);
        }
        match self.found {
            0 => None,
            1 => Some((self.first, None)),
            _ if self.second.load < self.first.load => Some((self.second, Some(self.first))),
            _ => Some((self.first, Some(self.second))),
        }
    }

    /// The worker with this number, if it takes new flows and sits on the wanted node.
    #[inline(always)]
    fn usable(&self, number: u32) -> Option<Candidate> {
        if number >= self.total {
            return None;
        }
        let index = if number < self.even { number } else { WORKERS_MAX + (number - self.even) };
        let slot = maps::slot(index)?;
        if slot.state != SLOT_LIVE || (self.node != ANY_NODE && slot.node != self.node) {
            return None;
        }
        let since = slot.running_since;
        if since != 0 && self.now.saturating_sub(since) > self.stuck_after {
            return None;
        }
        Some(Candidate { slot: index, load: slot.load })
    }
}

impl maps::Step for Search {
    /// The first `PROBES` numbers are drawn by hash. If they find too few workers, all numbers follow in
    /// order.
    #[inline(always)]
    fn step(&mut self, step: u32) -> bool {
        let number = if step < PROBES {
            let number = below(self.probe, self.total);
            self.probe = mix(self.probe);
            number
        } else {
            let number = below(self.hash, self.total) + (step - PROBES);
            if number >= self.total { number - self.total } else { number }
        };
        let Some(candidate) = self.usable(number) else { return false };
        if self.found == 0 {
            self.first = candidate;
            self.found = 1;
        } else if self.first.slot != candidate.slot {
            self.second = candidate;
            self.found = 2;
        }
        self.found == self.wanted
    }
}

/// Maps a random number to a number below `total`, by multiply and shift instead of a division.
#[inline(always)]
fn below(random: u32, total: u32) -> u32 {
    ((u64::from(random) * u64::from(total)) >> 32) as u32
}

/// The finalizer of MurmurHash3 for 32 bits: the next probe.
#[inline(always)]
fn mix(mut key: u32) -> u32 {
    key = (key ^ (key >> 16)).wrapping_mul(0x85eb_ca6b);
    key = (key ^ (key >> 13)).wrapping_mul(0xc2b2_ae35);
    key ^ (key >> 16)
}
