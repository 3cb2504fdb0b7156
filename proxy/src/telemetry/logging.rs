//! Logging: tracing events become lines on the calling thread and bytes on the log thread. In between is a bounded queue: a full queue
//! or a failing disk loses lines, which are counted, and never delays a worker.

/// What went wrong.
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

/// Keeps the log thread; dropping it flushes what is queued, for a bounded time.
#[derive(Debug)]
pub struct LogGuard(());

/// Installs the process's logger on stderr: text when stderr is a terminal, JSON otherwise. `level` as in `log.level`.
pub fn init(_level: &str) -> Result<LogGuard, LogError> {
    unimplemented!()
}

/// Lines lost in this process: the queue was full or stderr failed.
#[must_use]
pub fn lines_lost() -> u64 {
    unimplemented!()
}
