//! Which addresses the gateway may connect to.
//!
//! Upstreams, JWKS and webhooks are named by tenants, so a name could be made to point at the node
//! itself, its neighbours or the cloud's metadata service (server-side request forgery). Every address
//! is therefore checked where it is used, after resolution, and again for each new answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use seiketsu_config::node::Egress;

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("{0} is a loopback address; set egress.allow_loopback on the node to allow these")]
    Loopback(IpAddr),
    #[error("{0} is a private address; set egress.allow_private on the node to allow these")]
    Private(IpAddr),
    #[error("{0} is a link-local or metadata address; the gateway never connects to these")]
    LinkLocalOrMetadata(IpAddr),
    #[error("{0} is not the address of one host on a real network; use the service's own address")]
    NotAHost(IpAddr),
}

/// The node's policy; loopback and private ranges are denied by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    pub allow_loopback: bool,
    pub allow_private: bool,
}

impl From<&Egress> for EgressPolicy {
    fn from(egress: &Egress) -> Self {
        Self { allow_loopback: egress.allow_loopback, allow_private: egress.allow_private }
    }
}

impl EgressPolicy {
    /// Judges an address. One that carries an IPv4 address inside (mapped, translated, NAT64, 6to4, compatible) is
    /// judged by that address, since that is where the packets go.
    pub fn check(self, address: IpAddr) -> Result<(), Denied> {
        let class = match address {
            IpAddr::V4(v4) => classify_v4(v4),
            IpAddr::V6(v6) => embedded_v4(v6).map_or_else(|| classify_v6(v6), classify_v4),
        };
        match class {
            Class::Public => Ok(()),
            Class::Loopback if self.allow_loopback => Ok(()),
            Class::Private if self.allow_private => Ok(()),
            Class::Loopback => Err(Denied::Loopback(address)),
            Class::Private => Err(Denied::Private(address)),
            Class::LinkLocalOrMetadata => Err(Denied::LinkLocalOrMetadata(address)),
            Class::NotAHost => Err(Denied::NotAHost(address)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Public,
    Loopback,
    Private,
    LinkLocalOrMetadata,
    NotAHost,
}

/// Metadata services outside the link-local range: Alibaba Cloud and the Azure host.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];

/// Metadata services on IPv6: Google Cloud, Oracle, Scaleway, Linode and Alibaba Cloud.
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
];

/// The IANA special-purpose registry (RFC 6890), as far as it matters for connecting.
fn classify_v4(address: Ipv4Addr) -> Class {
    if METADATA_V4.contains(&address) {
        return Class::LinkLocalOrMetadata;
    }
    match address.octets() {
        [127, ..] => Class::Loopback,
        [169, 254, ..] => Class::LinkLocalOrMetadata,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Private,
        // "This network", IETF protocol assignments, documentation, relays of 6to4 (RFC 7526), benchmarks,
        // multicast, reserved.
        [0 | 224..=255, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [198, 18 | 19, ..] => Class::NotAHost,
        _ => Class::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    if METADATA_V6.contains(&address) {
        return Class::LinkLocalOrMetadata;
    }
    let segments = address.segments();
    match segments[0] {
        _ if address.is_loopback() => Class::Loopback,
        _ if address.is_unspecified() || address.is_multicast() => Class::NotAHost,
        0x64 if segments[1..3] == [0xff9b, 1] => classify_local_translation(address),
        // fe80::/10 link-local and fec0::/10, its deprecated site-local neighbour.
        0xfe80..=0xfeff => Class::LinkLocalOrMetadata,
        // fd00:ec2::/32: metadata, credentials and whatever else AWS has for its machines.
        0xfd00 if segments[1] == 0xec2 => Class::LinkLocalOrMetadata,
        0xfc00..=0xfdff => Class::Private,
        // Discard (100::/64), Teredo (2001::/32), documentation (2001:db8::/32, 3fff::/20).
        0x0100 if segments[1..4] == [0, 0, 0] => Class::NotAHost,
        0x2001 if matches!(segments[1], 0 | 0x0db8) => Class::NotAHost,
        0x3fff if segments[1] < 0x1000 => Class::NotAHost,
        _ => Class::Public,
    }
}

/// `64:ff9b:1::/48` (RFC 8215) leads to wherever a network of the operator's own translates it. Which of its bytes are the
/// IPv4 address depends on the length of the prefix there (RFC 6052 §2.2); none of them may make it a metadata service.
fn classify_local_translation(address: Ipv6Addr) -> Class {
    let octets = address.octets();
    let at = |places: [usize; 4]| classify_v4(Ipv4Addr::from(places.map(|place| octets[place])));
    let embedded = [[6, 7, 9, 10], [7, 9, 10, 11], [9, 10, 11, 12], [12, 13, 14, 15]];
    if embedded.into_iter().any(|places| at(places) == Class::LinkLocalOrMetadata) {
        return Class::LinkLocalOrMetadata;
    }
    Class::Private
}

/// The IPv4 address that an IPv6 address stands for, if it does: `::ffff:0:0/96` (RFC 4291 §2.5.5.2),
/// `::ffff:0:0:0/96` (RFC 2765 §2.1), `64:ff9b::/96` (RFC 6052), `2002::/16` (RFC 3056), and the
/// deprecated `::/96` (RFC 4291 §2.5.5.1) without `::` and `::1`.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let from = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => Some(from(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => Some(from(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const OPEN: EgressPolicy = EgressPolicy { allow_loopback: true, allow_private: true };

    fn allowed(policy: EgressPolicy, address: &str) -> bool {
        policy.check(address.parse().unwrap()).is_ok()
    }

    #[test]
    fn metadata_and_link_local_are_denied_whatever_the_node_allows() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd00:ec2:1::1",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "fd00:42::42",
            "fd00:a9fe:a9fe::1",
            "fd00:100::100:200",
            "fe80::1",
            "fec0::1",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00:808:808",
            "64:ff9b:1:a9:fe:a9fe:808:808",
            "64:ff9b:1:1:a9:fea9:fe08:808",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
        ] {
            assert!(!allowed(OPEN, address), "{address}");
        }
    }

    #[test]
    fn addresses_that_are_no_host_are_denied() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.7",
            "198.51.100.7",
            "203.0.113.7",
            "198.18.0.1",
            "192.0.0.8",
            "192.88.99.1",
            "::",
            "ff02::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
            "2001::1",
        ] {
            assert!(!allowed(OPEN, address), "{address}");
        }
    }

    #[test]
    fn loopback_and_private_need_the_nodes_consent() {
        let loopback = EgressPolicy { allow_loopback: true, allow_private: false };
        let private = EgressPolicy { allow_loopback: false, allow_private: true };
        for address in ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "::ffff:0:127.0.0.1"] {
            assert!(allowed(loopback, address), "{address}");
            assert!(!allowed(private, address), "{address}");
        }
        for address in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.9.9",
            "192.168.1.1",
            "100.64.0.1",
            "fc00::1",
            "fd12::1",
            "64:ff9b:1::808:808",
        ] {
            assert!(allowed(private, address), "{address}");
            assert!(!allowed(loopback, address), "{address}");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for address in [
            "1.1.1.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2001:4860::8888",
        ] {
            assert!(allowed(EgressPolicy::default(), address), "{address}");
        }
    }

    proptest! {
        #[test]
        fn a_mapped_address_is_judged_like_the_one_inside(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            for policy in [EgressPolicy::default(), OPEN] {
                let mapped = policy.check(v4.to_ipv6_mapped().into()).is_ok();
                prop_assert_eq!(policy.check(v4.into()).is_ok(), mapped);
            }
        }
    }
}
