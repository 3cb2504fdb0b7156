//! The number of a network namespace, as eBPF programs see it (SO_NETNS_COOKIE, Linux 5.14).
#![allow(unsafe_code, reason = "nix does not know the option")]

use std::os::fd::AsRawFd;

use nix::errno::Errno;

const SO_NETNS_COOKIE: libc::c_int = 71;

/// The number of the calling thread's network namespace.
///
/// # Errors
/// The error of socket(2) or getsockopt(2).
pub(super) fn cookie() -> nix::Result<u64> {
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the option's value is a u64, which outlives the call, and its length is said.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    Errno::result(result).map(|_| cookie)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = super::cookie().expect("an option of this kernel");
        assert_ne!(cookie, 0);
        assert_eq!(super::cookie(), Ok(cookie));
    }
}
