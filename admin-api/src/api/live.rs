//! What is the same for everybody who follows events, however they do: what they see, how long they may, and that no reader
//! holds anything up.

use std::{collections::HashMap, sync::Arc, time::Duration};

use http::HeaderMap;
use parking_lot::Mutex;
use secrecy::SecretString;
use seiketsu_config::values::Id;
use serde::Deserialize;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, interval_at, timeout},
};
use uuid::Uuid;

use super::{
    AppState, Problem,
    caller::{Caller, bearer},
    problem::Kind,
};
use crate::store::{
    StoreError,
    events::{Event, EventKind, Following, Next, Sight},
};

/// So that neither end, nor anything between, takes the connection for dead.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

/// How often it is looked up whether the token still holds, and what its operator may see.
const LOOK_UP: Duration = Duration::from_secs(3);

/// To take one event. Whoever takes longer is cut off, and goes on later where they were.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams of one operator, whatever tokens they have, and of all.
const MOST_OF_ONE: usize = 16;
const MOST: usize = 512;

#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Only what concerns this tenant.
    #[param(value_type = Option<String>)]
    tenant: Option<Id>,
    /// Only these kinds: names with commas between them, as in `revision,node.refused`.
    kind: Option<String>,
    /// The number of the last event that was seen: what came after it comes first. Absent: from now on.
    after: Option<u64>,
    /// `false`: only what is kept, and then the end. Without `after`, that is everything.
    follow: Option<bool>,
}

/// What somebody asked for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) after: Option<u64>,
    pub(super) follow: bool,
    sight: Sight,
    token: Option<SecretString>,
    seat: Seat,
}

impl EventsQuery {
    /// `last`: what the client says that it saw last, in its way.
    pub(super) fn asked(
        self,
        state: &AppState,
        caller: &Caller,
        headers: &HeaderMap,
        last: Option<u64>,
    ) -> Result<Asked, Problem> {
        if let Some(tenant) = &self.tenant {
            caller.may_touch(tenant)?;
        }
        let kinds = self.kind.as_deref().map(|kinds| kinds.split(',').map(kind).collect()).transpose()?;
        let follow = self.follow.unwrap_or(true);
        let after = last.or(self.after).or((!follow).then_some(0));
        let sight = Sight { role: caller.role(), tenants: caller.operator.tenants.clone(), kinds, tenant: self.tenant };
        let seat = state.streams.enter(caller.operator.id)?;
        Ok(Asked { after, follow, sight, token: bearer(headers), seat })
    }
}

fn kind(text: &str) -> Result<EventKind, Problem> {
    EventKind::parse(text).ok_or_else(|| {
        let all: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
        Problem::bad_request(format!("kind: there is no kind {text:?}; there are {}", all.join(", ")))
    })
}

/// Who follows, in this process.
#[derive(Debug, Default)]
pub(super) struct Streams {
    open: Mutex<HashMap<Uuid, usize>>,
    closing: watch::Sender<bool>,
}

impl Streams {
    fn enter(self: &Arc<Self>, operator: Uuid) -> Result<Seat, Problem> {
        let mut open = self.open.lock();
        let all = open.values().sum::<usize>();
        let own = open.get(&operator).copied().unwrap_or_default();
        let (kind, detail) = if own >= MOST_OF_ONE {
            (Kind::TooMany, "the operator follows events as often as an operator may already")
        } else if all >= MOST {
            (Kind::Busy, "events are followed as often as they may be already")
        } else {
            open.insert(operator, own + 1);
            return Ok(Seat { streams: Arc::clone(self), operator });
        };
        Err(Problem::new(kind, detail).retry_after(5))
    }

    /// Ends all streams, now and from now on.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }
}

/// One stream, until it is dropped.
#[derive(Debug)]
struct Seat {
    streams: Arc<Streams>,
    operator: Uuid,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock();
        if let Some(own) = open.get_mut(&self.operator) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.operator);
            }
        }
    }
}

/// Where a stream goes to.
pub(super) trait Out: Send {
    fn event(&mut self, event: &Event) -> impl Future<Output = Result<(), Gone>> + Send;
    /// Events after `after` and before `next` are not kept any more.
    fn missed(&mut self, after: u64, next: u64) -> impl Future<Output = Result<(), Gone>> + Send;
    /// `last`: everything up to this event was told, as far as it concerns the client.
    fn beat(&mut self, last: u64) -> impl Future<Output = Result<(), Gone>> + Send;
    /// Resolves when the client has gone.
    fn gone(&mut self) -> impl Future<Output = ()> + Send;
}

/// The client has gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("that is all")]
    All,
    #[error("the client has gone")]
    Gone,
    #[error("the client did not read for {} s", WRITE_TIMEOUT.as_secs())]
    NotReading,
    #[error("the token does not hold any more")]
    Revoked,
    #[error("this replica ends")]
    Closing,
    #[error("the store cannot be read")]
    Store(#[from] StoreError),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Sends what is asked for until something ends it.
pub(super) async fn pump(state: AppState, mut asked: Asked, mut following: Following, out: &mut impl Out) -> End {
    let mut closing = state.streams.closing.subscribe();
    let mut beat = interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
    let mut look_up = interval(LOOK_UP);
    look_up.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let step = async {
            tokio::select! {
                next = next(&mut following, asked.follow) => match next? {
                    Next::Level => return Err(End::All),
                    Next::Missed { after, next } => out.missed(after, next).await?,
                    Next::Event(event) => if let Some(event) = asked.sight.show(&event) {
                        timeout(WRITE_TIMEOUT, out.event(&event)).await.map_err(|_| End::NotReading)??;
                    }
                },
                _ = beat.tick() => timeout(WRITE_TIMEOUT, out.beat(following.last())).await.map_err(|_| End::NotReading)??,
                _ = look_up.tick() => look(&state, &mut asked).await?,
                () = out.gone() => return Err(End::Gone),
            }
            Ok(())
        };
        tokio::select! {
            done = step => if let Err(end) = done { return end },
            // The sender lives as long as the state.
            _ = closing.wait_for(|closing| *closing) => return End::Closing,
        }
    }
}

async fn next(following: &mut Following, follow: bool) -> Result<Next, StoreError> {
    if follow { following.next().await } else { following.kept().await }
}

/// Whether the caller may still follow, and what they may see by now. While the store cannot be asked, it stays.
async fn look(state: &AppState, asked: &mut Asked) -> Result<(), End> {
    let Some(token) = &asked.token else { return Err(End::Revoked) };
    match state.store.operator_token(token).await {
        Ok(Some((operator, _))) => {
            asked.sight.role = operator.role;
            asked.sight.tenants = operator.tenants;
            Ok(())
        }
        Ok(None) => Err(End::Revoked),
        Err(error) => {
            tracing::debug!(%error, operator = %asked.seat.operator, "cannot look up a token");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn nobody_takes_all_streams() {
        let streams = Arc::new(Streams::default());
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mut seats: Vec<_> = std::iter::from_fn(|| streams.enter(one).ok()).collect();
        assert_eq!(seats.len(), MOST_OF_ONE);
        assert_eq!(streams.enter(one).unwrap_err().kind, Kind::TooMany);
        assert!(streams.enter(other).is_ok());
        seats.pop();
        assert!(streams.enter(one).is_ok());
        // As many as there may be of all, each of another one.
        let _all: Vec<_> = (10..).map_while(|one| streams.enter(Uuid::from_u128(one)).ok()).collect();
        assert_eq!(streams.enter(other).unwrap_err().kind, Kind::Busy);
    }
}
