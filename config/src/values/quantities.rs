//! Lengths of time, sizes and shares.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{InvalidValue, text_value};

/// A length of time, written as `250ms`, `30s`, `5m`, `1h`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(Duration);

impl Span {
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

const SPAN_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let (unit, factor) = SPAN_UNITS
            .into_iter()
            .rev()
            .find(|(_, factor)| millis % factor == 0 && millis >= *factor)
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", millis / factor)
    }
}

impl FromStr for Span {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || {
            InvalidValue::new(format!(
                "{text:?} is not a length of time: write a whole number and a unit, as in 250ms, 30s, 5m, 1h or 7d (365d at most)"
            ))
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = SPAN_UNITS.into_iter().find(|(u, _)| *u == unit).ok_or_else(refused)?.1;
        let millis = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(refused)?;
        if millis > 365 * 86_400_000 {
            return Err(refused());
        }
        Ok(Self::from_millis(millis))
    }
}

text_value!(Span, "Span", "A length of time: 250ms, 30s, 5m, 1h, 7d", Some("^[0-9]+(ms|s|m|h|d)$"));

/// A number of bytes, written as `512`, `64KiB`, `10MiB`, `1GiB` (or `kB`, `MB`, `GB` for powers of ten).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    pub const fn get(self) -> u64 {
        self.0
    }

    /// The size as an index type; sizes beyond what the machine can address become `usize::MAX`.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const BYTE_UNITS: [(&str, u64); 7] = [
    ("", 1),
    ("kB", 1_000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, factor) = BYTE_UNITS
            .into_iter()
            .rev()
            .find(|(_, factor)| self.0.is_multiple_of(*factor) && self.0 >= *factor)
            .unwrap_or(("", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || {
            InvalidValue::new(format!(
                "{text:?} is not a size: write a whole number of bytes, or one with a unit, as in 64KiB, 10MiB or 1GiB"
            ))
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let factor = BYTE_UNITS.into_iter().find(|(u, _)| *u == unit).ok_or_else(refused)?.1;
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(Self).ok_or_else(refused)
    }
}

// A plain number of bytes may be written without quotes, so this one also reads integers.
impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size in bytes, as in 512, 64KiB or 10MiB")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of bytes: 512, 64KiB, 10MiB, 1GiB",
            "oneOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+(kB|KiB|MB|MiB|GB|GiB)?$" }
            ]
        })
    }
}

/// A share between 0 and 100, in percent; fractions such as `0.5` are allowed.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Percent(f64);

impl Percent {
    pub const fn new_const(value: u8) -> Self {
        assert!(value <= 100, "a share is at most 100 percent");
        Self(value as f64)
    }

    /// Between 0.0 and 100.0.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Between 0.0 and 1.0.
    pub fn as_fraction(self) -> f64 {
        self.0 / 100.0
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Percent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share in percent, as in 20 or 0.5")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Percent, E> {
                if (0.0..=100.0).contains(&value) { Ok(Percent(value)) } else { Err(refused(value)) }
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Percent, E> {
                self.visit_f64(value as f64)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Percent, E> {
                self.visit_f64(value as f64)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Percent, E> {
                Err(refused(text))
            }
        }
        fn refused<E: de::Error>(value: impl fmt::Display) -> E {
            E::custom(format!("{value} is not a share: write a number from 0 to 100, in percent and without the sign"))
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0)
    }
}

impl JsonSchema for Percent {
    fn schema_name() -> Cow<'static, str> {
        "Percent".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "description": "A share in percent", "type": "number", "minimum": 0, "maximum": 100 })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_of_time_are_written_in_the_largest_unit_that_fits() {
        for (text, millis, written) in [
            ("250ms", 250, "250ms"),
            ("1000ms", 1_000, "1s"),
            ("90s", 90_000, "90s"),
            ("60m", 3_600_000, "1h"),
            ("7d", 604_800_000, "7d"),
            ("0s", 0, "0ms"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.get().as_millis(), span.to_string()), (millis, written.to_owned()), "{text}");
        }
        for bad in ["", "5", "s", "1.5s", "-1s", "1 s", "1S", "1w", "366d", "99999999999999999999s", "٣s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in
            [("512", 512), ("1kB", 1_000), ("1KiB", 1_024), ("10MiB", 10 << 20), ("2GB", 2_000_000_000)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().get(), bytes, "{text}");
        }
        for bad in ["", "KiB", "1kb", "1 MiB", "-1", "1.5MiB", "99999999999GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
        assert_eq!(serde_json::from_str::<ByteSize>("4096").unwrap().to_string(), "4KiB");
        assert_eq!(serde_json::from_str::<ByteSize>("\"4KiB\"").unwrap().get(), 4096);
        assert!(serde_json::from_str::<ByteSize>("-1").is_err());
    }

    #[test]
    fn shares_lie_between_0_and_100() {
        for (text, value) in [("0", 0.0), ("100", 100.0), ("0.5", 0.5)] {
            let share = serde_json::from_str::<Percent>(text).unwrap().get();
            assert!((share - value).abs() < f64::EPSILON, "{text}: {share}");
        }
        for bad in ["-1", "100.1", "101", "\"20%\"", "null", "true"] {
            assert!(serde_json::from_str::<Percent>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn quantities_survive_being_written(millis in 0..=365 * 86_400_000_u64, bytes in any::<u64>()) {
            let span = Span::from_millis(millis);
            prop_assert_eq!(span.to_string().parse::<Span>().unwrap(), span);
            let size = ByteSize::new(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn any_text_is_a_quantity_or_refused(text in "(?s).{0,40}") {
            let _ = text.parse::<Span>();
            let _ = text.parse::<ByteSize>();
        }
    }
}
