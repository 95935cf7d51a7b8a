//! Usage, as nodes count it and send it: a record for each tenant, route, consumer and second.
//!
//! A node sends one [`UsagePage`] at a time, and the next one when the control plane has said [`UsageTaken`]: what it
//! says to be taken is durable there, and the node may forget it. A page may come twice, and to two replicas at once; it
//! counts once. Neither is sent before both have said in [`Hello`](super::Hello) and [`Welcome`](super::Welcome) that
//! they know of it.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};

use crate::values::Id;

/// The upper bounds of latencies, in milliseconds; what is above the last one has a bucket of its own.
pub const LATENCY_BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000];

/// Buckets of latencies.
pub const LATENCY_BUCKETS: usize = LATENCY_BOUNDS_MS.len() + 1;

/// Classes of statuses: 1xx to 5xx.
pub const STATUS_CLASSES: usize = 5;

/// Records that a page has at most.
pub const MOST_USAGE_RECORDS: usize = 1000;

/// The longest name of a consumer, in bytes; longer ones count as one. Ids of tenants and routes are shorter.
pub const MOST_NAME_BYTES: usize = 256;

/// The largest number in a record: of bytes, a terabyte in a second.
pub const MOST_OF_RECORD: u64 = 1 << 40;

/// Records of a node's log that follow upon what was taken of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsagePage {
    /// Of the log. A node whose state was lost has another one.
    pub log: String,
    /// First and last number of records that should come first and are no longer there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<UsageRecord>,
    /// The number of the last record of all these, the missing ones among them.
    pub next: u64,
}

/// Everything up to this record is durable, or known to be missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageTaken {
    pub log: String,
    pub next: u64,
    /// Why some of it does not count and will not: the node tells its log of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What one caller has used in one second. Absent names are not known: a request was refused before they were.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    /// Its number in the log.
    pub sequence: u64,
    /// Unix time.
    pub second: u64,
    pub tenant: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub route: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub consumer: String,
    #[serde(flatten)]
    pub counts: Counts,
}

/// What requests add up to. A number that is absent in JSON is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Requests that passed all checks, those that the upstream failed among them.
    #[serde(skip_serializing_if = "is_zero")]
    pub admitted: u64,
    /// Requests that the gateway answered with a problem of its own.
    #[serde(skip_serializing_if = "Refused::is_none")]
    pub refused: Refused,
    /// What the admitted ones weigh.
    #[serde(skip_serializing_if = "is_zero")]
    pub cost: u64,
    /// What of it was given back to quotas: what the upstream fails does not count where a tenant does not want it to.
    #[serde(skip_serializing_if = "is_zero")]
    pub given_back: u64,
    /// Bytes of request bodies, received from clients.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_in: u64,
    /// Bytes of response bodies, sent to clients.
    #[serde(skip_serializing_if = "is_zero")]
    pub bytes_out: u64,
    /// Admitted requests that ended in 5xx, or that the upstream broke off.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u64,
    /// Requests by the class of what they were answered, refused ones too.
    #[serde(skip_serializing_if = "Statuses::is_none")]
    pub statuses: Statuses,
    /// How long admitted requests took, to their last byte. WebSockets, which last as long as clients like, are not in it.
    #[serde(skip_serializing_if = "Latency::is_none")]
    pub latency_ms: Latency,
}

/// Refused requests, by class of the reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Refused {
    /// A limit or quota was used up: 429.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
    /// The caller is not known, or may not do this: 401, 403.
    #[serde(skip_serializing_if = "is_zero")]
    pub auth: u64,
    /// Malformed, no such route, shed, and all else.
    #[serde(skip_serializing_if = "is_zero")]
    pub other: u64,
}

/// Requests by class of status. In JSON an object of those that are not 0: `{"2xx":7}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statuses(pub [u64; STATUS_CLASSES]);

/// Requests by latency. In JSON an object of the buckets that are not 0, by upper bound: `{"5":7,"inf":1}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency(pub [u64; LATENCY_BUCKETS]);

impl Counts {
    /// The largest of its numbers.
    pub fn most(&self) -> u64 {
        let Self { admitted, refused, cost, given_back, bytes_in, bytes_out, failures, statuses, latency_ms } = self;
        let Refused { limit, auth, other } = refused;
        let own = [admitted, limit, auth, other, cost, given_back, bytes_in, bytes_out, failures];
        own.into_iter().chain(&statuses.0).chain(&latency_ms.0).copied().max().unwrap_or_default()
    }

    pub fn add(&mut self, other: &Self) {
        self.add_numbers(other);
        add(&mut self.statuses.0, &other.statuses.0);
        add(&mut self.latency_ms.0, &other.latency_ms.0);
    }

    /// Adds one request, whose status and latency are not in its counts: of so many numbers, one each has changed.
    pub fn add_request(&mut self, counts: &Self, status: u16, took: Option<Duration>) {
        self.add_numbers(counts);
        if let Some(many) = status_class(status).and_then(|class| self.statuses.0.get_mut(class)) {
            *many += 1;
        }
        if let Some(many) = took.and_then(|took| self.latency_ms.0.get_mut(latency_bucket(took))) {
            *many += 1;
        }
    }

    fn add_numbers(&mut self, other: &Self) {
        // By name, so that a number that is added to the type is not forgotten here.
        let Self {
            admitted,
            refused: Refused { limit, auth, other: rest },
            cost,
            given_back,
            bytes_in,
            bytes_out,
            failures,
            statuses: _,
            latency_ms: _,
        } = other;
        for (sum, part) in [
            (&mut self.admitted, admitted),
            (&mut self.refused.limit, limit),
            (&mut self.refused.auth, auth),
            (&mut self.refused.other, rest),
            (&mut self.cost, cost),
            (&mut self.given_back, given_back),
            (&mut self.bytes_in, bytes_in),
            (&mut self.bytes_out, bytes_out),
            (&mut self.failures, failures),
        ] {
            *sum = sum.saturating_add(*part);
        }
    }

    pub fn requests(&self) -> u64 {
        self.admitted.saturating_add(self.refused.all())
    }
}

fn add<const N: usize>(sums: &mut [u64; N], parts: &[u64; N]) {
    for (sum, part) in sums.iter_mut().zip(parts) {
        *sum = sum.saturating_add(*part);
    }
}

impl Refused {
    pub fn all(&self) -> u64 {
        self.limit.saturating_add(self.auth).saturating_add(self.other)
    }

    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// From 0 on; none of what is no status.
fn status_class(status: u16) -> Option<usize> {
    usize::from(status / 100).checked_sub(1).filter(|class| *class < STATUS_CLASSES)
}

fn latency_bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    // So few that to look at all of them is quicker than to guess where to look.
    LATENCY_BOUNDS_MS.iter().filter(|bound| **bound * 1000 < micros).count()
}

impl Statuses {
    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl Latency {
    pub fn all(&self) -> u64 {
        self.0.iter().fold(0, |all, many| all.saturating_add(*many))
    }

    /// How many took longer than a bound, which is the nearest one that is not below `milliseconds`.
    pub fn above(&self, milliseconds: u64) -> u64 {
        let first = LATENCY_BOUNDS_MS.partition_point(|bound| *bound < milliseconds) + 1;
        self.0.iter().skip(first).fold(0, |all, many| all.saturating_add(*many))
    }

    /// The bucket that a quantile, in thousandths, lies in: above which and at most how many milliseconds. No upper bound
    /// if it is above them all. None if there are no requests.
    pub fn quantile(&self, thousandths: u64) -> Option<(u64, Option<u64>)> {
        let all = u128::from(self.all());
        let rank = (all * u128::from(thousandths)).div_ceil(1000).max(1);
        let mut passed = 0_u128;
        for (index, many) in self.0.iter().enumerate() {
            passed += u128::from(*many);
            if passed >= rank {
                let above = index.checked_sub(1).map_or(0, |before| LATENCY_BOUNDS_MS[before]);
                return Some((above, LATENCY_BOUNDS_MS.get(index).copied()));
            }
        }
        None
    }

    fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

const CLASS_NAMES: [&str; STATUS_CLASSES] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const BUCKET_NAMES: [&str; LATENCY_BUCKETS] =
    ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000", "5000", "inf"];

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sparse(&self.0, &CLASS_NAMES, serializer)
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Sparse(&CLASS_NAMES)).map(Self)
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        sparse(&self.0, &BUCKET_NAMES, serializer)
    }
}

impl<'de> Deserialize<'de> for Latency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Sparse(&BUCKET_NAMES)).map(Self)
    }
}

fn sparse<S: Serializer>(numbers: &[u64], names: &[&str], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (name, number) in names.iter().zip(numbers).filter(|(_, number)| **number != 0) {
        map.serialize_entry(name, number)?;
    }
    map.end()
}

struct Sparse<const N: usize>(&'static [&'static str; N]);

impl<'de, const N: usize> de::Visitor<'de> for Sparse<N> {
    type Value = [u64; N];

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "numbers by {}", self.0.join(", "))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<[u64; N], A::Error> {
        let mut numbers = [0_u64; N];
        while let Some((name, number)) = map.next_entry::<std::borrow::Cow<'de, str>, u64>()? {
            // What a later release has more finely is no bucket of this one: it counts as the last.
            let place = self.0.iter().position(|known| *known == name).unwrap_or(N - 1);
            numbers[place] = numbers[place].saturating_add(number);
        }
        Ok(numbers)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A node asks what a tenant has used since a moment: its quota's counter was lost, and it has no memory of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskUsed {
    pub tenant: Id,
    /// Unix time in seconds: when the period of the quota began.
    pub since: u64,
}

/// The answer, as far as usage has come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    pub tenant: Id,
    pub since: u64,
    /// What counts against quotas.
    pub used: u64,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_as_short_as_it_can_be_and_comes_out_as_it_went_in() {
        let mut record = UsageRecord { sequence: 7, second: 1, tenant: "acme".to_owned(), ..UsageRecord::default() };
        let one = Counts { admitted: 1, ..Counts::default() };
        record.counts.add_request(&one, 204, Some(Duration::from_millis(3)));
        record.counts.add_request(&one, 0, Some(Duration::from_secs(6)));
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"sequence":7,"second":1,"tenant":"acme","admitted":2,"statuses":{"2xx":1},"latency_ms":{"5":1,"inf":1}}"#
        );
        assert_eq!(serde_json::from_str::<UsageRecord>(&text).unwrap(), record);
        // As a release before and a release after would write it.
        let old: UsageRecord =
            serde_json::from_str(r#"{"sequence":7,"second":1,"tenant":"acme","admitted":2}"#).unwrap();
        assert_eq!((old.counts.admitted, old.counts.latency_ms.all()), (2, 0));
        let new = r#"{"sequence":7,"second":1,"tenant":"a","mood":"good","latency_ms":{"5":1,"10000":2}}"#;
        assert_eq!(serde_json::from_str::<UsageRecord>(new).unwrap().counts.latency_ms.all(), 3);
    }

    #[test]
    fn statuses_have_a_class_or_none() {
        assert_eq!([101, 200, 304, 404, 599].map(status_class), [0, 1, 2, 3, 4].map(Some));
        assert_eq!([0, 99, 600, u16::MAX].map(status_class), [None; 4]);
    }

    proptest! {
        /// Whatever requests take: a quantile's true value lies in the bucket that is given for it.
        #[test]
        fn a_quantile_lies_where_it_is_said_to(mut took in prop::collection::vec(0_u64..20_000_000, 1..300), thousandths in 1_u64..=1000) {
            let mut sum = Counts::default();
            for micros in &took {
                sum.add_request(&Counts::default(), 200, Some(Duration::from_micros(*micros)));
            }
            took.sort_unstable();
            let rank = (took.len() as u64 * thousandths).div_ceil(1000).max(1);
            let value = took[usize::try_from(rank).unwrap() - 1];
            let (above, at_most) = sum.latency_ms.quantile(thousandths).unwrap();
            prop_assert!(above * 1000 < value || above == 0);
            prop_assert!(at_most.is_none_or(|at_most| value <= at_most * 1000));
            let bound = LATENCY_BOUNDS_MS[took.len() % 12];
            prop_assert_eq!(sum.latency_ms.above(bound), took.iter().filter(|took| **took > bound * 1000).count() as u64);
        }
    }
}
