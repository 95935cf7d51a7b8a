//! Readers for lists and maps whose plain serde form would lose something or explain nothing.

use std::{
    collections::BTreeMap,
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use url::Url;

use super::{InvalidValue, from_text};

/// A map in which no key stands twice, not even in two spellings: `X-Request-Id` and `x-request-id`
/// are one header, and of two entries for it one would be lost without a word.
pub(crate) fn unique_map<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + fmt::Display,
    V: Deserialize<'de>,
{
    struct Entries<K, V>(PhantomData<(K, V)>);
    impl<'de, K, V> de::Visitor<'de> for Entries<K, V>
    where
        K: Deserialize<'de> + Ord + fmt::Display,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some(key) = entries.next_key::<K>()? {
                if map.contains_key(&key) {
                    return Err(de::Error::custom(format!("{key:?} stands twice; keep one", key = key.to_string())));
                }
                map.insert(key, entries.next_value()?);
            }
            Ok(map)
        }
    }
    deserializer.deserialize_map(Entries(PhantomData))
}

/// Address ranges (CIDR, RFC 4632).
pub(crate) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Ok(Vec::<Network>::deserialize(deserializer)?.into_iter().map(|network| network.0).collect())
}

/// The addresses of listeners.
pub(crate) fn sockets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    Ok(Vec::<Socket>::deserialize(deserializer)?.into_iter().map(|socket| socket.0).collect())
}

/// The address of one listener.
pub(crate) fn socket<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    Socket::deserialize(deserializer).map(|socket| socket.0)
}

/// A web address. It may hold a password, so it is not repeated when it is refused.
pub(crate) fn url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    WebAddress::deserialize(deserializer).map(|address| address.0)
}

/// A web address that may be absent.
pub(crate) fn optional_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Url>, D::Error> {
    Ok(Option::<WebAddress>::deserialize(deserializer)?.map(|address| address.0))
}

struct WebAddress(Url);

impl FromStr for WebAddress {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|error| {
            InvalidValue::new(format!(
                "this is not a web address ({error}): write it whole, as in https://example.com/path"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for WebAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "a web address, as in https://example.com/path")
    }
}

struct Network(IpNet);

impl FromStr for Network {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| {
            let fix = match text.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => format!("a single address is written {address}/32"),
                Ok(IpAddr::V6(address)) => format!("a single address is written {address}/128"),
                Err(_) => "write an address and a prefix length, as in 10.0.0.0/8 or 2001:db8::/32".to_owned(),
            };
            InvalidValue::new(format!("{text:?} is not an address range: {fix}"))
        })
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "an address range, as in 10.0.0.0/8")
    }
}

struct Socket(SocketAddr);

impl FromStr for Socket {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| {
            InvalidValue::new(format!(
                "{text:?} is not the address of a listener: write an IP address and a port, as in 127.0.0.1:8080, 0.0.0.0:8080 or [::]:8080"
            ))
        })
    }
}

impl<'de> Deserialize<'de> for Socket {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        from_text(deserializer, "an IP address and a port, as in 127.0.0.1:8080")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_address_is_told_how_it_is_written() {
        let error = |text: &str| text.parse::<Network>().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error("10.0.0.1").ends_with("a single address is written 10.0.0.1/32"));
        assert!(error("::1").ends_with("a single address is written ::1/128"));
        assert!(error("10.0.0.0/33").contains("10.0.0.0/8"));
        assert_eq!(error("10.0.0.0/8"), "");
    }

    #[test]
    fn two_spellings_of_a_key_are_one_key() {
        #[derive(Debug, Deserialize)]
        struct Set(#[serde(deserialize_with = "unique_map")] BTreeMap<crate::values::HeaderName, u8>);
        let error = serde_json::from_str::<Set>(r#"{"X-A": 1, "x-a": 2}"#).map(|set| set.0).map_err(|e| e.to_string());
        assert!(error.is_err_and(|error| error.starts_with("\"x-a\" stands twice")));
    }

    #[test]
    fn a_refused_web_address_is_not_repeated() {
        let error =
            "//user:hunter2@example.com".parse::<WebAddress>().err().map(|error| error.to_string()).unwrap_or_default();
        assert!(!error.contains("hunter2") && error.contains("https://"), "{error}");
    }
}
