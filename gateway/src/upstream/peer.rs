//! Pingora's description of an endpoint, made once per configuration and cloned for each attempt.
//!
//! An `HttpPeer` is always made from a resolved address: from a name, Pingora would resolve it by a
//! blocking call on the request path and panic if that fails. And it always carries a `group_key`:
//! Pingora reuses a connection for every peer with the same hash, which leaves out the authorities to
//! trust, the content of the client certificate and ALPN.

use std::{net::SocketAddr, time::Duration};

use pingora_core::{
    protocols::{ALPN, TcpKeepalive},
    upstreams::peer::HttpPeer,
};
use seiketsu_config::{policy::Timeouts, tenant::UpstreamProtocol};
use sha2::{Digest, Sha256};

use super::{profile::Profile, registry::PoolKey};

/// Concurrent streams on one HTTP/2 connection; the upstream's own limit applies below it. RFC 9113
/// §6.5.2 advises servers to allow at least 100. Pingora's default is 1.
pub(super) const H2_STREAMS: u32 = 100;

/// How much of a response may wait here for a client that does not read it. All streams of a connection
/// together have room for as much as each of them, or one client that stands still would hold up all
/// others on that connection. Pingora's default is 8 MiB for either.
const H2_STREAM_WINDOW: u32 = 512 * 1024;
const H2_CONNECTION_WINDOW: u32 = H2_STREAM_WINDOW * H2_STREAMS;

/// How often an HTTP/2 connection in use is pinged, so that a silent one is found out.
const H2_PING: Duration = Duration::from_secs(30);

/// Finds dead peers of idle connections within two minutes: first probe after a minute, then four.
const TCP_KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_mins(1),
    interval: Duration::from_secs(15),
    count: 4,
    #[cfg(target_os = "linux")]
    user_timeout: Duration::from_secs(0),
};

/// How long one attempt may wait. Pingora knows one limit for every read, head and body alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerTimeouts {
    /// To a connection, TLS included.
    pub connect: Duration,
    /// For each read from the upstream. `None`: no limit.
    pub read: Option<Duration>,
    /// For each write to the upstream. `None`: no limit.
    pub write: Option<Duration>,
}

impl From<&Timeouts> for PeerTimeouts {
    /// `per_try` for reads and `idle` for writes.
    fn from(timeouts: &Timeouts) -> Self {
        Self { connect: timeouts.connect.get(), read: Some(timeouts.per_try.get()), write: Some(timeouts.idle.get()) }
    }
}

/// The peers of one endpoint.
#[derive(Debug)]
pub struct PeerTemplates {
    peer: HttpPeer,
    /// HTTP/2 with prior knowledge for callers on HTTP/2, where the upstream is `auto` without TLS.
    h2c: Option<HttpPeer>,
}

impl PeerTemplates {
    /// `host` is the endpoint's host as configured, `address` what it resolved to.
    pub fn new(key: &PoolKey, profile: &Profile, host: &str, address: SocketAddr) -> Self {
        let tls = profile.tls.is_some();
        let template = |alpn| template(key, profile, host, address, alpn);
        match (profile.config.protocol, tls) {
            (UpstreamProtocol::Http1, _) => Self { peer: template(ALPN::H1), h2c: None },
            // Without TLS, Pingora takes an ALPN of HTTP/2 alone as prior knowledge.
            (UpstreamProtocol::Http2, _) => Self { peer: template(ALPN::H2), h2c: None },
            (UpstreamProtocol::Auto, true) => Self { peer: template(ALPN::H2H1), h2c: None },
            (UpstreamProtocol::Auto, false) => Self { peer: template(ALPN::H1), h2c: Some(template(ALPN::H2)) },
        }
    }

    /// A peer for one attempt: two allocations, the box and the server name (none without TLS).
    pub fn peer(&self, timeouts: &PeerTimeouts, caller_speaks_http2: bool) -> Box<HttpPeer> {
        let template = self.h2c.as_ref().filter(|_| caller_speaks_http2).unwrap_or(&self.peer);
        let mut peer = Box::new(template.clone());
        // Two limits in Pingora: for TCP and TLS each, and for both together.
        peer.options.connection_timeout = Some(timeouts.connect);
        peer.options.total_connection_timeout = Some(timeouts.connect);
        peer.options.read_timeout = timeouts.read;
        peer.options.write_timeout = timeouts.write;
        peer
    }
}

fn template(key: &PoolKey, profile: &Profile, host: &str, address: SocketAddr, alpn: ALPN) -> HttpPeer {
    // With TLS the name is never empty: for an empty one Pingora verifies nothing.
    let name = profile.tls_name(host).unwrap_or_default().to_owned();
    #[allow(clippy::disallowed_methods)] // An address needs no resolving; this is the place the lint points to.
    let mut peer = HttpPeer::new(address, profile.tls.is_some(), name);
    peer.group_key = group_key(key, profile, &alpn);
    let options = &mut peer.options;
    options.alpn = alpn;
    options.idle_timeout = Some(profile.config.keepalive.get());
    options.tcp_keepalive = Some(TCP_KEEPALIVE);
    options.max_h2_streams = H2_STREAMS as usize;
    options.h2_stream_window_size = Some(H2_STREAM_WINDOW);
    options.h2_connection_window_size = Some(H2_CONNECTION_WINDOW);
    options.h2_ping_interval = Some(H2_PING);
    if let Some(tls) = &profile.tls {
        options.ca.clone_from(&tls.ca);
        options.verify_cert = tls.verify;
        options.verify_hostname = tls.verify;
        peer.client_cert_key.clone_from(&tls.client);
    }
    peer
}

/// Connections are shared only among requests for which all of this is equal.
fn group_key(key: &PoolKey, profile: &Profile, alpn: &ALPN) -> u64 {
    let mut hash = Sha256::new();
    hash.update(key.digest());
    hash.update(profile.tls.as_ref().map_or([0; 32], |tls| tls.digest));
    hash.update([profile.tls.is_some().into(), alpn.get_min_http_version(), alpn.get_max_http_version()]);
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use pingora_core::{connectors::http::Connector, protocols::http::client::HttpSession, upstreams::peer::Peer};
    use seiketsu_config::tenant::{Upstream, UpstreamTls};

    use super::*;
    use crate::upstream::{
        balance::Tried,
        egress::EgressPolicy,
        pool::Selection,
        registry::Owner,
        testing::{Behaviour, TIMEOUTS, put, registry, selection, server},
        tls::SystemRoots,
    };

    fn upstream(protocol: UpstreamProtocol, tls: Option<UpstreamTls>) -> Upstream {
        let mut upstream: Upstream = serde_json::from_str(r#"{"endpoints":[{"address":"api.test:443"}]}"#).unwrap();
        upstream.protocol = protocol;
        upstream.tls = tls;
        upstream
    }

    fn templates(owner: Owner, upstream: Upstream) -> PeerTemplates {
        let profile = Profile::compile(&Arc::new(upstream), EgressPolicy::default(), &SystemRoots::default()).unwrap();
        let key = PoolKey { owner, upstream: "api".parse().unwrap() };
        PeerTemplates::new(&key, &profile, "api.test", "192.0.2.1:443".parse().unwrap())
    }

    fn tenant(id: &str) -> Owner {
        Owner::Tenant(id.parse().unwrap())
    }

    fn reuse_hash(owner: Owner, tls: Option<UpstreamTls>, protocol: UpstreamProtocol) -> u64 {
        templates(owner, upstream(protocol, tls)).peer(&TIMEOUTS, false).reuse_hash()
    }

    #[test]
    fn connections_are_shared_only_within_one_owner_and_one_tls_policy() {
        use UpstreamProtocol::{Auto, Http1, Http2};
        let folder = tempfile::tempdir().unwrap();
        let ca = |name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.pem()).unwrap();
            Some(UpstreamTls { ca: Some(path), ..UpstreamTls::default() })
        };
        let (one, two) = (ca("one.pem"), ca("two.pem"));
        let secure = Some(UpstreamTls::default());
        let hashes = [
            reuse_hash(tenant("a"), None, Http1),
            reuse_hash(tenant("b"), None, Http1),
            reuse_hash(Owner::Shared("a".into()), None, Http1),
            reuse_hash(tenant("a"), None, Http2),
            reuse_hash(tenant("a"), secure.clone(), Http1),
            reuse_hash(tenant("a"), secure.clone(), Http2),
            reuse_hash(tenant("a"), secure.clone(), Auto),
            reuse_hash(tenant("a"), one.clone(), Http1),
            reuse_hash(tenant("a"), two, Http1),
        ];
        for (i, one) in hashes.iter().enumerate() {
            for (j, other) in hashes.iter().enumerate().skip(i + 1) {
                assert_ne!(one, other, "{i} and {j} would share connections");
            }
        }
        assert_eq!(reuse_hash(tenant("a"), one.clone(), Http1), reuse_hash(tenant("a"), one, Http1));
    }

    #[test]
    fn a_tls_peer_always_has_a_name_to_verify() {
        let by_host = templates(tenant("a"), upstream(UpstreamProtocol::Http1, Some(UpstreamTls::default())));
        assert_eq!(by_host.peer(&TIMEOUTS, false).sni(), "api.test");
        assert!(by_host.peer(&TIMEOUTS, false).verify_cert());
        let named = UpstreamTls { server_name: Some("other.test".to_owned()), ..UpstreamTls::default() };
        let by_name = templates(tenant("a"), upstream(UpstreamProtocol::Http1, Some(named)));
        assert_eq!(by_name.peer(&TIMEOUTS, false).sni(), "other.test");
    }

    #[test]
    fn the_protocol_decides_what_is_spoken() {
        let alpn = |protocol, tls: bool, caller_h2| {
            let tls = tls.then(UpstreamTls::default);
            templates(tenant("a"), upstream(protocol, tls)).peer(&TIMEOUTS, caller_h2).options.alpn.clone()
        };
        for caller_h2 in [false, true] {
            for tls in [false, true] {
                assert_eq!(alpn(UpstreamProtocol::Http1, tls, caller_h2), ALPN::H1);
                assert_eq!(alpn(UpstreamProtocol::Http2, tls, caller_h2), ALPN::H2);
            }
            assert_eq!(alpn(UpstreamProtocol::Auto, true, caller_h2), ALPN::H2H1);
        }
        assert_eq!(alpn(UpstreamProtocol::Auto, false, false), ALPN::H1);
        assert_eq!(alpn(UpstreamProtocol::Auto, false, true), ALPN::H2);
    }

    #[test]
    fn http2_connections_carry_many_streams_and_timeouts_are_those_of_the_request() {
        let peer = templates(tenant("a"), upstream(UpstreamProtocol::Http2, None)).peer(&TIMEOUTS, false);
        assert!(peer.options.max_h2_streams > 1);
        assert_eq!(peer.options.total_connection_timeout, Some(TIMEOUTS.connect));
        assert_eq!(peer.options.read_timeout, TIMEOUTS.read);
        assert_eq!(peer.options.write_timeout, None);
        assert_eq!(peer.options.idle_timeout, Some(Duration::from_mins(1)));
    }

    #[tokio::test]
    async fn http2_without_tls_is_spoken_by_prior_knowledge() {
        let server = server(Behaviour::default(), None).await;
        let connector = Connector::<()>::new(None);
        for (protocol, caller_h2, http2) in
            [("http1", true, false), ("http2", false, true), ("auto", false, false), ("auto", true, true)]
        {
            let registry = registry();
            let json = format!(r#"{{"endpoints":[{{"address":"{}"}}],"protocol":"{protocol}"}}"#, server.address);
            let tried = Tried::default();
            let selection = Selection { caller_speaks_http2: caller_h2, ..selection(&tried) };
            let peer = put(&registry, "t", &json).pick(&selection).unwrap().peer;
            let (session, _) = connector.get_http_session(&*peer).await.unwrap();
            assert_eq!(matches!(session, HttpSession::H2(_)), http2, "{protocol}, caller on HTTP/2: {caller_h2}");
        }
    }

    #[tokio::test]
    async fn an_idle_connection_is_reused_by_its_owner_only() {
        let server = server(Behaviour::default(), None).await;
        let connector = Connector::<()>::new(None);
        let registry = registry();
        let json = format!(r#"{{"endpoints":[{{"address":"{}"}}],"protocol":"http2"}}"#, server.address);
        let reused = async |tenant: &str| {
            let tried = Tried::default();
            let peer = put(&registry, tenant, &json).pick(&selection(&tried)).unwrap().peer;
            let (session, reused) = connector.get_http_session(&*peer).await.unwrap();
            connector.release_http_session(session, &*peer, peer.idle_timeout()).await;
            reused
        };
        assert!(!reused("a").await);
        assert!(reused("a").await);
        assert!(!reused("b").await, "the same address, but another tenant");
    }
}
