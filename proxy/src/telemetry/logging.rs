//! Logging: tracing events become lines on the calling thread and bytes on the log thread. In between is a
//! bounded queue: a full queue or a failing disk loses lines, which are counted, and never delays a worker.
//! aya-log speaks `log`, which tracing-log carries here.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::{Registry, reload};

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
    #[error("log thread: {0}")]
    Thread(std::io::Error),
}

/// How lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// Keeps the log thread; dropping it flushes the queue, for at most a second.
#[derive(Debug)]
pub struct LogGuard {
    sink: Sink,
    thread: Option<JoinHandle<()>>,
}

/// Installs the process's logger on stderr: text when stderr is a terminal, JSON otherwise. `level` as in
/// `log.level`; libraries below us (hyper, tokio) never log finer than `info`. Panics are logged as errors,
/// from the log thread like everything else.
pub fn init(level: &str) -> Result<LogGuard, LogError> {
    let format = if std::io::stderr().is_terminal() { Format::Text } else { Format::Json };
    let level = parse_level(level)?;
    let guard = LogGuard::start(std::io::stderr())?;
    let (subscriber, handle) = subscriber(level, format, guard.sink.clone());
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

fn subscriber(level: LevelFilter, format: Format, sink: Sink) -> (impl Subscriber + Send + Sync, Level) {
    let (targets, handle) = reload::Layer::new(targets(level));
    let lines = tracing_subscriber::fmt::layer().with_writer(sink);
    let lines = match format {
        Format::Text => lines.with_ansi(true).with_target(false).boxed(),
        Format::Json => {
            lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
        }
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
        let thread = std::thread::Builder::new()
            .name("sluice-log".to_owned())
            .spawn(move || {
                // Capabilities belong to threads, and the supervisor gives up its own when this one runs
                // already. It needs none.
                for set in [caps::CapSet::Effective, caps::CapSet::Permitted, caps::CapSet::Inheritable] {
                    let _ = caps::clear(None, set);
                }
                write_out(&theirs, output);
            })
            .map_err(LogError::Thread)?;
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

impl<'a> MakeWriter<'a> for Sink {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> LineWriter<'a> {
        LineWriter(&self.0)
    }
}

/// The formatter hands over one event in one write.
struct LineWriter<'a>(&'a Shared);

impl Write for LineWriter<'_> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// LOST is of the process, so the tests that count take turns.
    static TURN: Mutex<()> = Mutex::new(());

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Output {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("UTF-8")
        }
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Blocks in its first write until told; then fails or not.
    struct Stuck {
        entered: mpsc::Sender<()>,
        released: mpsc::Receiver<()>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.entered.send(());
            let _ = self.released.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct FullDisk;

    impl Write for FullDisk {
        fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn events_are_one_json_object_per_line_and_are_flushed_on_drop() {
        let output = Output::default();
        let guard = LogGuard::start(output.clone()).expect("a thread");
        tracing::subscriber::with_default(
            subscriber(LevelFilter::INFO, Format::Json, guard.sink.clone()).0,
            || {
                for worker in 0..100 {
                    tracing::info!(worker, "with \"quotes\"\nand a newline");
                }
                tracing::debug!("below the level");
            },
        );
        drop(guard);
        let text = output.text();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 100);
        assert_eq!(lines[99]["worker"], 99);
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["message"], "with \"quotes\"\nand a newline");
    }

    #[test]
    fn libraries_stay_at_info_when_sluice_speaks_finer() {
        let output = Output::default();
        let guard = LogGuard::start(output.clone()).expect("a thread");
        tracing::subscriber::with_default(
            subscriber(LevelFilter::TRACE, Format::Text, guard.sink.clone()).0,
            || {
                tracing::trace!(target: "proxy::worker", "ours");
                tracing::debug!(target: "hyper::proto", "theirs");
            },
        );
        drop(guard);
        assert!(output.text().contains("ours"));
        assert!(!output.text().contains("theirs"));
    }

    #[test]
    fn the_level_changes_while_lines_are_logged() {
        let output = Output::default();
        let guard = LogGuard::start(output.clone()).expect("a thread");
        let (subscriber, level) = subscriber(LevelFilter::INFO, Format::Text, guard.sink.clone());
        tracing::subscriber::with_default(subscriber, || {
            // The same place in the source each time: the state that is kept with it has to change.
            let say = |what: &str| tracing::debug!(target: "proxy::test", "said {what}");
            say("first");
            apply_level(&level, LevelFilter::DEBUG);
            say("second");
            apply_level(&level, LevelFilter::WARN);
            say("third");
        });
        drop(guard);
        let text = output.text();
        assert!(
            text.contains("said second") && !text.contains("said first") && !text.contains("said third"),
            "{text}"
        );
        assert!(matches!(set_level("loud"), Err(LogError::Level(_))));
    }

    #[test]
    fn a_stuck_output_loses_lines_and_never_blocks() {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (entered, has_entered) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let guard = LogGuard::start(Stuck { entered, released }).expect("a thread");
        let before = lines_lost();
        guard.sink.0.push(b"the one that is stuck\n");
        has_entered.recv().expect("the thread writes");
        for _ in 0..QUEUE_LINES + 7 {
            guard.sink.0.push(b"line\n");
        }
        assert_eq!(lines_lost() - before, 7);
        let start = Instant::now();
        drop(guard);
        assert!(start.elapsed() < FLUSH_FOR * 3, "dropping waits a bounded time");
        drop(release);
    }

    #[test]
    fn a_failing_output_is_counted_line_by_line() {
        let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before = lines_lost();
        let guard = LogGuard::start(FullDisk).expect("a thread");
        for _ in 0..5 {
            guard.sink.0.push(b"line\n");
        }
        drop(guard);
        assert_eq!(lines_lost() - before, 5);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let output = Output::default();
        let guard = LogGuard::start(output.clone()).expect("a thread");
        guard.sink.0.push("ä".repeat(LINE_BYTES).as_bytes());
        guard.sink.0.push(format!("x{}", "ä".repeat(LINE_BYTES)).as_bytes());
        guard.sink.0.push(&[b'y'; LINE_BYTES]);
        drop(guard);
        let half = LINE_BYTES / 2;
        let expected =
            format!("{}…\nx{}…\n{}", "ä".repeat(half), "ä".repeat(half - 1), "y".repeat(LINE_BYTES));
        assert_eq!(output.text(), expected);
    }

    #[test]
    fn only_the_five_levels_are_levels() {
        for level in ["error", "warn", "info", "debug", "trace"] {
            assert!(parse_level(level).is_ok());
        }
        for level in ["", "off", "INFO", "verbose"] {
            assert!(matches!(parse_level(level), Err(LogError::Level(_))), "{level}");
        }
    }

    /// `init` is once per process, so a second process of this test calls it.
    #[test]
    fn everything_reaches_stderr_through_one_thread() {
        const MARK: &str = "SLUICE_TEST_LOGGING_INIT";
        if std::env::var_os(MARK).is_some() {
            let guard = init("info").expect("the first logger");
            assert!(matches!(init("info"), Err(LogError::Installed)));
            tracing::info!(worker = 3, "from tracing");
            log::warn!(target: "proxy_ebpf", "from log, as aya-log does");
            log::debug!(target: "proxy_ebpf", "below the level");
            let panicked = std::thread::Builder::new()
                .name("w0".to_owned())
                .spawn(|| panic!("on purpose"))
                .expect("a thread")
                .join();
            assert!(panicked.is_err());
            drop(guard);
            return;
        }
        let output = std::process::Command::new(std::env::current_exe().expect("our path"))
            .args([
                "--exact",
                "telemetry::logging::tests::everything_reaches_stderr_through_one_thread",
                "--nocapture",
            ])
            .env(MARK, "1")
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}");
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("stderr is no terminal: JSON"))
            .collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!((&lines[0]["message"], &lines[0]["worker"]), (&"from tracing".into(), &3.into()));
        assert_eq!(
            (&lines[1]["message"], &lines[1]["level"]),
            (&"from log, as aya-log does".into(), &"WARN".into())
        );
        assert_eq!((&lines[2]["message"], &lines[2]["thread"]), (&"panic: on purpose".into(), &"w0".into()));
    }
}
