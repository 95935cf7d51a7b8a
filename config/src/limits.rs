//! How much may be asked for: rates, quotas, and how many requests at the same time.
//!
//! [`Limits`] stand at the layers of policies. Those of defaults, plan and tenant are merged field by field
//! into the tenant's limits ([`TenantLimits`](crate::layers::TenantLimits)). Those of a route and of a
//! consumer are not merged with these: they hold beside them. A request must pass all that apply to it.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::values::{HeaderName, Id, Limit, Span, TimeZone, UNLIMITED, Whole};

/// Requests per period, at most.
pub const MOST_REQUESTS: u64 = 1_000_000_000;

/// The largest burst. A full bucket of the longest period is still counted exactly by a double.
pub const MOST_BURST: u64 = 1_000_000;

/// The shortest period of a rate.
pub const LEAST_PERIOD: Span = Span::from_secs(1);

/// The longest period of a rate.
pub const MOST_PERIOD: Span = Span::from_secs(3600);

/// The largest quota: far below 2⁵³, up to which a double counts exactly.
pub const MOST_QUOTA: u64 = 1 << 50;

/// Requests at the same time, at most.
pub const MOST_SLOTS: u64 = 10_000_000;

/// The largest weight of a request.
pub const MOST_COST: u64 = 10_000;

/// Keyed limits of one layer, at most: each is one more account that a request has to pay.
pub const MOST_KEYED: usize = 8;

/// A number of requests in a day or a month.
pub type Quota = Limit<MOST_QUOTA>;

/// A number of requests at the same time.
pub type Slots = Limit<MOST_SLOTS>;

/// How much may be asked for. What is absent is inherited, or without any layer that says it, unlimited.
///
/// Those of a route hold beside those of its tenant, and count the requests of this route only.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(skip_serializing_if = "is_default")]
    pub quotas: Quotas,
    #[serde(skip_serializing_if = "is_default")]
    pub concurrency: Concurrency,
    /// When days and months begin. Not for routes: those of the tenant hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calendar: Option<Calendar>,
    /// What happens while the coordinator of the limits cannot be reached. Not for routes. Default: share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<Unreachable>,
    /// Whether requests that the upstream answers with 5xx count against quotas, or with `UNKNOWN`,
    /// `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` or `DATA_LOSS` of gRPC. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count_failures: Option<bool>,
    /// What one request weighs against rates and quotas. For routes only. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Limits for each caller, address, header value or claim.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keyed: Vec<KeyedLimit>,
}

impl Limits {
    /// What one request weighs.
    pub fn cost(&self) -> u64 {
        self.cost.map_or(1, Cost::get)
    }
}

/// What a request weighs.
pub type Cost = Whole<1, MOST_COST>;

/// A rate, or none where a layer below sets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rate {
    Unlimited,
    Bucket(TokenBucket),
}

impl Rate {
    pub fn bucket(&self) -> Option<&TokenBucket> {
        match self {
            Self::Unlimited => None,
            Self::Bucket(bucket) => Some(bucket),
        }
    }
}

/// Token bucket: in any time W, `burst + requests · W / per` pass at most.
///
/// `rate_limit_rpm: 1000` and `burst_limit: 100` are `{ requests: 1000, per: 1m, burst: 100 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// New tokens in each period (`rate_limit_rpm` where the period is a minute).
    pub requests: Whole<1, MOST_REQUESTS>,
    /// The period, from 1s to 1h.
    #[serde(deserialize_with = "period")]
    pub per: Span,
    /// The most that may come at once (`burst_limit`). Default: as many as `requests`, but 1000000 at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<Whole<1, MOST_BURST>>,
}

impl TokenBucket {
    /// The most that may come at once.
    pub fn burst(&self) -> u64 {
        self.burst.map_or_else(|| self.requests.get().min(MOST_BURST), Whole::get)
    }
}

/// Requests in each day and each month of the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quotas {
    /// In a day (`quota_daily`): a number, 0 admits nothing; or `unlimited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daily: Option<Quota>,
    /// In a month (`quota_monthly`): a number, 0 admits nothing; or `unlimited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly: Option<Quota>,
}

/// How many at the same time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Concurrency {
    /// Requests in flight, open WebSockets not among them: a number, or `unlimited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Slots>,
    /// Open WebSockets: a number, or `unlimited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websockets: Option<Slots>,
}

/// When days and months begin.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Calendar {
    /// IANA name, as in `Asia/Tokyo`.
    pub time_zone: TimeZone,
    /// The day that months begin with, 1 to 31. Months without that day begin with their last.
    pub month_starts_on: Whole<1, 31>,
}

impl Default for Calendar {
    fn default() -> Self {
        Self { time_zone: TimeZone::utc(), month_starts_on: Whole::new_const(1) }
    }
}

/// What happens to requests while the coordinator of the limits cannot be reached and what the node holds
/// is spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unreachable {
    /// Each node goes on with its share of the limits, by the number of nodes last known.
    #[default]
    Share,
    /// All pass: limits may be exceeded.
    Allow,
    /// None passes.
    Deny,
}

/// A limit that holds for each value of a key by itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyedLimit {
    /// Unique within the layer. A more specific layer replaces the limit of this name whole.
    pub id: Id,
    pub by: LimitKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Not by address.
    #[serde(default, skip_serializing_if = "is_default")]
    pub quotas: Quotas,
    /// By address: requests only.
    #[serde(default, skip_serializing_if = "is_default")]
    pub concurrency: Concurrency,
}

/// What tells apart the callers that a keyed limit counts. Requests without it are not counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum LimitKey {
    /// The caller, by whichever credential: consumer, or issuer and subject of its token.
    Consumer,
    /// The client's address (IPv6: its /64). Counted by each node for itself.
    Address,
    /// The value of this request header.
    Header(HeaderName),
    /// The value of this claim of the caller's token; `.` goes into objects.
    Claim(String),
}

/// Limits of one consumer, beside all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConsumerLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(skip_serializing_if = "is_default")]
    pub quotas: Quotas,
    #[serde(skip_serializing_if = "is_default")]
    pub concurrency: Concurrency,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn period<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
    let span = Span::deserialize(deserializer)?;
    if (LEAST_PERIOD..=MOST_PERIOD).contains(&span) {
        Ok(span)
    } else {
        Err(de::Error::custom(format!(
            "{span} is no possible period of a rate: write {LEAST_PERIOD} to {MOST_PERIOD}; for longer ones there are quotas"
        )))
    }
}

// By hand: an untagged enum would say of a fault in the bucket only that nothing matched.
impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a rate, as in {{requests: 1000, per: 1m, burst: 100}}, or {UNLIMITED}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                if text == UNLIMITED {
                    Ok(Rate::Unlimited)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, entries: A) -> Result<Rate, A::Error> {
                TokenBucket::deserialize(de::value::MapAccessDeserializer::new(entries)).map(Rate::Bucket)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unlimited => serializer.serialize_str(UNLIMITED),
            Self::Bucket(bucket) => bucket.serialize(serializer),
        }
    }
}

impl JsonSchema for Rate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Rate".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let bucket = generator.subschema_for::<TokenBucket>();
        schemars::json_schema!({
            "description": "A rate, or the word unlimited, which switches an inherited one off.",
            "oneOf": [bucket, { "const": UNLIMITED }]
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn limits(json: &str) -> Result<Limits, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_burst_is_as_large_as_the_rate_where_nothing_else_is_said() {
        for (json, burst) in [
            (r#"{"rate": {"requests": 1000, "per": "1m", "burst": 100}}"#, 100),
            (r#"{"rate": {"requests": 1000, "per": "1m"}}"#, 1000),
            (r#"{"rate": {"requests": 1000000000, "per": "1h"}}"#, MOST_BURST),
        ] {
            assert_eq!(limits(json).unwrap().rate.unwrap().bucket().unwrap().burst(), burst, "{json}");
        }
        assert_eq!(limits(r#"{"rate": "unlimited"}"#).unwrap().rate, Some(Rate::Unlimited));
    }

    #[test]
    fn what_is_written_is_written_back() {
        for json in [
            "{}",
            r#"{"rate":"unlimited"}"#,
            r#"{"rate":{"requests":60,"per":"1m"},"quotas":{"daily":0,"monthly":"unlimited"}}"#,
            r#"{"concurrency":{"requests":500,"websockets":"unlimited"},"cost":5}"#,
            r#"{"calendar":{"time_zone":"Asia/Tokyo","month_starts_on":31},"unreachable":"deny","count_failures":false}"#,
            r#"{"keyed":[{"id":"a","by":"consumer","quotas":{"daily":5}},{"id":"b","by":{"header":"x-device-id"}}]}"#,
        ] {
            assert_eq!(serde_json::to_string(&limits(json).unwrap()).unwrap(), json);
        }
    }

    #[test]
    fn absurd_numbers_are_refused_with_their_bounds() {
        for (json, told) in [
            (
                r#"{"rate": {"requests": 0, "per": "1m"}}"#,
                "0 is out of bounds: write a whole number from 1 to 1000000000",
            ),
            (r#"{"rate": {"requests": -5, "per": "1m"}}"#, "`-5`, expected a whole number from 1 to 1000000000"),
            (r#"{"rate": {"requests": 1.5, "per": "1m"}}"#, "`1.5`, expected a whole number from 1 to 1000000000"),
            (r#"{"rate": {"requests": 1, "per": "2h"}}"#, "2h is no possible period of a rate: write 1s to 1h"),
            (r#"{"rate": {"requests": 1, "per": "10ms"}}"#, "10ms is no possible period"),
            (r#"{"rate": {"requests": 1, "per": "1s", "burst": 1000001}}"#, "1000001 is out of bounds"),
            (r#"{"rate": "none"}"#, "expected a rate, as in {requests: 1000, per: 1m, burst: 100}, or unlimited"),
            (r#"{"rate": 1000}"#, "expected a rate, as in {requests: 1000"),
            (r#"{"rate": {"requests": 1}}"#, "missing field `per`"),
            (r#"{"rate": {"requests": 1, "per": "1s", "brust": 1}}"#, "unknown field `brust`"),
            (
                r#"{"quotas": {"daily": 1125899906842625}}"#,
                "write a whole number from 0 to 1125899906842624, or unlimited",
            ),
            (r#"{"concurrency": {"requests": 10000001}}"#, "from 0 to 10000000, or unlimited"),
            (r#"{"calendar": {"month_starts_on": 32}}"#, "from 1 to 31"),
            (r#"{"calendar": {"time_zone": "Mars"}}"#, "not a time zone"),
            (r#"{"cost": 10001}"#, "from 1 to 10000"),
            (r#"{"unreachable": "panic"}"#, "unknown variant `panic`"),
            (r#"{"keyed": [{"id": "a", "by": {"header": "a b"}}]}"#, "not a header name"),
        ] {
            let error = limits(json).unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }
}
