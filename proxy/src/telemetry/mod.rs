//! What Sluice says about itself: counters, metrics, logs, the admin endpoints.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub mod access;
pub mod admin;
pub mod counters;
pub mod key_log;
pub mod logging;
pub mod metrics;
pub mod report;

/// Waits for a thread to end, but no longer than `limit`: a join has no deadline.
fn join_within(thread: JoinHandle<()>, limit: Duration) {
    let give_up = Instant::now() + limit;
    while !thread.is_finished() {
        if Instant::now() >= give_up {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = thread.join();
}
