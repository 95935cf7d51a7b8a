//! The PROXY protocol, versions 1 and 2: a load balancer in front says whom it speaks for.

use std::{io, net::SocketAddr};

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::transport::SocketAddresses;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1, CRLF included.
const V1_LONGEST: usize = 107;
/// Longer headers of version 2 carry extensions that nobody needs here.
const V2_LONGEST: usize = 4096;

/// Why a connection that must begin with a PROXY header is closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyProtocolError {
    #[error(
        "the connection does not begin with a PROXY header; take its peer off `proxy_protocol_from`, or make it send one"
    )]
    Missing,
    #[error("the PROXY header is malformed")]
    Malformed,
    #[error("the connection ended before the PROXY header did")]
    Io(#[from] io::Error),
}

/// Reads the header, and not a byte more. `None`: the peer speaks for itself (a health check, say).
pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<SocketAddresses>, ProxyProtocolError> {
    let mut header = vec![0; V2_SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_SIGNATURE {
        header.resize(16, 0);
        stream.read_exact(&mut header[12..]).await?;
        let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if length > V2_LONGEST {
            return Err(ProxyProtocolError::Malformed);
        }
        header.resize(16 + length, 0);
        stream.read_exact(&mut header[16..]).await?;
        addresses_v2(&header)
    } else if header.starts_with(b"PROXY ") {
        // Byte by byte: what follows the line is TLS or HTTP and must stay in the socket.
        while !header.ends_with(b"\r\n") {
            if header.len() >= V1_LONGEST {
                return Err(ProxyProtocolError::Malformed);
            }
            header.push(stream.read_u8().await?);
        }
        addresses_v1(&header)
    } else {
        Err(ProxyProtocolError::Missing)
    }
}

fn addresses_v1(header: &[u8]) -> Result<Option<SocketAddresses>, ProxyProtocolError> {
    let header = v1::Header::try_from(header).map_err(|_| ProxyProtocolError::Malformed)?;
    Ok(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(ip) => Some(SocketAddresses {
            peer: SocketAddr::from((ip.source_address, ip.source_port)),
            local: SocketAddr::from((ip.destination_address, ip.destination_port)),
        }),
        v1::Addresses::Tcp6(ip) => Some(SocketAddresses {
            peer: SocketAddr::from((ip.source_address, ip.source_port)),
            local: SocketAddr::from((ip.destination_address, ip.destination_port)),
        }),
    })
}

fn addresses_v2(header: &[u8]) -> Result<Option<SocketAddresses>, ProxyProtocolError> {
    let header = v2::Header::try_from(header).map_err(|_| ProxyProtocolError::Malformed)?;
    if header.command == v2::Command::Local {
        return Ok(None);
    }
    match header.addresses {
        v2::Addresses::IPv4(ip) => Ok(Some(SocketAddresses {
            peer: SocketAddr::from((ip.source_address, ip.source_port)),
            local: SocketAddr::from((ip.destination_address, ip.destination_port)),
        })),
        v2::Addresses::IPv6(ip) => Ok(Some(SocketAddresses {
            peer: SocketAddr::from((ip.source_address, ip.source_port)),
            local: SocketAddr::from((ip.destination_address, ip.destination_port)),
        })),
        v2::Addresses::Unspecified => Ok(None),
        v2::Addresses::Unix(_) => Err(ProxyProtocolError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    async fn read_from(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, ProxyProtocolError>, usize) {
        let result = read(&mut bytes).await;
        (result.map(|found| found.map(|addresses| addresses.peer)), bytes.len())
    }

    #[tokio::test]
    async fn both_versions_name_the_client_and_leave_the_rest_in_the_socket() {
        let (peer, left) = read_from(b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\nGET /").await;
        assert_eq!((peer.unwrap(), left), (Some("192.0.2.7:4711".parse().unwrap()), 5));

        let mut v2 = v2::Builder::with_addresses(
            v2::Version::Two | v2::Command::Proxy,
            v2::Protocol::Stream,
            ("[2001:db8::7]:4711".parse::<SocketAddr>().unwrap(), "[2001:db8::1]:443".parse::<SocketAddr>().unwrap()),
        )
        .write_tlv(v2::Type::NoOp, b"ignored")
        .unwrap()
        .build()
        .unwrap();
        v2.extend_from_slice(b"GET /");
        let (peer, left) = read_from(&v2).await;
        assert_eq!((peer.unwrap(), left), (Some("[2001:db8::7]:4711".parse().unwrap()), 5));
    }

    #[tokio::test]
    async fn a_peer_may_speak_for_itself() {
        assert_eq!(read_from(b"PROXY UNKNOWN\r\n").await.0.unwrap(), None);
        let local = [&V2_SIGNATURE[..], &[0x20, 0x00, 0, 0]].concat();
        assert_eq!(read_from(&local).await.0.unwrap(), None);
    }

    #[tokio::test]
    async fn a_missing_malformed_or_endless_header_is_refused() {
        assert!(matches!(read_from(b"GET / HTTP/1.1\r\n\r\n").await.0, Err(ProxyProtocolError::Missing)));
        let endless = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 500]].concat();
        assert!(matches!(read_from(&endless).await.0, Err(ProxyProtocolError::Malformed)));
        assert!(matches!(read_from(b"PROXY TCP4 nonsense\r\n").await.0, Err(ProxyProtocolError::Malformed)));
        assert!(matches!(read_from(b"PROXY TCP4 1").await.0, Err(ProxyProtocolError::Io(_))));
        let huge = [&V2_SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        assert!(matches!(read_from(&huge).await.0, Err(ProxyProtocolError::Malformed)));
    }
}
