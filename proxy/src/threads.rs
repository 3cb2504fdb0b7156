//! Ending threads.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Waits for a thread to end, but no longer than `limit`: a join has no deadline.
pub(crate) fn join_within(thread: JoinHandle<()>, limit: Duration) {
    let give_up = Instant::now() + limit;
    while !thread.is_finished() {
        if Instant::now() >= give_up {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = thread.join();
}
