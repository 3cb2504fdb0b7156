//! Logging: tracing events become lines on the calling thread and bytes on the log thread. In between is a
//! bounded queue: a full queue or a failing disk loses lines, which are counted, and never delays a worker.
//! aya-log speaks `log`, which tracing-log carries here.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, reload};

use crate::control::messages::LogLook;
use crate::error::explain_shortage;
use crate::threads::join_within;

/// Lines that may wait for the log thread.
const QUEUE_LINES: usize = 4096;
/// A longer line is cut, so that the queue's memory is bounded too.
const LINE_BYTES: usize = 4096;
/// How long dropping the guard waits for a slow stderr.
const FLUSH_FOR: Duration = Duration::from_secs(1);

/// The process's filter of lines.
static LEVEL: OnceLock<Level> = OnceLock::new();

type Level = reload::Handle<Targets, Registry>;

/// Of the process; the guard may be gone when metrics ask.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Errors of the start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not one of the five levels.
    #[error("log level {0:?}: expected error, warn, info, debug or trace")]
    Level(String),
    /// A logger was installed before.
    #[error("a logger is installed already")]
    Installed,
    /// The log thread could not be started.
    #[error("log thread: {}", explain_shortage(.0))]
    Thread(std::io::Error),
}

/// Keeps the log thread; dropping it flushes the queue, for at most a second.
#[derive(Debug)]
pub struct LogGuard {
    sink: Sink,
    thread: Option<JoinHandle<()>>,
}

/// How lines look on this standard error, on a terminal without and with colours, in a file or in the
/// journal. `text`: as asked for; `None`: text on a terminal, JSON otherwise. NO_COLOR (no-color.org) and
/// TERM=dumb forbid colours; JOURNAL_STREAM (systemd.exec(5)) names the journal's socket.
#[must_use]
pub fn look(text: Option<bool>) -> LogLook {
    let stderr = std::io::stderr();
    let is_terminal = stderr.is_terminal();
    let variable = |name| std::env::var(name).unwrap_or_default();
    let journal = || {
        let stat = nix::sys::stat::fstat(&stderr).ok()?;
        Some(variable("JOURNAL_STREAM") == format!("{}:{}", stat.st_dev, stat.st_ino))
    };
    LogLook {
        text: text.unwrap_or(is_terminal),
        color: is_terminal && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb",
        priorities: !is_terminal && journal().unwrap_or(false),
    }
}

/// Installs the process's logger on stderr. `level` as in `log.level`; libraries below us (hyper, tokio)
/// never log finer than `info`. Panics are logged as errors, from the log thread like everything else.
pub fn init(level: &str, look: LogLook) -> Result<LogGuard, LogError> {
    let level = parse_level(level)?;
    let guard = LogGuard::start(std::io::stderr())?;
    let (subscriber, handle) = subscriber(level, look, guard.sink.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError::Installed)?;
    let _ = LEVEL.set(handle);
    // `log` asks before it formats, so a record of a disabled level costs one comparison.
    let _ = tracing_log::LogTracer::builder().with_max_level(log_level(level)).init();
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("a value that is not text");
        let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
        tracing::error!(location, thread, "panic: {message}");
    }));
    Ok(guard)
}

/// Another `log.level` from now on. Threads that log see it at their next line and wait for nothing: which
/// lines are wanted is kept with the line.
///
/// # Errors
/// When it is no level.
pub fn set_level(level: &str) -> Result<(), LogError> {
    let level = parse_level(level)?;
    // Without a handle no logger of ours is installed, and then there is nothing to change.
    if let Some(handle) = LEVEL.get() {
        apply_level(handle, level);
        log::set_max_level(log_level(level));
    }
    Ok(())
}

fn apply_level(handle: &Level, level: LevelFilter) {
    // Fails only when the subscriber is gone.
    let _ = handle.reload(targets(level));
}

/// Lines lost in this process: the queue was full, or stderr failed.
#[must_use]
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

fn parse_level(level: &str) -> Result<LevelFilter, LogError> {
    match level {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err(LogError::Level(level.to_owned())),
    }
}

fn log_level(level: LevelFilter) -> log::LevelFilter {
    match level {
        LevelFilter::ERROR => log::LevelFilter::Error,
        LevelFilter::WARN => log::LevelFilter::Warn,
        LevelFilter::DEBUG => log::LevelFilter::Debug,
        LevelFilter::TRACE => log::LevelFilter::Trace,
        _ => log::LevelFilter::Info,
    }
}

fn targets(level: LevelFilter) -> Targets {
    // "proxy" is a prefix: it covers the eBPF side's crates too.
    Targets::new()
        .with_default(level.min(LevelFilter::INFO))
        .with_target("proxy", level)
        .with_target("sluice", level)
}

fn subscriber(level: LevelFilter, look: LogLook, sink: Sink) -> (impl Subscriber + Send + Sync, Level) {
    let (targets, handle) = reload::Layer::new(targets(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(Lines { sink, priorities: look.priorities });
    let lines = if look.text {
        lines.with_ansi(look.color).with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    (tracing_subscriber::registry().with(lines.with_filter(targets)), handle)
}

/// The queue's sending end: the formatter writes to it.
#[derive(Clone, Debug)]
struct Sink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    lines: ArrayQueue<Box<[u8]>>,
    closing: AtomicBool,
    /// Set once, before the sink is handed to anybody.
    reader: std::sync::OnceLock<Thread>,
}

impl LogGuard {
    fn start(output: impl Write + Send + 'static) -> Result<Self, LogError> {
        let shared = Arc::new(Shared {
            lines: ArrayQueue::new(QUEUE_LINES),
            closing: AtomicBool::new(false),
            reader: std::sync::OnceLock::new(),
        });
        let theirs = Arc::clone(&shared);
        // A sandboxed process may not change capabilities any more, so the thread does it before anything
        // else happens.
        let without_rights = Arc::new(Barrier::new(2));
        let cleared = Arc::clone(&without_rights);
        let thread = std::thread::Builder::new()
            .name("sluice-log".to_owned())
            .spawn(move || {
                // Capabilities belong to threads, and the supervisor gives up its own when this one runs
                // already. It needs none.
                for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
                    let _ = caps::clear(None, set);
                }
                cleared.wait();
                write_out(&theirs, output);
            })
            .map_err(LogError::Thread)?;
        without_rights.wait();
        let _ = shared.reader.set(thread.thread().clone());
        Ok(Self { sink: Sink(shared), thread: Some(thread) })
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.sink.0.closing.store(true, Ordering::Release);
        self.sink.0.wake();
        if let Some(thread) = self.thread.take() {
            // Stderr may be a pipe nobody reads.
            join_within(thread, FLUSH_FOR);
        }
    }
}

impl Shared {
    /// A futex wake when the log thread sleeps, one atomic swap when it does not.
    fn wake(&self) {
        if let Some(reader) = self.reader.get() {
            reader.unpark();
        }
    }

    fn push(&self, line: &[u8]) {
        let line: Box<[u8]> = if line.len() <= LINE_BYTES {
            line.into()
        } else {
            // Never half a character: the line stays UTF-8 (a cut JSON line is no JSON any more; no event of
            // ours is that long).
            let end = (0..=LINE_BYTES).rev().find(|&at| line[at] & 0xc0 != 0x80).unwrap_or(0);
            [&line[..end], "…\n".as_bytes()].concat().into()
        };
        if self.lines.push(line).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        self.wake();
    }
}

/// The log thread: parks while there is nothing, so that an idle process stays idle.
fn write_out(shared: &Shared, mut output: impl Write) {
    loop {
        // Read before the queue is drained: lines that were pushed before `closing` are then still written.
        let closing = shared.closing.load(Ordering::Acquire);
        while let Some(line) = shared.lines.pop() {
            if output.write_all(&line).is_err() {
                LOST.fetch_add(1, Ordering::Relaxed);
            }
        }
        let _ = output.flush();
        if closing {
            return;
        }
        if shared.lines.is_empty() {
            std::thread::park();
        }
    }
}

/// Where the formatter writes lines.
struct Lines {
    sink: Sink,
    priorities: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter { shared: &self.sink.0, priority: "" }
    }

    fn make_writer_for(&'a self, event: &tracing::Metadata<'_>) -> LineWriter<'a> {
        let priority = if self.priorities { priority(*event.level()) } else { "" };
        LineWriter { shared: &self.sink.0, priority }
    }
}

/// As syslog(3) counts.
fn priority(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => "<3>",
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        _ => "<7>",
    }
}

/// The formatter hands over one event in one write.
struct LineWriter<'a> {
    shared: &'a Shared,
    priority: &'static str,
}

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.priority.is_empty() {
            self.shared.push(line);
        } else {
            self.shared.push(&[self.priority.as_bytes(), line].concat());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
