//! A caller who is refused: what the client is told, and what the log is told.

use std::fmt;

use http::{HeaderValue, StatusCode};
use seiketsu_config::{policy::CredentialKind, values::Id};

use crate::{
    api_key::ApiKeyError, certificate::CertificateError, credentials::CredentialError, jwt::TokenError,
    principal::PrincipalKind,
};

/// Why a caller may not pass. Its `Display` is for the log; clients get [`detail`](Self::detail).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthFailure {
    cause: FailureCause,
    challenges: Vec<HeaderValue>,
}

/// What was wrong, for logs and metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailureCause {
    #[error("the route accepts no kind of caller")]
    NobodyAccepted,
    #[error("the request shows no credential")]
    NoCredential,
    #[error("the route does not accept {}", kind_name(*.0))]
    KindNotAccepted(CredentialKind),
    #[error("credential unreadable: {0}")]
    Credential(#[from] CredentialError),
    #[error("API key refused: {0}")]
    ApiKey(#[from] ApiKeyError),
    #[error("JWT refused: {0}")]
    Token(#[from] TokenError),
    #[error("client certificate refused: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the caller lacks a scope: {} needed", .needed.join(" "))]
    MissingScope { needed: Vec<String> },
    #[error("the caller has none of the roles {}", .accepted.join(", "))]
    MissingRole { accepted: Vec<String> },
}

impl AuthFailure {
    pub fn cause(&self) -> &FailureCause {
        &self.cause
    }

    /// 400 for credentials that cannot be read, 401 for missing and wrong ones, 403 for callers who may
    /// not do this, 503 while an issuer's keys cannot be had.
    pub fn status(&self) -> StatusCode {
        match &self.cause {
            FailureCause::Credential(_) => StatusCode::BAD_REQUEST,
            FailureCause::Token(TokenError::KeysUnavailable) => StatusCode::SERVICE_UNAVAILABLE,
            FailureCause::NoCredential
            | FailureCause::KindNotAccepted(_)
            | FailureCause::ApiKey(_)
            | FailureCause::Token(_)
            | FailureCause::Certificate(_) => StatusCode::UNAUTHORIZED,
            FailureCause::NobodyAccepted | FailureCause::MissingScope { .. } | FailureCause::MissingRole { .. } => {
                StatusCode::FORBIDDEN
            }
        }
    }

    /// The `WWW-Authenticate` fields of the response (RFC 9110 §11.6.1, RFC 6750 §3), one value each.
    pub fn challenges(&self) -> &[HeaderValue] {
        &self.challenges
    }

    /// What the client may know. Causes that would help someone who guesses share one text.
    pub fn detail(&self) -> &'static str {
        match &self.cause {
            FailureCause::NobodyAccepted => "No caller may use this route.",
            FailureCause::NoCredential => "This route needs a credential, and the request shows none.",
            FailureCause::KindNotAccepted(_) => "This route does not accept this kind of credential.",
            FailureCause::Credential(CredentialError::Repeated) => {
                "The header field that carries the credential stands more than once."
            }
            FailureCause::Credential(CredentialError::Conflict) => "The request carries two credentials.",
            FailureCause::Credential(CredentialError::Malformed) => "The credential is malformed.",
            FailureCause::Credential(CredentialError::TooLong) => "The credential is too long.",
            FailureCause::ApiKey(ApiKeyError::Expired) => "The API key has expired.",
            FailureCause::ApiKey(_) => "The API key is not valid.",
            FailureCause::Token(TokenError::KeysUnavailable) => "The token cannot be verified at the moment.",
            FailureCause::Token(TokenError::Expired) => "The token has expired.",
            FailureCause::Token(_) => "The token is not valid.",
            FailureCause::Certificate(CertificateError::Expired) => "The client certificate has expired.",
            FailureCause::Certificate(_) => "The client certificate is not valid here.",
            FailureCause::MissingScope { .. } => "The caller lacks a scope that this route needs.",
            FailureCause::MissingRole { .. } => "The caller lacks a role that this route needs.",
        }
    }

    /// A short stable name of the cause, for metrics and log fields.
    pub fn reason(&self) -> &'static str {
        match &self.cause {
            FailureCause::NobodyAccepted => "nobody_accepted",
            FailureCause::NoCredential => "no_credential",
            FailureCause::KindNotAccepted(_) => "kind_not_accepted",
            FailureCause::Credential(CredentialError::Repeated) => "credential_repeated",
            FailureCause::Credential(CredentialError::Conflict) => "credential_conflict",
            FailureCause::Credential(CredentialError::Malformed) => "credential_malformed",
            FailureCause::Credential(CredentialError::TooLong) => "credential_too_long",
            FailureCause::ApiKey(ApiKeyError::UnknownPrefix) => "key_unknown",
            FailureCause::ApiKey(ApiKeyError::WrongSecret) => "key_wrong",
            FailureCause::ApiKey(ApiKeyError::Expired) => "key_expired",
            FailureCause::Token(token) => token_reason(token),
            FailureCause::Certificate(CertificateError::Malformed) => "certificate_malformed",
            FailureCause::Certificate(CertificateError::Unknown) => "certificate_unknown",
            FailureCause::Certificate(CertificateError::Ambiguous) => "certificate_ambiguous",
            FailureCause::Certificate(CertificateError::Expired) => "certificate_expired",
            FailureCause::MissingScope { .. } => "scope_missing",
            FailureCause::MissingRole { .. } => "role_missing",
        }
    }

    /// A refusal of someone whose credential was not accepted: one challenge for each kind that would be.
    pub(crate) fn unauthenticated(cause: FailureCause, realm: &Id, accept: &[CredentialKind]) -> Self {
        let challenges = accept.iter().filter_map(|kind| challenge(*kind, realm, &cause)).collect();
        let mut failure = Self { cause, challenges };
        if failure.status() == StatusCode::SERVICE_UNAVAILABLE {
            failure.challenges.clear();
        }
        failure
    }

    /// A refusal of a known caller (RFC 6750 §3.1, `insufficient_scope`).
    pub(crate) fn unauthorised(cause: FailureCause, realm: &Id, caller: &PrincipalKind) -> Self {
        let scheme = match caller {
            PrincipalKind::Anonymous | PrincipalKind::Jwt { .. } => "Bearer",
            PrincipalKind::ApiKey { .. } => "ApiKey",
            PrincipalKind::ClientCertificate { .. } => "ClientCertificate",
        };
        let scope = match &cause {
            FailureCause::MissingScope { needed } if needed.iter().all(|scope| is_scope_token(scope)) => {
                format!(", scope=\"{}\"", needed.join(" "))
            }
            _ => String::new(),
        };
        let challenge = format!("{scheme} realm=\"{realm}\", error=\"insufficient_scope\"{scope}");
        Self { cause, challenges: header_value(challenge).into_iter().collect() }
    }
}

impl fmt::Display for AuthFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl std::error::Error for AuthFailure {}

/// The challenge for one kind of credential. Only the scheme that was tried is told what went wrong.
///
/// `ApiKey` and `ClientCertificate` are not registered schemes; RFC 9110 §11.6.1 wants a challenge in
/// every 401, and they tell a developer what to send.
fn challenge(kind: CredentialKind, realm: &Id, cause: &FailureCause) -> Option<HeaderValue> {
    let (scheme, error) = match (kind, cause) {
        (CredentialKind::Anonymous, _) => return None,
        (CredentialKind::Jwt, FailureCause::Token(TokenError::Expired)) => {
            ("Bearer", ", error=\"invalid_token\", error_description=\"the token has expired\"")
        }
        (CredentialKind::Jwt, FailureCause::Token(_)) => {
            ("Bearer", ", error=\"invalid_token\", error_description=\"the token is not valid\"")
        }
        (CredentialKind::Jwt, FailureCause::Credential(_)) => ("Bearer", ", error=\"invalid_request\""),
        (CredentialKind::Jwt, _) => ("Bearer", ""),
        (CredentialKind::ApiKey, FailureCause::ApiKey(_)) => ("ApiKey", ", error=\"invalid_key\""),
        (CredentialKind::ApiKey, _) => ("ApiKey", ""),
        (CredentialKind::ClientCertificate, _) => ("ClientCertificate", ""),
    };
    // A tenant's id has no character that a quoted string would have to escape.
    header_value(format!("{scheme} realm=\"{realm}\"{error}"))
}

fn header_value(text: String) -> Option<HeaderValue> {
    HeaderValue::try_from(text).ok()
}

/// RFC 6749 §3.3.
fn is_scope_token(scope: &str) -> bool {
    !scope.is_empty() && scope.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

fn kind_name(kind: CredentialKind) -> &'static str {
    match kind {
        CredentialKind::Anonymous => "anonymous callers",
        CredentialKind::ApiKey => "API keys",
        CredentialKind::Jwt => "JWTs",
        CredentialKind::ClientCertificate => "client certificates",
    }
}

fn token_reason(error: &TokenError) -> &'static str {
    match error {
        TokenError::Malformed => "token_malformed",
        TokenError::Critical => "token_crit",
        TokenError::Type => "token_typ",
        TokenError::UnknownAlgorithm | TokenError::ForbiddenAlgorithm => "token_alg",
        TokenError::UnknownIssuer => "token_iss",
        TokenError::UnknownKey | TokenError::WrongKeyType | TokenError::AmbiguousKey => "token_key",
        TokenError::Signature => "token_signature",
        TokenError::Claim(_) => "token_claim",
        TokenError::Audience => "token_aud",
        TokenError::Expired => "token_expired",
        TokenError::NotYetValid => "token_not_yet_valid",
        TokenError::KeysUnavailable => "keys_unavailable",
    }
}
