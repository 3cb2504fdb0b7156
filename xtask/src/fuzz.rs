//! `cargo xtask fuzz` runs the parsers' fuzz targets over their kept corpora, with cargo-fuzz and the
//! installed nightly.

use std::process::Command;

use crate::machine::{self, step};

/// How long each target runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// Seconds, with the address sanitizer.
    Seconds(u32),
    /// Executions, without the address sanitizer.
    Runs(u64),
}

/// The longest input in bytes. It is enough to reach the target's limits.
fn input_bytes_max(target: &str) -> usize {
    // A hello with a post-quantum key share has some 1,500 bytes.
    if matches!(target, "handshake" | "hello") { 2400 } else { 600 }
}

pub(crate) fn fuzz(bound: Bound, only: Option<&str>) -> Result<(), String> {
    let folder = machine::root().join("tests/fuzz");
    if !machine::succeeds(&["cargo", "fuzz", "--version"]) {
        machine::install_cargo_program(&["cargo-fuzz"])?;
    }
    for target in targets(&folder)? {
        if only.is_some_and(|only| only != target) {
            continue;
        }
        let (sanitizer, limit) = match bound {
            Bound::Seconds(seconds) => ("address", format!("-max_total_time={seconds}")),
            Bound::Runs(runs) => ("none", format!("-runs={runs}")),
        };
        eprintln!("fuzzing {target}: {limit}");
        // New inputs go to a scratch corpus, since the kept corpus changes only by hand.
        let scratch = machine::target_dir().join("fuzz-corpus").join(&target);
        let dictionary = folder.join("dictionaries").join(&target);
        std::fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
        step(
            Command::new("cargo")
                .current_dir(&folder)
                .args(["+nightly", "fuzz", "run", "--sanitizer", sanitizer, "--fuzz-dir", ".", &target])
                .arg(&scratch)
                .arg(folder.join("corpus").join(&target))
                .args(["--", "-timeout=5", "-rss_limit_mb=2048", "-print_final_stats=1"])
                .arg(format!("-max_len={}", input_bytes_max(&target)))
                .args(dictionary.is_file().then(|| format!("-dict={}", dictionary.display())))
                .arg(limit),
        )?;
    }
    Ok(())
}

/// The targets: the files in fuzz_targets.
fn targets(folder: &std::path::Path) -> Result<Vec<String>, String> {
    let listing = std::fs::read_dir(folder.join("fuzz_targets"))
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut names: Vec<String> =
        listing.filter_map(|entry| entry.ok()?.path().file_stem()?.to_str().map(str::to_owned)).collect();
    names.sort();
    Ok(names)
}
