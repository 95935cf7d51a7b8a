//! Work on many things at once, on as many threads as there are processors.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// What `work` makes of each item, in their order. A thread takes `batch` items at once: few enough that
/// all threads end at about the same time. What is less than a batch is done on this thread.
pub fn map<T: Sync, R: Send>(items: &[T], batch: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let batches = items.len().div_ceil(batch);
    if batches <= 1 {
        // How many processors there are is read from files, which can cost more than the work.
        return items.iter().map(work).collect();
    }
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(batches);
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(items) = items.chunks(batch).nth(number) else { return done };
            done.push((number, items.iter().map(&work).collect::<Vec<R>>()));
        }
    };
    let mut done = thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(take)).collect();
        let mut done = take();
        for helper in helpers {
            match helper.join() {
                Ok(others) => done.extend(others),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_items() {
        for count in [0, 1, 9, 10, 11, 1000] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(map(&items, 10, |item| item * 2), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
