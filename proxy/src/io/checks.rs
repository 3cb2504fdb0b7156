//! Checks for tests that hold of an engine after every turn, beyond `Engine::check_invariants`. Nothing waits
//! without a deadline, nothing is forgotten, nothing holds more than its bound.

use super::engine::Accept;
use super::executor::TaskKey;
use super::seam::Ring;
use super::shared::Alarm;
use super::stream::{Inner, List, Phase, ReceiveOp, StreamState, Tag};
use super::{Engine, Io};

/// Bytes a stream may have outstanding beyond its limit: a multishot receive goes on until its cancel is
/// seen.
const OVERSHOOT: usize = 1 << 20;

impl Io {
    /// Bytes that wait in streams to be sent.
    pub(crate) fn unsent(&self) -> usize {
        let slots = self.shared().slots.borrow();
        slots
            .entries
            .iter()
            .filter_map(|entry| entry.state.as_ref())
            .map(|state| state.inner.borrow().sending.unsent())
            .sum()
    }
}

impl<R: Ring> Engine<R> {
    /// Tasks that no wake-up is due for and no timer will wake.
    pub(crate) fn tasks_without_deadline(&self) -> Vec<TaskKey> {
        let wheel = self.shared.wheel.borrow();
        let wakers: Vec<_> = wheel
            .values()
            .filter_map(|alarm| if let Alarm::Wake(waker) = alarm { Some(waker.data()) } else { None })
            .collect();
        let waiting = self.shared.executor.waiting();
        waiting.into_iter().filter(|(_, data)| !wakers.contains(data)).map(|(key, _)| key).collect()
    }

    /// Whether a timer with this tag is armed.
    pub(crate) fn has_timer(&self, tag: Tag) -> bool {
        self.shared.wheel.borrow().values().any(|alarm| matches!(alarm, Alarm::Tag(armed) if *armed == tag))
    }

    /// Tags of parked streams.
    pub(crate) fn parked(&self) -> Vec<Tag> {
        let slots = self.shared.slots.borrow();
        slots.entries.iter().filter_map(|entry| entry.state.as_ref()?.inner.borrow().parked).collect()
    }

    /// Bytes that some stream received and nobody has dropped, and copies.
    pub(crate) fn is_memory_free(&self) -> bool {
        let pool = self.pool();
        pool.loaned() == 0 && pool.budget_used() == 0 && pool.is_ledger_empty()
    }

    /// See the module.
    pub(crate) fn check_streams(&self) {
        self.pool().check_ledger();
        for (index, accept) in self.accepts().enumerate() {
            let rests = self
                .shared
                .wheel
                .borrow()
                .values()
                .any(|alarm| matches!(alarm, Alarm::Listener(armed) if *armed == index));
            assert!(accept != Accept::Resting || rests, "listener {index} rests for ever");
        }
        let slots = self.shared.slots.borrow();
        for state in slots.entries.iter().filter_map(|entry| entry.state.as_ref()) {
            self.check_stream(state, &state.inner.borrow());
        }
    }

    fn check_stream(&self, state: &StreamState, inner: &Inner) {
        let slot = state.slot;
        let settings = &self.shared.settings;
        let owned = state.handles() > 0;
        let is_dirty = inner.lists.contains(List::Dirty);
        match inner.phase {
            Phase::Connecting => assert!(owned || is_dirty, "slot {slot}: nobody waits for its connect"),
            Phase::Open => {
                assert!(owned, "slot {slot}: open, and nobody has it");
                let is_unwanted = inner.receiving.waits_for_demand() && !inner.is_read();
                let receives = inner.receiving.operation != ReceiveOp::Idle
                    || inner.receiving.end.is_some()
                    || is_dirty
                    || is_unwanted;
                assert!(receives, "slot {slot}: its receive was forgotten");
                let sends = inner.sending.is_in_flight()
                    || is_dirty
                    || inner.sending.error().is_some()
                    || inner.sending.is_empty();
                assert!(sends, "slot {slot}: its send was forgotten");
            }
            Phase::Closing => {
                assert!(inner.closing.is_timed() || is_dirty, "slot {slot}: closes for ever");
            }
            Phase::Ending { .. } => {
                assert!(
                    inner.in_flight_ops() > 0 || inner.closing.is_submitted || is_dirty,
                    "slot {slot}: its close was forgotten"
                );
            }
            Phase::Closed => panic!("slot {slot}: closed, and still there"),
        }
        if inner.receiving.operation == ReceiveOp::Held {
            let lists = [List::Starved, List::Throttled, List::Lowered, List::Parts];
            let queued = lists.into_iter().any(|list| inner.lists.contains(list));
            assert!(queued || self.pool().awaits_relief(state.account()), "slot {slot}: held for ever");
        }
        let outstanding = self.pool().outstanding(state.account());
        assert!(
            outstanding <= 2 * settings.receive_high + OVERSHOOT,
            "slot {slot} holds {outstanding} received bytes"
        );
        let queued_max = settings.write_low.max(settings.send_bytes_max) + OVERSHOOT;
        assert!(
            inner.sending.unsent() <= queued_max,
            "slot {slot} has {} bytes to send",
            inner.sending.unsent()
        );
    }
}
