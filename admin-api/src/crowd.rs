//! How many connections each address has: none may have them all.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

#[derive(Debug)]
pub(crate) struct Crowd {
    most: usize,
    of: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection of an address, until it is dropped.
#[derive(Debug)]
pub(crate) struct Member {
    crowd: Arc<Crowd>,
    address: IpAddr,
}

impl Crowd {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, of: Mutex::default() })
    }

    /// None, if the address has as many as it may have.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Member> {
        let address = subscriber(address);
        let mut of = self.of.lock();
        let count = of.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Member { crowd: Arc::clone(self), address })
    }
}

/// Whoever has an address of IPv6 has 2^64 of them (RFC 4291, section 2.5.4).
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        address @ IpAddr::V4(_) => address,
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut of = self.crowd.of.lock();
        if let Some(count) = of.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                of.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_address_has_so_many_andothers_have_theirs() {
        let crowd = Crowd::new(2);
        let enter = |address: &str| crowd.enter(address.parse().unwrap());
        let (first, second) = (enter("192.0.2.1").unwrap(), enter("::ffff:192.0.2.1").unwrap());
        assert!(enter("192.0.2.1").is_none());
        let other = enter("192.0.2.2").unwrap();
        drop(first);
        let again = enter("192.0.2.1").unwrap();
        let six = [enter("2001:db8::1").unwrap(), enter("2001:db8::2:1").unwrap()];
        assert!(enter("2001:db8::3").is_none() && enter("2001:db8:0:1::3").is_some());
        drop((second, again, other, six));
        assert!(crowd.of.lock().is_empty());
    }
}
