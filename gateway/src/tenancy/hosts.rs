//! Which tenant a host name belongs to: an exact name first, then the wildcard with the longest suffix.

use std::{io::Write, net::Ipv6Addr, str};

use seiketsu_config::values::HostPattern;

use super::shards::ShardedMap;

/// The longest host name (RFC 1035 §2.3.4, without the trailing dot).
const MAX_HOST_BYTES: usize = 253;

/// A name of [`MAX_HOST_BYTES`] has no more labels than this.
const MAX_LABELS: usize = 127;

/// Why the host of a request is refused: 400 to the client (RFC 9112 §3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the host is longer than {MAX_HOST_BYTES} bytes")]
    TooLong,
    #[error("the host holds the byte {byte:#04x}, which no host name has")]
    ForbiddenByte { byte: u8 },
    #[error("the host names a user, which is not accepted")]
    UserInfo,
    #[error("the host has an empty label, as in 'a..b'")]
    EmptyLabel,
    #[error("the port behind the host is not a number up to 65535")]
    InvalidPort,
    #[error("the host begins with '[' but is not an IPv6 address in brackets")]
    InvalidIpv6,
}

/// Room for a host that has to be rewritten; on the stack, and untouched in the common case.
#[derive(Debug, Default)]
pub struct HostBuffer(Option<[u8; MAX_HOST_BYTES]>);

/// The host of a raw `Host` or `:authority` value (RFC 9110 §7.2): without port and trailing dot, in
/// lower case; an IPv6 address in brackets, in the form of RFC 5952.
///
/// Borrows from `raw` if it has this form already, else from `buffer`.
pub fn normalise<'a>(raw: &'a [u8], buffer: &'a mut HostBuffer) -> Result<&'a str, HostError> {
    if is_normal(raw) {
        // Nothing but ASCII has passed, here and below.
        return str::from_utf8(raw).map_err(|_| HostError::Empty);
    }
    if raw.first() == Some(&b'[') {
        return normalise_ipv6(raw, buffer);
    }
    let colon = raw.iter().position(|byte| *byte == b':');
    let (host, port) = raw.split_at(colon.unwrap_or(raw.len()));
    let host = host.strip_suffix(b".").unwrap_or(host);
    if raw.contains(&b'@') {
        return Err(HostError::UserInfo);
    }
    check_port(port)?;
    if host.is_empty() {
        return Err(HostError::Empty);
    }
    if host.len() > MAX_HOST_BYTES {
        return Err(HostError::TooLong);
    }
    let mut has_capitals = false;
    let mut label_is_empty = true;
    for &byte in host {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => label_is_empty = false,
            b'A'..=b'Z' => {
                label_is_empty = false;
                has_capitals = true;
            }
            b'.' if label_is_empty => return Err(HostError::EmptyLabel),
            b'.' => label_is_empty = true,
            _ => return Err(HostError::ForbiddenByte { byte }),
        }
    }
    if label_is_empty {
        return Err(HostError::EmptyLabel);
    }
    let host = if has_capitals {
        let lower = &mut buffer.0.insert([0; MAX_HOST_BYTES])[..host.len()];
        lower.copy_from_slice(host);
        lower.make_ascii_lowercase();
        lower
    } else {
        host
    };
    str::from_utf8(host).map_err(|_| HostError::Empty)
}

/// Whether this is a name in normal form, as it is for most requests, without a port. One step for each byte.
fn is_normal(raw: &[u8]) -> bool {
    let mut in_label = false;
    for &byte in raw {
        let is_of_label = IS_OF_LABEL[usize::from(byte)];
        if !is_of_label && (byte != b'.' || !in_label) {
            return false;
        }
        in_label = is_of_label;
    }
    in_label && raw.len() <= MAX_HOST_BYTES
}

const IS_OF_LABEL: [bool; 256] = {
    let bytes = b"abcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut is_of_label = [false; 256];
    let mut at = 0;
    while at < bytes.len() {
        is_of_label[bytes[at] as usize] = true;
        at += 1;
    }
    is_of_label
};

#[cold]
fn normalise_ipv6<'a>(raw: &[u8], buffer: &'a mut HostBuffer) -> Result<&'a str, HostError> {
    let end = raw.iter().position(|byte| *byte == b']').ok_or(HostError::InvalidIpv6)?;
    check_port(&raw[end + 1..])?;
    let address: Ipv6Addr =
        str::from_utf8(&raw[1..end]).ok().and_then(|text| text.parse().ok()).ok_or(HostError::InvalidIpv6)?;
    let buffer = buffer.0.insert([0; MAX_HOST_BYTES]);
    let mut rest = &mut buffer[..];
    write!(rest, "[{address}]").map_err(|_| HostError::TooLong)?;
    let len = MAX_HOST_BYTES - rest.len();
    str::from_utf8(&buffer[..len]).map_err(|_| HostError::InvalidIpv6)
}

/// Checks what follows the host: nothing, or a colon and a port, which may be left out
/// (RFC 3986 §3.2.3).
fn check_port(rest: &[u8]) -> Result<(), HostError> {
    let Some(digits) = rest.strip_prefix(b":") else {
        return if rest.is_empty() { Ok(()) } else { Err(HostError::InvalidPort) };
    };
    let is_port = digits.iter().all(u8::is_ascii_digit)
        && str::from_utf8(digits).is_ok_and(|digits| digits.len() <= 5 && digits.parse::<u16>().is_ok());
    if is_port || digits.is_empty() { Ok(()) } else { Err(HostError::InvalidPort) }
}

/// Host patterns and what they stand for. Copies share structure; see [`ShardedMap`].
#[derive(Debug, Clone)]
pub(super) struct HostTable<V> {
    exact: ShardedMap<V>,
    /// By the part behind `*.`.
    wildcards: ShardedMap<V>,
    /// How many wildcards have a suffix of that many labels. Only suffixes of such a length are looked
    /// up, so that a host of many labels does not cost a look-up for each.
    wildcards_by_labels: [u32; MAX_LABELS + 1],
}

impl<V: Clone> Default for HostTable<V> {
    fn default() -> Self {
        Self {
            exact: ShardedMap::default(),
            wildcards: ShardedMap::default(),
            wildcards_by_labels: [0; MAX_LABELS + 1],
        }
    }
}

impl<V: Clone> HostTable<V> {
    /// What a normalised host belongs to.
    pub(super) fn find(&self, host: &str) -> Option<&V> {
        self.exact.get(host).or_else(|| self.wildcards_above(host).next())
    }

    /// What is held for the host and for the wildcards above it, the longest suffix first.
    pub(super) fn matches<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a V> {
        self.exact.get(host).into_iter().chain(self.wildcards_above(host))
    }

    fn wildcards_above<'a>(&'a self, host: &str) -> impl Iterator<Item = &'a V> {
        let none = self.wildcards.len() == 0 || host.starts_with('[');
        let labels = if none { 0 } else { label_count(host) };
        let suffixes = std::iter::successors(Some(host), |suffix| Some(suffix.split_once('.')?.1)).skip(1);
        (0..labels)
            .rev()
            .zip(suffixes)
            .filter(|(labels, _)| self.wildcards_by_labels[*labels] > 0)
            .filter_map(|(_, suffix)| self.wildcards.get(suffix))
    }

    /// What is held for this very pattern.
    pub(super) fn get(&self, pattern: &HostPattern) -> Option<&V> {
        self.map(pattern).get(key(pattern, &mut HostBuffer::default()))
    }

    pub(super) fn insert(&mut self, pattern: &HostPattern, value: V) -> Option<V> {
        let mut buffer = HostBuffer::default();
        let key = key(pattern, &mut buffer);
        if !pattern.is_wildcard() {
            return self.exact.insert(key, value);
        }
        let former = self.wildcards.insert(key, value);
        if former.is_none() {
            self.wildcards_by_labels[label_count(key)] += 1;
        }
        former
    }

    pub(super) fn remove(&mut self, pattern: &HostPattern) -> Option<V> {
        let mut buffer = HostBuffer::default();
        let key = key(pattern, &mut buffer);
        if !pattern.is_wildcard() {
            return self.exact.remove(key);
        }
        let former = self.wildcards.remove(key);
        if former.is_some() {
            self.wildcards_by_labels[label_count(key)] -= 1;
        }
        former
    }

    fn map(&self, pattern: &HostPattern) -> &ShardedMap<V> {
        if pattern.is_wildcard() { &self.wildcards } else { &self.exact }
    }
}

/// The text a pattern is held under: what [`normalise`] makes of a host that it names. It changes IPv6
/// addresses only.
fn key<'a>(pattern: &'a HostPattern, buffer: &'a mut HostBuffer) -> &'a str {
    normalise(pattern.name().as_bytes(), buffer).unwrap_or(pattern.name())
}

fn label_count(host: &str) -> usize {
    host.bytes().filter(|byte| *byte == b'.').count() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn normal(raw: &str) -> Result<String, HostError> {
        normalise(raw.as_bytes(), &mut HostBuffer::default()).map(str::to_owned)
    }

    fn table(patterns: &[&str]) -> HostTable<String> {
        let mut table = HostTable::default();
        for pattern in patterns {
            table.insert(&pattern.parse().unwrap(), (*pattern).to_owned());
        }
        table
    }

    #[test]
    fn a_host_loses_port_dot_and_capitals() {
        for (raw, host) in [
            ("api.example.com", "api.example.com"),
            ("API.Example.COM", "api.example.com"),
            ("api.example.com.", "api.example.com"),
            ("api.example.com:8443", "api.example.com"),
            ("api.example.com.:443", "api.example.com"),
            ("api.example.com:", "api.example.com"),
            ("localhost:0", "localhost"),
            ("10.0.0.7:65535", "10.0.0.7"),
            ("my_host-1.internal", "my_host-1.internal"),
            ("[::1]", "[::1]"),
            ("[::1]:8080", "[::1]"),
            ("[0:0::0001]:8080", "[::1]"),
            ("[2001:DB8::A]", "[2001:db8::a]"),
            ("[::ffff:10.0.0.7]", "[::ffff:10.0.0.7]"),
        ] {
            assert_eq!(normal(raw).as_deref(), Ok(host), "{raw:?}");
        }
    }

    #[test]
    fn a_usual_host_is_borrowed() {
        let mut buffer = HostBuffer::default();
        normalise(b"api.example.com:443", &mut buffer).unwrap();
        assert!(buffer.0.is_none());
    }

    #[test]
    fn hostile_hosts_are_refused() {
        use HostError::*;
        let too_long = "a.".repeat(127);
        for (raw, error) in [
            ("", Empty),
            (".", Empty),
            (":80", Empty),
            ("..", EmptyLabel),
            (".a", EmptyLabel),
            ("a..b", EmptyLabel),
            ("a..", EmptyLabel),
            ("user@a.example", UserInfo),
            ("user:pass@a.example", UserInfo),
            ("@", UserInfo),
            ("a.example:80@b.example", UserInfo),
            ("a.example:80a", InvalidPort),
            ("a.example:65536", InvalidPort),
            ("a.example:000080", InvalidPort),
            ("a.example:-1", InvalidPort),
            ("a.example:80:80", InvalidPort),
            ("::1", InvalidPort),
            ("2001:db8::1", InvalidPort),
            ("a.example,b.example", ForbiddenByte { byte: b',' }),
            ("a.example/x", ForbiddenByte { byte: b'/' }),
            ("a.example\\b", ForbiddenByte { byte: b'\\' }),
            ("a.example?x", ForbiddenByte { byte: b'?' }),
            ("a.example ", ForbiddenByte { byte: b' ' }),
            ("a.example\0", ForbiddenByte { byte: 0 }),
            ("a\r\nb", ForbiddenByte { byte: b'\r' }),
            ("a%2eexample", ForbiddenByte { byte: b'%' }),
            ("*.example", ForbiddenByte { byte: b'*' }),
            ("é.example", ForbiddenByte { byte: 0xc3 }),
            ("[::1", InvalidIpv6),
            ("[]", InvalidIpv6),
            ("[a.example]", InvalidIpv6),
            ("[10.0.0.7]", InvalidIpv6),
            ("[fe80::1%25eth0]", InvalidIpv6),
            ("[::1]x", InvalidPort),
            ("[::1].", InvalidPort),
            (&format!("{too_long}a"), TooLong),
        ] {
            assert_eq!(normal(raw), Err(error), "{raw:?}");
        }
        assert!(normal(&too_long).is_ok(), "253 characters and a trailing dot");
    }

    #[test]
    fn an_exact_host_comes_before_wildcards_and_long_suffixes_before_short() {
        let table = table(&["a.b.example.com", "*.b.example.com", "*.example.com", "*.com"]);
        for (host, pattern) in [
            ("a.b.example.com", Some("a.b.example.com")),
            ("c.b.example.com", Some("*.b.example.com")),
            ("d.c.b.example.com", Some("*.b.example.com")),
            ("x.a.b.example.com", Some("*.b.example.com")),
            ("b.example.com", Some("*.example.com")),
            ("x.y.example.com", Some("*.example.com")),
            ("example.com", Some("*.com")),
            ("com", None),
            ("example.org", None),
            ("xexample.org", None),
        ] {
            assert_eq!(table.find(host).map(String::as_str), pattern, "{host:?}");
        }
    }

    #[test]
    fn a_wildcard_does_not_stand_for_its_own_suffix() {
        assert_eq!(table(&["*.example.com"]).find("example.com"), None);
    }

    #[test]
    fn a_removed_wildcard_no_longer_matches() {
        let mut table = table(&["*.a.example", "*.b.example"]);
        assert!(table.remove(&"*.a.example".parse().unwrap()).is_some());
        assert!(table.remove(&"*.a.example".parse().unwrap()).is_none());
        assert_eq!(table.find("x.a.example"), None);
        assert!(table.find("x.b.example").is_some());
        table.remove(&"*.b.example".parse().unwrap());
        assert_eq!(table.wildcards_by_labels, [0; MAX_LABELS + 1]);
    }

    #[test]
    fn an_ipv6_host_matches_in_every_way_of_writing_it() {
        let table = table(&["[2001:DB8:0:0::1]"]);
        assert!(table.find(&normal("[2001:db8::0:1]:443").unwrap()).is_some());
    }

    #[test]
    fn the_longest_possible_host_is_looked_up() {
        let table = table(&["*.a.a"]);
        assert!(table.find(&normal(&"a.".repeat(127)).unwrap()).is_some());
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing(raw in "[a-zA-Z0-9._:@\\[\\]-]{0,20}") {
            if let Ok(once) = normal(&raw) {
                prop_assert_eq!(normal(&once), Ok(once));
            }
        }

        #[test]
        fn any_bytes_are_answered_without_a_panic(raw in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = normalise(&raw, &mut HostBuffer::default());
        }

        #[test]
        fn the_table_finds_what_a_linear_search_finds(
            patterns in prop::collection::btree_set("(\\*\\.)?[ab](\\.[ab]){0,3}", 0..12),
            removed in prop::collection::vec(any::<bool>(), 12),
            host in "[ab](\\.[ab]){0,4}",
        ) {
            let patterns: Vec<HostPattern> = patterns.iter().map(|p| p.parse().unwrap()).collect();
            let mut table = HostTable::default();
            for pattern in &patterns {
                table.insert(pattern, pattern.to_string());
            }
            let mut kept = Vec::new();
            for (pattern, remove) in patterns.iter().zip(removed) {
                if remove { table.remove(pattern); } else { kept.push(pattern); }
            }
            let expected = kept
                .iter()
                .filter(|p| if p.is_wildcard() { host.strip_suffix(p.name()).is_some_and(|rest| rest.ends_with('.')) } else { host == p.name() })
                .max_by_key(|p| (!p.is_wildcard(), p.name().len()))
                .map(ToString::to_string);
            prop_assert_eq!(table.find(&host).cloned(), expected);
        }
    }
}
