//! Lists of connections by their index in a pool. An index leaves its list in constant time, wherever it
//! stands. Sans-IO.

/// No index: before the first and after the last.
const NONE: u32 = u32::MAX;

/// One list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    first: u32,
    last: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Chain {
    /// The index that came first.
    pub(super) fn first(self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// The index that came last.
    pub(super) fn last(self) -> Option<u32> {
        (self.last != NONE).then_some(self.last)
    }
}

/// The neighbours of every index. Several lists may share them, if no index is in two of these lists.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Neighbours>);

#[derive(Clone, Copy, Debug)]
struct Neighbours {
    before: u32,
    after: u32,
}

impl Links {
    /// Appends an index that is in no list.
    pub(super) fn push(&mut self, chain: &mut Chain, index: u32) {
        let place = index as usize;
        if self.0.len() <= place {
            self.0.resize(place + 1, Neighbours { before: NONE, after: NONE });
        }
        self.0[place] = Neighbours { before: chain.last, after: NONE };
        match chain.last {
            NONE => chain.first = index,
            last => self.0[last as usize].after = index,
        }
        chain.last = index;
    }

    /// Takes out an index that is in this list.
    pub(super) fn remove(&mut self, chain: &mut Chain, index: u32) {
        let Neighbours { before, after } = self.0[index as usize];
        match before {
            NONE => chain.first = after,
            before => self.0[before as usize].after = after,
        }
        match after {
            NONE => chain.last = before,
            after => self.0[after as usize].before = before,
        }
    }

    /// A list in its order.
    pub(super) fn iter(&self, chain: Chain) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(chain.first(), move |&index| {
            let after = self.0[index as usize].after;
            (after != NONE).then_some(after)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Two lists over the same links do what two vectors would.
        #[test]
        fn lists_keep_their_order(steps in prop::collection::vec((0..20_u32, 0..2_usize), 0..200)) {
            let (mut links, mut chains) = (Links::default(), [Chain::default(); 2]);
            let mut known = [Vec::new(), Vec::new()];
            for (index, list) in steps {
                match known.iter().position(|known| known.contains(&index)) {
                    Some(of) => {
                        links.remove(&mut chains[of], index);
                        known[of].retain(|&other| other != index);
                    }
                    None => {
                        links.push(&mut chains[list], index);
                        known[list].push(index);
                    }
                }
                for (chain, known) in chains.iter().zip(&known) {
                    prop_assert_eq!(&links.iter(*chain).collect::<Vec<_>>(), known);
                    prop_assert_eq!(chain.first(), known.first().copied());
                    prop_assert_eq!(chain.last(), known.last().copied());
                }
            }
        }
    }
}
