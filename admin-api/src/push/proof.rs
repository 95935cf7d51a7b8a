//! What a node is let in with.

use axum::http::{HeaderMap, header};
use secrecy::SecretString;
use seiketsu_config::values::Id;

use super::{Shared, session::End};
use crate::{
    api::Kind,
    edge::NodeCertificate,
    store::tokens::{self, TokenKind},
};

/// A certificate, a token, or both; what is there has to hold.
pub(super) struct Proof {
    token: Option<SecretString>,
    /// The one node that the token is for.
    bound_to: Option<Id>,
    certificate: Option<NodeCertificate>,
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
        let mut proof = Self { token: bearer(headers), bound_to: None, certificate };
        let Some(token) = &proof.token else {
            return match proof.certificate {
                Some(_) => Ok(proof),
                None => Err((Kind::Unauthenticated, "a node shows its token: Authorization: Bearer …")),
            };
        };
        let none = Err((Kind::Unauthenticated, "the token is not that of a node, or is revoked"));
        if !tokens::is_formed(TokenKind::Node, token) || shared.doorkeeper.is_unknown(token) {
            return none;
        }
        match shared.store.node_token(token).await {
            Ok(Some(row)) => {
                proof.bound_to = row.node;
                Ok(proof)
            }
            Ok(None) => {
                shared.doorkeeper.add_unknown(token);
                none
            }
            Err(error) => {
                tracing::error!(%error, "cannot look up the token of a node");
                Err((Kind::Unavailable, "the store cannot be reached; try again"))
            }
        }
    }

    /// The one node that the token is for, if it is for one.
    pub(super) fn bound_to(&self) -> Option<&Id> {
        self.bound_to.as_ref()
    }

    /// Whether it is for one node, or for some by their names.
    pub(super) fn names_a_node(&self) -> bool {
        self.bound_to.is_some() || self.certificate.is_some()
    }

    /// Whether the certificate, if there is one, is for this node.
    pub(super) fn is_for(&self, node: &Id) -> bool {
        self.certificate.as_ref().is_none_or(|certificate| certificate.is_for(node))
    }

    /// Whether it still holds. While the store cannot be asked, a token does.
    pub(super) async fn check(&self, shared: &Shared) -> Result<(), End> {
        if self.certificate.as_ref().is_some_and(|certificate| !certificate.holds()) {
            return Err(End::Expired);
        }
        match &self.token {
            Some(token) if matches!(shared.store.node_token(token).await, Ok(None)) => Err(End::Revoked),
            _ => Ok(()),
        }
    }
}

/// RFC 6750, section 2.1.
fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned().into())
}
