//! Tests of `supervisor::watch`.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// A watch over `chain` and `key` in a folder, and its clock.
struct Bench {
    folder: tempfile::TempDir,
    watch: Watch,
    now: Time,
}

impl Bench {
    fn new(paths: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let paths: Vec<PathBuf> = paths.iter().map(|name| folder.path().join(name)).collect();
        Self { folder, watch: Watch::new(paths, Time::default()), now: Time::default() }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("written");
    }

    fn look(&mut self) -> bool {
        self.now = self.watch.next_look().expect("something is watched");
        self.watch.look(self.now)
    }

    /// The first settled state is tried; from then on it rests.
    fn settle(&mut self) {
        assert!(!self.look(), "seen once");
        assert!(self.look(), "seen twice");
        self.watch.finished(ReloadOutcome::Unchanged, self.now);
        self.rests();
    }

    #[track_caller]
    fn rests(&mut self) {
        for _ in 0..40 {
            assert!(!self.look());
        }
    }

    #[track_caller]
    fn notices(&mut self) {
        assert!(!self.look(), "it may still be written");
        assert!(self.look());
        self.watch.finished(ReloadOutcome::Applied, self.now);
        self.rests();
    }
}

#[test]
fn writes_renames_swapped_links_and_removals_are_noticed_once_each() {
    let mut bench = Bench::new(&["chain"]);
    bench.write("chain", "old");
    bench.settle();
    bench.write("chain", "new, longer");
    bench.notices();
    // Of the same length, by rename, as certbot and most others do.
    bench.write("next", "NEW, LONGER");
    fs::rename(bench.folder.path().join("next"), bench.folder.path().join("chain")).expect("renamed");
    bench.notices();
    fs::remove_file(bench.folder.path().join("chain")).expect("removed");
    bench.notices();
    bench.write("chain", "back");
    bench.notices();
}

#[test]
fn a_folder_swapped_by_a_link_is_noticed() {
    // Kubernetes: chain -> ..data/chain, ..data -> ..2026; the second link is replaced.
    let mut bench = Bench::new(&["chain"]);
    let path = |name: &str| bench.folder.path().join(name);
    for (folder, text) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir(path(folder)).expect("made");
        fs::write(path(folder).join("chain"), text).expect("written");
    }
    symlink("..1", path("..data")).expect("linked");
    symlink("..data/chain", path("chain")).expect("linked");
    bench.settle();
    let path = |name: &str| bench.folder.path().join(name);
    symlink("..2", path("..next")).expect("linked");
    fs::rename(path("..next"), path("..data")).expect("renamed");
    bench.notices();
}

#[test]
fn what_is_still_being_written_waits_and_what_is_wrong_is_tried_once() {
    let mut bench = Bench::new(&["chain", "key"]);
    bench.write("chain", "a");
    bench.write("key", "a");
    bench.settle();
    for length in 1..5 {
        bench.write("chain", &"x".repeat(length));
        assert!(!bench.look(), "it grows");
    }
    assert!(bench.look());
    // The key is missing still: invalid, and not tried again before something changes.
    bench.watch.finished(ReloadOutcome::Invalid, bench.now);
    bench.rests();
    bench.write("key", "bb");
    bench.notices();
}

#[test]
fn what_failed_for_another_reason_is_tried_again_later() {
    let mut bench = Bench::new(&["chain"]);
    bench.write("chain", "old");
    bench.settle();
    bench.write("chain", "newer");
    assert!(!bench.look());
    assert!(bench.look());
    bench.watch.finished(ReloadOutcome::Died, bench.now);
    let failed = bench.now;
    while !bench.look() {
        assert!(bench.now.since(failed) < RETRY_AFTER);
    }
    assert!(bench.now.since(failed) >= RETRY_AFTER);
    bench.watch.finished(ReloadOutcome::Applied, bench.now);
    bench.rests();
}

#[test]
fn other_files_are_followed_after_a_reload_and_none_costs_nothing() {
    let mut bench = Bench::new(&["chain"]);
    bench.write("chain", "old");
    bench.settle();
    bench.watch.follow(bench.watch.paths.clone());
    bench.rests();
    bench.watch.follow(vec![bench.folder.path().join("other")]);
    bench.settle();
    bench.watch.follow(Vec::new());
    assert_eq!((bench.watch.next_look(), bench.watch.len()), (None, 0));
    assert!(!bench.watch.look(Time::from_nanos(u64::MAX)));
}
