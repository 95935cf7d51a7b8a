//! Client certificates. The TLS handshake has checked chain, dates and possession of the key; here
//! the certificate is read once per connection and matched, per request, to one of the tenant's consumers.

use std::{collections::HashMap, fmt};

use seiketsu_config::{
    tenant::{CertificateIdentity, Consumer},
    values::Id,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer};

use crate::{
    principal::{NameSet, Principal, PrincipalKind},
    sha256,
};

/// What identifies the owner of a client certificate. Read it once per connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    fingerprint: [u8; 32],
    alternative_names: Box<[AlternativeName]>,
    common_name: Option<Box<str>>,
    not_after: u64,
}

/// A subject alternative name (RFC 5280 §4.2.1.6). The kinds are kept apart: a DNS name that is
/// spelled like a URI must not pass for one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum AlternativeName {
    /// In lower case.
    Dns(Box<str>),
    Uri(Box<str>),
}

/// Why a certificate cannot be used. It can still secure the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the client certificate is not well-formed X.509 (RFC 5280)")]
    Malformed,
    #[error("the client certificate belongs to none of the tenant's consumers")]
    Unknown,
    #[error("the client certificate fits several consumers")]
    Ambiguous,
    #[error("the client certificate has expired since the connection was made")]
    Expired,
}

impl ClientCertificate {
    /// Reads a certificate in DER. A common name counts only if there is exactly one.
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let malformed = |_| CertificateError::Malformed;
        let (rest, certificate) =
            x509_parser::certificate::X509Certificate::from_der(der).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let extension = certificate.subject_alternative_name().map_err(malformed)?;
        let names = extension.iter().flat_map(|extension| &extension.value.general_names);
        let alternative_names = names
            .filter_map(|name| match name {
                GeneralName::DNSName(dns) => Some(AlternativeName::Dns(dns.to_ascii_lowercase().into())),
                GeneralName::URI(uri) => Some(AlternativeName::Uri((*uri).into())),
                _ => None,
            })
            .collect();
        let mut common_names = certificate.subject().iter_common_name();
        let common_name = match (common_names.next(), common_names.next()) {
            (Some(only), None) => only.as_str().ok().map(Into::into),
            _ => None,
        };
        let not_after = certificate.validity().not_after.timestamp();
        Ok(Self {
            fingerprint: sha256(der),
            alternative_names,
            common_name,
            not_after: u64::try_from(not_after).unwrap_or(0),
        })
    }

    /// SHA-256 of the certificate in DER.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }
}

/// Two of a tenant's certificate rules cannot both hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateRuleError {
    #[error("consumers {first} and {second} both claim the certificates with {identity}; leave it to one of them")]
    Claimed { first: Id, second: Id, identity: String },
    #[error("{0:?} is not the SHA-256 of a certificate: write its 64 hexadecimal digits, without colons")]
    Fingerprint(String),
}

/// A tenant's consumers by what their certificates say.
#[derive(Default)]
pub(crate) struct CertificateTable {
    consumers: Vec<Owner>,
    by_fingerprint: HashMap<[u8; 32], usize>,
    by_alternative_name: HashMap<AlternativeName, usize>,
    by_common_name: HashMap<Box<str>, usize>,
}

struct Owner {
    id: Id,
    scopes: NameSet,
    roles: NameSet,
}

impl CertificateTable {
    pub(crate) fn compile(consumers: &[Consumer]) -> Result<Self, CertificateRuleError> {
        let mut table = Self::default();
        for consumer in consumers.iter().filter(|consumer| !consumer.certificates.is_empty()) {
            let owner = table.consumers.len();
            table.consumers.push(Owner {
                id: consumer.id.clone(),
                scopes: consumer.scopes.iter().map(String::as_str).collect(),
                roles: consumer.roles.iter().map(String::as_str).collect(),
            });
            for identity in &consumer.certificates {
                let (former, text) = match identity {
                    CertificateIdentity::Sha256(hex) => {
                        let fingerprint =
                            parse_hex(hex).ok_or_else(|| CertificateRuleError::Fingerprint(hex.clone()))?;
                        (table.by_fingerprint.insert(fingerprint, owner), hex)
                    }
                    CertificateIdentity::San(name) => {
                        (table.by_alternative_name.insert(AlternativeName::from_rule(name), owner), name)
                    }
                    CertificateIdentity::CommonName(name) => {
                        (table.by_common_name.insert(name.as_str().into(), owner), name)
                    }
                };
                if let Some(former) = former.filter(|former| *former != owner) {
                    return Err(CertificateRuleError::Claimed {
                        first: table.consumers[former].id.clone(),
                        second: consumer.id.clone(),
                        identity: text.clone(),
                    });
                }
            }
        }
        Ok(table)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.consumers.is_empty()
    }

    /// The consumer that owns the certificate: by its fingerprint, else by its alternative names, else
    /// by its common name.
    pub(crate) fn principal(
        &self,
        tenant: &Id,
        certificate: &ClientCertificate,
        now: u64,
    ) -> Result<Principal, CertificateError> {
        if certificate.not_after < now {
            return Err(CertificateError::Expired);
        }
        let owner = match self.by_fingerprint.get(&certificate.fingerprint) {
            Some(owner) => *owner,
            None => self.by_names(certificate)?,
        };
        let Owner { id, scopes, roles } = &self.consumers[owner];
        let kind = PrincipalKind::ClientCertificate { fingerprint: certificate.fingerprint };
        // The last second of `notAfter` still counts (RFC 5280 §4.1.2.5).
        let expires = certificate.not_after.saturating_add(1);
        Ok(Principal::consumer(tenant.clone(), kind, id, scopes.clone(), roles.clone(), Some(expires)))
    }

    fn by_names(&self, certificate: &ClientCertificate) -> Result<usize, CertificateError> {
        let mut owners = certificate.alternative_names.iter().filter_map(|name| self.by_alternative_name.get(name));
        if let Some(owner) = owners.next() {
            return if owners.all(|other| other == owner) { Ok(*owner) } else { Err(CertificateError::Ambiguous) };
        }
        let by_common_name = certificate.common_name.as_deref().and_then(|name| self.by_common_name.get(name));
        by_common_name.copied().ok_or(CertificateError::Unknown)
    }
}

impl AlternativeName {
    /// A rule with a `:` means a URI: DNS names have none.
    fn from_rule(name: &str) -> Self {
        if name.contains(':') { Self::Uri(name.into()) } else { Self::Dns(name.to_ascii_lowercase().into()) }
    }
}

impl fmt::Debug for CertificateTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateTable").field("consumers", &self.consumers.len()).finish_non_exhaustive()
    }
}

/// 32 bytes from 64 hexadecimal digits.
fn parse_hex(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::format_collect)]

    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    const YEAR_2000: u64 = 946_684_800;

    fn certificate(common_names: &[&str], sans: Vec<SanType>) -> ClientCertificate {
        ClientCertificate::from_der(&der(common_names, sans)).unwrap()
    }

    fn der(common_names: &[&str], sans: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = sans;
        params.not_after = rcgen::date_time_ymd(2050, 1, 1);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    fn uri(name: &str) -> SanType {
        SanType::URI(name.try_into().unwrap())
    }

    fn consumer(id: &str, certificates: Vec<CertificateIdentity>) -> Consumer {
        Consumer {
            id: id.parse().unwrap(),
            keys: vec![],
            certificates,
            scopes: vec!["read".into()],
            roles: vec!["device".into()],
            limits: None,
        }
    }

    fn owner(consumers: &[Consumer], certificate: &ClientCertificate) -> Result<String, CertificateError> {
        let table = CertificateTable::compile(consumers).unwrap();
        let principal = table.principal(&"acme".parse().unwrap(), certificate, YEAR_2000)?;
        Ok(principal.name().unwrap().to_owned())
    }

    #[test]
    fn a_certificate_is_known_by_fingerprint_name_or_uri() {
        use CertificateIdentity::{CommonName, San, Sha256};
        let shown = certificate(&["meter-7"], vec![dns("Meter7.acme.example"), uri("spiffe://acme/meter/7")]);
        let hex: String = shown.fingerprint().iter().map(|byte| format!("{byte:02X}")).collect();
        for identity in [
            Sha256(hex),
            San("meter7.ACME.example".into()),
            San("spiffe://acme/meter/7".into()),
            CommonName("meter-7".into()),
        ] {
            let consumers = [consumer("other", vec![San("x.example".into())]), consumer("meter", vec![identity])];
            assert_eq!(owner(&consumers, &shown).as_deref(), Ok("meter"));
        }
        assert_eq!(owner(&[], &shown), Err(CertificateError::Unknown));
    }

    #[test]
    fn a_dns_name_never_passes_for_a_uri() {
        let rule = CertificateIdentity::San("spiffe://acme/admin".into());
        let shown = certificate(&[], vec![dns("spiffe://acme/admin")]);
        assert_eq!(owner(&[consumer("admin", vec![rule])], &shown), Err(CertificateError::Unknown));
    }

    #[test]
    fn a_certificate_that_fits_two_consumers_is_refused() {
        let consumers = ["a", "b"].map(|id| consumer(id, vec![CertificateIdentity::San(format!("{id}.example"))]));
        let both = certificate(&[], vec![dns("a.example"), dns("b.example")]);
        assert_eq!(owner(&consumers, &both), Err(CertificateError::Ambiguous));
    }

    #[test]
    fn an_expired_certificate_on_a_living_connection_is_refused() {
        let rule = CertificateIdentity::CommonName("m".into());
        let table = CertificateTable::compile(&[consumer("meter", vec![rule])]).unwrap();
        let shown = certificate(&["m"], vec![]);
        let tenant = "acme".parse().unwrap();
        assert!(table.principal(&tenant, &shown, shown.not_after).is_ok());
        let late = table.principal(&tenant, &shown, shown.not_after + 1);
        assert_eq!(late, Err(CertificateError::Expired));
    }

    #[test]
    fn two_consumers_cannot_claim_the_same_certificate() {
        let consumers = ["a", "b"].map(|id| consumer(id, vec![CertificateIdentity::San("X.example".into())]));
        let error = CertificateTable::compile(&consumers).unwrap_err();
        assert!(error.to_string().contains("consumers a and b"), "{error}");
    }

    #[test]
    fn a_mistyped_fingerprint_is_refused_by_name() {
        let rule = CertificateIdentity::Sha256("abc".into());
        let error = CertificateTable::compile(&[consumer("a", vec![rule])]).unwrap_err();
        assert!(error.to_string().starts_with("\"abc\""), "{error}");
    }

    proptest! {
        #[test]
        fn damaged_certificates_are_refused_or_read_never_a_panic(at in 0usize..300, with in any::<u8>(), cut in 0usize..300) {
            let mut bytes = der(&["m"], vec![dns("m.example")]);
            let whole = bytes.clone();
            let at = at.min(bytes.len() - 1);
            bytes[at] = with;
            if let Ok(read) = ClientCertificate::from_der(&bytes) {
                prop_assert!(bytes == whole || read.fingerprint() != &sha256(&whole));
            }
            prop_assert!(ClientCertificate::from_der(&whole[..cut.min(whole.len() - 1)]).is_err());
        }

        #[test]
        fn hexadecimal_digits_are_read_as_written(bytes in any::<[u8; 32]>()) {
            let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            prop_assert_eq!(parse_hex(&text), Some(bytes));
            prop_assert_eq!(parse_hex(&text[1..]), None);
        }
    }
}
