//! Tests of `kernel::sysctl`.

use super::*;

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("one"), "1\n").expect("written");
        Self { folder }
    }

    fn open(&self, boot: &str) -> Sysctls {
        Sysctls::at(self.folder.path(), self.folder.path(), boot.to_owned(), 7)
    }

    fn value(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("one")).expect("read").trim().to_owned()
    }

    fn is_clean(&self) -> bool {
        !self.folder.path().join(FILE).exists()
    }
}

#[test]
fn what_was_changed_is_given_back() {
    let bench = Bench::new();
    let mut sysctls = bench.open("a");
    sysctls.set("one", "2").expect("set");
    sysctls.set("one", "3").expect("set");
    assert_eq!(bench.value(), "3");
    drop(sysctls);
    assert_eq!((bench.value().as_str(), bench.is_clean()), ("1", true));
}

#[test]
fn a_crash_does_not_lose_what_was() {
    let bench = Bench::new();
    let mut crashed = bench.open("a");
    crashed.set("one", "2").expect("set");
    std::mem::forget(crashed);
    let mut next = bench.open("a");
    next.set("one", "2").expect("it is already");
    drop(next);
    assert_eq!((bench.value().as_str(), bench.is_clean()), ("1", true));
}

#[test]
fn another_boot_and_another_hand_are_respected() {
    let bench = Bench::new();
    let mut crashed = bench.open("a");
    crashed.set("one", "2").expect("set");
    std::mem::forget(crashed);
    drop(bench.open("b"));
    assert_eq!(bench.value(), "2", "nothing is known about this boot's value before");
    let mut sysctls = bench.open("b");
    sysctls.set("one", "5").expect("set");
    std::fs::write(bench.folder.path().join("one"), "9").expect("written");
    drop(sysctls);
    assert_eq!((bench.value().as_str(), bench.is_clean()), ("9", true));
}

#[test]
fn what_cannot_be_set_leaves_nothing_to_restore() {
    let bench = Bench::new();
    let mut sysctls = bench.open("a");
    assert!(sysctls.set("none", "1").is_err());
    drop(sysctls);
    assert!(bench.is_clean());
}
