//! The workers' counters: one block per worker, written by that worker alone, read by other threads and
//! processes. The blocks live in a memfd that the supervisor owns, so they outlive a data plane; `telemetry`
//! only encodes them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub mod block;
pub(crate) mod mapping;
pub mod names;

pub use block::{Counters, CountersMemory};
pub use names::{CELLS, Counter, DURATION_BOUNDS_MICROS, Kind, Plain};

/// A copy of one block's values; index with `Counter::index`.
pub type Cells = [u64; CELLS];

/// One worker's cells.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct CounterBlock {
    cells: [AtomicU64; CELLS],
}

impl Default for CounterBlock {
    fn default() -> Self {
        Self { cells: [const { AtomicU64::new(0) }; CELLS] }
    }
}

impl CounterBlock {
    /// Adds to a counter. Only the owning worker calls this: a load and a store, no locked instruction.
    pub fn add(&self, counter: impl Into<Counter>, amount: u64) {
        let cell = &self.cells[counter.into().index()];
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Counts how long an exchange took. Most are fast, so the search begins with the fastest bucket.
    pub fn took(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = DURATION_BOUNDS_MICROS
            .iter()
            .position(|bound| micros <= *bound)
            .unwrap_or(DURATION_BOUNDS_MICROS.len());
        self.increment(Counter::Duration(bucket));
        self.add(Counter::DurationMicros, micros);
    }

    /// Adds one.
    pub fn increment(&self, counter: impl Into<Counter>) {
        self.add(counter, 1);
    }

    /// Takes one from a gauge.
    pub fn decrement(&self, gauge: impl Into<Counter>) {
        self.add(gauge, u64::MAX);
    }

    /// Sets a gauge.
    pub fn set(&self, gauge: impl Into<Counter>, value: u64) {
        self.cells[gauge.into().index()].store(value, Ordering::Relaxed);
    }

    /// A copy of every value, cell by cell: not a consistent cut over cells.
    #[must_use]
    pub fn cells(&self) -> Cells {
        std::array::from_fn(|at| self.cells[at].load(Ordering::Relaxed))
    }

    /// Zeroes the gauges: a new data plane holds nothing yet. Counters go on over data planes.
    pub fn reset_gauges(&self) {
        for gauge in Plain::ALL.iter().filter(|plain| plain.describe().2 == Kind::Gauge) {
            self.set(*gauge, 0);
        }
    }

    /// Reads a cell.
    #[must_use]
    pub fn value(&self, counter: impl Into<Counter>) -> u64 {
        self.cells[counter.into().index()].load(Ordering::Relaxed)
    }
}
