//! The goals for the measurements, judged from the results: which goals are met, which are missed and by how
//! much, and which were not measured.

use super::cases::{AGAIN, GUARDED, RATES, beside_idle, thousands};
use super::measure::{CPU_MS_PER_GIB, CPU_US, IDLE_BYTES, P99, P999};
use super::peers::Kind;
use super::results::{CaseResult, Results};
use super::table::Table;

/// The proxies from Debian, which take part in every case.
const DEBIANS: [&str; 2] = ["nginx", "haproxy"];

/// The end of the reason for a case that was not asked for.
const NOT_RUN: &str = "was not run";

/// A goal and its result.
pub(super) struct Goal {
    figure: String,
    goal: String,
    /// The measured value with its limit, or the reason why there is none.
    measured: Result<Measured, String>,
}

struct Measured {
    shown: String,
    value: f64,
    limit: f64,
}

impl Goal {
    fn new(figure: &str, goal: &str, measured: Result<Measured, String>) -> Self {
        Self { figure: figure.to_owned(), goal: goal.to_owned(), measured }
    }

    pub(super) fn is_met(&self) -> Option<bool> {
        self.measured.as_ref().ok().map(|measured| measured.value <= measured.limit)
    }

    /// Whether the run included the cases that the goal needs.
    pub(super) fn was_run(&self) -> bool {
        !self.measured.as_ref().is_err_and(|reason| reason.ends_with(NOT_RUN))
    }

    fn verdict(&self) -> String {
        match &self.measured {
            Err(_) => "not measured".into(),
            Ok(measured) => {
                // The share is relative to the limit, so it exists only for a limit above zero.
                let beyond = (measured.value - measured.limit) / measured.limit * 100.0;
                match (measured.value <= measured.limit, beyond.is_finite() && measured.limit > 0.0) {
                    (true, _) => "met".into(),
                    (false, true) => format!("**missed by {beyond:.0} %**"),
                    (false, false) => "**missed**".into(),
                }
            }
        }
    }
}

/// The goals as rows: figure, goal, measured value, verdict.
pub(super) fn table(goals: &[Goal]) -> Table {
    let mut rows = vec![["figure", "goal", "measured", ""].map(str::to_owned).to_vec()];
    for goal in goals {
        let measured = match &goal.measured {
            Ok(measured) => measured.shown.clone(),
            Err(reason) => reason.lines().next().unwrap_or_default().to_owned(),
        };
        rows.push(vec![goal.figure.clone(), goal.goal.clone(), measured, goal.verdict()]);
    }
    rows
}

/// Every goal, in the order of the report.
pub(super) fn judge(results: &Results) -> Vec<Goal> {
    let mut goals = vec![noise(results)];
    for connections in [64, 256] {
        small(results, connections, &mut goals);
    }
    goals.extend(RATES.map(|rate| tail(results, rate)));
    for (name, factor, state) in [("sluice", 0.9, "guard off"), (GUARDED, 1.1, "guard on")] {
        let what = format!("CPU per fresh connection, {state}");
        goals.push(Goal::new(
            &what,
            &format!("≤ {factor:.1} × the best peer"),
            by_best(results, "fresh", name, CPU_US, factor),
        ));
    }
    for (name, shown) in [
        ("down-1m", "1 MiB down"),
        ("up-1m", "1 MiB up"),
        ("down-64m", "64 MiB down"),
        ("up-64m", "64 MiB up"),
    ] {
        let measured = by_best(results, name, "sluice", CPU_MS_PER_GIB, 0.9);
        goals.push(Goal::new(&format!("CPU per GiB, {shown}"), "≤ 0.9 × the best peer", measured));
    }
    goals.push(idle(results));
    xdp(results, &mut goals);
    goals.push(beside(results));
    tls(results, &mut goals);
    goals
}

/// The goals for TLS. A handshake's cost is a connection with a handshake less a plain one.
fn tls(results: &Results, goals: &mut Vec<Goal>) {
    for (name, shown, factor) in [("tls-full", "full", 0.65), ("tls-resumed", "resumed", 0.5)] {
        let goal = format!("≤ {factor:.2} × the best of nginx and haproxy");
        goals.push(Goal::new(
            &format!("CPU of a {shown} handshake"),
            &goal,
            handshake(results, name, factor),
        ));
    }
    for connections in [64, 256] {
        let measured = by_best(results, &format!("tls-small-{connections}"), "sluice", CPU_US, 0.8);
        let figure = format!("CPU per request over TLS, {connections} connections");
        goals.push(Goal::new(&figure, "≤ 0.80 × the best of nginx and haproxy", measured));
    }
    let measured = by_best(results, "tls-down-1m", "sluice", CPU_MS_PER_GIB, 1.0);
    goals.push(Goal::new("CPU per GiB over TLS, 1 MiB down", "≤ the best peer", measured));
    let measured = case(results, "tls-idle").and_then(|case| {
        let value = median(case, "sluice", IDLE_BYTES)?;
        Ok(Measured { shown: format!("{value:.0} bytes"), value, limit: 5120.0 })
    });
    goals.push(Goal::new("idle connection over TLS, memory of ours", "≤ 5 KiB", measured));
    let measured = case(results, "tls-quiet").and_then(|quiet| {
        let (quiet, storm) =
            (median(quiet, "sluice", P99)?, median(case(results, "tls-storm")?, "sluice", P99)?);
        let value = storm / quiet;
        Ok(Measured { shown: format!("{storm:.0} / {quiet:.0} µs = {value:.2}"), value, limit: 3.0 })
    });
    goals.push(Goal::new(
        "p99 of 64 established sessions in a storm of handshakes",
        "≤ 3 × without it",
        measured,
    ));
}

fn handshake(results: &Results, name: &str, factor: f64) -> Result<Measured, String> {
    let (plain, tls) = (case(results, "fresh")?, case(results, name)?);
    let cost = |who: &str| Ok::<_, String>(median(tls, who, CPU_US)? - median(plain, who, CPU_US)?);
    let ours = cost("sluice")?;
    let theirs = DEBIANS.iter().filter_map(|peer| Some((cost(peer).ok()?, *peer)));
    let best = theirs.min_by(|one, other| one.0.total_cmp(&other.0));
    let (theirs, peer) = best.ok_or("neither nginx nor haproxy has a figure")?;
    let value = ours / theirs;
    Ok(Measured {
        shown: format!("{} / {} µs ({peer}) = {value:.3}", short(ours), short(theirs)),
        value,
        limit: factor,
    })
}

fn case<'a>(results: &'a Results, name: &str) -> Result<&'a CaseResult, String> {
    results.case(name).ok_or_else(|| format!("{name} {NOT_RUN}"))
}

fn median(case: &CaseResult, name: &str, figure: &str) -> Result<f64, String> {
    case.spread(name, figure).map(|spread| spread.median).ok_or_else(|| match case.entry(name) {
        Some(entry) => format!("{name}: {}", entry.failed.as_deref().unwrap_or("no figure")),
        None => format!("{name} did not take part"),
    })
}

fn noise(results: &Results) -> Goal {
    let measured = case(results, "small-64").and_then(|case| {
        let (one, other) = (median(case, "sluice", CPU_US)?, median(case, AGAIN, CPU_US)?);
        let value = (one / other - 1.0).abs();
        Ok(Measured {
            shown: format!("{one:.2} and {other:.2} µs: {:.1} %", value * 100.0),
            value,
            limit: 0.03,
        })
    });
    Goal::new("noise: one binary twice, 64 connections", "medians differ by < 3 %", measured)
}

fn small(results: &Results, connections: usize, goals: &mut Vec<Goal>) {
    let name = format!("small-{connections}");
    let figure = format!("CPU per request, small, {connections} connections");
    let measured = by_best(results, &name, "sluice", CPU_US, 0.8);
    goals.push(Goal::new(&figure, "≤ 0.80 × the best of nginx and haproxy", measured));
    for (peer, factor) in [("pingora", 0.4), ("envoy", 0.25)] {
        let measured = case(results, &name).and_then(|case| by_one(case, "sluice", peer, CPU_US, factor));
        goals.push(Goal::new(&figure, &format!("≤ {factor:.2} × {peer}"), measured));
    }
    let measured = case(results, &name).and_then(|case| {
        let (ours, limit) = (median(case, "sluice", CPU_US)?, median(case, Kind::Relay.name(), CPU_US)?);
        let shown = format!("{ours:.2} − {limit:.2} = {:.2} µs", ours - limit);
        Ok(Measured { shown, value: ours - limit, limit: 1.2 })
    });
    goals.push(Goal::new(&figure, "at most 1.2 µs above the bare relay", measured));
}

/// Compares a figure with another entrant's: it may be at most `factor` times as large.
fn by_one(case: &CaseResult, name: &str, other: &str, figure: &str, factor: f64) -> Result<Measured, String> {
    let (ours, theirs) = (median(case, name, figure)?, median(case, other, figure)?);
    let value = ours / theirs;
    Ok(Measured {
        shown: format!("{} / {} ({other}) = {value:.3}", short(ours), short(theirs)),
        value,
        limit: factor,
    })
}

/// Compares a figure with the better one of Debian's two proxies.
fn by_best(
    results: &Results,
    case_name: &str,
    name: &str,
    figure: &str,
    factor: f64,
) -> Result<Measured, String> {
    let case = case(results, case_name)?;
    let (best, _) = case.best(&DEBIANS, figure).ok_or("neither nginx nor haproxy has a figure")?;
    by_one(case, name, best, figure, factor)
}

/// Shows small numbers with two decimal places and large ones with none.
fn short(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

/// Our median latency must not exceed the best peer's worst round.
fn tail(results: &Results, rate: u64) -> Goal {
    let measured = case(results, &format!("rate-{rate}")).and_then(|case| {
        let ours = median(case, "sluice", P999)?;
        let (best, theirs) = case.best(&DEBIANS, P999).ok_or("neither nginx nor haproxy has a figure")?;
        let shown =
            format!("{ours:.0} µs; {best} {:.0} ({:.0}–{:.0})", theirs.median, theirs.min, theirs.max);
        Ok(Measured { shown, value: ours, limit: theirs.max })
    });
    let figure = format!("p99.9 at {} requests/s", thousands(rate));
    Goal::new(&figure, "our median within the best peer's min–max", measured)
}

fn idle(results: &Results) -> Goal {
    let measured = case(results, "idle").and_then(|case| {
        let value = median(case, "sluice", IDLE_BYTES)?;
        Ok(Measured { shown: format!("{value:.0} bytes"), value, limit: 500.0 })
    });
    Goal::new("idle keep-alive connection, memory of ours", "≤ 500 bytes", measured)
}

fn xdp(results: &Results, goals: &mut Vec<Goal>) {
    let what = "XDP above the empty program's floor";
    let with_goal: Vec<_> = results.xdp.lines.iter().filter_map(|line| Some((line, line.goal_ns?))).collect();
    if with_goal.is_empty() {
        let reason = results.xdp.error.clone().unwrap_or_else(|| format!("xdp {NOT_RUN}"));
        goals.push(Goal::new(what, "≤ 25, 60, 250 ns", Err(reason)));
    }
    for (line, limit) in with_goal {
        let value = line.above_floor_ns;
        let measured = Ok(Measured { shown: format!("{value:.0} ns"), value, limit });
        goals.push(Goal::new(&format!("{what}: {}", line.case), &format!("≤ {limit:.0} ns"), measured));
    }
}

fn beside(results: &Results) -> Goal {
    let measured = case(results, "beside-idle")
        .and_then(|case| by_one(case, &beside_idle(Kind::Sluice), "sluice", CPU_US, 1.05));
    Goal::new("CPU per request, 64 busy beside 15,000 idle", "≤ 1.05 × the same without them", measured)
}

#[cfg(test)]
mod tests;
