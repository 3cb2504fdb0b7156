//! TLS passed through by server name, with the released binary: curl and openssl before it, nginx with TLS
//! behind it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proxy::tls::hello::Reader;
use tests::peer::Peer;
use tests::ports::Port;
use tests::process::{self, Output};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(10);

/// One nginx with a server for each name. Each server has a certificate and a port of its own.
struct Servers {
    nginx: Peer,
    ports: Vec<Port>,
}

impl Servers {
    /// Each server answers with its index. If `is_told`, it expects a PROXY header and adds the address from
    /// it.
    fn start(names: &[&str], is_told: bool) -> Self {
        let ports: Vec<Port> = names.iter().map(|_| Port::lease()).collect();
        let (mut files, mut text) = (Vec::new(), String::new());
        for (index, (name, port)) in names.iter().zip(&ports).enumerate() {
            let mut parameters = rcgen::CertificateParams::new([(*name).to_owned()]).unwrap();
            // openssl looks up the issuer by this name.
            parameters.distinguished_name.push(rcgen::DnType::CommonName, *name);
            let key = rcgen::KeyPair::generate().unwrap();
            files.push((format!("{index}.pem"), parameters.self_signed(&key).unwrap().pem()));
            files.push((format!("{index}.key"), key.serialize_pem()));
            let (listen, shown) =
                if is_told { ("ssl proxy_protocol", " $proxy_protocol_addr") } else { ("ssl", "") };
            text += &format!(
                "server {{ listen {} {listen}; ssl_certificate {index}.pem; ssl_certificate_key {index}.key; \
                 ssl_protocols TLSv1.2 TLSv1.3;\n\
                 location / {{ return 200 \"{index}{shown}\"; }} }}\n",
                port.loopback()
            );
        }
        files.push(("all.pem".to_owned(), files.iter().step_by(2).map(|(_, pem)| pem.as_str()).collect()));
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let nginx = Peer::nginx(&text, &files, ports[0].loopback());
        Self { nginx, ports }
    }

    /// A file with the certificates of all servers, to be trusted.
    fn roots(&self) -> PathBuf {
        self.nginx.folder().join("all.pem")
    }

    /// An upstream of this name whose endpoint is one of the servers.
    fn upstream(&self, name: &str, index: usize, lines: &str) -> String {
        format!(
            "\n[[upstream]]\nname = \"{name}\"\nendpoints = [\"{}\"]\n{lines}\n",
            self.ports[index].loopback()
        )
    }

    /// Fetches `https://name/` through `port`; returns the output of curl.
    fn curl(&self, name: &str, port: &Port, options: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "10", "--cacert"]).arg(self.roots()).args(options);
        command.args(["--resolve", &format!("{name}:{}:127.0.0.1", port.number())]);
        process::run(command.arg(format!("https://{name}:{}/", port.number())), LIMIT * 2)
    }

    /// Shakes hands; returns the output of openssl.
    fn openssl(&self, port: &Port, options: &[&str]) -> Output {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &port.loopback().to_string(), "-CAfile"]).arg(self.roots());
        process::run(command.args(options), LIMIT * 2)
    }
}

fn without_tools() -> bool {
    ["nginx", "curl", "openssl"].into_iter().any(skip::without_tool)
}

/// A further listener, with routes for names.
fn listener(port: &Port, lines: &str, routes: &[(&str, &str)]) -> String {
    let routes = routes.iter().map(|(host, upstream)| {
        format!("\n[[route]]\nlistener = \"tls\"\nhost = \"{host}\"\nupstream = \"{upstream}\"\n")
    });
    let routes: String = routes.collect();
    format!(
        "\n[[listener]]\nname = \"tls\"\naddress = \"{}\"\nprotocol = \"tls-passthrough\"\n{lines}\n{routes}",
        port.loopback()
    )
}

fn closed(sluice: &Sluice, reason: &str, count: f64) {
    let value = || sluice.metrics().labelled("sluice_connections_closed_total", "reason", reason);
    eventually(LIMIT, reason, || (value() == count).then_some(()));
}

/// The first bytes that a program sends to a server, up to the end of its ClientHello.
fn captured(command: &mut Command, server: &TcpListener) -> Vec<u8> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let (mut stream, _) = server.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut reader, mut bytes, mut piece) = (Reader::default(), Vec::new(), [0; 700]);
    loop {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the end before a hello");
        bytes.extend_from_slice(&piece[..count]);
        if reader.read(&piece[..count]).unwrap().is_some() {
            break;
        }
    }
    let _ = child.kill();
    let _ = process::wait(&mut child, LIMIT);
    bytes
}

fn openssl_hello(name: &str) -> Vec<u8> {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    captured(Command::new("openssl").args(["s_client", "-connect", &address, "-servername", name]), &server)
}

/// Sends these bytes and returns the whole answer, up to the end of the connection.
fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    heard
}

#[test]
fn curl_and_openssl_reach_the_server_of_their_name() {
    if without_tools() {
        return;
    }
    let servers = Servers::start(&["a.example", "x.b.example", "rest.example"], false);
    let port = Port::lease();
    let routes = [("a.example", "one"), ("*.b.example", "two")];
    let upstreams =
        [servers.upstream("one", 0, ""), servers.upstream("two", 1, ""), servers.upstream("rest", 2, "")]
            .concat();
    let table = listener(&port, "upstream = \"rest\"", &routes);
    let setup = Setup::to(servers.ports[0].loopback()).with("log", "access = \"access.log\"");
    let sluice = setup.append(&table).append(&upstreams).start();
    for (name, index) in [("a.example", "0"), ("A.Example", "0"), ("x.b.example", "1"), ("rest.example", "2")]
    {
        assert_eq!(servers.curl(name, &port, &[]).success().text(), index, "{name}");
    }
    assert_eq!(servers.curl("x.b.example", &port, &["--tls-max", "1.2"]).success().text(), "1");
    for (options, name) in [
        (&["-servername", "a.example", "-tls1_3"][..], "a.example"),
        (&["-servername", "x.b.example", "-tls1_2"], "x.b.example"),
        (&["-servername", "b.example"], "rest.example"),
        (&["-noservername"], "rest.example"),
    ] {
        let options = [options, &["-verify_return_error", "-verify_hostname", name]].concat();
        let shown = servers.openssl(&port, &options).success().text();
        assert!(
            shown.contains("Verification: OK") && shown.contains(&format!("Verified peername: {name}")),
            "{shown}"
        );
    }
    closed(&sluice, "tunnel_closed", 9.0);
    let metrics = sluice.metrics();
    assert_eq!((metrics.sum("sluice_tunnels_total"), metrics.sum("sluice_requests_total")), (9.0, 0.0));
    let path = sluice.run_dir().join("access.log");
    let records: Vec<serde_json::Value> = eventually(LIMIT, "the records", || {
        let text = std::fs::read_to_string(&path).ok()?;
        let records: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (records.len() == 9).then_some(records)
    });
    for (record, host, route, upstream) in [
        (&records[1], "a.example".into(), "a.example".into(), "one"),
        (&records[2], "x.b.example".into(), "*.b.example".into(), "two"),
        (&records[3], "rest.example".into(), serde_json::Value::Null, "rest"),
        (&records[8], serde_json::Value::Null, serde_json::Value::Null, "rest"),
    ] {
        assert_eq!(
            (&record["host"], &record["route"], &record["upstream"]),
            (&host, &route, &upstream.into()),
            "{record}"
        );
        assert_eq!((&record["protocol"], &record["listener"]), (&"tls".into(), &"tls".into()), "{record}");
        assert_eq!(
            (&record["status"], &record["closed"]),
            (&serde_json::Value::Null, &"tunnel_closed".into()),
            "{record}"
        );
        assert!(record["bytes_sent"].as_u64() > Some(500) && record["micros"]["head"].is_u64(), "{record}");
    }
}

#[test]
fn clients_are_introduced_on_both_sides() {
    if without_tools() || skip::without_tool("haproxy") {
        return;
    }
    let servers = Servers::start(&["a.example"], true);
    let (ours, front) = (Port::lease(), Port::lease());
    let lines = "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.1\"]";
    let table = listener(&ours, lines, &[("a.example", "one")]);
    let upstream = servers.upstream("one", 0, "send_proxy = true");
    let sluice = Setup::to(servers.ports[0].loopback()).append(&table).append(&upstream).start();
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
         listen one\n bind {}\n server s {} send-proxy-v2\n",
        front.loopback(),
        ours.loopback()
    );
    let _haproxy =
        Peer::start("haproxy", &[("haproxy.cfg", &text)], &["-db", "-f", "haproxy.cfg"], front.loopback());
    assert_eq!(
        servers.curl("a.example", &front, &["--interface", "127.0.0.9"]).success().text(),
        "0 127.0.0.9"
    );
    // For a client that is not a proxy, the server gets the client's own address.
    assert_eq!(
        servers.curl("a.example", &ours, &["--interface", "127.0.0.8"]).success().text(),
        "0 127.0.0.8"
    );
    assert_eq!(sluice.metrics().sum("sluice_tunnels_total"), 2.0);
}

#[test]
fn another_endpoint_is_tried_and_none_at_all_ends_the_connection() {
    if without_tools() {
        return;
    }
    let servers = Servers::start(&["a.example"], false);
    let (port, nowhere) = (Port::lease(), Port::lease());
    let table = listener(&port, "", &[("a.example", "some"), ("b.example", "none")]);
    let upstreams = format!(
        "\n[[upstream]]\nname = \"some\"\nendpoints = [\"{0}\", \"{1}\"]\n[[upstream]]\nname = \"none\"\n\
         endpoints = [\"{0}\"]\n",
        nowhere.loopback(),
        servers.ports[0].loopback()
    );
    let sluice = Setup::to(servers.ports[0].loopback()).append(&table).append(&upstreams).start();
    for _ in 0..4 {
        assert_eq!(servers.curl("a.example", &port, &[]).success().text(), "0");
    }
    assert!(sluice.metrics().sum("sluice_upstream_retries_total") >= 1.0);
    assert!(!servers.curl("b.example", &port, &[]).status.success());
    closed(&sluice, "upstream_unavailable", 1.0);
}

#[test]
fn what_leads_nowhere_and_what_is_no_tls_is_told_so() {
    if without_tools() {
        return;
    }
    let servers = Servers::start(&["a.example"], false);
    let port = Port::lease();
    let table = listener(&port, "", &[("a.example", "one")]);
    let sluice =
        Setup::to(servers.ports[0].loopback()).append(&table).append(&servers.upstream("one", 0, "")).start();
    let refused = servers.curl("c.example", &port, &[]);
    assert!(!refused.status.success() && refused.errors().contains("unrecognized name"), "{}", refused.all());
    closed(&sluice, "no_route", 1.0);
    let refused = servers.openssl(&port, &["-noservername"]);
    assert!(!refused.status.success() && refused.errors().contains("unrecognized name"), "{}", refused.all());
    closed(&sluice, "no_server_name", 1.0);
    let plain = process::run(
        Command::new("curl").args(["-sS", "-i", &format!("http://{}/", port.loopback())]),
        LIMIT,
    )
    .success();
    assert!(
        plain.text().starts_with("HTTP/1.1 400 ") && plain.text().ends_with("this port takes TLS\n"),
        "{}",
        plain.text()
    );
    closed(&sluice, "not_tls", 1.0);
    // A hello of 16 KiB or more. Its header alone shows the length.
    assert_eq!(answer(port.loopback(), b"\x16\x03\x01\x40\x00\x01\x00\x40\x00"), [21, 3, 3, 0, 2, 2, 50]);
    closed(&sluice, "hello_too_large", 1.0);
    let mut twice = openssl_hello("a.example");
    let place = twice.windows(4).position(|window| window == [0, 35, 0, 0]).expect("session_ticket");
    twice[place + 1] = 23;
    assert_eq!(
        answer(port.loopback(), &twice),
        [21, 3, 3, 0, 2, 2, 50],
        "extended_master_secret is there twice"
    );
    closed(&sluice, "hello_malformed", 1.0);
    assert_eq!(servers.curl("a.example", &port, &[]).success().text(), "0");
}

#[test]
fn a_slow_hello_is_cut_and_one_in_many_records_is_not() {
    if without_tools() {
        return;
    }
    let servers = Servers::start(&["a.example"], false);
    let port = Port::lease();
    let table =
        listener(&port, "tls.handshake_timeout = \"500ms\"\ndefer_accept = false", &[("a.example", "one")]);
    let sluice =
        Setup::to(servers.ports[0].loopback()).append(&table).append(&servers.upstream("one", 0, "")).start();
    let hello = openssl_hello("a.example");
    for sent in [&hello[..0], &hello[..1], &hello[..hello.len() - 1]] {
        let begun = Instant::now();
        assert!(answer(port.loopback(), sent).is_empty());
        assert!(
            (Duration::from_millis(450)..Duration::from_secs(3)).contains(&begun.elapsed()),
            "{:?}",
            begun.elapsed()
        );
    }
    closed(&sluice, "hello_timeout", 3.0);

    // Each byte has a record of its own, and each record comes in two segments. The server gets these
    // records.
    let mut stream = TcpStream::connect(port.loopback()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    for byte in &hello[5..] {
        stream.write_all(&[22, 3, 1]).unwrap();
        stream.write_all(&[0, 1, *byte]).unwrap();
    }
    let mut record = [0; 6];
    stream.read_exact(&mut record).unwrap();
    assert_eq!((record[0], record[5]), (22, 2), "a ServerHello");
    stream.shutdown(Shutdown::Both).unwrap();
}

#[test]
fn what_programs_say_first_is_read() {
    if without_tools() {
        return;
    }
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    for (index, options) in
        [&["-tls1_3"][..], &["-tls1_2"], &["-tls1_2", "-no_ticket"], &["-alpn", "h2,http/1.1"]]
            .iter()
            .enumerate()
    {
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-servername", "A.example", "-connect", &address.to_string()])
            .args(*options);
        let hello = Reader::default().read(&captured(&mut command, &server)).unwrap().unwrap();
        assert_eq!(hello.server_name.as_deref(), Some("a.example"));
        let alpn: Vec<_> = hello.alpn().collect();
        assert_eq!(alpn, if index == 3 { vec![&b"h2"[..], b"http/1.1"] } else { vec![] });
    }
    let mut command = Command::new("curl");
    command.args(["-sk", "--resolve", &format!("a.example:{}:127.0.0.1", address.port())]);
    let bytes = captured(command.arg(format!("https://a.example:{}/", address.port())), &server);
    assert_eq!(Reader::default().read(&bytes).unwrap().unwrap().server_name.as_deref(), Some("a.example"));
}
