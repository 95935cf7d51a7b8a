//! Which client addresses may call.

use std::net::IpAddr;

use ipnet::IpNet;
use seiketsu_config::policy;

use super::Refusal;
use crate::respond::problem::ProblemKind;

/// Allow and deny lists, compiled to sorted ranges: a look-up is a binary search whatever their length.
///
/// An IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2) counts as the IPv4 address within, in requests and
/// in the lists alike, so that a dual-stack listener opens no way around an IPv4 rule.
#[derive(Debug, Clone)]
pub struct AccessPolicy {
    /// `None` allows every address that is not denied.
    allow: Option<AddressSet>,
    deny: AddressSet,
}

impl AccessPolicy {
    pub fn compile(config: &policy::Access) -> Self {
        let allow = (!config.allow.is_empty()).then(|| AddressSet::new(&config.allow));
        Self { allow, deny: AddressSet::new(&config.deny) }
    }

    /// Whether a client with this address may call.
    pub fn permits(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        !self.deny.contains(address) && self.allow.as_ref().is_none_or(|allow| allow.contains(address))
    }

    /// `Err` holds the refusal for a client with this address. It does not repeat the address: behind
    /// a proxy that is not trusted, it would be the proxy's.
    pub fn check(&self, address: IpAddr) -> Result<(), Refusal> {
        if self.permits(address) {
            Ok(())
        } else {
            Err(Refusal::new(ProblemKind::Forbidden, "Requests from your address are not accepted here."))
        }
    }
}

/// A set of addresses as disjoint, sorted, inclusive ranges.
#[derive(Debug, Clone)]
struct AddressSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl AddressSet {
    fn new(nets: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in nets {
            match (net.network().to_canonical(), net.broadcast().to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((u32::from(first), u32::from(last))),
                _ => v6.push((as_u128(net.network()), as_u128(net.broadcast()))),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    /// Expects a canonical address.
    fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => in_ranges(&self.v4, u32::from(address)),
            IpAddr::V6(address) => in_ranges(&self.v6, u128::from(address)),
        }
    }
}

fn as_u128(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn merged<T: Copy + Ord>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut disjoint: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match disjoint.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => disjoint.push((first, last)),
        }
    }
    disjoint.into()
}

fn in_ranges<T: Copy + Ord>(ranges: &[(T, T)], wanted: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= wanted);
    after.checked_sub(1).is_some_and(|i| wanted <= ranges[i].1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> AccessPolicy {
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        AccessPolicy::compile(&policy::Access { allow: nets(allow), deny: nets(deny) })
    }

    fn permits(policy: &AccessPolicy, address: &str) -> bool {
        policy.permits(address.parse().unwrap())
    }

    #[test]
    fn empty_lists_allow_everybody() {
        let all = policy(&[], &[]);
        assert!(permits(&all, "192.0.2.1"));
        assert!(permits(&all, "2001:db8::1"));
    }

    #[test]
    fn deny_is_looked_at_first() {
        let access = policy(&["10.0.0.0/8"], &["10.1.0.0/16"]);
        assert!(permits(&access, "10.0.0.1"));
        assert!(!permits(&access, "10.1.255.255"));
        assert!(!permits(&access, "192.0.2.1"));
    }

    #[test]
    fn an_ipv4_mapped_address_cannot_slip_past_an_ipv4_rule() {
        let access = policy(&[], &["192.0.2.0/24"]);
        assert!(!permits(&access, "::ffff:192.0.2.7"));
        let allow = policy(&["192.0.2.0/24"], &[]);
        assert!(permits(&allow, "::ffff:192.0.2.7"));
    }

    #[test]
    fn a_mapped_network_in_the_list_means_the_ipv4_one() {
        let access = policy(&[], &["::ffff:192.0.2.0/120"]);
        assert!(!permits(&access, "192.0.2.7"));
        assert!(permits(&access, "192.0.3.7"));
    }

    #[test]
    fn an_allow_list_of_one_family_shuts_out_the_other() {
        let access = policy(&["0.0.0.0/0"], &[]);
        assert!(permits(&access, "255.255.255.255"));
        assert!(!permits(&access, "2001:db8::1"));
        assert!(permits(&policy(&["::/0"], &[]), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }

    #[test]
    fn the_refusal_is_403_and_does_not_echo_the_address() {
        let refusal = policy(&[], &["0.0.0.0/0"]).check("192.0.2.1".parse().unwrap()).unwrap_err();
        assert_eq!(refusal.status(), 403);
        assert!(!refusal.detail.contains("192"));
    }

    /// Few distinct bits, so that networks and addresses meet often.
    fn nets() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (any::<[bool; 4]>(), 0..=32u8).prop_map(|(bits, len)| {
            let octets = bits.map(|bit| if bit { 0b1000_0001 } else { 0 });
            IpNet::new(Ipv4Addr::from(octets).into(), len).unwrap()
        });
        let v6 = (any::<[bool; 16]>(), 0..=128u8)
            .prop_map(|(bits, len)| IpNet::new(Ipv6Addr::from(bits.map(u8::from)).into(), len).unwrap());
        proptest::collection::vec(prop_oneof![v4, v6], 0..12)
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<[bool; 4]>().prop_map(|bits| Ipv4Addr::from(bits.map(|b| if b { 0b1000_0001 } else { 0 })).into()),
            any::<[bool; 16]>().prop_map(|bits| Ipv6Addr::from(bits.map(u8::from)).into()),
            any::<u32>().prop_map(|v4| Ipv4Addr::from(v4).into()),
        ]
    }

    proptest! {
        #[test]
        fn the_compiled_policy_agrees_with_a_scan_of_the_lists(allow in nets(), deny in nets(), address in addresses()) {
            let listed = |list: &[IpNet]| list.iter().any(|net| net.contains(&address));
            let expected = !listed(&deny) && (allow.is_empty() || listed(&allow));
            let policy = AccessPolicy::compile(&policy::Access { allow, deny });
            prop_assert_eq!(policy.permits(address), expected);
        }
    }
}
