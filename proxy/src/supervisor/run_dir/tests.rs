//! Tests of `supervisor::run_dir`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use super::*;

#[test]
fn a_directory_is_made_held_once_and_left_clean() {
    let base = tempfile::tempdir().expect("directory");
    let path = base.path().join("deep/edge");
    let first = RunDir::claim(&path).expect("claim");
    assert_eq!(first.instance(), "edge");
    assert_eq!(fs::metadata(&path).expect("stat").permissions().mode() & 0o7777, 0o755);
    let socket = path.join(CONTROL_SOCKET);
    assert_eq!(fs::metadata(&socket).expect("stat").permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.join(LOCK)).expect("stat").permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&socket).expect("connect");
    assert_eq!(runs_in(&path), Some(std::process::id().to_string()));
    assert!(matches!(take_lock_of(&path), Err(RunDirError::Held { .. })));
    // A file description of its own, so flock refuses within one process too.
    let error = RunDir::claim(&path).expect_err("held").to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    UnixStream::connect(&socket).expect("the loser leaves the winner's socket alone");
    drop(first);
    assert!(!socket.exists());
    assert_eq!(runs_in(&path), None);
    let lock = take_lock_of(&path).expect("free").expect("there");
    assert!(matches!(RunDir::claim(&path), Err(RunDirError::Held { .. })), "a start is held off");
    drop(lock);
    RunDir::claim(&path).expect("free again");
}

#[test]
fn what_a_crash_left_is_replaced() {
    let base = tempfile::tempdir().expect("directory");
    drop(UnixListener::bind(base.path().join(CONTROL_SOCKET)).expect("stale socket"));
    fs::write(base.path().join(LOCK), "99999999\nrubbish").expect("stale lock");
    let held = RunDir::claim(base.path()).expect("claim");
    assert_eq!(
        fs::read_to_string(base.path().join(LOCK)).expect("read"),
        format!("{}\n", std::process::id())
    );
    UnixStream::connect(base.path().join(CONTROL_SOCKET)).expect("connect");
    drop(held);
}

#[test]
fn a_directory_for_others_and_a_symlinked_lock_are_refused() {
    let base = tempfile::tempdir().expect("directory");
    for mode in [0o1777, 0o775, 0o757] {
        fs::set_permissions(base.path(), Permissions::from_mode(mode)).expect("chmod");
        let error = RunDir::claim(base.path()).expect_err("somebody else's");
        assert!(matches!(error, RunDirError::Unsafe(FolderError::Foreign(_))), "{error}");
        assert!(matches!(take_lock_of(base.path()), Err(RunDirError::Unsafe(_))));
    }
    fs::set_permissions(base.path(), Permissions::from_mode(0o755)).expect("chmod");
    let victim = base.path().join("victim");
    fs::write(&victim, "precious").expect("write");
    std::os::unix::fs::symlink(&victim, base.path().join(LOCK)).expect("symlink");
    assert!(matches!(RunDir::claim(base.path()), Err(RunDirError::Io { action: "open", .. })));
    assert_eq!(fs::read_to_string(victim).expect("read"), "precious");
}
