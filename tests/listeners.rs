//! Listeners through the built binary: IPv4 and IPv6 addresses, TCP, and the PROXY protocol with haproxy and
//! nginx at the other end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use tests::client::Client;
use tests::message;
use tests::origin::Origin;
use tests::peer::Peer;
use tests::ports::Port;
use tests::sluice::Setup;
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(10);

fn forwarded_for(client: &mut Client) -> String {
    let shown = client.get("/").json();
    let fields: Vec<(String, String)> = serde_json::from_value(shown["fields"].clone()).unwrap();
    message::field(&fields, "x-forwarded-for").unwrap().to_owned()
}

/// One more listener at this address.
fn listener(name: &str, address: &str, lines: &str) -> String {
    format!("\n[[listener]]\nname = \"{name}\"\naddress = {address}\n{lines}\n")
}

#[test]
fn a_wildcard_of_ipv6_takes_both_families_and_shows_ipv4_as_ipv4() {
    let origin = Origin::echo();
    let (both, split, list) =
        (Port::lease().number(), Port::lease().number(), [Port::lease().number(), Port::lease().number()]);
    let tables = [
        listener("both", &format!("\"[::]:{both}\""), ""),
        listener("six", &format!("\"[::]:{split}\""), ""),
        listener("four", &format!("\"127.0.0.1:{split}\""), ""),
        listener("list", &format!("[\"127.0.0.1:{}\", \"[::1]:{}\"]", list[0], list[1]), ""),
    ];
    let sluice = Setup::to(origin.address()).append(&tables.concat()).start();
    let client = |address: &str, port: u16| Client::connect(format!("{address}:{port}").parse().unwrap());
    for port in [both, split] {
        assert_eq!(forwarded_for(&mut client("127.0.0.1", port)), "127.0.0.1");
        assert_eq!(forwarded_for(&mut client("[::1]", port)), "::1");
    }
    assert!(
        TcpStream::connect(("127.0.0.2", both)).is_ok() && TcpStream::connect(("127.0.0.2", split)).is_err()
    );
    assert_eq!(forwarded_for(&mut client("127.0.0.1", list[0])), "127.0.0.1");
    assert_eq!(forwarded_for(&mut client("[::1]", list[1])), "::1");
    drop(sluice);
}

#[test]
fn tcp_is_relayed_both_ways_with_each_end_and_servers_may_speak_first() {
    let origin = Origin::raw(|connection| {
        connection.write_all(b"220 ready\r\n")?;
        let mut heard = Vec::new();
        connection.read_to_end(&mut heard)?;
        connection.write_all(format!("{} bytes", heard.len()).as_bytes())
    });
    let port = Port::lease();
    let table =
        listener("tcp", &format!("\"{}\"", port.loopback()), "protocol = \"tcp\"\nupstream = \"app\"");
    let sluice = Setup::to(origin.address()).append(&table).start();
    let mut stream = TcpStream::connect(port.loopback()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut greeting = [0; 11];
    let begun = std::time::Instant::now();
    stream.read_exact(&mut greeting).unwrap();
    assert!(
        &greeting == b"220 ready\r\n" && begun.elapsed() < Duration::from_millis(900),
        "{:?}",
        begun.elapsed()
    );
    stream.write_all(&vec![7; 8 << 20]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, format!("{} bytes", 8 << 20));
    let closed = || sluice.metrics().labelled("sluice_connections_closed_total", "reason", "tunnel_closed");
    eventually(LIMIT, "it ended in order", || (closed() == 1.0).then_some(()));
}

#[test]
fn haproxy_introduces_its_clients_in_both_versions() {
    if skip::without_tool("haproxy") {
        return;
    }
    let origin = Origin::echo();
    let (ours, first, second) = (Port::lease(), Port::lease(), Port::lease());
    let lines = "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.1\"]";
    let sluice = Setup::to(origin.address())
        .append(&listener("proxied", &format!("\"{}\"", ours.loopback()), lines))
        .start();
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         listen one\n bind {}\n server s {} send-proxy\n\
         listen two\n bind {}\n server s {} send-proxy-v2 check-send-proxy check inter 200ms\n",
        first.loopback(),
        ours.loopback(),
        second.loopback(),
        ours.loopback()
    );
    let _haproxy =
        Peer::start("haproxy", &[("haproxy.cfg", &text)], &["-db", "-f", "haproxy.cfg"], first.loopback());
    for port in [&first, &second] {
        let stream = tests::client::Dial { source: Some("127.0.0.9".parse().unwrap()), receive_buffer: None }
            .connect(port.loopback(), LIMIT)
            .unwrap();
        let mut client = Client::over(stream).unwrap();
        for _ in 0..3 {
            assert_eq!(forwarded_for(&mut client), "127.0.0.9");
        }
    }
    // A trusted client that sends HTTP without a header is cut off.
    let mut client = Client::connect(ours.loopback());
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(client.until_closed().is_empty());
    assert_eq!(sluice.metrics().labelled("sluice_connections_closed_total", "reason", "proxy_header"), 1.0);
    // The bytes of an untrusted client are read as HTTP, without a PROXY header.
    let stream = tests::client::Dial { source: Some("127.0.0.9".parse().unwrap()), receive_buffer: None }
        .connect(ours.loopback(), LIMIT)
        .unwrap();
    let mut client = Client::over(stream).unwrap();
    assert_eq!(forwarded_for(&mut client), "127.0.0.9");
    client.send("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n\r\n");
    assert_eq!(client.response("GET").status, 400);
}

#[test]
fn nginx_introduces_its_clients() {
    const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if skip::without_tool("nginx") || skip::without_file(MODULE) {
        return;
    }
    let origin = Origin::echo();
    let (ours, front) = (Port::lease(), Port::lease());
    let lines = "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.1\"]";
    let sluice = Setup::to(origin.address())
        .append(&listener("proxied", &format!("\"{}\"", ours.loopback()), lines))
        .start();
    let text = format!(
        "load_module {MODULE};\ndaemon off; master_process off; pid nginx.pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         stream {{ server {{ listen {}; proxy_pass {}; proxy_protocol on; }} }}\n",
        front.loopback(),
        ours.loopback()
    );
    let _nginx = Peer::start(
        "nginx",
        &[("nginx.conf", &text)],
        &["-p", ".", "-c", "nginx.conf", "-e", "stderr"],
        front.loopback(),
    );
    let dial = tests::client::Dial { source: Some("127.0.0.9".parse().unwrap()), receive_buffer: None };
    let mut client = Client::over(dial.connect(front.loopback(), LIMIT).unwrap()).unwrap();
    for _ in 0..3 {
        assert_eq!(forwarded_for(&mut client), "127.0.0.9");
    }
    drop(sluice);
}

#[test]
fn nginx_reads_whom_we_introduce() {
    if skip::without_tool("nginx") {
        return;
    }
    let (behind, front) = (Port::lease(), Port::lease());
    let text = format!(
        "server {{ listen {} proxy_protocol; location / {{ return 200 \"$proxy_protocol_addr \
         $proxy_protocol_port $proxy_protocol_server_port\"; }} }}",
        behind.loopback()
    );
    let _nginx = Peer::nginx(&text, &[], behind.loopback());
    let table =
        listener("tcp", &format!("\"{}\"", front.loopback()), "protocol = \"tcp\"\nupstream = \"app\"");
    let sluice = Setup::to(behind.loopback()).with("upstream", "send_proxy = true").append(&table).start();
    for address in [sluice.address(), front.loopback()] {
        let mut client = Client::connect(address);
        let port = client.socket().local_addr().unwrap().port();
        for _ in 0..3 {
            assert_eq!(client.get("/").text(), format!("127.0.0.1 {port} {}", address.port()));
        }
    }
    let metrics = sluice.metrics();
    assert_eq!(
        (metrics.sum("sluice_upstream_reuses_total"), metrics.sum("sluice_upstream_connects_total")),
        (0.0, 4.0)
    );
}

#[test]
fn connections_beyond_the_bound_are_shed_with_a_reason() {
    let origin = Origin::echo();
    let sluice = Setup::to(origin.address()).with("process", "max_connections = 2").start();
    let mut held: Vec<Client> = (0..2).map(|_| sluice.client()).collect();
    held.iter_mut().for_each(|client| assert_eq!(client.get("/").status, 200));
    let mut third = sluice.client();
    let _ = third.try_send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(third.until_closed().is_empty());
    assert_eq!(sluice.metrics().labelled("sluice_connections_shed_total", "reason", "max_connections"), 1.0);
    drop(held);
    let open = || sluice.metrics().sum("sluice_connections_open");
    eventually(LIMIT, "they are gone", || (open() == 0.0).then_some(()));
    assert_eq!(sluice.get("/").status, 200);
}
