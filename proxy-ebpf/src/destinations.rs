//! Destinations (cgroup/connect4 and cgroup/connect6): a data plane connects to endpoints of upstreams and to
//! nothing else. Each other process passes: a cgroup may hold many, of the same user too.
//!
//! The kernel asks at connect(2), at the connect of a ring, also in a thread that it starts for the ring, and
//! at a send with MSG_FASTOPEN. A connect to AF_UNSPEC ends a connection and is not asked about.
#![allow(
    unsafe_code,
    reason = "the context is a raw pointer, and a helper writes to the stack; both are read next to their use"
)]

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::bpf_pidns_info;
use aya_ebpf::helpers::generated::bpf_get_ns_current_pid_tgid;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::warn;
use proxy_common::destinations::{
    DESTINATIONS_MAX, Destination, JUDGEMENTS, Judged, PLANES_MAX, PidNamespace,
};

use crate::maps;

/// BPF_F_NO_PREALLOC: few configurations have thousands of endpoints.
const NO_PREALLOC: u32 = 1;

#[map]
static DESTINATIONS_ALLOWED: HashMap<Destination, u8> =
    HashMap::with_max_entries(DESTINATIONS_MAX, NO_PREALLOC);
/// The data planes, by their process ids.
#[map]
static DESTINATIONS_PLANES: HashMap<u32, u8> = HashMap::with_max_entries(PLANES_MAX, 0);
#[map]
static DESTINATIONS_PIDS: Array<PidNamespace> = Array::with_max_entries(1, 0);
#[map]
static DESTINATIONS_JUDGED: PerCpuArray<u64> = PerCpuArray::with_max_entries(JUDGEMENTS, 0);
#[map]
static DESTINATIONS_LOGGED: Array<u64> = Array::with_max_entries(1, 0);

/// The call fails with EPERM.
const REFUSE: i32 = 0;
const PASS: i32 = 1;

#[inline(always)]
pub fn judge_v4(ctx: &SockAddrContext) -> i32 {
    if !is_plane() {
        return PASS;
    }
    // SAFETY: the verifier turns the access into a checked read of the context.
    let address = unsafe { (&raw const (*ctx.sock_addr).user_ip4).read_volatile() };
    judge(ctx, [0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), address])
}

#[inline(always)]
pub fn judge_v6(ctx: &SockAddrContext) -> i32 {
    if !is_plane() {
        return PASS;
    }
    // SAFETY: as above; four words, each read whole.
    let address = unsafe {
        let words = (&raw const (*ctx.sock_addr).user_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    };
    judge(ctx, address)
}

/// `address`: its words in network order, as they lie in memory.
#[inline(always)]
fn judge(ctx: &SockAddrContext, address: [u32; 4]) -> i32 {
    // SAFETY: the verifier turns the accesses into checked reads of the context. They are volatile, or the
    // optimizer would read a part of a field.
    let (port, protocol) = unsafe {
        let context = ctx.sock_addr;
        ((&raw const (*context).user_port).read_volatile(), (&raw const (*context).protocol).read_volatile())
    };
    let port = u16::from_be(port as u16);
    let destination = Destination { address: octets(address), port, protocol: protocol as u16 };
    // SAFETY: the code only asks whether there is an entry, and never reads the value.
    if unsafe { DESTINATIONS_ALLOWED.get(&destination) }.is_some() {
        count(Judged::Allowed);
        return PASS;
    }
    count(Judged::Refused);
    if maps::may_log(&DESTINATIONS_LOGGED, maps::now()) {
        warn!(
            ctx,
            "the data plane was kept from connecting to {:i}, port {}, which is no endpoint of an upstream",
            destination.address,
            port
        );
    }
    REFUSE
}

/// Whether a data plane is calling. The id of a process without a number in the namespace is not known, and
/// such a process is none.
#[inline(always)]
fn is_plane() -> bool {
    let Some(namespace) = DESTINATIONS_PIDS.get(0) else { return false };
    let mut found = bpf_pidns_info { pid: 0, tgid: 0 };
    // SAFETY: the helper writes as many bytes as are given, to a value on this stack.
    let error = unsafe {
        bpf_get_ns_current_pid_tgid(
            namespace.device,
            namespace.inode,
            &raw mut found,
            size_of::<bpf_pidns_info>() as u32,
        )
    };
    // SAFETY: the code only asks whether there is an entry, and never reads the value.
    error == 0 && unsafe { DESTINATIONS_PLANES.get(&found.tgid) }.is_some()
}

#[inline(always)]
fn octets(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}

#[inline(always)]
fn count(judged: Judged) {
    if let Some(counter) = DESTINATIONS_JUDGED.get_ptr_mut(judged as u32) {
        // SAFETY: checked above. A process that connects can be preempted by another one that does, so the
        // addition is atomic.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
    }
}
