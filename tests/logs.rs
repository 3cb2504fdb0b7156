//! The access log through the released binary: one record for each exchange, however it ended; rotation under
//! load; a full disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustls::version::{TLS12, TLS13};
use serde_json::Value;
use tests::client::Client;
use tests::origin::{Body, Origin, Response as Answer};
use tests::ports::Port;
use tests::sluice::{Setup, Sluice};
use tests::tls::{Authority, Kind, https};
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(15);

/// The log's path is relative to the configuration, so the log lies in run_dir.
const ACCESS: &str = "access = \"access.log\"\n";

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// Waits until the log has `count` records and returns them.
fn wait_records(sluice: &Sluice, count: usize) -> Vec<Value> {
    let path = sluice.run_dir().join("access.log");
    eventually(LIMIT, "the records are written", || {
        Some(records(&path)).filter(|records| records.len() >= count)
    })
}

#[test]
fn every_exchange_leaves_one_record_with_what_happened() {
    let origin = Origin::http(|request| match request.target.as_str() {
        "/slow" => Answer::ok("late").after(Duration::from_millis(60)),
        _ => Answer::ok("hello"),
    });
    let cut = Origin::scripted("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nten bytes.");
    let nowhere = Port::lease();
    let upstreams = format!(
        "\n[[route]]\npath_prefix = \"/app\"\nupstream = \"app\"\n[[route]]\npath_prefix = \"/down\"\n\
         upstream = \"down\"\n\
         [[route]]\npath_prefix = \"/slow\"\nupstream = \"app\"\n[[route]]\npath_prefix = \"/cut\"\n\
         upstream = \"cut\"\n\
         [[upstream]]\nname = \"down\"\nendpoints = [\"{}\"]\n[[upstream]]\nname = \"cut\"\n\
         endpoints = [\"{}\"]\n",
        nowhere.loopback(),
        cut.address()
    );
    let setup = Setup::to(origin.address())
        .without_route()
        .with("log", ACCESS)
        .with("listener", "request_id = \"keep\"")
        .with("listener.limits", "body_bytes = \"10\"");
    let sluice = setup.with("listener.timeouts", "request_header = \"300ms\"").append(&upstreams).start();

    let mut client = sluice.client();
    client.send("GET /app/%2e/a?token=secret HTTP/1.1\r\nHost: Example.com\r\nX-Request-Id: mine\r\n\r\n");
    assert_eq!(client.response("GET").status, 200);
    assert_eq!(client.get("/app/b").status, 200);
    assert_eq!(client.get("/slow").status, 200);
    client.send("POST /app HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n");
    assert_eq!(client.response("POST").status, 413);
    client.until_closed();
    let records = wait_records(&sluice, 4);
    let first = &records[0];
    for (key, expected) in [
        ("request_id", "mine"),
        ("listener", "main"),
        ("protocol", "HTTP/1.1"),
        ("method", "GET"),
        ("host", "example.com"),
        ("path", "/app/a"),
        ("route", "/app"),
        ("upstream", "app"),
        ("endpoint", &origin.address().to_string()),
    ] {
        assert_eq!(first[key], expected, "{key} in {first}");
    }
    assert_eq!(
        (&first["status"], &first["refused"], &first["closed"]),
        (&200.into(), &Value::Null, &Value::Null)
    );
    assert_eq!((&first["attempts"], &first["upstream_reused"]), (&1.into(), &false.into()), "{first}");
    assert_eq!((&first["connection_request"], &records[1]["connection_request"]), (&1.into(), &2.into()));
    assert_eq!(records[1]["upstream_reused"], true, "{}", records[1]);
    assert_eq!(records[1]["micros"]["accept"], Value::Null, "only the first request of a connection has one");
    assert!(first["micros"]["accept"].is_u64() && first["time"].as_str().unwrap().ends_with('Z'), "{first}");
    assert_eq!(first["client"], client.socket().local_addr().unwrap().to_string());
    assert_eq!(
        first["bytes_received"],
        "GET /app/%2e/a?token=secret HTTP/1.1\r\nHost: Example.com\r\nX-Request-Id: mine\r\n\r\n".len()
    );
    assert!(first["bytes_sent"].as_u64().unwrap() > 5);
    assert_eq!(
        (&first["tls"], &first["micros"]["handshake"]),
        (&Value::Null, &Value::Null),
        "plain: {first}"
    );
    for record in &records {
        let micros = &record["micros"];
        let phase = |name: &str| micros[name].as_u64().unwrap_or(0);
        let sum: u64 =
            ["head", "route", "pool", "connect", "first_byte", "last_byte"].map(phase).iter().sum();
        assert!(sum.abs_diff(phase("total")) <= 8, "phases add up: {record}");
    }
    assert!(
        records[2]["micros"]["first_byte"].as_u64().unwrap() >= 55_000,
        "the origin's time: {}",
        records[2]
    );
    let too_large = &records[3];
    assert_eq!(
        (&too_large["status"], &too_large["refused"]),
        (&413.into(), &"body_too_large".into()),
        "{too_large}"
    );
    assert_eq!(
        (&too_large["closed"], &too_large["upstream"]),
        (&"bad_request".into(), &Value::Null),
        "{too_large}"
    );

    assert_eq!(sluice.get("/nowhere").status, 404);
    assert_eq!(sluice.get("/down/x").status, 502);
    let mut client = sluice.client();
    client.send("GET /cut HTTP/1.1\r\nHost: h\r\n\r\n");
    client.until_closed();
    // Requests refused before their head was complete: nonsense, silence within a head, and a client that
    // goes away within a head.
    let mut client = sluice.client();
    client.send("GET /app HTTP/1.1\r\nHost: h\r\n bad\"\n\r\n");
    client.until_closed();
    let mut client = sluice.client();
    client.send("GET /app HTT");
    assert_eq!(client.response("GET").status, 408);
    let mut client = sluice.client();
    client.send("GET /app HTT");
    client.finish();
    client.until_closed();
    // A connection without a request is not an exchange.
    drop(sluice.client());

    let records = &wait_records(&sluice, 10)[4..];
    let found: Vec<(u64, &str, &str)> = records
        .iter()
        .map(|record| {
            let text = |key: &str| record[key].as_str().unwrap_or("-");
            (record["status"].as_u64().unwrap_or(0), text("refused"), text("closed"))
        })
        .collect();
    let expected = [
        (404, "no_route", "-"),
        (502, "connect_failed", "-"),
        (200, "-", "upstream_aborted"),
        (400, "malformed", "bad_request"),
        (408, "request_timeout", "request_header_timeout"),
        (0, "-", "client_aborted"),
    ];
    assert_eq!(found, expected);
    assert_eq!(records[1]["attempts"], 2, "{}", records[1]);
    assert_eq!((&records[3]["method"], &records[3]["path"]), (&Value::Null, &Value::Null));
    assert!(records[3]["request_id"].as_str().is_some_and(|id| id.len() == 32), "{}", records[3]);
    let metrics = sluice.metrics();
    assert_eq!(metrics.sum("sluice_access_log_records_total"), 10.0);
    assert_eq!(metrics.sum("sluice_access_log_records_lost_total"), 0.0);
}

/// A client that has ended its side, and perhaps left, is served for a while. The record does not blame the
/// endpoint, and a status that the client got stays.
#[test]
fn the_record_of_a_client_that_left_says_so() {
    let half_close = "half_close = \"500ms\"";
    // It never answers.
    let origin = Origin::raw(|connection| {
        connection.read_head()?;
        connection.drain();
        Ok(())
    });
    let sluice = Setup::to(origin.address()).with("log", ACCESS).with("listener", half_close).start();
    let start = Instant::now();
    let mut client = sluice.client();
    client.send("GET /late HTTP/1.1\r\nHost: h\r\n\r\n");
    client.finish();
    assert!(client.until_closed().is_empty());
    assert!((400..4000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    eventually(LIMIT, "the endpoint is told", || (origin.open() == 0).then_some(()));
    let records = wait_records(&sluice, 1);
    assert_eq!(records[0]["status"], 499, "{}", records[0]);
    assert_eq!(records[0]["closed"], "client_closed", "{}", records[0]);
    assert_eq!((&records[0]["refused"], &records[0]["attempts"]), (&Value::Null, &1.into()));

    // It has got a status, and is slow to read the rest.
    let origin = Origin::http(|_| Answer::with(Body::ChunkedPattern(1 << 30)));
    let sluice = Setup::to(origin.address()).with("log", ACCESS).with("listener", half_close).start();
    let mut client = sluice.client();
    client.send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\n");
    client.finish();
    std::thread::sleep(Duration::from_millis(1500));
    client.until_closed();
    let records = wait_records(&sluice, 1);
    assert_eq!(records[0]["status"], 200, "{}", records[0]);
    assert_eq!(records[0]["closed"], "client_closed", "{}", records[0]);
}

#[test]
fn queries_are_logged_only_where_that_is_asked_for() {
    let origin = Origin::http(|_| Answer::ok("x"));
    let sluice = Setup::to(origin.address()).with("log", ACCESS).with("log", "query = true").start();
    assert_eq!(sluice.get("/a?b=c&d").status, 200);
    assert_eq!(wait_records(&sluice, 1)[0]["path"], "/a?b=c&d");
}

#[test]
fn the_log_may_go_to_standard_output() {
    let origin = Origin::http(|_| Answer::ok("x"));
    let sluice = Setup::to(origin.address()).with("log", "access = \"stdout\"").start();
    assert_eq!(sluice.get("/here").status, 200);
    let line = eventually(LIMIT, "the record", || {
        sluice.log().lines().find(|line| line.contains("\"path\":\"/here\"")).map(str::to_owned)
    });
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["status"], 200);
}

/// Does the same as logrotate, again and again under load: rename, create, SIGUSR1. A data plane dies
/// meanwhile too.
#[test]
fn rotation_under_load_loses_and_doubles_no_record() {
    const CLIENTS: usize = 4;
    const ROTATIONS: usize = 5;
    let origin = Origin::http(|_| Answer::ok("x"));
    let sluice = Setup::to(origin.address()).workers(2).with("log", ACCESS).start();
    let folder = sluice.run_dir().to_owned();
    let done = std::sync::atomic::AtomicBool::new(false);
    let asked: Vec<BTreeSet<String>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (sluice, done) = (&sluice, &done);
                scope.spawn(move || {
                    let mut connection = sluice.client();
                    let mut asked = BTreeSet::new();
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let path = format!("/{client}/{}", asked.len());
                        assert_eq!(connection.get(&path).status, 200);
                        asked.insert(path);
                    }
                    asked
                })
            })
            .collect();
        for number in 0..ROTATIONS {
            std::thread::sleep(Duration::from_millis(150));
            std::fs::rename(folder.join("access.log"), folder.join(format!("access.log.{number}"))).unwrap();
            sluice.signal(Signal::SIGUSR1);
            eventually(LIMIT, "the new file", || folder.join("access.log").exists().then_some(()));
        }
        std::thread::sleep(Duration::from_millis(150));
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let asked: BTreeSet<String> = asked.into_iter().flatten().collect();
    let files: Vec<_> = (0..ROTATIONS)
        .map(|number| format!("access.log.{number}"))
        .chain(["access.log".to_owned()])
        .collect();
    let all = || files.iter().map(|file| records(&folder.join(file))).collect::<Vec<_>>();
    eventually(LIMIT, "the last records", || (all().iter().flatten().count() >= asked.len()).then_some(()));
    let all = all();
    assert!(
        all.iter().all(|records| !records.is_empty()),
        "each file has some: {:?}",
        all.iter().map(Vec::len).collect::<Vec<_>>()
    );
    let logged: Vec<String> =
        all.iter().flatten().map(|record| record["path"].as_str().unwrap().to_owned()).collect();
    assert_eq!(logged.len(), asked.len());
    assert_eq!(logged.into_iter().collect::<BTreeSet<_>>(), asked);
    assert_eq!(sluice.metrics().sum("sluice_access_log_records_lost_total"), 0.0);

    // A data plane that replaces a dead one appends to the current file.
    let before = records(&folder.join("access.log")).len();
    sluice.kill_data_plane();
    assert_eq!(eventually(LIMIT, "served again", || sluice.client().try_get("/after").ok()).status, 200);
    eventually(LIMIT, "its record", || (records(&folder.join("access.log")).len() > before).then_some(()));
}

#[test]
fn a_log_that_cannot_be_opened_again_stays_and_one_that_cannot_be_opened_at_all_is_an_error() {
    let origin = Origin::http(|_| Answer::ok("x"));
    let sluice = Setup::to(origin.address()).with("log", ACCESS).start();
    let path = sluice.run_dir().join("access.log");
    assert_eq!(sluice.get("/1").status, 200);
    wait_records(&sluice, 1);
    // A folder stands in the file's place, so that no permission, not even root's, helps.
    let old = sluice.run_dir().join("old");
    std::fs::rename(&path, &old).unwrap();
    std::fs::create_dir(&path).unwrap();
    sluice.signal(Signal::SIGUSR1);
    eventually(LIMIT, "the error", || {
        sluice.log().contains("is a folder; the file that was open stays in use").then_some(())
    });
    assert_eq!(sluice.get("/2").status, 200);
    eventually(LIMIT, "the old file goes on", || (records(&old).len() == 2).then_some(()));
    drop(sluice);

    let mut sluice =
        Setup::to(origin.address()).with("log", "access = \"no/such/folder/access.log\"").spawn();
    assert!(!sluice.wait_end(LIMIT).success());
    // A line of the log is JSON.
    let log = sluice.log().replace("\\\"", "\"");
    assert!(
        log.contains("log.access = ")
            && log.contains("no/such/folder/access.log\": its folder does not exist"),
        "{log}"
    );
}

#[test]
fn a_disk_that_takes_nothing_costs_records_and_nothing_else() {
    let origin = Origin::http(|_| Answer::ok("x"));
    let sluice = Setup::to(origin.address()).with("log", "access = \"/dev/full\"").start();
    for _ in 0..20 {
        assert_eq!(sluice.get("/").status, 200);
    }
    eventually(LIMIT, "they are counted", || {
        let lost =
            sluice.metrics().labelled("sluice_access_log_records_lost_total", "reason", "write_failed");
        (lost == 20.0).then_some(())
    });
    eventually(LIMIT, "the log says so once", || {
        sluice.log().contains("the access log cannot be written").then_some(())
    });
    assert_eq!(sluice.log().matches("the access log cannot be written").count(), 1);
}

/// Records that are in the queues when Sluice is told to stop are written before the process ends.
#[test]
fn the_last_records_are_written_at_a_stop() {
    let origin = Origin::http(|_| Answer::ok("x"));
    let mut sluice = Setup::to(origin.address()).with("log", ACCESS).start();
    let path = sluice.run_dir().join("access.log");
    let mut client = sluice.client();
    for _ in 0..50 {
        assert_eq!(client.get("/").status, 200);
    }
    sluice.signal(Signal::SIGINT);
    assert!(sluice.wait_end(LIMIT).success());
    assert_eq!(records(&path).len(), 50);
}

#[test]
fn a_record_says_which_tls_its_client_has() {
    if skip::without_tool("openssl") {
        return;
    }
    const NAME: &str = "edge.example";
    let origin = Origin::http(|_| Answer::ok("hello"));
    let authority = Authority::default();
    let leaf = authority.leaf(Kind::P256, &[NAME, "127.0.0.1"]);
    let sluice = https(Setup::to(origin.address()).with("log", ACCESS), &authority, &[leaf], "").start();
    let mut count = 0;
    for (version, versions) in [("TLSv1.3", [&TLS13]), ("TLSv1.2", [&TLS12])] {
        let config = Arc::new(authority.config(&versions));
        // The second connection resumes the session of the first. A client that connects to an address sends
        // no server name.
        for (name, resumed) in [(NAME, false), (NAME, true), ("127.0.0.1", false)] {
            let mut client = sluice.secured(&config, name);
            assert_eq!((client.get("/first").status, client.get("/second").status), (200, 200));
            let suite = client.stream().conn.negotiated_cipher_suite().unwrap().suite();
            let suite = suite.as_str().unwrap().replace("TLS13_", "TLS_");
            count += 2;
            let records = &wait_records(&sluice, count)[count - 2..];
            for record in records {
                let tls = &record["tls"];
                assert_eq!(
                    (&tls["version"], &tls["cipher"]),
                    (&version.into(), &suite.clone().into()),
                    "{record}"
                );
                let named = if name == NAME { NAME.into() } else { Value::Null };
                assert_eq!((&tls["server_name"], &tls["resumed"]), (&named, &resumed.into()), "{record}");
                assert_eq!(record["protocol"], "HTTP/1.1");
            }
            assert!(records[0]["micros"]["handshake"].as_u64() > Some(0), "{}", records[0]);
            assert!(records[0]["micros"]["accept"].is_u64(), "{}", records[0]);
            assert_eq!(
                records[1]["micros"]["handshake"],
                Value::Null,
                "only the first request of a connection has one"
            );
        }
    }
    // The record shows how long the slow hello took, and the pause after the handshake.
    let config = Arc::new(authority.config(&[&TLS13]));
    let mut socket = TcpStream::connect(sluice.address()).unwrap();
    let mut connection = rustls::ClientConnection::new(config, NAME.try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    socket.write_all(&hello[..100]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    socket.write_all(&hello[100..]).unwrap();
    while connection.is_handshaking() || connection.wants_write() {
        connection.complete_io(&mut socket).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(Client::new(rustls::StreamOwned::new(connection, socket)).get("/").status, 200);
    count += 1;
    let micros = wait_records(&sluice, count)[count - 1]["micros"].clone();
    let phase = |name: &str| micros[name].as_u64().unwrap();
    // The bounds are below the pauses: on a busy machine either end may wake late.
    assert!(phase("handshake") >= 100_000 && phase("accept") >= 100_000, "{micros}");
    // This name has the greatest length that a name may have. A name that nobody can have is none.
    let long = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
    let last = "GET / HTTP/1.1\r\nHost: edge.example\r\nConnection: close\r\n\r\n";
    assert!(sluice.openssl(&["-servername", "a\"b\u{1}"], &[(last, "")]).contains("HTTP/1.1 200"));
    count += 1;
    assert!(wait_records(&sluice, count)[count - 1]["tls"]["server_name"].is_null());
    let shown = sluice.openssl(&["-servername", &long], &[(last, "")]);
    assert!(shown.contains("HTTP/1.1 200"), "{shown}");
    assert_eq!(wait_records(&sluice, count + 1)[count]["tls"]["server_name"], long.as_str());
}
