//! A bounded queue of byte strings from one thread to another, without lock or allocation: a ring of words in
//! which each string lies behind its length. The words are atomics only so that sharing them is safe; each is
//! written by one side at a time.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD: usize = size_of::<u64>();

/// Keeps the writes of one side off the other's cache line.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Position(AtomicU64);

#[derive(Debug)]
struct Shared {
    words: Box<[AtomicU64]>,
    /// Words ever written; stored by the producer alone.
    head: Position,
    /// Words ever read; stored by the consumer alone.
    tail: Position,
}

/// The writing end, used by one thread.
#[derive(Debug)]
pub struct Producer {
    shared: Arc<Shared>,
    /// A copy of our own position. Not `Sync`: there is one producer.
    head: Cell<u64>,
}

/// The reading end.
#[derive(Debug)]
pub struct Consumer(Arc<Shared>);

/// A ring of so many bytes, rounded up to a power of two of words.
#[must_use]
pub fn ring(bytes: usize) -> (Producer, Consumer) {
    let words = bytes.div_ceil(WORD).next_power_of_two().max(2);
    let words = (0..words).map(|_| AtomicU64::new(0)).collect();
    let shared = Arc::new(Shared { words, head: Position::default(), tail: Position::default() });
    (Producer { shared: Arc::clone(&shared), head: Cell::new(0) }, Consumer(shared))
}

impl Shared {
    fn word(&self, position: u64) -> &AtomicU64 {
        // The length is a power of two.
        &self.words[position as usize & (self.words.len() - 1)]
    }
}

impl Producer {
    /// Queues a string; `false` when there is no room for it.
    #[must_use]
    pub fn push(&self, bytes: &[u8]) -> bool {
        let shared = &*self.shared;
        let start = self.head.get();
        let words = 1 + bytes.len().div_ceil(WORD) as u64;
        if self.used() + words > shared.words.len() as u64 {
            return false;
        }
        shared.word(start).store(bytes.len() as u64, Ordering::Relaxed);
        let (whole, rest) = bytes.as_chunks::<WORD>();
        for (position, chunk) in (start + 1..).zip(whole) {
            shared.word(position).store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
        }
        if !rest.is_empty() {
            let mut last = [0; WORD];
            last[..rest.len()].copy_from_slice(rest);
            shared.word(start + words - 1).store(u64::from_le_bytes(last), Ordering::Relaxed);
        }
        self.head.set(start + words);
        // Publishes the words above.
        shared.head.0.store(start + words, Ordering::Release);
        true
    }

    /// Whether at least half of it is used, so that it is time to read.
    #[must_use]
    pub fn is_half_full(&self) -> bool {
        self.used() >= self.shared.words.len() as u64 / 2
    }

    fn used(&self) -> u64 {
        // Words that were read may be written over: the loads of the reader came before its store.
        self.head.get() - self.shared.tail.0.load(Ordering::Acquire)
    }
}

impl Consumer {
    /// Appends the next string; `false` when there is none.
    #[must_use]
    pub fn pop(&mut self, into: &mut Vec<u8>) -> bool {
        let shared = &*self.0;
        let start = shared.tail.0.load(Ordering::Relaxed);
        if start == shared.head.0.load(Ordering::Acquire) {
            return false;
        }
        let length = shared.word(start).load(Ordering::Relaxed) as usize;
        let words = length.div_ceil(WORD) as u64;
        let end = into.len() + length;
        for position in start + 1..=start + words {
            into.extend_from_slice(&shared.word(position).load(Ordering::Relaxed).to_le_bytes());
        }
        into.truncate(end);
        shared.tail.0.store(start + 1 + words, Ordering::Release);
        true
    }

    /// Whether nothing is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.tail.0.load(Ordering::Relaxed) == self.0.head.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests;
