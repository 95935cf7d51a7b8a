//! From a request's header to its principal.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use seiketsu_config::{
    policy::CredentialKind,
    tenant::{JwtIssuer, Tenant},
    values::Id,
};

use crate::{
    api_key::{ApiKeyTable, KeyRuleError},
    certificate::{CertificateRuleError, CertificateTable, ClientCertificate},
    credentials::{Credential, Placement, ReservedHeader},
    failure::{AuthFailure, FailureCause},
    jwt::{self, Issuer, IssuerRuleError},
    principal::{Principal, PrincipalKind},
    sha256,
    state::IdentityState,
    verified_cache::{Epoch, Ticket},
};

/// How one tenant's callers are recognised: its keys, issuers and certificates, compiled.
#[derive(Debug)]
pub struct TenantAuth {
    tenant: Id,
    placement: Placement,
    keys: ApiKeyTable,
    issuers: Box<[Issuer]>,
    certificates: CertificateTable,
    anonymous: Arc<Principal>,
    /// Digest of the tenant's id and of every setting that a remembered verification rests on.
    scope: [u8; 32],
    epoch: Epoch,
    state: Arc<IdentityState>,
}

/// Why a tenant's callers cannot be recognised as configured.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    ApiKeyHeader(#[from] ReservedHeader),
    #[error(transparent)]
    ApiKey(#[from] KeyRuleError),
    #[error(transparent)]
    Issuer(#[from] IssuerRuleError),
    #[error(transparent)]
    Certificate(#[from] CertificateRuleError),
}

impl TenantAuth {
    /// Compiles what `tenant` says about its callers. Their principals keep `claims` of their tokens. Reads key
    /// files and JWK Set files, so it may block.
    pub fn compile(tenant: &Tenant, claims: &[&str], state: &Arc<IdentityState>) -> Result<Self, CompileError> {
        let issuer = |config: &JwtIssuer| {
            let keys = state.jwks().open(&config.jwks);
            let keys = keys.map_err(|source| IssuerRuleError::Keys { issuer: config.issuer.clone(), source })?;
            Issuer::compile(config, claims, keys)
        };
        let issuers = tenant.jwt_issuers.iter().map(issuer).collect::<Result<_, _>>()?;
        // Configuration is made of strings and numbers: writing it to memory cannot fail.
        let settings = serde_json::to_vec(&(&tenant.id, &tenant.jwt_issuers, &tenant.consumers, claims));
        Ok(Self {
            placement: Placement::compile(&tenant.api_keys)?,
            keys: ApiKeyTable::compile(&tenant.id, &tenant.consumers)?,
            issuers,
            certificates: CertificateTable::compile(&tenant.consumers)?,
            anonymous: Arc::new(Principal::anonymous(tenant.id.clone())),
            scope: sha256(&settings.unwrap_or_default()),
            epoch: state.epoch(&tenant.id),
            state: Arc::clone(state),
            tenant: tenant.id.clone(),
        })
    }

    /// Who is calling.
    ///
    /// `accept` is what the route takes. A credential in the header decides, also where anonymous
    /// callers are welcome: a wrong one, or one of a kind that is not accepted, is refused. The
    /// connection's certificate counts only where it is accepted and the header shows no credential;
    /// a client cannot choose per request whether to show it.
    ///
    /// Where nobody but anonymous callers is accepted, credentials are no business of the gateway's: they
    /// may be the upstream's, and are not looked at.
    ///
    /// Waits only for issuers' keys that are not at hand, and not longer than
    /// [`MAX_WAIT`](crate::jwks::MAX_WAIT).
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
        accept: &[CredentialKind],
    ) -> Result<Arc<Principal>, AuthFailure> {
        self.identify(headers, certificate, accept)
            .await
            .map_err(|cause| AuthFailure::unauthenticated(cause, &self.tenant, accept))
    }

    /// Whether the caller may do what needs all of `scopes` and at least one of `roles` (none given: no
    /// role is needed). An anonymous caller is asked for a credential (401), a known one is refused (403).
    pub fn authorise<S: AsRef<str>>(
        &self,
        principal: &Principal,
        scopes: &[S],
        roles: &[S],
    ) -> Result<(), AuthFailure> {
        let owned = |names: &[S]| names.iter().map(|name| name.as_ref().to_owned()).collect();
        let cause = if !principal.scopes().contains_all(scopes) {
            FailureCause::MissingScope { needed: owned(scopes) }
        } else if !roles.is_empty() && !principal.roles().contains_any(roles) {
            FailureCause::MissingRole { accepted: owned(roles) }
        } else {
            return Ok(());
        };
        Err(match principal.kind() {
            PrincipalKind::Anonymous => match self.known_kinds() {
                // There is nothing that a 401 could ask for.
                kinds if kinds.is_empty() => {
                    AuthFailure::unauthenticated(FailureCause::NobodyAccepted, &self.tenant, &kinds)
                }
                kinds => AuthFailure::unauthenticated(FailureCause::NoCredential, &self.tenant, &kinds),
            },
            kind => AuthFailure::unauthorised(cause, &self.tenant, kind),
        })
    }

    /// What to remove before a request goes upstream, unless the route lets credentials through.
    pub fn credential_headers(&self) -> &[HeaderName] {
        self.placement.headers_to_remove()
    }

    async fn identify(
        &self,
        headers: &HeaderMap,
        certificate: Option<&ClientCertificate>,
        accept: &[CredentialKind],
    ) -> Result<Arc<Principal>, FailureCause> {
        if accept.is_empty() {
            return Err(FailureCause::NobodyAccepted);
        }
        if accept.iter().all(|kind| *kind == CredentialKind::Anonymous) {
            return Ok(Arc::clone(&self.anonymous));
        }
        let require = |kind| {
            if accept.contains(&kind) { Ok(()) } else { Err(FailureCause::KindNotAccepted(kind)) }
        };
        // Only where there is a credential to judge.
        let now = || self.state.clock.unix_seconds();
        match (self.placement.find(headers)?, certificate) {
            (Some(Credential::ApiKey(key)), _) => {
                require(CredentialKind::ApiKey)?;
                Ok(self.keys.verify(key, now())?)
            }
            (Some(Credential::Jwt(token)), _) => {
                require(CredentialKind::Jwt)?;
                self.verify_token(token, now()).await
            }
            (None, Some(certificate)) if accept.contains(&CredentialKind::ClientCertificate) => {
                self.verify_certificate(certificate, now())
            }
            (None, _) if accept.contains(&CredentialKind::Anonymous) => Ok(Arc::clone(&self.anonymous)),
            (None, _) => Err(FailureCause::NoCredential),
        }
    }

    async fn verify_token(&self, token: &str, now: u64) -> Result<Arc<Principal>, FailureCause> {
        let ticket = Ticket::new(sha256(token.as_bytes()), self.scope, &self.epoch);
        if let Some(principal) = self.state.verified.get(&ticket, now) {
            return Ok(principal);
        }
        // Boxed: few requests bring a new token, and all would carry the room for it.
        let principal = Arc::new(Box::pin(jwt::verify(token, &self.tenant, &self.issuers, now)).await?);
        self.state.verified.insert(&ticket, now, Arc::clone(&principal));
        Ok(principal)
    }

    fn verify_certificate(&self, certificate: &ClientCertificate, now: u64) -> Result<Arc<Principal>, FailureCause> {
        let ticket = Ticket::new(*certificate.fingerprint(), self.scope, &self.epoch);
        if let Some(principal) = self.state.verified.get(&ticket, now) {
            return Ok(principal);
        }
        let principal = Arc::new(self.certificates.principal(&self.tenant, certificate, now)?);
        self.state.verified.insert(&ticket, now, Arc::clone(&principal));
        Ok(principal)
    }

    /// The kinds of credential that the tenant's callers can have at all.
    fn known_kinds(&self) -> Vec<CredentialKind> {
        let kinds = [
            (CredentialKind::Jwt, !self.issuers.is_empty()),
            (CredentialKind::ApiKey, !self.keys.is_empty()),
            (CredentialKind::ClientCertificate, !self.certificates.is_empty()),
        ];
        kinds.into_iter().filter_map(|(kind, known)| known.then_some(kind)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use CredentialKind::{Anonymous, ApiKey, ClientCertificate as Certificate, Jwt};
    use http::{HeaderValue, StatusCode};
    use secrecy::ExposeSecret;
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        api_key::{self, NewKey},
        testing::{self, FakeServer, FixedClock, NOW, OTHER_P256, P256, claims, with},
    };

    struct Fixture {
        clock: Arc<FixedClock>,
        server: Arc<FakeServer>,
        state: Arc<IdentityState>,
        auth: TenantAuth,
        key: NewKey,
        certificate: ClientCertificate,
    }

    fn fixture() -> Fixture {
        let clock = FixedClock::at(NOW);
        let server = FakeServer::serving(vec![P256.jwk(json!({ "kid": "k" }))]);
        let state = testing::state(clock.clone(), server.clone());
        let key = api_key::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["meter.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2050, 1, 1);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let certificate = ClientCertificate::from_der(certificate.der()).unwrap();
        let auth = TenantAuth::compile(&testing::tenant(&consumers(&key)), &[], &state).unwrap();
        Fixture { clock, server, state, auth, key, certificate }
    }

    fn consumers(key: &NewKey) -> Value {
        json!({ "consumers": [
            { "id": "mobile", "keys": [{ "prefix": key.prefix, "hash": key.hash.to_string() }], "scopes": ["read"] },
            { "id": "meter", "certificates": [{ "san": "meter.example" }], "roles": ["device"] },
        ] })
    }

    fn token(changes: &Value) -> String {
        P256.token(&json!({ "alg": "ES256", "kid": "k" }), &with(claims(), changes))
    }

    fn bearer(token: &str) -> HeaderMap {
        [(http::header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap())].into_iter().collect()
    }

    fn api_key(key: &str) -> HeaderMap {
        [(HeaderName::from_static("x-api-key"), key.parse().unwrap())].into_iter().collect()
    }

    fn challenges(failure: &AuthFailure) -> Vec<&str> {
        failure.challenges().iter().map(|value| value.to_str().unwrap()).collect()
    }

    impl Fixture {
        async fn try_header(
            &self,
            headers: &HeaderMap,
            accept: &[CredentialKind],
        ) -> Result<Arc<Principal>, AuthFailure> {
            self.auth.authenticate(headers, None, accept).await
        }

        async fn refusal(&self, headers: &HeaderMap, accept: &[CredentialKind]) -> AuthFailure {
            self.try_header(headers, accept).await.unwrap_err()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_credential_names_its_caller() {
        let f = fixture();
        let none = HeaderMap::new();
        let all = [Anonymous, ApiKey, Jwt, Certificate];
        let by_key = f.try_header(&api_key(f.key.key.expose_secret()), &all).await.unwrap();
        let by_bearer_key = f.try_header(&bearer(f.key.key.expose_secret()), &all).await.unwrap();
        let by_token = f.try_header(&bearer(&token(&json!({}))), &all).await.unwrap();
        let by_certificate = f.auth.authenticate(&none, Some(&f.certificate), &all).await.unwrap();
        let anonymous = f.try_header(&none, &all).await.unwrap();
        let names = [&by_key, &by_bearer_key, &by_token, &by_certificate, &anonymous].map(|p| p.name());
        assert_eq!(names, [Some("mobile"), Some("mobile"), Some("alice"), Some("meter"), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_credential_is_refused_even_where_anonymous_callers_are_welcome() {
        let f = fixture();
        let all = [Anonymous, ApiKey, Jwt, Certificate];
        let stranger = rcgen::generate_simple_self_signed(vec!["x.example".to_owned()]).unwrap();
        let stranger = ClientCertificate::from_der(stranger.cert.der()).unwrap();
        assert_eq!(f.refusal(&api_key("sk_abcdefgh_x"), &all).await.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(f.refusal(&bearer("a.b.c"), &all).await.status(), StatusCode::UNAUTHORIZED);
        let refused = f.auth.authenticate(&HeaderMap::new(), Some(&stranger), &all).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_of_a_kind_that_the_route_does_not_accept_is_refused() {
        let f = fixture();
        let key = api_key(f.key.key.expose_secret());
        let refused = f.refusal(&key, &[Jwt]).await;
        assert_eq!((refused.status(), refused.reason()), (StatusCode::UNAUTHORIZED, "kind_not_accepted"));
        assert_eq!(challenges(&refused), ["Bearer realm=\"acme\""]);
        let refused = f.refusal(&bearer(&token(&json!({}))), &[Anonymous, ApiKey]).await;
        assert_eq!(challenges(&refused), ["ApiKey realm=\"acme\""]);
    }

    #[tokio::test(start_paused = true)]
    async fn where_only_anonymous_callers_are_accepted_credentials_are_not_looked_at() {
        let f = fixture();
        for headers in [bearer("opaque"), bearer(&token(&json!({}))), api_key("x"), api_key(f.key.key.expose_secret())]
        {
            assert!(f.try_header(&headers, &[Anonymous]).await.unwrap().name().is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_for_a_credential_that_the_tenant_has_not() {
        let f = fixture();
        let tenant = testing::tenant(&json!({ "jwt_issuers": [], "consumers": [] }));
        let auth = TenantAuth::compile(&tenant, &[], &f.state).unwrap();
        let anonymous = auth.authenticate(&HeaderMap::new(), None, &[Anonymous]).await.unwrap();
        let refused = auth.authorise(&anonymous, &["read"], &[]).unwrap_err();
        // A 401 would need a challenge (RFC 9110 §15.5.2).
        assert_eq!((refused.status(), challenges(&refused).len()), (StatusCode::FORBIDDEN, 0));
        let refused = f.auth.authorise(&anonymous, &["read"], &[]).unwrap_err();
        assert_eq!((refused.status(), challenges(&refused).is_empty()), (StatusCode::UNAUTHORIZED, false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_counts_only_where_it_is_accepted_and_nothing_else_is_shown() {
        let f = fixture();
        let shown = Some(&f.certificate);
        let none = HeaderMap::new();
        assert!(f.auth.authenticate(&none, shown, &[Anonymous]).await.unwrap().name().is_none());
        assert!(f.auth.authenticate(&none, shown, &[ApiKey]).await.is_err());
        let headers = bearer(&token(&json!({})));
        let principal = f.auth.authenticate(&headers, shown, &[Jwt, Certificate]).await.unwrap();
        assert_eq!(principal.name(), Some("alice"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_credential_the_challenges_say_what_to_send() {
        let f = fixture();
        let refused = f.refusal(&HeaderMap::new(), &[ApiKey, Jwt, Certificate]).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        let expected = ["ApiKey realm=\"acme\"", "Bearer realm=\"acme\"", "ClientCertificate realm=\"acme\""];
        assert_eq!(challenges(&refused), expected);
        let refused = f.refusal(&HeaderMap::new(), &[]).await;
        assert_eq!((refused.status(), challenges(&refused).len()), (StatusCode::FORBIDDEN, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn two_credentials_are_a_bad_request() {
        let f = fixture();
        let mut headers = bearer(&token(&json!({})));
        headers.insert("x-api-key", HeaderValue::from_static("sk_abcdefgh_x"));
        let refused = f.refusal(&headers, &[Anonymous, ApiKey, Jwt]).await;
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(challenges(&refused), ["ApiKey realm=\"acme\"", "Bearer realm=\"acme\", error=\"invalid_request\""]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_a_key_does_not_learn_which_prefixes_exist() {
        let f = fixture();
        let unknown = f.refusal(&api_key("sk_aaaaaaaaaaaa_x"), &[ApiKey]).await;
        let wrong = f.refusal(&api_key(&format!("sk_{}_x", f.key.prefix)), &[ApiKey]).await;
        assert_ne!(unknown.reason(), wrong.reason(), "the log knows");
        assert_eq!(
            (unknown.status(), unknown.challenges(), unknown.detail()),
            (wrong.status(), wrong.challenges(), wrong.detail())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_forges_tokens_does_not_learn_what_was_wrong() {
        let f = fixture();
        let header = json!({ "alg": "ES256", "kid": "k" });
        let forgeries = [
            "not-a-token".to_owned(),
            token(&json!({ "iss": "https://other.example" })),
            token(&json!({ "aud": "other" })),
            OTHER_P256.token(&header, &claims()),
            OTHER_P256.token(&header, &with(claims(), &json!({ "exp": 1 }))),
            P256.token(&json!({ "alg": "ES256", "kid": "unknown" }), &claims()),
            P256.token(&json!({ "alg": "HS256" }), &claims()),
        ];
        let mut reasons = std::collections::HashSet::new();
        for forgery in forgeries {
            let refused = f.refusal(&bearer(&forgery), &[Jwt]).await;
            reasons.insert(refused.reason());
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
            assert_eq!(
                challenges(&refused),
                ["Bearer realm=\"acme\", error=\"invalid_token\", error_description=\"the token is not valid\""]
            );
            assert_eq!(refused.detail(), "The token is not valid.");
        }
        assert_eq!(reasons.len(), 6, "the log knows: {reasons:?}");
        let expired = f.refusal(&bearer(&token(&json!({ "exp": 1 }))), &[Jwt]).await;
        assert_eq!(expired.detail(), "The token has expired.");
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_verified_once_and_remembered_for_a_minute_at_most() {
        let f = fixture();
        let headers = bearer(&token(&json!({})));
        let first = f.try_header(&headers, &[Jwt]).await.unwrap();
        let second = f.try_header(&headers, &[Jwt]).await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        f.clock.set(NOW + 60);
        let third = f.try_header(&headers, &[Jwt]).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &third));
        assert_eq!(first, third);
        f.clock.set(NOW + 630);
        assert_eq!(f.refusal(&headers, &[Jwt]).await.reason(), "token_expired");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_not_remembered() {
        let f = fixture();
        f.server.serve(vec![]);
        let headers = bearer(&token(&json!({})));
        let refused = f.refusal(&headers, &[Jwt]).await;
        assert_eq!((refused.status(), challenges(&refused).len()), (StatusCode::SERVICE_UNAVAILABLE, 0));
        f.server.serve(vec![P256.jwk(json!({ "kid": "k" }))]);
        tokio::time::sleep(crate::jwks::COOL_DOWN_WITHOUT_KEYS).await;
        assert!(f.try_header(&headers, &[Jwt]).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_bumped_epoch_makes_the_gateway_look_again() {
        let f = fixture();
        let headers = bearer(&token(&json!({})));
        let first = f.try_header(&headers, &[Jwt]).await.unwrap();
        f.state.epoch(&"globex".parse().unwrap()).bump();
        assert!(Arc::ptr_eq(&first, &f.try_header(&headers, &[Jwt]).await.unwrap()));
        f.state.epoch(&"acme".parse().unwrap()).bump();
        assert!(!Arc::ptr_eq(&first, &f.try_header(&headers, &[Jwt]).await.unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_credential_of_one_tenant_is_worthless_at_another() {
        let f = fixture();
        let with_token = bearer(&token(&json!({})));
        let with_key = api_key(f.key.key.expose_secret());
        f.try_header(&with_token, &[Jwt]).await.unwrap();
        f.try_header(&with_key, &[ApiKey]).await.unwrap();
        // The same issuer and keys, but another audience, and consumers of its own.
        let other = testing::tenant(&json!({ "id": "globex", "jwt_issuers": [{
            "issuer": "https://idp.example", "audiences": ["globex"], "jwks": { "url": "https://idp.example/jwks" },
        }] }));
        let other = TenantAuth::compile(&other, &[], &f.state).unwrap();
        let refused = other.authenticate(&with_token, None, &[Jwt]).await.unwrap_err();
        assert_eq!(refused.reason(), "token_aud");
        let refused = other.authenticate(&with_key, None, &[ApiKey]).await.unwrap_err();
        assert_eq!(refused.reason(), "key_unknown");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_ends_when_the_rules_change_and_survives_when_they_do_not() {
        let f = fixture();
        let headers = bearer(&token(&json!({})));
        let first = f.try_header(&headers, &[Jwt]).await.unwrap();
        let same = with(consumers(&f.key), &json!({ "hosts": ["other.example"] }));
        let same = TenantAuth::compile(&testing::tenant(&same), &[], &f.state).unwrap();
        assert!(Arc::ptr_eq(&first, &same.authenticate(&headers, None, &[Jwt]).await.unwrap()));
        assert_eq!(f.server.calls(), 1, "keys survive as well");
        let stricter = testing::tenant(&json!({ "jwt_issuers": [{
            "issuer": "https://idp.example", "audiences": ["billing"], "jwks": { "url": "https://idp.example/jwks" },
        }] }));
        let stricter = TenantAuth::compile(&stricter, &[], &f.state).unwrap();
        assert!(stricter.authenticate(&headers, None, &[Jwt]).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_needs_all_scopes_and_one_of_the_roles() {
        let f = fixture();
        let caller = f.try_header(&bearer(&token(&json!({}))), &[Jwt]).await.unwrap();
        let none: [&str; 0] = [];
        assert_eq!(f.auth.authorise(&caller, &none, &none), Ok(()));
        assert_eq!(f.auth.authorise(&caller, &["orders:read", "orders:write"], &["admin", "clerk"]), Ok(()));
        let refused = f.auth.authorise(&caller, &["orders:read", "orders:delete"], &[]).unwrap_err();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert_eq!(
            challenges(&refused),
            ["Bearer realm=\"acme\", error=\"insufficient_scope\", scope=\"orders:read orders:delete\""]
        );
        let refused = f.auth.authorise(&caller, &[], &["admin"]).unwrap_err();
        assert_eq!((refused.status(), refused.reason()), (StatusCode::FORBIDDEN, "role_missing"));
        assert_eq!(challenges(&refused), ["Bearer realm=\"acme\", error=\"insufficient_scope\""]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_needed_scope_cannot_break_out_of_its_quotes() {
        let f = fixture();
        let caller = f.try_header(&api_key(f.key.key.expose_secret()), &[ApiKey]).await.unwrap();
        let refused = f.auth.authorise(&caller, &["a\", realm=\"evil"], &[]).unwrap_err();
        assert_eq!(challenges(&refused), ["ApiKey realm=\"acme\", error=\"insufficient_scope\""]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_anonymous_caller_is_asked_who_it_is_rather_than_forbidden() {
        let f = fixture();
        let anonymous = f.try_header(&HeaderMap::new(), &[Anonymous]).await.unwrap();
        let refused = f.auth.authorise(&anonymous, &["read"], &[]).unwrap_err();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
        assert_eq!(challenges(&refused).len(), 3);
    }

    #[test]
    fn what_cannot_be_used_is_refused_when_it_is_compiled() {
        let f = fixture();
        for (change, named) in [
            (json!({ "api_keys": { "header": "authorization" } }), "api_keys.header"),
            (
                json!({ "jwt_issuers": [{ "issuer": "i", "audiences": ["a"], "jwks": { "file": "/none/jwks.json" } }] }),
                "/none/jwks.json",
            ),
            (
                json!({ "consumers": [{ "id": "m", "keys": [{ "prefix": "abcdefgh", "key": "${file:/none/key}" }] }] }),
                "/none/key",
            ),
        ] {
            let error = TenantAuth::compile(&testing::tenant(&change), &[], &f.state).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
