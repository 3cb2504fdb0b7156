//! `cargo run --release -p benches --bin micro [-- --json]`: the cost of a request's parts, in nanoseconds
//! for each operation. The figures are medians over rounds in which the cases take turns. `--only NAME
//! --iterations N` runs one case's operation N times and measures nothing. It serves a tool that counts:
//! `valgrind --tool=callgrind target/release/micro --only request-parse-small --iterations 10000`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benches::Spread;
use benches::cases::{self, Case, Runner};

const ROUNDS: usize = 11;
/// Long enough that reading the clock costs nothing, and short enough that few rounds are interrupted.
const ROUND: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Arguments {
    json: bool,
    list: bool,
    only: Option<String>,
    iterations: Option<u64>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
            match argument.as_str() {
                "--json" => parsed.json = true,
                "--list" => parsed.list = true,
                "--only" => parsed.only = Some(value()?),
                "--iterations" => {
                    let text = value()?;
                    parsed.iterations = Some(text.parse().map_err(|_| format!("{text} is no number"))?);
                }
                _ => {
                    return Err(format!(
                        "{argument}? Known: --json, --list, --only NAME, --iterations N (with --only)"
                    ));
                }
            }
        }
        if parsed.iterations.is_some() && parsed.only.is_none() {
            return Err("--iterations is for one case: name it with --only".to_owned());
        }
        Ok(parsed)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("micro: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut cases = cases::all();
    if let Some(only) = &arguments.only {
        cases.retain(|case| case.name == only);
    }
    if cases.is_empty() {
        return Err("no case of that name: --list shows them".to_owned());
    }
    if arguments.list {
        cases.iter().for_each(|case| println!("{:<24} {}", case.name, case.what));
        return Ok(());
    }
    if let (Some(iterations), [case]) = (arguments.iterations, cases.as_slice()) {
        (case.make)()(iterations);
        return Ok(());
    }
    measure(&cases, arguments.json);
    Ok(())
}

/// A case and its measurements so far.
struct Measured {
    case: Case,
    run: Runner,
    iterations: u64,
    nanos: Vec<f64>,
}

impl Measured {
    /// Warms up, and finds how many operations make a round.
    fn new(case: Case) -> Self {
        let mut run = (case.make)();
        let mut iterations = 1;
        loop {
            let took = time(&mut run, iterations);
            if took >= ROUND / 4 {
                let fitting = ROUND.as_secs_f64() / took.as_secs_f64() * iterations as f64;
                return Self { case, run, iterations: fitting as u64 + 1, nanos: Vec::with_capacity(ROUNDS) };
            }
            iterations *= 2;
        }
    }
}

fn time(run: &mut Runner, iterations: u64) -> Duration {
    let start = Instant::now();
    run(iterations);
    start.elapsed()
}

fn measure(cases: &[Case], json: bool) {
    let mut measured: Vec<Measured> = cases.iter().copied().map(Measured::new).collect();
    for _ in 0..ROUNDS {
        for one in &mut measured {
            let took = time(&mut one.run, one.iterations);
            one.nanos.push(took.as_nanos() as f64 / one.iterations as f64);
        }
    }
    if !json {
        println!("{ROUNDS} rounds: median (min–max) ns an operation");
    }
    for one in measured {
        let (case, Spread { median, min, max }) = (one.case, Spread::of(one.nanos));
        if json {
            println!(
                "{{\"case\":\"{}\",\"ns_median\":{median:.2},\"ns_min\":{min:.2},\"ns_max\":{max:.2}}}",
                case.name
            );
        } else {
            println!("{median:10.1} ({min:8.1}–{max:8.1})  {:<24} {}", case.name, case.what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Arguments, String> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in
            ["--jsn", "--only", "--only pool --iterations", "--only pool --iterations x", "--iterations 5"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
        let parsed = parse("--only pool --iterations 5 --json").expect("all is known");
        assert_eq!((parsed.only.as_deref(), parsed.iterations, parsed.json), (Some("pool"), Some(5), true));
    }
}
