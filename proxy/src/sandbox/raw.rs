//! System calls that neither the standard library nor nix wraps.
#![allow(unsafe_code, reason = "they have no safe wrapper")]

use std::io;

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// close_range(2): closes every descriptor from this one on. Nobody may own one of them.
pub(super) fn close_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call touches no memory. The caller is the start of a process, where no Rust value owns a
    // descriptor yet.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    checked(result).map(drop)
}
