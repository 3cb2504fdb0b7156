//! The access log: one JSON object a line for each exchange. A worker formats its record into memory of its
//! own and puts the bytes into its ring; one thread takes them from all rings and writes them in batches. A
//! full ring or a failing disk loses lines, which are counted; nothing waits for them.

pub mod entry;
pub mod json;
pub mod ring;
pub mod writer;

pub use self::entry::Entry;
pub use self::writer::{AccessLog, lost, written};

use std::cell::RefCell;
use std::sync::Arc;

use self::ring::Producer;
use self::writer::Doorbell;

/// One worker's end: formats and queues its records.
#[derive(Debug)]
pub struct AccessSender {
    producer: Producer,
    doorbell: Arc<Doorbell>,
    line: RefCell<Vec<u8>>,
    /// `log.query`
    with_query: bool,
}

impl AccessSender {
    /// Queues a record, or counts it as lost. Neither waits nor allocates once its buffer has grown to the
    /// longest line.
    pub fn send(&self, record: &Entry<'_>) {
        let mut line = self.line.borrow_mut();
        line.clear();
        record.write(&mut line, self.with_query);
        if !self.producer.push(&line) {
            writer::count_lost_in_queue(1);
        }
        self.doorbell.after_push(self.producer.is_half_full());
    }
}
