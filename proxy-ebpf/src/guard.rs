//! The guard: one verdict for every packet, in bounded time.
//!
//! The guard inserts nothing for an unverified source, since an insert that evicts costs a microsecond. SYNs
//! are limited in arrays of buckets that exist from the start.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::programs::XdpContext;
use proxy_common::ListenerKey;
use proxy_common::filter::{self, Source};
use proxy_common::guard::{
    GUARD_ALLOW, GUARD_BANS, GUARD_CONNECTIONS, GUARD_COOKIES, GUARD_DENY, GUARD_DRY_RUN, GUARD_LOCAL_NETS,
    GUARD_LOCALS, GUARD_PASS_HIDDEN, GUARD_SYN_RATE, GuardConfig, PORT_ANY, PORT_FAMILY_BITS, PORT_HIDDEN,
    PORT_LOOKUP, PORT_MAIN, SYN_GAUGE_ROW, SYN_ROW_BUCKETS, SYN_ROWS, Verdict,
};
use proxy_common::sources;

use crate::cookie::{self, Acknowledged, Answer};
use crate::packet::{self, Address, Network, Segment};
use crate::{bans, connections, maps, sockets};

/// Judges a packet and counts the verdict. Drops or answers the packet if the verdict says so, but not in a
/// dry run.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let config = maps::guard_config();
    let verdict = match config {
        Some(config) if config.configured != 0 => match packet::network(ctx) {
            Ok(network) => judge(ctx, &network, config),
            Err(reason) => reason,
        },
        _ => Verdict::Unconfigured,
    };
    maps::count_verdict(verdict);
    match config {
        Some(config) if config.flags & GUARD_DRY_RUN != 0 => XDP_PASS,
        Some(config) if verdict.is_hidden() && config.flags & GUARD_PASS_HIDDEN != 0 => XDP_PASS,
        _ if verdict.drops() => XDP_DROP,
        _ if verdict.answers() => XDP_TX,
        _ => XDP_PASS,
    }
}

/// The order is a contract: ours, allow, deny, bans, connections, cookie, rate. Lists and bans come first,
/// since they decide whatever a source sends. A source at its limit of connections takes nothing from its
/// rate, and gets no cookie.
///
/// A packet that hides its TCP header is ours if any port of its destination is. Lists and bans hold for it
/// too.
#[inline(always)]
fn judge(ctx: &XdpContext, network: &Network, config: &GuardConfig) -> Verdict {
    if network.is_routed {
        return judge_routed(network, config);
    }
    let segment = packet::segment(ctx, network);
    let port = match &segment {
        Ok(segment) => segment.destination_port,
        Err(_) => PORT_HIDDEN,
    };
    let is_local = || is_local(network.destination, config);
    if !is_ours(network.destination, port, network.is_v4, config, is_local) {
        return Verdict::NotOurs;
    }
    match listed(network.source, config) {
        Some(verdict) => verdict,
        None => match segment {
            Ok(segment) => judge_segment(ctx, &segment, config),
            Err(reason) => reason,
        },
    }
}

/// A packet with a source route is ours if its destination is, or the route's end: the kernel takes it there
/// without another look by XDP.
#[inline(always)]
fn judge_routed(network: &Network, config: &GuardConfig) -> Verdict {
    let is_ours =
        |address| is_ours(address, PORT_HIDDEN, network.is_v4, config, || is_local(address, config));
    if is_ours(network.destination) || is_ours(network.last_destination) {
        listed(network.source, config).unwrap_or(Verdict::SourceRouted)
    } else {
        Verdict::NotOurs
    }
}

/// The verdict of lists and bans about a source.
#[inline(always)]
fn listed(source: Address, config: &GuardConfig) -> Option<Verdict> {
    if config.flags & (GUARD_ALLOW | GUARD_DENY | GUARD_BANS) != 0 && may_be_listed(source, config) {
        if config.flags & GUARD_ALLOW != 0 && maps::on_allow_list(source.octets()) {
            return Some(Verdict::Allowed);
        }
        if config.flags & GUARD_DENY != 0 && maps::on_deny_list(source.octets()) {
            return Some(Verdict::Denied);
        }
        if config.flags & GUARD_BANS != 0 && bans::is_banned(source) {
            return Some(Verdict::Banned);
        }
    }
    None
}

/// The rest of the judgement, for which the TCP header is needed.
///
/// Anybody can send SYNs in another's name. So where a cookie answers a SYN, the source pays for the ACK that
/// brings the cookie back, and not for the SYN.
#[inline(always)]
fn judge_segment(ctx: &XdpContext, segment: &Segment, config: &GuardConfig) -> Verdict {
    if !segment.opens {
        return judge_later(ctx, segment, config);
    }
    if config.flags & GUARD_CONNECTIONS != 0 && connections::is_at_limit(segment) {
        return Verdict::Connections;
    }
    if config.flags & GUARD_COOKIES != 0 {
        let answered = match cookie::answer(ctx, segment, config.flags & GUARD_DRY_RUN != 0) {
            Answer::Sent => Some(Verdict::Cookie),
            Answer::OverBudget => Some(Verdict::CookieRate),
            Answer::NotNeeded => None,
        };
        if let Some(verdict) = answered {
            if config.flags & GUARD_SYN_RATE != 0 {
                measure(segment.source, config);
            }
            return verdict;
        }
    }
    if config.flags & GUARD_SYN_RATE != 0 && !within_syn_rate(segment.source, config) {
        if config.flags & GUARD_COOKIES != 0 {
            sockets::note_pressure(maps::now(), PRESSURE_STALE_NANOS);
        }
        return Verdict::SynRate;
    }
    Verdict::Syn
}

/// A segment after a connection's first one.
#[inline(always)]
fn judge_later(ctx: &XdpContext, segment: &Segment, config: &GuardConfig) -> Verdict {
    if config.flags & GUARD_CONNECTIONS != 0 && connections::completes_above_limit(ctx, segment) {
        return Verdict::Connections;
    }
    if config.flags & GUARD_COOKIES != 0 {
        match cookie::acknowledged(ctx, segment) {
            Acknowledged::Nothing => return Verdict::StrayAck,
            Acknowledged::Cookie
                if config.flags & GUARD_SYN_RATE != 0 && !within_syn_rate(segment.source, config) =>
            {
                return Verdict::SynRate;
            }
            _ => {}
        }
    }
    Verdict::Established
}

/// Whether this host has the address. If nobody keeps the map, every address may be one of this host.
#[inline(always)]
fn is_local(address: Address, config: &GuardConfig) -> bool {
    config.flags & GUARD_LOCALS == 0 || maps::is_local(address.octets(), config.flags & GUARD_LOCAL_NETS != 0)
}

/// Whether a listener has this address. The port's bits settle this for most packets. Only a host that
/// listens on several addresses of a family pays for a look-up. `is_local` is asked for a listener on the
/// unspecified address: on a host that routes or bridges, packets to other hosts come by as well.
#[inline(always)]
pub fn is_ours(
    address: Address,
    port: u16,
    is_v4: bool,
    config: &GuardConfig,
    is_local: impl FnOnce() -> bool,
) -> bool {
    let bits = maps::port_bits(port);
    let state = if is_v4 { bits } else { bits >> PORT_FAMILY_BITS } & ((1 << PORT_FAMILY_BITS) - 1);
    match state {
        PORT_ANY => is_local(),
        PORT_MAIN => address.0 == if is_v4 { config.main_v4 } else { config.main_v6 },
        PORT_LOOKUP => {
            let (address, port) = (address.octets(), u32::from(port));
            maps::is_listener(&ListenerKey { address, port })
        }
        _ => false,
    }
}

/// Asks the prefilter. A source whose bits are clear is on no list and not banned.
#[inline(always)]
fn may_be_listed(source: Address, config: &GuardConfig) -> bool {
    let [multiplier, _] = config.seeds;
    let (leading, trailing) = source.halves();
    filter::may_list(Source::new(leading, trailing), config.classes, multiplier, maps::filter_bit)
}

/// Takes one SYN from the source's bucket in each row. The source is above its rate only if no row had one
/// left.
#[inline(always)]
fn within_syn_rate(source: Address, config: &GuardConfig) -> bool {
    let (leading, trailing) = source.halves();
    let source = sources::key(leading, trailing);
    let now = maps::now();
    let mut within = false;
    let mut first = 0;
    for seed in config.seeds {
        let bucket = first + (sources::mix(source ^ seed) as u32 & (SYN_ROW_BUCKETS - 1));
        within |= maps::take_syn(bucket, now, config.syn_cost_nanos, config.syn_depth_nanos);
        first += SYN_ROW_BUCKETS;
    }
    const { assert!(SYN_ROWS == 2) };
    within
}

/// Measures SYNs that a cookie answered, and notes if a source sends them above its rate.
#[inline(always)]
fn measure(source: Address, config: &GuardConfig) {
    let (leading, trailing) = source.halves();
    let [seed, _] = config.seeds;
    let source = sources::mix(sources::key(leading, trailing) ^ seed) as u32 & (SYN_ROW_BUCKETS - 1);
    let (bucket, now) = (SYN_GAUGE_ROW * SYN_ROW_BUCKETS + source, maps::now());
    if !maps::take_syn(bucket, now, config.syn_cost_nanos, config.syn_depth_nanos) {
        sockets::note_pressure(now, PRESSURE_STALE_NANOS);
    }
}

/// Nanoseconds by which the time of the last pressure may be out of date.
const PRESSURE_STALE_NANOS: u64 = 1_000_000_000;
