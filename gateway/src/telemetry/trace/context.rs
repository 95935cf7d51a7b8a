//! `traceparent` and `tracestate` (W3C Trace Context, Level 1 with the random flag of Level 2).

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::fields;

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Entries that a `tracestate` may have (§3.3.1.1).
const MAX_TRACESTATE_ENTRIES: usize = 32;

/// Where a request stands in a trace. Small, and copied freely.
///
/// The default is no trace at all: nothing came from the client and none is being made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// 0: no trace.
    pub(super) trace_id: u128,
    /// The span that the client said it is in; 0: the trace begins here.
    pub(super) parent_id: u64,
    /// Of the span for this request, and of the one for its exchange with the upstream; 0 while
    /// nothing is recorded.
    pub(super) span_id: u64,
    pub(super) upstream_span_id: u64,
    pub(super) flags: u8,
    keeps_tracestate: bool,
}

pub(super) const SAMPLED: u8 = 0x01;
/// The trace id has at least 56 random bits at its end (Level 2, §3.2.2.5.2).
const RANDOM: u8 = 0x02;

impl TraceContext {
    /// What the headers of a request say; the default if they say nothing, or nothing valid (§4.3).
    pub(super) fn read(headers: &HeaderMap) -> Self {
        if !fields::has(headers, &TRACEPARENT) {
            return Self::default();
        }
        let mut parents = headers.get_all(TRACEPARENT).iter();
        let parent = match (parents.next(), parents.next()) {
            (Some(only), None) => parse_traceparent(only.as_bytes()),
            _ => None,
        };
        let Some((trace_id, parent_id, flags)) = parent else { return Self::default() };
        let keeps_tracestate = tracestate_is_valid(headers);
        Self { trace_id, parent_id, flags: flags & (SAMPLED | RANDOM), keeps_tracestate, ..Self::default() }
    }

    /// A trace that begins here.
    pub(super) fn fresh() -> Self {
        Self { trace_id: fastrand::u128(1..), flags: RANDOM, ..Self::default() }
    }

    /// Sets the sampling decision; with it, the ids of the spans that will be recorded.
    pub(super) fn sampled(mut self, sampled: bool) -> Self {
        self.flags &= !SAMPLED;
        if sampled {
            self.flags |= SAMPLED;
            self.span_id = fastrand::u64(1..);
            self.upstream_span_id = fastrand::u64(1..);
        }
        self
    }

    /// For the access log; none without a trace.
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        (self.trace_id != 0).then(|| self.trace_id.to_be_bytes())
    }

    /// Whether spans of this request are exported.
    pub fn is_recorded(&self) -> bool {
        self.span_id != 0
    }

    /// The `traceparent` for the upstream, to replace the client's; none: remove it. A request that is
    /// not recorded keeps the span that its client is in, so that no link of the trace is missing.
    pub fn traceparent_for_upstream(&self) -> Option<HeaderValue> {
        let parent = match (self.upstream_span_id, self.parent_id) {
            (0, 0) if self.trace_id == 0 => return None,
            // A trace that begins here and is not recorded still tells the decision.
            (0, 0) => fastrand::u64(1..),
            (0, client) => client,
            (own, _) => own,
        };
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        put_hex(&mut text[3..35], self.trace_id);
        put_hex(&mut text[36..52], parent.into());
        put_hex(&mut text[53..55], self.flags.into());
        HeaderValue::from_bytes(&text).ok()
    }

    /// Whether the client's `tracestate` goes on to the upstream, unchanged. It is removed where it is
    /// not valid or its `traceparent` is not (§3.3.1.2).
    pub fn keeps_tracestate(&self) -> bool {
        self.keeps_tracestate
    }
}

/// Trace id, parent id and flags of a valid `traceparent` (§3.2.2). Of later versions, what this one
/// knows is read (§3.2.2.1).
fn parse_traceparent(value: &[u8]) -> Option<(u128, u64, u8)> {
    let (known, rest) = value.split_at_checked(55)?;
    if known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
        return None;
    }
    let version = hex(&known[..2])?;
    let rest_is_right = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || rest[0] == b'-',
    };
    let trace_id = hex(&known[3..35])?;
    let parent_id = u64::try_from(hex(&known[36..52])?).ok()?;
    let flags = u8::try_from(hex(&known[53..55])?).ok()?;
    (rest_is_right && trace_id != 0 && parent_id != 0).then_some((trace_id, parent_id, flags))
}

/// Lower-case hexadecimal digits only.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

fn put_hex(to: &mut [u8], mut number: u128) {
    for digit in to.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 15) as usize];
        number >>= 4;
    }
}

/// Whether there is a `tracestate` and it follows the grammar (§3.3.1).
fn tracestate_is_valid(headers: &HeaderMap) -> bool {
    let mut keys: Vec<&[u8]> = Vec::new();
    for line in headers.get_all(TRACESTATE) {
        for entry in line.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|e| !e.is_empty()) {
            let Some(equals) = entry.iter().position(|b| *b == b'=') else { return false };
            let (key, value) = (&entry[..equals], &entry[equals + 1..]);
            if !is_tracestate_key(key) || !is_tracestate_value(value) || keys.contains(&key) {
                return false;
            }
            keys.push(key);
        }
    }
    (1..=MAX_TRACESTATE_ENTRIES).contains(&keys.len())
}

/// `simple-key` or `multi-tenant-key` (§3.3.1.3.1), by the laxer rules of Level 2.
fn is_tracestate_key(key: &[u8]) -> bool {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-*/@".contains(b);
    let first = key.first().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    first && key.len() <= 256 && key.iter().all(plain) && key.splitn(3, |b| *b == b'@').count() <= 2
}

/// Printable ASCII without `,` and `=`, 1 to 256 characters (§3.3.1.3.2).
fn is_tracestate_value(value: &[u8]) -> bool {
    (1..=256).contains(&value.len()) && value.iter().all(|b| (b' '..=b'~').contains(b) && *b != b',' && *b != b'=')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(fields: &[(&HeaderName, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| ((*name).clone(), value.parse().unwrap())).collect()
    }

    fn read(traceparent: &str) -> TraceContext {
        TraceContext::read(&headers(&[(&TRACEPARENT, traceparent)]))
    }

    #[test]
    fn the_example_of_the_specification_is_read() {
        let context = read(EXAMPLE);
        assert_eq!(context.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((context.parent_id, context.flags), (0xb7ad_6b71_6920_3331, SAMPLED));
    }

    #[test]
    fn a_traceparent_that_is_not_valid_counts_as_none() {
        for wrong in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-011",
            "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "0x-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.more",
        ] {
            assert_eq!(read(wrong), TraceContext::default(), "{wrong:?}");
        }
        let twice = headers(&[(&TRACEPARENT, EXAMPLE), (&TRACEPARENT, EXAMPLE)]);
        assert_eq!(TraceContext::read(&twice), TraceContext::default(), "two are one too many");
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = read("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-09-what-the-future-brings");
        assert_eq!((later.parent_id, later.flags), (0xb7ad_6b71_6920_3331, SAMPLED), "unknown flags are not sent on");
        assert_eq!(
            later.traceparent_for_upstream().unwrap(),
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        );
    }

    #[test]
    fn without_a_trace_nothing_is_sent() {
        assert_eq!(TraceContext::default().traceparent_for_upstream(), None);
        assert_eq!(TraceContext::default().trace_id(), None);
    }

    #[test]
    fn what_is_not_recorded_passes_through_and_what_is_gets_a_span_of_ours() {
        let through = read(EXAMPLE);
        assert_eq!(through.traceparent_for_upstream().unwrap(), EXAMPLE);
        let recorded = through.sampled(true);
        let sent = recorded.traceparent_for_upstream().unwrap();
        assert_ne!(sent, EXAMPLE);
        assert_eq!(read(sent.to_str().unwrap()).parent_id, recorded.upstream_span_id);
        assert_eq!(read(sent.to_str().unwrap()).trace_id, through.trace_id);
        let unsampled = through.sampled(false).traceparent_for_upstream().unwrap();
        assert_eq!(unsampled, EXAMPLE.replace("-01", "-00"));
    }

    #[test]
    fn a_tracestate_goes_on_only_if_it_and_its_traceparent_are_valid() {
        let many = (0..33).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        for (state, kept) in [
            ("congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", true),
            ("tenant@system=1, other=a b", true),
            ("a=1,,b=2", true),
            ("", false),
            ("a=1,a=2", false),
            ("a", false),
            ("A=1", false),
            ("a=b=c", false),
            ("a=ä", false),
            (&many, false),
        ] {
            let mut fields = headers(&[(&TRACEPARENT, EXAMPLE)]);
            fields.insert(TRACESTATE, HeaderValue::from_bytes(state.as_bytes()).unwrap());
            assert_eq!(TraceContext::read(&fields).keeps_tracestate(), kept, "{state:?}");
        }
        let alone = headers(&[(&TRACESTATE, "a=1")]);
        assert!(!TraceContext::read(&alone).keeps_tracestate());
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(trace_id in 1..=u128::MAX, parent_id in 1..=u64::MAX, flags in 0..4_u8) {
            let context = TraceContext { trace_id, parent_id, flags, ..TraceContext::default() };
            let text = context.traceparent_for_upstream().unwrap();
            prop_assert_eq!(read(text.to_str().unwrap()), context);
        }

        #[test]
        fn any_bytes_are_read_without_harm(value in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some((trace_id, parent_id, _)) = parse_traceparent(&value) {
                prop_assert!(trace_id != 0 && parent_id != 0 && value.len() >= 55);
            }
        }

        #[test]
        fn one_wrong_byte_is_noticed(at in 0..55_usize, byte in any::<u8>()) {
            let mut value = EXAMPLE.as_bytes().to_vec();
            value[at] = byte;
            let digit = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            let dash = [2, 35, 52].contains(&at);
            let expected = if dash { byte == b'-' } else { digit && &value[..2] != b"ff" };
            prop_assert_eq!(parse_traceparent(&value).is_some(), expected);
        }
    }
}
