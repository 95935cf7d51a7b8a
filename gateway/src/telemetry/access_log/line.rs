//! One record as one line of JSON.

use std::{borrow::Cow, net::SocketAddr};

use serde::Serialize;
use time::OffsetDateTime;

use super::record::Decoded;

/// Writes lines. Times that share a second share its text.
pub(super) struct LineFormat {
    node: Box<str>,
    second: u64,
    /// `2026-11-23T07:24:55.` and room for the milliseconds and `Z`.
    timestamp: [u8; 24],
}

impl LineFormat {
    pub(super) fn new(node: &str) -> Self {
        let mut format = Self { node: node.into(), second: 0, timestamp: *b"1970-01-01T00:00:00.000Z" };
        format.set_second(0);
        format
    }

    /// Appends the line, with its line break.
    pub(super) fn write(&mut self, record: &Decoded<'_>, to: &mut Vec<u8>) {
        if record.seconds != self.second {
            self.set_second(record.seconds);
        }
        put_digits(&mut self.timestamp[20..23], record.millis);
        let line = Line {
            time: text(&self.timestamp),
            request_id: text(record.request_id),
            trace_id: Hex::of(record.trace_id),
            node: &self.node,
            tenant: text(record.tenant),
            route: text(record.route),
            consumer: text(record.consumer),
            client: record.client,
            method: text(record.method),
            host: text(record.host),
            path: text(record.path),
            protocol: record.protocol,
            tls: text(record.tls),
            status: record.status,
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
            duration_ms: millis(record.duration_micros),
            refusal: record.refusal.map(crate::respond::problem::ProblemKind::name),
            user_agent: text(record.user_agent),
            upstream: record.upstream.as_ref().map(|upstream| UpstreamPart {
                name: text(upstream.name),
                address: upstream.address,
                status: upstream.status,
                duration_ms: millis(upstream.duration_micros),
                attempts: upstream.attempts,
            }),
        };
        // Writing into memory cannot fail, and no value of the line can either.
        let _ = serde_json::to_writer(&mut *to, &line);
        to.push(b'\n');
    }

    fn set_second(&mut self, second: u64) {
        self.second = second;
        let time = i64::try_from(second).ok().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok());
        let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        for (at, length, number) in [
            (0, 4, time.year().unsigned_abs()),
            (5, 2, u8::from(time.month()).into()),
            (8, 2, time.day().into()),
            (11, 2, time.hour().into()),
            (14, 2, time.minute().into()),
            (17, 2, time.second().into()),
        ] {
            put_digits(&mut self.timestamp[at..at + length], number);
        }
    }
}

/// The fields in their order; what is empty is left out, so that most lines are short.
#[derive(Serialize)]
struct Line<'a> {
    time: Cow<'a, str>,
    request_id: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Hex>,
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tenant: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    consumer: Cow<'a, str>,
    client: Option<std::net::IpAddr>,
    method: Cow<'a, str>,
    host: Cow<'a, str>,
    path: Cow<'a, str>,
    protocol: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    tls: Cow<'a, str>,
    status: u16,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<UpstreamPart<'a>>,
}

#[derive(Serialize)]
struct UpstreamPart<'a> {
    name: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<SocketAddr>,
    status: u16,
    duration_ms: f64,
    attempts: u8,
}

/// A trace id in the hexadecimal form of `traceparent`.
struct Hex([u8; 32]);

impl Hex {
    fn of(id: u128) -> Option<Self> {
        if id == 0 {
            return None;
        }
        let mut digits = [0; 32];
        for (index, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(id >> (124 - 4 * index)) as usize & 15];
        }
        Some(Self(digits))
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&text(&self.0))
    }
}

/// Bytes that are not UTF-8 become U+FFFD; JSON has no other way.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Microseconds as milliseconds.
fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

fn put_digits(to: &mut [u8], mut number: u32) {
    for digit in to.iter_mut().rev() {
        #[allow(clippy::cast_possible_truncation, reason = "a remainder of ten")]
        {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use time::format_description::well_known::Rfc3339;

    use super::{
        super::record::{AccessRecord, tests::example},
        *,
    };

    fn line_of(record: &AccessRecord<'_>) -> String {
        let (mut buffer, mut line) = (Vec::new(), Vec::new());
        record.encode(&mut buffer);
        LineFormat::new("gateway-1").write(&Decoded::take(&mut &buffer[..]).unwrap(), &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn a_line_has_all_fields_in_their_order() {
        assert_eq!(
            line_of(&example()),
            concat!(
                r#"{"time":"2025-11-23T07:24:55.042Z","request_id":"01997b2c-5d0e-7c3a-9b1e-2f6d8a4c0e11","#,
                r#""trace_id":"0af7651916cd43dd8448eb211c80319c","node":"gateway-1","tenant":"acme","#,
                r#""route":"echo","consumer":"billing","client":"192.0.2.7","method":"GET","#,
                r#""host":"acme.localhost","path":"/v1/echo","protocol":"HTTP/2","tls":"TLSv1_3","status":503,"#,
                r#""bytes_in":0,"bytes_out":312,"duration_ms":12.345,"refusal":"upstream-unavailable","#,
                r#""user_agent":"curl/8.9.1","upstream":{"name":"demo","address":"[2001:db8::1]:9001","#,
                r#""status":0,"duration_ms":11.9,"attempts":3}}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let bare = AccessRecord {
            trace_id: None,
            tenant: "",
            route: "",
            consumer: "",
            tls: "",
            refusal: None,
            user_agent: b"",
            upstream: None,
            ..example()
        };
        let line: serde_json::Value = serde_json::from_str(&line_of(&bare)).unwrap();
        let object = line.as_object().unwrap();
        for absent in ["trace_id", "tenant", "route", "consumer", "tls", "refusal", "user_agent", "upstream"] {
            assert!(!object.contains_key(absent), "{absent}");
        }
        assert_eq!(object["status"], 503);
    }

    #[test]
    fn nothing_a_client_sends_makes_a_line_longer_than_its_bound() {
        let long = vec![0x01; 100_000];
        let line = line_of(&AccessRecord { host: &long, path: &long, user_agent: &long, ..example() });
        assert!(line.len() < 17_000, "{}", line.len());
    }

    proptest! {
        #[test]
        fn any_bytes_make_one_valid_line(
            path in prop::collection::vec(any::<u8>(), 0..200),
            user_agent in any::<String>(),
        ) {
            let line = line_of(&AccessRecord { path: &path, user_agent: user_agent.as_bytes(), ..example() });
            prop_assert_eq!(line.matches('\n').count(), 1);
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(parsed["path"].as_str().unwrap(), String::from_utf8_lossy(&path));
            if user_agent.len() <= 256 {
                prop_assert_eq!(parsed["user_agent"].as_str().unwrap_or_default(), user_agent);
            }
        }

        #[test]
        fn the_time_is_rfc_3339(millis in 0..253_402_300_799_999_u64) {
            let line = line_of(&AccessRecord { started: UNIX_EPOCH + Duration::from_millis(millis), ..example() });
            let parsed: serde_json::Value = serde_json::from_str(&line).unwrap();
            let time = OffsetDateTime::parse(parsed["time"].as_str().unwrap(), &Rfc3339).unwrap();
            prop_assert_eq!(time.unix_timestamp_nanos(), i128::from(millis) * 1_000_000);
        }
    }
}
