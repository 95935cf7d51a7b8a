//! How much is worked on at once: so many requests of one operator, whatever tokens they have, and so many heavy ones of one
//! and of all. Whoever has more waits for a moment, and then is told to come back.
//!
//! A heavy request takes the turn of one when its body has arrived, and every request gives its turn back before it waits for
//! nodes.

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
use crate::{serve::HangUp, store::operators::Operator};

/// Requests of one operator, heavy ones of those, and those that wait for nodes beside them.
const MOST_OF_ONE: usize = 16;
const MOST_HEAVY_OF_ONE: usize = 2;
const MOST_WAITING_OF_ONE: usize = 64;

/// Heavy requests of all operators: each may hold as much as is configured, or as an import may be. Of them, operators of
/// named tenants leave some to those of all tenants.
const MOST_HEAVY: usize = 8;
const KEPT_HEAVY: usize = 2;

/// Bodies of heavy requests that are arriving, of all operators: each may be as large as an import. As many are kept.
const MOST_ARRIVING: usize = 16;

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
    heavy: Shared,
    arriving: Shared,
}

/// What one operator may have.
#[derive(Debug, Clone)]
struct Places {
    all: Arc<Semaphore>,
    heavy: Arc<Semaphore>,
    arriving: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// What all operators share.
#[derive(Debug)]
struct Shared {
    of_any: Arc<Semaphore>,
    /// For those of all tenants.
    kept: Arc<Semaphore>,
}

/// The turn of a request, until it is dropped or ends.
#[derive(Debug, Default)]
pub(super) struct Turn(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    places: Vec<OwnedSemaphorePermit>,
    /// Where a place is found to wait.
    waiting: Option<Arc<Semaphore>>,
    ends: Option<Ends>,
}

/// Ends the connection later, unless it is dropped.
#[derive(Debug)]
struct Ends(AbortHandle);

/// Room for a body, until it is dropped.
#[derive(Debug)]
pub(super) struct Room {
    _places: [OwnedSemaphorePermit; 2],
}

impl Default for Turns {
    fn default() -> Self {
        Self { of: Mutex::default(), heavy: Shared::new(MOST_HEAVY), arriving: Shared::new(MOST_ARRIVING) }
    }
}

impl Default for Places {
    fn default() -> Self {
        let places = |most| Arc::new(Semaphore::new(most));
        Self {
            all: places(MOST_OF_ONE),
            heavy: places(MOST_HEAVY_OF_ONE),
            arriving: places(MOST_HEAVY_OF_ONE),
            waiting: places(MOST_WAITING_OF_ONE),
        }
    }
}

impl Shared {
    fn new(most: usize) -> Self {
        Self { of_any: Arc::new(Semaphore::new(most - KEPT_HEAVY)), kept: Arc::new(Semaphore::new(KEPT_HEAVY)) }
    }

    async fn place(&self, operator: &Operator) -> Option<OwnedSemaphorePermit> {
        let of_any = place(Arc::clone(&self.of_any));
        if operator.tenants.is_some() {
            return of_any.await;
        }
        tokio::select! {
            biased;
            Some(place) = of_any => Some(place),
            Some(place) = place(Arc::clone(&self.kept)) => Some(place),
            else => None,
        }
    }
}

impl Turns {
    pub(super) async fn take(&self, operator: &Operator) -> Result<Turn, Problem> {
        let Places { all, waiting, .. } = self.places(operator);
        let place = place(all).await;
        let place = place.ok_or_else(|| too_many("as many requests as an operator may have are under way"))?;
        Ok(Turn(Mutex::new(Held { places: vec![place], waiting: Some(waiting), ends: None })))
    }

    /// Room for the body of a heavy request, while it arrives.
    pub(super) async fn make_room(&self, operator: &Operator) -> Result<Room, Problem> {
        let of_one = place(self.places(operator).arriving).await;
        let of_one = of_one.ok_or_else(|| too_many("as many large bodies as an operator may send are arriving"))?;
        let of_all = self.arriving.place(operator).await;
        let of_all = of_all.ok_or_else(|| busy("as many large bodies as there may be are arriving"))?;
        Ok(Room { _places: [of_one, of_all] })
    }

    /// The request is heavy: its turn becomes that of one. Its answer has to be taken before long: `hang_up` ends the
    /// connection.
    pub(super) async fn take_heavy(
        &self,
        turn: &Turn,
        operator: &Operator,
        hang_up: Option<HangUp>,
    ) -> Result<(), Problem> {
        let of_one = place(self.places(operator).heavy).await;
        let of_one = of_one.ok_or_else(|| too_many("as many heavy requests as an operator may have are under way"))?;
        let of_all = self.heavy.place(operator).await;
        let of_all = of_all.ok_or_else(|| busy("as many heavy requests as there may be are under way"))?;
        let mut held = turn.0.lock();
        held.places.extend([of_one, of_all]);
        held.ends = hang_up.map(|hang_up| {
            let ends = tokio::spawn(async move {
                sleep(LONGEST).await;
                hang_up.now();
            });
            Ends(ends.abort_handle())
        });
        Ok(())
    }

    fn places(&self, operator: &Operator) -> Places {
        let mut of = self.of.lock();
        if of.len() > MANY {
            of.retain(|_, places| Arc::strong_count(&places.all) > 1 || Arc::strong_count(&places.waiting) > 1);
        }
        of.entry(operator.id).or_default().clone()
    }
}

fn busy(detail: &'static str) -> Problem {
    Problem::new(Kind::Busy, detail).retry_after(PATIENCE.as_secs())
}

fn too_many(detail: &'static str) -> Problem {
    Problem::new(Kind::TooMany, detail).retry_after(1)
}

async fn place(places: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    timeout(PATIENCE, places.acquire_owned()).await.ok()?.ok()
}

impl Turn {
    /// An answer with which the turn ends.
    pub(super) fn until_taken(self: Arc<Self>, answer: Body) -> Body {
        Body::new(Taken { answer, _turn: self })
    }

    /// To wait costs nothing, and others may have the turn meanwhile. So many may wait: whoever finds no place keeps the turn.
    pub(super) fn give_back(&self) {
        let mut held = self.0.lock();
        if let Some(place) = held.waiting.take().and_then(|waiting| waiting.try_acquire_owned().ok()) {
            *held = Held { places: vec![place], ..Held::default() };
        }
    }

    /// Whoever else has hold of it.
    pub(super) fn end(&self) {
        *self.0.lock() = Held::default();
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Taken {
    answer: Body,
    _turn: Arc<Turn>,
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

    use std::collections::BTreeSet;

    use time::OffsetDateTime;

    use super::*;
    use crate::store::operators::Role;

    fn operator(id: u128, tenant: Option<&str>) -> Operator {
        Operator {
            id: Uuid::from_u128(id),
            name: "vic".parse().unwrap(),
            role: Role::Viewer,
            tenants: tenant.map(|tenant| BTreeSet::from([tenant.parse().unwrap()])),
            revision: 1,
            created_at: OffsetDateTime::UNIX_EPOCH,
        }
    }

    async fn take_heavy(turns: &Turns, operator: &Operator) -> Result<Arc<Turn>, Kind> {
        let turn = turns.take(operator).await.map_err(|problem| problem.kind)?;
        turns.take_heavy(&turn, operator, None).await.map_err(|problem| problem.kind)?;
        Ok(Arc::new(turn))
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_has_so_many_requests_and_others_have_theirs() {
        let turns = Turns::default();
        let (one, other) = (operator(1, None), operator(2, None));
        let mut taken = Vec::new();
        for _ in 0..MOST_OF_ONE {
            taken.push(turns.take(&one).await.unwrap());
        }
        assert_eq!(turns.take(&one).await.unwrap_err().kind, Kind::TooMany);
        turns.take(&other).await.unwrap();
        taken.pop();
        turns.take(&one).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_takes_all_heavy_turns_and_all_together_take_so_many() {
        let turns = Turns::default();
        let mut taken = Vec::new();
        for id in 0..(MOST_HEAVY / MOST_HEAVY_OF_ONE) as u128 {
            let operator = operator(id, None);
            for _ in 0..MOST_HEAVY_OF_ONE {
                taken.push(take_heavy(&turns, &operator).await.unwrap());
            }
            assert_eq!(take_heavy(&turns, &operator).await.unwrap_err(), Kind::TooMany);
            turns.take(&operator).await.unwrap();
        }
        let another = operator(99, None);
        assert_eq!(take_heavy(&turns, &another).await.unwrap_err(), Kind::Busy);
        turns.take(&another).await.unwrap();
        // The turn ends with the answer.
        let answer = taken.pop().unwrap().until_taken(Body::from("x"));
        assert_eq!(take_heavy(&turns, &another).await.unwrap_err(), Kind::Busy);
        drop(answer);
        take_heavy(&turns, &another).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn operators_of_named_tenants_leave_heavy_turns_to_those_of_all() {
        let turns = Turns::default();
        let (mut taken, mut arriving) = (Vec::new(), Vec::new());
        for id in 0..MOST_ARRIVING as u128 {
            let operator = operator(id, Some("acme"));
            taken.extend(take_heavy(&turns, &operator).await);
            arriving.extend(turns.make_room(&operator).await);
        }
        assert_eq!((taken.len(), arriving.len()), (MOST_HEAVY - KEPT_HEAVY, MOST_ARRIVING - KEPT_HEAVY));
        let of_all = operator(99, None);
        for _ in 0..KEPT_HEAVY {
            taken.push(take_heavy(&turns, &of_all).await.unwrap());
            arriving.push(turns.make_room(&of_all).await.unwrap());
        }
        assert_eq!(take_heavy(&turns, &operator(100, None)).await.unwrap_err(), Kind::Busy);
        // Each has the place that becomes free.
        taken.remove(0);
        take_heavy(&turns, &operator(100, None)).await.unwrap();
        take_heavy(&turns, &operator(101, Some("acme"))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_is_given_back_before_waiting_by_as_many_as_may_wait() {
        let turns = Turns::default();
        let one = operator(1, None);
        let mut waiting = Vec::new();
        for _ in 0..MOST_WAITING_OF_ONE {
            let turn = take_heavy(&turns, &one).await.unwrap();
            turn.give_back();
            waiting.push(turn);
        }
        for _ in 0..MOST_OF_ONE {
            let turn = turns.take(&one).await.unwrap();
            turn.give_back();
            waiting.push(Arc::new(turn));
        }
        assert_eq!(turns.take(&one).await.unwrap_err().kind, Kind::TooMany);
        // Whoever waited no longer has made room for one who waits, and no turn for anybody.
        waiting.remove(0).end();
        assert_eq!(turns.take(&one).await.unwrap_err().kind, Kind::TooMany);
        waiting.pop().unwrap().end();
        turns.take(&one).await.unwrap().give_back();
    }
}
