//! What HTTP is made of: header fields, methods, addresses.

use std::{fmt, str::FromStr};

use super::{HostPattern, InvalidValue, text_value};

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
        if text.bytes().all(|b| b == b'\t' || (b' '..=b'~').contains(&b))
            && let Ok(value) = http::HeaderValue::from_str(text)
        {
            return Ok(Self(value));
        }
        // The value may be a credential, so it is not repeated.
        Err(InvalidValue::new(
            "this is not the value of a header: use visible ASCII characters, spaces and tabs, without line breaks",
        ))
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
        let refused =
            || InvalidValue::new(format!("{text:?} is not a method: write it in capitals, as in GET or POST"));
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
            // What stands before an `@` may be a password.
            let what = if text.contains('@') { "this, with an @ in it,".to_owned() } else { format!("{text:?}") };
            InvalidValue::new(format!(
                "{what} is not an address: write a host and a port, as in 10.0.0.7:8080, [::1]:8080 or api.internal:443"
            ))
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let digits = port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0).ok_or_else(refused)?;
        let host = if let Some(v6) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            v6.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?.to_string()
        } else {
            let pattern: HostPattern = host.parse().map_err(|_| refused())?;
            if pattern.is_wildcard() {
                return Err(refused());
            }
            pattern.name().to_owned()
        };
        Ok(Self { host: host.into(), port })
    }
}

text_value!(HostPort, "HostPort", "A host or address with a port: 10.0.0.7:8080", None);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn header_names_are_kept_in_lower_case() {
        assert_eq!("X-Request-Id".parse::<HeaderName>().unwrap().to_string(), "x-request-id");
        for bad in ["", "a b", "a:", "ä", "a\r\n"] {
            assert!(bad.parse::<HeaderName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn header_values_cannot_break_out_of_their_line() {
        assert_eq!("a\tb c".parse::<HeaderValue>().unwrap().to_string(), "a\tb c");
        for bad in ["a\r\nset-cookie: b", "a\0", "ä", "\u{7f}"] {
            let error = bad.parse::<HeaderValue>().unwrap_err();
            assert!(!error.to_string().contains(bad), "a value that may be a credential is not repeated");
        }
    }

    #[test]
    fn methods_are_written_in_capitals_and_never_tunnel() {
        assert_eq!("PATCH".parse::<Method>().unwrap().get(), http::Method::PATCH);
        assert_eq!("VERSION-CONTROL".parse::<Method>().unwrap().to_string(), "VERSION-CONTROL");
        for bad in ["", "get", "GET ", "CONNECT", "*"] {
            assert!(bad.parse::<Method>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, host, port) in
            [("127.0.0.1:9001", "127.0.0.1", 9001), ("[::1]:443", "::1", 443), ("API.internal:80", "api.internal", 80)]
        {
            let address: HostPort = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port));
        }
        for bad in
            ["", "a", ":80", "a:", "a:0", "a:65536", "::1:80", "[a]:80", "*.a:80", "http://a:80", "a:80/", "a:+80"]
        {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_refused(text in "(?s).{0,60}") {
            if let Ok(value) = text.parse::<HeaderValue>() {
                prop_assert_eq!(value.to_string(), text.clone());
            }
            if let Ok(name) = text.parse::<HeaderName>() {
                prop_assert_eq!(name.to_string().parse::<HeaderName>().unwrap(), name);
            }
            if let Ok(method) = text.parse::<Method>() {
                prop_assert_eq!(method.to_string(), text.clone());
            }
        }

        #[test]
        fn addresses_survive_being_written(text in r"([a-z0-9]{1,8}\.[a-z]{2,5}|\[[0-9a-f]{1,4}::[0-9a-f]{1,4}\]):[0-9]{1,6}") {
            if let Ok(address) = text.parse::<HostPort>() {
                prop_assert_eq!(address.to_string().parse::<HostPort>().unwrap(), address);
            }
        }
    }
}
