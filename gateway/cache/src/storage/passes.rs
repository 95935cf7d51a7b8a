//! Keys whose responses were not storable lately: those who ask for them do not wait for each other.
//!
//! They take a fixed room, however many there are, and none of what is stored. Each has one place, by its hash, which it
//! shares with others: whoever is taken for another is only not waited for, and whoever has lost its place is waited for
//! once more.

use std::{
    hash::BuildHasher,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use foldhash::quality::RandomState;

use crate::{stored::PASS_SECONDS, time::Timestamp};

const PLACES: usize = 1 << 16;
const TIME: u64 = u32::MAX as u64;

/// Those of a node. Keys tell tenants apart.
#[derive(Debug, Default)]
pub(super) struct Passes {
    hasher: RandomState,
    /// Half of a hash, and until when, in seconds. Made with the first.
    places: OnceLock<Box<[AtomicU64]>>,
}

impl Passes {
    pub(super) fn add(&self, key: &[u8], until: Timestamp) {
        let places = self.places.get_or_init(|| std::iter::repeat_with(AtomicU64::default).take(PLACES).collect());
        let hash = self.hasher.hash_one(key);
        if let Some(place) = places.get(index(hash)) {
            place.store(hash & !TIME | until.unix() & TIME, Relaxed);
        }
    }

    pub(super) fn contains(&self, key: &[u8], now: Timestamp) -> bool {
        let Some(places) = self.places.get() else { return false };
        let hash = self.hasher.hash_one(key);
        let noted = places.get(index(hash)).map_or(0, |place| place.load(Relaxed));
        // Further away it is only because the clock was set back.
        let left = (noted & TIME).saturating_sub(now.unix() & TIME);
        (noted ^ hash) & !TIME == 0 && (1..=PASS_SECONDS).contains(&left)
    }
}

/// By the half that is not compared.
fn index(hash: u64) -> usize {
    (hash & TIME) as usize % PLACES
}
