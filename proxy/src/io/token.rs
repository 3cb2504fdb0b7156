//! The value that travels as `user_data` through the ring: kind, slot and generation. If the generation is
//! not the slot's current one, the completion belongs to something that is gone, and is dropped.

/// The kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Multishot accept; the slot is a listener's.
    Accept = 1,
    /// A receive, multishot or not; the slot is a stream's, as in all that follow.
    Receive = 2,
    /// A send.
    Send = 3,
    /// A connect.
    Connect = 4,
    /// Close of a stream's descriptor.
    Close = 5,
    /// A cancel of one of the stream's or listener's operations.
    Cancel = 6,
    /// A poll of a watched descriptor; the slot is the watch's.
    Watch = 7,
    /// Something nobody waits for, such as closing a descriptor that never became a stream.
    Discard = 8,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Accept,
        Self::Receive,
        Self::Send,
        Self::Connect,
        Self::Close,
        Self::Cancel,
        Self::Watch,
        Self::Discard,
    ];
}

/// Slots fit 24 bits.
pub const SLOTS_MAX: usize = 1 << 24;

/// Names one operation: 8 bits of kind, 24 of slot, 32 of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    /// `slot` must be below `SLOTS_MAX`.
    #[must_use]
    pub fn new(kind: Kind, slot: u32, generation: u32) -> Self {
        debug_assert!((slot as usize) < SLOTS_MAX);
        Self((kind as u64) << 56 | u64::from(slot & 0x00ff_ffff) << 32 | u64::from(generation))
    }

    /// From `user_data`; `None` when no token of ours looks like it.
    #[must_use]
    pub fn from_raw(raw: u64) -> Option<Self> {
        let kind = usize::try_from(raw >> 56).ok()?;
        (1..=Kind::ALL.len()).contains(&kind).then_some(Self(raw))
    }

    /// As `user_data`.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The kind of the operation.
    #[must_use]
    pub fn kind(self) -> Kind {
        Kind::ALL[(self.0 >> 56) as usize - 1]
    }

    /// Which stream, listener or watch it belongs to.
    #[must_use]
    pub const fn slot(self) -> u32 {
        (self.0 >> 32) as u32 & 0x00ff_ffff
    }

    /// The slot's generation when it was submitted.
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_part_survives(kind in 0usize..8, slot in 0u32..(1 << 24), generation: u32) {
            let token = Token::new(Kind::ALL[kind], slot, generation);
            prop_assert_eq!(Token::from_raw(token.raw()), Some(token));
            prop_assert_eq!(
                (token.kind(), token.slot(), token.generation()),
                (Kind::ALL[kind], slot, generation)
            );
        }

        #[test]
        fn foreign_user_data_is_refused(raw: u64) {
            let known = (1..=8).contains(&(raw >> 56));
            prop_assert_eq!(Token::from_raw(raw).is_some(), known);
        }
    }
}
