//! System calls that neither the standard library nor nix wraps: close_range(2), landlock(7), seccomp(2).
#![allow(unsafe_code, reason = "they have no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct landlock_ruleset_attr` of ABI 6.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Ruleset {
    pub(super) handled_files: u64,
    pub(super) handled_ports: u64,
    pub(super) scoped: u64,
}

const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Closes every descriptor from this one on. Nothing may own one of them.
pub(super) fn close_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call touches no memory. The caller is the start of a process, where no Rust value owns a
    // descriptor yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    checked(result).map(drop)
}

/// The version of Landlock, from 1.
pub(super) fn landlock_abi() -> io::Result<u32> {
    let nothing = std::ptr::null::<Ruleset>();
    // SAFETY: with this flag the kernel takes no memory, and wants a null pointer and a size of 0.
    let result = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, LANDLOCK_CREATE_RULESET_VERSION)
    };
    checked(result).map(|version| u32::try_from(version).unwrap_or(0))
}

/// A set of rules that forbids what it handles. `bytes`: how much of it the kernel's version knows.
pub(super) fn landlock_create(ruleset: &Ruleset, bytes: usize) -> io::Result<OwnedFd> {
    let bytes = bytes.min(size_of::<Ruleset>());
    // SAFETY: the kernel reads `bytes` bytes, which are within the value; it outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::from_ref(ruleset),
            bytes,
            0 as libc::c_uint,
        )
    };
    let fd = i32::try_from(checked(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel made this descriptor for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct landlock_net_port_attr`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) rights: u64,
    pub(super) port: u64,
}

/// LANDLOCK_RULE_NET_PORT of linux/landlock.h.
const LANDLOCK_RULE_NET_PORT: libc::c_uint = 2;

/// Allows what a set of rules forbids, for one port.
pub(super) fn landlock_allow_port(ruleset: BorrowedFd<'_>, port: &Port) -> io::Result<()> {
    // SAFETY: the kernel reads one `Port`, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            LANDLOCK_RULE_NET_PORT,
            std::ptr::from_ref(port),
            0 as libc::c_uint,
        )
    };
    checked(result).map(drop)
}

/// Binds the calling thread, and threads that it starts.
pub(super) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    let result =
        unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0 as libc::c_uint) };
    checked(result).map(drop)
}

/// Whether filters may end with this action.
pub(super) fn seccomp_knows(action: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one u32, which outlives the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0 as libc::c_uint, &raw const action)
    };
    checked(result).map(drop)
}

/// Puts every thread of the process under the filter, for good.
pub(super) fn seccomp_filter(program: &mut [libc::sock_filter]) -> io::Result<()> {
    // SPEC_ALLOW: without it, a kernel booted with mitigations by seccomp would slow the whole data plane.
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let length = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions out of the slice, which outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    match checked(result)? {
        0 => Ok(()),
        thread => Err(io::Error::other(format!("thread {thread} has a filter of its own"))),
    }
}
