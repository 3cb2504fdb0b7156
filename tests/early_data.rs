//! Early data through the released binary: which requests are served before the handshake is over, which wait
//! for its end, and that a replayed recording gains nothing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tests::client::PATIENCE;
use tests::origin::{Origin, Response};
use tests::sluice::{Setup, Sluice};
use tests::tls::{Authority, Kind, https};
use tests::{eventually, process, skip};

const NAME: &str = "edge.example";
const LINES: &str = "session_tickets = false\nearly_data = true\n";
/// A test that expects no answer waits this long for one.
const MOMENT: Duration = Duration::from_millis(300);

struct Edge {
    sluice: Sluice,
    origin: Origin,
    config: Arc<ClientConfig>,
}

impl Edge {
    fn start(lines: &str) -> Self {
        let origin = Origin::http(|request| {
            let answer = Response::ok(format!("early: {}", request.field("Early-Data").unwrap_or("no")));
            match request.target.as_str() {
                "/later" if request.field("Early-Data").is_some() => answer.status("425 Too Early"),
                "/slow" => answer.after(Duration::from_secs(2)),
                _ => answer,
            }
        });
        let authority = Authority::default();
        let leaf = authority.leaf(Kind::P256, &[NAME]);
        let setup = Setup::to(origin.address()).with("guard", "connections_per_ip = 0");
        let sluice = https(setup, &authority, &[leaf], lines).start();
        let mut config = authority.config(&[&TLS13]);
        config.enable_early_data = true;
        let edge = Self { sluice, origin, config: Arc::new(config) };
        edge.learn();
        edge
    }

    /// Makes a whole handshake and keeps the sessions that it gives.
    fn learn(&self) {
        assert_eq!(self.sluice.secured(&self.config, NAME).get("/").body, b"early: no");
    }

    fn greet(&self, early: &[u8]) -> Asker {
        self.greet_in(&[early])
    }

    /// Says these early, each in records of its own.
    fn greet_in(&self, early: &[&[u8]]) -> Asker {
        let name = ServerName::try_from(NAME).unwrap();
        let mut tls = ClientConnection::new(Arc::clone(&self.config), name).unwrap();
        for part in early {
            tls.early_data().expect("a session that allows it").write_all(part).unwrap();
        }
        let mut flight = Vec::new();
        while tls.wants_write() {
            tls.write_tls(&mut flight).unwrap();
        }
        let mut socket = TcpStream::connect(self.sluice.address()).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.write_all(&flight).unwrap();
        Asker { tls, socket, flight, plain: Vec::new() }
    }

    fn handshakes(&self, kind: &str) -> f64 {
        self.sluice.metrics().labelled("sluice_tls_handshakes_total", "kind", kind)
    }

    fn failures(&self, reason: &str) -> f64 {
        self.sluice.metrics().labelled("sluice_tls_handshakes_failed_total", "reason", reason)
    }

    fn early_requests(&self) -> f64 {
        self.sluice.metrics().sum("sluice_tls_early_requests_total")
    }
}

/// A client that has sent a request in its first flight. It can hold back the rest of its handshake.
struct Asker {
    tls: ClientConnection,
    socket: TcpStream,
    flight: Vec<u8>,
    plain: Vec<u8>,
}

impl Asker {
    /// Reads, without writing, until the plaintext ends with `end`. False if the connection ends first or
    /// nothing comes for `limit`.
    fn read_until(&mut self, end: &str, limit: Duration) -> bool {
        self.read_while(limit, |asker| !asker.plain.ends_with(end.as_bytes()))
    }

    /// Reads the server's reply to the first flight. True if no answer follows within [`MOMENT`].
    fn hears_no(&mut self, end: &str) -> bool {
        assert!(self.read_while(PATIENCE, |asker| asker.tls.is_handshaking()), "a flight");
        !self.read_until(end, MOMENT)
    }

    fn read_while(&mut self, limit: Duration, wants: impl Fn(&Self) -> bool) -> bool {
        let due = Instant::now() + limit;
        while wants(self) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            match self.tls.read_tls(&mut self.socket) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionReset
                    ) =>
                {
                    return false;
                }
                Err(error) => panic!("{error}"),
            }
            let state = self.tls.process_new_packets().unwrap();
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain).unwrap();
            self.plain.extend(plain);
        }
        true
    }

    /// Sends the rest of the handshake, and this plaintext after it.
    fn say(&mut self, plain: &str) {
        self.tls.writer().write_all(plain.as_bytes()).unwrap();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.socket).unwrap();
        }
    }
}

fn request(method: &str, target: &str, rest: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {NAME}\r\n{rest}\r\n")
}

#[test]
fn a_safe_request_is_answered_before_the_handshake_is_over_and_says_so_upstream() {
    let edge = Edge::start(LINES);
    // The client's own Early-Data field makes no difference.
    for rest in ["", "Early-Data: 0\r\n", "Early-Data: 1\r\nConnection: early-data\r\n"] {
        let mut asker = edge.greet(request("GET", "/", rest).as_bytes());
        assert!(asker.read_until("early: 1", PATIENCE), "{:?}", String::from_utf8_lossy(&asker.plain));
        assert!(asker.tls.is_early_data_accepted());
        // The client has sent nothing since its first flight. The next request comes over an established
        // connection.
        asker.say(&request("GET", "/", ""));
        assert!(asker.read_until("early: no", PATIENCE), "{:?}", String::from_utf8_lossy(&asker.plain));
    }
    assert_eq!(edge.origin.recorded_text().to_ascii_lowercase().matches("early-data").count(), 3);
    assert_eq!(
        (edge.handshakes("1.3"), edge.handshakes("1.3_resumed"), edge.early_requests()),
        (1.0, 3.0, 3.0)
    );
}

#[test]
fn what_must_not_be_repeated_waits_for_the_handshake() {
    let edge = Edge::start(LINES);
    for (asked, body) in [
        (request("POST", "/", "Content-Length: 2\r\n"), "hi"),
        (request("DELETE", "/", ""), ""),
        (request("GET", "/", "Content-Length: 2\r\n"), "hi"),
        (request("GET", "/", "Connection: upgrade\r\nUpgrade: websocket\r\n"), ""),
    ] {
        let before = edge.origin.requests();
        let mut asker = edge.greet((asked.clone() + body).as_bytes());
        assert!(asker.hears_no("early: no"), "{asked}");
        assert!(asker.tls.is_early_data_accepted());
        assert_eq!(edge.origin.requests(), before, "{asked}");
        asker.say("");
        assert!(asker.read_until("early: no", PATIENCE), "{asked}");
        assert_eq!(edge.origin.requests(), before + 1);
    }
    assert_eq!((edge.handshakes("1.3_resumed"), edge.early_requests()), (4.0, 0.0));
}

#[test]
fn a_recording_is_worth_nothing() {
    let edge = Edge::start(LINES);
    let mut asker = edge.greet(request("GET", "/", "").as_bytes());
    assert!(asker.read_until("early: 1", PATIENCE));
    asker.say("");
    let before = edge.origin.requests();
    // Sluice has used up the session. The replayed flight starts a full handshake, which an attacker with the
    // recording cannot finish.
    let mut again = TcpStream::connect(edge.sluice.address()).unwrap();
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    again.write_all(&asker.flight).unwrap();
    again.read_exact(&mut [0; 500]).expect("a certificate, not an answer");
    drop(again);
    eventually(PATIENCE, "the failure is counted", || (edge.failures("client_closed") == 1.0).then_some(()));
    assert_eq!((edge.origin.requests(), edge.early_requests()), (before, 1.0));
}

#[test]
fn a_handshake_that_does_not_end_is_given_up_in_its_time() {
    let edge = Edge::start(&format!("{LINES}handshake_timeout = \"1500ms\"\n"));
    // Four requests: one is answered, one is incomplete, one waits for the handshake, one is answered later.
    let asked = [
        (request("GET", "/", ""), "early: 1"),
        ("GET / HT".to_owned(), ""),
        (request("DELETE", "/", ""), ""),
        (request("GET", "/slow", ""), ""),
    ];
    for (asked, answer) in asked {
        let begun = Instant::now();
        let mut asker = edge.greet(asked.as_bytes());
        assert!(asker.read_until(answer, PATIENCE));
        assert!(!asker.read_until("never", PATIENCE));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(1400) && took < PATIENCE / 2, "{asked}: {took:?}");
        edge.learn();
    }
    eventually(PATIENCE, "four failures", || (edge.failures("timeout") == 4.0).then_some(()));
    assert_eq!(edge.early_requests(), 2.0);
    // If the handshake ends while the request waits, the client gets its answer.
    let mut asker = edge.greet(request("GET", "/slow", "").as_bytes());
    assert!(asker.hears_no("early: 1"));
    asker.say("");
    assert!(asker.read_until("early: 1", PATIENCE));
    drop(asker);
    eventually(PATIENCE, "nothing is left", || {
        (edge.sluice.metrics().sum("sluice_connections_open") == 0.0).then_some(())
    });
}

#[test]
fn how_a_handshake_ended_is_counted_whatever_ends_the_exchange_beside_it() {
    let edge = Edge::start(LINES);
    // The handshake is over before the client gives up on the answer.
    let mut asker = edge.greet(request("GET", "/slow", "").as_bytes());
    assert!(asker.hears_no("early: 1"));
    asker.say("");
    std::thread::sleep(3 * MOMENT);
    reset(&asker.socket);
    drop(asker);
    eventually(PATIENCE, "success", || (edge.handshakes("1.3_resumed") == 1.0).then_some(()));
    // The handshake is not over, and the client breaks it with a bad record in the middle of a head.
    edge.learn();
    let mut asker = edge.greet(b"GET / HT");
    assert!(asker.hears_no("never"));
    asker.socket.write_all(&[&[23, 3, 3, 0, 40][..], &[7; 40]].concat()).unwrap();
    eventually(PATIENCE, "a failure", || (edge.failures("malformed") == 1.0).then_some(()));
    let alerts = || edge.sluice.metrics().sum("sluice_tls_alerts_sent_total");
    eventually(PATIENCE, "an alert", || (alerts() == 1.0).then_some(()));
    // The client sends more meaningless records than rustls accepts, and rustls has no alert for that.
    edge.learn();
    let mut asker = edge.greet(request("GET", "/", "").as_bytes());
    assert!(asker.read_until("early: 1", PATIENCE));
    asker.socket.write_all(&[20, 3, 3, 0, 1, 1].repeat(100)).unwrap();
    eventually(PATIENCE, "another", || (edge.failures("malformed") == 2.0).then_some(()));
    eventually(PATIENCE, "its end", || (edge.sluice.holdings().connections == 0.0).then_some(()));
    assert_eq!(alerts(), 2.0);
    // It is sealed behind the early answer.
    while asker.tls.read_tls(&mut asker.socket).is_ok_and(|read| read > 0) {
        if let Err(error) = asker.tls.process_new_packets() {
            assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::UnexpectedMessage));
            break;
        }
    }
    assert_eq!(edge.sluice.metrics().sum("sluice_tls_handshakes_failed_total"), 2.0);
    assert_eq!(edge.sluice.metrics().sum("sluice_tls_handshakes_total"), 4.0);
}

#[test]
fn what_was_asked_early_counts_once_the_handshake_is_over() {
    let edge = Edge::start(LINES);
    let held = || edge.sluice.holdings().budget;
    let one = request("GET", "/", &format!("X-Long: {}\r\n", "x".repeat(900)));
    let mut asker = edge.greet((request("DELETE", "/slow", "") + &one.repeat(45)).as_bytes());
    assert!(asker.hears_no("early: no"));
    // A handshake under way may hold this much outside the budget, once for each of `max_handshakes`. The
    // early data must be read for the handshake to end.
    assert_eq!(held(), 0.0);
    asker.say("");
    eventually(PATIENCE, "it is held against the budget", || (held() > 30_000.0).then_some(()));
    let answers = |asker: &Asker| String::from_utf8_lossy(&asker.plain).matches("early: no").count();
    eventually(PATIENCE, "all answers", || {
        let _ = asker.read_until("never", MOMENT / 3);
        (answers(&asker) == 46).then_some(())
    });
    eventually(PATIENCE, "nothing is held", || (held() == 0.0).then_some(()));
}

/// Makes the socket reset its connection when it is closed.
fn reset(socket: &TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

#[test]
fn refused_early_data_is_skipped_and_the_request_comes_again() {
    let edge = Edge::start(LINES);
    let long = |bytes: usize| request("GET", "/", &format!("X-Long: {}\r\n", "x".repeat(bytes)));
    // In one record and in several, up to all that was promised.
    for (early, size) in [
        (request("GET", "/", ""), 1 << 14),
        (long(8100), 1 << 14),
        (long(15_000), 1 << 14),
        (long(4900), 1000),
        (long(1900), 100),
        (long((48 << 10) - 100), 1 << 14),
    ] {
        // A session is valid only in the data plane that made it.
        edge.sluice.kill_data_plane();
        let mut asker = eventually(PATIENCE, "the next data plane", || {
            edge.sluice.admin("/readyz").ok().filter(|response| response.status == 200)?;
            Some(edge.greet_in(&early.as_bytes().chunks(size).collect::<Vec<_>>()))
        });
        assert!(asker.hears_no("early: 1"));
        assert!(!asker.tls.is_early_data_accepted());
        asker.say(&request("GET", "/", ""));
        assert!(asker.read_until("early: no", PATIENCE), "{:?}", String::from_utf8_lossy(&asker.plain));
    }
}

#[test]
fn who_comes_back_after_early_data_was_turned_off_is_served() {
    let edge = Edge::start(LINES);
    for lines in ["session_tickets = false\nearly_data = false\n", "", "min_version = \"1.3\"\n"] {
        edge.learn();
        let before = edge.sluice.configuration();
        assert!(before.contains(LINES));
        std::fs::write(edge.sluice.config_path(), before.replace(LINES, lines)).unwrap();
        let _ = edge.sluice.command("reload").success();
        let early = request("GET", "/", &format!("X-Long: {}\r\n", "x".repeat(48_000)));
        let mut asker = edge.greet_in(&early.as_bytes().chunks(1000).collect::<Vec<_>>());
        assert!(asker.hears_no("early: 1"));
        assert!(!asker.tls.is_early_data_accepted());
        asker.say(&request("GET", "/", ""));
        assert!(asker.read_until("early: no", PATIENCE), "{lines}");
        std::fs::write(edge.sluice.config_path(), before).unwrap();
        let _ = edge.sluice.command("reload").success();
    }
}

#[test]
fn an_endpoint_that_will_not_serve_early_is_understood() {
    let edge = Edge::start(LINES);
    let mut asker = edge.greet(request("GET", "/later", "").as_bytes());
    assert!(asker.read_until("early: 1", PATIENCE));
    assert!(asker.plain.starts_with(b"HTTP/1.1 425 Too Early\r\n"));
    asker.say(&request("GET", "/later", ""));
    assert!(asker.read_until("early: no", PATIENCE));
}

#[test]
fn sessions_for_early_data_outlive_a_reload_that_leaves_the_listener_alone() {
    let edge = Edge::start(LINES);
    let _ = edge.sluice.command("reload").success();
    let mut asker = edge.greet(request("GET", "/", "").as_bytes());
    assert!(asker.read_until("early: 1", PATIENCE));
    asker.say("");
}

#[test]
fn openssl_asks_early_too() {
    if skip::without_tool("openssl") {
        return;
    }
    let edge = Edge::start(LINES);
    let (session, early) = (edge.sluice.file("session"), edge.sluice.file("early"));
    std::fs::write(&early, request("GET", "/", "Connection: close\r\n")).unwrap();
    let ask = |more: &str, said: &str| {
        let script = format!(
            "printf '{said}' | openssl s_client -connect {} -servername {NAME} -tls1_3 -ign_eof -CAfile {} \
             {more}",
            edge.sluice.address(),
            edge.sluice.file("ca.pem").display()
        );
        process::run(Command::new("sh").args(["-c", &script]), PATIENCE).text()
    };
    let get = format!("GET / HTTP/1.1\\r\\nHost: {NAME}\\r\\nConnection: close\\r\\n\\r\\n");
    let first = ask(&format!("-sess_out {}", session.display()), &get);
    assert!(first.contains("early: no") && first.contains("Max Early Data: 49152"), "{first}");
    let second = ask(&format!("-sess_in {} -early_data {}", session.display(), early.display()), "");
    assert!(second.contains("Early data was accepted") && second.contains("early: 1"), "{second}");
    // With a session that the next data plane does not know.
    std::fs::write(&early, request("GET", "/", &format!("X-Long: {}\r\n", "x".repeat(40_000)))).unwrap();
    edge.sluice.kill_data_plane();
    eventually(PATIENCE, "the next data plane", || {
        edge.sluice.admin("/readyz").ok().filter(|response| response.status == 200)
    });
    let third = ask(&format!("-sess_in {} -early_data {}", session.display(), early.display()), &get);
    assert!(third.contains("Early data was rejected") && third.contains("early: no"), "{third}");
}
