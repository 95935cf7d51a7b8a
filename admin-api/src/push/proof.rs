//! What a node is let in with.

use axum::http::{HeaderMap, header};
use secrecy::SecretString;
use seiketsu_config::values::Id;

use super::Shared;
use crate::{api::Kind, edge::NodeCertificate};

pub(super) enum Proof {
    Token(SecretString),
    Certificate(NodeCertificate),
    /// Where certificates are required, and a token came too: both have to hold.
    Both(SecretString, NodeCertificate),
}

impl Proof {
    /// What the request shows, if it holds. A token that is shown has to hold, whatever certificate comes with it.
    pub(super) async fn of(
        shared: &Shared,
        headers: &HeaderMap,
        certificate: Option<NodeCertificate>,
    ) -> Result<Self, (Kind, &'static str)> {
        if certificate.is_none() && shared.certificates_required {
            return Err((Kind::Unauthenticated, "a node shows a certificate here, of an authority in --client-ca"));
        }
        let proof = match (bearer(headers), certificate) {
            (Some(token), None) => Self::Token(token),
            (None, Some(certificate)) => Self::Certificate(certificate),
            (Some(token), Some(certificate)) => Self::Both(token, certificate),
            (None, None) => {
                return Err((Kind::Unauthenticated, "a node shows its token: Authorization: Bearer …"));
            }
        };
        let Some(token) = proof.token() else { return Ok(proof) };
        match shared.store.node_token(token).await {
            Ok(Some(_)) => Ok(proof),
            Ok(None) => Err((Kind::Unauthenticated, "the token is not that of a node, or is revoked")),
            Err(error) => {
                tracing::error!(%error, "cannot look up the token of a node");
                Err((Kind::Unavailable, "the store cannot be reached; try again"))
            }
        }
    }

    fn token(&self) -> Option<&SecretString> {
        match self {
            Self::Token(token) | Self::Both(token, _) => Some(token),
            Self::Certificate(_) => None,
        }
    }

    /// Whether the node may have this id. A certificate says which; a token does not.
    pub(super) fn is_for(&self, node: &Id) -> bool {
        match self {
            Self::Token(_) => true,
            Self::Certificate(certificate) | Self::Both(_, certificate) => certificate.is_for(node),
        }
    }

    /// Whether it still holds. While the store cannot be asked, a token does.
    pub(super) async fn holds(&self, shared: &Shared) -> bool {
        if let Self::Certificate(certificate) | Self::Both(_, certificate) = self
            && !certificate.holds()
        {
            return false;
        }
        match self.token() {
            Some(token) => !matches!(shared.store.node_token(token).await, Ok(None)),
            None => true,
        }
    }
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned().into())
}
