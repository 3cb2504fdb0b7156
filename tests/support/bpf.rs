//! The eBPF programs under test, and BPF_PROG_TEST_RUN through bpf(2): runs a loaded XDP program over a packet given as bytes
//! (Documentation/bpf/bpf_prog_run). aya 0.14 has no call for it.
#![allow(unsafe_code, reason = "bpf(2) takes pointers to buffers of ours")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use proxy::config::model;
use proxy::kernel::Programs;

const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// `struct { … } test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<TestRun>() == 80);

/// The kernel runs no shorter packet, even behind metadata: no driver delivers less than an Ethernet header.
pub const PACKET_MIN: usize = 14;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ran {
    /// `XDP_DROP` (1) or `XDP_PASS` (2).
    pub action: u32,
    /// Nanoseconds a run, on average.
    pub nanos: u32,
}

/// The packet is thrown away: `XDP_DROP`.
pub const DROP: u32 = 1;
/// The packet goes on to the kernel: `XDP_PASS`.
pub const PASS: u32 = 2;

/// Runs an XDP program `repeat` times over one packet of at least `PACKET_MIN` bytes.
pub fn test_run(program: BorrowedFd<'_>, packet: &[u8], repeat: u32) -> io::Result<Ran> {
    let mut run = TestRun {
        prog_fd: u32::try_from(program.as_raw_fd()).expect("a descriptor"),
        data_size_in: u32::try_from(packet.len()).expect("a packet"),
        data_in: packet.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    // SAFETY: `run` has the layout and size that are passed, and its only pointer is to `packet`, which the kernel reads
    // before it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Ran { action: run.retval, nanos: run.duration })
}

/// Loads the embedded programs, or those that `SLUICE_TEST_EBPF_OBJECT` names: CI runs the same tests against a fresh build.
pub fn programs() -> Programs {
    let Some(path) = std::env::var_os("SLUICE_TEST_EBPF_OBJECT") else {
        return Programs::load().expect("the embedded object loads");
    };
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Programs::load_object(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A guard that judges and limits nothing.
pub fn guard() -> model::Guard {
    model::Guard {
        interfaces: Vec::new(),
        mode: model::GuardMode::Auto,
        dry_run: false,
        allow: Vec::new(),
        deny: Vec::new(),
        syn_rate_per_ip: None,
        syn_burst_per_ip: 1,
    }
}
