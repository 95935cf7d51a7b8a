//! The verified caller.

use std::{fmt, sync::Arc};

use seiketsu_config::values::Id;
use serde::{Serialize, Serializer};

use crate::sha256;

/// Who is calling. Made once when a credential is verified, then shared behind an [`Arc`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    tenant: Id,
    kind: PrincipalKind,
    consumer: Option<Box<str>>,
    scopes: NameSet,
    roles: NameSet,
    expires: Option<u64>,
    id: Box<str>,
    digest: [u8; 32],
    claims: Box<[(Box<str>, Box<str>)]>,
}

/// How the caller proved who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PrincipalKind {
    /// It did not, and did not have to.
    Anonymous,
    /// The key's public prefix.
    ApiKey { prefix: Box<str> },
    /// The token's `iss` and `sub`.
    Jwt { issuer: Arc<str>, subject: Box<str> },
    /// SHA-256 of the certificate in DER.
    ClientCertificate { fingerprint: [u8; 32] },
}

impl PrincipalKind {
    /// The kind's name in logs, metrics and assertions.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::ApiKey { .. } => "api_key",
            Self::Jwt { .. } => "jwt",
            Self::ClientCertificate { .. } => "client_certificate",
        }
    }
}

impl Principal {
    /// The caller without a credential.
    pub fn anonymous(tenant: Id) -> Self {
        Self::assemble(tenant, PrincipalKind::Anonymous, None, NameSet::default(), NameSet::default(), None)
    }

    /// A caller that the tenant knows by name.
    pub fn consumer(
        tenant: Id,
        kind: PrincipalKind,
        consumer: &Id,
        scopes: NameSet,
        roles: NameSet,
        expires: Option<u64>,
    ) -> Self {
        Self::assemble(tenant, kind, Some(consumer.as_str().into()), scopes, roles, expires)
    }

    /// A caller that an issuer vouches for; its `sub` is the consumer.
    pub fn jwt(tenant: Id, issuer: Arc<str>, subject: &str, scopes: NameSet, roles: NameSet, expires: u64) -> Self {
        let kind = PrincipalKind::Jwt { issuer, subject: subject.into() };
        Self::assemble(tenant, kind, Some(subject.into()), scopes, roles, Some(expires))
    }

    fn assemble(
        tenant: Id,
        kind: PrincipalKind,
        consumer: Option<Box<str>>,
        scopes: NameSet,
        roles: NameSet,
        expires: Option<u64>,
    ) -> Self {
        let id = match (&kind, &consumer) {
            // An issuer has no spaces (checked when it is compiled), a consumer's name has none either:
            // so no subject, whatever it is, can look like a consumer or another issuer's subject.
            (PrincipalKind::Jwt { issuer, subject }, _) => format!("{issuer} {subject}").into(),
            (_, Some(consumer)) => consumer.clone(),
            (_, None) => "".into(),
        };
        // Serialising a tuple of strings and numbers to memory cannot fail.
        let content = serde_json::to_vec(&(tenant.as_str(), &kind, &id, &scopes, &roles, expires));
        let digest = sha256(&content.unwrap_or_default());
        Self { tenant, kind, consumer, scopes, roles, expires, id, digest, claims: Box::default() }
    }

    /// With claims of its token, by the names under which limits look for them.
    #[must_use]
    pub(crate) fn with_claims(self, claims: Box<[(Box<str>, Box<str>)]>) -> Self {
        Self { claims, ..self }
    }

    /// The text of a claim that limits tell callers apart by.
    pub fn claim(&self, name: &str) -> Option<&str> {
        self.claims.iter().find(|(own, _)| **own == *name).map(|(_, text)| &**text)
    }

    pub fn tenant(&self) -> &Id {
        &self.tenant
    }

    pub fn kind(&self) -> &PrincipalKind {
        &self.kind
    }

    /// The consumer's name, or a JWT's subject; none for anonymous callers. Two issuers may use the
    /// same subject for different callers: what must tell them apart uses [`id`](Self::id).
    pub fn name(&self) -> Option<&str> {
        self.consumer.as_deref()
    }

    /// Unique within the tenant and the same for all credentials of a caller: what limits, quotas and
    /// the audit trail go by. Empty for anonymous callers.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn scopes(&self) -> &NameSet {
        &self.scopes
    }

    pub fn roles(&self) -> &NameSet {
        &self.roles
    }

    /// When the credential is no longer accepted, in seconds since 1970; a JWT's leeway is included.
    pub fn expires(&self) -> Option<u64> {
        self.expires
    }

    /// SHA-256 over everything that upstreams are told: those of whom they are told the same have equal digests,
    /// others do not.
    pub(crate) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

/// A small set of names: scopes or roles. Sorted, without repetitions, cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct NameSet(Arc<[Box<str>]>);

impl NameSet {
    pub fn contains(&self, name: &str) -> bool {
        self.0.binary_search_by(|own| (**own).cmp(name)).is_ok()
    }

    pub fn contains_all<S: AsRef<str>>(&self, names: &[S]) -> bool {
        names.iter().all(|name| self.contains(name.as_ref()))
    }

    pub fn contains_any<S: AsRef<str>>(&self, names: &[S]) -> bool {
        names.iter().any(|name| self.contains(name.as_ref()))
    }

    /// The names that are in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.iter().filter(|name| other.contains(name)).collect()
    }

    /// In alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Default for NameSet {
    fn default() -> Self {
        Self(Arc::new([]))
    }
}

impl<S: Into<Box<str>>> FromIterator<S> for NameSet {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        let mut names: Vec<Box<str>> = names.into_iter().map(Into::into).collect();
        names.sort_unstable();
        names.dedup();
        Self(names.into())
    }
}

impl fmt::Debug for NameSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Serialize for NameSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn tenant(name: &str) -> Id {
        name.parse().unwrap()
    }

    fn jwt(tenant_name: &str, issuer: &str, subject: &str) -> Principal {
        let none = NameSet::default();
        Principal::jwt(tenant(tenant_name), issuer.into(), subject, none.clone(), none, 1)
    }

    #[test]
    fn a_subject_named_like_a_consumer_is_not_that_consumer() {
        let kind = PrincipalKind::ApiKey { prefix: "abcdefgh".into() };
        let none = NameSet::default();
        let mobile = Principal::consumer(tenant("acme"), kind, &tenant("mobile"), none.clone(), none, None);
        let impostor = jwt("acme", "https://idp.example", "mobile");
        assert_eq!(mobile.name(), impostor.name());
        assert_ne!(mobile.id(), impostor.id());
    }

    #[test]
    fn the_same_subject_of_two_issuers_is_two_callers() {
        assert_ne!(jwt("acme", "https://a.example", "u 1").id(), jwt("acme", "https://a.example/u", "1").id());
        assert_ne!(jwt("acme", "https://a.example", "1").id(), jwt("acme", "https://b.example", "1").id());
    }

    #[test]
    fn principals_of_two_tenants_never_share_a_digest() {
        assert_ne!(jwt("acme", "https://a.example", "1").digest(), jwt("globex", "https://a.example", "1").digest());
    }

    proptest! {
        #[test]
        fn a_name_set_behaves_like_a_set(
            a in prop::collection::vec("[a-d]{0,2}", 0..12),
            b in prop::collection::vec("[a-d]{0,2}", 0..6),
        ) {
            let (set_a, set_b): (NameSet, NameSet) = (a.iter().cloned().collect(), b.iter().cloned().collect());
            let (model_a, model_b): (BTreeSet<_>, BTreeSet<_>) = (a.iter().cloned().collect(), b.iter().cloned().collect());
            prop_assert_eq!(set_a.iter().map(str::to_owned).collect::<Vec<_>>(), model_a.iter().cloned().collect::<Vec<_>>());
            prop_assert_eq!(set_a.contains_all(&b), model_b.is_subset(&model_a));
            prop_assert_eq!(set_a.contains_any(&b), !model_b.is_disjoint(&model_a));
            prop_assert_eq!(set_a.intersection(&set_b).len(), model_a.intersection(&model_b).count());
        }
    }
}
