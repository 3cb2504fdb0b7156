//! One line on the terminal that shows how far the run is. It stays silent if standard error is no terminal.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// The progress of a run.
pub(super) struct Progress {
    started: Instant,
    is_terminal: bool,
    /// The current place, e.g. "case 3 of 19".
    pub(super) place: String,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), is_terminal: std::io::stderr().is_terminal(), place: String::new() }
    }

    pub(super) fn show(&self, what: &str) {
        if self.is_terminal {
            let seconds = self.started.elapsed().as_secs();
            eprint!("\r\x1b[K[{}:{:02}] {} {what}", seconds / 60, seconds % 60, self.place);
            let _ = std::io::stderr().flush();
        }
    }

    /// Clears the line, so that other lines can be printed.
    pub(super) fn clear(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
            let _ = std::io::stderr().flush();
        }
    }

    pub(super) fn minutes(&self) -> f64 {
        self.started.elapsed().as_secs_f64() / 60.0
    }
}
