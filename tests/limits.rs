//! Limits of connections per source where no interface is guarded. All workers together enforce them at
//! accept. The tests of limits that the kernel enforces are in `kernel/guard.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tests::client::{Client, Dial};
use tests::eventually;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};

const LIMIT: Duration = Duration::from_secs(15);
/// Every address of 127/8 can be used as a source.
const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 21));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 22));

fn sluice(guard: &str) -> (Origin, Sluice) {
    let origin = Origin::http(|_| Response::ok("inside"));
    let sluice = Setup::to(origin.address()).workers(2).with("guard", guard).start();
    (origin, sluice)
}

/// A client that was served and keeps its connection open.
fn served(sluice: &Sluice, source: IpAddr) -> Option<Client> {
    let dial = Dial { source: Some(source), receive_buffer: None };
    let mut client = Client::over(dial.connect(sluice.address(), LIMIT).unwrap()).unwrap();
    client.try_get("/").ok().map(|response| assert_eq!(response.text(), "inside")).map(|()| client)
}

/// Waits until a place is free again: Sluice must first see that an earlier connection is gone.
fn served_again(sluice: &Sluice, source: IpAddr) -> Client {
    eventually(LIMIT, "a place is free again", || served(sluice, source))
}

fn shed(sluice: &Sluice) -> f64 {
    sluice.metrics().labelled("sluice_connections_shed_total", "reason", "connections_per_ip")
}

#[test]
fn a_source_has_its_limit_over_all_workers_and_others_have_theirs() {
    let (_origin, sluice) = sluice("connections_per_ip = 10");
    let mut clients: Vec<Client> = (0..10).map(|_| served(&sluice, ONE).unwrap()).collect();
    for _ in 0..20 {
        assert!(served(&sluice, ONE).is_none(), "the eleventh");
    }
    assert_eq!(shed(&sluice), 20.0);
    let others: Vec<Client> = (0..10).map(|_| served(&sluice, OTHER).unwrap()).collect();
    assert!(sluice.per_worker("connections").iter().all(|open| *open > 0), "both workers hold some");
    for client in &mut clients {
        assert_eq!(client.get("/").status, 200, "those that are there stay");
    }
    assert_eq!(others.len(), 10);
}

#[test]
fn every_way_to_go_frees_a_place() {
    let (_origin, sluice) = sluice("connections_per_ip = 2");
    let first = served(&sluice, ONE).unwrap();
    let _stays = served(&sluice, ONE).unwrap();
    assert!(served(&sluice, ONE).is_none());
    // The client sends FIN.
    drop(first);
    let reset = served_again(&sluice, ONE);
    assert!(served(&sluice, ONE).is_none());
    reset.reset();
    let mut closed = served_again(&sluice, ONE);
    assert!(served(&sluice, ONE).is_none());
    // Sluice sends FIN.
    closed.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(closed.response("GET").status, 200);
    let _last = served_again(&sluice, ONE);
    assert!(served(&sluice, ONE).is_none());
}

#[test]
fn a_data_plane_that_died_leaves_no_count_behind() {
    let (_origin, mut sluice) = sluice("connections_per_ip = 3");
    let before: Vec<Client> = (0..3).map(|_| served(&sluice, ONE).unwrap()).collect();
    sluice.kill_data_plane();
    sluice.wait_ready();
    let after: Vec<Client> = (0..3).map(|_| served(&sluice, ONE).unwrap()).collect();
    assert!(served(&sluice, ONE).is_none());
    assert_eq!((before.len(), after.len()), (3, 3));
}

#[test]
fn who_is_allowed_is_not_counted_and_a_dry_run_sheds_nobody() {
    let (_origin, sluice) = sluice("connections_per_ip = 1\nallow = [\"127.0.0.22/32\"]");
    let kept: Vec<Client> = (0..5).map(|_| served(&sluice, OTHER).unwrap()).collect();
    assert!(served(&sluice, ONE).is_some());
    assert_eq!((kept.len(), shed(&sluice)), (5, 0.0));

    let (_origin, dry) = self::sluice("connections_per_ip = 1\ndry_run = true");
    let kept: Vec<Client> = (0..5).map(|_| served(&dry, ONE).unwrap()).collect();
    assert_eq!((kept.len(), shed(&dry)), (5, 4.0), "counted all the same");
}
