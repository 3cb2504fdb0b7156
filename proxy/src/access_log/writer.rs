//! The access log's thread: takes the workers' lines and writes them in large pieces. While there is traffic
//! it naps between two looks instead of being woken for each record. Only after a look that found nothing
//! does it sleep until it is woken.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use tracing::{info, warn};

use super::AccessSender;
use super::ring::{self, Consumer};
use crate::error::LogLossReason;
use crate::threads::join_within;

/// Bytes that may wait per worker: some ten thousand records.
const QUEUE_BYTES: usize = 4 << 20;
/// About the size of a write.
const WRITE_BYTES: usize = 64 << 10;
/// The nap between two looks while there is traffic.
const NAP: Duration = Duration::from_millis(20);
/// How long the end of the log waits for a slow disk.
const FLUSH_FOR: Duration = Duration::from_secs(2);

/// Records lost in this process, by `LogLossReason`.
static LOST: [AtomicU64; LogLossReason::ALL.len()] = [const { AtomicU64::new(0) }; LogLossReason::ALL.len()];
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Records lost in this process for this reason.
#[must_use]
pub fn lost(reason: LogLossReason) -> u64 {
    LOST[reason.index()].load(Ordering::Relaxed)
}

/// Records written in this process.
#[must_use]
pub fn written() -> u64 {
    WRITTEN.load(Ordering::Relaxed)
}

/// A worker found its ring full.
pub(super) fn count_lost_in_queue(records: u64) {
    LOST[LogLossReason::QueueFull.index()].fetch_add(records, Ordering::Relaxed);
}

const AWAKE: u8 = 0;
const NAPPING: u8 = 1;
const SLEEPING: u8 = 2;

/// How a worker wakes the thread, which it seldom has to.
#[derive(Debug, Default)]
pub(super) struct Doorbell {
    state: AtomicU8,
    /// Set once, before any sender is handed out.
    thread: OnceLock<Thread>,
}

impl Doorbell {
    /// Wakes the thread if it sleeps, or if it naps and there is a lot to do.
    pub(super) fn after_push(&self, is_urgent: bool) {
        // This fence stands between the push and the look at the thread's state. The thread has one between
        // its state and its look at the rings.
        fence(Ordering::SeqCst);
        let state = self.state.load(Ordering::Relaxed);
        let wakes = state == SLEEPING || (state == NAPPING && is_urgent);
        if wakes && self.state.compare_exchange(state, AWAKE, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.ring();
        }
    }

    fn ring(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Keeps the thread; dropping it writes the queues, for at most two seconds.
#[derive(Debug)]
pub struct AccessLog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    doorbell: Arc<Doorbell>,
    /// The next file to write to. Only control and log thread meet here.
    next: Mutex<Option<File>>,
    closing: AtomicBool,
}

impl AccessLog {
    /// Starts the thread, and makes a sender for each worker.
    ///
    /// # Errors
    /// When the kernel has no thread left.
    pub fn start(
        output: OwnedFd,
        workers: usize,
        with_query: bool,
    ) -> std::io::Result<(Self, Vec<AccessSender>)> {
        Self::start_with(output, workers, with_query, QUEUE_BYTES)
    }

    fn start_with(
        output: OwnedFd,
        workers: usize,
        with_query: bool,
        queue_bytes: usize,
    ) -> std::io::Result<(Self, Vec<AccessSender>)> {
        let shared = Arc::new(Shared {
            doorbell: Arc::default(),
            next: Mutex::new(None),
            closing: AtomicBool::new(false),
        });
        let (producers, consumers): (Vec<_>, Vec<_>) = (0..workers).map(|_| ring::ring(queue_bytes)).unzip();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("sluice-access".to_owned()).spawn(move || {
            Writer { shared: &theirs, rings: consumers, output: Output::new(output.into()) }.run()
        })?;
        let _ = shared.doorbell.thread.set(thread.thread().clone());
        let sender = |producer| AccessSender {
            producer,
            doorbell: Arc::clone(&shared.doorbell),
            line: std::cell::RefCell::default(),
            with_query,
        };
        let senders = producers.into_iter().map(sender).collect();
        Ok((Self { shared, thread: Some(thread) }, senders))
    }

    /// Writes to another file from now on. The present write is finished to the old one: no record is lost,
    /// none is in both.
    pub fn reopen(&self, output: OwnedFd) {
        *self.shared.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(output.into());
        self.shared.doorbell.ring();
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        self.shared.doorbell.ring();
        if let Some(thread) = self.thread.take() {
            // A disk may hang.
            join_within(thread, FLUSH_FOR);
        }
    }
}

struct Writer<'a> {
    shared: &'a Shared,
    rings: Vec<Consumer>,
    output: Output,
}

impl Writer<'_> {
    fn run(mut self) {
        loop {
            // Read before the rings: records that were queued before `closing` are then still written.
            let closing = self.shared.closing.load(Ordering::Acquire);
            let found = self.take_all();
            if closing {
                return;
            }
            self.rest(found);
        }
    }

    /// Writes all queued records. `true`: there were some.
    fn take_all(&mut self) -> bool {
        let mut found = false;
        loop {
            let next = self.shared.next.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(file) = next {
                self.output = Output::new(file);
            }
            let mut batch = std::mem::take(&mut self.output.batch);
            let mut more = false;
            for ring in &mut self.rings {
                while batch.len() < WRITE_BYTES && ring.pop(&mut batch) {}
                more |= !ring.is_empty();
            }
            found |= !batch.is_empty();
            self.output.write(&batch);
            batch.clear();
            self.output.batch = batch;
            if !more {
                return found;
            }
            // A ring that is always full must not keep the others waiting: the next round begins with
            // another.
            self.rings.rotate_left(1);
        }
    }

    fn rest(&self, found: bool) {
        let state = &self.shared.doorbell.state;
        state.store(if found { NAPPING } else { SLEEPING }, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if found {
            std::thread::park_timeout(NAP);
        } else if self.rings.iter().all(Consumer::is_empty) {
            std::thread::park();
        }
        state.store(AWAKE, Ordering::Relaxed);
    }
}

/// One file, and how its last write went.
struct Output {
    file: File,
    batch: Vec<u8>,
    /// The last write ended within a line.
    torn: bool,
    /// Records lost since writing began to fail.
    failing: Option<u64>,
}

impl Output {
    const fn new(file: File) -> Self {
        Self { file, batch: Vec::new(), torn: false, failing: None }
    }

    /// Writes whole lines; counts lines that could not be written whole.
    fn write(&mut self, batch: &[u8]) {
        if batch.is_empty() {
            return;
        }
        let begun = if self.torn { self.write_some(b"\n").map(|_| ()) } else { Ok(()) };
        let (taken, error) = match begun {
            Ok(()) => self
                .write_some(batch)
                .map_or_else(|(taken, error)| (taken, Some(error)), |taken| (taken, None)),
            Err((_, error)) => (0, Some(error)),
        };
        if taken > 0 {
            self.torn = batch[taken - 1] != b'\n';
        }
        let lines = |bytes: &[u8]| memchr::memchr_iter(b'\n', bytes).count() as u64;
        WRITTEN.fetch_add(lines(&batch[..taken]), Ordering::Relaxed);
        let lost = lines(&batch[taken..]);
        LOST[LogLossReason::WriteFailed.index()].fetch_add(lost, Ordering::Relaxed);
        match (error, &mut self.failing) {
            (Some(error), None) => {
                warn!(
                    "the access log cannot be written: {error}; records are lost, and counted, until it can"
                );
                self.failing = Some(lost);
            }
            (Some(_), Some(all)) => *all += lost,
            (None, Some(all)) => {
                info!("the access log can be written again; {all} records were lost");
                self.failing = None;
            }
            (None, None) => {}
        }
    }

    /// Writes `bytes`; returns how much was written, and why not all of it.
    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, (usize, std::io::Error)> {
        let mut taken = 0;
        while taken < bytes.len() {
            match self.file.write(&bytes[taken..]) {
                Ok(0) => return Err((taken, ErrorKind::WriteZero.into())),
                Ok(count) => taken += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err((taken, error)),
            }
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
