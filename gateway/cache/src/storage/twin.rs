//! A stored body once more, in a file without a name, so that the kernel can send it without copying it.
//!
//! Copying is most of what it costs to serve a large body from memory: the processor has to fetch each of its lines,
//! and each of those that it is copied to. The pages of a file go out as they are (`sendfile`). The body itself stays
//! where it is: whoever cannot send a file, since there is TLS or HTTP/2 between, or who only takes note of parts, goes
//! on as before. What is sent from the file is told by where it stands in memory, so that nothing else can take its
//! place.
//!
//! There are only so many, and to make one costs more than to copy the body once. So who has one keeps it while it is
//! used, and only now and then does one that is not lose it to another body.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::{
    fs::{MemfdFlags, memfd_create},
    process::{Resource, getrlimit},
};

/// Smaller bodies are as quickly copied; larger ones would keep others waiting while they are.
const LENGTHS: RangeInclusive<usize> = 32 * 1024..=1024 * 1024;

const MOST_FILES: u64 = 1024;
/// Of what the process may open, the rest is for connections.
const PART_OF_FILES: u64 = 8;

/// Between two that take the place of others, and so many of these are looked at for it: as many of the shortest as have
/// room in the longest.
const BETWEEN_CHANGES: Duration = Duration::from_millis(50);
const LOOKS: usize = 32;

/// When the system would give no file.
const AFTER_FAILURE: Duration = Duration::from_secs(10);

/// A file that holds what a stored body holds; see the text at the head of `twin.rs`.
#[derive(Debug)]
pub struct Twin {
    file: File,
    body: Bytes,
    _counted: Counted,
}

impl Twin {
    /// Where this very part of the body stands in the file; none if it is not a part of it.
    pub fn position_of(&self, part: &[u8]) -> Option<u64> {
        let start = part.as_ptr().addr().checked_sub(self.body.as_ptr().addr())?;
        let fits = start.checked_add(part.len())? <= self.body.len();
        fits.then_some(start as u64)
    }
}

impl AsFd for Twin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn in_memory(body: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("cached-body", MemfdFlags::CLOEXEC)?);
    file.write_all(body)?;
    Ok(file)
}

/// Where a stored body has its twin, as long as it may have one, over all validations.
#[derive(Debug, Default)]
pub(crate) struct Place {
    twin: Mutex<Option<Arc<Twin>>>,
    /// By somebody who could send a file, since it was last considered for another body.
    used: AtomicBool,
}

impl Place {
    /// None where the body is too small or too large for it to be worth it.
    pub(crate) fn of(body: &Bytes) -> Option<Arc<Self>> {
        LENGTHS.contains(&body.len()).then(Arc::default)
    }

    /// Lets go of the twin. Whoever sends it keeps it until then.
    pub(crate) fn clear(&self) {
        *self.twin.lock() = None;
    }

    /// The twin of this body, which is always the same; there is one from the second time on if there is room.
    pub(crate) fn twin(self: &Arc<Self>, body: &Bytes, twins: &Arc<Twins>) -> Option<Arc<Twin>> {
        let again = self.used.load(Relaxed) || self.used.swap(true, Relaxed);
        let mut twin = self.twin.lock();
        if twin.is_none() && again {
            *twin = twins.make(body, self).map(Arc::new);
        }
        twin.clone()
    }
}

/// All twins of a node.
#[derive(Debug)]
pub(crate) struct Twins {
    most_files: u64,
    most_bytes: u64,
    files: AtomicU64,
    bytes: AtomicU64,
    round: Mutex<Round>,
}

/// Who is considered next when another body needs room.
#[derive(Debug, Default)]
struct Round {
    places: VecDeque<Weak<Place>>,
    /// Until then none is made.
    pause: Option<Instant>,
}

impl Twins {
    pub(super) fn new(most_bytes: u64) -> Arc<Self> {
        let most_files = most_files(getrlimit(Resource::Nofile).current);
        let (files, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { most_files, most_bytes, files, bytes, round: Mutex::default() })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// It is only an attempt to be quick: without it, the body is sent as it is. So nobody waits here.
    fn make(self: &Arc<Self>, body: &Bytes, place: &Arc<Place>) -> Option<Twin> {
        let mut round = self.round.try_lock()?;
        if round.pause.is_some_and(|end| Instant::now() < end) {
            return None;
        }
        let length = body.len() as u64;
        let counted = Counted::new(length, self).or_else(|| {
            round.pause = Some(Instant::now() + BETWEEN_CHANGES);
            // None twice, or the first look would always tell the second that it is not used.
            (0..LOOKS.min(round.places.len())).find_map(|_| {
                round.take_one_back();
                Counted::new(length, self)
            })
        })?;
        let Ok(file) = in_memory(body) else {
            round.pause = Some(Instant::now() + AFTER_FAILURE);
            return None;
        };
        // Those whose bodies have gone.
        if round.places.len() as u64 >= 2 * self.most_files {
            round.places.retain(|place| place.strong_count() > 0);
        }
        round.places.push_back(Arc::downgrade(place));
        Some(Twin { file, body: body.clone(), _counted: counted })
    }
}

impl Round {
    /// From the next one, if it was not used since it was last considered.
    fn take_one_back(&mut self) {
        let Some(next) = self.places.pop_front() else { return };
        let Some(place) = next.upgrade() else { return };
        // Who is at it just now uses it.
        match place.twin.try_lock() {
            Some(mut twin) if !place.used.swap(false, Relaxed) => *twin = None,
            _ => self.places.push_back(next),
        }
    }
}

fn most_files(limit: Option<u64>) -> u64 {
    limit.map_or(MOST_FILES, |limit| MOST_FILES.min(limit / PART_OF_FILES))
}

/// What one takes of what there may be.
#[derive(Debug)]
struct Counted {
    bytes: u64,
    twins: Arc<Twins>,
}

impl Counted {
    fn new(bytes: u64, twins: &Arc<Twins>) -> Option<Self> {
        let files = twins.files.fetch_add(1, Relaxed);
        let held = twins.bytes.fetch_add(bytes, Relaxed);
        let counted = Self { bytes, twins: twins.clone() };
        (files < twins.most_files && held + bytes <= twins.most_bytes).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.twins.files.fetch_sub(1, Relaxed);
        self.twins.bytes.fetch_sub(self.bytes, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::FileExt;

    use super::*;

    const LENGTH: usize = 64 * 1024;

    fn body() -> Bytes {
        (0..LENGTH).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect()
    }

    fn room_for(twins: usize) -> Arc<Twins> {
        Twins::new((twins * LENGTH) as u64)
    }

    /// A body that is asked for twice.
    fn asked_again(twins: &Arc<Twins>) -> (Arc<Place>, Option<Arc<Twin>>) {
        let body = body();
        let place = Place::of(&body).unwrap();
        assert!(place.twin(&body, twins).is_none());
        let twin = place.twin(&body, twins);
        (place, twin)
    }

    fn has_twin(place: &Place) -> bool {
        place.twin.lock().is_some()
    }

    #[test]
    fn a_part_of_the_body_is_found_in_the_file_and_nothing_else_is() {
        let twins = room_for(1);
        let body = body();
        let place = Place::of(&body).unwrap();
        assert!(place.twin(&body, &twins).is_none(), "the first time");
        let twin = place.twin(&body, &twins).unwrap();
        for (start, end) in [(0, LENGTH), (0, 1), (100, 40_000), (LENGTH - 1, LENGTH), (LENGTH, LENGTH)] {
            let part = body.slice(start..end);
            let at = twin.position_of(&part).unwrap();
            let mut read = vec![0; part.len()];
            twin.file.read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, part);
        }
        let equal = Bytes::copy_from_slice(&body);
        assert_eq!(twin.position_of(&equal), None, "the same bytes elsewhere");
        let longer = body.clone();
        drop(body);
        assert!(twin.position_of(&longer).is_some());
    }

    #[test]
    fn what_they_take_is_counted_and_has_a_bound() {
        let twins = room_for(4);
        let mut places: Vec<_> = (0..10).map(|_| asked_again(&twins).0).collect();
        assert_eq!(places.iter().filter(|place| has_twin(place)).count(), 4);
        assert_eq!(twins.bytes(), 4 * LENGTH as u64);
        places.retain(|place| has_twin(place));
        places.remove(0);
        assert_eq!(twins.bytes(), 3 * LENGTH as u64);
        twins.round.lock().pause = None;
        assert!(asked_again(&twins).1.is_some());
        drop(places);
        assert_eq!(twins.bytes(), 0);
    }

    #[test]
    fn what_is_used_keeps_its_twin_and_what_is_not_loses_it() {
        let twins = room_for(4);
        let hot_body = body();
        let hot = Place::of(&hot_body).unwrap();
        let ask = || hot.twin(&hot_body, &twins);
        assert!(ask().is_none() && ask().is_some());
        let cold: Vec<_> = (0..3).map(|_| asked_again(&twins).0).collect();
        let (mut later, mut got) = (Vec::new(), 0);
        for _ in 0..40 {
            ask();
            // As if some time had passed since another changed places.
            twins.round.lock().pause = None;
            let (place, twin) = asked_again(&twins);
            got += usize::from(twin.is_some());
            later.push(place);
            assert!(has_twin(&hot));
        }
        assert!(got >= 20, "{got}");
        assert!(!cold.iter().any(|place| has_twin(place)));
        assert!(twins.round.lock().places.len() <= 4);
    }

    #[test]
    fn not_every_body_that_is_asked_for_takes_the_place_of_another() {
        let twins = room_for(4);
        let _places: Vec<_> = (0..4).map(|_| asked_again(&twins).0).collect();
        twins.round.lock().pause = Some(Instant::now() + Duration::from_hours(1));
        assert!((0..10).all(|_| asked_again(&twins).1.is_none()));
    }

    #[test]
    fn small_and_very_large_bodies_have_none() {
        for length in [0, 1, LENGTHS.start() - 1, LENGTHS.end() + 1] {
            assert!(Place::of(&Bytes::from(vec![0; length])).is_none(), "{length}");
        }
    }

    #[test]
    fn most_of_what_the_process_may_open_is_left_for_connections() {
        for (limit, most) in [(Some(256), 32), (Some(7), 0), (Some(1 << 20), 1024), (None, 1024)] {
            assert_eq!(most_files(limit), most, "{limit:?}");
        }
    }
}
