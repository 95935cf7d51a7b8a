//! Credentials that were verified a moment ago.
//!
//! Verifying a JWT costs a signature check; the same token comes again with every request of its
//! caller. So a verified credential is remembered, by its SHA-256 only, for a minute at most. API keys
//! are not kept here: their table costs no more than this cache does, and has no delay.
//!
//! Failures are not remembered. Whoever sends rubbish can make more rubbish than any cache holds; a
//! cache of it would push out the entries that help honest callers, and a wrong entry (an issuer's key
//! that arrives a second later) would lock one of them out.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    bounded_cache::{BoundedCache, Key},
    principal::Principal,
};

/// The longest that a verified credential is believed without being looked at again, in seconds.
pub const MAX_AGE_SECONDS: u64 = 60;

/// A tenant's epoch. Whoever raises it makes the gateway forget, at once, whom of the tenant's callers
/// it has verified.
#[derive(Debug, Clone, Default)]
pub struct Epoch(Arc<AtomicU64>);

impl Epoch {
    pub fn bump(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Shared by all tenants of a node.
#[derive(Debug)]
pub struct VerifiedCache {
    entries: BoundedCache<(u64, Arc<Principal>)>,
}

/// What is being looked up. Made before the credential is verified, so that an epoch that is bumped
/// while verification runs makes its result void.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    key: Key,
    epoch: u64,
}

impl Ticket {
    /// `scope` is the digest of the tenant and of its settings that matter: a token means nothing under
    /// another tenant, and has to be verified again when the rules change.
    pub(crate) fn new(credential_sha256: [u8; 32], scope: [u8; 32], epoch: &Epoch) -> Self {
        Self { key: (credential_sha256, scope), epoch: epoch.get() }
    }
}

impl VerifiedCache {
    /// For about `capacity` credentials, some 150 bytes each besides their principals.
    pub fn new(capacity: usize) -> Self {
        Self { entries: BoundedCache::new(capacity) }
    }

    pub(crate) fn get(&self, ticket: &Ticket, now: u64) -> Option<Arc<Principal>> {
        let (epoch, principal) = self.entries.get(&ticket.key, now)?;
        (epoch == ticket.epoch).then_some(principal)
    }

    /// Remembered until the principal expires, a minute at most.
    pub(crate) fn insert(&self, ticket: &Ticket, now: u64, principal: Arc<Principal>) {
        let expires = principal.expires().unwrap_or(u64::MAX).min(now.saturating_add(MAX_AGE_SECONDS));
        if now < expires {
            self.entries.insert(ticket.key, expires, (ticket.epoch, principal));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::{principal::NameSet, sha256};

    fn principal(expires: u64) -> Arc<Principal> {
        let none = NameSet::default();
        Arc::new(Principal::jwt("acme".parse().unwrap(), "https://i".into(), "s", none.clone(), none, expires))
    }

    fn ticket(tenant: &[u8], epoch: &Epoch) -> Ticket {
        Ticket::new(sha256(b"token"), sha256(tenant), epoch)
    }

    #[test]
    fn nothing_is_believed_for_more_than_a_minute() {
        let (cache, epoch) = (VerifiedCache::new(8), Epoch::default());
        let ticket = ticket(b"acme", &epoch);
        cache.insert(&ticket, 1000, principal(9999));
        assert!(cache.get(&ticket, 1059).is_some());
        assert!(cache.get(&ticket, 1060).is_none());
    }

    #[test]
    fn nothing_is_believed_beyond_its_expiry() {
        let (cache, epoch) = (VerifiedCache::new(8), Epoch::default());
        let ticket = ticket(b"acme", &epoch);
        cache.insert(&ticket, 1000, principal(1010));
        assert!(cache.get(&ticket, 1009).is_some());
        assert!(cache.get(&ticket, 1010).is_none());
        cache.insert(&ticket, 1011, principal(1010));
        assert!(cache.get(&ticket, 1011).is_none());
    }

    #[test]
    fn a_bumped_epoch_voids_what_is_remembered_and_what_is_being_verified() {
        let (cache, epoch) = (VerifiedCache::new(8), Epoch::default());
        let before = ticket(b"acme", &epoch);
        cache.insert(&before, 0, principal(100));
        epoch.bump();
        assert!(cache.get(&ticket(b"acme", &epoch), 0).is_none());
        cache.insert(&before, 0, principal(100));
        assert!(cache.get(&ticket(b"acme", &epoch), 0).is_none());
    }

    #[test]
    fn another_tenants_verified_token_is_unknown() {
        let (cache, epoch) = (VerifiedCache::new(8), Epoch::default());
        cache.insert(&ticket(b"acme", &epoch), 0, principal(100));
        assert!(cache.get(&ticket(b"globex", &epoch), 0).is_none());
    }
}
