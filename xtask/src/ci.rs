//! `cargo xtask ci` runs the steps of CI. The tests come last, so that the log ends with the test runner's
//! summary.

use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::machine::{self, BUILD, EBPF, cargo, ensure, step};
use crate::{docs, ebpf, fuzz, simulate, test, tidy};

/// A named step of CI.
type Step = (&'static str, fn() -> Result<(), String>);

/// Seconds for each fuzz target.
const FUZZ_SECONDS: u32 = 10;

/// The version of cargo-deny. Its checks differ from version to version.
const DENY: &str = "0.20.2";

pub(crate) fn ci() -> Result<(), String> {
    ensure(BUILD)?;
    let steps: &[Step] = &[
        ("format", || step(cargo().args(["fmt", "--all", "--check"]))),
        ("committed eBPF object is fresh", ebpf::check_hash),
        ("tidy", tidy::tidy),
        ("clippy", || {
            step(cargo().args([
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "--deny",
                "warnings",
            ]))
        }),
        ("doc", || {
            step(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
                "doc",
                "--workspace",
                "--no-deps",
                "--quiet",
            ]))
        }),
        ("documents", || docs::docs(true)),
        ("licences and bans", deny),
        ("fuzz", || fuzz::fuzz(fuzz::Bound::Seconds(FUZZ_SECONDS), None)),
        ("simulation", simulate::many),
        ("eBPF rebuilt, kernel tests against it", fresh_ebpf),
        ("tests", || test::test(None, &[])),
    ];
    for (name, work) in steps {
        println!("== {name}");
        let started = Instant::now();
        work().map_err(|error| format!("{name}: {error}"))?;
        println!("== {name}: {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Checks licences and bans, and known vulnerabilities where a database of them is at hand.
fn deny() -> Result<(), String> {
    if !machine::prints(&["cargo", "deny", "--version"], DENY) {
        machine::install_cargo_program(&["cargo-deny", "--version", DENY])?;
    }
    step(cargo().args(["deny", "--log-level", "error", "check", "licenses", "bans"]))?;
    if !has_advisories() {
        println!("advisories: not checked, there is no database here; `cargo deny fetch` gets one");
        return Ok(());
    }
    for manifest in ["Cargo.toml", "proxy-ebpf/Cargo.toml", "tests/fuzz/Cargo.toml"] {
        let manifest = machine::root().join(manifest);
        let mut command = cargo();
        command.args(["deny", "--log-level", "error", "--manifest-path"]).arg(manifest);
        step(command.args(["check", "--disable-fetch", "advisories"]))?;
    }
    Ok(())
}

/// Whether cargo-deny's folder holds a database of advisories. CI does not fetch one: a machine without a
/// network beyond its registries would fail for no fault of the code.
fn has_advisories() -> bool {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    home.is_some_and(|home| {
        std::fs::read_dir(home.join("advisory-dbs"))
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.path().is_dir()))
    })
}

/// Runs the kernel tests with an object built from today's sources instead of the committed one.
fn fresh_ebpf() -> Result<(), String> {
    let object = machine::target_dir().join("fresh.bpf.o");
    rebuild_ebpf(&object)?;
    test::test(
        Some(&object),
        &["--package".into(), "tests".into(), "--test".into(), "kernel_programs".into()],
    )
}

/// Builds today's eBPF sources into `object`, beside the committed object. As root it installs everything
/// that the build needs.
pub(crate) fn rebuild_ebpf(object: &Path) -> Result<(), String> {
    ensure(EBPF)?;
    ebpf::build_fresh(object)
}
