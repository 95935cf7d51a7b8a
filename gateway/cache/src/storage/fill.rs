//! The body of a response on its way into the cache.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::{Bytes, BytesMut};

use super::Storage;

/// The body is larger than one may be, or all that are on their way take more memory than they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the response is too large to be stored, or too many are being stored at the same time")]
pub struct TooLarge;

/// Collects a body. What it takes counts until it is finished or dropped.
#[derive(Debug)]
pub struct Fill {
    storage: Arc<Storage>,
    body: BytesMut,
    counted: u64,
    most: usize,
}

impl Fill {
    /// `most`: bytes that the body may have. `announced`: its length, where it is known.
    pub fn new(storage: Arc<Storage>, most: usize, announced: Option<usize>) -> Result<Self, TooLarge> {
        if announced.is_some_and(|length| length > most) {
            return Err(TooLarge);
        }
        let mut fill = Self { storage, body: BytesMut::new(), counted: 0, most };
        fill.reserve(announced.unwrap_or(0))?;
        Ok(fill)
    }

    pub fn push(&mut self, piece: &[u8]) -> Result<(), TooLarge> {
        let needed = self.body.len() + piece.len();
        if needed > self.most {
            return Err(TooLarge);
        }
        if needed > self.body.capacity() {
            self.reserve(needed.max(2 * self.body.capacity()).min(self.most))?;
        }
        self.body.extend_from_slice(piece);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.body.len()
    }

    pub fn is_empty(&self) -> bool {
        self.body.is_empty()
    }

    /// The whole body, in memory that is no larger than it.
    pub fn finish(mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        if body.capacity() > body.len() + body.len() / 8 {
            return Bytes::copy_from_slice(&body);
        }
        body.freeze()
    }

    fn reserve(&mut self, capacity: usize) -> Result<(), TooLarge> {
        let more = (capacity as u64).saturating_sub(self.counted);
        let totals = &self.storage.totals;
        if totals.filling.fetch_add(more, Relaxed) + more > totals.part {
            totals.filling.fetch_sub(more, Relaxed);
            return Err(TooLarge);
        }
        self.counted += more;
        self.body.reserve(capacity.saturating_sub(self.body.len()));
        Ok(())
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.storage.totals.filling.fetch_sub(self.counted, Relaxed);
    }
}
