//! Every file in config/ does its work in the hands of the program that it is for.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tests::origin::{Origin, Response};
use tests::process::{self, Output};
use tests::sluice::{self, Setup, binary};
use tests::{eventually, skip};

const LIMIT: Duration = Duration::from_secs(30);

/// Tenths of the exposure of `systemd-analyze security`, from 0 (none) to 100.
const EXPOSURE_MAX: u32 = 32;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn shipped(name: &str) -> String {
    fs::read_to_string(repository().join("config").join(name)).unwrap()
}

/// The unit, with the binary under test in place of the installed one.
fn unit(folder: &Path) -> String {
    let path = folder.join("sluice.service");
    let text = shipped("sluice.service").replace("/usr/local/bin/sluice", binary().to_str().unwrap());
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn analyze(arguments: &[&str]) -> Output {
    process::run(Command::new("systemd-analyze").args(arguments), LIMIT)
}

#[test]
fn every_file_is_tested_with_its_program_and_installed_for_all_to_read() {
    let run = fs::read_to_string(repository().join("docs/run.md")).unwrap();
    let logs = fs::read_to_string(repository().join("docs/logs.md")).unwrap();
    for entry in fs::read_dir(repository().join("config")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let installed = match name.as_str() {
            // `sluice check` reads them in tests/cli.rs; the demo is not installed.
            "dev.toml" => continue,
            "proxy.toml" => "/etc/sluice/proxy.toml",
            "sluice.service" => "/etc/systemd/system/sluice.service",
            "sluice.logrotate" => "/etc/logrotate.d/sluice",
            other => panic!("no test runs config/{other}: add one here"),
        };
        let line = format!("-m 0644 config/{name} {installed}");
        assert!(run.contains(&line) || logs.contains(&line), "no page installs {name} by {line:?}");
    }
}

#[test]
fn systemd_takes_the_unit_and_finds_little_exposed() {
    if skip::without_tool("systemd-analyze") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = unit(folder.path());
    let verified = analyze(&["verify", "--man=no", &unit]).success();
    assert_eq!(verified.all().trim(), "", "systemd warns of something");
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let _ = analyze(&["security", "--offline=yes", &threshold, "--no-pager", &unit]).success();
}

/// logrotate itself, over a log that a running Sluice writes; only the path and the way of the signal differ.
#[test]
fn logrotate_rotates_the_log_and_sluice_goes_on_in_a_new_file() {
    if skip::without_root() || skip::without_tool("logrotate") {
        return;
    }
    let origin = Origin::http(|_| Response::ok("ok"));
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let access = format!("access = \"{}\"", log.display());
    let sluice = Setup::to(origin.address()).with("log", &access).start();
    let lines = |path: &Path| fs::read_to_string(path).unwrap_or_default().lines().count();
    let wait = |path: &Path, count| {
        eventually(LIMIT, "the record is written", || (lines(path) == count).then_some(()))
    };
    assert_eq!(sluice.get("/first").status, 200);
    wait(&log, 1);

    // The programs of the postrotate script, as the unit would have them.
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    let systemctl = programs.join("systemctl");
    let said = folder.path().join("said");
    let script = format!("#!/bin/sh\necho \"$@\" > {}\nkill -USR1 {}\n", said.display(), sluice.pid());
    fs::write(&systemctl, script).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let config = folder.path().join("sluice.logrotate");
    let text = shipped("sluice.logrotate");
    assert!(text.contains("\n/var/log/sluice/*.log {"), "{text}");
    let logs = format!("{}/*.log", folder.path().display());
    fs::write(&config, text.replace("/var/log/sluice/*.log", &logs)).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", programs.display());
    let rotate = || {
        let mut command = Command::new("logrotate");
        command.args(["--force", "--state"]).arg(folder.path().join("state")).arg(&config);
        let done = process::run(command.env("PATH", &path), LIMIT).success();
        assert_eq!(done.all().trim(), "", "logrotate complains");
    };

    let rotated = folder.path().join("access.log.1");
    rotate();
    assert_eq!(lines(&rotated), 1, "the log was not rotated");
    assert_eq!(
        fs::read_to_string(&said).unwrap().trim(),
        "kill --kill-whom=main --signal=USR1 sluice.service"
    );
    eventually(LIMIT, "a new file", || log.is_file().then_some(()));
    assert_eq!(sluice.get("/second").status, 200);
    wait(&log, 1);
    // The next time, the one before is compressed.
    rotate();
    assert!(folder.path().join("access.log.2.gz").is_file());
    assert_eq!(lines(&rotated), 1);
    let empty = sluice::command(&["check", "--config", sluice.config_path().to_str().unwrap()]);
    assert_eq!(empty.code(), 0, "{}", empty.all());
}
