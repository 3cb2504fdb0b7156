//! The guard on real packets: a Sluice in one network namespace, its clients in another, a veth pair between
//! them with XDP in driver mode. `kernel_programs` tests the verdicts of single packets with
//! BPF_PROG_TEST_RUN.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tests::cable::{CLIENTS, Cable, SERVER, verdict};
use tests::client::{Client, Dial};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, flood, skip};

const LIMIT: Duration = Duration::from_secs(15);

const ONE: IpAddr = CLIENTS[0];
const OTHER: IpAddr = CLIENTS[1];

#[test]
fn a_source_above_its_rate_is_dropped_while_another_is_served() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let sluice =
        net.setup("syn_rate_per_ip = \"10/s\"\nsyn_burst_per_ip = 20\nsyn_cookies = \"off\"").start();
    assert_eq!(sluice.status()["supervisor"]["guard"]["interfaces"]["edge"], "driver");
    let dial = Dial { source: Some(ONE), receive_buffer: None };
    let flood: Vec<TcpStream> =
        net.clients.run(|| (0..200).map(|_| dial.start(sluice.address()).unwrap()).collect());
    // While the first source has used up its bucket, the other one is served.
    for _ in 0..10 {
        assert!(net.is_served(OTHER, &sluice), "the other source has a bucket of its own");
    }
    let connected = flood.iter().filter(|stream| stream.peer_addr().is_ok()).count();
    // The burst passes, and ten SYNs for each second that the test took: a second or two on a busy machine.
    assert!((20..=60).contains(&connected), "{connected} of 200 came through");
    assert!(verdict(&sluice, "syn_rate") >= 140, "{:?}", sluice.verdicts());
    drop(flood);
    // The bucket fills again.
    eventually(LIMIT, "the source is served again", || net.is_served(ONE, &sluice).then_some(()));
}

#[test]
fn connections_that_stand_are_not_judged_by_the_rate() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let sluice = net.setup("syn_rate_per_ip = \"1/s\"\nsyn_burst_per_ip = 2").start();
    let mut client = net.dial(ONE, sluice.address()).unwrap();
    for _ in 0..200 {
        assert_eq!(client.get("/").status, 200);
    }
}

#[test]
fn denied_sources_are_dropped_and_allowed_ones_never_judged() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let guard = "deny = [\"10.77.0.0/24\"]\nallow = [\"10.77.0.3/32\"]\nsyn_rate_per_ip = \"1/s\"\n\
        syn_burst_per_ip = 1";
    let sluice = net.setup(guard).start();
    assert!(!net.is_served(ONE, &sluice));
    assert!(verdict(&sluice, "denied") >= 1, "{:?}", sluice.verdicts());
    for _ in 0..10 {
        assert!(net.is_served(OTHER, &sluice), "allow goes before deny and before the rate");
    }
    assert!(verdict(&sluice, "allowed") >= 10, "{:?}", sluice.verdicts());
    assert_eq!(verdict(&sluice, "syn_rate"), 0);
}

#[test]
fn a_deny_file_that_changes_is_taken_by_itself_and_bans_stay() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let list = tempfile::NamedTempFile::new().unwrap();
    let sluice = net.setup(&format!("deny_file = \"{}\"", list.path().display())).start();
    assert!(net.is_served(ONE, &sluice));
    let _ = sluice.command_with("ban", &[&OTHER.to_string()]).success();
    std::fs::write(list.path(), format!("{ONE}\n")).unwrap();
    eventually(LIMIT, "it is denied", || (!net.is_served(ONE, &sluice)).then_some(()));
    assert!(verdict(&sluice, "denied") >= 1, "{:?}", sluice.verdicts());
    std::fs::write(list.path(), "# nobody\n").unwrap();
    eventually(LIMIT, "it is served again", || net.is_served(ONE, &sluice).then_some(()));
    assert!(!net.is_served(OTHER, &sluice), "a ban is none of the list's");
    assert!(verdict(&sluice, "banned") >= 1, "{:?}", sluice.verdicts());
}

#[test]
fn only_our_listeners_are_judged() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let other = net.server.run(|| TcpListener::bind((SERVER, 81)).unwrap());
    let sluice = net.setup("deny = [\"10.77.0.0/24\"]").start();
    assert!(!net.is_served(ONE, &sluice));
    assert!(net.dial(ONE, other.local_addr().unwrap()).is_ok(), "another program's port is none of ours");
    assert!(verdict(&sluice, "not_ours") >= 1, "{:?}", sluice.verdicts());
}

#[test]
fn deny_cuts_flows_that_were_there_before() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let setup = net.setup("deny = [\"10.77.0.2/32\"]");
    // Two connections from earlier, to a server that had this port and then closed its listener.
    let before = net.server.run(|| TcpListener::bind(setup.address()).unwrap());
    let mut standing = [ONE, OTHER].map(|source| {
        let client = net.dial(source, setup.address()).unwrap();
        let (server, from) = before.accept().unwrap();
        server.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        assert_eq!(from.ip(), source);
        (client, server)
    });
    drop(before);
    let sluice = setup.start();
    for (client, _) in &mut standing {
        client.send("still there");
    }
    let [(_, denied), (_, other)] = &mut standing;
    let mut bytes = [0; 11];
    other.read_exact(&mut bytes).expect("the other source's connection lives");
    assert_eq!(&bytes, b"still there");
    assert!(denied.read(&mut bytes).is_err(), "not one byte of the denied source arrives any more");
    assert!(verdict(&sluice, "denied") >= 1);
}

#[test]
fn a_dry_run_counts_and_drops_nothing() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let guard = "dry_run = true\ndeny = [\"10.77.0.2/32\"]\nsyn_rate_per_ip = \"1/s\"\nsyn_burst_per_ip = 1";
    let sluice = net.setup(guard).start();
    assert_eq!(sluice.status()["supervisor"]["guard"]["dry_run"], true);
    for _ in 0..5 {
        assert!(net.is_served(ONE, &sluice) && net.is_served(OTHER, &sluice));
    }
    assert!(verdict(&sluice, "denied") >= 5 && verdict(&sluice, "syn_rate") >= 3, "{:?}", sluice.verdicts());
}

#[test]
fn ipv6_is_judged_by_its_64() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    net.server.ip(&["address", "add", "fd77::1/48", "dev", "edge", "nodad"]);
    for address in ["fd77::2/48", "fd77::3/48", "fd77:0:0:1::2/48"] {
        net.clients.ip(&["address", "add", address, "dev", "out", "nodad"]);
    }
    let sluice = net
        .setup("syn_rate_per_ip = \"1/s\"\nsyn_burst_per_ip = 5\nsyn_cookies = \"off\"")
        .inside(&net.server, "fd77::1".parse().unwrap())
        .start();
    let dial = |source: &str| {
        let dial = Dial { source: Some(source.parse().unwrap()), receive_buffer: None };
        net.clients.run(|| dial.start(sluice.address()).unwrap())
    };
    let flood: Vec<TcpStream> = (0..20).flat_map(|_| ["fd77::2", "fd77::3"]).map(dial).collect();
    assert!(net.is_served("fd77:0:0:1::2".parse().unwrap(), &sluice), "another /64 has a bucket of its own");
    let connected = flood.iter().filter(|stream| stream.peer_addr().is_ok()).count();
    assert!((5..=10).contains(&connected), "two addresses of one /64 share a bucket: {connected} of 40");
}

#[test]
fn the_program_is_there_while_sluice_runs_and_gone_after() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    assert_eq!(net.server.xdp("edge"), None);
    let mut sluice = net.setup("").start();
    assert_eq!(net.server.xdp("edge").as_deref(), Some("xdp"), "driver mode");
    // When the data plane dies, the filter stays as it is.
    sluice.kill_data_plane();
    assert_eq!(net.server.xdp("edge").as_deref(), Some("xdp"));
    sluice.wait_ready();
    let stopped = sluice.command("stop");
    assert_eq!(stopped.code(), 0, "{}", stopped.all());
    sluice.wait_end(LIMIT);
    assert_eq!(net.server.xdp("edge"), None);
}

#[test]
fn generic_mode_is_used_when_asked_for() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let guard = "interfaces = [\"edge\"]\nmode = \"generic\"\ndeny = [\"10.77.0.2/32\"]";
    let sluice = Setup::to(net.origin.address()).inside(&net.server, SERVER).with("guard", guard).start();
    assert_eq!(net.server.xdp("edge").as_deref(), Some("xdpgeneric"));
    assert!(!net.is_served(ONE, &sluice) && net.is_served(OTHER, &sluice));
}

#[test]
fn auto_falls_back_on_the_loopback_and_says_so() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let guard = "interfaces = [\"lo\", \"edge\"]\nmode = \"auto\"";
    let sluice = Setup::to(net.origin.address()).inside(&net.server, SERVER).with("guard", guard).start();
    let interfaces = &sluice.status()["supervisor"]["guard"]["interfaces"];
    assert_eq!((interfaces["lo"].as_str(), interfaces["edge"].as_str()), (Some("generic"), Some("driver")));
    let degraded = sluice.status()["supervisor"]["degraded"].to_string();
    assert!(degraded.contains("lo") && degraded.contains("generic"), "{degraded}");
    assert!(sluice.log().contains("generic"), "and in the log: {}", sluice.log());
    assert!(net.is_served(ONE, &sluice));
}

#[test]
fn what_cannot_be_is_a_clear_error() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    for (guard, words) in [
        ("interfaces = [\"nowhere0\"]", vec!["nowhere0"]),
        ("interfaces = [\"lo\"]\nmode = \"driver\"", vec!["lo", "driver"]),
    ] {
        let mut sluice =
            Setup::to(net.origin.address()).inside(&net.server, SERVER).with("guard", guard).spawn();
        let status = sluice.wait_end(LIMIT);
        assert_ne!(status.code(), Some(0), "{guard}");
        for word in words {
            assert!(sluice.log().contains(word), "{guard}: {word}: {}", sluice.log());
        }
        assert_eq!(net.server.xdp("lo"), None, "nothing is left behind");
    }
}

#[test]
fn an_interface_is_held_by_one_instance() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut first = net.setup("").start();
    let mut second = net.setup("").spawn();
    assert_ne!(second.wait_end(LIMIT).code(), Some(0));
    assert!(second.log().contains("edge"), "{}", second.log());
    assert!(first.runs() && net.server.xdp("edge").is_some());
    assert!(net.is_served(ONE, &first));
}

#[test]
fn the_admin_endpoint_is_reached_from_inside_only() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let sluice = net.setup("").start();
    assert_eq!(sluice.admin("/healthz").unwrap().status, 200);
    let port = sluice
        .configuration()
        .lines()
        .filter_map(|line| line.strip_prefix("address = \"127.0.0.1:"))
        .next_back()
        .unwrap()
        .to_owned();
    let port: u16 = port.trim_end_matches('"').parse().unwrap();
    assert!(net.dial(ONE, SocketAddr::new(SERVER, port)).is_err());
    let mut client = net.dial(ONE, sluice.address()).unwrap();
    assert_eq!(client.get("/metrics").text(), "inside", "the listener knows no admin paths");
}

/// Opens as many connections as the source may hold, and checks that one more is refused.
fn holds_exactly(net: &Cable, sluice: &Sluice, limit: usize) -> Vec<Client> {
    let mut held: Vec<Client> = (0..limit).map(|_| net.dial(ONE, sluice.address()).unwrap()).collect();
    for client in &mut held {
        assert_eq!(client.get("/").status, 200);
    }
    assert!(!net.is_served(ONE, sluice), "one more than {limit}");
    assert!(net.is_served(OTHER, sluice), "another source has a limit of its own");
    held
}

#[test]
fn a_source_holds_exactly_as_many_connections_as_it_may() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let mut sluice = net.setup("connections_per_ip = 5").start();
    let mut held = holds_exactly(&net, &sluice, 5);
    assert!(verdict(&sluice, "connections") >= 1, "{:?}", sluice.verdicts());
    // A close by the client, a reset, and a close by the proxy each make room for one connection. Accepts are
    // deferred, so a connection counts once its first bytes have come.
    let refill = |held: &mut Vec<Client>| {
        eventually(LIMIT, "there is room", || {
            (sluice.status()["supervisor"]["guard"]["connections"] == 4).then_some(())
        });
        let mut client = net.dial(ONE, sluice.address()).unwrap();
        assert_eq!(client.get("/").status, 200);
        held.push(client);
        assert!(!net.is_served(ONE, &sluice), "room for one, not for two");
    };
    drop(held.pop());
    refill(&mut held);
    held.remove(0).reset();
    refill(&mut held);
    held[0].send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    held[0].until_closed();
    held.remove(0);
    refill(&mut held);
    // The connections of the killed data plane, and no others, are gone from the count.
    sluice.kill_data_plane();
    sluice.wait_ready();
    drop(held);
    eventually(LIMIT, "none is counted that is not there", || {
        (sluice.status()["supervisor"]["guard"]["connections"] == 0).then_some(())
    });
    drop(holds_exactly(&net, &sluice, 5));
}

#[test]
fn a_client_that_vanished_gives_its_room_back() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    // How often the kernel sends a FIN again to a client that is gone. By default it goes on for about 100 s,
    // and the connection counts all that time.
    net.server.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "1").unwrap());
    let setup = net.setup("connections_per_ip = 2");
    let sluice =
        setup.with("listener.timeouts", "keep_alive = \"500ms\"\nrequest_header = \"500ms\"").start();
    let mut held = holds_exactly(&net, &sluice, 2);
    // One connection is between requests, the other in the middle of a head.
    held[0].send("GET / HTTP/1.1\r\nHo");
    net.clients.ip(&["link", "set", "out", "down"]);
    drop(held);
    let counted = || sluice.status()["supervisor"]["guard"]["connections"].as_u64().unwrap();
    assert!(counted() >= 2, "the other source's may be there still");
    eventually(LIMIT, "the kernel gives up", || (counted() == 0).then_some(()));
    net.clients.ip(&["link", "set", "out", "up"]);
    drop(holds_exactly(&net, &sluice, 2));
}

#[test]
fn cookies_hold_the_limit_too_and_settings_come_back() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    // Frames that XDP sends out of one end of a cable arrive only if the other end has a program too.
    let _peer = net.clients.run(|| tests::bpf::attach_empty("out")).unwrap();
    let setting = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        net.server.run(|| std::fs::read_to_string(path).unwrap().trim().to_owned())
    };
    let before = (setting("tcp_syncookies"), setting("tcp_timestamps"));
    let mut sluice = net.setup("connections_per_ip = 5\nsyn_cookies = \"always\"").start();
    assert_eq!((setting("tcp_syncookies").as_str(), setting("tcp_timestamps").as_str()), ("2", "2"));
    let held = holds_exactly(&net, &sluice, 5);
    assert!(verdict(&sluice, "syn_cookie") >= 6, "{:?}", sluice.verdicts());
    drop(held);
    eventually(LIMIT, "there is room again", || net.is_served(ONE, &sluice).then_some(()));
    assert_eq!(sluice.command("stop").code(), 0);
    sluice.wait_end(LIMIT);
    assert_eq!((setting("tcp_syncookies"), setting("tcp_timestamps")), before);
}

/// Issue 12: with SYNs in a client's name, four of eight connects of that client failed.
#[test]
fn a_flood_in_a_clients_name_does_not_shut_it_out() {
    if skip::without_root() {
        return;
    }
    let net = Cable::new();
    let _peer = net.clients.run(|| tests::bpf::attach_empty("out")).unwrap();
    let sluice = net.setup("syn_rate_per_ip = \"100/s\"\nsyn_burst_per_ip = 200").start();
    let (SocketAddr::V4(target), IpAddr::V4(victim)) = (sluice.address(), ONE) else { panic!("IPv4") };
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // 40,000 SYNs a second at most, as evenly as may be: 600,000 in all.
            net.clients.run(|| {
                for _ in 0..15_000 {
                    if is_done.load(Ordering::Relaxed) {
                        break;
                    }
                    flood::send_as(victim, target, 40);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
        });
        // The bucket is empty before the client comes.
        eventually(LIMIT, "the flood is there", || (verdict(&sluice, "syn_rate") >= 1).then_some(()));
        let mut served = 0;
        for _ in 0..8 {
            let dial = Dial { source: Some(ONE), receive_buffer: None };
            let stream = net.clients.run(|| dial.connect(sluice.address(), Duration::from_secs(4)));
            served +=
                u32::from(stream.is_ok_and(|stream| {
                    Client::over(stream).and_then(|mut client| client.try_get("/")).is_ok()
                }));
            std::thread::sleep(Duration::from_millis(250));
        }
        is_done.store(true, Ordering::Relaxed);
        assert_eq!(served, 8, "{:?}", sluice.verdicts());
    });
    assert!(verdict(&sluice, "syn_cookie") >= 1000, "{:?}", sluice.verdicts());
    assert!(sluice.log().contains("exceed a source's rate"), "{}", sluice.log());
}
