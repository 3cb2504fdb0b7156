//! Network namespaces without names: each lives as long as the descriptor that holds it, so even a killed test leaves none
//! behind. And the skip, by name, of a test that needs root.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// True, and said, when the tests do not run as root.
pub(crate) fn without_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIP {}\tneeds root", std::thread::current().name().unwrap_or("?"));
    }
    !root
}

/// A network namespace with its loopback up.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
}

impl Netns {
    /// Makes one.
    pub(crate) fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ip(&["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").expect("/proc")
        };
        Self { file: std::thread::spawn(make).join().expect("a network namespace") }
    }

    /// Runs `work` inside, on a thread of its own. What it opens stays there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let enter = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            };
            scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Joins this namespace to another by a veth pair: `(interface, address/length)` here and there.
    pub(crate) fn join(&self, here: (&str, &str), other: &Self, there: (&str, &str)) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.file.as_raw_fd());
        self.run(|| ip(&["link", "add", here.0, "type", "veth", "peer", "name", there.0, "netns", &path]));
        for (namespace, (interface, address)) in [(self, here), (other, there)] {
            namespace.run(|| {
                // No duplicate address detection: the address is there at once.
                let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
                ip(&[&["address", "add", address, "dev", interface], nodad].concat());
                ip(&["link", "set", interface, "up"]);
            });
        }
    }
}

/// Runs `ip` in this thread's namespace and returns what it printed.
pub(crate) fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip (package iproute2)");
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
