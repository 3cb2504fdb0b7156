//! Tests of `supervisor::child`. tests/hostile_data_plane.rs has the attacks on a whole supervisor.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use super::*;

/// A socket whose peer reads nothing, and that waits a minute for it when it is closed.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut stream = TcpStream::connect(listener.local_addr().expect("bound")).expect("connected");
    let (peer, _) = listener.accept().expect("a connection");
    stream.set_nonblocking(true).expect("settable");
    while stream.write(&[0; 65_536]).is_ok() {}
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 60 }).expect("settable");
    (stream.into(), peer)
}

#[test]
fn closing_what_was_sent_waits_for_no_peer() {
    let (fd, _peer) = lingering();
    let (pipe, _) = nix::unistd::pipe().expect("a pipe");
    let start = Instant::now();
    close(vec![fd, pipe]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}
