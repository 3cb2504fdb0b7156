//! Everything at once for any length of time: all kinds of clients, good and bad, against good and bad
//! endpoints, through the real XDP program. The timeouts are a sixtieth of their defaults. At the end Sluice
//! holds the same resources as at the start. `cargo xtask soak --minutes 20` runs it longer than the tests
//! do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tests::client::{Client, Dial};
use tests::netns::Netns;
use tests::origin::{Body, Connection, Origin, Request, Response};
use tests::pattern::{Pattern, digest, expected};
use tests::sluice::{Setup, Sluice};
use tests::{eventually, skip, threads};

/// How long the test runs, in seconds, unless SLUICE_SOAK_SECONDS is set.
const SECONDS: u64 = 12;
const VISITORS: u64 = 6;
/// How long each client waits for any read or write.
const LIMIT: Duration = Duration::from_secs(10);
/// Body lengths in bytes: none, less than a buffer, about one buffer, several, and enough for blocks.
const LENGTHS: [u64; 6] = [0, 100, 4_096, 40_000, 300_000, 1 << 20];
/// How far memory may grow between the middle of a run and its end, in bytes, in addition to a twentieth. The
/// allocator's stock of each size fills slowly, up to 8.5 MiB for each of two workers
/// (`supervisor/child.rs`).
const SLACK: u64 = 17 << 20;
/// The most memory that the data plane may hold in a run of any length, in bytes: [`SLACK`], the rings' 8
/// MiB, the access log's 8 MiB, and the program with its clients.
const RESIDENT_MAX: u64 = 64 << 20;

/// The defaults divided by sixty. Timeouts that a busy machine could miss are a little longer.
const TIMEOUTS: &str =
    "request_header = \"1500ms\"\nrequest_body = \"2s\"\nkeep_alive = \"1250ms\"\nsend = \"2s\"";

/// How a client uses one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Visit {
    KeepAlive,
    Pipeline,
    Upload,
    ChunkedUpload,
    Download,
    OneRequest,
    AbortedDownload,
    AbortedUpload,
    Garbage,
    SlowHead,
    Idle,
    Broken,
    HalfClose,
    Tunnel,
}

impl Visit {
    const ALL: [Self; 14] = [
        Self::KeepAlive,
        Self::Pipeline,
        Self::Upload,
        Self::ChunkedUpload,
        Self::Download,
        Self::OneRequest,
        Self::AbortedDownload,
        Self::AbortedUpload,
        Self::Garbage,
        Self::SlowHead,
        Self::Idle,
        Self::Broken,
        Self::HalfClose,
        Self::Tunnel,
    ];
}

/// xorshift64. The order of visits is the same in every run; their timing is not.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    requests: AtomicU64,
    visits: Mutex<BTreeMap<Visit, u64>>,
    /// Connections that are left open until the proxy closes them.
    left_open: Mutex<Vec<(Instant, Client)>>,
    digests: BTreeMap<u64, String>,
}

fn answer(request: &Request) -> Response {
    let length = request.target.rsplit('/').next().and_then(|last| last.parse().ok()).unwrap_or(0);
    match request.target.split('/').nth(1) {
        Some("pattern") => Response::with(Body::Pattern(length)),
        Some("chunked") => Response::with(Body::ChunkedPattern(length)),
        Some("echo") => Response::ok(format!("{} {}", request.length, request.sha256)),
        Some("closes") => Response::ok("bye").then_close(),
        _ => Response::ok("small"),
    }
}

/// An endpoint that breaks in a different way on each connection, in turn.
fn breaks(connection: &mut Connection) -> io::Result<()> {
    connection.read_head()?;
    match connection.number % 5 {
        0 => {}
        1 => connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ncut")?,
        2 => connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n")?,
        3 => connection.write_all(b"nonsense\r\n\r\n")?,
        // The endpoint stays silent until the route's timeout.
        _ => connection.drain(),
    }
    Ok(())
}

/// An endpoint that switches to a protocol which sends all bytes back.
fn echoes(connection: &mut Connection) -> io::Result<()> {
    connection.read_head()?;
    connection
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
    let mut piece = [0; 4096];
    loop {
        match connection.read(&mut piece)? {
            0 => return Ok(()),
            count => connection.write_all(&piece[..count])?,
        }
    }
}

/// Makes visits until told to stop. Any unexpected result panics.
fn visitor(address: SocketAddr, seed: u64, shared: &Shared) {
    let mut random = Random(seed);
    while !shared.stop.load(Ordering::Relaxed) {
        let source = Ipv4Addr::new(
            127,
            1 + u8::try_from(random.below(4)).unwrap(),
            u8::try_from(random.below(200)).unwrap(),
            7,
        );
        let dial = Dial { source: Some(source.into()), receive_buffer: None };
        let client =
            Client::over(dial.connect(address, LIMIT).unwrap_or_else(|error| panic!("connect: {error}")))
                .unwrap();
        let visit = Visit::ALL[usize::try_from(random.below(Visit::ALL.len() as u64)).unwrap()];
        if let Some(client) = go(visit, client, &mut random, shared) {
            shared.left_open.lock().unwrap().push((Instant::now(), client));
        }
        *shared.visits.lock().unwrap().entry(visit).or_default() += 1;
    }
}

/// Makes one visit. Returns the client if it stays until the proxy closes its connection.
fn go(visit: Visit, mut client: Client, random: &mut Random, shared: &Shared) -> Option<Client> {
    let length = LENGTHS[usize::try_from(random.below(LENGTHS.len() as u64)).unwrap()];
    let count = |requests: u64| shared.requests.fetch_add(requests, Ordering::Relaxed);
    match visit {
        Visit::KeepAlive => {
            let requests = 1 + random.below(30);
            for number in 0..requests {
                let target = if number % 7 == 6 { "/closes" } else { "/small" };
                assert_eq!(client.get(target).status, 200);
            }
            count(requests);
        }
        Visit::Pipeline => {
            let requests = 2 + random.below(12);
            for _ in 0..requests {
                client.send("GET /small HTTP/1.1\r\nHost: soak.example\r\n\r\n");
            }
            for _ in 0..requests {
                assert_eq!(client.response("GET").text(), "small");
            }
            count(requests);
        }
        Visit::Upload | Visit::ChunkedUpload => {
            let framing = match visit {
                Visit::Upload => format!("Content-Length: {length}"),
                _ => "Transfer-Encoding: chunked".to_owned(),
            };
            client.send(format!("POST /echo HTTP/1.1\r\nHost: soak.example\r\n{framing}\r\n\r\n"));
            let mut pattern = Pattern::new(length);
            let mut piece = vec![0; 10_000];
            loop {
                let got = pattern.read(&mut piece).unwrap();
                if visit == Visit::ChunkedUpload {
                    client.send(format!("{got:x}\r\n"));
                    client.send(&piece[..got]);
                    client.send("\r\n");
                } else {
                    client.send(&piece[..got]);
                }
                if got == 0 {
                    break;
                }
            }
            assert_eq!(client.response("POST").text(), format!("{length} {}", shared.digests[&length]));
            count(1);
        }
        Visit::Download => {
            for kind in ["pattern", "chunked"] {
                let response = client.get(&format!("/{kind}/{length}"));
                assert_eq!(
                    digest(response.body.as_slice()).unwrap(),
                    (length, shared.digests[&length].clone())
                );
            }
            count(2);
        }
        Visit::OneRequest => {
            client.send("GET /small HTTP/1.1\r\nHost: soak.example\r\nConnection: close\r\n\r\n");
            assert_eq!(client.response("GET").text(), "small");
            assert!(client.until_closed().is_empty());
            count(1);
        }
        Visit::AbortedDownload => {
            client.send("GET /pattern/1048576 HTTP/1.1\r\nHost: soak.example\r\n\r\n");
            let mut some = [0; 5_000];
            let _ = client.socket().read(&mut some);
            client.reset();
            count(1);
        }
        Visit::AbortedUpload => {
            client.send("POST /echo HTTP/1.1\r\nHost: soak.example\r\nContent-Length: 100000\r\n\r\n");
            client.send([b'x'; 3_000]);
            client.reset();
        }
        Visit::Garbage => {
            client.send("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
            assert_eq!(client.response("GET").status, 400);
            client.until_closed();
        }
        Visit::SlowHead => {
            client.send("GET / HT");
            return Some(client);
        }
        Visit::Idle => {
            if random.below(2) == 0 {
                assert_eq!(client.get("/small").status, 200);
                count(1);
            }
            return Some(client);
        }
        Visit::Broken => {
            if let Ok(response) = client.try_get("/broken") {
                assert!(matches!(response.status, 502 | 504), "{response:?}");
            }
            count(1);
        }
        Visit::HalfClose => {
            client.send("GET /pattern/40000 HTTP/1.1\r\nHost: soak.example\r\n\r\n");
            client.finish();
            assert_eq!(client.response("GET").body.len(), 40_000);
            count(1);
        }
        Visit::Tunnel => {
            client.send(
                "GET /tunnel HTTP/1.1\r\nHost: soak.example\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
            );
            assert_eq!(client.response("GET").status, 101);
            for _ in 0..=random.below(20) {
                client.send([b't'; 1_000]);
            }
            client.finish();
            let echoed = client.until_closed();
            assert!(
                echoed.len().is_multiple_of(1_000)
                    && !echoed.is_empty()
                    && echoed.iter().all(|&byte| byte == b't')
            );
            count(1);
        }
    }
    None
}

/// Takes connections that were left open and checks that the proxy has closed each within its timeouts.
fn reap(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        loop {
            let due = {
                let mut open = shared.left_open.lock().unwrap();
                if open.first().is_some_and(|(since, _)| since.elapsed() > Duration::from_secs(4)) {
                    open.remove(0)
                } else {
                    break;
                }
            };
            let (_, mut client) = due;
            let rest = String::from_utf8(client.until_closed()).unwrap();
            assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408 "), "{rest}");
        }
    }
}

/// Bans an unused source for a second. Every second ban is lifted again.
fn ban(sluice: &Sluice, number: u64) {
    let source = format!("127.99.{}.{}", number / 250 % 250, number % 250);
    let run_dir = sluice.run_dir().to_str().unwrap();
    let _ = tests::sluice::command(&["ban", &source, "--for", "1s", "--run-dir", run_dir]).success();
    if number.is_multiple_of(2) {
        let _ = tests::sluice::command(&["unban", &source, "--run-dir", run_dir]).success();
    }
}

/// The resources of both processes at one moment, and the size of the guard's tables.

#[derive(Clone, Copy, Debug)]
struct Sample {
    after: Duration,
    supervisor_bytes: u64,
    data_plane_bytes: u64,
    supervisor_descriptors: usize,
    data_plane_descriptors: usize,
    buffers: f64,
    budget: f64,
    counted: f64,
    bans: f64,
}

fn resident(pid: u32) -> u64 {
    let field = threads::status_field(pid, "VmRSS").expect("the process lives");
    field.split(' ').next().unwrap().parse::<u64>().unwrap() * 1024
}

fn sample(sluice: &Sluice, start: Instant) -> Sample {
    let (supervisor, data_plane) = (sluice.pid(), sluice.data_plane_pid());
    let holdings = sluice.holdings();
    let metrics = sluice.metrics();
    Sample {
        after: start.elapsed(),
        supervisor_bytes: resident(supervisor),
        data_plane_bytes: resident(data_plane),
        supervisor_descriptors: tests::descriptors(supervisor),
        data_plane_descriptors: tests::descriptors(data_plane),
        buffers: holdings.buffers,
        budget: holdings.budget,
        counted: metrics.sum("sluice_guard_connections"),
        bans: metrics.sum("sluice_guard_bans"),
    }
}

/// The median of `field` over some samples.
fn median<T: PartialOrd + Copy>(samples: &[Sample], field: impl Fn(&Sample) -> T) -> T {
    let mut values: Vec<T> = samples.iter().map(field).collect();
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

fn expect_flat(samples: &[Sample]) {
    let quarter = samples.len() / 4;
    let quarters: Vec<&[Sample]> =
        samples.chunks(quarter.max(1)).filter(|chunk| chunk.len() >= quarter).collect();
    eprintln!(
        "quarter | supervisor KiB, descriptors | data plane KiB, descriptors | buffers on loan | budget \
         bytes | counted by the guard, bans (medians)"
    );
    for (number, part) in quarters.iter().enumerate() {
        eprintln!(
            "{} (to {:.0} s) | {}, {} | {}, {} | {} | {} | {}, {}",
            number + 1,
            part.last().unwrap().after.as_secs_f64(),
            median(part, |sample| sample.supervisor_bytes) >> 10,
            median(part, |sample| sample.supervisor_descriptors),
            median(part, |sample| sample.data_plane_bytes) >> 10,
            median(part, |sample| sample.data_plane_descriptors),
            median(part, |sample| sample.buffers),
            median(part, |sample| sample.budget),
            median(part, |sample| sample.counted),
            median(part, |sample| sample.bans),
        );
    }
    // The memory of allocators and pools fills in the first half of the run.
    let (middle, last) = (quarters[1], quarters[3]);
    for (who, field) in [
        ("supervisor", (|sample: &Sample| sample.supervisor_bytes) as fn(&Sample) -> u64),
        ("data plane", |sample: &Sample| sample.data_plane_bytes),
    ] {
        let (before, after) = (median(middle, field), median(last, field));
        assert!(after <= before + before / 20 + SLACK, "the {who} grew from {before} to {after} bytes");
    }
    let resident = median(last, |sample| sample.data_plane_bytes);
    assert!(resident <= RESIDENT_MAX, "the data plane holds {resident} bytes");
    let descriptors = |part: &[Sample]| median(part, |sample| sample.supervisor_descriptors);
    assert!(descriptors(last) <= descriptors(middle) + 2, "the supervisor's descriptors grew");
}

#[test]
fn mixed_load_leaves_everything_as_it_was() {
    if skip::without_root() || skip::without_descriptors(10_000) {
        return;
    }
    tests::raise_descriptor_limit();
    let seconds =
        std::env::var("SLUICE_SOAK_SECONDS").ok().map_or(SECONDS, |text| text.parse().expect("seconds"));
    let namespace = Arc::new(Netns::new());
    let good: Vec<Origin> = namespace.run(|| (0..2).map(|_| Origin::http(answer).without_record()).collect());
    let broken = namespace.run(|| Origin::raw(breaks).without_record());
    let echo = namespace.run(|| Origin::raw(echoes).without_record());
    let endpoints: Vec<SocketAddr> = good.iter().map(Origin::address).collect();
    // Endpoints that close unannounced have a pool of their own. A POST may meet such a close on its way; the
    // answer is then rightly 502.
    let tables = format!(
        "\n[[route]]\npath_prefix = \"/closes\"\nupstream = \"closes\"\n[[upstream]]\nname = \"closes\"\n\
         endpoints = [\"{}\"]\n\
         [[route]]\npath_prefix = \"/broken\"\nupstream = \"broken\"\ntimeout = \"1s\"\n\
         body_timeout = \"1s\"\n\
         [[upstream]]\nname = \"broken\"\nendpoints = [\"{}\"]\n\
         [[route]]\npath_prefix = \"/tunnel\"\nupstream = \"echo\"\n[[upstream]]\nname = \"echo\"\n\
         endpoints = [\"{}\"]\n",
        endpoints[0],
        broken.address(),
        echo.address()
    );
    let sluice = Setup::to_all(&endpoints)
        .inside(&namespace, IpAddr::V4(Ipv4Addr::LOCALHOST))
        .workers(2)
        .with("process", "max_connections = 4000")
        // Few buffers: a buffer takes memory once it was used, so growth until all were used is no leak.
        .with("ring", "buffers = 512")
        .with("log", "access = \"/dev/null\"")
        .with(
            "guard",
            "interfaces = [\"lo\"]\nmode = \"generic\"\nsyn_rate_per_ip = \"100000/s\"\n\
            syn_burst_per_ip = 100000\nconnections_per_ip = 10000",
        )
        .with("listener.timeouts", TIMEOUTS)
        .with("upstream.pool", "idle_timeout = \"1s\"\nmax_lifetime = \"60s\"")
        .append(&tables)
        .start();
    assert_eq!(sluice.get("/small").status, 200);
    let before = sluice.holdings();
    let shared = Shared {
        digests: LENGTHS.iter().map(|length| (*length, expected(*length))).collect(),
        ..Shared::default()
    };
    let start = Instant::now();
    let samples = std::thread::scope(|scope| {
        let visitors: Vec<_> = (1..=VISITORS)
            .map(|seed| {
                let (namespace, shared, address) = (&namespace, &shared, sluice.address());
                scope.spawn(move || namespace.run(|| visitor(address, seed, shared)))
            })
            .collect();
        let reaper = scope.spawn(|| reap(&shared));
        let mut samples = Vec::new();
        while start.elapsed() < Duration::from_secs(seconds)
            && !visitors.iter().any(|visitor| visitor.is_finished())
        {
            samples.push(sample(&sluice, start));
            ban(&sluice, samples.len() as u64);
            std::thread::sleep(Duration::from_millis(250));
        }
        shared.stop.store(true, Ordering::Relaxed);
        for thread in visitors {
            thread.join().unwrap();
        }
        reaper.join().unwrap();
        samples
    });
    shared.left_open.lock().unwrap().clear();
    let visits = shared.visits.lock().unwrap();
    let connections: u64 = visits.values().sum();
    eprintln!(
        "{connections} connections and {} requests in {seconds} s: {visits:?}",
        shared.requests.load(Ordering::Relaxed)
    );
    assert_eq!(visits.len(), Visit::ALL.len(), "every kind was there");
    expect_flat(&samples);
    sluice.expect_back_to(before);
    // The admin connection of this scrape still counts.
    eventually(LIMIT, "the guard's tables are empty", || {
        let metrics = sluice.metrics();
        (metrics.sum("sluice_guard_connections") < 1.5 && metrics.sum("sluice_guard_bans") < 0.5)
            .then_some(())
    });
    let metrics = sluice.metrics();
    assert!(metrics.sum("sluice_session_panics_total") < 0.5);
}
