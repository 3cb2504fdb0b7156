//! `cargo xtask bench` measures Sluice beside other proxies on the same machine in the same run. Each has one
//! worker, pinned to the same core, and the rounds are interleaved. Client and origin share the other core.
//! `benches/report` holds the results of a whole run.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

mod cases;
mod chart;
mod compare;
mod cpu;
mod goals;
mod http;
mod install;
mod load;
mod measure;
mod peers;
mod progress;
mod report;
mod results;
mod run;
mod stage;
mod stats;
mod table;
mod tools;

use cases::{Case, What};
use peers::{Kind, Origin, Program};
use progress::Progress;
use results::{Machine, Results, Tool};
use run::Runner;
use stage::Stage;

use crate::machine;

/// Rounds of each proxy in a whole run.
const ROUNDS: usize = 7;
const SECONDS: f64 = 2.0;
/// The cases that fit into two minutes.
const QUICK: &[&str] = &["small-64", "small-256", "down-1m", "fresh", "rate-5000"];
const QUICK_PEERS: &[Kind] = &[Kind::Nginx, Kind::Haproxy, Kind::Relay];

/// A part of the measurements.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// Handshakes, requests and bodies over TLS.
    Tls,
}

/// Chooses the measurements. Without options, everything but TLS is measured, which takes about half an hour
/// and renews benches/report.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// `tls`: only the measurements of TLS, which take ten minutes and renew benches/report/tls.
    #[arg(conflicts_with_all = ["quick", "cases", "compare", "xdp", "micro"])]
    subject: Option<Subject>,
    /// A few cases in a few short rounds: two minutes.
    #[arg(long, conflicts_with_all = ["cases", "compare"])]
    quick: bool,
    /// Only these cases, e.g. small-64,small-256.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Only these peers, e.g. nginx,haproxy,relay.
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Rounds for each proxy and case; default 7, with --quick 3, with --compare 16.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each round; default 2, with --quick and --compare 1.
    #[arg(long)]
    seconds: Option<f64>,
    /// Measure only nanoseconds for each packet, unless cases are named too.
    #[arg(long)]
    xdp: bool,
    /// Run only the micro benchmarks, unless cases are named too.
    #[arg(long)]
    micro: bool,
    /// Write the report here; default benches/report for a whole run, else target/bench-report.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Compare this Sluice with the freshly built one in short interleaved slices, and write no report.
    #[arg(long, value_name = "BINARY", conflicts_with_all = ["xdp", "micro", "report"])]
    compare: Option<PathBuf>,
}

/// The measurements that the options ask for.
struct Plan {
    cases: Vec<Case>,
    peers: Vec<Kind>,
    rounds: usize,
    seconds: f64,
    xdp: bool,
    micro: bool,
    report: PathBuf,
}

impl Options {
    fn plan(&self) -> Result<Plan, String> {
        let only_tools = (self.xdp || self.micro) && self.cases.is_empty() && !self.quick;
        let is_tls = self.subject == Some(Subject::Tls);
        let is_whole = !self.quick && !only_tools && self.cases.is_empty() && self.peers.is_none() && !is_tls;
        let cases = if only_tools {
            Vec::new()
        } else if self.quick {
            cases::chosen(&owned(QUICK))?
        } else if is_tls {
            cases::tls()
        } else if self.cases.is_empty() {
            cases::all()
        } else {
            cases::chosen(&self.cases)?
        };
        let peers = match &self.peers {
            Some(names) => cases::peers(names)?,
            None if self.quick => QUICK_PEERS.to_vec(),
            None => Kind::PEERS.to_vec(),
        };
        let rounds = self.rounds.unwrap_or(if self.quick { 3 } else { ROUNDS }).max(1);
        let seconds = self.seconds.unwrap_or(if self.quick { 1.0 } else { SECONDS }).clamp(0.1, 60.0);
        let is_report = rounds >= ROUNDS && seconds >= SECONDS;
        let default = if is_report && is_whole {
            machine::root().join("benches/report")
        } else if is_report && is_tls && self.peers.is_none() {
            machine::root().join("benches/report/tls")
        } else {
            machine::target_dir().join("bench-report")
        };
        let report = self.report.clone().unwrap_or(default);
        Ok(Plan {
            cases,
            peers,
            rounds,
            seconds,
            xdp: self.xdp || is_whole,
            micro: self.micro || is_whole,
            report,
        })
    }

    /// The command line that repeats this run.
    fn shown(&self) -> String {
        let mut words = String::from("cargo xtask bench");
        let mut add = |word: String| {
            words.push(' ');
            words.push_str(&word);
        };
        if self.subject.is_some() {
            add("tls".into());
        }
        for (is_set, flag) in [(self.quick, "--quick"), (self.xdp, "--xdp"), (self.micro, "--micro")] {
            if is_set {
                add(flag.into());
            }
        }
        if !self.cases.is_empty() {
            add(format!("--cases {}", self.cases.join(",")));
        }
        if let Some(peers) = &self.peers {
            add(format!("--peers {}", peers.join(",")));
        }
        if let Some(rounds) = self.rounds {
            add(format!("--rounds {rounds}"));
        }
        if let Some(seconds) = self.seconds {
            add(format!("--seconds {seconds}"));
        }
        words
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

pub(crate) fn bench(options: &Options) -> Result<(), String> {
    install::needed()?;
    match &options.compare {
        Some(binary) => compare_with(options, binary),
        None => side_by_side(options),
    }
}

fn side_by_side(options: &Options) -> Result<(), String> {
    let plan = options.plan()?;
    let stage = Stage::new()?;
    let (programs, missing) = prepare(&plan)?;
    let mut versions: Vec<(String, String)> = programs
        .values()
        .flatten()
        .map(|program| (program.name.clone(), install::version(program)))
        .collect();
    versions.sort();
    versions.extend(install::load_versions());
    let mut results = Results {
        machine: Machine::read(),
        command: options.shown(),
        date: results::said(&["date", "-u", "+%Y-%m-%d %H:%M UTC"]),
        commit: results::commit(),
        rounds: plan.rounds,
        seconds: plan.seconds,
        minutes: 0.0,
        versions,
        missing,
        cases: Vec::new(),
        xdp: Tool::default(),
        micro: Tool::default(),
        instructions: None,
    };
    for (name, reason) in &results.missing {
        eprintln!("{name} is missing: {reason}");
    }
    stage.keep_to_load_core()?;
    let mut progress = Progress::new();
    run_tools(&plan, &stage, &mut results, &mut progress)?;
    if !plan.cases.is_empty() {
        let origin = Origin::start(&stage, &cases::BODIES)?;
        let (rounds, seconds) = (plan.rounds, plan.seconds);
        let mut runner = Runner { stage: &stage, origin, programs, rounds, seconds, progress };
        run_cases(&plan, &mut runner, &mut results)?;
        progress = runner.progress;
    }
    results.minutes = progress.minutes();
    println!("{}", report::summary(&results));
    report::write(&results, &plan.report)?;
    println!("{:.1} minutes; report: {}", results.minutes, plan.report.join("report.md").display());
    Ok(())
}

type Programs = HashMap<Kind, Result<Program, String>>;

/// Builds and installs the programs. A peer that cannot be installed is missing, with the reason. Without
/// Sluice or the tools the run cannot start.
fn prepare(plan: &Plan) -> Result<(Programs, Vec<(String, String)>), String> {
    install::tools()?;
    let mut programs = Programs::new();
    let mut missing = Vec::new();
    if plan.cases.is_empty() {
        return Ok((programs, missing));
    }
    programs.insert(Kind::Sluice, Ok(install::peer(Kind::Sluice)?));
    for &kind in &plan.peers {
        if !plan.cases.iter().flat_map(|case| &case.entrants).any(|entrant| entrant.kind == kind) {
            continue;
        }
        let program = install::peer(kind);
        if let Err(reason) = &program {
            missing.push((kind.name().to_owned(), reason.clone()));
        }
        programs.insert(kind, program);
    }
    if plan.cases.iter().any(|case| matches!(case.what, What::Up { .. }))
        && let Err(reason) = install::uploads()
    {
        missing.push(("h2load".into(), reason));
    }
    Ok((programs, missing))
}

fn run_tools(
    plan: &Plan,
    stage: &Stage,
    results: &mut Results,
    progress: &mut Progress,
) -> Result<(), String> {
    if plan.xdp {
        progress.show("XDP, packet by packet");
        results.xdp = tools::xdp(stage)?;
    }
    if plan.micro {
        progress.show("micro benchmarks");
        results.micro = tools::micro(stage)?;
        progress.show("instructions, by callgrind");
        results.instructions = Some(tools::instructions(stage)?);
    }
    progress.clear();
    let mut text = String::new();
    report::tools(&mut text, results);
    println!("{text}");
    Ok(())
}

fn run_cases(plan: &Plan, runner: &mut Runner<'_>, results: &mut Results) -> Result<(), String> {
    let cores = (stage::PROXY_CPU, stage::LOAD_CPU);
    println!(
        "one worker each on CPU {}; load and origin on CPU {}; {} rounds of {} s\n",
        cores.0, cores.1, plan.rounds, plan.seconds
    );
    for (at, case) in plan.cases.iter().enumerate() {
        runner.progress.place = format!("case {} of {},", at + 1, plan.cases.len());
        let result = runner.run(case)?;
        let mut text = format!(
            "{}: {}\n{}",
            result.name,
            result.title,
            table::plain(&table::table(&result), table::Lean::Right)
        );
        report::notes(&mut text, &result);
        println!("{text}");
        results.cases.push(result);
    }
    Ok(())
}

fn compare_with(options: &Options, binary: &Path) -> Result<(), String> {
    let stage = Stage::new()?;
    // The binary is copied before the build, which may replace that very file.
    let base = stage.folder().join("base-sluice");
    fs::copy(binary, &base).map_err(|error| format!("{}: {error}", binary.display()))?;
    let mut new = install::peer(Kind::Sluice)?;
    new.name = "new".into();
    let mut programs = vec![install::program("base", Kind::Sluice, base), new];
    let peers = cases::peers(options.peers.as_deref().unwrap_or_default())?;
    if peers.contains(&Kind::Relay) {
        install::tools()?;
    }
    for kind in peers {
        programs.push(install::peer(kind).map_err(|error| format!("{}: {error}", kind.name()))?);
    }
    let names =
        if options.cases.is_empty() { owned(&["small-64", "small-256"]) } else { options.cases.clone() };
    let cases = cases::chosen(&names)?;
    stage.keep_to_load_core()?;
    let mut origin = Origin::start(&stage, &cases::BODIES)?;
    let shape = (options.rounds.unwrap_or(16).max(1), options.seconds.unwrap_or(1.0).clamp(0.1, 60.0));
    compare::compare(&stage, &mut origin, &programs, &cases, shape)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn plan(words: &str) -> Plan {
        Line::parse_from(std::iter::once("bench").chain(words.split_whitespace())).options.plan().unwrap()
    }

    #[test]
    fn only_a_whole_run_renews_the_committed_report() {
        assert!(plan("").report.ends_with("benches/report"));
        assert!(plan("--rounds 9 --seconds 4").report.ends_with("benches/report"));
        for words in
            ["--quick", "--cases small-64", "--peers nginx", "--rounds 6", "--seconds 1", "--xdp", "--micro"]
        {
            assert!(plan(words).report.ends_with("bench-report"), "{words}");
        }
        assert!(plan("--quick --report here").report.ends_with("here"));
    }

    #[test]
    fn a_whole_run_has_everything() {
        let whole = plan("");
        assert_eq!((whole.cases.len(), whole.peers.len(), whole.rounds), (cases::all().len(), 5, 7));
        assert!(whole.xdp && whole.micro);
        let only = plan("--xdp");
        assert!(only.cases.is_empty() && only.xdp && !only.micro);
        let with = plan("--xdp --cases fresh");
        assert!(with.cases.len() == 1 && with.xdp);
        assert!(!plan("--quick").cases.is_empty());
    }
}
