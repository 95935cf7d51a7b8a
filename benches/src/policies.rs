//! The policies that nearly every route has, and a browser's request that passes through them.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderMap, HeaderValue, Method, header};
use pingora_http::RequestHeader;
use seiketsu_config::{layers::Effective, policy};
use seiketsu_gateway::policy::{
    access::AccessPolicy, cors::CorsPolicy, request_limits::RequestLimits, security_headers::SecurityHeaders,
};
use serde_json::json;

/// Who may call, what a request may be, and the headers of every answer.
#[derive(Debug)]
pub struct Chain {
    access: AccessPolicy,
    limits: RequestLimits,
    cors: CorsPolicy,
    security_headers: SecurityHeaders,
}

impl Chain {
    pub fn compile() -> Self {
        let access: policy::Access =
            parsed(json!({ "allow": ["192.0.2.0/24", "10.0.0.0/8"], "deny": ["10.6.0.0/16"] }));
        let limits: policy::RequestLimits = parsed(json!({ "methods": ["GET", "POST"], "max_body": "1MiB" }));
        let cors: policy::Cors =
            parsed(json!({ "origins": ["https://app.example.com", "https://*.example.org"], "credentials": true }));
        let cors = CorsPolicy::compile(&cors).unwrap_or_else(|error| panic!("{error}"));
        Self {
            access: AccessPolicy::compile(&access),
            limits: RequestLimits::compile(&limits),
            cors: cors.unwrap_or_else(|| panic!("the policy is enabled")),
            security_headers: SecurityHeaders::compile(&Effective::built_in().security_headers),
        }
    }

    /// Whether the request may go on, and what is done to its answer.
    pub fn pass(&self, client: IpAddr, request: &RequestHeader, answer: &mut HeaderMap) -> bool {
        let admitted = self.access.check(client).is_ok() && self.limits.check(request).is_ok();
        self.cors.remove_foreign(answer);
        self.cors.apply(request.headers.get(header::ORIGIN), answer);
        self.security_headers.apply(answer, true);
        admitted
    }
}

fn parsed<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap_or_else(|error| panic!("{error}"))
}

/// An address that may call.
pub const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3));

/// What a browser sends.
pub fn request() -> RequestHeader {
    let fields = [
        ("host", "api.example.com"),
        ("origin", "https://app.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
        ("accept", "application/json"),
        ("accept-language", "en-GB,en;q=0.7,ja;q=0.3"),
        ("accept-encoding", "gzip, deflate, br, zstd"),
        ("referer", "https://app.example.com/calls"),
    ];
    let mut request =
        RequestHeader::build(Method::GET, b"/v1/calls/4711", Some(fields.len())).unwrap_or_else(|e| panic!("{e}"));
    for (name, value) in fields {
        request.append_header(name, value).unwrap_or_else(|error| panic!("{error}"));
    }
    request
}

/// What an upstream answers.
pub fn response() -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(16);
    for (name, value) in [("content-type", "application/json"), ("content-length", "1024"), ("server", "demo/1.0")] {
        fields.append(name, HeaderValue::from_static(value));
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_passes_and_its_answer_gets_the_headers() {
        let mut answer = response();
        assert!(Chain::compile().pass(CLIENT, &request(), &mut answer));
        assert_eq!(answer["access-control-allow-origin"], "https://app.example.com");
        assert_eq!(answer["x-content-type-options"], "nosniff");
        assert!(!answer.contains_key("server"));
    }
}
