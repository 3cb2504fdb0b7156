//! `cargo xtask bench`: Sluice beside other proxies on the same machine in the same run, one worker each pinned to the same core, rounds
//! interleaved. Client and origin share the other core.

use std::fs;
use std::path::PathBuf;

mod cases;
mod compare;
mod cpu;
mod http;
mod install;
mod load;
mod measure;
mod peers;
mod stage;
mod stats;

use peers::{Kind, Origin};
use stage::Stage;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these cases, e.g. small-64,small-256.
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Only these peers, e.g. nginx,haproxy,relay.
    #[arg(long, value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// Rounds for each proxy and case.
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds a round.
    #[arg(long)]
    seconds: Option<f64>,
    /// Compare this Sluice with the freshly built one, in short interleaved slices.
    #[arg(long, value_name = "BINARY")]
    compare: Option<PathBuf>,
}

pub(crate) fn bench(options: &Options) -> Result<(), String> {
    install::needed()?;
    match &options.compare {
        Some(binary) => compare_with(options, binary),
        None => compare_with_peers(options),
    }
}

fn names(given: &[String], default: &[&str]) -> Vec<String> {
    if given.is_empty() { default.iter().map(|&name| name.to_owned()).collect() } else { given.to_vec() }
}

fn compare_with(options: &Options, binary: &std::path::Path) -> Result<(), String> {
    let stage = Stage::new()?;
    // Copied first: it may be the very file that the build replaces.
    let base = stage.folder().join("base-sluice");
    fs::copy(binary, &base).map_err(|error| format!("{}: {error}", binary.display()))?;
    let mut programs = vec![install::program("base", Kind::Sluice, base)];
    let mut new = install::peer(Kind::Sluice)?;
    new.name = "new".into();
    programs.push(new);
    measure(&stage, options, programs)
}

fn compare_with_peers(options: &Options) -> Result<(), String> {
    let stage = Stage::new()?;
    let programs = vec![install::peer(Kind::Nginx)?, install::peer(Kind::Sluice)?];
    measure(&stage, options, programs)
}

fn measure(stage: &Stage, options: &Options, mut programs: Vec<peers::Program>) -> Result<(), String> {
    let peers = cases::peers(options.peers.as_deref().unwrap_or_default())?;
    if peers.contains(&Kind::Relay) {
        install::tools()?;
    }
    for kind in peers {
        programs.push(install::peer(kind).map_err(|error| format!("{}: {error}", kind.name()))?);
    }
    let cases = cases::chosen(&names(&options.cases, &["small-64", "small-256"]))?;
    stage.keep_to_load_core()?;
    let mut origin = Origin::start(stage, &[])?;
    let shape = (options.rounds.unwrap_or(16).max(1), options.seconds.unwrap_or(1.0).clamp(0.1, 60.0));
    compare::compare(stage, &mut origin, &programs, &cases, shape)
}
