//! The body of a response on its way into the cache.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;

use super::{Partition, Totals};

/// Why a body is not collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFilled {
    /// Nor will it be another time.
    #[error("the response is larger than what is stored")]
    TooLarge,
    /// At another time there may be room.
    #[error("too much is being stored at the same time")]
    NoRoom,
}

/// Collects a body. What it takes counts until it is finished or dropped, and only what has come takes something.
///
/// One tenant may take as much for all that is on its way as it leaves for the others: half of the node's part if it
/// is alone, a third if another does the same. So there is room for who comes late.
#[derive(Debug)]
pub struct Fill {
    partition: Arc<Partition>,
    body: Vec<u8>,
    counted: u64,
    most: usize,
}

impl Fill {
    /// `most`: bytes that the body may have. `announced`: its length, where it is known.
    pub fn new(partition: Arc<Partition>, most: usize, announced: Option<usize>) -> Result<Self, NotFilled> {
        let most = most.min(usize::try_from(partition.storage().largest()).unwrap_or(usize::MAX));
        match announced {
            Some(length) if length > most => Err(NotFilled::TooLarge),
            _ => Ok(Self { partition, body: Vec::new(), counted: 0, most: announced.unwrap_or(most) }),
        }
    }

    pub fn push(&mut self, piece: &[u8]) -> Result<(), NotFilled> {
        let needed = self.body.len() + piece.len();
        if needed > self.most {
            return Err(NotFilled::TooLarge);
        }
        if needed > self.body.capacity() {
            self.grow(needed.max(2 * self.body.capacity()).min(self.most))?;
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
        std::mem::take(&mut self.body).into_boxed_slice().into()
    }

    fn grow(&mut self, capacity: usize) -> Result<(), NotFilled> {
        let more = (capacity as u64).saturating_sub(self.counted);
        let (all, own) = self.counts();
        let of_tenant = own.fetch_add(more, Relaxed) + more;
        let of_all = all.filling.fetch_add(more, Relaxed) + more;
        if of_tenant > all.part.saturating_sub(of_all) {
            all.filling.fetch_sub(more, Relaxed);
            own.fetch_sub(more, Relaxed);
            return Err(NotFilled::NoRoom);
        }
        self.counted += more;
        self.body.reserve_exact(capacity - self.body.len());
        Ok(())
    }

    /// Of the node, and of the tenant.
    fn counts(&self) -> (&Totals, &AtomicU64) {
        (&self.partition.storage().totals, self.partition.filling())
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        let (all, own) = self.counts();
        all.filling.fetch_sub(self.counted, Relaxed);
        own.fetch_sub(self.counted, Relaxed);
    }
}
