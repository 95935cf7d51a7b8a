//! Addresses of clients, as proxies hand them on: `X-Forwarded-For`, and `Forwarded` (RFC 7239).

use std::net::IpAddr;

/// The address that the first trusted proxy was called from: the last in the list that is not itself one of ours. What
/// stands before it was written by somebody we do not know.
pub fn client<'a>(
    list: impl IntoIterator<Item = &'a str, IntoIter: DoubleEndedIterator>,
    peer: IpAddr,
    trusts: impl Fn(IpAddr) -> bool,
) -> IpAddr {
    let mut client = peer;
    for entry in list.into_iter().rev() {
        let Some(address) = address(entry.trim()) else { break };
        client = address;
        if !trusts(address) {
            break;
        }
    }
    client
}

/// An address, also with a port or in brackets, as some proxies write it.
pub fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|s| s.ip()));
    address.map(|address: IpAddr| address.to_canonical())
}

/// What each element of a `Forwarded` field says in `for`; empty, if it says nothing. Quotes are not looked at: no
/// address needs them for a separator, and a client that opens one must not hide what a proxy appends.
pub fn nodes(field: &str) -> impl DoubleEndedIterator<Item = &str> {
    field.split(',').map(|element| {
        let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
        let mut nodes = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
        // Twice is not allowed (§4), and tells nothing.
        match (nodes.next(), nodes.next()) {
            (Some((_, node)), None) => node.trim().trim_matches('"'),
            _ => "",
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn nodes_are_what_elements_say_in_for() {
        let read = |field| nodes(field).map(address).collect::<Vec<_>>();
        let known = |text: &str| Some(text.parse().unwrap());
        assert_eq!(read("For=192.0.2.60;proto=http;by=203.0.113.43"), [known("192.0.2.60")]);
        assert_eq!(
            read("for=192.0.2.43, for=\"[2001:db8:cafe::17]:4711\""),
            [known("192.0.2.43"), known("2001:db8:cafe::17")]
        );
        assert_eq!(read("for=_hidden, for=unknown, proto=https, for=1.2.3.4;for=1.2.3.4"), [None; 4]);
        assert_eq!(read("for=\"a,for=192.0.2.1;x\", for=192.0.2.2").last(), Some(&known("192.0.2.2")));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_sent_makes_it_fail(field: String, peer: std::net::Ipv4Addr) {
            let peer = IpAddr::from(peer);
            client(nodes(&field), peer, |_| true);
            // The last address that is not trusted is the client, whatever stands before it.
            let list = format!("{field},192.0.2.1,10.0.0.1");
            let found = client(list.split(','), peer, |address| address == IpAddr::from([10, 0, 0, 1]));
            proptest::prop_assert_eq!(found, IpAddr::from([192, 0, 2, 1]));
        }
    }
}
