//! `cargo xtask simulate` runs the seeded simulation of whole workers (proxy/src/simulation). It is built
//! with every check, and optimised where most of the time goes.

use clap::Args;

use crate::machine::{BUILD, cargo, ensure, step};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 10_000, conflicts_with = "seed")]
    pub(crate) seeds: u64,
    /// The first seed.
    #[arg(long, default_value = "0", value_parser = number, conflicts_with = "seed")]
    pub(crate) from: u64,
    /// Only this seed, decimal or 0x….
    #[arg(long, value_parser = number)]
    pub(crate) seed: Option<u64>,
    /// Print the events of this seed, line by line.
    #[arg(long, requires = "seed")]
    pub(crate) trace: bool,
}

fn number(text: &str) -> Result<u64, String> {
    let parsed =
        text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u64::from_str_radix(digits, 16));
    parsed.map_err(|error| error.to_string())
}

/// How many seeds CI runs; they take seconds.
const CI_SEEDS: u64 = 10_000;

/// Runs CI's seeds.
pub(crate) fn many() -> Result<(), String> {
    simulate(&Options { seeds: CI_SEEDS, from: 0, seed: None, trace: false })
}

pub(crate) fn simulate(options: &Options) -> Result<(), String> {
    ensure(BUILD)?;
    let mut command = cargo();
    command.args(["test", "--quiet", "--profile", "simulation", "--package", "proxy", "--lib", "--"]);
    command.args(["--exact", "simulation::tests::every_seed_keeps_the_invariants", "--nocapture"]);
    match options.seed {
        Some(seed) if options.trace => command.env("SLUICE_SIMULATE_TRACE", seed.to_string()),
        Some(seed) => command.env("SLUICE_SIMULATE_FROM", seed.to_string()).env("SLUICE_SIMULATE_SEEDS", "1"),
        None => command
            .env("SLUICE_SIMULATE_FROM", options.from.to_string())
            .env("SLUICE_SIMULATE_SEEDS", options.seeds.to_string()),
    };
    step(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_as_they_are_printed() {
        assert_eq!((number("0x1f"), number("31")), (Ok(31), Ok(31)));
        assert!(number("0xg").is_err() && number("seed").is_err());
    }
}
