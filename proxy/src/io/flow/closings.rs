//! How many streams may be closing at once. Their sessions are gone, so nothing else bounds their number.
//! Streams that sent everything give way first: at worst a peer that still sends loses the last bytes that
//! were sent to it.

use crate::io::places::{Decision, PlaceKey, Places, Source};
use crate::time::Time;

/// Names a stream: slot and generation.
pub(super) type Name = (u32, u32);

/// A closing stream's place.
#[derive(Clone, Copy, Debug)]
pub(in crate::io) enum ClosingPlace {
    /// Among those whose last bytes are not sent yet.
    Flushing(PlaceKey),
    /// Among those that discard what their peers still send.
    Discarding(PlaceKey),
}

/// See the module.
#[derive(Default)]
pub(super) struct Closings {
    flushing: Places<Name>,
    discarding: Places<Name>,
}

impl Closings {
    /// The place of a stream that closes, after the one that it may have had before.
    pub(super) fn follow(
        &mut self,
        before: Option<ClosingPlace>,
        (name, source): (Name, Source),
        is_flushed: bool,
        now: Time,
    ) -> ClosingPlace {
        match before {
            Some(place @ ClosingPlace::Flushing(_)) if !is_flushed => return place,
            Some(place @ ClosingPlace::Discarding(_)) => return place,
            Some(place) => self.leave(place),
            None => {}
        }
        let places = if is_flushed { &mut self.discarding } else { &mut self.flushing };
        let key = places.hold(source, 1, name);
        places.rest(key, now);
        if is_flushed { ClosingPlace::Discarding(key) } else { ClosingPlace::Flushing(key) }
    }

    /// A stream is closed.
    pub(super) fn leave(&mut self, place: ClosingPlace) {
        match place {
            ClosingPlace::Flushing(key) => self.flushing.leave(key),
            ClosingPlace::Discarding(key) => self.discarding.leave(key),
        }
    }

    /// The next stream that has to end at once, while more than `max` are closing.
    pub(super) fn relieve(&mut self, max: usize) -> Option<Name> {
        if self.flushing.used() + self.discarding.used() <= max as u64 {
            return None;
        }
        match self.discarding.give_way().or_else(|| self.flushing.give_way())? {
            Decision::GiveWay { owner, .. } | Decision::Take(owner) => Some(owner),
        }
    }
}
