//! `cargo xtask …` runs every task of a user of the repository or of a contributor. Nothing must be installed
//! by hand first.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod docs;
mod ebpf;
mod fuzz;
mod machine;
mod map;
mod run;
mod simulate;
mod test;
mod tidy;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and check Sluice")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build missing parts and start `sluice run`; without --config the demo of config/dev.toml.
    Run {
        /// Passed on to `sluice run`, e.g. `-- --config my.toml`.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Run every test; as root also the kernel tests in network namespaces.
    Test {
        /// Run the kernel tests against this eBPF object instead of the committed one.
        #[arg(long)]
        ebpf_object: Option<std::path::PathBuf>,
        /// Passed on to the test runner, e.g. a name filter.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Rebuild the committed eBPF object and its source hash.
    Ebpf {
        /// Only say whether the committed object is stale.
        #[arg(long)]
        check: bool,
        /// Build into this file instead, and leave the committed object alone.
        #[arg(long, conflicts_with = "check")]
        fresh: Option<std::path::PathBuf>,
    },
    /// Measure Sluice beside other proxies on this machine, in one run.
    Bench(bench::Options),
    /// Run the steps of CI in their order.
    Ci,
    /// Renew the generated documents: tables of keys, metrics and reasons, and the man pages.
    Docs {
        /// Only say whether they are stale, and whether the other documents keep the rules of style.
        #[arg(long)]
        check: bool,
    },
    /// Run the seeded simulation of whole workers; a failing seed prints the command that replays it.
    Simulate(simulate::Options),
    /// Check the structure: the invariants of ARCHITECTURE.md.
    Tidy,
    /// Print the rooms of proxy/src and their imports from each other.
    Map(map::Options),
    /// Run mixed load of all kinds through the released binary for any time: memory, descriptors and map
    /// entries must stay flat.
    Soak {
        /// How many minutes it lasts.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
    /// Run each fuzz target for some seconds or some executions.
    Fuzz {
        /// Seconds for each target.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Executions of each target instead, without the address sanitizer. The parsers are safe code, and
        /// the sanitizer takes most of the time.
        #[arg(long)]
        runs: Option<u64>,
        /// Run only this target.
        target: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { arguments } => run::run(&arguments),
        Command::Test { ebpf_object, arguments } => test::test(ebpf_object.as_deref(), &arguments),
        Command::Ebpf { check: true, .. } => ebpf::check_hash(),
        Command::Ebpf { fresh: Some(object), .. } => ci::rebuild_ebpf(&object),
        Command::Ebpf { .. } => ebpf::build(),
        Command::Bench(options) => bench::bench(&options),
        Command::Ci => ci::ci(),
        Command::Docs { check } => docs::docs(check),
        Command::Simulate(options) => simulate::simulate(&options),
        Command::Tidy => tidy::tidy(),
        Command::Map(options) => map::map(&options),
        Command::Soak { minutes } => test::soak(minutes),
        Command::Fuzz { seconds, runs, target } => {
            fuzz::fuzz(runs.map_or(fuzz::Bound::Seconds(seconds), fuzz::Bound::Runs), target.as_deref())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
