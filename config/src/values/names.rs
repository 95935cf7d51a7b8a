//! Names: of things in the configuration, and of hosts.

use std::{fmt, str::FromStr};

use super::{InvalidValue, text_value};

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
