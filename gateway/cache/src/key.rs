//! What tells stored responses apart. A key holds everything that may make two responses differ, each part with
//! its length in front, so that no two different sets of parts give the same bytes. Keys are compared whole: no
//! hash stands in for them.

use std::sync::Arc;

use bytes::BufMut;
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

/// What people call a URL, apart from its scheme: a host in lower case, a path and a query. All that is stored for
/// it, for whomever, is purged together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    text: Arc<str>,
    /// Where the path begins, and where it ends.
    path: (usize, usize),
}

impl Resource {
    pub fn new(host: &[u8], path: &str, query: Option<&str>) -> Self {
        let mut text = String::from_utf8_lossy(host).to_ascii_lowercase();
        let start = text.len();
        text.push_str(path);
        let end = text.len();
        if let Some(query) = query {
            text.push('?');
            text.push_str(query);
        }
        Self { text: text.into(), path: (start, end) }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn host(&self) -> &str {
        &self.text[..self.path.0]
    }

    pub fn path(&self) -> &str {
        &self.text[self.path.0..self.path.1]
    }

    pub fn path_and_query(&self) -> &str {
        &self.text[self.path.0..]
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
    fn a_resource_has_its_parts() {
        let resource = Resource::new(b"A.test:81", "/x", Some("y=/z"));
        assert_eq!((resource.host(), resource.path(), resource.path_and_query()), ("a.test:81", "/x", "/x?y=/z"));
    }
}
