//! TLS that is passed through, over the simulated ring: who gets a hello, however it comes in, and what
//! becomes of everything else.

use std::time::Duration;

use super::{NOT_TLS, Protocol};
use crate::config::model;
use crate::counters::{Counter, Plain};
use crate::error::CloseReason;
use crate::io::simulated::{Faults, Peer};
use crate::listen::Listener;
use crate::proxy_protocol::{self, Header, Parsed};
use crate::route::model::{Action, Route};
use crate::route::{Host, RouteTable};
use crate::session::table;
use crate::tls::hello::tests::{hello, in_records, message, without_name};
use crate::upstream::model::Upstream;
use crate::worker::testing::{self, Bench, origin_address};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Endpoint 1 for `a.example`, 2 for all names under `b.example`, 3 for the rest if there is a rest.
fn config(has_rest: bool) -> model::Config {
    let mut config = testing::config(&[]);
    config.upstreams = (1..=3)
        .map(|index| {
            let upstream = (*testing::config(&[origin_address(index)]).upstreams[0]).clone();
            Upstream { name: format!("u{index}").into(), ..upstream }.into()
        })
        .collect();
    let upstream = has_rest.then_some(2);
    let protocol = Protocol::TlsPassthrough { upstream, handshake_timeout: HANDSHAKE_TIMEOUT };
    config.listeners = vec![Listener { protocol, ..testing::listener() }.into()];
    let route = |host, upstream| {
        let hosts = vec![Host::parse(host).expect("a host")];
        let listeners = vec!["main".to_owned()];
        Route { hosts, listeners, ..Route::new(Action::Upstream(upstream)) }.into()
    };
    // Without the listener's name it is for HTTP.
    let of_http = Route::new(Action::Upstream(2)).into();
    config.routes = RouteTable::new(vec![route("a.example", 0), route("*.b.example", 1), of_http]);
    config
}

fn bench(config: model::Config) -> Bench {
    let bench = Bench::new(1, Faults { short: false, ..Faults::mild() }, config);
    (1..=3).for_each(|index| bench.sim.origin(origin_address(index)));
    bench
}

fn settle(bench: &mut Bench, milliseconds: u64) {
    bench.sim.settle(&mut bench.engine, &mut bench.events, Duration::from_millis(milliseconds));
}

/// Ends a client of which an endpoint has got all.
fn part(bench: &mut Bench, client: &Peer, server: &Peer) {
    server.write(b"sealed");
    settle(bench, 50);
    assert_eq!(client.read(), b"sealed");
    client.close();
    server.close();
    settle(bench, 50);
}

#[test]
fn each_name_reaches_its_upstream_with_every_byte() {
    let mut bench = bench(config(true));
    for (name, index) in
        [("a.example", 1), ("x.b.example", 2), ("y.x.B.example", 2), ("b.example", 3), ("x.a.example", 3)]
    {
        let client = bench.sim.connect(bench.listener);
        let sent = [&hello(name)[..], b"\x17\x03\x03\x00\x02ed"].concat();
        client.write(&sent);
        settle(&mut bench, 50);
        let server = bench.sim.accept(origin_address(index)).expect(name);
        settle(&mut bench, 50);
        assert!(server.read() == sent);
        part(&mut bench, &client, &server);
    }
    let (client, sent) = (bench.sim.connect(bench.listener), without_name());
    client.write(&sent);
    settle(&mut bench, 50);
    let server = bench.sim.accept(origin_address(3)).expect("no name");
    settle(&mut bench, 50);
    assert!(server.read() == sent);
    part(&mut bench, &client, &server);
    bench.run_out();
    assert_eq!((bench.value(Plain::Tunnels), bench.value(Plain::Requests)), (6, 0));
    assert_eq!(bench.value(Counter::Closed(CloseReason::TunnelClosed)), 6);
    bench.check_freed("");
}

#[test]
fn a_hello_in_pieces_is_passed_on_as_it_came() {
    let mut config = config(true);
    let protocol = Protocol::TlsPassthrough { upstream: None, handshake_timeout: Duration::from_secs(60) };
    config.listeners = vec![Listener { protocol, ..(*config.listeners[0]).clone() }.into()];
    let mut bench = bench(config);
    let message = message(&hello("x.b.example"));
    for (lengths, piece) in [(&[1 << 14][..], 100), (&[1 << 14], 1), (&[1], 1), (&[1], 4000), (&[300, 7], 64)]
    {
        let sent = in_records(&message, lengths);
        let client = bench.sim.connect(bench.listener);
        for piece in sent.chunks(piece) {
            client.write(piece);
            assert!(bench.sim.accept(origin_address(2)).is_none(), "not before the whole hello");
            settle(&mut bench, 1);
        }
        settle(&mut bench, 50);
        let server = bench.sim.accept(origin_address(2)).expect("connected");
        settle(&mut bench, 50);
        assert!(server.read() == sent);
        part(&mut bench, &client, &server);
    }
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn nobody_s_name_is_told_so() {
    let mut bench = bench(config(false));
    for (hello, reason) in
        [(hello("c.example"), CloseReason::NoRoute), (without_name(), CloseReason::NoServerName)]
    {
        let client = bench.sim.connect(bench.listener);
        client.write(&hello);
        settle(&mut bench, 50);
        assert_eq!(client.read(), [21, 3, 3, 0, 2, 2, 112]);
        assert!(client.is_ended());
        assert_eq!(bench.value(Counter::Closed(reason)), 1, "{reason:?}");
        client.close();
    }
    bench.run_out();
    assert_eq!((bench.value(Plain::Tunnels), bench.value(Plain::UpstreamConnects)), (0, 0));
    bench.check_freed("");
}

/// A hello whose name was changed on its way.
fn odd_hello(name: &str) -> Vec<u8> {
    let stand_in = "q".repeat(name.len());
    let mut hello = hello(&stand_in);
    let entry = [&[0, 0, name.len() as u8][..], stand_in.as_bytes()].concat();
    let at = hello.windows(entry.len()).position(|part| part == entry).expect("the name") + 3;
    hello[at..at + name.len()].copy_from_slice(name.as_bytes());
    hello
}

#[test]
fn a_name_that_nobody_can_have_is_as_good_as_none() {
    for name in ["x:443", "[::1]", "127.0.0.1", "::1", "a b", "*.b.example", "a..b"] {
        let mut bench = bench(config(false));
        let client = bench.sim.connect(bench.listener);
        client.write(&odd_hello(name));
        settle(&mut bench, 50);
        assert_eq!(client.read(), [21, 3, 3, 0, 2, 2, 112], "{name}");
        assert_eq!(bench.value(Counter::Closed(CloseReason::NoServerName)), 1, "{name}");
        client.close();
        bench.run_out();
    }
    // The rest, if there is a rest, or the route of a name that only rustls refuses.
    for (name, origin) in
        [("x:443", 3), ("[::1]", 3), ("foo-.b.example", 2), ("-foo.b.example", 2), ("foo.123", 3)]
    {
        let mut bench = bench(config(true));
        let (client, sent) = (bench.sim.connect(bench.listener), odd_hello(name));
        client.write(&sent);
        settle(&mut bench, 50);
        let server = bench.sim.accept(origin_address(origin)).expect(name);
        settle(&mut bench, 50);
        assert!(server.read() == sent, "{name}");
        part(&mut bench, &client, &server);
    }
}

#[test]
fn what_is_no_hello_is_answered_as_far_as_it_can_be_understood() {
    let head = String::from_utf8_lossy(NOT_TLS);
    let (head, body) = head.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    let mut bench = bench(config(true));
    let alert = |description| vec![21, 3, 3, 0, 2, 2, description];
    let mut malformed = hello("a.example");
    malformed[43] = 33;
    for (bytes, answer, reason, count) in [
        (&b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"[..], NOT_TLS.to_vec(), CloseReason::NotTls, 1),
        (b"\x80\x2e\x01\x00\x02", vec![], CloseReason::NotTls, 2),
        (b"\0\0\0", vec![], CloseReason::NotTls, 3),
        (b"\x16\x03\x01\x00\x04\x01\x00\x40\x00", alert(50), CloseReason::HelloTooLarge, 1),
        (b"\x16\x03\x01\x00\x00", alert(22), CloseReason::HelloMalformed, 1),
        (b"\x16\xfe\xfd\x00\x00", alert(70), CloseReason::HelloMalformed, 2),
        (&malformed, alert(50), CloseReason::HelloMalformed, 3),
    ] {
        let client = bench.sim.connect(bench.listener);
        client.write(bytes);
        settle(&mut bench, 50);
        assert_eq!(client.read(), answer, "{bytes:?}");
        assert!(client.is_ended(), "{bytes:?}");
        assert_eq!(bench.value(Counter::Closed(reason)), count, "{bytes:?}");
        client.close();
    }
    bench.run_out();
    assert_eq!(bench.value(Plain::UpstreamConnects), 0);
    bench.check_freed("");
}

#[test]
fn a_hello_is_due_in_its_time() {
    let mut bench = bench(config(true));
    let sent = hello("a.example");
    let (silent, slow, steady) = (
        bench.sim.connect(bench.listener),
        bench.sim.connect(bench.listener),
        bench.sim.connect(bench.listener),
    );
    settle(&mut bench, 100);
    slow.write(&sent[..sent.len() - 1]);
    // A byte every now and then does not help.
    for byte in sent.iter().take(18) {
        steady.write(&[*byte]);
        settle(&mut bench, 100);
    }
    assert!(!silent.is_ended() && !slow.is_ended() && !steady.is_ended());
    settle(&mut bench, 300);
    for client in [&silent, &slow, &steady] {
        assert!(client.is_ended() && client.read().is_empty());
        client.close();
    }
    assert_eq!(bench.value(Counter::Closed(CloseReason::HelloTimeout)), 3);
    // Those who leave before are not blamed for it.
    for (bytes, reason) in
        [(&sent[..0], CloseReason::ClientClosed), (&sent[..100], CloseReason::ClientAborted)]
    {
        let client = bench.sim.connect(bench.listener);
        settle(&mut bench, 10);
        client.write(bytes);
        settle(&mut bench, 10);
        client.close();
        settle(&mut bench, 50);
        assert_eq!(bench.value(Counter::Closed(reason)), 1, "{reason:?}");
    }
    bench.run_out();
    assert_eq!(bench.value(Plain::UpstreamConnects), 0);
    bench.check_freed("");
}

#[test]
fn a_stop_ends_a_hello_that_is_under_way() {
    let mut bench = bench(config(true));
    let client = bench.sim.connect(bench.listener);
    client.write(&hello("a.example")[..100]);
    settle(&mut bench, 50);
    table::abort_all(bench.events.worker());
    settle(&mut bench, 50);
    assert!(client.is_reset());
    assert_eq!(bench.value(Counter::Closed(CloseReason::Stopped)), 1);
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn whom_a_proxy_introduces_is_passed_on_with_the_hello() {
    let mut config = config(true);
    let listener = Listener {
        proxy_protocol: true,
        trusted_proxies: vec!["0.0.0.0/0".parse().expect("a network")],
        ..(*config.listeners[0]).clone()
    };
    config.listeners = vec![listener.into()];
    let upstreams =
        config.upstreams.iter().map(|upstream| Upstream { send_proxy: true, ..(**upstream).clone() }.into());
    config.upstreams = upstreams.collect();
    let mut bench = bench(config);
    let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 1000 443\r\n";
    let sent = [&line[..], &hello("a.example")].concat();
    for cut in [1, line.len(), line.len() + 1, sent.len()] {
        let client = bench.sim.connect(bench.listener);
        client.write(&sent[..cut]);
        settle(&mut bench, 50);
        client.write(&sent[cut..]);
        settle(&mut bench, 50);
        let server = bench.sim.accept(origin_address(1)).expect("connected");
        settle(&mut bench, 50);
        let heard = server.read();
        let Ok(Parsed::Header { header: Header::Tcp { source, .. }, consumed }) =
            proxy_protocol::parse(&heard)
        else {
            panic!("{heard:?}")
        };
        assert_eq!(
            (source.to_string().as_str(), &heard[consumed..]),
            ("192.0.2.7:1000", &sent[line.len()..])
        );
        part(&mut bench, &client, &server);
    }
    // After the header the same time goes on.
    let client = bench.sim.connect(bench.listener);
    client.write(line);
    settle(&mut bench, 1800);
    assert!(!client.is_ended());
    settle(&mut bench, 400);
    assert!(client.is_ended());
    assert_eq!(bench.value(Counter::Closed(CloseReason::HelloTimeout)), 1);
    client.close();
    bench.run_out();
    bench.check_freed("");
}

#[test]
fn a_wait_for_a_hello_is_small() {
    let size = size_of_output(|(seat, first, due)| super::serve(seat, first, due));
    assert!(size <= 1300, "{size} bytes");
}

fn size_of_output<A, F>(_: impl Fn(A) -> F) -> usize {
    size_of::<F>()
}
