//! TCP in fragments against a guarded Sluice (RFC 791, RFC 1858): an attacker's must not pass by the guard,
//! and an honest client's upload over a link that fragments must arrive. `kernel_programs` tests the verdict
//! of every shape.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tests::cable::{CLIENTS, Cable, verdict};
use tests::client::{Client, Dial};
use tests::fragments::Clients;
use tests::netns::Netns;
use tests::origin::{Origin, Response};
use tests::skip;
use tests::sluice::{Setup, Sluice};

/// A source that the clients' kernel does not have, so that it resets nothing.
const FORGED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 5);

/// A Sluice with these lines in `[guard]`, and the way back to the forged source.
fn guarded(net: &Cable, guard: &str) -> Sluice {
    net.server.ip(&["route", "add", "198.18.0.0/15", "via", &CLIENTS[0].to_string()]);
    net.setup(guard).start()
}

/// How many connections are served whose SYNs, and everything else, come in fragments of these sizes.
fn served(
    net: &Cable,
    sluice: &Sluice,
    first: u16,
    count: u16,
    syn: Option<usize>,
    rest: Option<usize>,
) -> usize {
    let SocketAddr::V4(target) = sluice.address() else { panic!("IPv4") };
    net.clients.run(|| {
        Clients::new(FORGED, SocketAddrV4::new(*target.ip(), target.port())).served(
            first..first + count,
            syn,
            rest,
        )
    })
}

#[test]
fn a_denied_source_is_not_served_in_fragments() {
    if skip::without_root() {
        return;
    }
    for fragments in ["judge", "pass"] {
        let net = Cable::new();
        let sluice = guarded(&net, &format!("deny = [\"198.18.0.0/15\"]\nfragments = \"{fragments}\""));
        for (number, piece) in [None, Some(8), Some(16), Some(24)].into_iter().enumerate() {
            let before = verdict(&sluice, "denied");
            let first = 20_000 + 10 * number as u16;
            assert_eq!(served(&net, &sluice, first, 3, piece, piece), 0, "{fragments}: pieces of {piece:?}");
            assert!(verdict(&sluice, "denied") >= before + 3, "{fragments}: {:?}", sluice.verdicts());
        }
    }
}

#[test]
fn a_banned_source_is_not_served_in_fragments() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let sluice = guarded(&net, "");
    assert_eq!(served(&net, &sluice, 20_000, 1, None, Some(24)), 1, "before the ban");
    let _ = sluice.command_with("ban", &[&FORGED.to_string()]).success();
    for (first, piece) in [(20_010, 8), (20_020, 16)] {
        assert_eq!(served(&net, &sluice, first, 3, Some(piece), Some(piece)), 0);
    }
    assert!(verdict(&sluice, "banned") >= 6, "{:?}", sluice.verdicts());
}

#[test]
fn limits_hold_in_fragments() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let sluice = guarded(&net, "connections_per_ip = 10\nsyn_cookies = \"off\"");
    // A SYN in fragments is no client's, whatever the limits say.
    assert_eq!(served(&net, &sluice, 20_000, 30, Some(8), Some(8)), 0);
    assert!(verdict(&sluice, "tiny_fragment") >= 30, "{:?}", sluice.verdicts());
    assert!(verdict(&sluice, "fragment_offset") >= 30, "{:?}", sluice.verdicts());
    assert_eq!(served(&net, &sluice, 20_100, 30, None, Some(16)), 0, "an ACK without a header");
    // Where the headers are whole, exactly as many are served as a source may have.
    assert_eq!(served(&net, &sluice, 20_200, 30, None, Some(24)), 10);
    assert_eq!(sluice.status()["supervisor"]["guard"]["connections"], 10);
    assert!(verdict(&sluice, "connections") >= 1 && verdict(&sluice, "fragment") >= 10);
}

#[test]
fn an_upload_over_a_link_that_fragments_arrives() {
    if skip::without_root() {
        return;
    }
    let (server, router, client) = (Arc::new(Netns::new()), Netns::new(), Netns::new());
    server.join(("edge", "10.77.0.1/24"), &router, ("in", "10.77.0.254/24"));
    client.join(("out", "10.78.0.2/24"), &router, ("far", "10.78.0.254/24"));
    // The router's link to the server takes less than the server announces, as a tunnel does.
    router.ip(&["link", "set", "in", "mtu", "600"]);
    router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    server.ip(&["route", "add", "default", "via", "10.77.0.254"]);
    client.ip(&["route", "add", "default", "via", "10.78.0.254"]);
    // The client's packets may be fragmented under way: no DF.
    client.run(|| std::fs::write("/proc/sys/net/ipv4/ip_no_pmtu_disc", "1").unwrap());
    let origin = server.run(|| Origin::http(|request| Response::ok(request.length.to_string())));
    let address = IpAddr::V4(Ipv4Addr::new(10, 77, 0, 1));
    let sluice = Setup::to(origin.address())
        .inside(&server, address)
        .with("guard", "interfaces = [\"edge\"]\nmode = \"driver\"\nsyn_cookies = \"off\"")
        .start();
    let stream = client.run(|| Dial::default().connect(sluice.address(), Duration::from_secs(5)).unwrap());
    let mut uploading = Client::over(stream).unwrap();
    let body = vec![0x2a; 1 << 20];
    uploading.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()));
    uploading.send(&body);
    assert_eq!(uploading.response("POST").text(), body.len().to_string());
    let verdicts = sluice.verdicts();
    assert!(verdicts["fragment"] >= 1000, "the link fragments: {verdicts:?}");
    for dropped in ["tiny_fragment", "syn_fragment", "fragment_offset"] {
        assert_eq!(verdicts[dropped], 0, "{verdicts:?}");
    }
}
