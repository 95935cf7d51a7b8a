//! The small checked types that configuration is made of.
//!
//! Each parses from text, refuses what cannot be meant, and writes itself back the same way; whoever
//! holds one need not check again. The error text names the value and the fix; file, line and path
//! are added by [`crate::load`].

mod collections;
mod http;
mod names;
mod numbers;
mod path;
mod quantities;
mod redis;
mod time_zone;
pub(crate) mod timestamp;

pub(crate) use self::{
    collections::{networks, optional_url, socket, sockets, unique_map, url},
    numbers::UNLIMITED,
};
pub use self::{
    http::{HeaderName, HeaderValue, HostPort, Method},
    names::{HostPattern, Id},
    numbers::{Limit, Whole},
    path::{PathPattern, PathSegment},
    quantities::{ByteSize, Percent, Span},
    redis::{RedisUrl, RedisUrlError},
    time_zone::TimeZone,
};

/// Why a value was refused. The message names the value and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidValue {
    message: String,
}

impl InvalidValue {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// Reads a value from text without keeping a copy of it, as the type's `FromStr` does.
pub(crate) fn from_text<'de, D, T>(deserializer: D, expecting: &'static str) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    struct Text<T>(&'static str, std::marker::PhantomData<T>);
    impl<T: std::str::FromStr<Err: std::fmt::Display>> serde::de::Visitor<'_> for Text<T> {
        type Value = T;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text(expecting, std::marker::PhantomData))
}

/// Serde and JSON Schema for a type that is written as one string.
macro_rules! text_value {
    ($type:ty, $schema_name:literal, $description:literal, $pattern:expr) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::values::from_text(deserializer, $description)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $schema_name.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut schema = schemars::json_schema!({ "type": "string", "description": $description });
                let pattern: Option<&str> = $pattern;
                if let Some(pattern) = pattern {
                    schema.insert("pattern".into(), pattern.into());
                }
                schema
            }
        }
    };
}
pub(crate) use text_value;
