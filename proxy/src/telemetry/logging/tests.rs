//! Tests of `telemetry::logging`.

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
        subscriber(LevelFilter::INFO, LogLook::default(), guard.sink.clone()).0,
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
        subscriber(
            LevelFilter::TRACE,
            LogLook { text: true, color: true, priorities: false },
            guard.sink.clone(),
        )
        .0,
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
    let (subscriber, level) = subscriber(
        LevelFilter::INFO,
        LogLook { text: true, color: true, priorities: false },
        guard.sink.clone(),
    );
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
    let expected = format!("{}…\nx{}…\n{}", "ä".repeat(half), "ä".repeat(half - 1), "y".repeat(LINE_BYTES));
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
        let guard = init("info", LogLook::default()).expect("the first logger");
        assert!(matches!(init("info", LogLook::default()), Err(LogError::Installed)));
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
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("stderr is no terminal: JSON")).collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!((&lines[0]["message"], &lines[0]["worker"]), (&"from tracing".into(), &3.into()));
    assert_eq!(
        (&lines[1]["message"], &lines[1]["level"]),
        (&"from log, as aya-log does".into(), &"WARN".into())
    );
    assert_eq!((&lines[2]["message"], &lines[2]["thread"]), (&"panic: on purpose".into(), &"w0".into()));
}

#[test]
fn the_journal_gets_a_priority_before_each_line() {
    for text in [false, true] {
        let output = Output::default();
        let guard = LogGuard::start(output.clone()).expect("a thread");
        let look = LogLook { text, color: false, priorities: true };
        let (subscriber, _) = subscriber(LevelFilter::DEBUG, look, guard.sink.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("first");
            tracing::warn!("second");
            tracing::info!("third");
        });
        drop(guard);
        let text = output.text();
        let begins: Vec<&str> = text.lines().map(|line| &line[..3]).collect();
        assert_eq!(begins, ["<3>", "<4>", "<6>"], "{text}");
        assert!(!text.contains('\u{1b}'), "no colours: {text}");
    }
}

#[test]
fn what_was_asked_for_holds_wherever_standard_error_goes() {
    assert!(look(Some(true)).text && !look(Some(false)).text);
}
