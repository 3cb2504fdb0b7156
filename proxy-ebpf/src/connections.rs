//! Exact counts of connections by source. A `sock_ops` program counts each connection that is established on
//! our listeners, and each end of one. The guard drops SYNs from a source at its limit. It also drops ACKs
//! that would complete an earlier handshake of such a source.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
};
use aya_ebpf::programs::{SockOpsContext, XdpContext};
use proxy_common::guard::GUARD_ALLOW;
use proxy_common::sources::{self, BUCKET_ENTRIES, CountConfig, KERNEL_BITS, Place, Tally};

use crate::maps::Step;
use crate::packet::{Address, Segment};
use crate::sockets::{self, Found};
use crate::{guard, maps};

pub const TCP_CLOSE: u32 = 7;
pub const TCP_LISTEN: u32 = 10;
pub const TCP_NEW_SYN_RECV: u32 = 12;

/// A bit in the value kept for a socket: with this connection its source was at the limit.
const AT_LIMIT: u64 = 1 << 32;
/// Attempts to change an entry. An attempt fails only when another CPU changed the entry meanwhile, because
/// another connection was established or ended.
const TRIES: u32 = 64;

/// Always returns 1: the kernel's own choice stands for everything that it asks about a connection.
#[inline(always)]
pub fn run(ctx: &SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => opened(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => closed(ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn opened(ctx: &SockOpsContext) {
    let (Some(config), Some(guard)) = (sockets::count_config(), maps::guard_config()) else { return };
    let Some(ends) = sockets::ends(ctx) else { return };
    // The address of a connection that stands is local.
    if !guard::is_ours(ends.local, ends.local_port, ends.is_v4, guard, || true) {
        return;
    }
    if config.netns_cookie != 0 && config.netns_cookie != sockets::netns_cookie(ctx) {
        return;
    }
    // A count that could never be given back would stay for ever. So the memory of where it stands comes
    // first.
    let Some(kept) = sockets::kept(ctx, true) else { return sockets::tally(Tally::NoStorage) };
    if ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err() {
        return sockets::tally(Tally::NoStorage);
    }
    let mut counting = Counting::new(places(ends.remote, config));
    maps::repeat(TRIES * ROUND, &mut counting);
    if !counting.is_done {
        return sockets::tally(Tally::NoRoom);
    }
    *kept = u64::from(counting.entry) + 1;
    if config.limit != 0 && counting.count + 1 >= config.limit && !is_exempt(ends.remote, guard.flags) {
        *kept |= AT_LIMIT;
        sockets::add_at_limit(1);
    }
    sockets::tally(Tally::Opened);
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(kept) = sockets::kept(ctx, false) else { return };
    let held = core::mem::take(kept);
    if held == 0 {
        return;
    }
    sockets::decrement(held as u32 - 1);
    if held & AT_LIMIT != 0 {
        sockets::add_at_limit(u64::MAX);
    }
    sockets::tally(Tally::Closed);
}

#[inline(always)]
fn is_exempt(source: Address, flags: u32) -> bool {
    flags & GUARD_ALLOW != 0 && maps::on_allow_list(source.octets())
}

#[inline(always)]
fn places(source: Address, config: &CountConfig) -> [Place; 2] {
    let (leading, trailing) = source.halves();
    let key = sources::key(leading, trailing);
    let [first, second] = config.seeds;
    [sources::place(key, first, 0, KERNEL_BITS), sources::place(key, second, 1, KERNEL_BITS)]
}

/// Counts one more connection of a source: in an entry that the source has, else in a free one of the emptier
/// bucket. Each step looks at one entry. The last step of a round changes the chosen entry.
struct Counting {
    places: [Place; 2],
    /// Connections that the source had before.
    count: u64,
    /// The entry in which the connection is counted.
    entry: u32,
    is_done: bool,
    own: Choice,
    free: Choice,
    other_free: Choice,
}

/// An entry with its old and its new value. `weight` is 0 if no entry was chosen.
#[derive(Clone, Copy)]
struct Choice {
    weight: u32,
    entry: u32,
    old: u64,
    new: u64,
}

const NO_CHOICE: Choice = Choice { weight: 0, entry: 0, old: 0, new: 0 };
const ROUND: u32 = 2 * BUCKET_ENTRIES as u32;

impl Counting {
    #[inline(always)]
    fn new(places: [Place; 2]) -> Self {
        Self {
            places,
            count: 0,
            entry: 0,
            is_done: false,
            own: NO_CHOICE,
            free: NO_CHOICE,
            other_free: NO_CHOICE,
        }
    }
}

impl Step for Counting {
    #[inline(always)]
    fn step(&mut self, number: u32) -> bool {
        let at = number % ROUND;
        if at == 0 {
            (self.count, self.own, self.free, self.other_free) = (0, NO_CHOICE, NO_CHOICE, NO_CHOICE);
        }
        let is_first = at < BUCKET_ENTRIES as u32;
        let [first, second] = self.places;
        let place = if is_first { first } else { second };
        let entry = place.bucket * BUCKET_ENTRIES as u32 + at % BUCKET_ENTRIES as u32;
        let old = sockets::entry(entry);
        self.count += sources::count(old, place.tag, KERNEL_BITS);
        if sources::takes_more(old, place.tag, KERNEL_BITS) {
            self.own = Choice { weight: 1, entry, old, new: old + 1 };
        } else if sources::is_free(old, KERNEL_BITS) {
            let free = if is_first { &mut self.free } else { &mut self.other_free };
            *free = Choice { weight: free.weight + 1, entry, old, new: place.tag | 1 };
        }
        if at != ROUND - 1 {
            return false;
        }
        let free = if self.other_free.weight > self.free.weight { self.other_free } else { self.free };
        let choice = if self.own.weight != 0 { self.own } else { free };
        if choice.weight == 0 {
            return true;
        }
        self.entry = choice.entry;
        self.is_done = sockets::exchange(choice.entry, choice.old, choice.new);
        self.is_done
    }
}

/// Whether a source has as many connections as it may have.
#[inline(always)]
pub fn is_at_limit(segment: &Segment) -> bool {
    let Some(config) = sockets::count_config() else { return false };
    if config.limit == 0 {
        return false;
    }
    let mut count = 0;
    for place in places(segment.source, config) {
        let Some(bucket) = sockets::bucket(place.bucket) else { return false };
        for value in bucket {
            count += sources::count(value, place.tag, KERNEL_BITS);
        }
    }
    count >= config.limit
}

/// Whether a segment other than a SYN would complete a handshake of a source at its limit. Any segment with
/// an ACK can do that: data after a lost ACK does. Where accepts are deferred, the first bytes do.
#[inline(always)]
pub fn completes_above_limit(ctx: &XdpContext, segment: &Segment) -> bool {
    // Nearly always no source is at its limit, and this load is the whole cost of a segment.
    sockets::at_limit() != 0
        && segment.acknowledges
        && is_at_limit(segment)
        && sockets::look_up(ctx, segment, Found::state)
            .is_some_and(|state| matches!(state, TCP_LISTEN | TCP_NEW_SYN_RECV))
}
