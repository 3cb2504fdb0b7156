//! The events of a run, line by line: always hashed, so that two runs of a seed can be compared, and kept or
//! printed for people on demand.

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::rc::Rc;

use crate::time::Time;

/// Cheap to clone: all of a run write to the same.
#[derive(Clone)]
pub(super) struct Trace(Rc<RefCell<Lines>>);

struct Lines {
    hash: u64,
    start: Time,
    events: u64,
    prints: bool,
}

impl Trace {
    /// Prints each line at once if `prints`, so that a run that hangs or dies shows where.
    pub(super) fn new(prints: bool) -> Self {
        Self(Rc::new(RefCell::new(Lines {
            hash: 0xcbf2_9ce4_8422_2325,
            start: Time::from_nanos(1_000_000_000),
            events: 0,
            prints,
        })))
    }

    pub(super) fn note(&self, now: Time, what: fmt::Arguments<'_>) {
        let lines = &mut *self.0.borrow_mut();
        lines.events += 1;
        let since = now.since(lines.start);
        // Formatting into a hash never fails.
        let _ = writeln!(lines, "{} {what}", since.as_nanos());
        if lines.prints {
            println!("{:>12.6} {what}", since.as_secs_f64());
        }
    }

    /// The hash of all lines so far.
    pub(super) fn hash(&self) -> u64 {
        self.0.borrow().hash
    }

    /// Lines noted so far.
    pub(super) fn events(&self) -> u64 {
        self.0.borrow().events
    }
}

/// FNV-1a.
impl Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}
