//! https through the built binary: common TLS clients in both versions, with each kind of certificate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use tests::client::{Client, PATIENCE};
use tests::curl::Curl;
use tests::nginx::Nginx;
use tests::origin::{Body, Connection, Origin, Response};
use tests::pattern::{self, Pattern};
use tests::sluice::{Setup, Sluice};
use tests::tls::{self, Authority, Forger, Kind, Leaf, VERSIONS, https};
use tests::{eventually, skip};

const NAME: &str = "edge.example";

/// A request to Sluice that ends the connection.
const LAST: &str = "GET / HTTP/1.1\r\nHost: edge.example\r\nConnection: close\r\n\r\n";

fn without_tools() -> bool {
    ["curl", "openssl", "gnutls-cli"].into_iter().any(skip::without_tool)
}

/// A Sluice with a certificate on P-256 before this origin.
fn edge(origin: &Origin, lines: &str) -> (Sluice, Authority) {
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &[NAME]);
    let sluice = https(Setup::to(origin.address()), &authority, &[leaf], lines).start();
    (sluice, authority)
}

fn config(authority: &Authority) -> Arc<rustls::ClientConfig> {
    Arc::new(authority.config(&[&TLS13, &TLS12]))
}

fn counted(sluice: &Sluice, metric: &str, label: &str, value: &str, count: f64) {
    let now = || sluice.metrics().labelled(metric, label, value);
    eventually(PATIENCE, &format!("{metric} {value} is {count}, not {}", now()), || {
        (now() == count).then_some(())
    });
}

#[test]
fn curl_openssl_and_gnutls_are_served_with_each_kind_of_certificate_in_both_versions() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let authority = Authority::default();
    let names = ["p256.example", "p384.example", "ed25519.example", "rsa.example"];
    let leaves: Vec<Leaf> =
        Kind::ALL.into_iter().zip(names).map(|(kind, name)| authority.leaf(kind, &[name])).collect();
    let sluice = https(Setup::to(origin.address()), &authority, &leaves, "").start();
    for (name, signature, gnutls) in [
        (names[0], "ECDSA", "(ECDSA-S"),
        (names[1], "ECDSA", "(ECDSA-S"),
        (names[2], "ed25519", "(EdDSA-Ed25519)"),
        (names[3], "RSA-PSS", "(RSA-PSS-RSAE-SHA"),
    ] {
        for (version, option, curl, priority) in [
            ("TLSv1.3", "-tls1_3", &["--tlsv1.3"], "NORMAL:-VERS-ALL:+VERS-TLS1.3"),
            ("TLSv1.2", "-tls1_2", &["--tls-max=1.2"], "NORMAL:-VERS-ALL:+VERS-TLS1.2"),
        ] {
            let curl: Vec<&str> = curl.iter().flat_map(|option| option.split('=')).collect();
            let shown = sluice.curl(name, "/x", &curl).success().text();
            assert!(shown.contains("\"X-Forwarded-Proto\",\"https\""), "{shown}");
            let options = [option, "-servername", name, "-verify_return_error", "-verify_hostname", name];
            let shown = sluice.openssl(&options, &[(LAST, "")]);
            for wanted in [
                "Verification: OK",
                &format!("Peer signature type: {signature}"),
                version,
                "HTTP/1.1 200",
                "closed\n",
            ] {
                assert!(shown.contains(wanted), "{name}: no {wanted} in\n{shown}");
            }
            let options = ["--priority", priority, "--sni-hostname", name, "--verify-hostname", name];
            let shown = sluice.gnutls(&options, &[(LAST, "Handshake was completed")]);
            let version = version.replace('v', "");
            for wanted in [
                "The certificate is trusted",
                &version,
                gnutls,
                "HTTP/1.1 200",
                "Peer has closed the GnuTLS connection",
            ] {
                assert!(shown.contains(wanted), "{name}: no {wanted} in\n{shown}");
            }
        }
    }
    let metrics = sluice.metrics();
    assert_eq!(metrics.labelled("sluice_tls_handshakes_total", "kind", "1.3"), 12.0);
    assert_eq!(metrics.labelled("sluice_tls_handshakes_total", "kind", "1.2"), 12.0);
    assert_eq!(
        (metrics.sum("sluice_requests_total"), metrics.sum("sluice_tls_handshakes_failed_total")),
        (24.0, 0.0)
    );
}

#[test]
fn the_certificate_is_chosen_by_the_name_and_by_what_the_client_can_verify() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let authority = Authority::default();
    let leaves = [
        (Kind::P256, "default.example"),
        (Kind::P256, "both.example"),
        (Kind::Rsa, "both.example"),
        (Kind::P256, "*.wild.example"),
        (Kind::P256, "exact.wild.example"),
    ]
    .map(|(kind, name)| authority.leaf(kind, &[name]));
    let sluice = https(Setup::to(origin.address()), &authority, &leaves, "").start();
    for (options, subject, signature) in [
        (&["-servername", "default.example"][..], "default.example", "ECDSA"),
        (&["-servername", "unknown.example"], "default.example", "ECDSA"),
        (&["-noservername"], "default.example", "ECDSA"),
        (&["-servername", "a.wild.example"], "*.wild.example", "ECDSA"),
        (&["-servername", "A.Wild.EXAMPLE"], "*.wild.example", "ECDSA"),
        (&["-servername", "exact.wild.example"], "exact.wild.example", "ECDSA"),
        (&["-servername", "a.b.wild.example"], "default.example", "ECDSA"),
        (&["-servername", "wild.example"], "default.example", "ECDSA"),
        (&["-servername", "both.example"], "both.example", "ECDSA"),
        (&["-servername", "both.example", "-sigalgs", "RSA-PSS+SHA256"], "both.example", "RSA-PSS"),
        (&["-servername", "both.example", "-tls1_2", "-sigalgs", "RSA+SHA256"], "both.example", "RSA"),
        (&["-servername", "both.example", "-tls1_2", "-cipher", "aRSA"], "both.example", "RSA-PSS"),
        (&["-servername", "both.example", "-tls1_2", "-cipher", "aECDSA"], "both.example", "ECDSA"),
        (
            &["-servername", "both.example", "-sigalgs", "ECDSA+SHA256:RSA-PSS+SHA256"],
            "both.example",
            "ECDSA",
        ),
    ] {
        let shown = sluice.openssl(options, &[(LAST, "")]);
        let subject = format!("subject=CN = {subject}\n");
        let signature = format!("Peer signature type: {signature}\n");
        assert!(
            shown.contains(&subject) && shown.contains(&signature),
            "{options:?}: {subject}{signature}{shown}"
        );
    }
    assert_eq!(sluice.metrics().sum("sluice_tls_handshakes_failed_total"), 0.0);
    // A client that can verify no signature of our keys.
    let shown = sluice.openssl(&["-servername", "default.example", "-sigalgs", "ed25519"], &[]);
    assert!(shown.contains("alert handshake failure"), "{shown}");
    counted(&sluice, "sluice_tls_handshakes_failed_total", "reason", "incompatible", 1.0);
    counted(&sluice, "sluice_tls_alerts_sent_total", "alert", "handshake_failure", 1.0);
}

#[test]
fn the_application_protocol_is_agreed_or_refused() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let (sluice, _authority) = edge(&origin, "");
    for (offered, wanted) in
        [("http/1.1", "ALPN protocol: http/1.1"), ("h2,http/1.1", "ALPN protocol: http/1.1")]
    {
        for version in ["-tls1_2", "-tls1_3"] {
            let shown = sluice.openssl(&[version, "-alpn", offered], &[(LAST, "")]);
            assert!(shown.contains(wanted) && shown.contains("HTTP/1.1 200"), "{shown}");
        }
    }
    let shown = sluice.openssl(&[], &[(LAST, "")]);
    assert!(shown.contains("No ALPN negotiated") && shown.contains("HTTP/1.1 200"), "{shown}");
    for version in ["-tls1_2", "-tls1_3"] {
        let shown = sluice.openssl(&[version, "-alpn", "h2,spdy/3"], &[]);
        assert!(shown.contains("alert no application protocol"), "{shown}");
    }
    counted(&sluice, "sluice_tls_handshakes_failed_total", "reason", "incompatible", 2.0);
    counted(&sluice, "sluice_tls_alerts_sent_total", "alert", "no_application_protocol", 2.0);
    // TLS 1.1 is obsolete. Its hello has no signature algorithms, and rustls complains about those first.
    let shown = sluice.openssl(&["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], &[]);
    assert!(shown.contains("alert handshake failure"), "{shown}");
    counted(&sluice, "sluice_tls_alerts_sent_total", "alert", "handshake_failure", 1.0);
}

#[test]
fn min_version_1_3_refuses_1_2() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let (sluice, _authority) = edge(&origin, "min_version = \"1.3\"");
    assert!(sluice.openssl(&["-tls1_2"], &[]).contains("alert protocol version"));
    assert!(sluice.openssl(&["-tls1_3"], &[(LAST, "")]).contains("HTTP/1.1 200"));
    assert!(sluice.curl(NAME, "/", &[]).success().text().contains("\"method\":\"GET\""));
    counted(&sluice, "sluice_tls_handshakes_failed_total", "reason", "incompatible", 1.0);
    counted(&sluice, "sluice_tls_alerts_sent_total", "alert", "protocol_version", 1.0);
}

#[test]
fn requests_follow_each_other_on_one_connection_also_unasked() {
    let origin = Origin::echo();
    let (sluice, authority) = edge(&origin, "");
    for (version, versions) in VERSIONS {
        let mut client = sluice.secured(&Arc::new(authority.config(versions)), NAME);
        for round in 0..5 {
            assert_eq!(client.get(&format!("/{round}")).json()["target"], format!("/{round}"), "{version}");
        }
        let pipelined: String =
            (0..20).map(|round| format!("GET /p{round} HTTP/1.1\r\nHost: {NAME}\r\n\r\n")).collect();
        client.send(pipelined);
        for round in 0..20 {
            assert_eq!(client.response("GET").json()["target"], format!("/p{round}"), "{version}");
        }
        client.send(format!("HEAD / HTTP/1.1\r\nHost: {NAME}\r\n\r\n"));
        let head = client.response("HEAD");
        assert!(
            head.status == 200 && head.body.is_empty() && head.field("content-length").is_some(),
            "{head:?}"
        );
        // The pause is longer than a session lingers.
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(client.get("/late").status, 200);
        client.send(LAST);
        assert_eq!(client.response("GET").status, 200);
        assert!(client.until_closed().is_empty(), "ended with close_notify");
    }
    let metrics = sluice.metrics();
    assert_eq!(
        (metrics.sum("sluice_tls_handshakes_total"), metrics.sum("sluice_requests_total")),
        (2.0, 56.0)
    );
}

#[test]
fn bodies_of_every_size_pass_both_ways_whole() {
    if without_tools() || skip::without_tool("nginx") {
        return;
    }
    let nginx = Nginx::start();
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &[NAME]);
    let sluice = https(Setup::to(nginx.address()), &authority, &[leaf], "").start();
    let before = sluice.holdings();
    let (port, roots) = (sluice.address().port(), sluice.file("ca.pem"));
    let resolve = format!("{NAME}:{port}:127.0.0.1");
    for (version, max) in [("1.3", &[][..]), ("1.2", &["--tls-max", "1.2"])] {
        let options = [&["--cacert", roots.to_str().unwrap(), "--resolve", &resolve], max].concat();
        for length in [0, 1, 1359, 13_601, 16_383, 16_385, 65_537, (1 << 20) + 1, 64 << 20] {
            for chunked in [false, true] {
                let name = format!("body-{version}-{length}-{chunked}");
                let url = format!("https://{NAME}:{port}/{name}");
                Curl::upload(&options, &url, length, chunked);
                let stored = pattern::digest(File::open(nginx.file(&name)).unwrap()).unwrap();
                assert_eq!(stored, (length, pattern::expected(length)), "up {name}");
                assert_eq!(Curl::download(&options, &url), stored, "down {name}");
            }
        }
    }
    sluice.expect_back_to(before);
}

#[test]
fn chunks_trailers_and_100_continue_pass() {
    let origin = Origin::http(|request| match request.method.as_str() {
        "GET" => Response::with(Body::Chunks(
            vec![vec![b'a'; 70_000], b"end".to_vec()],
            vec![("X-Sum".into(), "42".into())],
        )),
        _ => Response::ok(format!("{} {:?}", request.length, request.trailers)),
    });
    let (sluice, authority) = edge(&origin, "");
    let mut client = sluice.secured(&config(&authority), NAME);
    client.send(format!("GET / HTTP/1.1\r\nHost: {NAME}\r\nTE: trailers\r\n\r\n"));
    let response = client.response("GET");
    assert_eq!((response.body.len(), response.trailers.len()), (70_003, 1), "{:?}", response.trailers);
    client.send(format!(
        "PUT / HTTP/1.1\r\nHost: {NAME}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    ));
    assert_eq!(client.try_any_response("PUT").unwrap().status, 100);
    for _ in 0..10 {
        client.send([&b"2710\r\n"[..], &[b'x'; 10_000], b"\r\n"].concat());
    }
    client.send("0\r\nX-T: 1\r\n\r\n");
    let response = client.response("PUT");
    assert_eq!((response.status, response.text()), (200, "100000 [(\"X-T\", \"1\")]".to_owned()));
}

#[test]
fn websockets_pass_over_tls_both_ways() {
    use tungstenite::Message;
    let failed = |error: tungstenite::Error| io::Error::other(error.to_string());
    let origin = Origin::raw(move |connection: &mut Connection| {
        let mut socket =
            tungstenite::accept(connection).map_err(|error| io::Error::other(error.to_string()))?;
        while let Ok(message) = socket.read() {
            if message.is_text() || message.is_binary() {
                socket.send(message).map_err(failed)?;
            }
        }
        Ok(())
    });
    let (sluice, authority) = edge(&origin, "");
    for (version, versions) in VERSIONS {
        let socket = TcpStream::connect(sluice.address()).unwrap();
        let stream = tls::handshake(socket, &Arc::new(authority.config(versions)), NAME).unwrap();
        let (mut socket, response) = tungstenite::client(format!("wss://{NAME}/chat"), stream).unwrap();
        assert_eq!(response.status(), 101, "{version}");
        for length in [0, 1, 125, 126, 16_384, 65_536, 1 << 20] {
            let message = Message::binary((0..length).map(|at| (at * 7 + length) as u8).collect::<Vec<u8>>());
            socket.send(message.clone()).unwrap();
            assert_eq!(socket.read().unwrap(), message, "{version}");
        }
        // The connection's keys may change below the WebSocket.
        if version == "TLSv1.3" {
            socket.get_mut().conn.refresh_traffic_keys().unwrap();
            socket.send(Message::text("under new keys")).unwrap();
            assert_eq!(socket.read().unwrap(), Message::text("under new keys"));
        }
        socket.close(None).unwrap();
        assert_eq!(socket.read().unwrap(), Message::Close(None));
        assert!(
            matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)),
            "{version}: closed in order"
        );
    }
    counted(&sluice, "sluice_connections_closed_total", "reason", "tunnel_closed", 2.0);
}

#[test]
fn a_proxy_header_comes_before_the_handshake() {
    let origin = Origin::echo();
    let authority = Authority::default();
    let setup = Setup::to(origin.address())
        .with("listener", "proxy_protocol = \"accept\"\ntrusted_proxies = [\"127.0.0.1\"]");
    let sluice = https(setup, &authority, &[authority.leaf(Kind::P256, &[NAME])], "").start();
    let two =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[192, 0, 2, 8, 192, 0, 2, 1, 1, 1, 1, 187]].concat();
    for (header, client) in
        [(&b"PROXY TCP4 192.0.2.7 192.0.2.1 1234 443\r\n"[..], "192.0.2.7"), (&two, "192.0.2.8")]
    {
        // The hello comes at once after the header, then after a pause.
        for pause in [0, 50] {
            let mut socket = TcpStream::connect(sluice.address()).unwrap();
            socket.write_all(header).unwrap();
            std::thread::sleep(Duration::from_millis(pause));
            let stream = tls::handshake(socket, &config(&authority), NAME).unwrap();
            let shown = Client::new(stream).get("/").text();
            assert!(shown.contains(&format!("\"X-Forwarded-For\",\"{client}\"")), "{shown}");
            assert!(shown.contains("\"X-Forwarded-Proto\",\"https\""), "{shown}");
        }
    }
}

/// close_notify alone tells it too, and so does one behind a request that waits for its turn.
#[test]
fn a_client_that_said_close_notify_is_served_for_half_close() {
    let origin = Origin::http(|_| Response::ok("late").after(Duration::from_secs(8)));
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &[NAME]);
    let setup = Setup::to(origin.address()).with("listener", "half_close = \"500ms\"");
    let sluice = https(setup, &authority, &[leaf], "").start();
    let request = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    for (version, versions) in VERSIONS {
        let config = Arc::new(authority.config(versions));
        for requests in [1, 3] {
            let start = std::time::Instant::now();
            let mut client = sluice.secured(&config, NAME);
            (0..requests).for_each(|_| client.send(&request));
            let stream = client.stream();
            stream.conn.send_close_notify();
            stream.conn.complete_io(&mut stream.sock).unwrap();
            assert!(client.until_closed().is_empty(), "{version}");
            assert!(start.elapsed() < Duration::from_secs(5), "{version}: {:?}", start.elapsed());
        }
    }
    counted(&sluice, "sluice_connections_closed_total", "reason", "client_closed", 4.0);
}

#[test]
fn a_client_that_half_closes_is_answered_and_one_that_vanishes_is_not_believed() {
    let origin = Origin::http(|request| {
        Response::ok(format!("{} {}", request.method, request.length)).after(Duration::from_millis(150))
    });
    let (sluice, authority) = edge(&origin, "");
    for (version, versions) in VERSIONS {
        let config = Arc::new(authority.config(versions));
        // The client ends with close_notify and FIN, with close_notify alone, and with FIN alone.
        for (notified, shut) in [(true, true), (true, false), (false, true)] {
            let mut client = sluice.secured(&config, NAME);
            client.send(format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\nbody"));
            let stream = client.stream();
            if notified {
                stream.conn.send_close_notify();
                stream.conn.complete_io(&mut stream.sock).unwrap();
            }
            if shut {
                stream.sock.shutdown(Shutdown::Write).unwrap();
            }
            let response = client.response("POST");
            assert_eq!(
                (response.status, response.text().as_str()),
                (200, "POST 4"),
                "{version} {notified} {shut}"
            );
            assert!(client.until_closed().is_empty(), "ended with close_notify");
        }
        // The client ends in the middle of a body, with close_notify and without.
        for notified in [true, false] {
            let seen = origin.requests();
            let mut client = sluice.secured(&config, NAME);
            client.send(format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 3000000\r\n\r\npart"));
            let stream = client.stream();
            if notified {
                stream.conn.send_close_notify();
                stream.conn.complete_io(&mut stream.sock).unwrap();
            }
            // Sluice's reset may have arrived already.
            let _ = stream.sock.shutdown(Shutdown::Write);
            let mut rest = Vec::new();
            let _ = client.stream().read_to_end(&mut rest);
            assert!(!rest.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&rest));
            assert_eq!(origin.requests(), seen, "half a body is no request");
        }
    }
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_requests_active"), 0.0);
}

#[test]
fn keys_are_updated_when_the_client_asks() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let (sluice, authority) = edge(&origin, "");
    let get = format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n");
    // K asks Sluice to update its keys too; k does not.
    let lines = [
        (get.as_str(), "---"),
        ("K\n", "\"trailers\":[]"),
        (&get, "KEYUPDATE"),
        ("k\n", "\"trailers\":[]"),
        (LAST, "KEYUPDATE"),
    ];
    let shown = sluice.openssl(&["-tls1_3"], &lines);
    assert_eq!(shown.matches("HTTP/1.1 200").count(), 3, "{shown}");
    let mut client = sluice.secured(&Arc::new(authority.config(&[&TLS13])), NAME);
    for round in 0..50 {
        client.stream().conn.refresh_traffic_keys().unwrap();
        assert_eq!(client.get(&format!("/{round}")).status, 200);
    }
    // Keys change in the middle of a body, in both directions at once.
    let mut body = Vec::new();
    io::copy(&mut Pattern::new(5 << 20), &mut body).unwrap();
    client.send(format!("POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {}\r\n\r\n", body.len()));
    for piece in body.chunks(300_000) {
        client.send(piece);
        client.stream().conn.refresh_traffic_keys().unwrap();
    }
    assert_eq!(client.response("POST").json()["sha256"], pattern::expected(5 << 20));
    assert_eq!(sluice.metrics().labelled("sluice_connections_closed_total", "reason", "tls_broken"), 0.0);
}

#[test]
fn a_renegotiation_is_refused_and_the_connection_goes_on() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let (sluice, authority) = edge(&origin, "");
    let shown = sluice.openssl(&["-tls1_2"], &[("R\n", "---"), ("", "RENEGOTIATING")]);
    assert!(
        shown.contains("no renegotiation") && shown.contains("Secure Renegotiation IS supported"),
        "{shown}"
    );
    // openssl gives up after the refusal. A client that goes on is served.
    let mut client = Forger::connect(sluice.address(), &authority, NAME, &TLS12);
    let hello = [&[1, 0, 0, 40, 3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1]].concat();
    for _ in 0..3 {
        let record = client.seal(22, &hello);
        client.send(record);
        assert_eq!(client.record(), Some((21, vec![1, 100])));
    }
    let record = client.seal(23, LAST.as_bytes());
    client.send(record);
    let (data, others, ending) = client.until_closed();
    assert!(data.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&data));
    assert_eq!((others, ending), (vec![], tls::Ending::Alert(0)));
}

#[test]
fn plain_http_to_the_port_is_told_so_in_plain() {
    let origin = Origin::echo();
    let (sluice, _authority) = edge(&origin, "");
    for request in [
        format!("GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
        format!(
            "POST / HTTP/1.1\r\nHost: {NAME}\r\nConnection: keep-alive\r\nContent-Length: 100000\r\n\r\n{}",
            "x".repeat(100_000)
        ),
        format!("GET /1 HTTP/1.1\r\nHost: {NAME}\r\n\r\nGET /2 HTTP/1.1\r\nHost: {NAME}\r\n\r\n"),
    ] {
        let mut client = sluice.client();
        client.send(request);
        let response = client.response("GET");
        assert_eq!((response.status, response.field("connection")), (400, Some("close")));
        assert!(response.text().contains("plain_http"), "{response:?}");
        assert!(client.until_closed().is_empty(), "one answer");
    }
    counted(&sluice, "sluice_tls_handshakes_failed_total", "reason", "not_tls", 3.0);
    assert_eq!(origin.requests(), 0);
}

#[test]
fn http_is_led_to_https_and_told_to_stay() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let authority = Authority::default();
    let plain = tests::ports::Port::lease();
    let setup = Setup::to(origin.address()).without_route();
    let authority_of = format!("{NAME}:{}", setup.address().port());
    let setup = https(setup, &authority, &[authority.leaf(Kind::P256, &[NAME])], "").append(&format!(
        "\n[[listener]]\nname = \"plain\"\naddress = \"{}\"\n
         [[route]]\nlistener = \"plain\"\nredirect = {{ to = \"https://{authority_of}{{uri}}\", status = 308 \
         }}\n
         [[route]]\nlistener = \"main\"\nupstream = \"app\"\n\
         response_headers = {{ set = {{ \"Strict-Transport-Security\" = \"max-age=63072000\" }} }}\n",
        plain.loopback()
    ));
    let sluice = setup.start();
    let mut command = sluice.curl_for(NAME);
    command.args(["--location", "--include", "--resolve", &format!("{NAME}:{}:127.0.0.1", plain.number())]);
    let output =
        tests::process::run(command.arg(format!("http://{NAME}:{}/a?b=c", plain.number())), PATIENCE)
            .success()
            .text();
    let (first, second) = output.split_once("\r\n\r\n").unwrap();
    assert!(
        first.starts_with("HTTP/1.1 308")
            && first.contains(&format!("Location: https://{authority_of}/a?b=c")),
        "{output}"
    );
    assert!(!first.contains("Strict-Transport-Security"), "not over plain HTTP (RFC 6797 7.2): {output}");
    assert!(
        second.contains("HTTP/1.1 200") && second.contains("Strict-Transport-Security: max-age=63072000"),
        "{output}"
    );
    assert!(second.contains("\"target\":\"/a?b=c\""), "{output}");
}

#[test]
fn an_ocsp_response_is_stapled() {
    if without_tools() {
        return;
    }
    let origin = Origin::echo();
    let authority = Authority::default();
    let mut leaf = authority.leaf(Kind::P256, &[NAME]);
    leaf.ocsp = Some(authority.good(&leaf));
    let other = authority.leaf(Kind::P256, &["other.example"]);
    let sluice = https(Setup::to(origin.address()), &authority, &[leaf, other], "").start();
    for version in ["-tls1_2", "-tls1_3"] {
        let shown = sluice.openssl(&["-status", "-servername", NAME, version], &[(LAST, "")]);
        assert!(
            shown.contains("OCSP Response Status: successful") && shown.contains("Cert Status: good"),
            "{shown}"
        );
        let shown = sluice.openssl(&["-status", "-servername", "other.example", version], &[(LAST, "")]);
        assert!(shown.contains("OCSP response: no response sent"), "{shown}");
    }
}

#[test]
fn a_client_with_an_odd_name_gets_the_default_certificate() {
    if skip::without_tool("openssl") {
        return;
    }
    let origin = Origin::echo();
    let authority = Authority::default();
    let leaves =
        [authority.leaf(Kind::P256, &["first.example"]), authority.leaf(Kind::P256, &["second.example"])];
    let sluice = https(Setup::to(origin.address()), &authority, &leaves, "").start();
    for version in ["-tls1_3", "-tls1_2"] {
        for name in
            ["foo-.w.test", "-foo.w.test", "foo.123", "x:443", "[::1]", "127.0.0.1", "a b", "*.w.test", "x.."]
        {
            let said = sluice.openssl(&[version, "-servername", name], &[(LAST, "")]);
            let is_default = said.replace(' ', "").contains("subject=CN=first.example");
            assert!(said.contains("HTTP/1.1 200") && is_default, "{version} {name}: {said}");
        }
    }
}
