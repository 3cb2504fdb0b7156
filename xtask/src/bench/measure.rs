//! One round of one proxy: load it, take the kernel's figures between two instants of that load, and give back numbers per request,
//! connection or GiB. Nothing here compares or judges.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::cpu::{self, Core};
use super::http;
use super::load::{self, Wrk};
use super::peers::{Kind, Origin, Proxy};
use super::stage::{LOAD_CPU, Stage};

/// One round's numbers by name; the names are below.
pub(super) type Figures = BTreeMap<&'static str, f64>;

/// Microseconds of the whole process tree for each request (where a connection carries one: for each connection).
pub(super) const CPU_US: &str = "cpu_us";
/// Milliseconds of it for each GiB of body.
pub(super) const CPU_MS_PER_GIB: &str = "cpu_ms_per_gib";
/// Requests a second.
pub(super) const RATE: &str = "rate";
/// GiB of body a second.
pub(super) const GIB_RATE: &str = "gib_per_s";
/// Busy part of the load's core.
pub(super) const LOAD_CORE: &str = "load_core";
/// Busy part of the proxies' core, by the proxy's own time.
pub(super) const PROXY_CORE: &str = "proxy_core";
/// Latency in microseconds.
pub(super) const P50: &str = "p50_us";
pub(super) const P99: &str = "p99_us";
pub(super) const P999: &str = "p999_us";
pub(super) const MAX: &str = "max_us";
/// Bytes of memory for each idle connection, and how many there were.
pub(super) const IDLE_BYTES: &str = "bytes_per_connection";
pub(super) const IDLE_COUNT: &str = "connections";
/// And the bytes before them.
pub(super) const BASE_BYTES: &str = "bytes_before";
/// io_uring's calls and completions for each request.
pub(super) const ENTERS: &str = "enters";
pub(super) const COMPLETIONS: &str = "completions";
/// Requests that the whole run of load saw answered, outside of the measured time too.
pub(super) const SERVED: &str = "served";

/// An instant of a proxy under load.
struct Instantaneous {
    at: Instant,
    cpu: f64,
    requests: u64,
    core: Core,
}

impl Instantaneous {
    /// The origin answers a moment after it has counted, somewhere between the two readings of the CPU's clock: their mean it is.
    fn take(origin: &mut Origin, pids: &[u32]) -> Result<Self, String> {
        let (before, at_before) = (cpu::micros(pids)?, Instant::now());
        let requests = origin.requests()?;
        let (after, at_after) = (cpu::micros(pids)?, Instant::now());
        let at = at_before + (at_after - at_before) / 2;
        Ok(Self { at, cpu: f64::midpoint(before, after), requests, core: Core::read(LOAD_CPU)? })
    }
}

/// Time for all connections to be open and the pools to be filled.
fn settling(connections: usize) -> Duration {
    Duration::from_millis(300 + connections as u64 / 2)
}

/// CPU per request and rate over `seconds` within a longer run of wrk: what connecting and ending cost lies outside.
pub(super) fn requests(stage: &Stage, origin: &mut Origin, proxy: &Proxy, wrk: &Wrk, seconds: f64) -> Result<Figures, String> {
    let settling = settling(wrk.connections);
    let pids = cpu::tree(proxy.process.pid());
    let process = wrk.start(stage, proxy.address)?;
    stage.sleep(settling)?;
    let ring_before = ring_counters(proxy)?;
    let first = Instantaneous::take(origin, &pids)?;
    stage.sleep(Duration::from_secs_f64(seconds))?;
    let last = Instantaneous::take(origin, &pids)?;
    let ring_after = ring_counters(proxy)?;
    let report = Wrk::finish(stage, process)?;
    let count = (last.requests - first.requests).saturating_sub(1) as f64; // less the question itself
    if count < 1.0 {
        return Err("no request was served".into());
    }
    let elapsed = (last.at - first.at).as_secs_f64();
    let mut figures = Figures::from([
        (CPU_US, (last.cpu - first.cpu) / count),
        (RATE, count / elapsed),
        (PROXY_CORE, (last.cpu - first.cpu) / 1e6 / elapsed),
        (LOAD_CORE, last.core.utilisation_since(first.core)),
    ]);
    figures.insert(SERVED, report.requests as f64);
    if let (Some(before), Some(after)) = (ring_before, ring_after) {
        figures.extend(after.since(&before));
    }
    Ok(figures)
}

/// What Sluice counts about its ring.
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

/// Sluice's; the others have none.
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

/// Of a response's bytes, what is head: `date`, `etag` and the like, nearly the same behind every proxy.
const RESPONSE_HEAD: u64 = 250;

/// CPU per GiB of responses. Small bodies by requests between two instants; large ones by the bytes of a whole run, so that what is half-way
/// at the end counts too.
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
    let (before, core) = (cpu::micros(&pids)?, Core::read(LOAD_CPU)?);
    let process = wrk.start(stage, proxy.address)?;
    stage.sleep(Duration::from_secs_f64(seconds))?;
    let report = Wrk::finish(stage, process)?;
    // wrk has closed everything: what the proxy still does is a few closes.
    thread::sleep(Duration::from_millis(20));
    let (after, core) = (cpu::micros(&pids)?, Core::read(LOAD_CPU)?.utilisation_since(core));
    let gib = report.bytes.saturating_sub(report.requests * RESPONSE_HEAD) as f64 / GIB;
    bytes_figures(gib, after - before, report.micros as f64 / 1e6, core)
}

/// How many uploads fill a round: by trying, first a few and then more.
pub(super) fn uploads_in(
    stage: &Stage,
    proxy: &Proxy,
    (file, size): (&Path, u64),
    connections: usize,
    seconds: f64,
) -> Result<u64, String> {
    let mut count = connections as u64;
    loop {
        let taken = load::upload(stage, proxy.address, file, connections, count)?.max(1e-4);
        let fitting = (count as f64 * seconds / taken) as u64;
        if taken > seconds / 4.0 || count * size > 4 << 30 {
            return Ok(fitting.max(connections as u64));
        }
        count = fitting.min(count * 16).max(count + 1);
    }
}

/// CPU per GiB of request bodies: a number of uploads, first to last.
pub(super) fn uploads(
    stage: &Stage,
    proxy: &Proxy,
    (file, size): (&Path, u64),
    connections: usize,
    count: u64,
) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    let (before, core) = (cpu::micros(&pids)?, Core::read(LOAD_CPU)?);
    let seconds = load::upload(stage, proxy.address, file, connections, count)?;
    thread::sleep(Duration::from_millis(20));
    let (after, core) = (cpu::micros(&pids)?, Core::read(LOAD_CPU)?.utilisation_since(core));
    bytes_figures((count * size) as f64 / GIB, after - before, seconds, core)
}

fn bytes_figures(gib: f64, cpu: f64, seconds: f64, core: f64) -> Result<Figures, String> {
    if gib <= 0.0 || seconds <= 0.0 {
        return Err("no body was carried".into());
    }
    Ok(Figures::from([
        (CPU_MS_PER_GIB, cpu / gib / 1e3),
        (GIB_RATE, gib / seconds),
        (PROXY_CORE, cpu / 1e6 / seconds),
        (LOAD_CORE, core),
    ]))
}

/// Latencies at a fixed rate of arrivals.
pub(super) fn latency(stage: &Stage, proxy: &Proxy, rate: u64, connections: usize, seconds: f64) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    let (before, core) = (cpu::micros(&pids)?, Core::read(LOAD_CPU)?);
    let report = load::arrivals(stage, proxy.address, rate, connections, seconds.ceil() as u64)?;
    let (after, core) = (cpu::micros(&pids)?, Core::read(LOAD_CPU)?.utilisation_since(core));
    Ok(Figures::from([
        (P50, report.p50_us),
        (P99, report.p99_us),
        (P999, report.p999_us),
        (MAX, report.max_us),
        (CPU_US, (after - before) / report.completed.max(1) as f64),
        (LOAD_CORE, core),
    ]))
}

/// Memory for each of up to `count` idle connections that have had one request.
pub(super) fn idle_memory(stage: &Stage, proxy: &Proxy, count: usize) -> Result<Figures, String> {
    let pids = cpu::tree(proxy.process.pid());
    stage.sleep(Duration::from_millis(300))?;
    let before = cpu::pss(&pids)?;
    let (held, open) = load::Held::open(stage, proxy.address, count)?;
    stage.sleep(Duration::from_secs(1))?;
    let after = cpu::pss(&pids)?;
    let alive = held.close(stage)?;
    if alive < open {
        return Err(format!("of {open} idle connections {} ended by themselves", open - alive));
    }
    if open == 0 {
        return Err("not one connection was kept".into());
    }
    Ok(Figures::from([
        (IDLE_BYTES, (after as f64 - before as f64) / open as f64),
        (IDLE_COUNT, open as f64),
        (BASE_BYTES, before as f64),
    ]))
}
