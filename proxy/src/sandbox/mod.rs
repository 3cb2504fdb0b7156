//! The confinement of the data plane, beside its user: what is left to code that an attacker runs in it. It
//! holds the descriptors that were handed over, and no other.

mod raw;

use std::io;

/// Standard input, output and error stay; a supervisor passes the channel as the first.
const FIRST_OTHER: libc::c_uint = 3;

/// Closes every descriptor above standard error. The supervisor's own close at exec, but it may have
/// inherited others, from a shell or a service manager, and a library may open one without that flag.
///
/// # Errors
/// The error of close_range(2); a kernel since 5.9 gives none.
pub fn close_inherited() -> io::Result<()> {
    raw::close_from(FIRST_OTHER)
}
