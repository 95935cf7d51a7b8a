//! What clients are told of limits: `RateLimit-Policy`, `RateLimit` (draft-ietf-httpapi-ratelimit-headers-11),
//! `Retry-After` (RFC 9110 §10.2.3), and `violated-policies` of a refusal.
//!
//! Nothing else writes these: the draft may still change.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde::{Serialize, Serializer};
use smallvec::SmallVec;

pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// The member of problem details that names the limits which refused a request (§5.1 of the draft).
pub const VIOLATED_POLICIES: &str = "violated-policies";

/// The largest integer of structured fields (RFC 9651 §3.3.1).
const MOST: u64 = 999_999_999_999_999;

/// A limit as it is told to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// Visible ASCII and spaces; of other characters the client sees question marks.
    pub name: &'a str,
    /// The most that there can be: a burst, a quota.
    pub quota: u64,
    /// In how many seconds the quota comes anew. Periods of the calendar have none.
    pub window: Option<u64>,
    /// What is left. More than `quota` counts as `quota`.
    pub remaining: u64,
    /// In how many seconds more is to be had.
    pub reset: Option<u64>,
}

/// The value of `RateLimit-Policy`; none without limits.
pub fn rate_limit_policy(items: &[Item<'_>]) -> Option<HeaderValue> {
    list(items, |item, out| {
        parameter(b";q=", item.quota, out);
        if let Some(window) = item.window {
            parameter(b";w=", window, out);
        }
    })
}

/// The value of `RateLimit`; none without limits.
pub fn rate_limit(items: &[Item<'_>]) -> Option<HeaderValue> {
    list(items, |item, out| {
        parameter(b";r=", item.remaining.min(item.quota), out);
        if let Some(reset) = item.reset {
            parameter(b";t=", reset, out);
        }
    })
}

/// Mostly on the stack until its length is known, so that the value gets along with one buffer of just that.
type Text = SmallVec<[u8; 256]>;

/// A list of strings with parameters (RFC 9651 §4.1.1).
fn list(items: &[Item<'_>], parameters: impl Fn(&Item<'_>, &mut Text)) -> Option<HeaderValue> {
    let mut text = Text::new();
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            text.extend_from_slice(b", ");
        }
        string(item.name, &mut text);
        parameters(item, &mut text);
    }
    if text.is_empty() { None } else { HeaderValue::from_bytes(&text).ok() }
}

/// A string (RFC 9651 §4.1.6).
fn string(text: &str, out: &mut Text) {
    out.push(b'"');
    // Mostly there is nothing to escape, and the whole name is one piece.
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
        out.extend_from_slice(text.as_bytes());
    } else {
        for character in text.chars() {
            match character {
                '"' | '\\' => out.extend_from_slice(&[b'\\', character as u8]),
                ' '..='~' => out.push(character as u8),
                _ => out.push(b'?'),
            }
        }
    }
    out.push(b'"');
}

/// A parameter with an integer (RFC 9651 §4.1.4); what is too large for one becomes the largest.
fn parameter(key: &[u8], number: u64, out: &mut Text) {
    out.extend_from_slice(key);
    let mut digits = [b'0'; 15];
    let mut first = digits.len();
    let mut rest = number.min(MOST);
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[first..]);
}

/// Clients are asked to wait so much longer at most, ...
const MOST_JITTER: Duration = Duration::from_secs(5);

/// ... and by this part of the time at most.
const JITTER_PART: u32 = 10;

/// The seconds of `Retry-After` for a client that has to wait so long: rounded up, and a little more, so
/// that clients do not return all at once. Never earlier than the wait, and at least 1.
///
/// `random` is any number; with the same one the answer is the same.
pub fn retry_after(wait: Duration, random: u64) -> u64 {
    let room = (wait / JITTER_PART).min(MOST_JITTER);
    // The upper half of the product is random · room / 2⁶⁴. Room is 5s at most, so its nanoseconds fit.
    let jitter = (u128::from(random) * room.as_nanos()) >> 64;
    let wait = wait.saturating_add(Duration::from_nanos(u64::try_from(jitter).unwrap_or(0)));
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    seconds.clamp(1, MOST)
}

/// `violated-policies`: the names of the limits that refused a request, as a list.
#[derive(Debug, Clone, Copy)]
pub struct ViolatedPolicies<'a>(pub &'a [Item<'a>]);

impl Serialize for ViolatedPolicies<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|item| item.name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn items() -> [Item<'static>; 3] {
        [
            Item { name: "rate", quota: 100, window: Some(6), remaining: 87, reset: Some(1) },
            Item { name: "day", quota: 100_000, window: None, remaining: 51234, reset: Some(40211) },
            Item { name: "month", quota: 1_000_000, window: None, remaining: 900_123, reset: Some(640_211) },
        ]
    }

    #[test]
    fn limits_are_told_in_structured_fields() {
        assert_eq!(rate_limit_policy(&items()).unwrap(), r#""rate";q=100;w=6, "day";q=100000, "month";q=1000000"#);
        assert_eq!(
            rate_limit(&items()).unwrap(),
            r#""rate";r=87;t=1, "day";r=51234;t=40211, "month";r=900123;t=640211"#
        );
        assert_eq!((rate_limit_policy(&[]), rate_limit(&[])), (None, None));
    }

    #[test]
    fn what_does_not_fit_is_told_as_near_as_can_be() {
        let item =
            Item { name: "a\"b\\c\u{7f}ä\n", quota: u64::MAX, window: Some(0), remaining: u64::MAX, reset: None };
        assert_eq!(rate_limit_policy(&[item]).unwrap(), r#""a\"b\\c???";q=999999999999999;w=0"#);
        let item = Item { quota: 5, remaining: 6, ..item };
        assert_eq!(rate_limit(&[item]).unwrap(), r#""a\"b\\c???";r=5"#);
    }

    #[test]
    fn waiting_times_are_rounded_up() {
        for (millis, random, seconds) in [
            (0, 0, 1),
            (1, u64::MAX, 1),
            (999, 0, 1),
            (1000, 0, 1),
            (1001, 0, 2),
            (1000, u64::MAX, 2),
            (5950, u64::MAX, 7),
            (100_000, u64::MAX / 2, 103),
            (100_000, u64::MAX, 105),
            (86_400_000, u64::MAX, 86_405),
        ] {
            assert_eq!(retry_after(Duration::from_millis(millis), random), seconds, "{millis}ms {random}");
        }
        assert_eq!(retry_after(Duration::MAX, u64::MAX), MOST);
    }

    #[test]
    fn violated_policies_are_a_list_of_names() {
        let json = serde_json::to_value(ViolatedPolicies(&items()[..2])).unwrap();
        assert_eq!(json, serde_json::json!(["rate", "day"]));
    }

    /// A string, and its parameters.
    type Member = (String, Vec<(String, u64)>);

    /// A list as a client reads it (RFC 9651 §4.2.1).
    fn parse(field: &str) -> Option<Vec<Member>> {
        let mut rest = field;
        let mut list = Vec::new();
        loop {
            let mut name = String::new();
            let mut characters = rest.strip_prefix('"')?.chars();
            loop {
                match characters.next()? {
                    '"' => break,
                    '\\' => name.push(characters.next().filter(|c| matches!(c, '"' | '\\'))?),
                    c @ ' '..='~' => name.push(c),
                    _ => return None,
                }
            }
            rest = characters.as_str();
            let mut parameters = Vec::new();
            while let Some(parameter) = rest.strip_prefix(';') {
                let (key, value) = parameter.split_once('=')?;
                let end = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
                let is_key = key.bytes().all(|b| b.is_ascii_lowercase());
                let canonical = end == 1 || !value.starts_with('0');
                if !is_key || !(1..=15).contains(&end) || !canonical {
                    return None;
                }
                parameters.push((key.to_owned(), value[..end].parse().ok()?));
                rest = &value[end..];
            }
            list.push((name, parameters));
            if rest.is_empty() {
                return Some(list);
            }
            rest = rest.strip_prefix(", ")?;
        }
    }

    prop_compose! {
        fn numbers()(shift in 0..64, number in any::<u64>()) -> u64 {
            number >> shift
        }
    }

    proptest! {
        #[test]
        fn a_client_reads_what_was_meant(
            parts in prop::collection::vec(
                ("\\PC{0,12}", numbers(), prop::option::of(numbers()), numbers(), prop::option::of(numbers())),
                1..6,
            ),
        ) {
            let items: Vec<_> = parts
                .iter()
                .map(|(name, quota, window, remaining, reset)| Item {
                    name, quota: *quota, window: *window, remaining: *remaining, reset: *reset,
                })
                .collect();
            let read = |value: HeaderValue| parse(value.to_str().unwrap());
            let policies = read(rate_limit_policy(&items).unwrap()).unwrap();
            let limits = read(rate_limit(&items).unwrap()).unwrap();
            prop_assert_eq!((policies.len(), limits.len()), (items.len(), items.len()));
            let named = |key: &str, number: u64| (key.to_owned(), number.min(MOST));
            for (item, (policy, limit)) in items.iter().zip(policies.into_iter().zip(limits)) {
                let name: String = item.name.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect();
                let told = [Some(named("q", item.quota)), item.window.map(|w| named("w", w))];
                prop_assert_eq!(policy, (name.clone(), told.into_iter().flatten().collect()));
                let told = [Some(named("r", item.remaining.min(item.quota))), item.reset.map(|t| named("t", t))];
                prop_assert_eq!(limit, (name, told.into_iter().flatten().collect()));
            }
        }

        #[test]
        fn nobody_is_asked_to_return_too_early_or_much_too_late(nanos in numbers(), random in any::<u64>()) {
            let wait = Duration::from_nanos(nanos);
            let told = Duration::from_secs(retry_after(wait, random));
            prop_assert!(told >= wait);
            let latest = wait + (wait / 10).min(Duration::from_secs(5)) + Duration::from_secs(1);
            prop_assert!(told <= latest.max(Duration::from_secs(1)));
            prop_assert!(retry_after(wait, 0) <= retry_after(wait, random));
        }
    }
}
