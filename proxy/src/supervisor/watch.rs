//! Notices changes of the files that the configuration refers to: a look at each every two seconds. stat(2)
//! follows symbolic links and works on every file system. So files that are replaced by rename (certbot) or
//! by a link further up (Kubernetes) show like files that are written in place. A state that was seen twice
//! is settled. It is tried once, and again only when it changes.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::ReloadOutcome;
use crate::time::Time;

/// Between two looks: a change takes effect after the second look that finds it.
pub const PAUSE: Duration = Duration::from_secs(2);
/// When a change is tried again that was fine in itself.
pub const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Tells one state of a file from another; `None`: it cannot be looked at.
type Print = Option<[i128; 5]>;

/// See the module.
#[derive(Debug, Default)]
pub struct Watch {
    paths: Vec<PathBuf>,
    /// As last seen.
    seen: Vec<Print>,
    /// As last tried.
    tried: Vec<Print>,
    next_look: Time,
    retry_at: Option<Time>,
}

impl Watch {
    /// Watches these files. They may have changed since they were read, so the first settled state is tried.
    #[must_use]
    pub fn new(paths: Vec<PathBuf>, now: Time) -> Self {
        Self { paths, next_look: now + PAUSE, ..Self::default() }
    }

    /// Watches these files from now on.
    pub fn follow(&mut self, paths: Vec<PathBuf>) {
        if paths != self.paths {
            *self = Self { paths, next_look: self.next_look, ..Self::default() };
        }
    }

    /// How many files are watched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// None at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// When `look` is due.
    #[must_use]
    pub fn next_look(&self) -> Option<Time> {
        (!self.paths.is_empty()).then_some(self.next_look)
    }

    /// Looks, if it is time; whether something has changed that is to be tried.
    pub fn look(&mut self, now: Time) -> bool {
        if self.paths.is_empty() || now < self.next_look {
            return false;
        }
        self.next_look = now + PAUSE;
        let prints: Vec<Print> = self.paths.iter().map(|path| print(path)).collect();
        let settled = prints == self.seen;
        let again = self.retry_at.is_some_and(|at| now >= at);
        self.seen = prints;
        if !settled || self.seen == self.tried && !again {
            return false;
        }
        self.tried.clone_from(&self.seen);
        self.retry_at = None;
        true
    }

    /// The outcome of a try. The death of a data plane, for example, is no reason to ignore a renewed
    /// certificate for ever.
    pub fn finished(&mut self, outcome: ReloadOutcome, now: Time) {
        let again = match outcome {
            ReloadOutcome::Applied
            | ReloadOutcome::Unchanged
            | ReloadOutcome::Invalid
            | ReloadOutcome::NeedsRestart => false,
            ReloadOutcome::NotSent
            | ReloadOutcome::Refused
            | ReloadOutcome::Died
            | ReloadOutcome::Silent
            | ReloadOutcome::NotReady
            | ReloadOutcome::Ending => true,
        };
        self.retry_at = again.then_some(now + RETRY_AFTER);
    }
}

fn print(path: &Path) -> Print {
    let metadata = std::fs::metadata(path).ok()?;
    let time = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    Some([
        i128::from(metadata.dev()),
        i128::from(metadata.ino()),
        i128::from(metadata.size()),
        time(metadata.mtime(), metadata.mtime_nsec()),
        time(metadata.ctime(), metadata.ctime_nsec()),
    ])
}

#[cfg(test)]
mod tests;
