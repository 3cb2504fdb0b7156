//! One round of one proxy: make the load, read the kernel's figures at two instants, and return numbers per
//! request, connection or GiB. Nothing here compares or judges.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use super::cpu::{self, Core};
use super::http;
use super::load::{self, Upload, Wrk};
use super::peers::{Kind, Origin, Proxy};
use super::stage::{LOAD_CPU, PROXY_CPU, Stage};

/// The numbers of one round, by the names below.
pub(super) type Figures = BTreeMap<&'static str, f64>;

/// Microseconds of the whole process tree for each request. If a connection carries one request, that is the
/// cost of a connection.
pub(super) const CPU_US: &str = "cpu_us";
/// Milliseconds of the whole process tree for each GiB of body.
pub(super) const CPU_MS_PER_GIB: &str = "cpu_ms_per_gib";
/// Requests a second.
pub(super) const RATE: &str = "rate";
/// GiB of body a second.
pub(super) const GIB_RATE: &str = "gib_per_s";
/// The share of time in which the load's core was busy, 0 to 1.
pub(super) const LOAD_CORE: &str = "load_core";
/// The proxy's own share of the proxies' core, 0 to 1.
pub(super) const PROXY_CORE: &str = "proxy_core";
/// The share of that core that other processes used. On a quiet machine it is close to zero.
pub(super) const OTHERS: &str = "others";
/// Latency in microseconds.
pub(super) const P50: &str = "p50_us";
pub(super) const P99: &str = "p99_us";
pub(super) const P999: &str = "p999_us";
pub(super) const MAX: &str = "max_us";
/// Bytes of memory for each idle connection, and how many connections there were.
pub(super) const IDLE_BYTES: &str = "bytes_per_connection";
pub(super) const IDLE_COUNT: &str = "connections";
/// The proxy's bytes of memory before the connections.
pub(super) const BASE_BYTES: &str = "bytes_before";
/// Calls of io_uring_enter(2) and completions, for each request.
pub(super) const ENTERS: &str = "enters";
pub(super) const COMPLETIONS: &str = "completions";
/// Requests answered during the whole run of load, including outside of the measured time.
pub(super) const SERVED: &str = "served";

/// The figures of a proxy at one instant under load.
struct Reading {
    at: Instant,
    cpu: f64,
    /// The requests or bytes of the load so far.
    count: u64,
    proxy_core: Core,
    load_core: Core,
}

impl Reading {
    /// Takes a reading. Counting takes a moment, so the count is assigned to the middle of it.
    fn take(pids: &[u32], count: impl FnOnce() -> Result<u64, String>) -> Result<Self, String> {
        let (before, at_before) = (cpu::micros(pids)?, Instant::now());
        let count = count()?;
        let (after, at_after) = (cpu::micros(pids)?, Instant::now());
        Ok(Self {
            at: at_before + (at_after - at_before) / 2,
            cpu: f64::midpoint(before, after),
            count,
            proxy_core: Core::read(PROXY_CPU)?,
            load_core: Core::read(LOAD_CPU)?,
        })
    }

    /// The figures that every kind of load has: seconds, microseconds, and how busy the cores were.
    fn since(&self, earlier: &Self) -> (f64, f64, Figures) {
        let (seconds, cpu) = ((self.at - earlier.at).as_secs_f64(), self.cpu - earlier.cpu);
        let own = cpu / 1e6 / seconds;
        let figures = Figures::from([
            (PROXY_CORE, own),
            (LOAD_CORE, self.load_core.utilisation_since(earlier.load_core)),
            (OTHERS, (self.proxy_core.utilisation_since(earlier.proxy_core) - own).max(0.0)),
        ]);
        (seconds, cpu, figures)
    }
}

/// How long it takes until all connections are open and the pools are filled.
fn settling(connections: usize) -> Duration {
    Duration::from_millis(300 + connections as u64 / 2)
}

/// CPU per request and rate, over `seconds` within a longer run of wrk. So the cost of opening and closing
/// the connections is not included.
pub(super) fn requests(
    stage: &Stage,
    origin: &mut Origin,
    proxy: &Proxy,
    wrk: &Wrk,
    seconds: f64,
) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    let process = wrk.start(stage, proxy.address)?;
    stage.sleep(settling(wrk.connections))?;
    let ring_before = ring_counters(proxy)?;
    let first = Reading::take(&pids, || origin.requests())?;
    stage.sleep(Duration::from_secs_f64(seconds))?;
    let last = Reading::take(&pids, || origin.requests())?;
    let ring_after = ring_counters(proxy)?;
    let served = wrk.finish(stage, process)?;
    let count = (last.count - first.count).saturating_sub(1) as f64; // less the question itself
    if count < 1.0 {
        return Err("no request was served".into());
    }
    let (elapsed, cpu, mut figures) = last.since(&first);
    figures.extend([(CPU_US, cpu / count), (RATE, count / elapsed), (SERVED, served as f64)]);
    if let (Some(before), Some(after)) = (ring_before, ring_after) {
        figures.extend(after.since(&before));
    }
    Ok(figures)
}

/// Sluice's counters of its ring.
struct RingCounters {
    requests: u64,
    enters: u64,
    completions: u64,
}

impl RingCounters {
    fn since(&self, earlier: &Self) -> [(&'static str, f64); 2] {
        let requests = (self.requests - earlier.requests).max(1) as f64;
        [
            (ENTERS, (self.enters - earlier.enters) as f64 / requests),
            (COMPLETIONS, (self.completions - earlier.completions) as f64 / requests),
        ]
    }
}

/// Reads Sluice's counters; other proxies have none.
fn ring_counters(proxy: &Proxy) -> Result<Option<RingCounters>, String> {
    if proxy.kind != Kind::Sluice {
        return Ok(None);
    }
    let text = http::get(proxy.admin, "/metrics")?;
    let value = |name: &str| http::metric(&text, name).ok_or_else(|| format!("/metrics has no {name}"));
    Ok(Some(RingCounters {
        requests: value("sluice_requests_total")?,
        enters: value("sluice_ring_enters_total")?,
        completions: value("sluice_ring_completions_total")?,
    }))
}

const GIB: f64 = (1u64 << 30) as f64;

/// CPU per GiB of responses. Small bodies are counted by requests, large ones by the bytes that wrk has read
/// between two instants.
pub(super) fn downloads(
    stage: &Stage,
    origin: &mut Origin,
    proxy: &Proxy,
    (wrk, size): (&Wrk, u64),
    seconds: f64,
) -> Result<Figures, String> {
    if size < 1 << 20 {
        let mut figures = requests(stage, origin, proxy, wrk, seconds)?;
        let requests_a_gib = GIB / size as f64;
        figures.insert(CPU_MS_PER_GIB, figures[CPU_US] * requests_a_gib / 1e3);
        figures.insert(GIB_RATE, figures[RATE] / requests_a_gib);
        return Ok(figures);
    }
    let pids = cpu::tree(proxy.process.pid());
    let process = wrk.start(stage, proxy.address)?;
    let carried =
        window(stage, &pids, settling(wrk.connections), seconds, || cpu::bytes_read(process.pid()))?;
    wrk.finish(stage, process)?;
    bytes_figures(&carried)
}

/// CPU per GiB of request bodies, by the bytes that h2load has written between two instants.
pub(super) fn uploads(
    stage: &Stage,
    proxy: &Proxy,
    file: &Path,
    connections: usize,
    seconds: f64,
) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    let upload = Upload { file, connections };
    let settling = settling(connections);
    let process = upload.start(stage, proxy.address, settling + Duration::from_secs_f64(seconds))?;
    let carried = window(stage, &pids, settling, seconds, || cpu::bytes_written(process.pid()))?;
    Upload::finish(stage, process)?;
    bytes_figures(&carried)
}

/// Two readings under load, `seconds` apart.
fn window(
    stage: &Stage,
    pids: &[u32],
    settling: Duration,
    seconds: f64,
    count: impl Fn() -> Result<u64, String>,
) -> Result<[Reading; 2], String> {
    stage.sleep(settling)?;
    let first = Reading::take(pids, &count)?;
    stage.sleep(Duration::from_secs_f64(seconds))?;
    Ok([first, Reading::take(pids, &count)?])
}

fn bytes_figures([first, last]: &[Reading; 2]) -> Result<Figures, String> {
    let gib = (last.count - first.count) as f64 / GIB;
    if gib <= 0.0 {
        return Err("no body was carried".into());
    }
    let (elapsed, cpu, mut figures) = last.since(first);
    figures.extend([(CPU_MS_PER_GIB, cpu / gib / 1e3), (GIB_RATE, gib / elapsed)]);
    Ok(figures)
}

/// Latencies when requests arrive at a fixed rate.
pub(super) fn latency(
    stage: &Stage,
    proxy: &Proxy,
    rate: u64,
    connections: usize,
    seconds: f64,
) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    let first = Reading::take(&pids, || Ok(0))?;
    let report = load::arrivals(stage, proxy.address, rate, connections, seconds.ceil() as u64)?;
    let last = Reading::take(&pids, || Ok(report.completed))?;
    let (_, cpu, mut figures) = last.since(&first);
    figures.extend([
        (P50, report.p50_us),
        (P99, report.p99_us),
        (P999, report.p999_us),
        (MAX, report.max_us),
        (CPU_US, cpu / report.completed.max(1) as f64),
    ]);
    Ok(figures)
}

/// Latencies over established TLS connections.
pub(super) fn probe(
    stage: &Stage,
    proxy: &Proxy,
    connections: usize,
    storm: bool,
    seconds: f64,
) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    let first = Reading::take(&pids, || Ok(0))?;
    let report = load::probe(stage, proxy.address, connections, storm, seconds.ceil() as u64)?;
    let last = Reading::take(&pids, || Ok(report.completed))?;
    let (_, _, mut figures) = last.since(&first);
    figures.extend([
        (P50, report.p50_us),
        (P99, report.p99_us),
        (P999, report.p999_us),
        (MAX, report.max_us),
    ]);
    Ok(figures)
}

/// Memory for each of `count` idle connections that have had one request. If the proxy takes fewer, returns
/// their number instead: refusals leave traces in memory, so the caller tries again with a fresh process.
pub(super) fn idle_memory(
    stage: &Stage,
    proxy: &Proxy,
    count: usize,
) -> Result<Result<Figures, usize>, String> {
    let pids = cpu::tree(proxy.process.pid());
    stage.sleep(Duration::from_millis(300))?;
    let before = cpu::pss(&pids)?;
    let (held, open) = load::Held::open(stage, proxy.address, count, proxy.tls)?;
    if open < count {
        return Ok(Err(open));
    }
    stage.sleep(Duration::from_millis(500))?;
    let after = cpu::pss(&pids)?;
    let alive = held.close(stage)?;
    if alive < open {
        return Err(format!("of {open} idle connections {} ended by themselves", open - alive));
    }
    Ok(Ok(Figures::from([
        (IDLE_BYTES, (after as f64 - before as f64) / open as f64),
        (IDLE_COUNT, open as f64),
        (BASE_BYTES, before as f64),
    ])))
}
