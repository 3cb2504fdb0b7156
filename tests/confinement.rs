//! What is left to hostile code in the data plane, seen from outside: its descriptors.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tests::origin::Origin;
use tests::skip;
use tests::sluice::{Setup, binary};

/// Where the descriptors of a process lead, by number.
fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let number = |name: std::ffi::OsString| name.to_str()?.parse().ok();
    entries
        .filter_map(|entry| Some((number(entry.file_name())?, std::fs::read_link(entry.path()).ok()?)))
        .collect()
}

#[test]
fn descriptors_that_the_supervisor_inherited_are_not_passed_on() {
    if skip::without_root() {
        return;
    }
    let origin = Origin::echo();
    let setup = Setup::to(origin.address());
    let secret = setup.run_dir().join("secret");
    std::fs::write(&secret, "of the shell").unwrap();
    let output = File::create(setup.run_dir().join("log")).unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", "exec 7<\"$1\"; exec \"$0\" run --config \"$2\""])
        .args([&binary(), &secret, &setup.write()])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let mut sluice = setup.adopt(child);
    sluice.wait_ready();
    assert!(descriptors(sluice.pid()).contains(&(7, secret.clone())), "the supervisor was given it");
    let theirs = descriptors(sluice.data_plane_pid());
    assert!(theirs.iter().all(|(_, path)| *path != secret), "{theirs:?}");
    for (number, path) in theirs {
        let name = path.to_str().unwrap();
        let is_made_here = ["socket:[", "anon_inode:[", "/memfd:"].iter().any(|kind| name.starts_with(kind));
        // The log, on standard error, is the only file.
        let is_known = is_made_here
            || path == Path::new("/dev/null")
            || (number, path.as_path()) == (2, &sluice.file("log"));
        assert!(is_known, "{number}: {name}");
    }
    assert_eq!(sluice.get("/").status, 200);
}
