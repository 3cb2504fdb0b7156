//! Files of somebody else: a run_dir, a lock or a log that another user could change is not believed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use tests::origin::{Origin, Response};
use tests::process::Output;
use tests::skip;
use tests::sluice::{self, Setup};

const SOMEBODY: u32 = 12_345;

fn nowhere() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 9))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Starts Sluice with another run_dir, or with more lines for `[log]`.
fn run(setup: &Setup, run_dir: &Path) -> Output {
    let path = setup.run_dir().join("other.toml");
    let text = setup.text();
    let ours = format!("run_dir = \"{}\"", setup.run_dir().display());
    fs::write(&path, text.replace(&ours, &format!("run_dir = \"{}\"", run_dir.display()))).unwrap();
    sluice::command(&["run", "--config", path.to_str().unwrap()])
}

#[test]
fn a_run_dir_that_another_user_could_change_is_refused() {
    let setup = Setup::to(nowhere());
    let base = setup.run_dir();
    let folder = |name: &str| {
        fs::create_dir_all(base.join(name)).unwrap();
        set_mode(&base.join(name), 0o755);
        base.join(name)
    };
    let mut foreign = vec![folder("group"), folder("everybody"), base.join("link"), folder("above/edge")];
    set_mode(&foreign[0], 0o775);
    set_mode(&foreign[1], 0o1777);
    symlink(folder("target"), &foreign[2]).unwrap();
    set_mode(&base.join("above"), 0o775);
    if skip::is_root() {
        foreign.push(folder("owned"));
        chown(&foreign[4], Some(SOMEBODY), None).unwrap();
    }
    for run_dir in foreign {
        let said = run(&setup, &run_dir);
        assert_eq!(said.code(), 1, "{}", said.all());
        let expected = if run_dir.ends_with("link") { "is a symbolic link" } else { "choose another folder" };
        assert!(
            said.all().contains("process.run_dir: ") && said.all().contains(expected),
            "{}: {}",
            run_dir.display(),
            said.all()
        );
        assert_eq!(fs::read_dir(&run_dir).unwrap().count(), 0, "nothing is written there");
    }
}

#[test]
fn the_lock_and_the_socket_are_the_supervisors_alone() {
    let origin = Origin::http(|_| Response::ok("ok"));
    let setup = Setup::to(origin.address());
    // An older Sluice let everybody open the lock, and so hold it.
    fs::write(setup.run_dir().join("lock"), "").unwrap();
    set_mode(&setup.run_dir().join("lock"), 0o644);
    let sluice = setup.start();
    for name in ["lock", "control.sock"] {
        let mode = fs::metadata(sluice.run_dir().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}: {mode:o}");
    }
}

#[test]
fn an_access_log_goes_through_nobody_elses_link() {
    if skip::without_root() {
        return;
    }
    for (owner, log) in [(SOMEBODY, "logs/access.log"), (SOMEBODY, "logs/deep/access.log")] {
        let setup = Setup::to(nowhere());
        let setup = setup.with("log", &format!("access = \"{log}\""));
        let (logs, victim) = (setup.run_dir().join("logs"), setup.run_dir().join("victim"));
        fs::create_dir(&logs).unwrap();
        fs::create_dir(&victim).unwrap();
        let link = logs.join(if log.contains("deep") { "deep" } else { "access.log" });
        symlink(if log.contains("deep") { victim.clone() } else { victim.join("access.log") }, link).unwrap();
        chown(&logs, Some(owner), None).unwrap();
        let said = sluice::command(&["run", "--config", setup.write().to_str().unwrap()]);
        assert_eq!(said.code(), 1, "{}", said.all());
        assert!(said.all().contains("log.access") && said.all().contains("symbolic link"), "{}", said.all());
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "nothing is written through the link");
    }
}
