//! Tests of `kernel::cut`.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

#[test]
fn only_connections_of_the_source_to_our_listeners_end() {
    let ours = TcpListener::bind("127.0.0.1:0").expect("bind");
    let other = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = ours.local_addr().expect("address");
    let connect = |listener: &TcpListener| {
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    };
    let (mut mine, _server) = connect(&ours);
    let (mut spared, mut spared_server) = connect(&other);
    match cut(net("127.0.0.2/32"), &[address]) {
        Ok(count) => assert_eq!(count, 0, "nobody of that address is here"),
        // Without CAP_NET_ADMIN no connection matched here, so no error came either. A sandbox may refuse
        // netlink.
        Err(error) => return assert!(!nix::unistd::geteuid().is_root(), "{error}"),
    }
    match cut(net("127.0.0.1/32"), &[address]) {
        Ok(count) => assert_eq!(count, 1),
        Err(error) => return assert!(!nix::unistd::geteuid().is_root(), "{error}"),
    }
    let kind = mine.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(kind, Ok(0) | Err(ErrorKind::ConnectionReset)), "{kind:?}");
    spared.write_all(b"x").expect("lives");
    spared_server.read_exact(&mut [0]).expect("lives");
}

#[test]
fn a_mapped_client_of_a_dual_stack_listener_and_a_64_end_too() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let both = TcpListener::bind("[::]:0").expect("bind");
    let address = both.local_addr().expect("address");
    let _mapped = TcpStream::connect(("127.0.0.1", address.port())).expect("connect");
    let _six = TcpStream::connect(("::1", address.port())).expect("connect");
    assert_eq!(cut(net("127.0.0.1/32"), &[address]).expect("cut"), 1);
    assert_eq!(cut(net("2001:db8::/64"), &[address]).expect("cut"), 0);
    assert_eq!(cut(net("::/64"), &[address]).expect("cut"), 1);
}

#[test]
fn an_answer_cut_anywhere_is_no_panic() {
    let mut whole =
        message(BY_FAMILY, DUMP, libc::AF_INET as u8, STATES, &[1; ID], &condition(net("10.0.0.0/8")));
    whole.truncate(HEADER + 8 + ID);
    for length in 0..whole.len() {
        let _ = entry(&whole[..length], &[]);
        let _ = error_of(&whole[..length]);
    }
}
