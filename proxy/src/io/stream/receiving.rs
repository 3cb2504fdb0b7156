//! The receiving side of a stream: where its receive operation is, into which class of buffer it goes, and
//! the bytes that came and nobody has taken yet.

use super::{Queue, StreamError};
use crate::io::WaitingTask;
use crate::io::buffers::Class;
use crate::time::Time;

/// Receives in a row that fill a small buffer before a stream gets blocks.
const FULL_MAX: u8 = 4;
/// Receives in a row that would fit a small buffer before it goes back to small buffers.
const SMALL_MAX: u8 = 2;

/// Where the receive operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::io) enum ReceiveOp {
    /// None in flight.
    Idle,
    /// In flight.
    Armed,
    /// In flight, and its cancel too.
    Cancelling,
    /// None in flight; waits for the session to drop bytes, or for buffers.
    Held,
}

/// See the module.
pub(in crate::io) struct Receiving {
    pub(in crate::io) operation: ReceiveOp,
    /// Received, and not taken yet; of a stream that carries TLS: not opened yet.
    pub(in crate::io) queue: Queue,
    /// How reading ended, once the queue is empty.
    pub(in crate::io) end: Option<Result<(), StreamError>>,
    /// Neither the ring nor the budget had room for more from this stream.
    pub(in crate::io) is_throttled: bool,
    pub(in crate::io) class: ClassChoice,
    /// Accepted, and nothing came yet: the first receive is a single one, since the connection may end with
    /// its answer.
    is_fresh: bool,
    /// The next receive is armed only when somebody waits for bytes.
    is_on_demand: bool,
    /// Bytes received so far, and when the last of them came, or the end behind them.
    bytes: u64,
    at: Time,
    pub(in crate::io) waiting: WaitingTask,
}

impl Receiving {
    pub(super) fn new(is_fresh: bool, now: Time) -> Self {
        Self {
            operation: ReceiveOp::Idle,
            queue: Queue::default(),
            end: None,
            is_throttled: false,
            class: ClassChoice { wanted: Class::Small, armed: Class::Small, streak: 0 },
            is_fresh,
            is_on_demand: false,
            bytes: 0,
            at: now,
            waiting: WaitingTask::NOBODY,
        }
    }

    /// A receive is about to be submitted: into which class of buffer, and whether multishot.
    pub(in crate::io) const fn arm(&mut self, is_tight: bool) -> (Class, bool) {
        self.operation = ReceiveOp::Armed;
        self.is_throttled = false;
        let class = self.class.arm(is_tight);
        // A single receive takes one buffer; a multishot one may take dozens before it can be cancelled, more
        // than the cache holds where they are blocks.
        let is_multishot = !is_tight && !self.is_fresh && matches!(class, Class::Small);
        self.is_on_demand = self.is_fresh;
        (class, is_multishot)
    }

    /// Lets a held receive be armed again; `false` when it was not held.
    pub(in crate::io) fn release(&mut self) -> bool {
        let is_held = self.operation == ReceiveOp::Held;
        if is_held {
            self.operation = ReceiveOp::Idle;
        }
        is_held
    }

    /// Whether the next receive waits for a task that wants bytes. After the first request nobody knows yet
    /// whether more is wanted.
    pub(in crate::io) fn waits_for_demand(&self) -> bool {
        self.is_on_demand && self.operation == ReceiveOp::Idle
    }

    /// Notes that so many bytes came; none: the end.
    pub(in crate::io) const fn note(&mut self, bytes: usize, now: Time) {
        self.bytes += bytes as u64;
        self.at = now;
        self.is_fresh = false;
    }

    /// Bytes received so far.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When bytes or their end last came; before, when the connection was there.
    pub(in crate::io) const fn at(&self) -> Time {
        self.at
    }

    /// The connection is there.
    pub(in crate::io) const fn connected(&mut self, now: Time) {
        self.at = now;
    }
}

/// Which class of buffer a stream receives into. A stream that sends a lot at a time gets blocks, one call
/// for dozens of small buffers; it goes back when it no longer does.
pub(in crate::io) struct ClassChoice {
    /// For the next receive.
    wanted: Class,
    /// Of the receive in flight, or of the last one.
    armed: Class,
    /// Receives in a row that spoke for the other class.
    streak: u8,
}

impl ClassChoice {
    pub(in crate::io) fn armed(&self) -> Class {
        self.armed
    }

    /// Whether the receive in flight uses the class that is wanted.
    pub(in crate::io) fn is_settled(&self) -> bool {
        self.armed == self.wanted
    }

    const fn arm(&mut self, is_tight: bool) -> Class {
        if is_tight {
            self.wanted = Class::Small;
        }
        self.armed = self.wanted;
        self.armed
    }

    /// Learns from a receive of this length; small buffers hold `size` bytes.
    pub(in crate::io) fn learn(&mut self, length: usize, size: usize, has_blocks: impl FnOnce() -> bool) {
        let (is_other, needed) = match self.wanted {
            Class::Small => (length == size, FULL_MAX),
            Class::Block => (length <= size, SMALL_MAX),
        };
        self.streak = if is_other { self.streak + 1 } else { 0 };
        if self.streak < needed {
            return;
        }
        self.streak = 0;
        self.wanted = if self.wanted == Class::Small && has_blocks() { Class::Block } else { Class::Small };
    }

    /// There is no block left.
    pub(in crate::io) const fn give_up_blocks(&mut self) {
        (self.wanted, self.streak) = (Class::Small, 0);
    }
}
