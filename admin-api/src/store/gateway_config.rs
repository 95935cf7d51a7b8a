//! The columns of `api_gateway_config`, as what they are in a tenant's document, and the way back.
//!
//! | column | in the document |
//! |---|---|
//! | `rate_limit_rpm`, `burst_limit` | `policies.limits.rate`; NULL is unlimited, and a burst of NULL as many as the rate |
//! | `quota_daily`, `quota_monthly` | `policies.limits.quotas`; NULL is unlimited |
//! | `custom_headers` | `policies.headers.response.set`: set on every response |
//! | `cors_config` | `policies.cors`; `{}` is what plan and defaults say |
//! | `caching_enabled`, `cache_ttl_seconds` | `policies.cache.enabled`, `.ttl`; NULL is what the cache makes of the response |
//!
//! A document can say more than the columns. What does not fit stays as it is in the document, and the column shows what
//! is nearest to it; [`notes`] says where.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sea_orm::prelude::Json;
use seiketsu_config::{
    cache::Cache,
    limits::{Quota, Rate, TokenBucket},
    policy::{Cors, Policies},
    tenant::Tenant,
    values::{HeaderName, HeaderValue, InvalidValue, Span, Whole},
};
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Invalid, entities::api_gateway_config::Model, signed};

const MINUTE: Span = Span::from_secs(60);

/// Every column. What is absent is the column's default; `null` is unlimited.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, utoipa::ToSchema)]
#[serde(default)]
pub struct GatewayConfig {
    pub rate_limit_rpm: Option<u64>,
    pub burst_limit: Option<u64>,
    pub quota_daily: Option<u64>,
    pub quota_monthly: Option<u64>,
    #[schema(value_type = Object)]
    pub custom_headers: BTreeMap<HeaderName, HeaderValue>,
    #[serde(serialize_with = "object")]
    #[schema(value_type = Object)]
    pub cors_config: Option<Cors>,
    pub caching_enabled: bool,
    pub cache_ttl_seconds: Option<u64>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            rate_limit_rpm: Some(1000),
            burst_limit: Some(100),
            quota_daily: Some(100_000),
            quota_monthly: Some(1_000_000),
            custom_headers: BTreeMap::new(),
            cors_config: None,
            caching_enabled: true,
            cache_ttl_seconds: Some(300),
        }
    }
}

/// Limits that are to change. What is absent stays, `null` is unlimited.
#[allow(clippy::option_option)] // The two are not the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsChange {
    #[serde(deserialize_with = "given")]
    pub rate_limit_rpm: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    pub burst_limit: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    pub quota_daily: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    pub quota_monthly: Option<Option<u64>>,
}

/// That a column does not tell all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = ColumnNote)]
pub struct Note {
    pub column: &'static str,
    pub note: String,
}

impl GatewayConfig {
    /// What the columns show of a tenant.
    pub fn of(tenant: &Tenant) -> Self {
        let policies = &*tenant.policies;
        let (rate_limit_rpm, burst_limit) = own_rate(policies).unwrap_or_default();
        let (caching_enabled, cache_ttl_seconds) = own_cache(policies).unwrap_or_default();
        Self {
            rate_limit_rpm,
            burst_limit,
            quota_daily: own_quotas(policies).0.and_then(Quota::get),
            quota_monthly: own_quotas(policies).1.and_then(Quota::get),
            custom_headers: policies.headers.response.set.clone(),
            cors_config: policies.cors.clone(),
            caching_enabled,
            cache_ttl_seconds,
        }
    }

    /// The tenant with these columns. Where a column shows this already, the document is left as it is.
    pub fn apply(self, mut tenant: Tenant) -> Result<Tenant, Vec<Invalid>> {
        let policies = Arc::make_mut(&mut tenant.policies);
        let mut invalid = Vec::new();
        let rate = (self.rate_limit_rpm, self.burst_limit.filter(|_| self.rate_limit_rpm.is_some()));
        set_rate(policies, rate, &mut invalid);
        set_quotas(policies, Some(self.quota_daily), Some(self.quota_monthly), &mut invalid);
        policies.headers.response.set = self.custom_headers;
        policies.cors = self.cors_config.filter(|cors| *cors != Cors::default());
        let cache = (self.caching_enabled, self.cache_ttl_seconds);
        if own_cache(policies) != Some(cache) {
            match ttl(self.cache_ttl_seconds) {
                Ok(ttl) => {
                    let before = policies.cache.take().unwrap_or_default();
                    policies.cache = Some(Cache { enabled: self.caching_enabled, ttl, ..before });
                }
                Err(why) => invalid.push(wrong("cache_ttl_seconds", &why)),
            }
        }
        if invalid.is_empty() { Ok(tenant) } else { Err(invalid) }
    }

    pub(super) fn into_row(self, tenant_id: Uuid, now: OffsetDateTime) -> Model {
        let json = |value| Some(value).filter(|value| *value != Json::Null);
        Model {
            id: Uuid::now_v7(),
            tenant_id,
            rate_limit_rpm: self.rate_limit_rpm.map(signed),
            burst_limit: self.burst_limit.map(signed),
            quota_daily: self.quota_daily.map(signed),
            quota_monthly: self.quota_monthly.map(signed),
            custom_headers: json(serde_json::to_value(self.custom_headers).unwrap_or_default()),
            cors_config: json(
                self.cors_config
                    .map_or_else(|| serde_json::json!({}), |cors| serde_json::to_value(cors).unwrap_or_default()),
            ),
            caching_enabled: Some(self.caching_enabled),
            cache_ttl_seconds: self.cache_ttl_seconds.map(signed),
            created_at: Some(now),
        }
    }
}

impl LimitsChange {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The tenant with these limits.
    pub fn apply(self, mut tenant: Tenant) -> Result<Tenant, Vec<Invalid>> {
        let policies = Arc::make_mut(&mut tenant.policies);
        let mut invalid = Vec::new();
        let own = own_rate(policies);
        if self.rate_limit_rpm.is_some() || self.burst_limit.is_some() {
            let (rpm, burst) = own.unwrap_or_default();
            let rpm = self.rate_limit_rpm.unwrap_or(rpm);
            match (rpm, self.burst_limit) {
                (None, Some(Some(_))) => {
                    let detail = match own {
                        None => "the tenant has no rate of its own that this could be the burst of",
                        Some(_) => "a rate without limit has no burst",
                    };
                    let fix = Some("give rate_limit_rpm as well".to_owned());
                    let path = "burst_limit".to_owned();
                    invalid.push(Invalid { tenant: None, path, detail: detail.to_owned(), fix });
                }
                (None, _) if self.rate_limit_rpm.is_none() => {}
                (None, _) => set_rate(policies, (None, None), &mut invalid),
                (Some(_), given) if self.rate_limit_rpm.is_none() => set_burst(policies, given.flatten(), &mut invalid),
                (Some(_), given) => set_rate(policies, (rpm, given.unwrap_or(burst)), &mut invalid),
            }
        }
        set_quotas(policies, self.quota_daily, self.quota_monthly, &mut invalid);
        if invalid.is_empty() { Ok(tenant) } else { Err(invalid) }
    }
}

/// Where the columns do not tell all of a tenant.
pub fn notes(tenant: &Tenant) -> Vec<Note> {
    const INHERITED: &str = "the tenant sets none of its own: its plan or the defaults do, if any";
    let policies = &*tenant.policies;
    let mut notes = Vec::new();
    let mut note = |column, note: String| notes.push(Note { column, note });
    match policies.limits.as_ref().and_then(|limits| limits.rate) {
        None => note("rate_limit_rpm", INHERITED.to_owned()),
        Some(Rate::Bucket(bucket)) if bucket.per != MINUTE => {
            note("rate_limit_rpm", format!("it is {} requests per {}", bucket.requests, bucket.per));
        }
        Some(_) => {}
    }
    let (daily, monthly) = own_quotas(policies);
    if daily.is_none() {
        note("quota_daily", INHERITED.to_owned());
    }
    if monthly.is_none() {
        note("quota_monthly", INHERITED.to_owned());
    }
    let mut headers = policies.headers.clone();
    headers.response.set.clear();
    if !headers.is_empty() {
        note("custom_headers", "the tenant changes headers in other ways as well".to_owned());
    }
    if policies.cors.is_none() {
        note("cors_config", INHERITED.to_owned());
    }
    match &policies.cache {
        None => note("caching_enabled", INHERITED.to_owned()),
        Some(Cache { ttl: Some(ttl), .. }) if ttl.get().subsec_millis() != 0 => {
            note("cache_ttl_seconds", format!("it is {ttl}"));
        }
        Some(_) => {}
    }
    notes
}

/// Requests in a minute and burst, if the tenant says anything about its rate.
fn own_rate(policies: &Policies) -> Option<(Option<u64>, Option<u64>)> {
    Some(match policies.limits.as_ref()?.rate? {
        Rate::Unlimited => (None, None),
        Rate::Bucket(bucket) => (Some(per_minute(&bucket)), bucket.burst.map(Whole::get)),
    })
}

/// The nearest whole number; of what is limited at all, at least one.
fn per_minute(bucket: &TokenBucket) -> u64 {
    let millis = u64::try_from(bucket.per.get().as_millis()).unwrap_or(u64::MAX).max(1);
    ((bucket.requests.get() * 60_000 + millis / 2) / millis).max(1)
}

fn own_quotas(policies: &Policies) -> (Option<Quota>, Option<Quota>) {
    policies.limits.as_ref().map_or((None, None), |limits| (limits.quotas.daily, limits.quotas.monthly))
}

fn own_cache(policies: &Policies) -> Option<(bool, Option<u64>)> {
    let cache = policies.cache.as_ref()?;
    // To the nearest second.
    Some((cache.enabled, cache.ttl.map(|ttl| (ttl.get() + Duration::from_millis(500)).as_secs())))
}

fn set_rate(policies: &mut Policies, wanted: (Option<u64>, Option<u64>), invalid: &mut Vec<Invalid>) {
    if own_rate(policies) == Some(wanted) {
        return;
    }
    let (rpm, burst) = wanted;
    let Some(rpm) = rpm else {
        policies.limits.get_or_insert_default().rate = Some(Rate::Unlimited);
        return;
    };
    match (rpm.try_into(), burst.map(TryInto::try_into).transpose()) {
        (Ok(requests), Ok(burst)) => {
            let bucket = TokenBucket { requests, per: MINUTE, burst };
            policies.limits.get_or_insert_default().rate = Some(Rate::Bucket(bucket));
        }
        (rate, burst) => {
            invalid.extend(rate.err().map(|why| wrong("rate_limit_rpm", &why)));
            invalid.extend(burst.err().map(|why| wrong("burst_limit", &why)));
        }
    }
}

/// Only the burst, whatever the period of the rate is.
fn set_burst(policies: &mut Policies, burst: Option<u64>, invalid: &mut Vec<Invalid>) {
    if let Some(Rate::Bucket(bucket)) = policies.limits.as_mut().and_then(|limits| limits.rate.as_mut()) {
        match burst.map(TryInto::try_into).transpose() {
            Ok(burst) => bucket.burst = burst,
            Err(why) => invalid.push(wrong("burst_limit", &why)),
        }
    }
}

#[allow(clippy::option_option)]
fn set_quotas(
    policies: &mut Policies,
    daily: Option<Option<u64>>,
    monthly: Option<Option<u64>>,
    invalid: &mut Vec<Invalid>,
) {
    let mut quota = |column, wanted: Option<Option<u64>>| {
        let read = wanted.map(|wanted| wanted.map_or(Ok(Quota::UNLIMITED), Quota::try_from));
        read.and_then(|read| read.map_err(|why| invalid.push(wrong(column, &why))).ok())
    };
    let (daily, monthly) = (quota("quota_daily", daily), quota("quota_monthly", monthly));
    if daily.is_some() || monthly.is_some() {
        let quotas = &mut policies.limits.get_or_insert_default().quotas;
        quotas.daily = daily.or(quotas.daily);
        quotas.monthly = monthly.or(quotas.monthly);
    }
}

fn ttl(seconds: Option<u64>) -> Result<Option<Span>, InvalidValue> {
    // As text it is held to the same bounds as in a document.
    seconds.map(|seconds| format!("{seconds}s").parse()).transpose()
}

fn wrong(column: &str, why: &InvalidValue) -> Invalid {
    Invalid { tenant: None, path: column.to_owned(), detail: why.to_string(), fix: None }
}

#[allow(clippy::ref_option)] // What serde asks for.
fn object<S: Serializer>(cors: &Option<Cors>, serializer: S) -> Result<S::Ok, S::Error> {
    match cors {
        Some(cors) => cors.serialize(serializer),
        None => serializer.collect_map(std::iter::empty::<((), ())>()),
    }
}

/// Tells what is absent from what is `null`.
#[allow(clippy::option_option)]
pub(crate) fn given<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn tenant(policies: serde_json::Value) -> Tenant {
        serde_json::from_value(json!({ "id": "acme", "hosts": ["acme.example"], "policies": policies, "routes": [] }))
            .unwrap()
    }

    fn columns() -> impl Strategy<Value = GatewayConfig> {
        let headers = prop::collection::btree_map("x-[a-z]{1,5}", "[ -~]{0,8}", 0..3);
        let cors = prop::option::of(("[a-z]{1,5}", any::<bool>()));
        (
            prop::option::of(1..1_000_000_000_u64),
            prop::option::of(1..=1_000_000_u64),
            prop::option::of(0..1_u64 << 50),
            prop::option::of(0..1_u64 << 50),
            headers,
            cors,
            any::<bool>(),
            prop::option::of(0..31_536_000_u64),
        )
            .prop_map(|(rpm, burst, daily, monthly, headers, cors, caching_enabled, cache_ttl_seconds)| {
                GatewayConfig {
                    rate_limit_rpm: rpm,
                    burst_limit: burst.filter(|_| rpm.is_some()),
                    quota_daily: daily,
                    quota_monthly: monthly,
                    custom_headers: headers
                        .into_iter()
                        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                        .collect(),
                    cors_config: cors.map(|(host, credentials)| Cors {
                        origins: vec![format!("https://{host}.example")],
                        credentials,
                        ..Cors::default()
                    }),
                    caching_enabled,
                    cache_ttl_seconds,
                }
            })
    }

    proptest! {
        #[test]
        fn columns_that_are_written_are_read_again(columns in columns()) {
            let before = tenant(json!({ "auth": { "accept": ["anonymous"] } }));
            let after = columns.clone().apply(before.clone()).unwrap();
            prop_assert_eq!(GatewayConfig::of(&after), columns.clone());
            prop_assert_eq!(&after.policies.auth, &before.policies.auth);
            // And nothing is left to be done.
            prop_assert_eq!(columns.apply(after.clone()).unwrap(), after);
        }

        #[test]
        fn what_the_columns_cannot_say_stays_in_the_document(
            requests in 1..1_000_000_u64, seconds in 1..3600_u64, ttl in 1..100_000_u64, columns in columns(),
        ) {
            let rich = json!({
                "limits": {
                    "rate": { "requests": requests, "per": format!("{seconds}s") },
                    "quotas": { "daily": 7, "monthly": "unlimited" },
                    "concurrency": { "requests": 9 },
                },
                "headers": { "request": { "set": { "x-a": "b" } }, "response": { "remove": ["server"] } },
                "cache": { "ttl": format!("{ttl}ms"), "stale_if_error": "1h" },
            });
            let before = tenant(rich);
            // The columns as they are shown change nothing.
            prop_assert_eq!(GatewayConfig::of(&before).apply(before.clone()).unwrap(), before.clone());
            let after = columns.apply(before.clone()).unwrap();
            let (was, is) = (&before.policies, &after.policies);
            prop_assert_eq!(is.limits.as_ref().unwrap().concurrency, was.limits.as_ref().unwrap().concurrency);
            prop_assert_eq!(&is.headers.request, &was.headers.request);
            prop_assert_eq!(&is.headers.response.remove, &was.headers.response.remove);
            prop_assert_eq!(is.cache.as_ref().unwrap().stale_if_error, was.cache.as_ref().unwrap().stale_if_error);
        }
    }

    #[test]
    fn a_column_that_does_not_tell_all_says_so() {
        let noted = |policies| notes(&tenant(policies)).into_iter().map(|note| note.column).collect::<Vec<_>>();
        assert_eq!(
            noted(json!({})),
            ["rate_limit_rpm", "quota_daily", "quota_monthly", "cors_config", "caching_enabled"]
        );
        let full = json!({
            "limits": {
                "rate": { "requests": 5, "per": "1s" },
                "quotas": { "daily": 7, "monthly": "unlimited" },
            },
            "headers": { "response": { "remove": ["server"] } },
            "cors": { "origins": ["https://a.example"] },
            "cache": { "ttl": "1500ms" },
        });
        assert_eq!(noted(full), ["rate_limit_rpm", "custom_headers", "cache_ttl_seconds"]);
        let told = GatewayConfig::default().apply(tenant(json!({}))).unwrap();
        assert_eq!(notes(&told).into_iter().map(|note| note.column).collect::<Vec<_>>(), ["cors_config"]);
    }

    #[test]
    fn a_limit_changes_alone() {
        let before = GatewayConfig::default().apply(tenant(json!({}))).unwrap();
        let change: LimitsChange = serde_json::from_value(json!({ "rate_limit_rpm": 500 })).unwrap();
        let shown = GatewayConfig::of(&change.apply(before.clone()).unwrap());
        assert_eq!(shown, GatewayConfig { rate_limit_rpm: Some(500), ..GatewayConfig::default() });
        let change: LimitsChange =
            serde_json::from_value(json!({ "rate_limit_rpm": null, "quota_daily": null })).unwrap();
        let after = change.apply(before).unwrap();
        let shown = GatewayConfig::of(&after);
        assert_eq!((shown.rate_limit_rpm, shown.burst_limit, shown.quota_daily), (None, None, None));
        assert_eq!(shown.quota_monthly, Some(1_000_000));

        let change: LimitsChange = serde_json::from_value(json!({ "burst_limit": 5 })).unwrap();
        assert_eq!(change.apply(after).unwrap_err()[0].path, "burst_limit");
        let per_second = tenant(json!({ "limits": { "rate": { "requests": 5, "per": "1s" } } }));
        let after = change.apply(per_second).unwrap();
        let Some(Rate::Bucket(bucket)) = after.policies.limits.as_ref().unwrap().rate else { panic!() };
        assert_eq!((bucket.requests.get(), bucket.per, bucket.burst()), (5, Span::from_secs(1), 5));
    }

    #[test]
    fn impossible_columns_are_named() {
        for (columns, path) in [
            (json!({ "rate_limit_rpm": 0 }), "rate_limit_rpm"),
            (json!({ "burst_limit": 0 }), "burst_limit"),
            (json!({ "quota_daily": u64::MAX }), "quota_daily"),
            (json!({ "cache_ttl_seconds": 99_999_999_999_u64 }), "cache_ttl_seconds"),
        ] {
            let columns: GatewayConfig = serde_json::from_value(columns).unwrap();
            assert_eq!(columns.apply(tenant(json!({}))).unwrap_err()[0].path, path);
        }
    }
}
