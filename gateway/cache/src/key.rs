//! What tells stored responses apart. A key holds everything that may make two responses differ, each part with
//! its length in front, so that no two different sets of parts give the same bytes. Keys are compared whole: no
//! hash stands in for them.

use std::{borrow::Cow, fmt, net::Ipv6Addr, str::FromStr, sync::Arc};

use bytes::BufMut;
use percent_encoding::percent_decode_str;
use sha2::{Digest as _, Sha256};
use smallvec::SmallVec;

/// The bytes of a key. Most fit on the stack.
pub type KeyBytes = SmallVec<[u8; 256]>;

/// Whose answers may be shared with whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum IdentityClass {
    /// Callers that have not said who they are.
    Anonymous = 0,
    /// Callers that have. They share what the origin allows to be shared (RFC 9111 §3.5), and nothing else.
    Identified = 1,
}

/// Everything that a key is made of. GET and HEAD are one class of methods, and the only one.
#[derive(Debug, Clone, Copy)]
pub struct KeyParts<'a> {
    pub tenant: &'a [u8],
    /// Of what the route's settings make of requests and responses on their way.
    pub settings: &'a [u8; 16],
    pub version: &'a [u8],
    /// Canaries have a cache of their own.
    pub canary: bool,
    pub identity: IdentityClass,
    pub secure: bool,
    pub host: &'a [u8],
    pub path: &'a [u8],
    /// As it was sent, or sorted; a query that is absent is not an empty one.
    pub query: Option<&'a [u8]>,
    /// What trusted proxies say that upstreams get to see.
    pub forwarded: &'a [&'a [u8]],
}

impl KeyParts<'_> {
    pub fn write(&self, to: &mut KeyBytes) {
        let query = self.query.unwrap_or_default();
        let parts = [self.tenant, self.version, self.host, self.path, query];
        let forwarded = self.forwarded.iter().copied();
        let lengths: usize = parts.into_iter().chain(forwarded).map(|part| LENGTH_BYTES + part.len()).sum();
        // All room at once, then filled: each growth by itself costs more than what it writes.
        let start = to.len();
        to.resize(start + 2 + self.settings.len() + lengths, 0);
        let mut to = &mut to[start..];
        to.put_u8(self.identity as u8 | u8::from(self.secure) << 1 | u8::from(self.canary) << 2);
        to.put_slice(self.settings);
        put(&mut to, self.tenant);
        put(&mut to, self.version);
        put_host(&mut to, self.host);
        put(&mut to, self.path);
        to.put_u8(u8::from(self.query.is_some()));
        put(&mut to, query);
        for part in self.forwarded {
            put(&mut to, part);
        }
    }
}

const LENGTH_BYTES: usize = size_of::<u32>();

fn put(to: &mut impl BufMut, part: &[u8]) {
    put_length(to, part);
    to.put_slice(part);
}

fn put_host(to: &mut impl BufMut, host: &[u8]) {
    put_length(to, host);
    for byte in host {
        to.put_u8(byte.to_ascii_lowercase());
    }
}

/// Heads are far smaller than what four bytes can count.
fn put_length(to: &mut impl BufMut, part: &[u8]) {
    to.put_u32(u32::try_from(part.len()).unwrap_or(u32::MAX));
}

/// Sorts the parameters of a query by their names; those of one name keep their order.
pub fn sorted(query: &str) -> String {
    let mut parameters: Vec<&str> = query.split('&').filter(|parameter| !parameter.is_empty()).collect();
    parameters.sort_by_key(|parameter| parameter.split('=').next().unwrap_or_default());
    parameters.join("&")
}

/// What people call a URL, apart from its scheme, in the one form that all ways of writing it have: a host in lower
/// case without port and dot at its end, the path, and the parameters of the query, decoded and in order. All that is
/// stored for it, for whomever, is purged together: rather too much than too little.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    /// Host and path.
    text: Arc<str>,
    /// Where the path begins.
    path: usize,
    /// Of the query as well. Made once, so that hits need not make it.
    digest: Digest,
}

impl Resource {
    /// `host`: as `Host` or `:authority` has it. `path`: as requests have it in the end. `query`: as it was sent.
    pub fn new(host: &[u8], path: &str, query: Option<&str>) -> Self {
        let mut text = host_name(&String::from_utf8_lossy(host));
        let start = text.len();
        text.push_str(path);
        let parameters = query.unwrap_or_default().split('&').filter(|parameter| !parameter.is_empty());
        let mut parameters: SmallVec<[Cow<'_, [u8]>; 8]> =
            parameters.map(|parameter| percent_decode_str(parameter).into()).collect();
        parameters.sort_unstable();
        let mut hasher = Sha256::new_with_prefix(&text);
        for parameter in &parameters {
            hasher.update(b"?");
            hasher.update(parameter);
        }
        Self { text: text.into(), path: start, digest: Digest::from(hasher) }
    }

    /// Host and path.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn host(&self) -> &str {
        &self.text[..self.path]
    }

    pub fn path(&self) -> &str {
        &self.text[self.path..]
    }

    /// Of host, path and query.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

/// The host of a `Host` or `:authority` value (RFC 9110 §7.2): in lower case, without port and dot at its end; an IPv6
/// address in brackets, in the form of RFC 5952.
pub(crate) fn host_name(host: &str) -> String {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => format!("[{address}]"),
            Err(_) => format!("[{}]", address.to_ascii_lowercase()),
        };
    }
    let name = host.split(':').next().unwrap_or_default();
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Stands for a text that need not be kept: the first half of its SHA-256. No two texts with the same one are known,
/// and if there were, one would be purged with the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    pub fn of(text: &[u8]) -> Self {
        Sha256::new_with_prefix(text).into()
    }

    /// Two bytes of it.
    pub(crate) fn short(self) -> u16 {
        let [high, low, ..] = self.0;
        u16::from_be_bytes([high, low])
    }
}

impl From<Sha256> for Digest {
    fn from(hasher: Sha256) -> Self {
        Self(hasher.finalize().first_chunk().copied().unwrap_or_default())
    }
}

impl fmt::Display for Digest {
    /// In hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// It is no digest in hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest has 32 hexadecimal digits")]
pub struct NoDigest;

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NoDigest);
        }
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| NoDigest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Owned {
        tenant: Vec<u8>,
        version: Vec<u8>,
        flags: (bool, bool, bool),
        host: Vec<u8>,
        path: Vec<u8>,
        query: Option<Vec<u8>>,
        forwarded: Vec<u8>,
    }

    fn key(parts: &Owned) -> KeyBytes {
        let mut bytes = KeyBytes::new();
        KeyParts {
            tenant: &parts.tenant,
            settings: &[7; 16],
            version: &parts.version,
            canary: parts.flags.0,
            identity: if parts.flags.1 { IdentityClass::Identified } else { IdentityClass::Anonymous },
            secure: parts.flags.2,
            host: &parts.host,
            path: &parts.path,
            query: parts.query.as_deref(),
            forwarded: &[&parts.forwarded],
        }
        .write(&mut bytes);
        bytes
    }

    prop_compose! {
        // Few letters, so that parts that are moved against each other do occur.
        fn parts()(
            tenant in "[ab]{0,2}", version in "[ab]{0,2}", flags: (bool, bool, bool), host in "[ab]{0,2}",
            path in "[ab]{0,2}", query in proptest::option::of("[ab]{0,2}"), forwarded in "[ab]{0,2}",
        ) -> Owned {
            Owned {
                tenant: tenant.into(), version: version.into(), flags, host: host.into(), path: path.into(),
                query: query.map(Into::into), forwarded: forwarded.into(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        #[test]
        fn different_parts_make_different_keys(one in parts(), other in parts()) {
            prop_assert_eq!(one == other, key(&one) == key(&other));
        }
    }

    #[test]
    fn the_case_of_a_host_makes_no_difference() {
        let parts = |host: &str| Owned {
            tenant: b"t".to_vec(),
            version: Vec::new(),
            flags: (false, false, false),
            host: host.into(),
            path: b"/".to_vec(),
            query: None,
            forwarded: Vec::new(),
        };
        assert_eq!(key(&parts("A.test")), key(&parts("a.TEST")));
    }

    #[test]
    fn queries_are_sorted_by_name_only() {
        assert_eq!(sorted("b=1&a=2&b=0&&a=1"), "a=2&a=1&b=1&b=0");
        assert_eq!(sorted(""), "");
    }

    #[test]
    fn a_resource_is_the_same_however_it_is_written() {
        let resource = Resource::new(b"A.test:81", "/x", Some("y=/z"));
        assert_eq!((resource.host(), resource.path(), resource.as_str()), ("a.test", "/x", "a.test/x"));
        let of = |host: &str, query: Option<&str>| Resource::new(host.as_bytes(), "/x", query);
        for host in ["a.test", "A.TEST", "a.test:80", "a.test.", "a.test.:443", "a.test:"] {
            assert_eq!(of(host, None), of("a.test", None), "{host}");
        }
        for host in ["[::1]", "[::1]:80", "[0:0::0001]"] {
            assert_eq!(of(host, None).as_str(), "[::1]/x", "{host}");
        }
        for query in ["a=1&b='c'&a=0", "b='c'&a=0&a=1", "a=0&&a=1&b=%27c%27", "a=%30&a=1&b=%27c'"] {
            assert_eq!(of("a.test", Some(query)), of("a.test", Some("a=0&a=1&b='c'")), "{query}");
        }
        assert_eq!(of("a.test", Some("")), of("a.test", None));
        let different =
            [of("a.test", None), of("b.test", None), of("a.test", Some("a=1")), of("a.test", Some("a=1&a=1"))];
        for (index, one) in different.iter().enumerate() {
            assert!(different[..index].iter().all(|other| other.digest() != one.digest()), "{one:?}");
        }
    }

    proptest! {
        #[test]
        fn the_order_of_parameters_and_how_they_are_escaped_make_no_difference(
            parameters in prop::collection::vec("[ab=%&'/]{0,4}", 0..5).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
        ) {
            let escape = |text: &String| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
            let of = |query: Vec<String>| Resource::new(b"a.test", "/", Some(&query.join("&")));
            let (one, other) = parameters;
            let plain = |text: &String| text.replace('%', "%25").replace('&', "%26");
            prop_assert_eq!(of(one.iter().map(plain).collect()), of(other.iter().map(escape).collect()));
        }

        #[test]
        fn a_digest_is_read_as_it_is_written(text in ".{0,20}") {
            let digest = Digest::of(text.as_bytes());
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        }

        #[test]
        fn what_is_no_digest_is_refused(text in "[0-9a-g+]{30,34}") {
            let is_one = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            prop_assert_eq!(text.parse::<Digest>().is_ok(), is_one);
        }
    }
}
