//! Two calls on listening sockets.
//!
//! TCP_DEFER_ACCEPT (tcp(7)): a connection reaches the accept queue with its first bytes, or when the
//! handshake's answer was sent again for so many seconds. One wake-up then serves accept and receive, and a
//! client that says nothing costs no descriptor at first. For protocols whose client speaks first.
//!
//! AF_UNSPEC in connect(2): a socket that was connected or shut down can listen again.
#![allow(unsafe_code, reason = "nix knows neither the option nor such an address")]

use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;

/// One repetition of the handshake's answer, after a second: a client that says nothing is then accepted, and
/// its time to send a head begins.
static SECONDS: libc::c_int = 1;

/// Before listen(2).
///
/// # Errors
/// The error of setsockopt(2).
pub(super) fn defer_accept(fd: impl AsFd) -> nix::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    let length = size_of_val(&SECONDS) as libc::socklen_t;
    // SAFETY: the option's value is an int, which outlives the call, and its length is said.
    let result = unsafe {
        libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, (&raw const SECONDS).cast(), length)
    };
    Errno::result(result).map(drop)
}

/// Ends whatever a socket does: it neither listens nor is connected, and keeps the port that it was bound to.
/// The kernel forgets here that it was shut down. Without that, a socket that was shut down twice would
/// listen and refuse every client.
///
/// # Errors
/// The error of connect(2).
pub(super) fn disconnect(fd: impl AsFd) -> nix::Result<()> {
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of_val(&nobody) as libc::socklen_t;
    // SAFETY: the kernel reads the address, whose length is said, and which outlives the call.
    let result = unsafe { libc::connect(fd.as_fd().as_raw_fd(), &raw const nobody, length) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn who_speaks_is_accepted_at_once_and_who_does_not_after_a_second() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        defer_accept(&listener).expect("an option of this kernel");
        let address = listener.local_addr().expect("its address");
        let began = Instant::now();
        let _silent = TcpStream::connect(address).expect("the handshake is whole for the client");
        let mut speaking = TcpStream::connect(address).expect("connected");
        speaking.write_all(b"x").expect("sent");
        let (mut first, peer) = listener.accept().expect("a connection");
        assert_eq!(peer, speaking.local_addr().expect("its address"), "who speaks overtakes");
        first.read_exact(&mut [0]).expect("its byte is there");
        let (_second, _) = listener.accept().expect("the silent one");
        let took = began.elapsed();
        assert!(took > Duration::from_millis(900) && took < Duration::from_secs(10), "{took:?}");
    }
}
