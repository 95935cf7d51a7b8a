//! Tries what is to be delivered, as Standard Webhooks (standardwebhooks.com) has it: signed, at least once, again and again
//! with longer and longer pauses.

use std::time::Duration;

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;
use tokio::{task::JoinSet, time::sleep};
use url::Url;
use uuid::Uuid;

use crate::{
    outbound::{Outbound, Reach},
    store::{
        Store,
        webhooks::{Claimed, Tried},
    },
};

const ID: HeaderName = HeaderName::from_static("webhook-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// To the answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A delivery is another replica's to try after that, should this one have died with it.
const CLAIM: time::Duration = time::Duration::seconds(20);

/// Deliveries that are under way from this replica.
const MOST: usize = 32;

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
    let mut under_way = JoinSet::new();
    let mut is_told = false;
    loop {
        while under_way.try_join_next().is_some() {}
        let room = MOST - under_way.len().min(MOST);
        if room > 0 {
            match store.claim_deliveries(room, CLAIM).await {
                Ok(claimed) => {
                    is_told = false;
                    for claimed in claimed {
                        under_way.spawn(try_one(store.clone(), outbound.clone(), schedule.clone(), claimed));
                    }
                }
                Err(error) if !is_told => {
                    is_told = true;
                    tracing::warn!(%error, "what is to be delivered to webhooks cannot be read; trying again");
                }
                Err(_) => {}
            }
        }
        sleep(LOOK).await;
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
    let headers = headers(claimed, now).ok_or("its secret cannot be read")?;
    let body = claimed.body.clone().into();
    let answer = outbound.post(&url, Reach::Public, headers, body, ANSWER).await;
    answer.map(|answer| answer.status.as_u16()).map_err(|error| error.to_string())
}

fn headers(claimed: &Claimed, now: OffsetDateTime) -> Option<HeaderMap> {
    let (id, at) = (claimed.id.to_string(), now.unix_timestamp().to_string());
    let signatures: Option<Vec<String>> =
        claimed.secrets.iter().map(|secret| signature(secret, &id, &at, &claimed.body)).collect();
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
    fn a_pause_is_about_as_long_as_it_is_to_be() {
        let pauses: Vec<Duration> = (0..1000).map(|_| about(Duration::from_secs(10))).collect();
        assert!(pauses.iter().all(|pause| (8.0..=12.0).contains(&pause.as_secs_f64())));
        assert!(
            pauses.iter().any(|pause| pause.as_secs_f64() < 9.0)
                && pauses.iter().any(|pause| pause.as_secs_f64() > 11.0)
        );
    }
}
