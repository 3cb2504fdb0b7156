//! Network namespaces without names. A namespace lives as long as the descriptor that holds it, so even a
//! killed test leaves none behind. Code runs inside on a thread of its own, and its child processes stay
//! inside.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use crate::process;

/// A network namespace with its loopback up.
#[derive(Debug)]
pub struct Netns {
    file: File,
}

impl Netns {
    /// Makes a namespace; needs root.
    #[must_use]
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (root?)");
            ip(&["link", "set", "lo", "up"]);
            File::open("/proc/thread-self/ns/net").expect("/proc")
        };
        Self { file: std::thread::spawn(make).join().expect("a network namespace") }
    }

    /// Runs `work` inside the namespace. Its sockets and child processes stay there. A panic in `work` goes
    /// on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let name = std::thread::current().name().unwrap_or("netns").to_owned();
        std::thread::scope(|scope| {
            let enter = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("setns");
                work()
            };
            let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, enter).expect("a thread");
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` inside and returns its output.
    pub fn ip(&self, arguments: &[&str]) -> String {
        self.run(|| ip(arguments))
    }

    /// Joins this namespace to another by a veth pair. `here` and `there` are each an interface and an
    /// address with its prefix length.
    pub fn join(&self, here: (&str, &str), other: &Self, there: (&str, &str)) {
        self.ip(&["link", "add", here.0, "type", "veth", "peer", "name", there.0, "netns", &other.path()]);
        for (namespace, (interface, address)) in [(self, here), (other, there)] {
            namespace.ip(&["address", "add", address, "dev", interface]);
            namespace.ip(&["link", "set", interface, "up"]);
        }
    }

    /// The mode of the XDP program on an interface inside, as `ip` names it (`xdp`, `xdpgeneric`). `None`:
    /// there is no program.
    #[must_use]
    pub fn xdp(&self, interface: &str) -> Option<String> {
        let shown = self.ip(&["link", "show", "dev", interface]);
        shown
            .split_whitespace()
            .find(|word| *word == "xdp" || word.starts_with("xdpgeneric"))
            .map(str::to_owned)
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

fn ip(arguments: &[&str]) -> String {
    process::run(Command::new("ip").args(arguments), Duration::from_secs(10)).success().text()
}
