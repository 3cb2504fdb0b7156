//! Listening sockets that a process shuts down which holds them too, such as a data plane that was taken
//! over. They listen again, in the steering array too, and readiness tells the truth meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{Shutdown, SockaddrStorage, connect, getsockopt, setsockopt, shutdown, sockopt};
use nix::unistd::Pid;
use tests::client::Client;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, pidfd, skip};

const LIMIT: Duration = Duration::from_secs(30);

fn start(origin: &Origin) -> Sluice {
    Setup::to(origin.address()).workers(2).start()
}

fn origin() -> Origin {
    Origin::http(|_| Response::ok("ok"))
}

/// The supervisor's sockets, which are the data plane's.
fn sockets(sluice: &Sluice, address: SocketAddr) -> Vec<OwnedFd> {
    pidfd::listeners(sluice.pid(), address)
}

fn poison(sockets: &[OwnedFd]) {
    for socket in sockets {
        match shutdown(socket.as_raw_fd(), Shutdown::Both) {
            // Nobody has mended it since the last time.
            Ok(()) | Err(Errno::ENOTCONN) => {}
            Err(errno) => panic!("{errno}"),
        }
    }
}

fn tries(sluice: &Sluice) -> bool {
    Client::try_connect(sluice.address())
        .and_then(|mut client| client.try_get("/"))
        .is_ok_and(|response| response.status == 200)
}

/// Waits until so many connections in a row are served.
fn wait_served(sluice: &Sluice) {
    eventually(LIMIT, "everybody is served", || (0..20).all(|_| tries(sluice)).then_some(()));
}

fn restored(sluice: &Sluice) -> f64 {
    sluice.metrics().sum("sluice_listeners_restored_total")
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.cast_signed()), signal).unwrap();
}

/// An attack by name.
type Act<'a> = (&'a str, &'a dyn Fn(&OwnedFd));

#[test]
fn sockets_that_are_shut_down_while_serving_listen_again_and_are_steered_to() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let sluice = start(&origin);
    let data_plane = sluice.data_plane_pid();
    let held = sockets(&sluice, sluice.address());
    assert_eq!(held.len(), 2, "one for each worker");
    for round in 1..=3 {
        poison(&held);
        wait_served(&sluice);
        eventually(LIMIT, "ready", || {
            sluice.admin("/readyz").is_ok_and(|response| response.status == 200).then_some(())
        });
        assert_eq!(restored(&sluice), 2.0 * f64::from(round));
        if sluice.status()["supervisor"]["steering"]["policy"] == "least-loaded" {
            let before: u64 = sluice.selected().values().sum();
            assert!((0..20).all(|_| tries(&sluice)));
            assert_eq!(sluice.selected().values().sum::<u64>() - before, 20, "all by the steering program");
        }
    }
    assert_eq!(sluice.data_plane(), Some(data_plane));
    let metrics = sluice.metrics();
    assert_eq!(metrics.labelled("sluice_connections_shed_total", "reason", "client_gone"), 0.0);
    assert!(metrics.sum("sluice_accept_failures_total") >= 2.0);
    assert_eq!(metrics.sum("sluice_listeners_failing"), 0.0);
    let log = sluice.log();
    assert!(log.contains("listening sockets were shut down by another process"), "{log}");
}

#[test]
fn readiness_knows_of_sockets_that_take_no_accepts() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = start(&origin);
    let held = sockets(&sluice, sluice.address());
    // Nobody can mend them now.
    sluice.signal(Signal::SIGSTOP);
    poison(&held[..1]);
    let response = eventually(LIMIT, "it is not ready", || {
        sluice.admin("/readyz").ok().filter(|response| response.status == 503)
    });
    assert!(response.text().starts_with("not accepting\n"), "{}", response.text());
    let status = sluice.status();
    assert_eq!(status["data_plane"]["ready"], false);
    sluice.signal(Signal::SIGCONT);
    sluice.wait_ready();
    wait_served(&sluice);
}

#[test]
fn sockets_that_are_shut_down_between_two_data_planes_listen_again() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = start(&origin);
    let old = sluice.data_plane_pid();
    let held = sockets(&sluice, sluice.address());
    sluice.signal(Signal::SIGSTOP);
    poison(&held);
    signal(old, Signal::SIGKILL);
    sluice.signal(Signal::SIGCONT);
    eventually(LIMIT, "a successor", || sluice.data_plane().filter(|pid| *pid != old));
    sluice.wait_ready();
    wait_served(&sluice);
    assert_eq!(restored(&sluice), 2.0);
    assert_eq!(sluice.status()["supervisor"]["restarts"], 1);
}

#[test]
fn a_data_plane_that_shuts_sockets_down_for_ever_is_replaced() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = start(&origin);
    let old = sluice.data_plane_pid();
    let held = sockets(&sluice, sluice.address());
    eventually(LIMIT, "it is replaced", || {
        poison(&held);
        sluice.data_plane().filter(|pid| *pid != old)
    });
    sluice.wait_ready();
    wait_served(&sluice);
    let log = sluice.log();
    assert!(log.contains("again and again; the data plane is replaced"), "{log}");
    assert!(sluice.runs());
}

#[test]
fn the_admin_listener_is_mended_too() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = start(&origin);
    let status = sluice.configuration();
    let address: SocketAddr =
        status.split("[admin]\naddress = \"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
    let held = sockets(&sluice, address);
    assert_eq!(held.len(), 1);
    poison(&held);
    sluice.wait_ready();
    assert_eq!(restored(&sluice), 1.0);
}

#[test]
fn whatever_a_dead_data_plane_did_to_sockets_its_successor_serves() {
    if skip::without_root() {
        return;
    }
    let origin = origin();
    let mut sluice = start(&origin);
    let held = sockets(&sluice, sluice.address());
    let twice = |socket: &OwnedFd| poison(&[socket.try_clone().unwrap(), socket.try_clone().unwrap()]);
    let connected = |socket: &OwnedFd| {
        pidfd::disconnect(socket).unwrap();
        // Only one socket of the group can be connected there.
        let _ = connect(socket.as_raw_fd(), &SockaddrStorage::from(origin.address()));
    };
    let lingers = |socket: &OwnedFd| {
        setsockopt(socket, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 3600 }).unwrap();
    };
    let acts: [Act<'_>; 3] =
        [("shut down twice", &twice), ("connected", &connected), ("lingering", &lingers)];
    for (what, act) in acts {
        let old = sluice.data_plane_pid();
        sluice.signal(Signal::SIGSTOP);
        held.iter().for_each(act);
        signal(old, Signal::SIGKILL);
        sluice.signal(Signal::SIGCONT);
        eventually(LIMIT, what, || sluice.data_plane().filter(|pid| *pid != old));
        sluice.wait_ready();
        wait_served(&sluice);
        for socket in &held {
            assert_eq!(getsockopt(socket, sockopt::Linger).unwrap().l_onoff, 0, "{what}");
        }
    }
    assert_eq!(sluice.metrics().sum("sluice_listeners_failing"), 0.0);
}
