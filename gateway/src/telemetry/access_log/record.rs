//! What is known of a request when it ends, and the compact form in which it crosses to the writer.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use seiketsu_limits::admission::By as DecidedBy;

use crate::{
    respond::problem::ProblemKind,
    telemetry::metrics::{CacheResult, Label},
};

/// Longer texts are cut. Client input is never longer in the log, whatever the limits on requests are.
const MAX_HOST: usize = 255;
const MAX_PATH: usize = 2048;
const MAX_USER_AGENT: usize = 256;
const MAX_NAME: usize = 128;

/// One request, as the caller has it: borrowed, unformatted. What is not known stays empty.
#[derive(Debug, Clone)]
pub struct AccessRecord<'a> {
    /// When the first byte of the request came.
    pub started: SystemTime,
    /// From then to the last byte of the response.
    pub duration: Duration,
    pub request_id: &'a str,
    pub trace_id: Option<[u8; 16]>,
    pub tenant: &'a str,
    pub route: &'a str,
    pub consumer: &'a str,
    pub client: IpAddr,
    pub method: &'a str,
    pub host: &'a [u8],
    /// The path without its query. Queries are never logged: parameters, their names included, are
    /// where clients put tokens and personal data.
    pub path: &'a [u8],
    pub protocol: http::Version,
    /// As rustls names it (`TLSv1_3`); empty without TLS.
    pub tls: &'a str,
    /// 0: the client left before there was a response.
    pub status: u16,
    /// Body bytes from and to the client.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub refusal: Option<ProblemKind>,
    /// Why it was refused before it was a request, in the words of `seiketsu_early_errors_total`; empty for requests.
    pub early_error: &'a str,
    /// Absent where no cache was asked.
    pub cache: Option<CacheResult>,
    /// Absent where nothing is limited.
    pub limit: Option<LimitRecord<'a>>,
    pub user_agent: &'a [u8],
    pub upstream: Option<UpstreamRecord<'a>>,
}

/// What limits made of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitRecord<'a> {
    /// What they decided with.
    pub by: DecidedBy,
    /// How long that took.
    pub waited: Duration,
    /// The limit that refused it; empty if none did.
    pub refused_by: &'a str,
}

/// The exchange with an upstream; of several attempts, the last.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamRecord<'a> {
    pub name: &'a str,
    pub address: Option<SocketAddr>,
    /// 0: there was no answer.
    pub status: u16,
    /// From the start of the request to the first attempt.
    pub began_after: Duration,
    /// From the first attempt to the end of the last.
    pub duration: Duration,
    pub attempts: u8,
    /// Why there was no answer, or not the whole, in a word; empty if there was.
    pub error: &'a str,
}

impl AccessRecord<'_> {
    /// Appends the record. Numbers are copied as they are, texts with their lengths in front.
    pub(super) fn encode(&self, to: &mut Vec<u8>) {
        let since = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        // Gathered first, so that the buffer grows once for all of it.
        let mut fixed = Fixed::new();
        fixed.put(since.as_secs().to_le_bytes());
        fixed.put(since.subsec_micros().to_le_bytes());
        fixed.put(micros(self.duration));
        fixed.put(self.bytes_in.to_le_bytes());
        fixed.put(self.bytes_out.to_le_bytes());
        fixed.put(self.status.to_le_bytes());
        fixed.put([protocol_number(self.protocol), self.refusal.map_or(NONE, |kind| kind as u8)]);
        fixed.put([self.cache.map_or(NONE, |result| result as u8)]);
        fixed.put(self.trace_id.unwrap_or_default());
        fixed.put_address(Some(self.client));
        to.extend_from_slice(fixed.bytes());
        for (text, limit) in [
            (self.request_id.as_bytes(), MAX_NAME),
            (self.tenant.as_bytes(), MAX_NAME),
            (self.route.as_bytes(), MAX_NAME),
            (self.consumer.as_bytes(), MAX_NAME),
            (self.method.as_bytes(), MAX_NAME),
            (self.host, MAX_HOST),
            (self.path, MAX_PATH),
            (self.tls.as_bytes(), MAX_NAME),
            (self.user_agent, MAX_USER_AGENT),
            (self.early_error.as_bytes(), MAX_NAME),
        ] {
            put_text(to, text, limit);
        }
        match &self.limit {
            None => to.push(NONE),
            Some(limit) => {
                to.push(decided_by_number(limit.by));
                to.extend_from_slice(&micros(limit.waited));
                put_text(to, limit.refused_by.as_bytes(), MAX_NAME);
            }
        }
        let Some(upstream) = &self.upstream else { return to.push(NONE) };
        let mut fixed = Fixed::new();
        fixed.put([upstream.attempts.min(NONE - 1)]);
        fixed.put(upstream.status.to_le_bytes());
        fixed.put(micros(upstream.duration));
        fixed.put_address(upstream.address.map(|address| address.ip()));
        fixed.put(upstream.address.map_or(0, |address| address.port()).to_le_bytes());
        to.extend_from_slice(fixed.bytes());
        put_text(to, upstream.name.as_bytes(), MAX_NAME);
        put_text(to, upstream.error.as_bytes(), MAX_NAME);
    }
}

/// A record as the writer reads it back.
#[derive(Debug, PartialEq)]
pub(super) struct Decoded<'a> {
    pub(super) seconds: u64,
    pub(super) micros: u32,
    pub(super) duration_micros: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) status: u16,
    pub(super) protocol: &'static str,
    pub(super) refusal: Option<ProblemKind>,
    /// Empty where no cache was asked.
    pub(super) cache: &'static str,
    pub(super) limit: Option<DecodedLimit<'a>>,
    pub(super) trace_id: u128,
    pub(super) client: Option<IpAddr>,
    pub(super) request_id: &'a [u8],
    pub(super) tenant: &'a [u8],
    pub(super) route: &'a [u8],
    pub(super) consumer: &'a [u8],
    pub(super) method: &'a [u8],
    pub(super) host: &'a [u8],
    pub(super) path: &'a [u8],
    pub(super) tls: &'a [u8],
    pub(super) user_agent: &'a [u8],
    pub(super) early_error: &'a [u8],
    pub(super) upstream: Option<DecodedUpstream<'a>>,
}

#[derive(Debug, PartialEq)]
pub(super) struct DecodedLimit<'a> {
    pub(super) by: &'static str,
    pub(super) waited_micros: u64,
    pub(super) refused_by: &'a [u8],
}

#[derive(Debug, PartialEq)]
pub(super) struct DecodedUpstream<'a> {
    pub(super) attempts: u8,
    pub(super) status: u16,
    pub(super) duration_micros: u64,
    pub(super) address: Option<SocketAddr>,
    pub(super) name: &'a [u8],
    pub(super) error: &'a [u8],
}

impl<'a> Decoded<'a> {
    /// Takes one record from the front; none when nothing is left.
    pub(super) fn take(from: &mut &'a [u8]) -> Option<Self> {
        let mut record = Self {
            seconds: u64::from_le_bytes(take(from)?),
            micros: u32::from_le_bytes(take(from)?),
            duration_micros: u64::from_le_bytes(take(from)?),
            bytes_in: u64::from_le_bytes(take(from)?),
            bytes_out: u64::from_le_bytes(take(from)?),
            status: u16::from_le_bytes(take(from)?),
            protocol: PROTOCOLS.get(usize::from(take::<1>(from)?[0])).copied().unwrap_or_default(),
            refusal: ProblemKind::ALL.get(usize::from(take::<1>(from)?[0])).copied(),
            cache: CacheResult::VALUES.get(usize::from(take::<1>(from)?[0])).copied().unwrap_or_default(),
            trace_id: u128::from_be_bytes(take(from)?),
            client: take_address(from)?,
            request_id: take_text(from)?,
            tenant: take_text(from)?,
            route: take_text(from)?,
            consumer: take_text(from)?,
            method: take_text(from)?,
            host: take_text(from)?,
            path: take_text(from)?,
            tls: take_text(from)?,
            user_agent: take_text(from)?,
            early_error: take_text(from)?,
            limit: None,
            upstream: None,
        };
        let [by] = take(from)?;
        if by != NONE {
            record.limit = Some(DecodedLimit {
                by: DECIDED_BY.get(usize::from(by)).copied().unwrap_or_default(),
                waited_micros: u64::from_le_bytes(take(from)?),
                refused_by: take_text(from)?,
            });
        }
        let [attempts] = take(from)?;
        if attempts != NONE {
            record.upstream = Some(DecodedUpstream {
                attempts,
                status: u16::from_le_bytes(take(from)?),
                duration_micros: u64::from_le_bytes(take(from)?),
                address: {
                    let ip = take_address(from)?;
                    let port = u16::from_le_bytes(take(from)?);
                    ip.map(|ip| SocketAddr::new(ip, port))
                },
                name: take_text(from)?,
                error: take_text(from)?,
            });
        }
        Some(record)
    }
}

/// Stands for "absent" where a small number is expected.
const NONE: u8 = u8::MAX;
const _: () = assert!(ProblemKind::COUNT < NONE as usize);

const DECIDED_BY: [&str; 3] = ["lease", "coordinator", "alone"];

fn decided_by_number(by: DecidedBy) -> u8 {
    match by {
        DecidedBy::Lease => 0,
        DecidedBy::Coordinator => 1,
        DecidedBy::Alone => 2,
    }
}

const PROTOCOLS: [&str; 5] = ["", "HTTP/1.0", "HTTP/1.1", "HTTP/2", "HTTP/3"];

fn protocol_number(version: http::Version) -> u8 {
    match version {
        http::Version::HTTP_10 => 1,
        http::Version::HTTP_11 => 2,
        http::Version::HTTP_2 => 3,
        http::Version::HTTP_3 => 4,
        _ => 0,
    }
}

fn micros(duration: Duration) -> [u8; 8] {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).to_le_bytes()
}

fn put_text(to: &mut Vec<u8>, text: &[u8], limit: usize) {
    let text = &text[..text.len().min(limit)];
    #[allow(clippy::cast_possible_truncation, reason = "every limit is below 65536")]
    to.extend_from_slice(&(text.len() as u16).to_le_bytes());
    to.extend_from_slice(text);
}

/// The numbers of a record, one behind the other.
struct Fixed {
    bytes: [u8; 80],
    length: usize,
}

impl Fixed {
    fn new() -> Self {
        Self { bytes: [0; 80], length: 0 }
    }

    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.length..self.length + N].copy_from_slice(&bytes);
        self.length += N;
    }

    fn put_address(&mut self, address: Option<IpAddr>) {
        match address {
            None => self.put([0]),
            Some(IpAddr::V4(v4)) => {
                self.put([4]);
                self.put(v4.octets());
            }
            Some(IpAddr::V6(v6)) => {
                self.put([6]);
                self.put(v6.octets());
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (bytes, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*bytes)
}

fn take_text<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_le_bytes(take(from)?));
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(text)
}

/// The outer absence is the end of the input, the inner one an address that is not known.
#[allow(clippy::option_option, reason = "two kinds of absence, as said above")]
fn take_address(from: &mut &[u8]) -> Option<Option<IpAddr>> {
    Some(match take::<1>(from)? {
        [4] => Some(IpAddr::from(take::<4>(from)?)),
        [6] => Some(IpAddr::from(take::<16>(from)?)),
        _ => None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn example() -> AccessRecord<'static> {
        AccessRecord {
            started: UNIX_EPOCH + Duration::from_micros(1_763_882_695_042_007),
            duration: Duration::from_micros(12_345),
            request_id: "01997b2c-5d0e-7c3a-9b1e-2f6d8a4c0e11",
            trace_id: Some(0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes()),
            tenant: "acme",
            route: "echo",
            consumer: "billing",
            client: "192.0.2.7".parse().unwrap(),
            method: "GET",
            host: b"acme.localhost",
            path: b"/v1/echo",
            protocol: http::Version::HTTP_2,
            tls: "TLSv1_3",
            status: 503,
            bytes_in: 0,
            bytes_out: 312,
            refusal: Some(ProblemKind::UpstreamUnavailable),
            early_error: "",
            cache: Some(CacheResult::Miss),
            limit: Some(LimitRecord { by: DecidedBy::Coordinator, waited: Duration::from_micros(812), refused_by: "" }),
            user_agent: b"curl/8.9.1",
            upstream: Some(UpstreamRecord {
                name: "demo",
                address: Some("[2001:db8::1]:9001".parse().unwrap()),
                status: 0,
                began_after: Duration::from_micros(90),
                duration: Duration::from_micros(11_900),
                attempts: 3,
                error: "expired",
            }),
        }
    }

    #[test]
    fn a_record_comes_out_as_it_went_in() {
        let mut buffer = Vec::new();
        example().encode(&mut buffer);
        AccessRecord { upstream: None, refusal: None, cache: None, limit: None, trace_id: None, ..example() }
            .encode(&mut buffer);
        let mut rest = &buffer[..];
        let (first, second) = (Decoded::take(&mut rest).unwrap(), Decoded::take(&mut rest).unwrap());
        assert!(rest.is_empty() && Decoded::take(&mut rest).is_none());
        assert_eq!((first.seconds, first.micros, first.duration_micros), (1_763_882_695, 42_007, 12_345));
        assert_eq!((first.protocol, first.refusal), ("HTTP/2", Some(ProblemKind::UpstreamUnavailable)));
        assert_eq!(first.client, Some("192.0.2.7".parse().unwrap()));
        let upstream = first.upstream.unwrap();
        assert_eq!((upstream.address, upstream.attempts), (Some("[2001:db8::1]:9001".parse().unwrap()), 3));
        assert_eq!((second.upstream, second.refusal, second.trace_id), (None, None, 0));
        assert_eq!((first.cache, second.cache), ("miss", ""));
    }

    proptest! {
        #[test]
        fn any_record_comes_out_as_it_went_in(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 3),
            names in prop::collection::vec(".{0,40}", 3),
            numbers in any::<(u16, u64, u64, u32, u8)>(),
        ) {
            let (status, bytes_in, bytes_out, millis, attempts) = numbers;
            let upstream = UpstreamRecord { name: &names[2], status, attempts, ..example().upstream.unwrap() };
            let record = AccessRecord {
                host: &texts[0], path: &texts[1], user_agent: &texts[2],
                tenant: &names[0], consumer: &names[1],
                status, bytes_in, bytes_out,
                duration: Duration::from_millis(millis.into()),
                upstream: Some(upstream),
                ..example()
            };
            let mut buffer = Vec::new();
            record.encode(&mut buffer);
            record.encode(&mut buffer);
            let mut rest = &buffer[..];
            for _ in 0..2 {
                let decoded = Decoded::take(&mut rest).unwrap();
                prop_assert_eq!(decoded.host, &texts[0][..texts[0].len().min(MAX_HOST)]);
                prop_assert_eq!(decoded.path, &texts[1][..]);
                prop_assert_eq!(decoded.user_agent, &texts[2][..texts[2].len().min(MAX_USER_AGENT)]);
                prop_assert_eq!(decoded.tenant, &names[0].as_bytes()[..names[0].len().min(MAX_NAME)]);
                prop_assert_eq!((decoded.status, decoded.bytes_in, decoded.bytes_out), (status, bytes_in, bytes_out));
                prop_assert_eq!(decoded.upstream.unwrap().attempts, attempts.min(NONE - 1));
            }
            prop_assert!(rest.is_empty());
        }
    }
}
