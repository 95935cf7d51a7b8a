//! The id of a request: in the `X-Request-Id` header, in problems, in the access log.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use http::HeaderValue;
use uuid::{Builder, fmt::Hyphenated};

/// The longest id that is taken over from a client.
pub const MAX_LENGTH: usize = 64;

/// 32 digits and four hyphens.
const UUID_LENGTH: u8 = 36;
const _: () = assert!(UUID_LENGTH as usize == Hyphenated::LENGTH);

/// The text of a request id, kept in place: making one allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    text: [u8; MAX_LENGTH],
    length: u8,
}

impl RequestId {
    /// A UUID of version 7 (RFC 9562 §5.7): sorts by time, and its 74 random bits keep it unique. They come from a
    /// generator of the thread's own that is fast, not secret: an id identifies, it authorises nothing.
    pub fn generate(now: SystemTime) -> Self {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = since.as_secs() * 1000 + u64::from(since.subsec_millis());
        let mut random = [0; 10];
        random[..8].copy_from_slice(&fastrand::u64(..).to_ne_bytes());
        random[8..].copy_from_slice(&fastrand::u16(..).to_ne_bytes());
        let mut id = Self::default();
        Builder::from_unix_timestamp_millis(millis, &random).into_uuid().hyphenated().encode_lower(&mut id.text);
        id.length = UUID_LENGTH;
        id
    }

    /// Takes over an id that a trusted peer sent: 1 to 64 letters, digits, `-`, `.`, `_`, `~`, `+` or
    /// `=`, which mean nothing special in a log, a header or a URI.
    pub fn parse(sent: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~+=".contains(&b);
        let length = u8::try_from(sent.len()).ok().filter(|length| (1..=MAX_LENGTH).contains(&usize::from(*length)))?;
        if !sent.bytes().all(plain) {
            return None;
        }
        let mut text = [0; MAX_LENGTH];
        text[..sent.len()].copy_from_slice(sent.as_bytes());
        Some(Self { text, length })
    }

    pub fn as_str(&self) -> &str {
        // Only ASCII is ever put in.
        std::str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }

    pub fn header_value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.text[..usize::from(self.length)]).unwrap_or(HeaderValue::from_static(""))
    }
}

/// No id: what a request has before its own is known.
impl Default for RequestId {
    fn default() -> Self {
        Self { text: [0; MAX_LENGTH], length: 0 }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashSet;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_id_is_a_uuid_of_now() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        let uuid: Uuid = RequestId::generate(SystemTime::now()).as_str().parse().unwrap();
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert_eq!((uuid.get_version_num(), uuid.get_variant()), (7, uuid::Variant::RFC4122));
        let (seconds, nanos) = uuid.get_timestamp().unwrap().to_unix();
        let made = u128::from(seconds) * 1000 + u128::from(nanos) / 1_000_000;
        assert!((before..=after).contains(&made));
    }

    #[test]
    fn ids_do_not_repeat() {
        let ids: HashSet<String> = (0..10_000).map(|_| RequestId::generate(SystemTime::now()).to_string()).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn an_id_that_could_break_a_log_or_header_is_not_taken_over() {
        let long = "a".repeat(MAX_LENGTH + 1);
        for sent in ["", "a b", "a\"b", "a\nb", "ä", "a/b", "a:b", &long] {
            assert_eq!(RequestId::parse(sent), None, "{sent:?}");
        }
        assert_eq!(RequestId::default().as_str(), "");
    }

    proptest! {
        #[test]
        fn an_id_that_is_taken_over_stays_what_it_is(sent in "[A-Za-z0-9._~+=-]{1,64}") {
            let id = RequestId::parse(&sent).unwrap();
            prop_assert_eq!(id.as_str(), &sent);
            prop_assert_eq!(id.header_value(), sent);
        }

        #[test]
        fn any_text_is_taken_over_whole_or_not_at_all(sent in any::<String>()) {
            if let Some(id) = RequestId::parse(&sent) {
                prop_assert_eq!(id.as_str(), sent);
            }
        }
    }
}
