//! Which of several shards a thread uses.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A number for the calling thread, counted from 0 in the order in which threads first ask. Worker
/// threads that take their shard by it do not meet, as long as there are as many shards as workers.
pub(super) fn thread_index() -> usize {
    // One sequence for the process: a thread is the same thread whichever metrics it counts into.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static INDEX: usize = NEXT.fetch_add(1, Ordering::Relaxed));
    INDEX.with(|index| *index)
}

/// How many shards serve this many worker threads: a power of two, so that a mask finds the shard.
/// Beyond 32 threads, several share one: counting stays right, only a little slower.
pub(super) fn shard_count(workers: usize) -> usize {
    workers.clamp(1, 32).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_keeps_its_number_and_shares_it_with_no_other() {
        let here = thread_index();
        assert_eq!(here, thread_index());
        assert_ne!(Some(here), std::thread::spawn(thread_index).join().ok());
    }

    #[test]
    fn there_are_as_many_shards_as_workers_up_to_a_bound() {
        assert_eq!([0, 1, 2, 3, 8, 32, 500].map(shard_count), [1, 1, 2, 4, 8, 32, 32]);
    }
}
