//! The state of one worker's engine that sessions reach: its clock, timers, tasks, memory, and the streams in
//! their slots.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::task::Waker;

use super::Stream;
use super::buffers::BufferPool;
use super::executor::Executor;
use super::seam::Unreported;
use super::settings::Settings;
use super::stream::{Inner, Spares, StreamState, Tag};
use super::timer::{TimerKey, Wheel};
use super::token::SLOTS_MAX;
use crate::time::Time;

/// The action of a timer when it fires.
pub(super) enum Alarm {
    Wake(Waker),
    Tag(Tag),
    /// A closing stream took too long.
    Stream(u32, u32),
    /// A listener may accept again.
    Listener(usize),
}

impl Alarm {
    /// Whether somebody waited for something else that did not come before.
    pub(super) const fn ends_a_wait(&self) -> bool {
        matches!(self, Self::Wake(_) | Self::Stream(..))
    }
}

/// One worker's state that sessions reach. The engine breaks the reference cycles when it is dropped.
pub(super) struct Shared {
    pub(super) now: Cell<Time>,
    pub(super) settings: Settings,
    pub(super) pool: Rc<BufferPool>,
    /// See `Ring::unacknowledged`.
    pub(super) unacknowledged: Rc<dyn Fn(RawFd) -> usize>,
    /// See `Ring::unreported`.
    pub(super) unreported: Rc<dyn Fn(RawFd) -> Option<Unreported>>,
    pub(super) wheel: RefCell<Wheel<Alarm>>,
    pub(super) executor: Executor,
    pub(super) slots: RefCell<StreamSlots>,
    pub(super) spares: Spares,
    /// Streams the engine must look at in this loop turn.
    pub(super) dirty: RefCell<Vec<Rc<StreamState>>>,
    /// Parked streams with something to report.
    pub(super) parked: RefCell<Vec<Rc<StreamState>>>,
    /// The engine is gone: nothing will be looked at any more.
    pub(super) dead: Cell<bool>,
    pub(super) local_address: fn(RawFd) -> Option<SocketAddr>,
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        pool: Rc<BufferPool>,
        unacknowledged: Rc<dyn Fn(RawFd) -> usize>,
        unreported: Rc<dyn Fn(RawFd) -> Option<Unreported>>,
        local_address: fn(RawFd) -> Option<SocketAddr>,
        now: Time,
    ) -> Rc<Self> {
        let slots = StreamSlots { max: settings.streams_max.min(SLOTS_MAX), ..StreamSlots::default() };
        Rc::new(Self {
            now: Cell::new(now),
            settings,
            pool,
            unacknowledged,
            unreported,
            wheel: RefCell::new(Wheel::new(now)),
            executor: Executor::new(),
            slots: RefCell::new(slots),
            spares: Spares::default(),
            dirty: RefCell::default(),
            parked: RefCell::default(),
            dead: Cell::new(false),
            local_address,
        })
    }

    pub(super) fn push_dirty(&self, state: &Rc<StreamState>) {
        if !self.dead.get() {
            self.dirty.borrow_mut().push(Rc::clone(state));
        }
    }

    pub(super) fn push_parked(&self, state: &Rc<StreamState>) {
        if !self.dead.get() {
            self.parked.borrow_mut().push(Rc::clone(state));
        }
    }

    pub(super) fn arm(&self, deadline: Time, alarm: Alarm) -> TimerKey {
        self.wheel.borrow_mut().arm(deadline, alarm)
    }

    pub(super) fn disarm(&self, key: TimerKey) {
        let alarm = self.wheel.borrow_mut().disarm(key);
        // A waker may be a third party's: it is dropped while nothing is borrowed.
        drop(alarm);
    }

    /// A stream in a new slot; `None` when there is none.
    pub(super) fn insert(self: &Rc<Self>, inner: Inner) -> Option<Stream> {
        if self.dead.get() {
            return None;
        }
        let mut slots = self.slots.borrow_mut();
        let slot = slots.reserve()?;
        let entry = &mut slots.entries[slot as usize];
        let state = StreamState::new(self, slot, entry.generation, inner);
        entry.state = Some(Rc::clone(&state));
        Some(Stream::new(state))
    }

    /// The stream in a slot, if it is still the same one.
    pub(super) fn find(&self, slot: u32, generation: u32) -> Option<Rc<StreamState>> {
        let slots = self.slots.borrow();
        let entry = slots.entries.get(slot as usize)?;
        entry.state.as_ref().filter(|_| entry.generation == generation).cloned()
    }
}

/// Streams by slot. A slot's generation grows whenever it becomes free.
#[derive(Default)]
pub(super) struct StreamSlots {
    pub(super) entries: Vec<StreamSlot>,
    free: Vec<u32>,
    max: usize,
    pub(super) used: usize,
}

#[derive(Default)]
pub(super) struct StreamSlot {
    generation: u32,
    pub(super) state: Option<Rc<StreamState>>,
}

impl StreamSlots {
    fn reserve(&mut self) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.entries.len() < self.max => {
                self.entries.push(StreamSlot::default());
                (self.entries.len() - 1) as u32
            }
            None => return None,
        };
        self.used += 1;
        Some(slot)
    }

    pub(super) fn release(&mut self, slot: u32) -> Option<Rc<StreamState>> {
        let entry = &mut self.entries[slot as usize];
        let state = entry.state.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(slot);
        self.used -= 1;
        Some(state)
    }
}
