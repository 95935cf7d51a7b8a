//! Whole seconds, as HTTP counts them: dates (RFC 9110 §5.6.7) and delta-seconds (RFC 9111 §1.2.2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName};

/// Seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_unix(seconds: u64) -> Self {
        Self(seconds)
    }

    pub const fn unix(self) -> u64 {
        self.0
    }

    /// Seconds that have passed since then; none if it lies ahead.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    pub fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0)
    }

    /// As a field has it: `Sun, 06 Nov 1994 08:49:37 GMT`.
    pub fn to_http(self) -> String {
        httpdate::fmt_http_date(self.to_system_time())
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
    }
}

/// What a field that holds one date says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Date {
    Absent,
    /// No date, or several that differ.
    Malformed,
    At(Timestamp),
}

/// Reads a field that holds one date. One that is sent twice with the same value counts once.
pub fn date(headers: &HeaderMap, name: &HeaderName) -> Date {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return Date::Absent };
    if values.any(|value| value != first) {
        return Date::Malformed;
    }
    // Names of days and months are case-sensitive, and GMT is the only zone (RFC 9110 §5.6.7).
    let parsed = first.to_str().ok().map(str::trim).and_then(|text| httpdate::parse_http_date(text).ok());
    parsed.map_or(Date::Malformed, |time| Date::At(time.into()))
}

/// The most that is told apart: larger values mean this much (RFC 9111 §1.2.2).
pub const MOST_SECONDS: u64 = 1 << 31;

/// Reads delta-seconds.
pub fn delta_seconds(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(text.iter().fold(0, add).min(MOST_SECONDS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderValue, header};

    use super::*;

    fn expires(values: &[&str]) -> Date {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::EXPIRES, HeaderValue::from_str(value).unwrap());
        }
        date(&headers, &header::EXPIRES)
    }

    #[test]
    fn dates_are_read_in_all_three_forms() {
        let at = Date::At(Timestamp::from_unix(784_111_777));
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(expires(&[text]), at, "{text}");
            assert_eq!(expires(&[text, text]), at, "{text}");
        }
        assert_eq!(Timestamp::from_unix(784_111_777).to_http(), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn what_is_no_date_is_not_taken_for_one() {
        assert_eq!(expires(&[]), Date::Absent);
        for text in ["0", "", "soon", "Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 06 Nov 1994 08:49:37", "\u{ff}"] {
            assert_eq!(expires(&[text]), Date::Malformed, "{text}");
        }
        assert_eq!(expires(&["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:38 GMT"]), Date::Malformed);
    }

    #[test]
    fn delta_seconds_are_digits_and_do_not_overflow() {
        assert_eq!(delta_seconds(b"0"), Some(0));
        assert_eq!(delta_seconds(b"0060"), Some(60));
        assert_eq!(delta_seconds(b"99999999999999999999999999"), Some(MOST_SECONDS));
        for text in ["", "-1", "+1", "1.5", " 1", "1s", "0x10"] {
            assert_eq!(delta_seconds(text.as_bytes()), None, "{text:?}");
        }
    }
}
