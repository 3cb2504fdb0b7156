//! Raw requests that are wrong, ambiguous or unusual, through the built binary. The requests that the origin
//! parsed must be the requests that Sluice says it forwarded. `tests/TORTURE.md` shows the same requests
//! through nginx and haproxy, and its column about Sluice must still be true.
//!
//! `SLUICE_WRITE_TORTURE=1 cargo nextest run -p tests -E 'binary(torture)'` writes that table anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cases;
mod peers;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cases::{Case, Expected};
use tests::message;
use tests::origin::{Origin, Response};
use tests::sluice::Setup;
use tests::{eventually, skip};

/// How long the client waits for the answers that have to come. A busy machine may need seconds.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it waits for a first answer that must not come.
const SILENCE: Duration = Duration::from_millis(600);
/// How long it waits for a further answer that must not come.
const ANOTHER: Duration = Duration::from_millis(40);

/// The observed outcome of a case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The statuses that the client got.
    statuses: Vec<u16>,
    /// Whether the proxy closed the connection.
    closed: bool,
    /// The bytes that the origin received, one text for each request. The last text may be an unfinished
    /// request.
    forwarded: Vec<String>,
    /// How many requests the origin parsed.
    parsed: usize,
}

/// Marks bytes at an origin that are no whole request.
const UNFINISHED: &str = "unfinished";

fn recording_origin() -> Origin {
    Origin::http(|_| Response::ok("ok"))
}

/// Sends one case to a proxy in front of `origin`. Waits for so many answers, and until nothing more happens.
fn send(proxy: SocketAddr, origin: &Origin, request: &[u8], answers: usize) -> Seen {
    let (connections, parsed) = (origin.recorded().len(), origin.requests());
    let mut stream = TcpStream::connect(proxy).unwrap();
    // A proxy that refuses early may close before all bytes are written.
    let _ = stream.write_all(request);
    let mut received = Vec::new();
    let mut seen = Seen::default();
    let start = Instant::now();
    let mut heard = start;
    loop {
        seen.statuses = statuses(&received);
        let patience = if seen.statuses.len() < answers {
            ANSWER.saturating_sub(start.elapsed())
        } else if seen.statuses.is_empty() {
            SILENCE.saturating_sub(start.elapsed())
        } else {
            ANOTHER.saturating_sub(heard.elapsed())
        };
        if patience.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => seen.closed = true,
            Ok(count) => {
                received.extend_from_slice(&buffer[..count]);
                heard = Instant::now();
                continue;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) => seen.closed = true,
        }
        break;
    }
    seen.statuses = statuses(&received);
    drop(stream);
    std::thread::sleep(Duration::from_millis(5));
    seen.forwarded = origin.recorded()[connections..].iter().flat_map(|bytes| requests(bytes)).collect();
    seen.parsed = usize::try_from(origin.requests() - parsed).unwrap();
    seen
}

/// The statuses of the whole responses in `bytes`.
fn statuses(bytes: &[u8]) -> Vec<u16> {
    let mut reader = bytes;
    let mut found = Vec::new();
    while let Ok(Some(head)) = message::read_head(&mut reader) {
        let status: u16 =
            head.start.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
        let Ok(framing) = message::framing(&head.fields, message::Framing::Empty) else { break };
        if message::read_body(&mut reader, framing, &mut std::io::sink()).is_err() {
            break;
        }
        found.push(status);
    }
    found
}

/// The requests that came over one connection, without the fields that every proxy adds.
fn requests(bytes: &[u8]) -> Vec<String> {
    const ADDED: [&str; 6] =
        ["via", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-request-id", "connection"];
    let mut rest = bytes;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let before = rest;
        let mut body = Vec::new();
        let head = message::read_head(&mut rest).ok().flatten().and_then(|head| {
            let framing = message::framing(&head.fields, message::Framing::Empty).ok()?;
            let trailers = message::read_body(&mut rest, framing, &mut body).ok()?;
            Some((head, trailers))
        });
        let Some((head, trailers)) = head else {
            let line = before.split(|&byte| byte == b'\r').next().unwrap_or_default();
            found.push(format!("{UNFINISHED}: {}", String::from_utf8_lossy(line)));
            break;
        };
        let mut text = head.start.clone();
        let shown = head.fields.iter().filter(|(name, _)| !ADDED.contains(&name.to_lowercase().as_str()));
        for (name, value) in shown {
            let _ = write!(text, "\r\n{name}: {value}");
        }
        if !body.is_empty() {
            let _ = write!(text, "\r\n\r\n{}", String::from_utf8_lossy(&body));
        }
        for (name, value) in trailers {
            let _ = write!(text, "\r\n{name}: {value}");
        }
        found.push(text);
    }
    found
}

fn meets(seen: &Seen, expected: Expected) -> bool {
    match expected {
        Expected::Refused(status) => seen.statuses == [status] && seen.closed && seen.forwarded.is_empty(),
        Expected::Answered(status) => seen.statuses == [status] && !seen.closed && seen.forwarded.is_empty(),
        Expected::Forwarded(count) => {
            let ok = seen.statuses.iter().filter(|&&status| status == 200).count();
            // Bytes after the last request may be an invalid request, which is refused.
            ok == count
                && seen.parsed == count
                && seen.forwarded.len() == count
                && seen.statuses.len() <= count + 1
        }
        Expected::Waits => {
            seen.statuses.is_empty() && !seen.closed && seen.forwarded.len() <= 1 && seen.parsed == 0
        }
    }
}

#[test]
fn every_case_ends_as_it_must_and_the_origin_saw_what_was_forwarded() {
    let parsed_by_origin = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&parsed_by_origin);
    let origin = Origin::http(move |request| {
        let field = |name| request.field(name).unwrap_or_default().to_owned();
        let path = request.target.split('?').next().unwrap_or_default().to_owned();
        noted.lock().unwrap().push([field("x-request-id"), request.method.clone(), field("host"), path]);
        Response::ok("ok")
    });
    // Each request has a new connection to the origin, so that one connection's bytes belong to one case.
    let setup = Setup::to(origin.address())
        .with("upstream.pool", "max_idle = 0")
        .with("log", "access = \"access.log\"");
    let sluice = setup.start();
    let all = cases::all();
    assert!(all.len() >= 60, "{} cases", all.len());
    let before = sluice.metrics();
    let mut wrong = String::new();
    let mut results = Vec::new();
    for case in &all {
        let seen = send(sluice.address(), &origin, &case.request, case.expected.answers());
        if !meets(&seen, case.expected) {
            let _ = writeln!(
                wrong,
                "{}: {}: {seen:?} instead of {:?}",
                case.group,
                shown(&case.request, 200),
                case.expected
            );
        }
        results.push(seen);
    }
    assert!(wrong.is_empty(), "\n{wrong}");

    // The requests that the origin parsed are the requests that Sluice logged as answered by it, in the same
    // order. Sluice's counters agree, and the origin received nothing else.
    let log = sluice.run_dir().join("access.log");
    let answered = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let records = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let forwarded = records.filter(|record| record["endpoint"].is_string() && record["status"] == 200);
        let named = |record: serde_json::Value| {
            ["request_id", "method", "host", "path"]
                .map(|key| record[key].as_str().unwrap_or_default().to_owned())
        };
        forwarded.map(named).collect::<Vec<_>>()
    };
    let noted = parsed_by_origin.lock().unwrap().clone();
    eventually(Duration::from_secs(5), "the log is written", || {
        (answered().len() >= noted.len()).then_some(())
    });
    assert_eq!(answered(), noted);
    let grown = |name: &str| {
        let after = sluice.metrics();
        after.sum(name) - before.sum(name)
    };
    let parsed: usize = results.iter().map(|seen| seen.parsed).sum();
    #[expect(clippy::cast_precision_loss, reason = "a hundred requests")]
    let expected = parsed as f64;
    let answered_here = all.iter().filter(|case| case.expected == Expected::Answered(200)).count();
    #[expect(clippy::cast_precision_loss, reason = "a hundred requests")]
    let answered_here = answered_here as f64;
    eventually(Duration::from_secs(5), "every exchange is counted", || {
        (grown("sluice_responses_2xx_total") - answered_here >= expected).then_some(())
    });
    assert!((grown("sluice_responses_2xx_total") - answered_here - expected).abs() < f64::EPSILON);
    let unparsed: Vec<_> =
        results.iter().flat_map(|seen| &seen.forwarded).filter(|text| text.starts_with(UNFINISHED)).collect();
    let waiting = all.iter().filter(|case| case.expected == Expected::Waits).count();
    assert!(unparsed.len() <= waiting, "{unparsed:?}");
    assert!(sluice.metrics().sum("sluice_session_panics_total") < 0.5);

    let document = document();
    let text = std::fs::read_to_string(&document).unwrap();
    if std::env::var_os("SLUICE_WRITE_TORTURE").is_some() {
        std::fs::write(&document, with_table(&text, &table(&all, &results))).unwrap();
        return;
    }
    for (case, seen) in all.iter().zip(&results) {
        let row = format!("| {} | {} |", shown(&case.request, CUT), told(seen, None));
        assert!(
            text.contains(&row),
            "tests/TORTURE.md lacks this row; see the head of tests/torture/main.rs:\n{row}"
        );
    }
}

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("TORTURE.md")
}

/// How many bytes of a request the table shows.
const CUT: usize = 160;
const BEGIN: &str = "<!-- the table: written by the command above -->\n";
const END: &str = "<!-- end of the table -->\n";

fn with_table(text: &str, table: &str) -> String {
    let (head, rest) = text.split_once(BEGIN).expect("a place for the table");
    let (_, tail) = rest.split_once(END).expect("its end");
    format!("{head}{BEGIN}{table}{END}{tail}")
}

/// The table, with nginx and haproxy beside Sluice.
fn table(all: &[Case], ours: &[Seen]) -> String {
    assert!(!skip::without_tool("nginx") && !skip::without_tool("haproxy"), "the table needs both");
    let through = |start: fn(SocketAddr) -> peers::Peer| -> Vec<Seen> {
        let origin = recording_origin();
        let peer = start(origin.address());
        // `start` probed the listening socket, which made a connection. This waits until that is over.
        std::thread::sleep(Duration::from_millis(200));
        all.iter().map(|case| send(peer.address(), &origin, &case.request, 0)).collect()
    };
    let (nginx, haproxy) = (through(peers::Peer::nginx), through(peers::Peer::haproxy));
    let mut out = String::new();
    let mut group = "";
    for (index, case) in all.iter().enumerate() {
        if case.group != group {
            group = case.group;
            let versions = (peers::version("nginx"), peers::version("haproxy"));
            let _ = write!(
                out,
                "\n### {group}\n\n| request | Sluice | nginx {} | haproxy {} | why |\n\
                 |---|---|---|---|---|\n",
                versions.0, versions.1
            );
        }
        let us = &ours[index];
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} |",
            shown(&case.request, CUT),
            told(us, None),
            told(&nginx[index], Some(us)),
            told(&haproxy[index], Some(us)),
            case.why
        );
    }
    out.push('\n');
    let refused = |seen: &[Seen]| seen.iter().filter(|seen| seen.forwarded.is_empty()).count();
    let _ = writeln!(
        out,
        "{} cases. Nothing at the origin: Sluice {}, nginx {}, haproxy {}.\n",
        all.len(),
        refused(ours),
        refused(&nginx),
        refused(&haproxy)
    );
    out
}

/// The outcome of a case as a table cell, shortened if it equals the outcome of Sluice.
fn told(seen: &Seen, us: Option<&Seen>) -> String {
    let statuses: Vec<String> = seen.statuses.iter().map(u16::to_string).collect();
    let mut cell = match (statuses.is_empty(), seen.closed) {
        (true, true) => "closed".to_owned(),
        (true, false) => "waits".to_owned(),
        _ => statuses.join(", "),
    };
    let same = |us: &Seen| {
        let same = |(ours, theirs): (&String, &String)| ours.eq_ignore_ascii_case(theirs);
        us.forwarded.len() == seen.forwarded.len() && us.forwarded.iter().zip(&seen.forwarded).all(same)
    };
    if us.is_some_and(|us| same(us) && !seen.forwarded.is_empty()) {
        cell.push_str(", the same");
    } else {
        for text in &seen.forwarded {
            let _ = write!(cell, " {}", shown(text.as_bytes(), CUT));
        }
    }
    cell
}

/// Shows bytes as code in a table cell.
fn shown(bytes: &[u8], max: usize) -> String {
    let mut text = String::new();
    for &byte in bytes.iter().take(max) {
        match byte {
            b'\r' => text.push_str("\\r"),
            b'\n' => text.push_str("\\n"),
            b'\t' => text.push_str("\\t"),
            b'|' => text.push_str("\\x7c"),
            b'`' => text.push_str("\\x60"),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    if bytes.len() > max {
        let _ = write!(text, "… {} bytes", bytes.len());
    }
    // Markdown strips one space at each end of a code span.
    if text.starts_with(' ') || text.ends_with(' ') { format!("` {text} `") } else { format!("`{text}`") }
}

#[test]
fn the_tests_that_the_document_names_exist() {
    let text = std::fs::read_to_string(document()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut named = 0;
    for span in text.split('`').skip(1).step_by(2) {
        let Some((file, name)) = span.split_once("::") else { continue };
        if Path::new(file).extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source =
            std::fs::read_to_string(folder.join(file)).unwrap_or_else(|error| panic!("{span}: {error}"));
        assert!(source.contains(&format!("fn {name}(")), "{span} is not there");
        named += 1;
    }
    assert!(named > 40, "{named} tests are named");
}
