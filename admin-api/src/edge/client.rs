//! Who the client is, when proxies are in front.

use std::net::IpAddr;

use http::{HeaderMap, header::FORWARDED};
use ipnet::IpNet;
use seiketsu_config::forwarded;

/// The client's address: that of the peer, unless the peer is a proxy that is trusted. Then it is the last address that such
/// a proxy was called from and that is none of theirs. A proxy writes one of the two fields, and may hand on what a client
/// wrote into the other: where both are there and disagree, neither is believed.
pub(crate) fn client(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let trusts = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
    if !trusts(peer) {
        return peer;
    }
    let lines = |name| headers.get_all(name).iter().filter_map(|line| line.to_str().ok()).collect::<Vec<_>>();
    let (listed, elements) = (lines(http::HeaderName::from_static("x-forwarded-for")), lines(FORWARDED));
    let of_list = forwarded::client(listed.iter().flat_map(|line| line.split(',')), peer, trusts);
    let of_elements = forwarded::client(elements.iter().flat_map(|line| forwarded::nodes(line)), peer, trusts);
    match (listed.is_empty(), elements.is_empty()) {
        (_, true) => of_list,
        (true, false) => of_elements,
        (false, false) if of_list == of_elements => of_list,
        (false, false) => peer,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn only_trusted_proxies_say_who_the_client_is() {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, fields, expected) in [
            ("10.0.0.1", &[("x-forwarded-for", "192.0.2.1")][..], "192.0.2.1"),
            ("::ffff:10.0.0.1", &[("x-forwarded-for", "192.0.2.1")], "192.0.2.1"),
            // What stands before the last address that is not theirs was written by the client.
            ("10.0.0.1", &[("x-forwarded-for", "198.51.100.7, 192.0.2.1, 10.9.9.9")], "192.0.2.1"),
            ("10.0.0.1", &[("x-forwarded-for", "198.51.100.7"), ("x-forwarded-for", "192.0.2.1")], "192.0.2.1"),
            ("fd00::1", &[("forwarded", "for=\"[2001:db8::7]:4711\";proto=https")], "2001:db8::7"),
            ("10.0.0.1", &[("forwarded", "for=198.51.100.7, for=192.0.2.1;by=10.0.0.2")], "192.0.2.1"),
            ("10.0.0.1", &[("forwarded", "for=192.0.2.1"), ("x-forwarded-for", "192.0.2.1")], "192.0.2.1"),
            // One of them is the client's own.
            ("10.0.0.1", &[("forwarded", "for=198.51.100.7"), ("x-forwarded-for", "192.0.2.1")], "10.0.0.1"),
            ("10.0.0.1", &[("x-forwarded-for", "nonsense")], "10.0.0.1"),
            ("10.0.0.1", &[("forwarded", "for=unknown")], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("192.0.2.9", &[("x-forwarded-for", "198.51.100.7"), ("forwarded", "for=198.51.100.7")], "192.0.2.9"),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            assert_eq!(client(&headers, peer.parse().unwrap(), &trusted).to_string(), expected, "{peer} {fields:?}");
        }
    }
}
