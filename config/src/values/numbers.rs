//! Whole numbers within bounds. What is negative, fractional or beyond the bounds is refused with the
//! number and the bounds, and never wraps or is rounded.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::InvalidValue;

/// A whole number from `LEAST` to `MOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Whole<const LEAST: u64, const MOST: u64>(u64);

impl<const LEAST: u64, const MOST: u64> Whole<LEAST, MOST> {
    /// For constants. What is out of bounds does not compile.
    pub const fn new_const(number: u64) -> Self {
        assert!(LEAST <= number && number <= MOST, "out of bounds");
        Self(number)
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl<const LEAST: u64, const MOST: u64> TryFrom<u64> for Whole<LEAST, MOST> {
    type Error = InvalidValue;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        if (LEAST..=MOST).contains(&number) {
            Ok(Self(number))
        } else {
            Err(InvalidValue::new(format!("{number} is out of bounds: write a whole number from {LEAST} to {MOST}")))
        }
    }
}

impl<const LEAST: u64, const MOST: u64> fmt::Display for Whole<LEAST, MOST> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de, const LEAST: u64, const MOST: u64> Deserialize<'de> for Whole<LEAST, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const LEAST: u64, const MOST: u64>;
        impl<const LEAST: u64, const MOST: u64> de::Visitor<'_> for Visitor<LEAST, MOST> {
            type Value = Whole<LEAST, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {LEAST} to {MOST}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                number.try_into().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(de::Error::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

impl<const LEAST: u64, const MOST: u64> Serialize for Whole<LEAST, MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<const LEAST: u64, const MOST: u64> JsonSchema for Whole<LEAST, MOST> {
    fn schema_name() -> Cow<'static, str> {
        format!("Whole{LEAST}To{MOST}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": LEAST, "maximum": MOST })
    }
}

/// `MOST` at most, written as a number, or the word `unlimited`. 0 admits nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit<const MOST: u64>(Option<u64>);

/// The word that switches a limit off.
pub(crate) const UNLIMITED: &str = "unlimited";

impl<const MOST: u64> Limit<MOST> {
    pub const UNLIMITED: Self = Self(None);

    /// The number, unless it is unlimited.
    pub const fn get(self) -> Option<u64> {
        self.0
    }
}

impl<const MOST: u64> TryFrom<u64> for Limit<MOST> {
    type Error = InvalidValue;

    fn try_from(number: u64) -> Result<Self, Self::Error> {
        if number <= MOST {
            Ok(Self(Some(number)))
        } else {
            Err(InvalidValue::new(format!(
                "{number} is too large: write a whole number from 0 to {MOST}, or {UNLIMITED}"
            )))
        }
    }
}

impl<'de, const MOST: u64> Deserialize<'de> for Limit<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<const MOST: u64>;
        impl<const MOST: u64> de::Visitor<'_> for Visitor<MOST> {
            type Value = Limit<MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 0 to {MOST}, or {UNLIMITED}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                number.try_into().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_) => Err(de::Error::invalid_value(de::Unexpected::Signed(number), &self)),
                }
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                if text == UNLIMITED {
                    Ok(Limit::UNLIMITED)
                } else {
                    Err(de::Error::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl<const MOST: u64> Serialize for Limit<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(number) => serializer.serialize_u64(number),
            None => serializer.serialize_str(UNLIMITED),
        }
    }
}

impl<const MOST: u64> JsonSchema for Limit<MOST> {
    fn schema_name() -> Cow<'static, str> {
        format!("LimitTo{MOST}").into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "oneOf": [{ "type": "integer", "minimum": 0, "maximum": MOST }, { "const": UNLIMITED }] })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    type Dozen = Whole<1, 12>;
    type Few = Limit<12>;

    #[test]
    fn numbers_out_of_bounds_are_told_the_bounds() {
        for bad in ["0", "13", "-1", "1.5", "1e3", "18446744073709551616", "\"1\"", "null", "true", "[1]"] {
            let error = serde_json::from_str::<Dozen>(bad).unwrap_err().to_string();
            assert!(error.contains("a whole number from 1 to 12"), "{bad}: {error}");
        }
        for bad in ["13", "-1", "1.5", "18446744073709551616", "\"1\"", "\"Unlimited\"", "null", "true", "{}"] {
            let error = serde_json::from_str::<Few>(bad).unwrap_err().to_string();
            assert!(error.contains("a whole number from 0 to 12, or unlimited"), "{bad}: {error}");
        }
    }

    #[test]
    fn a_limit_is_a_number_or_a_word() {
        assert_eq!(serde_json::from_str::<Few>("0").unwrap().get(), Some(0));
        assert_eq!(serde_json::from_str::<Few>("\"unlimited\"").unwrap(), Few::UNLIMITED);
        assert_eq!(serde_json::to_string(&[Few::UNLIMITED, 5.try_into().unwrap()]).unwrap(), r#"["unlimited",5]"#);
    }

    proptest! {
        #[test]
        fn numbers_survive_being_written(number in 0_u64..20) {
            let text = number.to_string();
            prop_assert_eq!(serde_json::from_str::<Dozen>(&text).map(Whole::get).ok(), (1..=12).contains(&number).then_some(number));
            prop_assert_eq!(serde_json::from_str::<Few>(&text).ok().and_then(Limit::get), (number <= 12).then_some(number));
        }
    }
}
