//! The revisions that accounts of limits go by.
//!
//! An account takes no terms of a lower revision, so that nodes on different ones agree. But of two stores, or of one that
//! was set back, revisions say nothing about what is newer: with each such turn numbers begin anew, above all that were
//! before. All nodes of a control plane see the same turns, and so agree on the numbers.

use seiketsu_config::push::Held;

use super::keeper::State;

/// A revision needs fewer bits, and with the generation above it is still exact as a number of Redis (53 bits).
const REVISION_BITS: u32 = 40;
const MOST_GENERATIONS: u64 = 1 << (53 - REVISION_BITS);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Numbering {
    generation: u64,
    last: Option<Held>,
}

impl Numbering {
    /// A state is about to be put in force. Whether numbers begin anew with it.
    pub(super) fn follow(&mut self, to: Held) -> bool {
        let turned = self.last.is_some_and(|last| last.store != to.store || last.revision > to.revision);
        if turned && self.generation + 1 < MOST_GENERATIONS {
            self.generation += 1;
        }
        self.last = Some(to);
        turned
    }

    /// For limits that were last changed in this revision.
    pub(super) fn of_limits(self, revision: u64) -> u64 {
        (self.generation << REVISION_BITS) | (revision & ((1 << REVISION_BITS) - 1))
    }

    /// The revision, as people know it.
    pub(super) fn shown(of_limits: u64) -> u64 {
        of_limits & ((1 << REVISION_BITS) - 1)
    }

    /// To go on with after a restart.
    pub(super) fn state(self, held: Held) -> State {
        State { held, generation: self.generation }
    }
}

impl From<State> for Numbering {
    fn from(State { held, generation }: State) -> Self {
        Self { generation, last: Some(held) }
    }
}

#[cfg(test)]
mod tests {
    use seiketsu_config::push::Sum;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_comes_after_a_turn_is_above_all_that_was_before() {
        let held = |store, revision| Held { store: Uuid::from_u128(store), revision, sum: Sum::default() };
        let mut numbering = Numbering::default();
        let mut highest = 0;
        for (store, revision) in [(1, 500), (1, 501), (2, 3), (2, 4), (2, 2), (1, 1)] {
            numbering.follow(held(store, revision));
            let number = numbering.of_limits(revision);
            assert!(number > highest, "store {store}, revision {revision}");
            assert_eq!(Numbering::shown(number), revision);
            highest = number;
            // A restart changes nothing.
            numbering = Numbering::from(numbering.state(held(store, revision)));
            assert_eq!(numbering.of_limits(revision), number);
        }
    }
}
