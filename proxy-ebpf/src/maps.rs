//! The maps of the guard and of steering, behind safe functions that say what each map holds. The user side
//! looks the maps up by the names here (proxy/src/kernel/). The maps of counting are in `sockets`.
#![allow(
    unsafe_code,
    reason = "map values are raw pointers; every one is looked up, checked and used within one function"
)]

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::from_mut;

use aya_ebpf::helpers::{bpf_get_numa_node_id, bpf_ktime_get_ns, bpf_loop};
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, PerCpuArray, ReusePortSockArray};
use aya_ebpf::programs::SkReuseportContext;
use proxy_common::ListenerKey;
use proxy_common::filter::{self, Chunk};
use proxy_common::guard::{self, GuardConfig, Verdict};
use proxy_common::steer::{self, Fallback, SteerConfig, SteerListener, WorkerSlot};

/// BPF_F_MMAPABLE: user space maps the values into its memory and writes them without a system call.
const MMAPABLE: u32 = 1 << 10;

/// Some helpers are only for programs under the GPL or compatible terms.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[map]
static GUARD_CONFIG: Array<GuardConfig> = Array::with_max_entries(1, 0);
#[map]
static GUARD_VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(guard::VERDICTS, 0);
#[map]
static GUARD_PORTS: Array<u64> = Array::with_max_entries(guard::PORT_WORDS, 0);
#[map]
static GUARD_LISTENERS: HashMap<ListenerKey, u32> =
    HashMap::with_max_entries(2 * guard::LISTENER_KEYS_MAX, 0);
#[map]
static GUARD_ALLOW: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(guard::PREFIXES_MAX, 0);
#[map]
static GUARD_DENY: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(guard::PREFIXES_MAX, 0);
#[map]
static GUARD_FILTER: Array<Chunk> = Array::with_max_entries(filter::CHUNKS, 0);
#[map]
static GUARD_SYN_BUCKETS: Array<u64> = Array::with_max_entries(guard::SYN_BUCKETS, 0);

/// The budget of all answers with cookies, as one bucket.
#[map]
static COOKIE_BUDGET: Array<u64> = Array::with_max_entries(1, 0);

/// BPF_F_NO_PREALLOC: memory is allocated with each entry, so an empty table takes none. Only user space
/// inserts.
const NO_PREALLOC: u32 = 1;
#[map]
static GUARD_BANS: HashMap<u64, u64> = HashMap::with_max_entries(guard::BANS_MAX, NO_PREALLOC);
#[map]
static GUARD_LOCALS: HashMap<[u8; 16], u8> = HashMap::with_max_entries(guard::LOCALS_MAX, NO_PREALLOC);
#[map]
static GUARD_LOCAL_NETS: LpmTrie<[u8; 16], u32> = LpmTrie::with_max_entries(guard::PREFIXES_MAX, 0);

#[map]
static STEER_CONFIG: Array<SteerConfig> = Array::with_max_entries(1, 0);
#[map]
static STEER_LISTENERS: HashMap<ListenerKey, SteerListener> =
    HashMap::with_max_entries(steer::LISTENERS_MAX, 0);
#[map]
static STEER_SLOTS: Array<WorkerSlot> = Array::with_max_entries(steer::SLOTS, MMAPABLE);
#[map]
static STEER_SOCKETS: ReusePortSockArray = ReusePortSockArray::with_max_entries(steer::SOCKETS, 0);
#[map]
static STEER_SELECTED: PerCpuArray<u64> = PerCpuArray::with_max_entries(steer::SLOTS, 0);
#[map]
static STEER_FALLBACKS: PerCpuArray<u64> = PerCpuArray::with_max_entries(steer::FALLBACKS, 0);
#[map]
static STEER_MIGRATED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
static STEER_LOGGED: Array<u64> = Array::with_max_entries(1, 0);

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no argument and only reads a clock.
    unsafe { bpf_ktime_get_ns() }
}

/// The NUMA node of this CPU.
#[inline(always)]
pub fn numa_node() -> u32 {
    // SAFETY: the helper takes no argument and only reads a per-CPU variable.
    let node = unsafe { bpf_get_numa_node_id() };
    node as u32
}

/// The body of a loop. The verifier checks it once, however often it runs.
pub trait Step {
    /// One turn; true ends the loop.
    fn step(&mut self, number: u32) -> bool;
}

/// Calls `state.step` with 0, 1, … until it returns true, but at most `most` times. A plain loop over so many
/// slots would cost the verifier more states than it allows.
#[inline(always)]
pub fn repeat<S: Step>(most: u32, state: &mut S) {
    unsafe extern "C" fn call<S: Step>(number: u32, state: *mut c_void) -> i64 {
        // SAFETY: `repeat` passes the state, which it borrows for as long as the loop runs.
        let state = unsafe { &mut *state.cast::<S>() };
        i64::from(state.step(number))
    }
    let body = call::<S> as unsafe extern "C" fn(u32, *mut c_void) -> i64;
    // SAFETY: the kernel calls `body` with a number and the state, on this stack, before it returns.
    unsafe { bpf_loop(most, body as *mut c_void, from_mut(state).cast(), 0) };
}

/// Adds 1 to a counter of this CPU.
#[inline(always)]
fn count(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the pointer was checked. XDP and reuseport programs are not interrupted by themselves on
        // one CPU.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

#[inline(always)]
pub fn count_verdict(verdict: Verdict) {
    count(&GUARD_VERDICTS, verdict as u32);
}

#[inline(always)]
pub fn count_selected(slot: u32) {
    count(&STEER_SELECTED, slot);
}

#[inline(always)]
pub fn count_fallback(fallback: Fallback) {
    count(&STEER_FALLBACKS, fallback as u32);
}

#[inline(always)]
pub fn count_migrated() {
    count(&STEER_MIGRATED, 0);
}

#[inline(always)]
pub fn guard_config() -> Option<&'static GuardConfig> {
    // A map lives at least as long as the program.
    GUARD_CONFIG.get(0)
}

/// Both states (`PORT_…`) of one port, for IPv4 in the lowest bits.
#[inline(always)]
pub fn port_bits(port: u16) -> u64 {
    let (word, shift) = guard::port_place(port);
    match GUARD_PORTS.get(word) {
        Some(bits) => *bits >> shift,
        None => 0,
    }
}

#[inline(always)]
pub fn is_listener(key: &ListenerKey) -> bool {
    // SAFETY: the code only asks whether there is an entry, and never reads the value.
    unsafe { GUARD_LISTENERS.get(key) }.is_some()
}

/// Whether this host has an address. Local prefixes are walked only if there are some (`has_nets`).
#[inline(always)]
pub fn is_local(address: [u8; 16], has_nets: bool) -> bool {
    // SAFETY: the code only asks whether there is an entry, and never reads the value.
    let is_listed = unsafe { GUARD_LOCALS.get(address) }.is_some();
    is_listed
        || has_nets && matches!(GUARD_LOCAL_NETS.get(Key::new(128, address)), Some(listed) if *listed != 0)
}

/// One bit of the prefilter. User space may be writing the chunk meanwhile; a bit that does not change is
/// right in any mixture.
#[inline(always)]
pub fn filter_bit(bit: u32) -> bool {
    let (chunk, word, shift) = filter::bit_place(bit);
    match GUARD_FILTER.get(chunk) {
        Some(words) => words[word] >> shift & 1 != 0,
        None => true,
    }
}

/// Whether the allow list names an address. The value 0 exempts a prefix from a shorter one.
#[inline(always)]
pub fn on_allow_list(address: [u8; 16]) -> bool {
    matches!(GUARD_ALLOW.get(Key::new(128, address)), Some(listed) if *listed != 0)
}

#[inline(always)]
pub fn on_deny_list(address: [u8; 16]) -> bool {
    matches!(GUARD_DENY.get(Key::new(128, address)), Some(listed) if *listed != 0)
}

/// When the ban of a source (`filter::Source::key`) ends; `None` without a ban.
#[inline(always)]
pub fn ban_end(source: u64) -> Option<u64> {
    // SAFETY: user space writes a ban as a whole. A ban that is lifted meanwhile stays readable until the
    // program has returned.
    unsafe { GUARD_BANS.get(source) }.copied()
}

/// Takes one SYN out of a bucket; false if the bucket does not hold that much.
#[inline(always)]
pub fn take_syn(bucket: u32, now: u64, cost: u64, depth: u64) -> bool {
    take(&GUARD_SYN_BUCKETS, bucket, now, cost, depth)
}

/// Takes one answer with a cookie out of the budget of all.
#[inline(always)]
pub fn take_cookie(now: u64, cost: u64, depth: u64) -> bool {
    take(&COOKIE_BUDGET, 0, now, cost, depth)
}

/// Whether the budget of all has room for one more answer with a cookie.
#[inline(always)]
pub fn has_cookie(now: u64, cost: u64, depth: u64) -> bool {
    let Some(full_at) = COOKIE_BUDGET.get_ptr(0) else { return true };
    // SAFETY: checked above. The read is volatile, since other CPUs write the value.
    let at = unsafe { full_at.read_volatile() };
    at.saturating_sub(now) + cost <= depth
}

/// Takes from a bucket.
///
/// The bucket is the time at which it is full again (the generic cell rate algorithm). When that time is
/// `depth` ahead, it is empty. CPUs share it without a lock: under load they add atomically, so no SYN is
/// forgotten. Only the first SYN after a pause is a plain store. It may swallow SYNs that other CPUs add in
/// the same instant.
#[inline(always)]
fn take(buckets: &Array<u64>, bucket: u32, now: u64, cost: u64, depth: u64) -> bool {
    let Some(full_at) = buckets.get_ptr_mut(bucket) else { return true };
    // SAFETY: checked above. Array values are aligned. The read is volatile, since other CPUs write the
    // value.
    let at = unsafe { full_at.read_volatile() };
    let debt = at.saturating_sub(now);
    if debt > depth {
        // The bucket was deeper in an earlier configuration. Its debt is cut to today's depth, so that no
        // source pays for that.
        // SAFETY: as above.
        unsafe { full_at.write_volatile(now + depth) };
        return false;
    }
    if debt + cost > depth {
        return false;
    }
    if debt == 0 {
        // SAFETY: as above.
        unsafe { full_at.write_volatile(now + cost) };
    } else {
        // SAFETY: as above. The target has atomic addition, but `AtomicU64::fetch_add` does not exist there.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(full_at, cost) };
    }
    true
}

#[inline(always)]
pub fn steer_config() -> Option<&'static SteerConfig> {
    STEER_CONFIG.get(0)
}

#[inline(always)]
pub fn steer_listener(key: &ListenerKey) -> Option<&'static SteerListener> {
    // SAFETY: the value is plain numbers. An update swaps the whole element. A removed element stays until
    // this program has returned (RCU); at worst it already belongs to another listener, and the select fails.
    unsafe { STEER_LISTENERS.get(key) }
}

/// A slot. The worker writes its fields while this program reads them.
#[inline(always)]
pub fn slot(index: u32) -> Option<&'static WorkerSlot> {
    STEER_SLOTS.get(index)
}

/// Gives the flow to the socket at `index`; the error is the kernel's.
#[inline(always)]
pub fn select(ctx: &SkReuseportContext, index: u32) -> Result<(), i64> {
    STEER_SOCKETS.select_reuseport(ctx, index)
}

/// Whether steering may log a line.
#[inline(always)]
pub fn may_log_steering(now: u64) -> bool {
    may_log(&STEER_LOGGED, now)
}

/// Whether a line may be logged: at most one each second over all CPUs. Two CPUs that race may both log.
#[inline(always)]
pub fn may_log(logged: &Array<u64>, now: u64) -> bool {
    let Some(logged) = logged.get_ptr_mut(0) else { return false };
    // SAFETY: checked above. A race costs one more line.
    let last = unsafe { logged.read_volatile() };
    if last != 0 && now.saturating_sub(last) < 1_000_000_000 {
        return false;
    }
    // SAFETY: as above.
    unsafe { logged.write_volatile(now) };
    true
}
