//! A stored body once more, in a file without a name, so that the kernel can send it without copying it.
//!
//! Copying is most of what it costs to serve a large body from memory: the processor has to fetch each of its lines,
//! and each of those that it is copied to. The pages of a file go out as they are (`sendfile`). The body itself stays
//! where it is: whoever cannot send a file, since there is TLS or HTTP/2 between, or who only takes note of parts, goes
//! on as before. What is sent from the file is told by where it stands in memory, so that nothing else can take its
//! place.

use std::{
    fs::File,
    io::{self, Write},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use rustix::fs::{MemfdFlags, memfd_create};

use super::{Storage, Totals};

/// Smaller bodies are as quickly copied; larger ones would keep others waiting while they are.
const LENGTHS: RangeInclusive<usize> = 32 * 1024..=1024 * 1024;

/// Each is an open file, of which connections need some too.
const MOST_FILES: u64 = 1024;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Twin {
    file: File,
    body: Bytes,
    _counted: Counted,
}

impl Twin {
    /// None where the body is too small or too large for it to be worth it, or where there are too many already.
    pub(crate) fn new(body: &Bytes, storage: &Storage) -> Option<Self> {
        if !LENGTHS.contains(&body.len()) {
            return None;
        }
        let counted = Counted::new(body.len() as u64, &storage.totals)?;
        // It is only an attempt to be quick: without it, the body is sent as it is.
        let file = in_memory(body).ok()?;
        Some(Self { file, body: body.clone(), _counted: counted })
    }

    /// Whether a body of this length may have one.
    pub fn suits(length: usize) -> bool {
        LENGTHS.contains(&length)
    }

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

/// What it takes of the budget.
#[derive(Debug)]
struct Counted {
    bytes: u64,
    totals: Arc<Totals>,
}

impl Counted {
    fn new(bytes: u64, totals: &Arc<Totals>) -> Option<Self> {
        let files = totals.twin_files.fetch_add(1, Relaxed);
        let held = totals.twins.fetch_add(bytes, Relaxed);
        let counted = Self { bytes, totals: totals.clone() };
        (files < MOST_FILES && held + bytes <= totals.part).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.totals.twin_files.fetch_sub(1, Relaxed);
        self.totals.twins.fetch_sub(self.bytes, Relaxed);
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

    #[test]
    fn a_part_of_the_body_is_found_in_the_file_and_nothing_else_is() {
        let storage = Storage::new(1 << 20);
        let body = body();
        let twin = Twin::new(&body, &storage).unwrap();
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
    fn what_they_take_is_counted_and_no_more_than_an_eighth_of_the_budget() {
        let storage = Storage::new(8 * 4 * LENGTH as u64);
        let mut twins: Vec<_> = std::iter::from_fn(|| Twin::new(&body(), &storage)).take(10).collect();
        assert_eq!(twins.len(), 4);
        assert_eq!(storage.twin_bytes(), 4 * LENGTH as u64);
        twins.pop();
        assert_eq!(storage.twin_bytes(), 3 * LENGTH as u64);
        assert!(Twin::new(&body(), &storage).is_some());
        drop(twins);
        assert_eq!(storage.twin_bytes(), 0);
    }

    #[test]
    fn small_and_very_large_bodies_have_none() {
        let storage = Storage::new(1 << 30);
        for length in [0, 1, LENGTHS.start() - 1, LENGTHS.end() + 1] {
            assert!(Twin::new(&Bytes::from(vec![0; length]), &storage).is_none(), "{length}");
        }
    }
}
