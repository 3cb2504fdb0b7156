//! In which of the engine's lists a stream stands, so that it stands in each once.

/// The lists that the engine keeps of streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::io) enum List {
    /// To be looked at in this loop turn.
    Dirty = 1,
    /// Its receive found no buffer.
    Starved = 1 << 1,
    /// It holds much while neither the ring nor the budget has room.
    Throttled = 1 << 2,
    /// Held by a limit that was lowered.
    Lowered = 1 << 3,
    /// It holds part of a record, and there was no budget to copy that.
    Parts = 1 << 4,
    /// To be looked at a second time: its last bytes may have hidden its end.
    Unsure = 1 << 5,
}

/// A set of them.
#[derive(Clone, Copy, Default)]
pub(in crate::io) struct Lists(u8);

impl Lists {
    /// Adds a list; `false` when the stream stood in it already.
    pub(in crate::io) const fn enter(&mut self, list: List) -> bool {
        let is_new = !self.contains(list);
        self.0 |= list as u8;
        is_new
    }

    pub(in crate::io) const fn leave(&mut self, list: List) {
        self.0 &= !(list as u8);
    }

    pub(in crate::io) const fn contains(self, list: List) -> bool {
        self.0 & list as u8 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_list_is_entered_once_and_left_alone() {
        use List::*;
        let all = [Dirty, Starved, Throttled, Lowered, Parts, Unsure];
        let mut lists = Lists::default();
        for list in all {
            assert!(lists.enter(list) && !lists.enter(list));
        }
        lists.leave(Throttled);
        for list in all {
            assert_eq!(lists.contains(list), list != Throttled);
        }
        assert!(lists.enter(Throttled));
    }
}
