//! How many requests are in flight of those that began not long ago.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Requests that began between two looks form a cohort; so many cohorts are counted, a request for a fifth of
/// a second. If it were longer, what is let in would come and go in waves as long as the upstream takes;
/// `simulation` shows that. And these fill one cache line, all of which is read for each request.
const COHORTS: usize = 8;

/// The cohort's number in the upper half of a word, how many of it are in flight in the lower: who leaves
/// after its cohort has been written over is known by the number, and not counted out of another.
#[derive(Debug)]
pub(super) struct Recent {
    cohorts: [AtomicU64; COHORTS],
    newest: AtomicU32,
}

impl Default for Recent {
    fn default() -> Self {
        let numbers: [u64; COHORTS] = std::array::from_fn(|number| number as u64);
        Self { cohorts: numbers.map(|number| AtomicU64::new(number << 32)), newest: AtomicU32::new(0) }
    }
}

impl Recent {
    pub(super) fn count(&self) -> u32 {
        self.cohorts.iter().map(|cohort| lower(cohort.load(Relaxed))).sum()
    }

    /// Counts one in; the cohort is what it must [`leave`](Self::leave).
    ///
    /// Should all cohorts be turned between the two steps, one too many is counted until the next turn.
    pub(super) fn enter(&self) -> u32 {
        let number = self.newest.load(Relaxed);
        self.place(number).fetch_add(1, Relaxed);
        number
    }

    pub(super) fn leave(&self, number: u32) {
        let _ = self.place(number).fetch_update(Relaxed, Relaxed, |word| {
            (word >> 32 == u64::from(number) && lower(word) > 0).then(|| word - 1)
        });
    }

    /// Begins a cohort. What is left of the oldest is no longer counted.
    pub(super) fn advance(&self) {
        let number = self.newest.load(Relaxed).wrapping_add(1);
        self.place(number).store(u64::from(number) << 32, Relaxed);
        self.newest.store(number, Relaxed);
    }

    fn place(&self, number: u32) -> &AtomicU64 {
        &self.cohorts[number as usize % COHORTS]
    }
}

#[allow(clippy::cast_possible_truncation)] // That is what it is for.
fn lower(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_waits_long_is_no_longer_counted_and_leaves_without_a_trace() {
        let recent = Recent::default();
        let old = recent.enter();
        (0..COHORTS - 1).for_each(|_| recent.advance());
        let young = recent.enter();
        assert_eq!(recent.count(), 2);
        recent.advance();
        assert_eq!(recent.count(), 1);
        recent.leave(old);
        assert_eq!(recent.count(), 1);
        recent.leave(young);
        assert_eq!(recent.count(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Enter,
        Leave(usize),
        Advance,
    }

    proptest! {
        #[test]
        fn it_counts_the_last_cohorts(steps in prop::collection::vec(
            prop_oneof![6 => Just(Step::Enter), 4 => any::<usize>().prop_map(Step::Leave), 2 => Just(Step::Advance)],
            0..400,
        )) {
            let recent = Recent::default();
            let (mut inside, mut newest) = (Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Enter => inside.push(recent.enter()),
                    Step::Leave(_) if inside.is_empty() => {}
                    Step::Leave(which) => recent.leave(inside.swap_remove(which % inside.len())),
                    Step::Advance => {
                        recent.advance();
                        newest += 1;
                    }
                }
                let counted = inside.iter().filter(|number| ((newest - **number) as usize) < COHORTS).count();
                prop_assert_eq!(recent.count() as usize, counted);
            }
        }
    }
}
