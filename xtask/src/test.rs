//! `cargo xtask test` runs every test, with the released binary if the test needs one.

use std::path::Path;

use crate::machine::{self, BUILD, TEST, cargo, ensure, step};

pub(crate) fn test(ebpf_object: Option<&Path>, arguments: &[String]) -> Result<(), String> {
    ensure(BUILD)?;
    ensure(TEST)?;
    if !machine::is_root() {
        eprintln!(
            "not root: the kernel tests (network namespaces, XDP, steering) will be skipped, each by name"
        );
    }
    let sluice = machine::build_sluice()?;
    let nextest = machine::succeeds(&["cargo", "nextest", "--version"]);
    let mut command = cargo();
    if nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--workspace", "--no-fail-fast", "--lib", "--bins", "--tests"]);
    }
    command.args(arguments).env("SLUICE_BIN", &sluice);
    match machine::python_program("sslyze", "6.3.1") {
        Ok(sslyze) => drop(command.env("SLUICE_SSLYZE", sslyze)),
        // The test that needs sslyze reports the skip, and so does the list of skips.
        Err(error) => {
            eprintln!("sslyze cannot be installed: {error}");
            command.env("SLUICE_SSLYZE", "");
        }
    }
    if let Some(object) = ebpf_object {
        let object = object.canonicalize().map_err(|error| format!("{}: {error}", object.display()))?;
        command.env("SLUICE_TEST_EBPF_OBJECT", object);
    }
    let skips = machine::target_dir().join("skips");
    // The file of an earlier run may still exist.
    let _ = std::fs::remove_file(&skips);
    command.env("SLUICE_SKIPS", &skips);
    let result = step(&mut command);
    for skip in std::fs::read_to_string(&skips).unwrap_or_default().lines() {
        eprintln!("skipped: {}", skip.replace('\t', ": "));
    }
    result
}

/// The mixed load of `tests/soak.rs`, for longer than the tests run it.
pub(crate) fn soak(minutes: u64) -> Result<(), String> {
    ensure(BUILD)?;
    ensure(TEST)?;
    let sluice = machine::build_sluice()?;
    let mut command = cargo();
    command.args(["test", "--package", "tests", "--test", "soak", "--", "--nocapture"]);
    command.env("SLUICE_BIN", &sluice).env("SLUICE_SOAK_SECONDS", (minutes * 60).to_string());
    step(&mut command)
}
