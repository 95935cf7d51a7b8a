//! Where Redis is, from one URL.

use std::fmt;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, RedisConnectionInfo};
use secrecy::{ExposeSecret, SecretString};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// Where Redis is, and with which credentials it is spoken to. Neither `Debug` nor `Display` shows these.
///
/// | URL | what it names |
/// |---|---|
/// | `redis://[user:password@]host[:port][/database]` | one server |
/// | `redis+sentinel://[user:password@]host[:port],…/service` | the master of a service, as the sentinels tell it |
/// | `redis+cluster://[user:password@]host[:port],…` | a cluster, by some of its nodes |
///
/// `rediss` instead of `redis` is TLS, with the system's certificate authorities. Special characters in user
/// and password are percent-encoded. Sentinels are spoken to without credentials.
#[derive(Debug, Clone)]
pub struct RedisAddress {
    pub(super) topology: Topology,
    pub(super) hosts: Vec<Host>,
    pub(super) tls: bool,
    pub(super) credentials: Option<Credentials>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topology {
    Single { database: i64 },
    Sentinel { service: String },
    Cluster,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

#[derive(Debug, Clone)]
pub(super) struct Credentials {
    pub(super) user: Option<SecretString>,
    pub(super) password: SecretString,
}

/// Why a URL names no Redis. Holds nothing of its credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RedisAddressError {
    #[error("the URL must begin with redis:// or rediss://, or with redis+sentinel:// or redis+cluster://")]
    Scheme,
    #[error("the URL names no host")]
    NoHost,
    #[error("{0:?} is no port: it must be between 1 and 65535")]
    Port(String),
    #[error("{0:?} is no database: it must be a number, such as redis://host/0")]
    Database(String),
    #[error("several hosts need redis+sentinel:// or redis+cluster://")]
    SeveralHosts,
    #[error("sentinels need the name of the service: redis+sentinel://host:26379/service")]
    NoService,
    #[error("a cluster has no databases: end the URL after the hosts")]
    DatabaseOfCluster,
    #[error("user or password are not UTF-8, percent-encoded")]
    Credentials,
}

impl RedisAddress {
    /// # Errors
    /// If the URL has none of the forms above.
    pub fn parse(url: &SecretString) -> Result<Self, RedisAddressError> {
        use RedisAddressError as Error;
        let (scheme, rest) = url.expose_secret().trim().split_once("://").ok_or(Error::Scheme)?;
        let (base, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
        let tls = match base {
            "redis" => false,
            "rediss" => true,
            _ => return Err(Error::Scheme),
        };
        // A password may hold a slash that nobody encoded; a host and a path hold no at sign.
        let (credentials, rest) = match rest.rsplit_once('@') {
            Some((credentials, rest)) => (Some(Credentials::parse(credentials)?), rest),
            None => (None, rest),
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let default_port = if kind == "sentinel" { DEFAULT_SENTINEL_PORT } else { DEFAULT_PORT };
        let hosts = hosts.split(',').map(|host| Host::parse(host, default_port)).collect::<Result<Vec<_>, _>>()?;
        let topology = match (kind, path) {
            ("", _) if hosts.len() > 1 => return Err(Error::SeveralHosts),
            ("", "") => Topology::Single { database: 0 },
            ("", path) => {
                let database = path.parse::<u16>().map_err(|_| Error::Database(path.into()))?;
                Topology::Single { database: database.into() }
            }
            ("sentinel", "") => return Err(Error::NoService),
            ("sentinel", service) => Topology::Sentinel { service: service.into() },
            ("cluster", "") => Topology::Cluster,
            ("cluster", _) => return Err(Error::DatabaseOfCluster),
            _ => return Err(Error::Scheme),
        };
        Ok(Self { topology, hosts, tls, credentials })
    }

    pub(super) fn connection_addresses(&self) -> Vec<ConnectionAddr> {
        let address = |Host { name, port }: &Host| {
            let (host, port) = (name.clone(), *port);
            if self.tls {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            } else {
                ConnectionAddr::Tcp(host, port)
            }
        };
        self.hosts.iter().map(address).collect()
    }

    pub(super) fn connection_info(&self) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default();
        if let Topology::Single { database } = self.topology {
            info = info.set_db(database);
        }
        if let Some(Credentials { user, password }) = &self.credentials {
            info = info.set_password(password.expose_secret());
            if let Some(user) = user {
                info = info.set_username(user.expose_secret());
            }
        }
        info
    }
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Host { name, port }) in self.hosts.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{name}:{port}")?;
        }
        Ok(())
    }
}

impl Host {
    fn parse(text: &str, default_port: u16) -> Result<Self, RedisAddressError> {
        let (name, port) = match text.rsplit_once(':') {
            // The colons of an IPv6 address stand in brackets.
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (text, None),
        };
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        if name.is_empty() {
            return Err(RedisAddressError::NoHost);
        }
        let port = match port {
            None => default_port,
            Some(text) => match text.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(RedisAddressError::Port(text.into())),
            },
        };
        Ok(Self { name: name.into(), port })
    }
}

impl Credentials {
    fn parse(text: &str) -> Result<Self, RedisAddressError> {
        let decode = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().map_err(|_| RedisAddressError::Credentials)?;
            Ok(SecretString::from(decoded.into_owned()))
        };
        let (user, password) = text.split_once(':').ok_or(RedisAddressError::Credentials)?;
        let user = if user.is_empty() { None } else { Some(decode(user)?) };
        Ok(Self { user, password: decode(password)? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(url: &str) -> Result<RedisAddress, RedisAddressError> {
        RedisAddress::parse(&SecretString::from(url))
    }

    #[test]
    fn a_url_names_a_server_sentinels_or_a_cluster() {
        for (url, topology, hosts, tls) in [
            ("redis://cache", Topology::Single { database: 0 }, "cache:6379", false),
            ("rediss://cache:7000/3", Topology::Single { database: 3 }, "cache:7000", true),
            ("redis://[::1]:7000", Topology::Single { database: 0 }, "::1:7000", false),
            ("redis+sentinel://a,b:1/main", Topology::Sentinel { service: "main".into() }, "a:26379,b:1", false),
            ("rediss+cluster://a:1,b:2", Topology::Cluster, "a:1,b:2", true),
        ] {
            let address = parse(url).unwrap();
            assert_eq!((&address.topology, address.tls), (&topology, tls), "{url}");
            assert_eq!(address.to_string(), hosts, "{url}");
        }
    }

    #[test]
    fn what_names_no_redis_is_refused() {
        use RedisAddressError::*;
        for (url, error) in [
            ("cache:6379", Scheme),
            ("http://cache", Scheme),
            ("redis+ring://cache", Scheme),
            ("redis://", NoHost),
            ("redis://cache:0", Port("0".into())),
            ("redis://cache:port", Port("port".into())),
            ("redis://cache/main", Database("main".into())),
            ("redis://a,b", SeveralHosts),
            ("redis+sentinel://a", NoService),
            ("redis+cluster://a/1", DatabaseOfCluster),
            ("redis://secret@cache", Credentials),
        ] {
            assert_eq!(parse(url).unwrap_err(), error, "{url}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_not_shown() {
        let address = parse("redis://gate:s%40cret/1@cache").unwrap();
        let info = address.connection_info();
        assert_eq!((info.username(), info.password()), (Some("gate"), Some("s@cret/1")));
        let shown = format!("{address} {address:?}");
        assert!(!shown.contains("cret/1") && !shown.contains("gate"), "{shown}");
    }
}
