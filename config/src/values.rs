//! The small checked types that configuration is made of.
//!
//! Each parses from text, refuses what cannot be meant, and writes itself back the same way; whoever
//! holds one need not check again. The error text names the value and the fix; file, line and path
//! are added by [`crate::load`].

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

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

/// Serde, `Display` and JSON Schema for a type that is written as one string.
macro_rules! text_value {
    ($type:ty, $schema_name:literal, $description:literal, $pattern:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                false
            }
            fn schema_name() -> Cow<'static, str> {
                $schema_name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = json_schema!({ "type": "string", "description": $description });
                let pattern: Option<&str> = $pattern;
                if let Some(pattern) = pattern {
                    schema.insert("pattern".into(), pattern.into());
                }
                schema
            }
        }
    };
}

/// The name of a tenant, route, upstream, plan, consumer, key or API version.
///
/// One to 63 characters: lower-case letters, digits, `-`, `_` and `.`; the first is a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(Box<str>);

impl Id {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::borrow::Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let all_good = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
        if starts_well && all_good && text.len() <= 63 {
            Ok(Self(text.into()))
        } else {
            Err(InvalidValue::new(format!(
                "{text:?} is not a name: use 1 to 63 lower-case letters, digits, '-', '_' or '.', beginning with a letter or digit"
            )))
        }
    }
}

text_value!(Id, "Id", "A name: lower-case letters, digits, '-', '_', '.'", Some("^[a-z0-9][a-z0-9._-]{0,62}$"));

/// A host name that a tenant is served under: exact (`api.example.com`) or with a wildcard as its
/// whole first label (`*.example.com`, any depth below `example.com`, not `example.com` itself).
/// Kept in lower case, without a trailing dot and without a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern {
    name: Box<str>,
    wildcard: bool,
}

impl HostPattern {
    /// The host, or for a wildcard the part behind `*.`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn is_wildcard(&self) -> bool {
        self.wildcard
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.wildcard {
            f.write_str("*.")?;
        }
        f.write_str(&self.name)
    }
}

impl FromStr for HostPattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        let (name, wildcard) = match lower.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (lower, false),
        };
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        let is_ipv6 = name.starts_with('[')
            && name.ends_with(']')
            && name[1..name.len() - 1].parse::<std::net::Ipv6Addr>().is_ok();
        if name.len() <= 253 && (is_ipv6 && !wildcard || name.split('.').all(label_ok)) {
            Ok(Self { name: name.into(), wildcard })
        } else {
            Err(InvalidValue::new(format!(
                "{text:?} is not a host name: write it as api.example.com or *.example.com, without scheme, port or path"
            )))
        }
    }
}

text_value!(HostPattern, "HostPattern", "A host name, exact or with a wildcard as its first label: api.example.com, *.example.com", None);

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

const SPAN_UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

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
            .find(|(_, factor)| self.0 % factor == 0 && self.0 >= *factor)
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
        let value = f64::deserialize(deserializer)?;
        if (0.0..=100.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(de::Error::custom(format!("{value} is not a share: write a number from 0 to 100, in percent")))
        }
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

/// The name of an HTTP header field (RFC 9110 §5.1), kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeaderName(http::HeaderName);

impl HeaderName {
    pub fn get(&self) -> &http::HeaderName {
        &self.0
    }
}

impl From<http::HeaderName> for HeaderName {
    fn from(name: http::HeaderName) -> Self {
        Self(name)
    }
}

impl PartialOrd for HeaderName {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HeaderName {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.as_str().cmp(other.0.as_str())
    }
}

impl fmt::Display for HeaderName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for HeaderName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| {
            InvalidValue::new(format!("{text:?} is not a header name: use letters, digits and '-', as in x-request-id"))
        })
    }
}

text_value!(HeaderName, "HeaderName", "The name of an HTTP header field", Some("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"));

/// The value of an HTTP header field: visible characters, spaces and tabs; no line breaks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeaderValue(http::HeaderValue);

impl HeaderValue {
    pub fn get(&self) -> &http::HeaderValue {
        &self.0
    }
}

impl fmt::Display for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only text is accepted when parsing, so this cannot lose anything.
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

impl FromStr for HeaderValue {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b)) {
            if let Ok(value) = http::HeaderValue::from_str(text) {
                return Ok(Self(value));
            }
        }
        Err(InvalidValue::new(format!(
            "{text:?} is not a header value: use visible ASCII characters, spaces and tabs, without line breaks"
        )))
    }
}

text_value!(HeaderValue, "HeaderValue", "The value of an HTTP header field", None);

/// An HTTP method (RFC 9110 §9), in capitals.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Method(http::Method);

impl Method {
    pub fn get(&self) -> &http::Method {
        &self.0
    }
}

impl From<http::Method> for Method {
    fn from(method: http::Method) -> Self {
        Self(method)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl FromStr for Method {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || InvalidValue::new(format!("{text:?} is not a method: write it in capitals, as in GET or POST"));
        if text.is_empty() || text == "CONNECT" || !text.bytes().all(|b| b.is_ascii_uppercase() || b == b'-') {
            return Err(refused());
        }
        text.parse().map(Self).map_err(|_| refused())
    }
}

text_value!(Method, "Method", "An HTTP method in capitals", Some("^[A-Z-]+$"));

/// A host or address with a port: `127.0.0.1:9001`, `[::1]:9001`, `api.internal:443`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    host: Box<str>,
    port: u16,
}

impl HostPort {
    /// A name or address; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || {
            InvalidValue::new(format!(
                "{text:?} is not an address: write a host and a port, as in 10.0.0.7:8080, [::1]:8080 or api.internal:443"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(refused)?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?.to_string(),
            None => {
                let pattern: HostPattern = host.parse().map_err(|_| refused())?;
                if pattern.is_wildcard() {
                    return Err(refused());
                }
                pattern.name().to_owned()
            }
        };
        Ok(Self { host: host.into(), port })
    }
}

text_value!(HostPort, "HostPort", "A host or address with a port: 10.0.0.7:8080", None);

/// The path part of a route: static segments, parameters (`{id}`, one segment) and a tail
/// (`{*rest}`, everything below, possibly nothing), as in `/v1/users/{id}` or `/files/{*path}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPattern {
    text: Box<str>,
    segments: Vec<PathSegment>,
}

/// One segment of a [`PathPattern`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathSegment {
    /// These very characters, in normalised form.
    Static(Box<str>),
    /// Any one segment that is not empty.
    Parameter(Box<str>),
    /// Everything from here on, also nothing; always the last segment.
    Tail(Box<str>),
}

impl PathPattern {
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `/v1/users/{id}` has three; `/` has one, static and empty; a trailing slash adds an empty one.
    pub fn segments(&self) -> &[PathSegment] {
        &self.segments
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for PathPattern {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |why: &str| InvalidValue::new(format!("{text:?} is not a path pattern: {why}"));
        let Some(rest) = text.strip_prefix('/') else {
            return Err(refused("it must begin with '/', as in /v1/users/{id}"));
        };
        if text.len() > 1024 {
            return Err(refused("it is longer than 1024 characters"));
        }
        let mut segments = Vec::new();
        let mut names: Vec<&str> = Vec::new();
        let mut parts = rest.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let segment = if let Some(name) = part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                let (name, tail) = match name.strip_prefix('*') {
                    Some(name) => (name, true),
                    None => (name, false),
                };
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return Err(refused("a parameter is written {name} or {*name}, with letters, digits and '_'"));
                }
                if names.contains(&name) {
                    return Err(refused(&format!("the parameter {name:?} stands twice")));
                }
                names.push(name);
                match (tail, last) {
                    (true, false) => return Err(refused("a tail {*name} must be the last segment")),
                    (true, true) => PathSegment::Tail(name.into()),
                    (false, _) => PathSegment::Parameter(name.into()),
                }
            } else {
                if part.is_empty() && !last {
                    return Err(refused("it has an empty segment ('//')"));
                }
                if part == "." || part == ".." {
                    return Err(refused("'.' and '..' never reach a route: paths are normalised before matching"));
                }
                if !part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b)) {
                    return Err(refused(
                        "a static segment holds unreserved and sub-delimiter characters (RFC 3986 §3.3); write a parameter as a whole segment, {name}",
                    ));
                }
                PathSegment::Static(part.into())
            };
            segments.push(segment);
        }
        Ok(Self { text: text.into(), segments })
    }
}

text_value!(PathPattern, "PathPattern", "The path of a route: /v1/users/{id}, /files/{*path}", Some("^/"));
