//! Where Redis is.

use std::{fmt, str::FromStr};

use secrecy::{ExposeSecret, SecretString};

use super::{HostPort, InvalidValue, text_value};
use crate::secret::{SecretError, SecretRef};

/// The URL of Redis: written out where there is no password in it, else by reference.
///
/// One server `redis://host:6379/0`, with TLS `rediss://host:6379/0`, sentinels
/// `redis+sentinel://host:26379,host:26379/service`, a cluster `redis+cluster://host:6379,host:6379`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RedisUrl(Source);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    Secret(SecretRef),
    /// Without a password.
    Plain(Box<str>),
}

/// Why the URL of Redis cannot be used. The URL itself is never part of the message.
#[derive(Debug, thiserror::Error)]
pub enum RedisUrlError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("the URL of Redis from {origin}: {fault}")]
    Malformed { origin: String, fault: InvalidValue },
}

impl RedisUrl {
    /// Reads the URL, and checks what came by reference. Blocks on the file system.
    pub fn read(&self) -> Result<SecretString, RedisUrlError> {
        match &self.0 {
            Source::Plain(url) => Ok(SecretString::from(&**url)),
            Source::Secret(reference) => {
                let url = reference.read()?;
                match Self::check(url.expose_secret()) {
                    Ok(()) => Ok(url),
                    Err(fault) => Err(RedisUrlError::Malformed { origin: reference.to_string(), fault }),
                }
            }
        }
    }

    /// Whether this is the URL of a Redis, with or without a password. The error does not repeat it.
    pub fn check(url: &str) -> Result<(), InvalidValue> {
        parts(url).map(drop)
    }

    /// Where it is read from, unless it is written out.
    pub(crate) fn reference_mut(&mut self) -> Option<&mut SecretRef> {
        match &mut self.0 {
            Source::Secret(reference) => Some(reference),
            Source::Plain(_) => None,
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Secret(reference) => reference.fmt(f),
            Source::Plain(url) => f.write_str(url),
        }
    }
}

impl FromStr for RedisUrl {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("${") {
            return text.parse().map(|reference| Self(Source::Secret(reference)));
        }
        if parts(text)?.has_credentials {
            return Err(InvalidValue::new(
                "a URL with a user name or password in it is a secret: write it by reference, as in ${file:/path/to/secret} or ${env:REDIS_URL}",
            ));
        }
        Ok(Self(Source::Plain(text.into())))
    }
}

text_value!(
    RedisUrl,
    "RedisUrl",
    "The URL of Redis: redis://host:6379, rediss://…, redis+sentinel://a,b,c/service, redis+cluster://a,b,c. By reference, ${file:/path} or ${env:NAME}, if there is a password in it",
    Some(r"^(rediss?://|redis\+(sentinel|cluster)://|\$\{(file|env):).+$")
);

struct Parts {
    has_credentials: bool,
}

fn parts(url: &str) -> Result<Parts, InvalidValue> {
    let refused = |fault: &str| {
        InvalidValue::new(format!(
            "this is not the URL of a Redis ({fault}): write redis://host:6379, rediss://host:6379 (TLS), redis+sentinel://host:26379,host:26379/service or redis+cluster://host:6379,host:6379"
        ))
    };
    let Some((scheme, rest)) = url.split_once("://") else { return Err(refused("it has no scheme")) };
    let (many, default_port) = match scheme {
        "redis" | "rediss" => (false, 6379),
        "redis+cluster" => (true, 6379),
        "redis+sentinel" => (true, 26379),
        _ => return Err(refused("its scheme is another one")),
    };
    if !rest.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(refused("it has spaces or other characters that a URL cannot have"));
    }
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) =
        authority.rsplit_once('@').map_or((None, authority), |(credentials, hosts)| (Some(credentials), hosts));
    if !many && hosts.contains(',') {
        return Err(refused("several hosts are sentinels or a cluster, and its scheme does not say which"));
    }
    let is_host = |host: &str| {
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let with_port = if has_port { host.to_owned() } else { format!("{host}:{default_port}") };
        with_port.parse::<HostPort>().is_ok()
    };
    if !hosts.split(',').all(is_host) {
        return Err(refused("a host or its port is malformed"));
    }
    let is_database = |text: &str| text.is_empty() || text.parse::<u16>().is_ok();
    match scheme {
        "redis+cluster" if !matches!(path, "" | "0") => return Err(refused("a cluster has the database 0 only")),
        "redis+sentinel" => {
            let (service, database) = path.split_once('/').unwrap_or((path, ""));
            if service.is_empty() {
                return Err(refused("the name of the service that the sentinels watch is missing"));
            }
            if !is_database(database) {
                return Err(refused("a database is a number"));
            }
        }
        "redis" | "rediss" if !is_database(path) => return Err(refused("a database is a number")),
        _ => {}
    }
    Ok(Parts { has_credentials: credentials.is_some() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn redis_is_one_server_sentinels_or_a_cluster() {
        for good in [
            "redis://localhost",
            "redis://10.0.0.5:6379/3",
            "rediss://[::1]:6380",
            "rediss://[::1]?protocol=resp3",
            "redis+sentinel://a,b:26380,c/limits",
            "redis+sentinel://a/limits/2",
            "redis+cluster://a,b,c:7000",
            "${env:REDIS_URL}",
            "${file:redis-url}",
        ] {
            assert_eq!(good.parse::<RedisUrl>().unwrap_or_else(|error| panic!("{good}: {error}")).to_string(), good);
        }
        for bad in [
            "",
            "localhost:6379",
            "http://localhost",
            "redis+unix:///run/redis.sock",
            "redis://",
            "redis://a,b",
            "redis://a:0",
            "redis://a:b",
            "redis://a/b",
            "redis://a b",
            "redis+sentinel://a,b",
            "redis+sentinel://a,,b/limits",
            "redis+cluster://a/3",
            "${vault:x}",
        ] {
            assert!(bad.parse::<RedisUrl>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_written_by_reference_and_never_shown() {
        for bad in ["redis://:hunter2@localhost", "rediss://user:hunter2@a", "redis://hunter2@a:b:c", "hunter2"] {
            let error = bad.parse::<RedisUrl>().unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        RedisUrl::check("redis://user:hunter2@localhost:6379/0").unwrap();

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("url");
        let url: RedisUrl = format!("${{file:{}}}", path.display()).parse().unwrap();
        assert!(matches!(url.read(), Err(RedisUrlError::Secret(_))));
        std::fs::write(&path, "redis://:hunter2@localhost\n").unwrap();
        assert_eq!(url.read().unwrap().expose_secret(), "redis://:hunter2@localhost");
        std::fs::write(&path, "hunter2").unwrap();
        let error = url.read().unwrap_err().to_string();
        assert!(error.contains("url") && !error.contains("hunter2"), "{error}");
    }
}
