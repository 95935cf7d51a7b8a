//! Tries what is to be delivered, as Standard Webhooks (standardwebhooks.com) has it: signed, at least once, again and again
//! with longer and longer pauses.
//!
//! A receiver that does not answer holds up its own deliveries and no others: a webhook has a few under way at a time, one
//! that fails has one, and all that fail have half of what there may be together.

use std::{collections::HashMap, sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::{task::JoinSet, time::sleep};
use url::Url;
use uuid::Uuid;

use crate::{
    outbound::{Outbound, Reach},
    store::{
        Store, StoreError,
        deliveries::{Claimed, Due, Tried},
    },
};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// To the answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A delivery is another replica's to try after that, should this one have died with it.
const CLAIM: time::Duration = time::Duration::seconds(20);

/// Deliveries that are under way from this replica: altogether, of all webhooks of the same tenants, of a webhook, and of one
/// that fails.
const MOST: usize = 128;
const MOST_OF_TENANTS: usize = 16;
const MOST_OF_WEBHOOK: usize = 4;
const MOST_OF_FAILING: usize = 1;

/// Webhooks that deliveries are claimed of at a time.
const MOST_CLAIMS: usize = 32;

/// How often it is looked up what is due.
const LOOK: Duration = Duration::from_millis(500);

/// When deliveries are tried again, and when no more.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// The pauses after each trial but the last.
    pub pauses: Vec<Duration>,
    /// A webhook that has taken nothing for as long is disabled.
    pub disable_after: Duration,
}

/// Delivers for as long as the process runs.
pub(crate) async fn deliver(store: Store, outbound: Outbound, schedule: Schedule) {
    let mut deliverer = Deliverer { store, outbound, schedule, seats: Arc::default(), last: Uuid::nil() };
    let mut trials = JoinSet::new();
    let mut is_told = false;
    loop {
        while trials.try_join_next().is_some() {}
        let looked = deliverer.look(&mut trials).await;
        if let Err(error) = &looked
            && !is_told
        {
            tracing::warn!(%error, "what is to be delivered to webhooks cannot be read; trying again");
        }
        is_told = looked.is_err();
        let is_more = looked.unwrap_or(false);
        tokio::select! {
            () = sleep(LOOK) => {}
            Some(_) = trials.join_next(), if is_more => {}
        }
    }
}

struct Deliverer {
    store: Store,
    outbound: Outbound,
    schedule: Schedule,
    seats: Arc<Mutex<Seats>>,
    /// The webhook that something was claimed of last: those behind it come first.
    last: Uuid,
}

impl Deliverer {
    /// Begins with what is due, as far as there is room. Whether there may be more.
    async fn look(&mut self, trials: &mut JoinSet<()>) -> Result<bool, StoreError> {
        let mut all = self.store.webhooks_due().await?;
        let behind = all.partition_point(|due| due.webhook <= self.last);
        all.rotate_left(behind);
        let (mut is_more, mut claims) = (false, 0);
        for due in all {
            let room = self.seats.lock().room_for(&due);
            if room == 0 || claims == MOST_CLAIMS {
                is_more = true;
                continue;
            }
            claims += 1;
            self.last = due.webhook;
            let claimed = self.store.claim_deliveries(due.webhook, room, CLAIM).await?;
            is_more |= claimed.len() == room;
            for claimed in claimed {
                let seat = Seat::take(&self.seats, due.clone());
                let (store, outbound, schedule) = (self.store.clone(), self.outbound.clone(), self.schedule.clone());
                trials.spawn(async move {
                    try_one(store, outbound, schedule, claimed).await;
                    drop(seat);
                });
            }
        }
        Ok(is_more)
    }
}

/// What is under way.
#[derive(Debug, Default)]
struct Seats {
    all: usize,
    failing: usize,
    of_tenants: HashMap<Option<String>, usize>,
    of_webhooks: HashMap<Uuid, usize>,
}

impl Seats {
    /// How many more deliveries of this webhook may be under way.
    fn room_for(&self, due: &Due) -> usize {
        let of_tenants = self.of_tenants.get(&due.tenants).copied().unwrap_or_default();
        let of_webhook = self.of_webhooks.get(&due.webhook).copied().unwrap_or_default();
        let (most, of_failing) = if due.is_failing {
            (MOST_OF_FAILING, (MOST / 2).saturating_sub(self.failing))
        } else {
            (MOST_OF_WEBHOOK, MOST)
        };
        MOST.saturating_sub(self.all)
            .min(of_failing)
            .min(MOST_OF_TENANTS.saturating_sub(of_tenants))
            .min(most.saturating_sub(of_webhook))
    }
}

/// The place of one delivery, until it is dropped.
struct Seat {
    seats: Arc<Mutex<Seats>>,
    due: Due,
}

impl Seat {
    fn take(seats: &Arc<Mutex<Seats>>, due: Due) -> Self {
        let mut all = seats.lock();
        all.all += 1;
        all.failing += usize::from(due.is_failing);
        *all.of_tenants.entry(due.tenants.clone()).or_default() += 1;
        *all.of_webhooks.entry(due.webhook).or_default() += 1;
        drop(all);
        Self { seats: Arc::clone(seats), due }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut all = self.seats.lock();
        all.all -= 1;
        all.failing -= usize::from(self.due.is_failing);
        leave(&mut all.of_tenants, &self.due.tenants);
        leave(&mut all.of_webhooks, &self.due.webhook);
    }
}

fn leave<Key: Eq + std::hash::Hash>(seats: &mut HashMap<Key, usize>, key: &Key) {
    if let Some(many) = seats.get_mut(key) {
        *many -= 1;
        if *many == 0 {
            seats.remove(key);
        }
    }
}

async fn try_one(store: Store, outbound: Outbound, schedule: Schedule, claimed: Claimed) {
    let now = OffsetDateTime::now_utc();
    let (status, error) = match send(&outbound, &claimed, now).await {
        Ok(status) if (200..300).contains(&status) => (Some(status), None),
        Ok(status) => (Some(status), Some(format!("it answered {status}"))),
        Err(error) => (None, Some(error)),
    };
    let pause = usize::try_from(claimed.attempts).ok().and_then(|attempts| schedule.pauses.get(attempts));
    let tried = Tried {
        status,
        again_at: pause.filter(|_| error.is_some()).map(|pause| OffsetDateTime::now_utc() + about(*pause)),
        error,
        patience: schedule.disable_after.try_into().unwrap_or(time::Duration::MAX),
        is_gone: status == Some(410),
    };
    if let Some(error) = &tried.error {
        let is_last = tried.again_at.is_none();
        tracing::info!(webhook = %claimed.webhook, delivery = %claimed.id, error, is_last, "a delivery failed");
    }
    // If it cannot be kept, it is tried again when the claim is over: it may come twice.
    if let Err(error) = store.tried(&claimed, &tried).await {
        tracing::warn!(%error, delivery = %claimed.id, "cannot keep how a delivery went");
    }
}

async fn send(outbound: &Outbound, claimed: &Claimed, now: OffsetDateTime) -> Result<u16, String> {
    let url: Url = claimed.url.parse().map_err(|_| "its address is none".to_owned())?;
    // What is allowed may have changed since it was made.
    if let Some(fault) = outbound.fault(&url) {
        return Err(fault.to_owned());
    }
    let secrets = claimed.secrets.as_ref().as_ref().map_err(|error| format!("its secret cannot be opened: {error}"))?;
    let headers = headers(claimed, secrets, now).ok_or("its secret is none of a webhook")?;
    let body = claimed.body.clone().into();
    let answer = outbound.post(&url, Reach::Public, headers, body, ANSWER).await;
    answer.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
}

fn headers(claimed: &Claimed, secrets: &[SecretString], now: OffsetDateTime) -> Option<HeaderMap> {
    let (id, at) = (claimed.id.to_string(), now.unix_timestamp().to_string());
    let signatures: Option<Vec<String>> =
        secrets.iter().map(|secret| signature(secret, &id, &at, &claimed.body)).collect();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ID, HeaderValue::try_from(id).ok()?);
    headers.insert(TIMESTAMP, HeaderValue::try_from(at).ok()?);
    headers.insert(SIGNATURE, HeaderValue::try_from(signatures?.join(" ")).ok()?);
    Some(headers)
}

/// Standard Webhooks, section "Signature scheme": HMAC-SHA256 over id, time and body with points between.
fn signature(secret: &SecretString, id: &str, at: &str, body: &str) -> Option<String> {
    let key = STANDARD.decode(secret.expose_secret().strip_prefix("whsec_")?).ok()?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let tag = hmac::sign(&key, format!("{id}.{at}.{body}").as_bytes());
    Some(format!("v1,{}", STANDARD.encode(tag)))
}

/// Up to a fifth more or less, so that not everything comes back at once.
fn about(pause: Duration) -> Duration {
    // The last bits of an id are random.
    let random = Uuid::now_v7().as_u128() & 0xffff;
    let part = u32::try_from(random).unwrap_or_default();
    pause.mul_f64(0.8 + 0.4 * f64::from(part) / 65535.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // The example of the specification's reference implementations.
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let body = r#"{"test": 2432232314}"#;
        let signature = signature(&secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body).unwrap();
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_fails_leaves_room_for_what_does_not_and_each_for_the_others() {
        let due = |webhook, tenants: Option<&str>, is_failing| Due {
            webhook: Uuid::from_u128(webhook),
            tenants: tenants.map(str::to_owned),
            is_failing,
        };
        let seats = Arc::new(Mutex::new(Seats::default()));
        let room_for = |due: &Due| seats.lock().room_for(due);
        let fill = |due: Due| -> Vec<Seat> { (0..room_for(&due)).map(|_| Seat::take(&seats, due.clone())).collect() };
        let mut taken = fill(due(0, Some("acme"), false));
        assert_eq!((taken.len(), room_for(&due(0, Some("acme"), false))), (MOST_OF_WEBHOOK, 0));
        taken.extend((1..100).flat_map(|webhook| fill(due(webhook, Some("acme"), false))));
        assert_eq!(taken.len(), MOST_OF_TENANTS);
        assert_eq!(fill(due(100, Some("globex"), true)).len(), MOST_OF_FAILING);
        taken.extend((100..1000).flat_map(|webhook| fill(due(webhook, Some(&webhook.to_string()), true))));
        assert_eq!(taken.len(), MOST_OF_TENANTS + MOST / 2);
        assert_eq!(room_for(&due(2000, None, false)), MOST_OF_WEBHOOK);
        taken.extend((2000..3000).flat_map(|webhook| fill(due(webhook, Some(&webhook.to_string()), false))));
        assert_eq!(taken.len(), MOST);
        drop(taken);
        let left = seats.lock();
        assert_eq!((left.all, left.failing), (0, 0));
        assert!(left.of_tenants.is_empty() && left.of_webhooks.is_empty());
    }

    #[test]
    fn a_pause_is_about_as_long_as_it_is_to_be() {
        let pauses: Vec<Duration> = (0..1000).map(|_| about(Duration::from_secs(10))).collect();
        assert!(pauses.iter().all(|pause| (8.0..=12.0).contains(&pause.as_secs_f64())));
        assert!(
            pauses.iter().any(|pause| pause.as_secs_f64() < 9.0)
                && pauses.iter().any(|pause| pause.as_secs_f64() > 11.0)
        );
    }
}
