//! Sockets as the programs use them (bpf-helpers(7)). The storage of a socket, which the kernel frees with
//! it, remembers where its connection is counted. The table of counts by source is here too
//! (`proxy_common::sources`), and the maps of cookies.
#![allow(
    unsafe_code,
    reason = "sockets, their storage and map values are raw pointers; every one is checked next to its use"
)]

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::ptr::{from_mut, null_mut};

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock, bpf_sock_ops};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_sk_release, bpf_sk_storage_get, bpf_skc_lookup_tcp, bpf_tcp_check_syncookie,
    bpf_tcp_gen_syncookie, bpf_xdp_load_bytes,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::{SockOpsContext, XdpContext};
use proxy_common::cookie::CookieConfig;
use proxy_common::sources::{self, Armed, BUCKET_ENTRIES, Bucket, CountConfig, Tally};

use crate::packet::{self, Address, Segment};

#[map]
static SOURCES_CONFIG: Array<CountConfig> = Array::with_max_entries(1, 0);
#[map]
static SOURCES_COUNTS: Array<Bucket> = Array::with_max_entries(sources::KERNEL_BUCKETS, 0);
#[map]
static SOURCES_ARMED: Array<Armed> = Array::with_max_entries(1, 0);
#[map]
static COOKIE_CONFIG: Array<CookieConfig> = Array::with_max_entries(1, 0);
#[map]
static SOURCES_TALLIES: PerCpuArray<u64> = PerCpuArray::with_max_entries(sources::TALLIES, 0);
/// The entry in which a connection is counted, plus 1, and `connections::AT_LIMIT`. 0: it is not counted.
#[btf_map]
static SOURCES_SOCKETS: SkStorage<u64> = SkStorage::new();

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// The third word of `::ffff:0:0/96`, as it lies in memory.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
/// BPF_F_CURRENT_NETNS: look in the network namespace that the packet came in.
const THIS_NETNS: u64 = u64::MAX;

#[inline(always)]
pub fn count_config() -> Option<&'static CountConfig> {
    SOURCES_CONFIG.get(0)
}

#[inline(always)]
pub fn tally(tally: Tally) {
    if let Some(counter) = SOURCES_TALLIES.get_ptr_mut(tally as u32) {
        // SAFETY: checked above. While a connection closes in process context, an interrupt may open another
        // one on this CPU. The addition is atomic so that neither is lost; the target has no cheaper way.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
    }
}

/// The number of live connections that brought their source to its limit, or came beyond it.
#[inline(always)]
pub fn at_limit() -> u64 {
    match SOURCES_ARMED.get_ptr(0) {
        // SAFETY: checked above. The read is volatile, since other CPUs write the value.
        Some(armed) => unsafe { (&raw const (*armed).at_limit).read_volatile() },
        None => 0,
    }
}

#[inline(always)]
pub fn cookie_config() -> Option<&'static CookieConfig> {
    COOKIE_CONFIG.get(0)
}

/// When a SYN was last answered with a cookie, in nanoseconds of CLOCK_MONOTONIC; 0: no cookie is out.
#[inline(always)]
pub fn cookies_at() -> u64 {
    match SOURCES_ARMED.get_ptr(0) {
        // SAFETY: checked above. The read is volatile, since other CPUs write the value.
        Some(armed) => unsafe { (&raw const (*armed).cookies_at).read_volatile() },
        None => 0,
    }
}

#[inline(always)]
pub fn set_cookies_at(at: u64) {
    if let Some(armed) = SOURCES_ARMED.get_ptr_mut(0) {
        // SAFETY: checked above. CPUs that race write nearly the same time.
        unsafe { (&raw mut (*armed).cookies_at).write_volatile(at) };
    }
}

/// SYNs come faster than their source's rate allows. This is noted at most once in `stale` nanoseconds.
#[inline(always)]
pub fn note_pressure(now: u64, stale: u64) {
    if let Some(armed) = SOURCES_ARMED.get_ptr_mut(0) {
        // SAFETY: checked above. The accesses are volatile, since other CPUs write nearly the same time.
        unsafe {
            let at = &raw mut (*armed).pressed_at;
            if now.saturating_sub(at.read_volatile()) > stale {
                at.write_volatile(now);
            }
        }
    }
}

/// Adds to the number of connections at the limit: 1, or `u64::MAX` to take one away.
#[inline(always)]
pub fn add_at_limit(change: u64) {
    if let Some(armed) = SOURCES_ARMED.get_ptr_mut(0) {
        // SAFETY: checked above. The addition is atomic.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(&raw mut (*armed).at_limit, change) };
    }
}

/// Reads a bucket. Its entries may change one by one meanwhile.
#[inline(always)]
pub fn bucket(index: u32) -> Option<Bucket> {
    let bucket = SOURCES_COUNTS.get_ptr(index)?;
    let mut entries = [0; BUCKET_ENTRIES];
    for (number, entry) in entries.iter_mut().enumerate() {
        // SAFETY: checked above, and `number` is within the bucket. The read is volatile, since other CPUs
        // write the value.
        *entry = unsafe { (&raw const (*bucket)[number]).read_volatile() };
    }
    Some(entries)
}

/// Reads an entry. `entry` counts through all buckets.
#[inline(always)]
pub fn entry(entry: u32) -> u64 {
    let Some(bucket) = SOURCES_COUNTS.get_ptr(entry / BUCKET_ENTRIES as u32) else { return 0 };
    // SAFETY: checked above, and the number is within the bucket. The read is volatile, since other CPUs
    // write the value.
    unsafe { bucket.cast::<u64>().add(entry as usize % BUCKET_ENTRIES).read_volatile() }
}

/// Replaces `old` by `new`; false if the entry has changed meanwhile.
#[inline(always)]
pub fn exchange(entry: u32, old: u64, new: u64) -> bool {
    let Some(bucket) = SOURCES_COUNTS.get_ptr_mut(entry / BUCKET_ENTRIES as u32) else { return false };
    let number = entry as usize % BUCKET_ENTRIES;
    // SAFETY: checked above, and `number` is within the bucket.
    let (_, is_done) = unsafe {
        let entry = bucket.cast::<u64>().add(number);
        atomic_cxchg::<u64, { AtomicOrdering::Relaxed }, { AtomicOrdering::Relaxed }>(entry, old, new)
    };
    is_done
}

/// Takes one connection away from an entry.
#[inline(always)]
pub fn decrement(entry: u32) {
    if let Some(bucket) = SOURCES_COUNTS.get_ptr_mut(entry / BUCKET_ENTRIES as u32) {
        let number = entry as usize % BUCKET_ENTRIES;
        // SAFETY: checked above, and `number` is within the bucket. The entry counts the caller's connection,
        // so no other source has taken it.
        unsafe {
            atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(bucket.cast::<u64>().add(number), u64::MAX)
        };
    }
}

/// Both ends of a connection. IPv4 addresses are IPv4-mapped, also if the listener is an IPv6 one.
pub struct Ends {
    pub local: Address,
    pub local_port: u16,
    pub remote: Address,
    pub is_v4: bool,
}

/// The ends of the socket that this event is about.
#[inline(always)]
pub fn ends(ctx: &SockOpsContext) -> Option<Ends> {
    let ops = ctx.ops;
    // All fields are read here, whole and volatile. Left alone, the optimizer would compute an address within
    // the context or read a part of a field, and the verifier allows neither.
    // SAFETY: the verifier turns each field access into a checked read of the socket.
    let (family, port, local_v4, remote_v4, local, remote) = unsafe {
        (
            (&raw const (*ops).family).read_volatile(),
            (&raw const (*ops).local_port).read_volatile(),
            (&raw const (*ops).local_ip4).read_volatile(),
            (&raw const (*ops).remote_ip4).read_volatile(),
            words(&raw const (*ops).local_ip6),
            words(&raw const (*ops).remote_ip6),
        )
    };
    let is_mapped = remote[0] | remote[1] == 0 && remote[2] == MAPPED;
    let is_v4 = match family {
        AF_INET => true,
        AF_INET6 => is_mapped,
        _ => return None,
    };
    let port = port as u16;
    if is_v4 {
        return Some(Ends {
            local: Address::v4(local_v4),
            local_port: port,
            remote: Address::v4(remote_v4),
            is_v4,
        });
    }
    Some(Ends { local: address(local), local_port: port, remote: address(remote), is_v4 })
}

/// # Safety
/// `words` is an address within a context.
#[inline(always)]
unsafe fn words(words: *const [u32; 4]) -> [u32; 4] {
    let words = words.cast::<u32>();
    // SAFETY: the caller's; four words.
    unsafe {
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}

/// An address from words in network order.
#[inline(always)]
fn address(words: [u32; 4]) -> Address {
    let [a, b, c, d] = words.map(u64::from);
    // This puts the halves together as a little-endian machine holds them.
    Address([a | (b << 32), c | (d << 32)])
}

/// The cookie of the socket's network namespace.
#[inline(always)]
pub fn netns_cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context and only reads.
    unsafe { bpf_get_netns_cookie(ctx.ops.cast()) }
}

/// The value kept for the socket. `None` if there is none, or with `create` if there is no memory for it.
#[inline(always)]
pub fn kept(ctx: &SockOpsContext, create: bool) -> Option<&mut u64> {
    let sk = socket(ctx.ops);
    if sk.is_null() {
        return None;
    }
    let flags = if create { u64::from(BPF_SK_STORAGE_GET_F_CREATE) } else { 0 };
    let map = (&raw const SOURCES_SOCKETS).cast_mut().cast::<c_void>();
    // SAFETY: not null. The value lives as long as the socket, and the socket lives during this event. The
    // kernel holds the socket's lock meanwhile, so nobody else uses the value.
    unsafe { bpf_sk_storage_get(map, sk.cast(), null_mut(), flags).cast::<u64>().as_mut() }
}

#[inline(always)]
fn socket(ops: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: the verifier turns the access into a checked read of the context.
    unsafe { (&raw const (*ops).__bindgen_anon_2.sk).read_volatile() }
}

#[repr(C)]
struct TupleV4 {
    source: u32,
    destination: u32,
    source_port: u16,
    destination_port: u16,
}

#[repr(C)]
struct TupleV6 {
    source: [u64; 2],
    destination: [u64; 2],
    source_port: u16,
    destination_port: u16,
}

/// The socket that a segment would reach. `look_up` gives the reference back to the kernel.
#[derive(Clone, Copy)]
pub struct Found(*mut bpf_sock);

impl Found {
    /// The socket's TCP state, `TCP_…`.
    #[inline(always)]
    pub fn state(self) -> u32 {
        // SAFETY: `look_up` holds a reference; the verifier turns the access into a checked read of the
        // socket.
        unsafe { (&raw const (*self.0).state).read_volatile() }
    }
}

impl Found {
    /// Makes the cookie that answers a SYN; `None` if the kernel finds that none is needed.
    #[inline(always)]
    pub fn make_cookie(self, ctx: &XdpContext, segment: &Segment, headers: &mut Headers) -> Option<u32> {
        headers.set_addresses(segment);
        let [length] = packet::load::<1>(ctx, segment.tcp_at + 12)?;
        // At most 60, which the verifier can see. `opaque` makes it see that for the very number that was
        // compared.
        let length = packet::opaque(usize::from(length >> 4) * 4) as u32;
        if length < 20 {
            return None;
        }
        // SAFETY: the buffer is at least as long as the length given. The kernel checks the offset.
        if unsafe { bpf_xdp_load_bytes(ctx.ctx, segment.tcp_at, headers.tcp.as_mut_ptr().cast(), length) }
            != 0
        {
            return None;
        }
        // SAFETY: both headers are as long as the lengths given. `look_up` holds a reference to the socket.
        let made = unsafe {
            let (ip, tcp) = (headers.ip.as_mut_ptr(), headers.tcp.as_mut_ptr());
            bpf_tcp_gen_syncookie(self.0.cast(), ip.cast(), IP_BYTES, tcp.cast(), length)
        };
        // The upper half is the client's segment size, which the cookie encodes too.
        (made >= 0).then_some(made as u32)
    }

    /// What the kernel says of a segment's acknowledgement as a cookie: 0 if it is valid, `NO_COOKIE` if not.
    #[inline(always)]
    pub fn check_cookie(self, ctx: &XdpContext, segment: &Segment, headers: &mut Headers) -> i64 {
        headers.set_addresses(segment);
        // SAFETY: as in `make_cookie`.
        unsafe {
            let (ip, tcp) = (headers.ip.as_mut_ptr(), headers.tcp.as_mut_ptr());
            match bpf_xdp_load_bytes(ctx.ctx, segment.tcp_at, tcp.cast(), 20) {
                0 => bpf_tcp_check_syncookie(self.0.cast(), ip.cast(), IP_BYTES, tcp.cast(), 20),
                error => error,
            }
        }
    }
}

/// -ENOENT.
pub const NO_COOKIE: i64 = -2;
/// Bytes of an IPv6 header. An IPv4 header is shorter, and the rest is not looked at.
const IP_BYTES: u32 = 40;

/// Room to build headers in: they are too large for the stack.
#[repr(C)]
pub struct Headers {
    pub ip: [u8; IP_BYTES as usize],
    /// With options.
    pub tcp: [u8; 64],
}

impl Headers {
    /// Writes the parts of a segment's IP header that cookies are made from: version and addresses.
    #[inline(always)]
    fn set_addresses(&mut self, segment: &Segment) {
        let (source, destination) = (segment.source.octets(), segment.destination.octets());
        if segment.is_v4 {
            self.ip[0] = 0x45;
            self.ip[12..16].copy_from_slice(&source[12..16]);
            self.ip[16..20].copy_from_slice(&destination[12..16]);
        } else {
            self.ip[0] = 0x60;
            self.ip[8..24].copy_from_slice(&source);
            self.ip[24..40].copy_from_slice(&destination);
        }
    }
}

#[map]
static COOKIE_HEADERS: PerCpuArray<Headers> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's room for headers. It still holds the bytes of its last use.
#[inline(always)]
pub fn headers() -> Option<&'static mut Headers> {
    // SAFETY: one XDP program runs on a CPU at a time, and it asks once.
    unsafe { COOKIE_HEADERS.get_ptr_mut(0)?.as_mut() }
}

/// Finds the socket that a segment would reach and asks it; `None` without a socket.
#[inline(always)]
pub fn look_up<T>(ctx: &XdpContext, segment: &Segment, ask: impl FnOnce(Found) -> T) -> Option<T> {
    let ctx = ctx.ctx.cast::<c_void>();
    let (source_port, destination_port) = (segment.source_port.to_be(), segment.destination_port.to_be());
    let sk = if segment.is_v4 {
        let [source, destination] =
            [segment.source, segment.destination].map(|address| (address.0[1] >> 32) as u32);
        let mut tuple = TupleV4 { source, destination, source_port, destination_port };
        // SAFETY: the tuple is on this stack and as long as the length given.
        unsafe { bpf_skc_lookup_tcp(ctx, from_mut(&mut tuple).cast(), 12, THIS_NETNS, 0) }
    } else {
        let mut tuple = TupleV6 {
            source: segment.source.0,
            destination: segment.destination.0,
            source_port,
            destination_port,
        };
        // SAFETY: as above.
        unsafe { bpf_skc_lookup_tcp(ctx, from_mut(&mut tuple).cast(), 36, THIS_NETNS, 0) }
    };
    if sk.is_null() {
        return None;
    }
    let answer = ask(Found(sk));
    // SAFETY: not null, and released once.
    unsafe { bpf_sk_release(sk.cast()) };
    Some(answer)
}
