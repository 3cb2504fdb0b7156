//! `--compare BINARY` compares a given Sluice with the freshly built one in short interleaved slices, for
//! changes of the data path. Both start anew every few rounds, since a process keeps its memory layout, lucky
//! or not, as long as it lives.

use std::io::{IsTerminal, Write};

use super::cases::{self, Case};
use super::load::Wrk;
use super::measure::{self, CPU_US, Figures, LOAD_CORE, RATE};
use super::peers::{Origin, Program, Proxy, Setup};
use super::stage::Stage;
use super::stats::{paired_ratio, spread};

/// How many rounds a process lives.
const ROUNDS_A_LIFE: usize = 4;

/// Measures the programs and prints a table for each case. It compares the first two programs.
pub(super) fn compare(
    stage: &Stage,
    origin: &mut Origin,
    programs: &[Program],
    cases: &[Case],
    (rounds, seconds): (usize, f64),
) -> Result<(), String> {
    for case in cases {
        let wrk =
            case.wrk().ok_or_else(|| format!("--compare knows cases of requests, not {}", case.name))?;
        let rounds = measure_case(stage, origin, programs, &wrk, (rounds, seconds), &case.name)?;
        print(&case.name, programs, &rounds);
    }
    Ok(())
}

/// The figures by program, then by round.
fn measure_case(
    stage: &Stage,
    origin: &mut Origin,
    programs: &[Program],
    wrk: &Wrk,
    (rounds, seconds): (usize, f64),
    name: &str,
) -> Result<Vec<Vec<Figures>>, String> {
    let setup = Setup { routes: wrk.routes, tls: wrk.tls, ..Setup::plain(origin.address) };
    let mut found = vec![Vec::new(); programs.len()];
    let mut proxies = Vec::new();
    for round in 0..rounds {
        if round % ROUNDS_A_LIFE == 0 {
            proxies.clear();
            for program in programs {
                proxies.push(Proxy::start(stage, program, &setup)?);
            }
        }
        for turn in 0..programs.len() {
            let at = cases::turn(round, turn, programs.len());
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K{name}: round {} of {rounds}: {}", round + 1, programs[at].name);
                let _ = std::io::stderr().flush();
            }
            let figures = measure::requests(stage, origin, &proxies[at], wrk, seconds)
                .map_err(|error| format!("{}: {error}", programs[at].name))?;
            found[at].push(figures);
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(found)
}

fn column(rounds: &[Figures], figure: &str) -> Vec<f64> {
    rounds.iter().map(|round| round.get(figure).copied().unwrap_or(f64::NAN)).collect()
}

/// Shows a figure that only Sluice counts.
fn per_request(value: f64) -> String {
    if value.is_finite() { format!("{value:.3}") } else { "–".into() }
}

fn print(case: &str, programs: &[Program], rounds: &[Vec<Figures>]) {
    println!("{case}, {} rounds", rounds[0].len());
    println!(
        "  {:<8}  {:>26}  {:>11}  {:>9}  {:>8}  {:>11}",
        "", "CPU µs/request (min–max)", "requests/s", "load core", "enters", "completions"
    );
    let median = |at: usize, figure: &str| {
        spread(&column(&rounds[at], figure)).map_or(f64::NAN, |spread| spread.median)
    };
    for (at, program) in programs.iter().enumerate() {
        let Some(cpu) = spread(&column(&rounds[at], CPU_US)) else { continue };
        let shown = format!("{:.3} ({:.2}–{:.2})", cpu.median, cpu.min, cpu.max);
        println!(
            "  {:<8}  {shown:>26}  {:>11.0}  {:>8.0}%  {:>8}  {:>11}",
            program.name,
            median(at, RATE),
            median(at, LOAD_CORE) * 100.0,
            per_request(median(at, measure::ENTERS)),
            per_request(median(at, measure::COMPLETIONS)),
        );
    }
    let ours = column(&rounds[1], CPU_US);
    for (at, program) in programs.iter().enumerate().filter(|(at, _)| *at != 1) {
        let Some(paired) = paired_ratio(&ours, &column(&rounds[at], CPU_US)) else { continue };
        println!(
            "  {} / {}: {:.4} of medians, {:.4} ({:.3}–{:.3}) median of paired ratios",
            programs[1].name,
            program.name,
            median(1, CPU_US) / median(at, CPU_US),
            paired.median,
            paired.min,
            paired.max
        );
    }
}
