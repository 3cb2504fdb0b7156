//! A hierarchical timer wheel: 8 levels of 64 slots, ticks of 2^21 ns (2.1 ms). Arming and disarming are
//! O(1); the time of the next expiry is exact, so a sleeping worker wakes only when something is due. `now`
//! is always passed in.

use std::num::NonZero;

use crate::time::Time;

const TICK_BITS: u32 = 21;
const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;
/// Places beyond the levels: the list of timers already due when armed, and no place at all.
const DUE: u16 = (LEVELS * 64) as u16;
const FREE: u16 = DUE + 1;

/// Names an armed timer; a key whose timer fired or was disarmed names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerKey(NonZero<u64>);

/// Timers of one worker, each with a value that comes back when it fires.
#[derive(Debug)]
pub struct Wheel<T> {
    entries: Vec<TimerEntry<T>>,
    free: u32,
    armed: usize,
    /// Every timer at or before this tick has fired, but those in the due list.
    elapsed: u64,
    occupied: [u64; LEVELS],
    /// One list per place; the last is the due list.
    lists: Vec<TimerList>,
}

#[derive(Clone, Copy, Debug)]
struct TimerList {
    head: u32,
    /// No timer in the list is earlier. May be too early after a disarm, never too late.
    earliest: u64,
}

#[derive(Debug)]
struct TimerEntry<T> {
    generation: u32,
    next: u32,
    previous: u32,
    place: u16,
    tick: u64,
    value: Option<T>,
}

impl<T> Wheel<T> {
    /// An empty wheel that starts at `now`.
    #[must_use]
    pub fn new(now: Time) -> Self {
        Self {
            entries: Vec::new(),
            free: NONE,
            armed: 0,
            elapsed: now.as_nanos() >> TICK_BITS,
            occupied: [0; LEVELS],
            lists: vec![TimerList { head: NONE, earliest: u64::MAX }; LEVELS * 64 + 1],
        }
    }

    /// Timers armed now.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.armed
    }

    /// Whether none is armed.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.armed == 0
    }

    /// Arms a timer. It fires at the first `advance` at or after `deadline`, rounded up to a tick.
    pub fn arm(&mut self, deadline: Time, value: T) -> TimerKey {
        let nanos = deadline.as_nanos();
        let tick = (nanos >> TICK_BITS) + u64::from(nanos & ((1 << TICK_BITS) - 1) != 0);
        let index = if self.free == NONE {
            self.entries.push(TimerEntry {
                generation: 0,
                next: NONE,
                previous: NONE,
                place: FREE,
                tick,
                value: None,
            });
            (self.entries.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = self.entries[index as usize].next;
            index
        };
        let entry = &mut self.entries[index as usize];
        entry.tick = tick;
        entry.value = Some(value);
        let generation = entry.generation;
        self.armed += 1;
        self.link(index);
        TimerKey(NonZero::<u64>::MIN.saturating_add(u64::from(generation) << 32 | u64::from(index)))
    }

    /// Disarms and returns the value, unless the timer fired or was disarmed before.
    pub fn disarm(&mut self, key: TimerKey) -> Option<T> {
        let index = self.find(key)?;
        self.unlink(index);
        Some(self.release(index))
    }

    /// The value of an armed timer.
    pub fn value_mut(&mut self, key: TimerKey) -> Option<&mut T> {
        let index = self.find(key)?;
        self.entries[index as usize].value.as_mut()
    }

    /// The values of all armed timers.
    #[cfg(test)]
    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|entry| entry.value.as_ref())
    }

    /// When `advance` has something to do next; `None` while nothing is armed.
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        if self.lists[DUE as usize].head != NONE {
            return Some(Time::from_nanos(self.elapsed << TICK_BITS));
        }
        let (place, _) = self.first_place()?;
        let tick = self.lists[place].earliest;
        Some(Time::from_nanos(tick.saturating_mul(1 << TICK_BITS)))
    }

    /// Moves time to `now` and appends the values of all timers that are due to `fired`, earliest tick first.
    pub fn advance(&mut self, now: Time, fired: &mut Vec<T>) {
        self.fire_list(DUE as usize, fired);
        let now = now.as_nanos() >> TICK_BITS;
        if now <= self.elapsed {
            return;
        }
        while let Some((place, start)) = self.first_place() {
            if start > now {
                break;
            }
            self.elapsed = start;
            if place < 64 {
                self.fire_list(place, fired);
            } else {
                self.cascade(place, fired);
            }
        }
        self.elapsed = now;
    }

    fn find(&self, key: TimerKey) -> Option<u32> {
        let key = key.0.get() - 1;
        let index = key as u32;
        let entry = self.entries.get(index as usize)?;
        (entry.place != FREE && u64::from(entry.generation) == key >> 32).then_some(index)
    }

    /// The list that comes first in time, and the tick at which it must be looked at. A list of a lower level
    /// always comes before those of higher levels, since a timer sits at the level of the highest bit in
    /// which it differs from `elapsed`.
    fn first_place(&self) -> Option<(usize, u64)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let shift = 6 * level as u32;
        let here = (self.elapsed >> shift) & 63;
        let ahead = self.occupied[level].rotate_right(here as u32).trailing_zeros();
        let slot = (here + u64::from(ahead)) & 63;
        let block = self.elapsed >> shift >> 6 << 6;
        Some((level * 64 + slot as usize, (block | slot) << shift))
    }

    fn link(&mut self, index: u32) {
        let tick = self.entries[index as usize].tick;
        let place = if tick <= self.elapsed {
            DUE as usize
        } else {
            let level = (63 - (tick ^ self.elapsed).leading_zeros()) as usize / 6;
            let slot = (tick >> (6 * level)) as usize & 63;
            self.occupied[level] |= 1 << slot;
            level * 64 + slot
        };
        let list = &mut self.lists[place];
        let next = list.head;
        list.head = index;
        list.earliest = list.earliest.min(tick);
        if next != NONE {
            self.entries[next as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.place = place as u16;
        entry.next = next;
        entry.previous = NONE;
    }

    fn unlink(&mut self, index: u32) {
        let TimerEntry { next, previous, place, .. } = self.entries[index as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous == NONE {
            self.lists[place as usize].head = next;
            if next == NONE {
                self.clear(place as usize);
            }
        } else {
            self.entries[previous as usize].next = next;
        }
    }

    fn clear(&mut self, place: usize) {
        self.lists[place] = TimerList { head: NONE, earliest: u64::MAX };
        if place < DUE as usize {
            self.occupied[place / 64] &= !(1 << (place % 64));
        }
    }

    fn release(&mut self, index: u32) -> T {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.place = FREE;
        entry.next = self.free;
        self.free = index;
        self.armed -= 1;
        entry.value.take().expect("an armed timer has a value")
    }

    fn fire_list(&mut self, place: usize, fired: &mut Vec<T>) {
        let mut index = self.lists[place].head;
        self.clear(place);
        while index != NONE {
            let next = self.entries[index as usize].next;
            fired.push(self.release(index));
            index = next;
        }
    }

    /// Spreads a list over the lower levels, now that `elapsed` stands at its start.
    fn cascade(&mut self, place: usize, fired: &mut Vec<T>) {
        let mut index = self.lists[place].head;
        self.clear(place);
        while index != NONE {
            let next = self.entries[index as usize].next;
            if self.entries[index as usize].tick <= self.elapsed {
                fired.push(self.release(index));
            } else {
                self.link(index);
            }
            index = next;
        }
    }
}

#[cfg(test)]
mod tests;
