//! Tunnels over the simulated ring: no byte is lost or out of order whatever the world does, ends are passed
//! on one by one, and each time limit cuts what it is for.

use std::cell::Cell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::control::commands::Command;
use crate::counters::{Counter, Plain};
use crate::error::{CloseReason, PoolCloseReason, RefusalReason};
use crate::io::simulated::{Faults, Peer, Script, take_front};
use crate::listen::{Listener, Protocol};
use crate::proxy_protocol::{self, Header, Parsed};
use crate::route::model::Route;
use crate::upstream::model::Upstream;
use crate::worker::drain::Phase;
use crate::worker::testing::{self, Bench, origin_address};

const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
const SWITCH: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Of: origin\r\n\r\n";

/// Bytes that tell their place.
fn pattern(id: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| ((at ^ at >> 8 ^ id.wrapping_mul(97)).wrapping_mul(0x9e37_79b1) >> 13) as u8)
        .collect()
}

fn below(state: &mut u64, bound: usize) -> usize {
    *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
    (*state >> 33) as usize % bound
}

/// Removes a head from what came, once it is whole.
fn take_head(bytes: &mut Vec<u8>) -> Option<String> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    Some(String::from_utf8(bytes.drain(..end).collect()).expect("text"))
}

/// Says something of a length, ends its direction, and hears the other's to its end.
struct Talker {
    says: VecDeque<u8>,
    heard: Vec<u8>,
    state: u64,
    done: Rc<Cell<bool>>,
}

impl Talker {
    fn talk(&mut self, peer: &Peer) {
        let count = self.says.len().min(1 + below(&mut self.state, 9000));
        peer.write(&take_front(&mut self.says, count));
        if self.says.is_empty() && !self.done.get() {
            peer.shutdown_write();
        }
        if peer.is_ended() && self.says.is_empty() {
            self.done.set(true);
            peer.close();
        }
    }
}

fn lengths(seed: u64, client: usize) -> (usize, usize) {
    let mut state = seed << 8 | client as u64;
    let sizes = [0, 1, 700, 5000, 60_000, 300_000];
    (sizes[below(&mut state, sizes.len())], sizes[below(&mut state, sizes.len())])
}

/// An endpoint that switches, then says its part, whose length the request's path holds, and checks the
/// other's.
fn origin(seed: u64, checks: bool) -> Script {
    let mut received = Vec::new();
    let mut talker: Option<(Talker, Vec<u8>)> = None;
    Box::new(move |peer: &Peer| {
        received.extend(peer.read());
        if talker.is_none()
            && let Some(head) = take_head(&mut received)
        {
            let id: usize = head.split(['/', ' ']).nth(2).expect("a path").parse().expect("an id");
            let (up, down) = lengths(seed, id);
            assert!(head.contains("\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n"), "{head}");
            let says = [SWITCH.as_bytes(), &pattern(id + 100, down)].concat().into();
            let done = Rc::new(Cell::new(false));
            talker = Some((Talker { says, heard: Vec::new(), state: seed, done }, pattern(id, up)));
        }
        if let Some((talker, expected)) = &mut talker {
            talker.heard.append(&mut received);
            talker.talk(peer);
            assert!(!checks || !talker.done.get() || talker.heard == *expected, "the upload arrived whole");
        }
    })
}

fn simulate(seed: u64, faults: Faults, checks: bool) {
    let minute = Duration::from_secs(60);
    let mut config = testing::config(&[origin_address(1)]);
    let mut listener = testing::listener();
    (listener.timeouts.send, listener.timeouts.tunnel_idle, listener.timeouts.request_header) =
        (minute, minute, minute);
    config.listeners = vec![listener.into()];
    let route = Route { timeout: minute, ..(*config.routes.routes()[0]).clone() };
    config.routes = crate::route::RouteTable::new(vec![route.into()]);
    let mut bench = Bench::new(seed, faults, config);
    let mut made = 0;
    bench.sim.serve(origin_address(1), move || {
        made += 1;
        let _ = made;
        origin(seed, checks)
    });
    let mut clients = Vec::new();
    for id in 0..3 {
        let (up, down) = lengths(seed, id);
        let peer = bench.sim.connect(bench.listener);
        let request = REQUEST.replace("chat", &id.to_string());
        let done = Rc::new(Cell::new(false));
        // The first bytes of the other protocol come right behind the request, ahead of the answer.
        let says = [request.as_bytes(), &pattern(id, up)].concat().into();
        let mut talker = Talker { says, heard: Vec::new(), state: seed + id as u64, done: Rc::clone(&done) };
        let mut head = None;
        peer.script(move |peer| {
            talker.heard.extend(peer.read());
            if head.is_none() {
                head = take_head(&mut talker.heard);
            }
            talker.talk(peer);
            if checks && talker.done.get() {
                let head = head.as_ref().expect("an answer");
                assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("\r\nX-Of: origin\r\n"), "{head}");
                assert!(head.contains("\r\nUpgrade: echo\r\nX-Request-Id: "), "{head}");
                assert!(head.ends_with("\r\nConnection: Upgrade\r\n\r\n"), "{head}");
                assert!(talker.heard == pattern(id + 100, down), "the download arrived whole");
            }
        });
        clients.push(done);
    }
    bench.run_out();
    bench.check_freed(&format!("seed {seed}"));
    assert_eq!(bench.value(Plain::TunnelsOpen), 0);
    if checks {
        assert!(clients.iter().all(|done| done.get()), "seed {seed}");
        assert_eq!(bench.value(Plain::Tunnels), 3);
        assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelClosed)), 3, "seed {seed}");
        assert_eq!(bench.value(Counter::PoolClosed(PoolCloseReason::Tunnel)), 3, "seed {seed}");
    }
}

#[test]
fn an_upgraded_connection_carries_every_byte_and_each_end() {
    for seed in 0..150 {
        simulate(seed, if seed % 2 == 0 { Faults::mild() } else { Faults::rough() }, true);
    }
}

#[test]
fn tunnels_in_a_hostile_world_leak_nothing() {
    for seed in 0..150 {
        simulate(seed, Faults::hostile(), false);
    }
}

/// A tunnel that stands, and the endpoint's side of it.
fn tunnel(bench: &mut Bench) -> (Peer, Peer) {
    let origin = origin_address(1);
    bench.sim.origin(origin);
    let client = bench.sim.connect(bench.listener);
    client.write(REQUEST.as_bytes());
    let endpoint = accepted(bench, origin);
    endpoint.write(SWITCH.as_bytes());
    let opened = bench.value(Plain::Tunnels) + 1;
    bench.run_until(|events| events.worker().counters.value(Plain::Tunnels) == opened);
    settle(bench, 50);
    let mut head = client.read();
    assert!(take_head(&mut head).is_some_and(|head| head.starts_with("HTTP/1.1 101 ")) && head.is_empty());
    (client, endpoint)
}

/// The next connection to `address`, its request read.
fn accepted(bench: &mut Bench, address: SocketAddr) -> Peer {
    settle(bench, 50);
    let endpoint = bench.sim.accept(address).expect("a connection");
    settle(bench, 50);
    let mut request = endpoint.read();
    assert!(take_head(&mut request).is_some() && request.is_empty());
    endpoint
}

fn settle(bench: &mut Bench, milliseconds: u64) {
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(milliseconds));
}

fn bench() -> Bench {
    Bench::new(1, Faults { short: false, ..Faults::mild() }, testing::config(&[origin_address(1)]))
}

#[test]
fn a_half_close_is_passed_on_and_the_other_direction_goes_on() {
    let mut bench = bench();
    let (client, endpoint) = tunnel(&mut bench);
    client.write(b"last words");
    client.shutdown_write();
    settle(&mut bench, 100);
    assert_eq!(endpoint.read(), b"last words");
    assert!(endpoint.is_ended() && !client.is_ended());
    for word in ["still ", "here"] {
        endpoint.write(word.as_bytes());
        settle(&mut bench, 100);
        assert_eq!(client.read(), word.as_bytes());
    }
    endpoint.close();
    settle(&mut bench, 100);
    assert!(client.is_ended() && !client.is_reset());
    client.close();
    bench.run_out();
    assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelClosed)), 1);
    bench.check_freed("");
}

#[test]
fn a_reset_is_passed_on_whichever_side_it_comes_from() {
    let mut bench = bench();
    let (client, endpoint) = tunnel(&mut bench);
    client.reset();
    settle(&mut bench, 100);
    assert!(endpoint.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::ClientAborted)), 1);
    let (client, endpoint) = tunnel(&mut bench);
    endpoint.reset();
    settle(&mut bench, 100);
    assert!(client.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::UpstreamAborted)), 1);
    // One that ended its direction is still heard of.
    let (client, endpoint) = tunnel(&mut bench);
    client.shutdown_write();
    settle(&mut bench, 100);
    client.reset();
    endpoint.write(b"to nobody");
    settle(&mut bench, 200);
    assert!(endpoint.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::ClientAborted)), 2);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn an_idle_tunnel_is_closed_and_any_byte_puts_that_off() {
    let mut bench = bench();
    let (client, endpoint) = tunnel(&mut bench);
    // Ten seconds without a byte are allowed.
    for _ in 0..3 {
        settle(&mut bench, 7000);
        client.write(b"x");
        settle(&mut bench, 7000);
        endpoint.write(b"y");
    }
    settle(&mut bench, 9000);
    assert_eq!((endpoint.read(), client.read()), (b"xxx".to_vec(), b"yyy".to_vec()));
    assert_eq!(bench.value(Plain::TunnelsOpen), 1);
    settle(&mut bench, 1500);
    assert_eq!(bench.value(Plain::TunnelsOpen), 0);
    assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelIdle)), 1);
    assert!(client.is_ended() && !client.is_reset() && endpoint.is_ended() && !endpoint.is_reset());
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn who_takes_nothing_holds_the_other_up_and_is_then_cut() {
    for (client_is_slow, reason) in
        [(true, CloseReason::SendTimeout), (false, CloseReason::UpstreamSendTimeout)]
    {
        let mut bench = bench();
        let (client, endpoint) = tunnel(&mut bench);
        let (talks, slow) = if client_is_slow { (&endpoint, &client) } else { (&client, &endpoint) };
        let flood = vec![7; 4 << 20];
        talks.write(&flood);
        settle(&mut bench, 2000);
        assert!(
            talks.unsent() > 2 << 20,
            "backpressure: {} of {} bytes are held up",
            talks.unsent(),
            flood.len()
        );
        assert_eq!(bench.value(Plain::TunnelsOpen), 1);
        settle(&mut bench, 2000);
        assert_eq!(bench.value(Counter::Closed(reason)), 1);
        assert!(slow.is_reset() && talks.is_reset());
        bench.run_out();
        bench.check_freed("");
    }
}

#[test]
fn one_who_takes_a_little_at_a_time_is_served_to_the_end() {
    let mut bench = bench();
    let (client, endpoint) = tunnel(&mut bench);
    let whole = pattern(1, 1 << 20);
    endpoint.write(&whole);
    let mut heard = Vec::new();
    while heard.len() < whole.len() {
        settle(&mut bench, 1000);
        let some = client.read_at_most(64 << 10);
        assert!(!some.is_empty(), "after {}", heard.len());
        heard.extend(some);
    }
    assert!(heard == whole);
    endpoint.close();
    client.close();
    bench.run_out();
    assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelClosed)), 1);
    bench.check_freed("");
}

#[test]
fn a_drain_leaves_tunnels_alone_until_its_deadline() {
    let mut bench = bench();
    let (client, endpoint) = tunnel(&mut bench);
    let mut phase = Phase::Serving;
    let worker = Rc::clone(bench.events.worker());
    let deadline = bench.sim.now() + Duration::from_secs(5);
    phase.obey(Command::Drain { deadline }, &worker, &mut bench.engine, bench.events.steering());
    settle(&mut bench, 4000);
    endpoint.write(b"late");
    settle(&mut bench, 500);
    assert!(!phase.advance(&worker, &mut bench.engine));
    assert_eq!(client.read(), b"late");
    settle(&mut bench, 600);
    while !phase.advance(&worker, &mut bench.engine) {
        bench.engine.turn(&mut bench.events).expect("a turn");
    }
    bench.events.publish(bench.engine.stats());
    assert!(client.is_reset() && endpoint.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::Stopped)), 1);
    bench.check_freed("");
}

/// The endpoint agrees before or after it has the body; the tunnel begins behind it.
#[test]
fn a_tunnel_begins_behind_the_body_of_its_request() {
    let request =
        |framing: &str| REQUEST.replace("GET", "POST").replace("\r\n\r\n", &format!("\r\n{framing}\r\n\r\n"));
    for (head, body, forwarded) in [
        (REQUEST.replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"), ["", ""], ""),
        (request("Content-Length: 0"), ["", ""], ""),
        (request("Content-Length: 8"), ["the ", "body"], "the body"),
        (
            request("Transfer-Encoding: chunked"),
            ["4\r\nthe \r\n", "4\r\nbody\r\n0\r\n\r\n"],
            "4\r\nthe \r\n4\r\nbody\r\n0\r\n\r\n",
        ),
    ] {
        for is_early in [false, true] {
            let mut bench = bench();
            bench.sim.origin(origin_address(1));
            let client = bench.sim.connect(bench.listener);
            client.write(format!("{head}{}", body[0]).as_bytes());
            settle(&mut bench, 50);
            if is_early {
                let endpoint = bench.sim.accept(origin_address(1)).expect("a connection");
                endpoint.write(format!("{SWITCH}down").as_bytes());
                settle(&mut bench, 50);
                assert_eq!(client.read().is_empty(), !body[1].is_empty(), "not before the body: {head}");
                client.write(format!("{}up", body[1]).as_bytes());
                settle(&mut bench, 50);
                check_tunnel(&client, &endpoint, forwarded, body[1].is_empty());
            } else {
                client.write(format!("{}up", body[1]).as_bytes());
                settle(&mut bench, 50);
                let endpoint = bench.sim.accept(origin_address(1)).expect("a connection");
                endpoint.write(format!("{SWITCH}down").as_bytes());
                settle(&mut bench, 50);
                check_tunnel(&client, &endpoint, forwarded, false);
            }
            assert_eq!(bench.value(Plain::Tunnels), 1, "{head}");
            client.close();
            bench.run_out();
            bench.check_freed(&head);
        }
    }
}

/// `is_taken`: the client has read the answer and what came down already.
fn check_tunnel(client: &Peer, endpoint: &Peer, forwarded: &str, is_taken: bool) {
    let mut heard = client.read();
    if !is_taken {
        let head = take_head(&mut heard).expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 ") && heard == b"down", "{head}");
    }
    let mut asked = endpoint.read();
    let head = take_head(&mut asked).expect("a request");
    assert!(head.contains("\r\nUpgrade: echo\r\n"), "{head}");
    assert_eq!(String::from_utf8_lossy(&asked), format!("{forwarded}up"), "{head}");
    endpoint.close();
}

#[test]
fn no_tunnel_begins_for_a_client_that_leaves_within_its_body() {
    let mut bench = bench();
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    let head = REQUEST.replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 9\r\n\r\n");
    client.write(format!("{head}body").as_bytes());
    settle(&mut bench, 50);
    let endpoint = bench.sim.accept(origin_address(1)).expect("a connection");
    endpoint.write(SWITCH.as_bytes());
    settle(&mut bench, 50);
    client.shutdown_write();
    settle(&mut bench, 50);
    assert!(endpoint.is_reset() && client.read().is_empty());
    assert_eq!((bench.value(Plain::Tunnels), bench.value(Plain::Active)), (0, 0));
    client.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_switch_that_nobody_asked_for_is_refused_and_any_other_answer_is_ordinary() {
    let plain = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (request, answer, status) in [
        (plain, SWITCH.to_owned(), "HTTP/1.1 502 "),
        (REQUEST, SWITCH.replace("echo", "other"), "HTTP/1.1 502 "),
        (REQUEST, SWITCH.replace("Upgrade: echo\r\n", ""), "HTTP/1.1 502 "),
        (
            REQUEST,
            "HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\nUpgrade: echo\r\n\r\nno".to_owned(),
            "HTTP/1.1 426 ",
        ),
        (
            REQUEST,
            "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno".to_owned(),
            "HTTP/1.1 200 ",
        ),
    ] {
        let mut bench = bench();
        bench.sim.origin(origin_address(1));
        let client = bench.sim.connect(bench.listener);
        client.write(request.as_bytes());
        settle(&mut bench, 50);
        let endpoint = bench.sim.accept(origin_address(1)).expect("a connection");
        endpoint.write(answer.as_bytes());
        settle(&mut bench, 100);
        let mut heard = client.read();
        let mut head = take_head(&mut heard).expect("an answer");
        if head.starts_with("HTTP/1.1 103 ") {
            head = take_head(&mut heard).expect("an answer");
        }
        assert!(head.starts_with(status), "{request} {answer}: {head}");
        let names_it = head.contains("\r\nUpgrade: echo\r\n") && head.contains("\r\nConnection: Upgrade\r\n");
        assert_eq!(names_it, status.contains("426"), "{head}");
        let refused = bench.value(Counter::Refused(RefusalReason::UpstreamMalformed));
        assert_eq!(refused, u64::from(status.contains("502")));
        assert_eq!(bench.value(Plain::Tunnels), 0);
        client.close();
        bench.run_out();
        bench.check_freed(answer.as_str());
    }
}

/// A bench with a `tcp` listener, changed by `change`.
fn tcp_bench(endpoints: u8, change: impl FnOnce(&mut Listener, &mut Upstream)) -> Bench {
    let addresses: Vec<_> = (1..=endpoints).map(origin_address).collect();
    let mut config = testing::config(&addresses);
    let mut listener = Listener { protocol: Protocol::Tcp { upstream: 0 }, ..testing::listener() };
    let mut upstream = (*config.upstreams[0]).clone();
    change(&mut listener, &mut upstream);
    (config.listeners, config.upstreams) = (vec![listener.into()], vec![upstream.into()]);
    Bench::new(1, Faults { short: false, ..Faults::mild() }, config)
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let mut bench = tcp_bench(1, |_, _| {});
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    settle(&mut bench, 100);
    let server = bench.sim.accept(origin_address(1)).expect("connected, though the client is silent");
    server.write(b"220 hello\r\n");
    settle(&mut bench, 50);
    assert_eq!(client.read(), b"220 hello\r\n");
    client.write(b"QUIT\r\n");
    client.shutdown_write();
    settle(&mut bench, 50);
    assert_eq!(server.read(), b"QUIT\r\n");
    server.close();
    settle(&mut bench, 50);
    client.close();
    bench.run_out();
    assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelClosed)), 1);
    assert_eq!((bench.value(Plain::ReceivedBytes), bench.value(Plain::SentBytes)), (6, 11));
    assert_eq!((bench.value(Plain::Tunnels), bench.value(Plain::Requests)), (1, 0));
    bench.check_freed("");
}

#[test]
fn a_tunnel_takes_another_endpoint_where_one_refuses_and_gives_up_when_all_do() {
    let mut bench = tcp_bench(2, |_, _| {});
    bench.sim.refuse(origin_address(1));
    bench.sim.origin(origin_address(2));
    for connected in 1..=4 {
        let client = bench.sim.connect(bench.listener);
        client.write(b"hello");
        settle(&mut bench, 50);
        let server = bench.sim.accept(origin_address(2)).expect("connected");
        settle(&mut bench, 50);
        assert_eq!(server.read(), b"hello");
        assert_eq!(bench.value(Plain::Tunnels), connected);
        client.reset();
        settle(&mut bench, 50);
    }
    // After its failure the endpoint is tried last for a while.
    assert_eq!(bench.value(Plain::UpstreamConnectFailures), 1);
    assert_eq!(bench.value(Plain::UpstreamConnectFailures), bench.value(Plain::UpstreamRetries));
    bench.sim.refuse(origin_address(2));
    let client = bench.sim.connect(bench.listener);
    settle(&mut bench, 50);
    assert!(client.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::UpstreamUnavailable)), 1);
    // One that takes no connection at all is given up in time; a drain's end does not wait for it.
    bench.sim.silence(origin_address(1));
    bench.sim.silence(origin_address(2));
    let client = bench.sim.connect(bench.listener);
    settle(&mut bench, 1500);
    assert!(!client.is_reset());
    settle(&mut bench, 1000);
    assert!(client.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::UpstreamUnavailable)), 2);
    bench.run_out();
    bench.check_freed("");
}

fn proxied(listener: &mut Listener) {
    listener.proxy_protocol = true;
    listener.trusted_proxies = vec!["0.0.0.0/0".parse().expect("a network")];
}

#[test]
fn a_proxy_header_is_taken_off_and_passed_on_as_version_2() {
    let mut bench = tcp_bench(1, |listener, upstream| {
        proxied(listener);
        upstream.send_proxy = true;
    });
    bench.sim.origin(origin_address(1));
    let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 1000 443\r\n";
    // However it comes in.
    for cut in [0, 1, 20, line.len() - 1, line.len()] {
        let client = bench.sim.connect(bench.listener);
        client.write(&line[..cut]);
        settle(&mut bench, 50);
        assert!(
            cut == line.len() || bench.sim.accept(origin_address(1)).is_none(),
            "not before the whole header"
        );
        client.write(&line[cut..]);
        client.write(b"hello");
        settle(&mut bench, 50);
        let server = bench.sim.accept(origin_address(1)).expect("connected");
        settle(&mut bench, 50);
        let header = Header::Tcp {
            source: "192.0.2.7:1000".parse().expect("one"),
            destination: "198.51.100.1:443".parse().expect("one"),
        };
        let mut expected = Vec::new();
        proxy_protocol::encode(header, &mut expected);
        expected.extend(b"hello");
        assert_eq!(server.read(), expected);
        client.close();
        server.close();
        settle(&mut bench, 50);
    }
    // A proxy's own connection has the addresses it has.
    let client = bench.sim.connect(bench.listener);
    client.write(b"PROXY UNKNOWN\r\nhello");
    settle(&mut bench, 50);
    let server = bench.sim.accept(origin_address(1)).expect("connected");
    settle(&mut bench, 50);
    let heard = server.read();
    let Ok(Parsed::Header { header: Header::Tcp { source, destination }, consumed }) =
        proxy_protocol::parse(&heard)
    else {
        panic!("{heard:?}")
    };
    assert_eq!((source, destination.port(), &heard[consumed..]), (client.address(), 80, &b"hello"[..]));
    client.close();
    server.close();
    bench.run_out();
    assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelClosed)), 6);
    bench.check_freed("");
}

#[test]
fn the_limit_per_source_counts_who_a_proxy_header_names() {
    let mut bench = tcp_bench(1, |listener, _| proxied(listener));
    let sources = crate::listen::sources::Sources::new(1, 100, &[], false, [3, 4]);
    bench.events.worker().sessions.limit_sources(std::sync::Arc::new(sources));
    bench.sim.origin(origin_address(1));
    let connect = |bench: &mut Bench, source: &str| {
        let client = bench.sim.connect(bench.listener);
        client.write(format!("PROXY TCP4 {source} 198.51.100.1 1 2\r\nhello").as_bytes());
        settle(bench, 100);
        client
    };
    let first = connect(&mut bench, "203.0.113.1");
    let second = connect(&mut bench, "203.0.113.1");
    let other = connect(&mut bench, "203.0.113.2");
    assert!(second.is_reset() && !first.is_reset() && !other.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::ConnectionsPerIp)), 1);
    first.reset();
    settle(&mut bench, 50);
    let again = connect(&mut bench, "203.0.113.1");
    assert!(!again.is_reset());
    again.reset();
    other.reset();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn what_a_trusted_proxy_owes_is_demanded_and_others_are_taken_as_they_are() {
    let mut bench = tcp_bench(1, |listener, _| proxied(listener));
    let told = |bench: &mut Bench, bytes: &[u8], after: u64| {
        let client = bench.sim.connect(bench.listener);
        client.write(bytes);
        settle(bench, after);
        client
    };
    for (count, bytes) in
        [(1, &b"hello"[..]), (2, b"PROXY TCP4 1.2.3.4\r\n"), (3, b"\r\n\r\n\0\r\nQUIT\n\x31")]
    {
        let client = told(&mut bench, bytes, 50);
        assert!(client.is_ended() && !client.is_reset(), "{bytes:?}");
        assert_eq!(bench.value(Counter::Closed(CloseReason::ProxyHeader)), count);
        client.close();
    }
    let client = told(&mut bench, b"PROXY TCP4 ", 50);
    client.shutdown_write();
    settle(&mut bench, 50);
    assert_eq!(bench.value(Counter::Closed(CloseReason::ProxyHeader)), 4, "it ended within");
    let _slow = told(&mut bench, b"PROXY ", 2500);
    assert_eq!(bench.value(Counter::Closed(CloseReason::ProxyHeaderTimeout)), 0);
    settle(&mut bench, 1000);
    assert_eq!(bench.value(Counter::Closed(CloseReason::ProxyHeaderTimeout)), 1);
    let client = told(&mut bench, b"", 50);
    client.close();
    settle(&mut bench, 50);
    assert_eq!(
        bench.value(Counter::Closed(CloseReason::ClientClosed)),
        1,
        "a health check that only connects"
    );
    let _silent = told(&mut bench, b"", 3500);
    assert_eq!(bench.value(Counter::Closed(CloseReason::RequestHeaderTimeout)), 1);
    assert_eq!(bench.value(Plain::Tunnels), 0);
    bench.run_out();
    bench.check_freed("");

    let mut bench = tcp_bench(1, |listener, _| {
        proxied(listener);
        listener.trusted_proxies = vec!["203.0.113.0/24".parse().expect("a network")];
    });
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    client.write(b"PROXY UNKNOWN\r\n");
    settle(&mut bench, 50);
    let server = bench.sim.accept(origin_address(1)).expect("connected");
    settle(&mut bench, 50);
    assert_eq!(server.read(), b"PROXY UNKNOWN\r\n", "bytes like any other");
    client.reset();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn http_behind_a_proxy_header_knows_the_client_and_waits_for_requests_as_ever() {
    let mut config = testing::config(&[origin_address(1)]);
    let mut listener = testing::listener();
    proxied(&mut listener);
    // Which its client is not: that one's word about others is not believed.
    listener.trusted_proxies = vec!["192.0.2.0/24".parse().expect("a network")];
    config.listeners = vec![listener.into()];
    let mut bench = Bench::new(1, Faults { short: false, ..Faults::mild() }, config);
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    client.write(b"PROXY TCP6 2001:db8::7 2001:db8::1 1000 80\r\n");
    settle(&mut bench, 1000);
    for count in 1..=2 {
        client.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n");
        settle(&mut bench, 100);
        let endpoint = if count == 1 { bench.sim.accept(origin_address(1)) } else { None };
        if let Some(endpoint) = endpoint {
            settle(&mut bench, 50);
            let request = String::from_utf8(endpoint.read()).expect("text");
            assert!(request.contains("\r\nX-Forwarded-For: 2001:db8::7\r\n"), "{request}");
            endpoint.script(|peer| {
                if !peer.read().is_empty() {
                    peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
            });
            endpoint.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
        settle(&mut bench, 100);
        assert_eq!(bench.value(Plain::Responses2xx), count);
        assert!(client.read().starts_with(b"HTTP/1.1 200 "));
    }
    client.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn an_endpoint_that_is_told_of_its_client_gets_a_connection_for_each_request() {
    let mut config = testing::config(&[origin_address(1)]);
    let upstream = Upstream { send_proxy: true, ..(*config.upstreams[0]).clone() };
    config.upstreams = vec![upstream.into()];
    let mut bench = Bench::new(1, Faults { short: false, ..Faults::mild() }, config);
    bench.sim.origin(origin_address(1));
    let client = bench.sim.connect(bench.listener);
    for count in 1..=3 {
        client.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        settle(&mut bench, 50);
        let endpoint = bench.sim.accept(origin_address(1)).expect("a new connection");
        settle(&mut bench, 50);
        let heard = endpoint.read();
        let Ok(Parsed::Header { header: Header::Tcp { source, .. }, consumed }) =
            proxy_protocol::parse(&heard)
        else {
            panic!("{heard:?}")
        };
        assert_eq!(source, client.address());
        assert!(heard[consumed..].starts_with(b"GET / HTTP/1.1\r\n"));
        endpoint.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        settle(&mut bench, 50);
        assert_eq!(bench.value(Plain::Responses2xx), count);
        assert!(endpoint.is_reset(), "not kept");
        endpoint.close();
    }
    client.close();
    bench.run_out();
    assert_eq!((bench.value(Plain::UpstreamReuses), bench.value(Plain::UpstreamConnects)), (0, 3));
    bench.check_freed("");
}

#[test]
fn a_tunnel_that_waits_is_small() {
    let tunnel =
        |parts: (super::Seat, Box<dyn super::TunnelEnd>)| super::Tunnel::new(parts.0, parts.1, None).serve();
    let size = size_of_output(tunnel);
    assert!(size <= 520, "{size} bytes");
}

fn size_of_output<A, F>(_: impl Fn(A) -> F) -> usize {
    size_of::<F>()
}
