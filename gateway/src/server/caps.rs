//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// Locks are taken once per connection, and spread over this many.
const SHARDS: usize = 64;

/// Counts open connections. Shared by all workers.
#[derive(Debug)]
pub(crate) struct ConnectionCaps {
    per_address: u32,
    total: u32,
    open: AtomicU32,
    shards: Box<[Mutex<HashMap<IpAddr, u32, RandomState>>]>,
    hasher: RandomState,
}

/// Why a connection was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    Address,
    Node,
}

impl Full {
    /// A short, stable word for metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Node => "node",
        }
    }
}

impl ConnectionCaps {
    /// 0 means no bound, for both.
    pub(crate) fn new(per_address: u32, total: u32) -> Self {
        Self {
            per_address,
            total,
            open: AtomicU32::new(0),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::default(),
        }
    }

    /// Takes a place for a connection, given back when the result is dropped. Where the client's address is
    /// not known yet, [`ConnectionSlot::belongs_to`] tells it later.
    pub(crate) fn admit(self: &Arc<Self>, client: Option<IpAddr>) -> Result<ConnectionSlot, Full> {
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        // From here on dropping it gives the place back.
        let mut slot = ConnectionSlot { caps: self.clone(), key: None };
        if self.total > 0 && open >= self.total {
            return Err(Full::Node);
        }
        if let Some(client) = client {
            slot.belongs_to(client)?;
        }
        Ok(slot)
    }

    fn shard(&self, key: &IpAddr) -> &Mutex<HashMap<IpAddr, u32, RandomState>> {
        #[allow(clippy::cast_possible_truncation)] // Any bits of the hash will do.
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}

/// An IPv6 client has a whole /64 to choose addresses from, so that is what counts as one.
fn bucket(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The place of one open connection.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    caps: Arc<ConnectionCaps>,
    key: Option<IpAddr>,
}

impl ConnectionSlot {
    /// Counts the connection among those of its client. Once for each.
    pub(crate) fn belongs_to(&mut self, client: IpAddr) -> Result<(), Full> {
        if self.caps.per_address > 0 {
            let key = bucket(client);
            let mut counts = self.caps.shard(&key).lock();
            let count = counts.entry(key).or_insert(0);
            if *count >= self.caps.per_address {
                return Err(Full::Address);
            }
            *count += 1;
            self.key = Some(key);
        }
        Ok(())
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.caps.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(key) = self.key {
            let mut counts = self.caps.shard(&key).lock();
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_all_places() {
        let caps = Arc::new(ConnectionCaps::new(2, 3));
        let first = caps.admit(Some(ip("10.0.0.1"))).unwrap();
        let _second = caps.admit(Some(ip("::ffff:10.0.0.1"))).unwrap();
        assert_eq!(caps.admit(Some(ip("10.0.0.1"))).unwrap_err(), Full::Address);
        let _other = caps.admit(Some(ip("10.0.0.2"))).unwrap();
        assert_eq!(caps.admit(Some(ip("10.0.0.3"))).unwrap_err(), Full::Node);
        drop(first);
        caps.admit(Some(ip("10.0.0.1"))).unwrap();
        assert_eq!(caps.open.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_refused_connection_leaves_nothing_behind() {
        let caps = Arc::new(ConnectionCaps::new(1, 0));
        let slot = caps.admit(Some(ip("10.0.0.1"))).unwrap();
        assert!(caps.admit(Some(ip("10.0.0.1"))).is_err());
        drop(slot);
        assert_eq!(caps.open.load(Ordering::Relaxed), 0);
        assert!(caps.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn a_connection_may_get_its_client_later() {
        let caps = Arc::new(ConnectionCaps::new(1, 0));
        let mut first = caps.admit(None).unwrap();
        let mut second = caps.admit(None).unwrap();
        assert_eq!(first.belongs_to(ip("10.0.0.1")), Ok(()));
        assert_eq!(second.belongs_to(ip("10.0.0.1")), Err(Full::Address));
        drop((first, second));
        assert_eq!(caps.open.load(Ordering::Relaxed), 0);
        assert!(caps.shards.iter().all(|shard| shard.lock().is_empty()));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let caps = Arc::new(ConnectionCaps::new(1, 0));
        let _slot = caps.admit(Some(ip("2001:db8::1"))).unwrap();
        assert_eq!(caps.admit(Some(ip("2001:db8::2"))).unwrap_err(), Full::Address);
        assert!(caps.admit(Some(ip("2001:db8:0:1::1"))).is_ok());
    }
}
