//! The load generators wrk, h2load, arrivals and hold: how they are started, and their reports.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;

use super::stage::{LOAD_CPU, Pipes, Process, Stage};
use crate::machine;

/// How much longer than requested a run may take.
const GRACE: Duration = Duration::from_secs(30);

/// The load that wrk makes.
#[derive(Clone, Debug)]
pub(super) struct Wrk {
    pub(super) connections: usize,
    pub(super) path: String,
    /// A connection for each request.
    pub(super) close: bool,
    /// wrk requests this many path prefixes in turn.
    pub(super) routes: usize,
    /// wrk speaks TLS with one version, suite and group.
    pub(super) tls: bool,
    /// `tlsload` makes the load instead of wrk, and each request begins with a handshake. The value says
    /// whether the handshake resumes an earlier session.
    pub(super) handshakes: Option<bool>,
}

/// The report that benches/peers/wrk.lua prints at the end.
#[derive(Clone, Debug, Deserialize)]
struct WrkReport {
    requests: u64,
    connect: u64,
    read: u64,
    write: u64,
    status: u64,
    timeout: u64,
    /// `tlsload` also reports how many handshakes were resumed.
    resumed: Option<u64>,
}

impl WrkReport {
    fn parse(output: &str) -> Result<Self, String> {
        let line =
            output.lines().find(|line| line.starts_with('{')).ok_or_else(|| format!("wrk said: {output}"))?;
        let report: Self = serde_json::from_str(line).map_err(|error| format!("wrk said {line}: {error}"))?;
        let Self { connect, read, write, status, timeout, .. } = report;
        if connect + read + write + status + timeout > 0 {
            return Err(format!(
                "wrk saw errors: {connect} at connect, {read} at read, {write} at write, {timeout} timeouts, \
                 {status} status not 2xx"
            ));
        }
        Ok(report)
    }
}

/// How long wrk runs at most, in seconds. The harness ends it earlier; this is for a harness that died.
const WRK_SECONDS: u64 = 120;

/// The OpenSSL configuration that limits wrk to one version, suite and group.
const OPENSSL_CONF: &str = "openssl_conf = init\n[init]\nssl_conf = ssl\n[ssl]\nsystem_default = only\n\
    [only]\nMinProtocol = TLSv1.3\n\
    Ciphersuites = TLS_AES_128_GCM_SHA256\nGroups = X25519\n";

impl Wrk {
    /// Load with a handshake for each request.
    pub(super) fn handshakes(connections: usize, resumed: bool) -> Self {
        Self { connections, path: "/".into(), close: true, routes: 0, tls: true, handshakes: Some(resumed) }
    }

    pub(super) fn start(&self, stage: &Stage, target: SocketAddr) -> Result<Process, String> {
        if let Some(resumed) = self.handshakes {
            let command =
                tlsload(target, "fresh", &["--connections", &self.connections.to_string()], resumed)?;
            return Ok(stage.start("tlsload", LOAD_CPU, &command, Pipes::Out)?.ended_by(Signal::SIGINT));
        }
        let mut command = Command::new("wrk");
        command
            .args([
                "-t1",
                &format!("-c{}", self.connections),
                &format!("-d{WRK_SECONDS}s"),
                "--timeout",
                "20s",
                "-s",
            ])
            .arg(machine::root().join("benches/peers/wrk.lua"))
            .env("ROUTES", self.routes.to_string());
        if self.close {
            command.args(["-H", "Connection: close"]);
        }
        if self.tls {
            let file = stage.folder().join("openssl.cnf");
            std::fs::write(&file, OPENSSL_CONF).map_err(|error| format!("{}: {error}", file.display()))?;
            command.env("OPENSSL_CONF", file);
        }
        command.arg(format!("{}://{target}{}", if self.tls { "https" } else { "http" }, self.path));
        Ok(stage.start("wrk", LOAD_CPU, &command, Pipes::Out)?.ended_by(Signal::SIGINT))
    }

    /// Ends wrk, which then reports. Returns how many requests were answered.
    pub(super) fn finish(&self, stage: &Stage, process: Process) -> Result<u64, String> {
        process.ask_to_end();
        let output = stage.finish(process, GRACE)?;
        let report = WrkReport::parse(&String::from_utf8_lossy(&output.stdout))?;
        match (self.handshakes, report.resumed) {
            // The first handshake of each of `connections` is a full one.
            (Some(true), Some(resumed)) if resumed + (self.connections as u64) < report.requests => {
                Err(format!("of {} handshakes {resumed} were resumed", report.requests))
            }
            (Some(false), Some(resumed)) if resumed > 0 => Err(format!("{resumed} handshakes were resumed")),
            _ => Ok(report.requests),
        }
    }
}

fn tlsload(target: SocketAddr, mode: &str, more: &[&str], resume: bool) -> Result<Command, String> {
    let mut command = Command::new(tool("tlsload")?);
    command.args(["--target", &target.to_string(), mode]).args(more).args(resume.then_some("--resume"));
    Ok(command)
}

/// Measures latencies over established TLS connections. With `storm`, full handshakes run beside them, on the
/// time that the probe leaves of the load's core.
pub(super) fn probe(
    stage: &Stage,
    target: SocketAddr,
    connections: usize,
    storm: bool,
    seconds: u64,
) -> Result<Arrivals, String> {
    let storming = if storm {
        let load = tlsload(target, "fresh", &["--connections", "32"], false)?;
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(load.get_program()).args(load.get_args());
        Some(stage.start("storm", LOAD_CPU, &command, Pipes::Out)?.ended_by(Signal::SIGINT))
    } else {
        None
    };
    let (connections, seconds_said) = (connections.to_string(), seconds.to_string());
    let command =
        tlsload(target, "probe", &["--connections", &connections, "--seconds", &seconds_said], false)?;
    let output = stage.run("probe", Duration::from_secs(seconds) + GRACE, &command)?;
    if let Some(process) = storming {
        process.ask_to_end();
        let output = stage.finish(process, GRACE)?;
        WrkReport::parse(&String::from_utf8_lossy(&output.stdout))
            .map_err(|error| format!("storm: {error}"))?;
    }
    parse_arrivals(&String::from_utf8_lossy(&output.stdout))
        .map_err(|error| format!("{error}\n{}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

/// The load that h2load makes: it uploads a file again and again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Upload<'a> {
    pub(super) file: &'a Path,
    pub(super) connections: usize,
}

impl Upload<'_> {
    /// Starts h2load for at least this duration.
    pub(super) fn start(
        &self,
        stage: &Stage,
        target: SocketAddr,
        duration: Duration,
    ) -> Result<Process, String> {
        // h2load takes whole seconds. Some time is added for its start.
        let seconds = (duration.as_secs_f64() + 0.2).ceil();
        let mut command = Command::new("h2load");
        command
            .args(["--h1", "-t1", &format!("-c{}", self.connections), &format!("-D{seconds}"), "-d"])
            .arg(self.file);
        command.arg(format!("http://{target}/upload"));
        stage.start("h2load", LOAD_CPU, &command, Pipes::Out)
    }

    /// Waits for h2load's end. An upload without a good answer is an error.
    pub(super) fn finish(stage: &Stage, process: Process) -> Result<(), String> {
        let output = stage.finish(process, GRACE)?;
        judge_upload(&String::from_utf8_lossy(&output.stdout))
    }
}

/// Judges h2load's summary: every upload that ended must have succeeded.
fn judge_upload(text: &str) -> Result<(), String> {
    let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
    let (requests, codes) = (line("requests:"), line("status codes:"));
    let count = |line: &str, what: &str| {
        line.split([',', ':']).find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok())
    };
    let done = count(requests, " done");
    let is_well = done.is_some_and(|done| done > 0)
        && count(requests, " succeeded") == done
        && [" failed", " errored", " timeout"].iter().all(|what| count(requests, what) == Some(0))
        && count(codes, " 2xx") == done;
    if is_well { Ok(()) } else { Err(format!("h2load: {requests}; {codes}")) }
}

/// The report that `arrivals` prints.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Arrivals {
    pub(super) scheduled: u64,
    pub(super) completed: u64,
    pub(super) errors: u64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

/// Makes requests that arrive at a fixed rate, over several connections.
pub(super) fn arrivals(
    stage: &Stage,
    target: SocketAddr,
    rate: u64,
    connections: usize,
    seconds: u64,
) -> Result<Arrivals, String> {
    let mut command = Command::new(tool("arrivals")?);
    command.args(["--target", &target.to_string(), "--rate", &rate.to_string()]);
    command.args(["--connections", &connections.to_string(), "--seconds", &seconds.to_string()]);
    let output = stage.run("arrivals", Duration::from_secs(seconds) + GRACE, &command)?;
    parse_arrivals(&String::from_utf8_lossy(&output.stdout))
        .map_err(|error| format!("{error}\n{}", String::from_utf8_lossy(&output.stderr).trim_end()))
}

fn parse_arrivals(text: &str) -> Result<Arrivals, String> {
    let line =
        text.lines().find(|line| line.starts_with('{')).ok_or_else(|| format!("arrivals said: {text}"))?;
    let report: Arrivals =
        serde_json::from_str(line).map_err(|error| format!("arrivals said {line}: {error}"))?;
    if report.errors > 0 || report.completed < report.scheduled {
        return Err(format!(
            "arrivals: {} scheduled, {} completed, {} errors",
            report.scheduled, report.completed, report.errors
        ));
    }
    Ok(report)
}

/// A binary of package `benches`. The run builds these binaries at its start.
pub(super) fn tool(name: &str) -> Result<PathBuf, String> {
    let path = machine::target_dir().join("release").join(name);
    if path.exists() { Ok(path) } else { Err(format!("benches has no binary `{name}`")) }
}

/// Open, idle connections. Several processes hold them, since each process has a limit of descriptors.
pub(super) struct Held {
    holders: Vec<Holder>,
}

struct Holder {
    process: Process,
    lines: mpsc::Receiver<String>,
}

impl Holder {
    /// Each holder has its own source address: one address runs out of ports beyond 28,000 connections.
    fn start(
        stage: &Stage,
        target: SocketAddr,
        (count, tls): (usize, bool),
        number: usize,
    ) -> Result<Self, String> {
        let command = if tls {
            tlsload(target, "idle", &["--count", &count.to_string()], false)?
        } else {
            let mut command = Command::new(tool("hold")?);
            command.args(["--target", &target.to_string(), "--count", &count.to_string()]);
            command.args(["--sources", &format!("127.1.0.{number}"), "--requests", "1"]);
            command
        };
        let mut process = stage.start("hold", LOAD_CPU, &command, Pipes::InOut)?;
        let stdout = process.child.stdout.take().ok_or("hold has no output")?;
        let (sender, lines) = mpsc::sync_channel(4);
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { process, lines })
    }
}

#[derive(Deserialize)]
struct Ready {
    ready: usize,
}

#[derive(Deserialize)]
struct Alive {
    alive: usize,
}

/// The most connections that one process holds. If a proxy refuses connections, their number is known only to
/// this precision, so it is small.
const PER_HOLDER: usize = 2_500;

impl Held {
    /// Opens `count` connections, each with one request first, and returns how many are really open. If the
    /// proxy refuses a connection, its holder gives up, and all connections of that holder are missing.
    pub(super) fn open(
        stage: &Stage,
        target: SocketAddr,
        count: usize,
        tls: bool,
    ) -> Result<(Self, usize), String> {
        let mut held = Self { holders: Vec::new() };
        let mut open = 0;
        while open < count {
            let part = (count - open).min(PER_HOLDER);
            held.holders.push(Holder::start(stage, target, (part, tls), held.holders.len() + 1)?);
            match held.next_line(stage, Duration::from_secs(60)) {
                Ok(line) => {
                    let ready: Ready =
                        serde_json::from_str(&line).map_err(|error| format!("hold said {line}: {error}"))?;
                    open += ready.ready;
                    if ready.ready < part {
                        break;
                    }
                }
                Err(error) if open == 0 => return Err(error),
                Err(_) => {
                    stage.check()?;
                    held.holders.pop();
                    break;
                }
            }
        }
        Ok((held, open))
    }

    /// The next line of the holder that was started last.
    fn next_line(&mut self, stage: &Stage, within: Duration) -> Result<String, String> {
        let holder = self.holders.last_mut().ok_or("no holder")?;
        let step = Duration::from_millis(100);
        let mut waited = Duration::ZERO;
        loop {
            stage.check()?;
            match holder.lines.recv_timeout(step) {
                Ok(line) => return Ok(line),
                Err(mpsc::RecvTimeoutError::Timeout) if waited < within => waited += step,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(format!("hold was silent for {} s", within.as_secs()));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(format!("hold ended:\n{}", holder.process.last_words()));
                }
            }
        }
    }

    /// Closes the connections and returns how many were still open.
    pub(super) fn close(mut self, stage: &Stage) -> Result<usize, String> {
        let mut alive = 0;
        while let Some(holder) = self.holders.last_mut() {
            drop(holder.process.child.stdin.take());
            let line = self.next_line(stage, Duration::from_secs(30))?;
            let end: Alive =
                serde_json::from_str(&line).map_err(|error| format!("hold said {line}: {error}"))?;
            alive += end.alive;
            self.holders.pop();
        }
        Ok(alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_understood_and_its_errors_are_errors() {
        let fine = "Running 1s test\n\
            {\"requests\":5,\"connect\":0,\"read\":0,\"write\":0,\"status\":0,\"timeout\":0}\n";
        assert_eq!(WrkReport::parse(fine).unwrap().requests, 5);
        for (part, broken) in [
            ("\"read\":0", "\"read\":2"),
            ("\"status\":0", "\"status\":1"),
            ("\"timeout\":0", "\"timeout\":1"),
        ] {
            assert!(
                WrkReport::parse(&fine.replace(part, broken)).unwrap_err().contains("wrk saw errors"),
                "{broken}"
            );
        }
        assert!(WrkReport::parse("unable to connect").unwrap_err().contains("unable to connect"));
    }

    const H2LOAD: &str = "starting benchmark...\n\nfinished in 1.50s, 66.67 req/s, 1.04MB/s\n\
        requests: 100 total, 104 started, 100 done, 100 succeeded, 0 failed, 0 errored, 0 timeout\n\
        status codes: 100 2xx, 0 3xx, 0 4xx, 0 5xx\ntraffic: 10.00KB (10240) total\n";

    #[test]
    fn h2load_is_understood_and_a_failed_upload_is_an_error() {
        assert_eq!(judge_upload(H2LOAD), Ok(()));
        assert!(judge_upload("").is_err());
        for (part, broken) in [
            ("100 succeeded, 0 failed", "99 succeeded, 1 failed"),
            ("0 errored", "1 errored"),
            ("100 2xx, 0 3xx", "99 2xx, 1 3xx"),
            ("100 done, 100 succeeded", "0 done, 0 succeeded"),
        ] {
            assert!(
                judge_upload(&H2LOAD.replace(part, broken)).unwrap_err().starts_with("h2load: requests"),
                "{broken}"
            );
        }
    }

    #[test]
    fn arrivals_that_fall_short_are_an_error() {
        let line = "{\"scheduled\":10,\"completed\":10,\"errors\":0,\"seconds\":1.0,\"p50_us\":90,\
                    \"p99_us\":200.5,\"p999_us\":300,\"max_us\":400,\"rate\":10}";
        assert!((parse_arrivals(line).unwrap().p99_us - 200.5).abs() < 1e-9);
        assert!(parse_arrivals(&line.replace("\"errors\":0", "\"errors\":1")).is_err());
        assert!(parse_arrivals(&line.replace("\"completed\":10", "\"completed\":9")).is_err());
    }
}
