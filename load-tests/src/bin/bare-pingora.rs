//! The least that can be built on Pingora: a proxy with one upstream, as a yardstick for the gateway.
//!
//! One thread, no work stealing, Pingora's own buffers. On the port with policies it sets six security
//! headers and the CORS headers; Pingora has no rate limit of its own.

use std::net::SocketAddr;

use async_trait::async_trait;
use clap::Parser;
use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use pingora_core::{
    listeners::tls::TlsSettings,
    server::{Server, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

#[derive(Debug, Parser)]
#[command(name = "bare-pingora", version)]
struct Flags {
    #[arg(long)]
    plain: SocketAddr,
    #[arg(long)]
    policies: SocketAddr,
    #[arg(long)]
    tls: SocketAddr,
    #[arg(long)]
    origin: SocketAddr,
    /// PEM files for the port with TLS.
    #[arg(long)]
    certificate: String,
    #[arg(long)]
    key: String,
}

fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let configuration = ServerConf {
        threads: 1,
        work_stealing: false,
        upstream_keepalive_pool_size: 1024,
        // Nobody waits for it: it ends when it is told to, as the others do.
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, configuration);
    server.bootstrap();

    let mut plain = http_proxy_service(&server.configuration, Bare { origin: flags.origin, policies: false });
    plain.add_tcp(&flags.plain.to_string());
    let mut tls = TlsSettings::intermediate(&flags.certificate, &flags.key)?;
    tls.enable_h2();
    plain.add_tls_with_settings(&flags.tls.to_string(), None, tls);
    server.add_service(plain);

    let mut policies = http_proxy_service(&server.configuration, Bare { origin: flags.origin, policies: true });
    policies.add_tcp(&flags.policies.to_string());
    server.add_service(policies);
    server.run_forever()
}

struct Bare {
    origin: SocketAddr,
    policies: bool,
}

const SECURITY_HEADERS: [(HeaderName, HeaderValue); 6] = [
    (header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static("max-age=63072000; includeSubDomains")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    (HeaderName::from_static("permissions-policy"), HeaderValue::from_static("geolocation=()")),
];

#[async_trait]
#[expect(clippy::disallowed_methods, reason = "the origin is an address; there is no name to resolve")]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora_core::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin, false, String::new())))
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        (): &mut (),
    ) -> pingora_core::Result<()> {
        if !self.policies {
            return Ok(());
        }
        for (name, value) in SECURITY_HEADERS {
            response.insert_header(name, value)?;
        }
        response.append_header(header::VARY, HeaderValue::from_static("Origin"))?;
        match session.req_header().headers.get(header::ORIGIN) {
            Some(origin) if origin == "https://app.example.com" => {
                let origin = origin.clone();
                response.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin)
            }
            _ => Ok(()),
        }
    }
}
