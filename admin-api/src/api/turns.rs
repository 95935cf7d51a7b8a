//! How much is worked on at once: so many requests of one operator, whatever tokens they have, and so many heavy ones of one
//! and of all. Whoever has more waits for a moment, and then is told to come back.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
    time::{sleep, timeout},
};
use uuid::Uuid;

use super::{Problem, problem::Kind};
use crate::serve::HangUp;

/// Requests of one operator, and heavy ones of those.
const MOST_OF_ONE: usize = 16;
const MOST_HEAVY_OF_ONE: usize = 2;

/// Heavy requests of all operators: each may hold as much as is configured, or as an import may be.
const MOST_HEAVY: usize = 8;

/// How long a request waits for each of these.
const PATIENCE: Duration = Duration::from_secs(5);

/// From the turn of a heavy request until its answer has to be taken.
const LONGEST: Duration = Duration::from_mins(10);

/// When there are more operators than this, those without a request are forgotten.
const MANY: usize = 1000;

/// Whose turn it is, in this process.
#[derive(Debug)]
pub(super) struct Turns {
    of: Mutex<HashMap<Uuid, Places>>,
    heavy: Arc<Semaphore>,
}

/// What one operator may have.
#[derive(Debug, Clone)]
struct Places {
    all: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
}

/// The turn of a request, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    _places: Vec<OwnedSemaphorePermit>,
    ends: Option<AbortHandle>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { of: Mutex::default(), heavy: Arc::new(Semaphore::new(MOST_HEAVY)) }
    }
}

impl Default for Places {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(MOST_OF_ONE)), heavy: Arc::new(Semaphore::new(MOST_HEAVY_OF_ONE)) }
    }
}

impl Turns {
    pub(super) async fn take(&self, operator: Uuid) -> Result<Turn, Problem> {
        Ok(Turn { _places: vec![self.any(operator).await?], ends: None })
    }

    /// Of a request that is heavy. Its answer has to be taken before long: `hang_up` ends the connection.
    pub(super) async fn take_heavy(&self, operator: Uuid, hang_up: Option<HangUp>) -> Result<Turn, Problem> {
        let any = self.any(operator).await?;
        let of_one = place(self.places(operator).heavy).await;
        let of_one = of_one.ok_or_else(|| too_many("as many heavy requests as an operator may have are under way"))?;
        let busy = || {
            Problem::new(Kind::Busy, "as many heavy requests as there may be are under way")
                .retry_after(PATIENCE.as_secs())
        };
        let of_all = place(Arc::clone(&self.heavy)).await.ok_or_else(busy)?;
        let ends = hang_up.map(|hang_up| {
            let ends = tokio::spawn(async move {
                sleep(LONGEST).await;
                hang_up.now();
            });
            ends.abort_handle()
        });
        Ok(Turn { _places: vec![any, of_one, of_all], ends })
    }

    async fn any(&self, operator: Uuid) -> Result<OwnedSemaphorePermit, Problem> {
        let place = place(self.places(operator).all).await;
        place.ok_or_else(|| too_many("as many requests as an operator may have are under way"))
    }

    fn places(&self, operator: Uuid) -> Places {
        let mut of = self.of.lock();
        if of.len() > MANY {
            of.retain(|_, places| Arc::strong_count(&places.all) > 1);
        }
        of.entry(operator).or_default().clone()
    }
}

fn too_many(detail: &'static str) -> Problem {
    Problem::new(Kind::TooMany, detail).retry_after(1)
}

async fn place(places: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    timeout(PATIENCE, places.acquire_owned()).await.ok()?.ok()
}

impl Turn {
    /// An answer with which the turn ends.
    pub(super) fn until_taken(self, answer: Body) -> Body {
        Body::new(Taken { answer, _turn: self })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(ends) = &self.ends {
            ends.abort();
        }
    }
}

struct Taken {
    answer: Body,
    _turn: Turn,
}

impl HttpBody for Taken {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().answer).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.answer.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.answer.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_operator_has_so_many_requests_and_others_have_theirs() {
        let turns = Turns::default();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut taken = Vec::new();
        for _ in 0..MOST_OF_ONE {
            taken.push(turns.take(one).await.unwrap());
        }
        assert_eq!(turns.take(one).await.unwrap_err().kind, Kind::TooMany);
        turns.take(other).await.unwrap();
        taken.pop();
        turns.take(one).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_takes_all_heavy_turns_and_all_together_take_so_many() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for operator in 0..(MOST_HEAVY / MOST_HEAVY_OF_ONE) as u128 {
            let operator = Uuid::from_u128(operator);
            for _ in 0..MOST_HEAVY_OF_ONE {
                taken.push(turns.take_heavy(operator, None).await.unwrap());
            }
            assert_eq!(turns.take_heavy(operator, None).await.unwrap_err().kind, Kind::TooMany);
            turns.take(operator).await.unwrap();
        }
        let another = Uuid::from_u128(99);
        assert_eq!(turns.take_heavy(another, None).await.unwrap_err().kind, Kind::Busy);
        turns.take(another).await.unwrap();
        // The turn ends with the answer.
        let answer = taken.pop().unwrap().until_taken(Body::from("x"));
        assert_eq!(turns.take_heavy(another, None).await.unwrap_err().kind, Kind::Busy);
        drop(answer);
        turns.take_heavy(another, None).await.unwrap();
    }
}
