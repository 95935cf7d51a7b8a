//! Points in time (RFC 3339), for fields of the type `Option<OffsetDateTime>`.

use serde::{Deserialize, Deserializer, Serializer};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{InvalidValue, from_text};

#[allow(clippy::ref_option)] // As serde calls it.
pub(crate) fn serialize<S: Serializer>(time: &Option<OffsetDateTime>, serializer: S) -> Result<S::Ok, S::Error> {
    time::serde::rfc3339::option::serialize(time, serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OffsetDateTime>, D::Error> {
    Ok(Option::<Timestamp>::deserialize(deserializer)?.map(|timestamp| timestamp.0))
}

struct Timestamp(OffsetDateTime);

impl std::str::FromStr for Timestamp {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        OffsetDateTime::parse(text, &Rfc3339).map(Self).map_err(|_| {
            InvalidValue::new(format!(
                "{text:?} is not a point in time: write date, time and offset (RFC 3339), as in 2027-01-31T00:00:00Z"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a point in time, as in 2027-01-31T00:00:00Z")
    }
}
