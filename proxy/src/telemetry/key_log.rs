//! Secrets of handshakes in the format that NSS gave key logs. A bounded queue stands between the threads
//! that shake hands, which never wait, and a thread that writes to the file that the supervisor opened. Both
//! exist only if they were asked for. A disk that is full or too slow costs lines, with a warning, and
//! nothing else.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use rustls::KeyLog;
use tracing::warn;
use zeroize::{Zeroize as _, Zeroizing};

use crate::threads::join_within;
use crate::tls::key_log;

/// Lines that may wait: five for a handshake of TLS 1.3, of at most 200 bytes.
const LINES_MAX: usize = 4096;
/// About the size of a write.
const WRITE_BYTES: usize = 16 << 10;
/// How long the end waits for a slow disk.
const FLUSH_FOR: Duration = Duration::from_secs(1);

/// The warning that appears in every place where an operator looks.
#[must_use]
pub fn warning(path: &str) -> String {
    format!(
        "THE SECRETS OF ALL TLS CONNECTIONS ARE WRITTEN TO {path}: whoever reads it can read their traffic"
    )
}

/// Keeps the thread; dropping it writes the queue, for at most a second.
#[derive(Debug)]
pub struct KeyLogGuard {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

/// The lines that wait for being written.
#[derive(Debug)]
struct Queue {
    lines: ArrayQueue<Zeroizing<Vec<u8>>>,
    lost: AtomicU64,
    closing: AtomicBool,
    /// The thread that writes them; set before anything is queued.
    writer: OnceLock<Thread>,
}

impl KeyLogGuard {
    /// Starts the thread; every handshake of the process tells its secrets from now on.
    ///
    /// # Errors
    /// When the kernel has no thread left, or when the process has such a thread.
    pub fn start(output: OwnedFd) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(LINES_MAX));
        let theirs = Arc::clone(&queue);
        let name = "sluice-key-log".to_owned();
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || theirs.write_out(&mut File::from(output)))?;
        let _ = queue.writer.set(thread.thread().clone());
        let guard = Self { queue: Arc::clone(&queue), thread: Some(thread) };
        if key_log::tell(queue) { Ok(guard) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    }
}

impl Drop for KeyLogGuard {
    fn drop(&mut self) {
        self.queue.closing.store(true, Ordering::Release);
        self.queue.wake();
        if let Some(thread) = self.thread.take() {
            join_within(thread, FLUSH_FOR);
        }
    }
}

impl KeyLog for Queue {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        if self.lines.push(line(label, client_random, secret)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        self.wake();
    }
}

impl Queue {
    fn new(lines_max: usize) -> Self {
        Self {
            lines: ArrayQueue::new(lines_max),
            lost: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            writer: OnceLock::new(),
        }
    }

    fn wake(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn write_out(&self, output: &mut impl Write) {
        let mut failed = false;
        // Never grown: secrets would stay in the memory that it grew out of.
        let mut batch = Zeroizing::new(Vec::with_capacity(2 * WRITE_BYTES));
        loop {
            // Read before the queue is drained: lines that were queued before are then still written.
            let closing = self.closing.load(Ordering::Acquire);
            while batch.len() < WRITE_BYTES
                && let Some(line) = self.lines.pop()
            {
                batch.extend_from_slice(&line);
            }
            let is_empty = batch.is_empty();
            match output.write_all(&batch) {
                Ok(()) => failed &= is_empty,
                // Once, until it works again.
                Err(error) if !std::mem::replace(&mut failed, true) => {
                    warn!("the key log cannot be written: {error}")
                }
                Err(_) => {}
            }
            batch.zeroize();
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                warn!("{lost} lines of the key log were lost: more came than its disk takes");
            }
            if is_empty {
                if closing {
                    return;
                }
                std::thread::park();
            }
        }
    }
}

/// `<label> <client_random> <secret>`, both in hexadecimal.
fn line(label: &str, client_random: &[u8], secret: &[u8]) -> Zeroizing<Vec<u8>> {
    // Never grown, as the batch.
    let mut line = String::with_capacity(label.len() + 2 * (client_random.len() + secret.len()) + 3);
    line.push_str(label);
    for bytes in [client_random, secret] {
        line.push(' ');
        for byte in bytes {
            let _ = write!(line, "{byte:02x}");
        }
    }
    line.push('\n');
    Zeroizing::new(line.into_bytes())
}

#[cfg(test)]
mod tests;
