//! Chunks that wait in a stream. An empty queue is a null pointer: an idle connection has two.
#![expect(
    clippy::box_collection,
    clippy::vec_box,
    reason = "a queue that holds nothing is to be one word, and its memory one allocation to pass on"
)]

use std::cell::RefCell;
use std::collections::{VecDeque, vec_deque};

use crate::io::Chunk;

/// Empty queues kept for streams that become busy again.
const SPARE_MAX: usize = 1024;

/// Boxed, so that a queue that holds nothing is one word.
#[derive(Default)]
pub(in crate::io) struct Queue(Option<Box<VecDeque<Chunk>>>);

/// Memory of queues that were let go, of one worker.
#[derive(Default)]
pub(in crate::io) struct Spares(RefCell<Vec<Box<VecDeque<Chunk>>>>);

/// Bytes that were taken off a queue together.
pub(super) enum Taken {
    /// It lay in one chunk.
    Piece(Chunk),
    /// It lay in several, these if they were to be kept.
    Joined(Vec<u8>, Vec<Chunk>),
}

impl Queue {
    pub(in crate::io) fn push_back(&mut self, chunk: Chunk, spares: &Spares) {
        self.place(spares).push_back(chunk);
    }

    pub(in crate::io) fn push_front(&mut self, chunk: Chunk, spares: &Spares) {
        self.place(spares).push_front(chunk);
    }

    pub(in crate::io) fn pop_front(&mut self) -> Option<Chunk> {
        self.0.as_mut()?.pop_front()
    }

    pub(in crate::io) fn front_mut(&mut self) -> Option<&mut Chunk> {
        self.0.as_mut()?.front_mut()
    }

    pub(in crate::io) fn back_mut(&mut self) -> Option<&mut Chunk> {
        self.0.as_mut()?.back_mut()
    }

    pub(in crate::io) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.is_empty())
    }

    /// Bytes in all chunks.
    pub(in crate::io) fn bytes(&self) -> usize {
        self.0.iter().flat_map(|queue| queue.iter()).map(|chunk| chunk.len()).sum()
    }

    pub(in crate::io) fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    pub(in crate::io) fn iter_mut(&mut self) -> vec_deque::IterMut<'_, Chunk> {
        self.0.as_mut().map_or_else(vec_deque::IterMut::default, |queue| queue.iter_mut())
    }

    /// Drops its chunks.
    pub(in crate::io) fn clear(&mut self) {
        self.0 = None;
    }

    /// Lets go of its memory if it is empty.
    pub(in crate::io) fn shrink(&mut self, spares: &Spares) {
        if let Some(queue) = self.0.take_if(|queue| queue.is_empty()) {
            let mut spares = spares.0.borrow_mut();
            // A queue that was long once would keep that memory.
            if spares.len() < SPARE_MAX && queue.capacity() <= 16 {
                spares.push(queue);
            }
        }
    }

    /// The first `N` bytes, if so many are there.
    pub(super) fn peek<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = self.iter().flat_map(|chunk| chunk.iter().copied());
        let mut first = [0; N];
        for byte in &mut first {
            *byte = bytes.next()?;
        }
        Some(first)
    }

    /// Bytes that are counted against the stream for the chunks that wait here.
    pub(in crate::io) fn outstanding(&self) -> usize {
        self.iter().map(Chunk::outstanding).sum()
    }

    /// Takes `length` bytes off the front, if they are there. `keeps`: the chunks they lay in are wanted too,
    /// where they were joined.
    pub(super) fn take(&mut self, length: usize, keeps: bool) -> Option<Taken> {
        let front = self.front_mut()?;
        if front.len() > length {
            return Some(Taken::Piece(front.split_to(length)));
        }
        if front.len() == length {
            return self.pop_front().map(Taken::Piece);
        }
        if self.bytes() < length {
            return None;
        }
        let (mut joined, mut sources) = (Vec::with_capacity(length), Vec::new());
        while joined.len() < length {
            let front = self.front_mut()?;
            let n = front.len().min(length - joined.len());
            joined.extend_from_slice(&front[..n]);
            if keeps {
                sources.push(front.split_to(n));
            } else {
                front.advance(n);
            }
            if front.is_empty() {
                drop(self.pop_front());
            }
        }
        Some(Taken::Joined(joined, sources))
    }

    fn place(&mut self, spares: &Spares) -> &mut VecDeque<Chunk> {
        self.0.get_or_insert_with(|| spares.0.borrow_mut().pop().unwrap_or_default())
    }
}
