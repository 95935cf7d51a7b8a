//! The callers that a tenant knows, and how they prove who they are.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ApiKey;
use crate::{
    limits::ConsumerLimits,
    values::{HeaderName, Id, Span, url},
};

/// A caller that the tenant knows by name: an application, a partner, a device.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    pub id: Id,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ApiKey>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateIdentity>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roles: Vec<String>,
    /// Limits of this consumer alone, beside those of the tenant and the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<ConsumerLimits>,
}

/// How a client certificate names a consumer. Exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CertificateIdentity {
    /// Hexadecimal SHA-256 of the certificate in DER.
    Sha256(String),
    /// A DNS name or URI among its subject alternative names.
    San(String),
    /// The common name of its subject.
    CommonName(String),
}

/// Where clients put their API key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApiKeyPlacement {
    pub header: HeaderName,
    /// Also accept `Authorization: Bearer sk_…`.
    pub bearer: bool,
}

impl Default for ApiKeyPlacement {
    fn default() -> Self {
        Self { header: HeaderName::from(http::HeaderName::from_static("x-api-key")), bearer: true }
    }
}

/// An issuer whose JWTs (RFC 7519) are accepted as bearer tokens (RFC 6750).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwtIssuer {
    /// Must equal the token's `iss`.
    pub issuer: String,
    /// The token's `aud` must contain one of these.
    pub audiences: Vec<String>,
    pub jwks: JwksSource,
    #[serde(default = "default_algorithms")]
    pub algorithms: Vec<JwtAlgorithm>,
    /// Clock difference that is tolerated; 30s at most.
    #[serde(default = "default_leeway")]
    pub leeway: Span,
    /// The claim that holds scopes: a string with spaces, or a list.
    #[serde(default = "default_scope_claim")]
    pub scope_claim: String,
    /// The claim that holds roles; `.` goes into objects, as in `realm_access.roles`.
    #[serde(default = "default_roles_claim")]
    pub roles_claim: String,
}

/// Where an issuer's public keys come from (RFC 7517). Exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum JwksSource {
    File(PathBuf),
    #[serde(deserialize_with = "url")]
    #[schemars(with = "String")]
    Url(url::Url),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
pub enum JwtAlgorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

fn default_algorithms() -> Vec<JwtAlgorithm> {
    vec![JwtAlgorithm::RS256, JwtAlgorithm::PS256, JwtAlgorithm::ES256, JwtAlgorithm::EdDSA]
}

fn default_leeway() -> Span {
    Span::from_secs(30)
}

fn default_scope_claim() -> String {
    "scope".to_owned()
}

fn default_roles_claim() -> String {
    "roles".to_owned()
}
