//! Connections to endpoints, through the built binary and its sandbox: where they come from, what they leave
//! behind, and what becomes of requests while no local port is left.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tests::netns::Netns;
use tests::origin::{Origin, Response};
use tests::sluice::Setup;
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(15);

/// TCP sockets of this host that wait for late packets of a connection to `peer` (TIME_WAIT).
fn waiting(peer: SocketAddr) -> usize {
    /// `TCP_TIME_WAIT` of include/net/tcp_states.h.
    const TIME_WAIT: &str = "06";
    let IpAddr::V4(ip) = peer.ip() else { panic!("{peer}") };
    let remote = format!("{:08X}:{:04X}", u32::from_le_bytes(ip.octets()), peer.port());
    let table = std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let is_waiting = |line: &&str| {
        let mut fields = line.split_whitespace();
        fields.nth(2) == Some(&remote) && fields.next() == Some(TIME_WAIT)
    };
    table.lines().filter(is_waiting).count()
}

/// The origin answers at its leisure; the close is Sluice's.
fn kept_alive() -> Origin {
    Origin::http(|_| Response::ok("ok"))
}

#[test]
fn surplus_connections_leave_no_time_wait() {
    // Behind PROXY headers, whose signature looks like the end of a head.
    let introduced = || {
        Origin::raw(|connection| {
            let (mut socket, mut received) = (connection.socket(), Vec::new());
            let mut piece = [0; 4096];
            while !(received.windows(4).any(|bytes| bytes == b"GET ") && received.ends_with(b"\r\n\r\n")) {
                let length = socket.read(&mut piece)?;
                received.extend(&piece[..length]);
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            connection.drain();
            Ok(())
        })
    };
    for (origin, section, line) in
        [(kept_alive(), "upstream.pool", "max_idle = 0"), (introduced(), "upstream", "send_proxy = true")]
    {
        let sluice = Setup::to(origin.address()).with(section, line).start();
        let mut client = sluice.client();
        for _ in 0..50 {
            assert_eq!(client.get("/").status, 200, "{line}");
        }
        eventually(LIMIT, "every connection is closed", || (origin.open() == 0).then_some(()));
        assert_eq!((waiting(origin.address()), origin.connections()), (0, 50), "{line}");
    }
}

/// The address is bound under Landlock, seccomp and the restrictions of the ring.
#[test]
fn connections_come_from_each_source_in_turn() {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&peers);
    let origin = Origin::raw(move |connection| {
        seen.lock().unwrap().push(connection.socket().peer_addr()?.ip());
        connection.read_head()?;
        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        connection.drain();
        Ok(())
    });
    let sources = [2, 3, 4].map(|last| IpAddr::from(Ipv4Addr::new(127, 0, 0, last)));
    let sluice = Setup::to(origin.address())
        .with("upstream", &format!("source = [\"{}\", \"{}\", \"{}\"]", sources[0], sources[1], sources[2]))
        .with("upstream.pool", "max_idle = 0")
        .start();
    let mut client = sluice.client();
    for _ in 0..6 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(*peers.lock().unwrap(), [sources, sources].concat());
}

#[test]
fn an_address_that_is_not_ours_is_said_and_passed_over() {
    let origin = kept_alive();
    let sluice = Setup::to(origin.address())
        .with("upstream", "source = [\"192.0.2.77\", \"127.0.0.5\"]")
        .with("upstream.pool", "max_idle = 0")
        .start();
    let mut client = sluice.client();
    for _ in 0..4 {
        assert_eq!(client.get("/").status, 200);
    }
    eventually(LIMIT, "a line that names the address", || {
        let log = sluice.log();
        (log.contains("upstream.source cannot be connected from") && log.contains("192.0.2.77")).then_some(())
    });
}

/// Every port of the range is taken: those requests get 503 at once, another upstream is served.
#[test]
fn a_spent_range_of_ports_refuses_its_requests_and_no_others() {
    if skip::without_root() {
        return;
    }
    let namespace = Arc::new(Netns::new());
    let (full, free) = namespace.run(|| {
        // Each connection takes a port for as long as its request lasts.
        (Origin::http(|_| Response::ok("late").after(Duration::from_secs(4))), kept_alive())
    });
    let tables = format!(
        "\n[[route]]\npath_prefix = \"/free\"\nupstream = \"free\"\n\
         [[upstream]]\nname = \"free\"\nendpoints = [\"{}\"]\n",
        free.address()
    );
    let sluice =
        Setup::to(full.address()).inside(&namespace, Ipv4Addr::LOCALHOST.into()).append(&tables).start();
    sluice.inside(|| {
        let mut clients: Vec<_> = (0..6).map(|_| sluice.client()).collect();
        // From now on there are four ports.
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40003").unwrap();
        let [refused, other, holders @ ..] = clients.as_mut_slice() else { panic!("six clients") };
        for client in holders {
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        }
        eventually(LIMIT, "the ports are taken", || (full.connections() == 4).then_some(()));
        let begun = Instant::now();
        assert_eq!(refused.get("/").status, 503);
        for _ in 0..20 {
            assert_eq!(other.get("/free").text(), "ok");
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    });
    assert!(sluice.metrics().labelled("sluice_requests_refused_total", "reason", "no_port") >= 1.0);
    assert!(sluice.log().contains("no local port is left to connect from"), "{}", sluice.log());
}
