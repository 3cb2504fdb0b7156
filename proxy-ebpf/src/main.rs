//! Entry points of Sluice's eBPF programs. The programs are in `guard`, `connections`, `steer` and
//! `destinations`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![allow(internal_features, reason = "the target has no atomic fetch_add; see maps::take")]
#![expect(missing_docs, reason = "the macros of aya-ebpf make public functions without documentation")]

mod bans;
mod connections;
mod cookie;
mod destinations;
mod guard;
mod maps;
mod packet;
mod route;
mod sockets;
mod steer;

use aya_ebpf::macros::{cgroup_sock_addr, sk_reuseport, sock_ops, xdp};
use aya_ebpf::programs::{SkReuseportContext, SockAddrContext, SockOpsContext, XdpContext};

/// The guard: one verdict for every packet that arrives.
#[xdp(frags)]
pub fn sluice_guard(ctx: XdpContext) -> u32 {
    guard::run(&ctx)
}

/// Steering: chooses a listening socket for every new flow, and for every flow whose listening socket goes
/// away.
#[sk_reuseport(migrate)]
pub fn sluice_steer(ctx: SkReuseportContext) -> u32 {
    steer::run(&ctx)
}

/// Counting: follows every connection of our listeners from its handshake to its end.
#[sock_ops]
pub fn sluice_count(ctx: SockOpsContext) -> u32 {
    connections::run(&ctx)
}

/// Destinations: judges each connect of a data plane by an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn sluice_connect4(ctx: SockAddrContext) -> i32 {
    destinations::judge_v4(&ctx)
}

/// Destinations: judges each connect of a data plane by an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn sluice_connect6(ctx: SockAddrContext) -> i32 {
    destinations::judge_v6(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic: the verifier loads no program with an endless loop.
    loop {}
}
