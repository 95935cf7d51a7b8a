//! Counting what happened in the last ten seconds, without locks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::clock::Nanos;

/// How far back a [`Window`] sees.
pub const WINDOW_SECONDS: u64 = SECONDS as u64;

const SECONDS: usize = 10;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A counter per second for the last ten seconds. Each cell holds the second it counts for in its
/// upper half and the count in its lower; a cell of a past round is taken over by the first to come.
#[derive(Debug, Default)]
pub struct Window {
    cells: [AtomicU64; SECONDS],
}

impl Window {
    pub fn add(&self, now: Nanos) {
        let second = now / NANOS_PER_SECOND;
        let cell = &self.cells[index(second)];
        let mut seen = cell.load(Relaxed);
        loop {
            if stamp(seen) == low_half(second) {
                cell.fetch_add(1, Relaxed);
                return;
            }
            let fresh = low_half(second) << 32 | 1;
            match cell.compare_exchange_weak(seen, fresh, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(current) => seen = current,
            }
        }
    }

    /// The sum over the current second and the nine before it.
    pub fn sum(&self, now: Nanos) -> u64 {
        let second = now / NANOS_PER_SECOND;
        self.cells
            .iter()
            .map(|cell| cell.load(Relaxed))
            .filter(|&cell| low_half(second.wrapping_sub(stamp(cell))) < WINDOW_SECONDS)
            .map(low_half)
            .sum()
    }

    /// Forgets everything. What others add meanwhile may or may not be forgotten with it.
    pub fn clear(&self) {
        for cell in &self.cells {
            cell.store(0, Relaxed);
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // Less than ten.
fn index(second: u64) -> usize {
    (second % WINDOW_SECONDS) as usize
}

fn stamp(cell: u64) -> u64 {
    cell >> 32
}

fn low_half(value: u64) -> u64 {
    value & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_older_than_ten_seconds_no_longer_counts() {
        let window = Window::default();
        window.add(100 * NANOS_PER_SECOND);
        assert_eq!(window.sum(109 * NANOS_PER_SECOND), 1);
        assert_eq!(window.sum(110 * NANOS_PER_SECOND), 0);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_times(steps in prop::collection::vec(0u64..4 * NANOS_PER_SECOND, 1..200)) {
            let window = Window::default();
            let mut model = VecDeque::new();
            let mut now = NANOS_PER_SECOND;
            for step in steps {
                now += step;
                window.add(now);
                model.push_back(now / NANOS_PER_SECOND);
                let in_window = model.iter().filter(|&&second| now / NANOS_PER_SECOND - second < WINDOW_SECONDS);
                prop_assert_eq!(window.sum(now), in_window.count() as u64);
            }
        }
    }
}
