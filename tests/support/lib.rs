//! The harness that the end-to-end tests share: a running Sluice, origins behind it, clients before it, and
//! network namespaces around it.
//!
//! Everything here has a deadline, takes ports and folders that no other test uses, and cleans up on drop. So
//! tests run beside each other, and a failed test leaves nothing behind. A helper that cannot go on panics,
//! which fails the test.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a helper that cannot go on is a failed test"
)]

pub mod bpf;
pub mod cable;
pub mod client;
pub mod curl;
pub mod flood;
pub mod fragments;
pub mod message;
pub mod metrics;
pub mod netns;
pub mod nginx;
pub mod openmetrics;
pub mod origin;
pub mod pattern;
pub mod peer;
pub mod pidfd;
pub mod ports;
pub mod process;
pub mod skip;
pub mod slow;
pub mod sluice;
pub mod threads;
pub mod tls;

use std::time::{Duration, Instant};

/// Calls `probe` every few milliseconds until it answers. Panics with `what` after `limit`.
pub fn eventually<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets this process open as many descriptors as the hard limit allows, and returns that number.
pub fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("setrlimit");
    hard
}

/// How many descriptors a process has open.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
