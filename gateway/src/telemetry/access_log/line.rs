//! One record as one line of JSON.

use std::net::{IpAddr, SocketAddr};

use time::OffsetDateTime;

use super::record::Decoded;

/// Writes lines. Times that share a second share its text.
///
/// A line is written for every request, so the common case is kept cheap: keys are constants, numbers
/// are written digit by digit, and text without anything to escape is copied as it is.
pub(super) struct LineFormat {
    node: Box<str>,
    second: u64,
    /// `2026-11-23T07:24:55.042007Z`
    timestamp: [u8; 27],
}

impl LineFormat {
    pub(super) fn new(node: &str) -> Self {
        let mut format = Self { node: node.into(), second: 0, timestamp: *b"1970-01-01T00:00:00.000000Z" };
        format.set_second(0);
        format
    }

    /// Appends the line, with its line break. What is empty is left out, so that most lines are short.
    pub(super) fn write(&mut self, record: &Decoded<'_>, to: &mut Vec<u8>) {
        if record.seconds != self.second {
            self.set_second(record.seconds);
        }
        put_digits(&mut self.timestamp[20..26], record.micros);
        to.extend_from_slice(br#"{"time":""#);
        to.extend_from_slice(&self.timestamp);
        to.push(b'"');
        put_text(to, br#","request_id":"#, record.request_id);
        if record.trace_id != 0 {
            put_text(to, br#","trace_id":"#, &hexadecimal(record.trace_id));
        }
        put_text(to, br#","node":"#, self.node.as_bytes());
        put_text_unless_empty(to, br#","tenant":"#, record.tenant);
        put_text_unless_empty(to, br#","route":"#, record.route);
        put_text_unless_empty(to, br#","consumer":"#, record.consumer);
        if let Some(client) = record.client {
            to.extend_from_slice(br#","client":""#);
            put_address(to, client);
            to.push(b'"');
        }
        put_text(to, br#","method":"#, record.method);
        put_text(to, br#","host":"#, record.host);
        put_text(to, br#","path":"#, record.path);
        put_text(to, br#","protocol":"#, record.protocol.as_bytes());
        put_text_unless_empty(to, br#","tls":"#, record.tls);
        put_number(to, br#","status":"#, record.status.into());
        put_number(to, br#","bytes_in":"#, record.bytes_in);
        put_number(to, br#","bytes_out":"#, record.bytes_out);
        put_millis(to, br#","duration_ms":"#, record.duration_micros);
        if let Some(refusal) = record.refusal {
            put_text(to, br#","refusal":"#, refusal.name().as_bytes());
        }
        put_text_unless_empty(to, br#","early_error":"#, record.early_error);
        put_text_unless_empty(to, br#","cache":"#, record.cache.as_bytes());
        if let Some(limit) = &record.limit {
            put_text(to, br#","limit":{"by":"#, limit.by.as_bytes());
            put_millis(to, br#","wait_ms":"#, limit.waited_micros);
            put_text_unless_empty(to, br#","refused_by":"#, limit.refused_by);
            to.push(b'}');
        }
        put_text_unless_empty(to, br#","user_agent":"#, record.user_agent);
        if let Some(upstream) = &record.upstream {
            put_text(to, br#","upstream":{"name":"#, upstream.name);
            if let Some(address) = upstream.address {
                to.extend_from_slice(br#","address":""#);
                put_socket_address(to, address);
                to.push(b'"');
            }
            put_number(to, br#","status":"#, upstream.status.into());
            put_millis(to, br#","duration_ms":"#, upstream.duration_micros);
            put_number(to, br#","attempts":"#, upstream.attempts.into());
            put_text_unless_empty(to, br#","error":"#, upstream.error);
            to.push(b'}');
        }
        to.extend_from_slice(b"}\n");
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

fn put_text_unless_empty(to: &mut Vec<u8>, key: &[u8], text: &[u8]) {
    if !text.is_empty() {
        put_text(to, key, text);
    }
}

/// A JSON string (RFC 8259 §7). Bytes that are not UTF-8 become U+FFFD; JSON has no other way.
#[allow(clippy::needless_bitwise_bool)] // `&` has no branch.
fn put_text(to: &mut Vec<u8>, key: &[u8], text: &[u8]) {
    to.extend_from_slice(key);
    // Looks at every byte, also behind one that is not plain: without a way out the compiler compares many at a time.
    if text.iter().fold(true, |plain, b| plain & matches!(b, b' '..=b'~') & (*b != b'"') & (*b != b'\\')) {
        to.push(b'"');
        to.extend_from_slice(text);
        to.push(b'"');
    } else {
        // Writing into memory cannot fail, and a string can always be written.
        let _ = serde_json::to_writer(to, &String::from_utf8_lossy(text));
    }
}

fn put_number(to: &mut Vec<u8>, key: &[u8], mut number: u64) {
    to.extend_from_slice(key);
    let mut digits = [0; 20];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = digit(number % 10);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    to.extend_from_slice(&digits[first..]);
}

/// Milliseconds with three decimals.
fn put_millis(to: &mut Vec<u8>, key: &[u8], micros: u64) {
    put_number(to, key, micros / 1000);
    let rest = micros % 1000;
    to.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10 % 10), digit(rest % 10)]);
}

fn put_address(to: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            put_number(to, b"", a.into());
            put_number(to, b".", b.into());
            put_number(to, b".", c.into());
            put_number(to, b".", d.into());
        }
        IpAddr::V6(v6) => to.extend_from_slice(v6.to_string().as_bytes()),
    }
}

fn put_socket_address(to: &mut Vec<u8>, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => {
            put_address(to, IpAddr::V4(*v4.ip()));
            put_number(to, b":", v4.port().into());
        }
        SocketAddr::V6(v6) => to.extend_from_slice(v6.to_string().as_bytes()),
    }
}

/// A trace id in the form that it has in `traceparent`.
fn hexadecimal(id: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (index, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(id >> (124 - 4 * index) & 15) as usize];
    }
    digits
}

fn put_digits(to: &mut [u8], mut number: u32) {
    for place in to.iter_mut().rev() {
        *place = digit((number % 10).into());
        number /= 10;
    }
}

#[allow(clippy::cast_possible_truncation, reason = "a digit is below ten")]
fn digit(value: u64) -> u8 {
    b'0' + value as u8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use time::format_description::well_known::Rfc3339;

    use super::{
        super::record::{AccessRecord, UpstreamRecord, tests::example},
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
                r#"{"time":"2025-11-23T07:24:55.042007Z","request_id":"01997b2c-5d0e-7c3a-9b1e-2f6d8a4c0e11","#,
                r#""trace_id":"0af7651916cd43dd8448eb211c80319c","node":"gateway-1","tenant":"acme","#,
                r#""route":"echo","consumer":"billing","client":"192.0.2.7","method":"GET","#,
                r#""host":"acme.localhost","path":"/v1/echo","protocol":"HTTP/2","tls":"TLSv1_3","status":503,"#,
                r#""bytes_in":0,"bytes_out":312,"duration_ms":12.345,"refusal":"upstream-unavailable","#,
                r#""cache":"miss","limit":{"by":"coordinator","wait_ms":0.812},"user_agent":"curl/8.9.1","upstream":{"name":"demo","address":"[2001:db8::1]:9001","#,
                r#""status":0,"duration_ms":11.900,"attempts":3,"error":"expired"}}"#,
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
            cache: None,
            limit: None,
            user_agent: b"",
            upstream: None,
            ..example()
        };
        let line: serde_json::Value = serde_json::from_str(&line_of(&bare)).unwrap();
        let object = line.as_object().unwrap();
        for absent in
            ["trace_id", "tenant", "route", "consumer", "tls", "refusal", "cache", "limit", "user_agent", "upstream"]
        {
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
        fn numbers_and_addresses_read_back(
            bytes in any::<u64>(), micros in any::<u32>(), v4 in any::<[u8; 4]>(), v6 in any::<[u16; 8]>(), port in any::<u16>(),
        ) {
            let upstream = UpstreamRecord { address: Some((v4, port).into()), ..example().upstream.unwrap() };
            let duration = Duration::from_micros(micros.into());
            let record = AccessRecord {
                bytes_in: bytes, duration, client: v6.into(), upstream: Some(upstream), ..example()
            };
            let parsed: serde_json::Value = serde_json::from_str(&line_of(&record)).unwrap();
            prop_assert_eq!(parsed["bytes_in"].as_u64(), Some(bytes));
            prop_assert!((parsed["duration_ms"].as_f64().unwrap() - f64::from(micros) / 1000.0).abs() < 1e-6);
            prop_assert_eq!(parsed["client"].as_str().unwrap().parse::<IpAddr>().unwrap(), IpAddr::from(v6));
            let address = parsed["upstream"]["address"].as_str().unwrap();
            prop_assert_eq!(address.parse::<SocketAddr>().unwrap(), SocketAddr::from((v4, port)));
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
