//! What is measured.

use std::fmt;

use clap::ValueEnum;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// HTTP/1.1 in, HTTP/1.1 out, 64 connections kept open, 1 KiB answers.
    Plain,
    /// The same with six security headers, CORS, and a rate limit that never refuses where the peer has
    /// one. Envoy and Seiketsu also check an API key, tell what is left of the limit, and log each request;
    /// Seiketsu keeps two quotas beside the limit, all of them in Redis, and signs who calls for the origin.
    Policies,
    /// The same as `plain`, answered from the cache: 1 KiB.
    #[value(name = "cache-1k")]
    Cache1k,
    /// The same, 64 KiB.
    #[value(name = "cache-64k")]
    Cache64k,
    /// TLS 1.3, HTTP/1.1, 64 connections kept open.
    TlsH1,
    /// TLS 1.3, HTTP/2, 64 connections of 10 streams.
    TlsH2,
    /// A new TLS 1.3 connection for each request, without resumption, 500 a second.
    Handshakes,
    /// Memory held for connections that have made one request and are kept open.
    Idle,
}

impl Scenario {
    /// The host name that chooses the configuration.
    pub fn host(self) -> &'static str {
        match self {
            Self::Policies => "policies.localhost",
            Self::Cache1k | Self::Cache64k => "cached.localhost",
            _ => "plain.localhost",
        }
    }

    /// What is asked for.
    pub fn path(self) -> &'static str {
        match self {
            Self::Cache1k => "/cached/1024",
            Self::Cache64k => "/cached/65536",
            _ => "/v1/bytes/1024",
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Policies => "policies",
            Self::Cache1k => "cache-1k",
            Self::Cache64k => "cache-64k",
            Self::TlsH1 => "tls-h1",
            Self::TlsH2 => "tls-h2",
            Self::Handshakes => "handshakes",
            Self::Idle => "idle",
        })
    }
}
