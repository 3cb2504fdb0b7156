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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_what_is_read_makes_room() {
        let (producer, mut consumer) = ring(64);
        assert!(!producer.push(&[0; 57]), "8 words, and the length takes one");
        assert!(producer.push(&[1; 56]));
        assert!(producer.is_half_full());
        assert!(!producer.push(&[]));
        let mut read = Vec::new();
        assert!(consumer.pop(&mut read) && consumer.is_empty());
        assert_eq!(read, [1; 56]);
        assert!(producer.push(&[]) && !producer.is_half_full());
        read.clear();
        assert!(consumer.pop(&mut read) && read.is_empty());
        assert!(!consumer.pop(&mut read));
    }

    #[test]
    fn two_threads_lose_nothing_and_keep_the_order() {
        let (producer, mut consumer) = ring(4096);
        const COUNT: u32 = 100_000;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..COUNT {
                    let mut bytes = number.to_le_bytes().to_vec();
                    bytes.resize(4 + number as usize % 40, number as u8);
                    while !producer.push(&bytes) {
                        std::thread::yield_now();
                    }
                }
            });
            let mut read = Vec::new();
            for number in 0..COUNT {
                read.clear();
                while !consumer.pop(&mut read) {
                    std::thread::yield_now();
                }
                assert_eq!(read[..4], number.to_le_bytes());
                assert_eq!(read.len(), 4 + number as usize % 40);
                assert!(read[4..].iter().all(|&byte| byte == number as u8));
            }
        });
    }

    proptest! {
        /// Against a queue of vectors.
        #[test]
        fn is_a_queue(
            steps in prop::collection::vec(
                prop::option::of(prop::collection::vec(any::<u8>(), 0..90)),
                1..200,
            ),
        ) {
            let (producer, mut consumer) = ring(256);
            let mut model = std::collections::VecDeque::new();
            for step in steps {
                match step {
                    Some(bytes) => {
                        let used: usize =
                            model.iter().map(|queued: &Vec<u8>| 1 + queued.len().div_ceil(WORD)).sum();
                        let fits = used + 1 + bytes.len().div_ceil(WORD) <= 32;
                        prop_assert_eq!(producer.push(&bytes), fits);
                        if fits {
                            model.push_back(bytes);
                        }
                    }
                    None => {
                        let mut read = vec![7];
                        let expected = model.pop_front();
                        prop_assert_eq!(consumer.pop(&mut read), expected.is_some());
                        prop_assert_eq!(read.split_off(1), expected.unwrap_or_default());
                    }
                }
            }
        }
    }
}
