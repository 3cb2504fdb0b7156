//! Tests of `kernel::sysctl`.

use super::*;

const ONE: &str = "tcp_syncookies";
const TWO: &str = "tcp_timestamps";

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join(ONE), "1\n").expect("written");
        Self { folder }
    }

    fn open(&self, boot: &str) -> Sysctls {
        let run_dir = Folder::open(self.folder.path()).expect("ours");
        Sysctls::at(self.folder.path().to_owned(), run_dir, boot.to_owned(), 7)
    }

    fn value(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(ONE)).expect("read").trim().to_owned()
    }

    fn is_clean(&self) -> bool {
        !self.folder.path().join(FILE).exists()
    }
}

#[test]
fn what_was_changed_is_given_back() {
    let bench = Bench::new();
    let mut sysctls = bench.open("a");
    sysctls.set(ONE, "2").expect("set");
    sysctls.set(ONE, "3").expect("set");
    assert_eq!(bench.value(), "3");
    drop(sysctls);
    assert_eq!((bench.value().as_str(), bench.is_clean()), ("1", true));
}

#[test]
fn a_crash_does_not_lose_what_was() {
    let bench = Bench::new();
    let mut crashed = bench.open("a");
    crashed.set(ONE, "2").expect("set");
    std::mem::forget(crashed);
    let mut next = bench.open("a");
    next.set(ONE, "2").expect("it is already");
    drop(next);
    assert_eq!((bench.value().as_str(), bench.is_clean()), ("1", true));
}

#[test]
fn another_boot_and_another_hand_are_respected() {
    let bench = Bench::new();
    let mut crashed = bench.open("a");
    crashed.set(ONE, "2").expect("set");
    std::mem::forget(crashed);
    drop(bench.open("b"));
    assert_eq!(bench.value(), "2", "nothing is known about this boot's value before");
    let mut sysctls = bench.open("b");
    sysctls.set(ONE, "5").expect("set");
    std::fs::write(bench.folder.path().join(ONE), "9").expect("written");
    drop(sysctls);
    assert_eq!((bench.value().as_str(), bench.is_clean()), ("9", true));
}

#[test]
fn what_cannot_be_set_leaves_nothing_to_restore() {
    let bench = Bench::new();
    let mut sysctls = bench.open("a");
    assert!(sysctls.set(TWO, "1").is_err());
    drop(sysctls);
    assert!(bench.is_clean());
}

#[test]
fn a_file_in_run_dir_names_no_other_file() {
    let bench = Bench::new();
    let victim = bench.folder.path().join("victim");
    let write = |settings: &str| {
        let saved = format!("{{\"boot\":\"a\",\"netns\":7,\"settings\":{{{settings}}}}}");
        std::fs::write(bench.folder.path().join(FILE), saved).expect("written");
    };
    let of = |name: &str, before: &str| format!("{name:?}:{{\"before\":{before:?},\"ours\":\"root\"}}");
    for name in [victim.to_str().expect("text"), "victim", "../victim", "conf/../victim", ""] {
        std::fs::write(&victim, "root").expect("written");
        write(&of(name, "mallory"));
        drop(bench.open("a"));
        assert_eq!(std::fs::read_to_string(&victim).expect("read"), "root", "{name:?}");
    }
    for before in ["", "x", "1\n2", "12345678901"] {
        std::fs::write(bench.folder.path().join(ONE), "root").expect("written");
        write(&of(ONE, before));
        drop(bench.open("a"));
        assert_eq!(bench.value(), "root", "{before:?}");
    }
    write(&of(ONE, "5"));
    drop(bench.open("a"));
    assert_eq!(bench.value(), "5", "what Sluice wrote is restored");
    assert!(bench.open("a").set(victim.to_str().expect("text"), "1").is_err());
}

#[test]
fn a_link_in_place_of_the_file_is_not_followed() {
    let bench = Bench::new();
    let victim = bench.folder.path().join("victim");
    for name in [FILE.to_owned(), format!("{FILE}.new")] {
        std::fs::write(&victim, "precious").expect("written");
        std::os::unix::fs::symlink(&victim, bench.folder.path().join(name)).expect("link");
        let mut sysctls = bench.open("a");
        sysctls.set(ONE, "2").expect("set");
        drop(sysctls);
        assert_eq!(std::fs::read_to_string(&victim).expect("read"), "precious");
        assert_eq!((bench.value().as_str(), bench.is_clean()), ("1", true));
    }
}
