//! Chunks that wait in a stream. An empty queue is a null pointer: an idle connection has two.
#![expect(
    clippy::box_collection,
    clippy::vec_box,
    reason = "a queue that holds nothing is to be one word, and its memory one allocation to pass on"
)]

use std::cell::RefCell;
use std::collections::{VecDeque, vec_deque};

use super::Chunk;

/// Empty queues kept for streams that become busy again.
const SPARE_MAX: usize = 1024;

/// Boxed, so that a queue that holds nothing is one word.
#[derive(Default)]
pub(super) struct Queue(Option<Box<VecDeque<Chunk>>>);

/// Memory of queues that were let go, of one worker.
#[derive(Default)]
pub(super) struct Spares(RefCell<Vec<Box<VecDeque<Chunk>>>>);

impl Queue {
    pub(super) fn push_back(&mut self, chunk: Chunk, spares: &Spares) {
        self.place(spares).push_back(chunk);
    }

    pub(super) fn push_front(&mut self, chunk: Chunk, spares: &Spares) {
        self.place(spares).push_front(chunk);
    }

    pub(super) fn pop_front(&mut self) -> Option<Chunk> {
        self.0.as_mut()?.pop_front()
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut Chunk> {
        self.0.as_mut()?.front_mut()
    }

    pub(super) fn back_mut(&mut self) -> Option<&mut Chunk> {
        self.0.as_mut()?.back_mut()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|queue| queue.is_empty())
    }

    /// Bytes in all chunks.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().flat_map(|queue| queue.iter()).map(|chunk| chunk.len()).sum()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.0.iter().flat_map(|queue| queue.iter())
    }

    pub(super) fn iter_mut(&mut self) -> vec_deque::IterMut<'_, Chunk> {
        self.0.as_mut().map_or_else(vec_deque::IterMut::default, |queue| queue.iter_mut())
    }

    /// Drops what it holds.
    pub(super) fn clear(&mut self) {
        self.0 = None;
    }

    /// Lets go of its memory if it is empty.
    pub(super) fn shrink(&mut self, spares: &Spares) {
        if let Some(queue) = self.0.take_if(|queue| queue.is_empty()) {
            let mut spares = spares.0.borrow_mut();
            // One that was long once would keep that memory.
            if spares.len() < SPARE_MAX && queue.capacity() <= 16 {
                spares.push(queue);
            }
        }
    }

    fn place(&mut self, spares: &Spares) -> &mut VecDeque<Chunk> {
        self.0.get_or_insert_with(|| spares.0.borrow_mut().pop().unwrap_or_default())
    }
}
