//! When the machine had no processor to spare: what is late then is late because of that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;

use super::{Micros, micros, pause, wall};

/// A watcher sleeps for so long, again and again.
const NAP: Duration = Duration::from_millis(1);

/// Waking so much later than that is no stall yet.
const USUAL: Duration = Duration::from_millis(1);

/// More than one, since one may be lucky where another process is not.
const WATCHERS: usize = 3;

/// From, and until when, a thread that should have run did not.
pub type Stall = (Micros, Micros);

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Stalls {
    seen: Arc<Mutex<Vec<Stall>>>,
    stop: Arc<AtomicBool>,
}

impl Stalls {
    pub fn watch() -> anyhow::Result<Self> {
        let stalls = Self { seen: Arc::default(), stop: Arc::default() };
        for _ in 0..WATCHERS {
            let (seen, stop) = (Arc::clone(&stalls.seen), Arc::clone(&stalls.stop));
            std::thread::Builder::new().name("stalls".to_owned()).spawn(move || {
                while !stop.load(Relaxed) {
                    let due = wall() + micros(NAP);
                    pause(NAP);
                    let woke = wall();
                    if woke > due + micros(USUAL) {
                        seen.lock().push((due, woke));
                    }
                }
            })?;
        }
        Ok(stalls)
    }

    /// Those since it was last asked, in order, none touching another.
    pub fn take(&self) -> Vec<Stall> {
        united(std::mem::take(&mut *self.seen.lock()))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
    }
}

fn united(mut stalls: Vec<Stall>) -> Vec<Stall> {
    stalls.sort_unstable();
    let mut all: Vec<Stall> = Vec::with_capacity(stalls.len());
    for (from, until) in stalls {
        match all.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(until),
            _ => all.push((from, until)),
        }
    }
    all
}

/// How much of this time was stalled.
pub fn within(stalls: &[Stall], from: Micros, until: Micros) -> Micros {
    let first = stalls.partition_point(|stall| stall.1 <= from);
    let touching = stalls[first..].iter().take_while(|stall| stall.0 < until);
    touching.map(|stall| stall.1.min(until) - stall.0.max(from)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stalls_are_counted_once() {
        let stalls = united(vec![(30, 40), (10, 20), (15, 25), (20, 22)]);
        assert_eq!(stalls, [(10, 25), (30, 40)]);
        assert_eq!(within(&stalls, 0, 100), 25);
        assert_eq!(within(&stalls, 20, 32), 7);
        assert_eq!(within(&stalls, 25, 30), 0);
    }
}
