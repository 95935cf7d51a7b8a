//! From a request's header to its principal.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use seiketsu_config::{policy::CredentialKind, tenant::Tenant, values::Id};

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
    /// Compiles what `tenant` says about its callers. Reads key files and JWK Set files, so it may block.
    pub fn compile(tenant: &Tenant, state: &Arc<IdentityState>) -> Result<Self, CompileError> {
        let mut issuers: Vec<Issuer> = Vec::with_capacity(tenant.jwt_issuers.len());
        for config in &tenant.jwt_issuers {
            let keys = state.jwks().open(&config.jwks).map_err(|source| IssuerRuleError::Keys {
                issuer: config.issuer.clone(),
                source,
            })?;
            let issuer = Issuer::compile(config, keys)?;
            if issuers.iter().any(|other| other.name() == issuer.name()) {
                return Err(IssuerRuleError::Twice(config.issuer.clone()).into());
            }
            issuers.push(issuer);
        }
        // Configuration is made of strings and numbers: writing it to memory cannot fail.
        let settings = serde_json::to_vec(&(&tenant.id, &tenant.jwt_issuers, &tenant.consumers));
        Ok(Self {
            placement: Placement::compile(&tenant.api_keys)?,
            keys: ApiKeyTable::compile(&tenant.id, &tenant.consumers)?,
            issuers: issuers.into(),
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
            PrincipalKind::Anonymous => {
                AuthFailure::unauthenticated(FailureCause::NoCredential, &self.tenant, &self.known_kinds())
            }
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
        let require = |kind| {
            if accept.contains(&kind) { Ok(()) } else { Err(FailureCause::KindNotAccepted(kind)) }
        };
        let now = self.state.clock.unix_seconds();
        match (self.placement.find(headers)?, certificate) {
            (Some(Credential::ApiKey(key)), _) => {
                require(CredentialKind::ApiKey)?;
                Ok(self.keys.verify(key, now)?)
            }
            (Some(Credential::Jwt(token)), _) => {
                require(CredentialKind::Jwt)?;
                self.verify_token(token, now).await
            }
            (None, Some(certificate)) if accept.contains(&CredentialKind::ClientCertificate) => {
                self.verify_certificate(certificate, now)
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
        let principal = Arc::new(jwt::verify(token, &self.tenant, &self.issuers, now).await?);
        self.state.verified.insert(&ticket, now, Arc::clone(&principal));
        Ok(principal)
    }

    fn verify_certificate(
        &self,
        certificate: &ClientCertificate,
        now: u64,
    ) -> Result<Arc<Principal>, FailureCause> {
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
