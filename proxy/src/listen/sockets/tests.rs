//! Tests of `listen::sockets`.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::getsockopt;

use super::*;
use crate::listen::{ListenerId, ListenerIds};

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

/// A listener for each list of addresses.
fn listeners(addresses: &[&[SocketAddr]]) -> Listeners {
    let listener = |(number, addresses): (usize, &&[SocketAddr])| {
        let made = crate::config::testing::listener();
        Arc::new(Listener { name: number.to_string(), addresses: addresses.to_vec(), ..made })
    };
    let listeners: Vec<_> = addresses.iter().enumerate().map(listener).collect();
    Listeners::number(&listeners, &ListenerIds::default()).0
}

/// A port that is free for both families now.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").expect("bind").local_addr().expect("name").port()
}

/// An attack by name.
type Act<'a> = (&'a str, usize, &'a dyn Fn(&OwnedFd));

#[test]
fn the_wildcard_takes_ipv4_unless_its_port_has_an_ipv4_listener() {
    let wildcard = address("[::]:80");
    assert!(!is_v6only(wildcard, &[wildcard]));
    assert!(!is_v6only(wildcard, &[wildcard, address("0.0.0.0:81")]));
    assert!(is_v6only(wildcard, &[wildcard, address("127.0.0.1:80")]));
    assert!(is_v6only(address("[::1]:80"), &[]));
    assert!(!is_v6only(address("0.0.0.0:80"), &[wildcard]));
    assert_eq!(canonical(address("[::ffff:10.0.0.1]:80")), address("10.0.0.1:80"));
}

#[test]
fn the_group_has_one_socket_per_worker_with_the_right_options() {
    let bound = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 3).expect("bind");
    let key = bound[0].key;
    assert_eq!((bound.len(), key.listener, bound[0].sockets.len()), (1, ListenerId::FIRST, 3));
    assert_ne!(key.address.port(), 0);
    for fd in &bound[0].sockets {
        assert!(getsockopt(fd, sockopt::ReusePort).expect("option"));
        assert!(getsockopt(fd, sockopt::TcpNoDelay).expect("option"));
        assert!(getsockopt(fd, sockopt::AcceptConn).expect("option"));
        assert!(
            FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).expect("flags"))
                .contains(FdFlag::FD_CLOEXEC)
        );
        assert!(
            !OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).expect("flags"))
                .contains(OFlag::O_NONBLOCK)
        );
    }
    TcpStream::connect(bound[0].key.address).expect("somebody listens");
}

#[test]
fn both_families_reach_a_lone_wildcard_and_a_split_port_keeps_them_apart() {
    let port = free_port();
    let bound = bind_all(&listeners(&[&[SocketAddr::new(address("[::]:0").ip(), port)]]), 2).expect("bind");
    TcpStream::connect(("127.0.0.1", port)).expect("IPv4 reaches [::]");
    TcpStream::connect(("::1", port)).expect("IPv6 too");
    drop(bound);

    let port = free_port();
    let [v6, v4] = ["[::]:0", "127.0.0.1:0"].map(|text| SocketAddr::new(address(text).ip(), port));
    // Two listeners, to see that the rule looks over all of them, in either order.
    for order in [[&[v6][..], &[v4]], [&[v4], &[v6]]] {
        let bound = bind_all(&listeners(&order), 2).expect("both bind");
        for bound in &bound {
            let v6only = bound
                .key
                .address
                .is_ipv6()
                .then(|| getsockopt(&bound.sockets[0], sockopt::Ipv6V6Only).expect("option"));
            assert_ne!(v6only, Some(false));
        }
    }
}

#[test]
fn a_port_of_another_group_is_refused_and_never_joined() {
    let first = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 2).expect("bind");
    let error = bind_all(&listeners(&[&[first[0].key.address]]), 2).expect_err("in use");
    assert_eq!(error.errno, Errno::EADDRINUSE);
    assert!(error.to_string().contains("in use"), "{error}");
    assert!(bind_admin(first[0].key.address).is_err());
    let error = bind_all(&listeners(&[&[address("192.0.2.1:80")]]), 1).expect_err("not ours");
    assert!(error.to_string().contains("no such address"), "{error}");
}

#[test]
fn with_freebind_an_address_may_come_later() {
    for text in ["192.0.2.1:0", "[2001:db8::1]:0"] {
        let made = |freebind| {
            let addresses = vec![address(text)];
            vec![Arc::new(Listener { addresses, freebind, ..crate::config::testing::listener() })]
        };
        let number = |listeners: &[Arc<Listener>]| Listeners::number(listeners, &ListenerIds::default()).0;
        let refused = bind_all(&number(&made(false)), 2).expect_err("not ours").to_string();
        assert!(refused.contains("listener.freebind") && refused.contains(text), "{refused}");
        assert_eq!(probe(&made(false), None).len(), 1);
        let bound = bind_all(&number(&made(true)), 2).expect("bind");
        assert!(getsockopt(&bound[0].sockets[1], sockopt::AcceptConn).expect("option"));
        assert!(probe(&made(true), None).is_empty());
    }
    let admin = probe(&[], Some(address("192.0.2.1:80"))).remove(0).to_string();
    assert!(admin.starts_with("admin 192.0.2.1:80: this host has no such address now"), "{admin}");
    assert!(!admin.contains("freebind"), "it has none: {admin}");
}

#[test]
fn sockets_that_were_shut_down_listen_again_on_their_port() {
    let mut bound = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 2).expect("bind").remove(0);
    let target = bound.key.address;
    assert_eq!(bound.mend(), (0, Ok(())), "nothing is broken");
    let inodes = |bound: &Bound| {
        let inode = |fd: &OwnedFd| nix::sys::stat::fstat(fd).expect("stat").st_ino;
        bound.sockets.iter().map(inode).collect::<Vec<_>>()
    };
    let before = inodes(&bound);
    retire(std::slice::from_ref(&bound));
    assert!(TcpStream::connect(target).is_err());
    fcntl(&bound.sockets[1], FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("flags");
    assert_eq!(bound.mend(), (2, Ok(())));
    assert_eq!(inodes(&bound), before, "the same sockets, which others hold too");
    let flags = OFlag::from_bits_retain(fcntl(&bound.sockets[1], FcntlArg::F_GETFL).expect("flags"));
    assert!(!flags.contains(OFlag::O_NONBLOCK));
    for _ in 0..8 {
        TcpStream::connect(target).expect("listens");
    }
    // One that cannot be mended does not keep the others from it.
    shutdown(bound.sockets[0].as_raw_fd(), Shutdown::Both).expect("shut down");
    bound.sockets[0] = TcpStream::connect(target).expect("the other listens").into();
    shutdown(bound.sockets[1].as_raw_fd(), Shutdown::Both).expect("shut down");
    assert_eq!(bound.mend(), (1, Err(Errno::EADDRNOTAVAIL)), "a client's socket has another port");
}

#[test]
fn whatever_another_holder_does_to_a_socket_it_serves_again() {
    use std::io::{Read as _, Write as _};
    let elsewhere = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 1).expect("bind").remove(0);
    let shut_down = |fd: &OwnedFd| {
        let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
    };
    let connect = |fd: &OwnedFd| {
        disconnect(fd).expect("disconnected");
        let address = SockaddrStorage::from(elsewhere.key.address);
        nix::sys::socket::connect(fd.as_raw_fd(), &address).expect("connected");
    };
    let linger = |fd: &OwnedFd| {
        setsockopt(fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 3600 }).expect("an option");
        setsockopt(fd, sockopt::TcpNoDelay, &false).expect("an option");
    };
    let acts: [Act<'_>; 4] = [
        ("shut down twice", 1, &|fd| [fd; 2].into_iter().for_each(shut_down)),
        ("connected", 1, &connect),
        ("connected and shut down", 1, &|fd| {
            connect(fd);
            shut_down(fd);
        }),
        ("options", 0, &linger),
    ];
    for (what, mended, act) in acts {
        // Without defer_accept's wait.
        let bound = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 1).expect("bind").remove(0);
        act(&bound.sockets[0]);
        assert_eq!(bound.mend(), (mended, Ok(())), "{what}");
        let mut client = TcpStream::connect(bound.key.address).expect(what);
        client.write_all(b"x").expect(what);
        let socket = std::net::TcpListener::from(bound.sockets[0].try_clone().expect("dup"));
        let (mut server, _) = socket.accept().expect(what);
        server.read_exact(&mut [0]).expect(what);
        server.write_all(b"y").expect(what);
        client.read_exact(&mut [0]).expect(what);
        assert_eq!(getsockopt(&server, sockopt::Linger).expect("an option").l_onoff, 0, "{what}");
        assert_eq!(getsockopt(&server, sockopt::TcpNoDelay), Ok(true), "{what}");
    }
    // A socket that was shut down while it was mended listens, and refuses; only a new begin helps.
    let bound = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 1).expect("bind").remove(0);
    [&bound.sockets[0]; 2].into_iter().for_each(shut_down);
    listen(&bound.sockets[0], backlog(8)).expect("listens");
    assert_eq!(bound.mend(), (0, Ok(())), "nothing shows");
    bound.disconnect().expect("disconnected");
    assert_eq!(bound.mend(), (1, Ok(())));
    let mut client = TcpStream::connect(bound.key.address).expect("connected");
    client.write_all(b"x").expect("sent");
    let (mut server, _) =
        std::net::TcpListener::from(bound.sockets[0].try_clone().expect("dup")).accept().expect("a client");
    server.read_exact(&mut [0]).expect("served");
}

#[test]
fn the_admin_listener_is_mended_too() {
    // The kernel takes a port that it chose itself back.
    let (target, fd) = bind_admin(address("127.0.0.1:0")).expect("bind");
    drop(fd);
    let (target, fd) = bind_admin(target).expect("bind");
    assert_eq!(mend_admin(target, &fd), Ok(true));
    shutdown(fd.as_raw_fd(), Shutdown::Both).expect("shut down");
    assert!(TcpStream::connect(target).is_err());
    assert_eq!(mend_admin(target, &fd), Ok(false), "it did not");
    TcpStream::connect(target).expect("listens");
}

#[test]
fn retired_sockets_refuse_although_a_duplicate_lives() {
    let bound = bind_all(&listeners(&[&[address("127.0.0.1:0")]]), 2).expect("bind");
    let duplicate = bound[0].sockets[0].try_clone().expect("dup");
    TcpStream::connect(bound[0].key.address).expect("listens");
    retire(&bound);
    assert!(TcpStream::connect(bound[0].key.address).is_err());
    drop(duplicate);
}
