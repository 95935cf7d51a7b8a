//! Parts of stored responses (RFC 9110 §14): which bytes a client asks for, and the fields that tell of them.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use smallvec::SmallVec;

use crate::{
    time::{Date, date},
    validation::is_same_strong,
};

/// More parts than this are no use to anybody but an attacker (RFC 9110 §17.15); such requests get the whole.
const MOST_PARTS: usize = 16;

/// Several parts are a body of their own for each request, which nothing counts, and which a slow client keeps in
/// memory: where they have more bytes than this in all, the whole is sent, of which there is only one.
const MOST_OF_SEVERAL: usize = 64 * 1024;

/// What a request for parts comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// It asks for none, or in a way that is not served: the whole.
    Whole,
    Some(SmallVec<[Range<usize>; 1]>),
    /// None of the parts that it asks for exists: 416.
    Unsatisfiable,
}

/// Which parts of a stored response a request asks for, given how long its body is.
pub fn parts(request: &HeaderMap, stored: &HeaderMap, length: usize) -> Parts {
    let mut lines = request.get_all(header::RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return Parts::Whole };
    if !is_for(request, stored) {
        return Parts::Whole;
    }
    parse(line.as_bytes(), length)
}

/// Whether `If-Range` speaks of what is stored (RFC 9110 §13.1.5): a strong tag or date, and the same.
pub fn is_for(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(header::IF_RANGE) else { return true };
    if condition.as_bytes().ends_with(b"\"") {
        return stored.get(header::ETAG).is_some_and(|etag| is_same_strong(condition.as_bytes(), etag.as_bytes()));
    }
    let (Date::At(asked), Date::At(modified)) =
        (date(request, &header::IF_RANGE), date(stored, &header::LAST_MODIFIED))
    else {
        return false;
    };
    // What changed within the second of its date may change once more in it (RFC 9110 §8.8.2.2).
    let is_strong = matches!(date(stored, &header::DATE), Date::At(generated) if generated > modified);
    is_strong && asked == modified
}

fn parse(line: &[u8], length: usize) -> Parts {
    let Some((unit, set)) = split_once(line, b'=') else { return Parts::Whole };
    if !unit.trim_ascii().eq_ignore_ascii_case(b"bytes") {
        return Parts::Whole;
    }
    let mut found: SmallVec<[Range<usize>; 1]> = SmallVec::new();
    let specs = set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty());
    let mut any = false;
    for (count, spec) in specs.enumerate() {
        any = true;
        if count >= MOST_PARTS {
            return Parts::Whole;
        }
        let Some(asked) = part(spec, length) else { return Parts::Whole };
        // One that lies beyond the end is left out.
        let Some(range) = asked else { continue };
        // Whoever asks for the same bytes more than once, or for what comes first last, wants to cause traffic.
        if found.last().is_some_and(|last| range.start < last.end) {
            return Parts::Whole;
        }
        found.push(range);
    }
    let total: usize = found.iter().map(ExactSizeIterator::len).sum();
    match found.len() {
        0 if any => Parts::Unsatisfiable,
        0 => Parts::Whole,
        2.. if total >= length || total > MOST_OF_SEVERAL => Parts::Whole,
        _ => Parts::Some(found),
    }
}

/// One part: outer none where it is malformed, inner none where there is no such part.
#[allow(clippy::option_option)]
fn part(spec: &[u8], length: usize) -> Option<Option<Range<usize>>> {
    let (first, last) = split_once(spec, b'-')?;
    let range = match (first.is_empty(), last.is_empty()) {
        (true, true) => return None,
        (true, false) => length.saturating_sub(number(last)?)..length,
        (false, true) => number(first)?..length,
        (false, false) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(length)
        }
    };
    Some((range.start < range.end).then_some(range))
}

/// A position; what is larger than can be counted lies beyond every end.
fn number(text: &[u8]) -> Option<usize> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: usize, digit: &u8| sum.saturating_mul(10).saturating_add(usize::from(digit - b'0'));
    Some(text.iter().fold(0, add))
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|byte| *byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

/// Writes the fields of a 206, and gives its body. Bytes of one part are not copied; several have only so many.
pub fn partial(headers: &mut HeaderMap, body: &Bytes, ranges: &[Range<usize>], boundary: u64) -> Bytes {
    if let [range] = ranges {
        fields_of_part(headers, range, body.len());
        return body.slice(range.clone());
    }
    let boundary = format!("{boundary:016x}");
    let content_type = headers.get(header::CONTENT_TYPE).cloned();
    let mut whole = BytesMut::with_capacity(ranges.iter().map(|range| range.len() + 160).sum());
    for range in ranges {
        whole.extend_from_slice(format!("\r\n--{boundary}\r\n").as_bytes());
        if let Some(content_type) = &content_type {
            whole.extend_from_slice(b"Content-Type: ");
            whole.extend_from_slice(content_type.as_bytes());
            whole.extend_from_slice(b"\r\n");
        }
        whole.extend_from_slice(format!("Content-Range: {}\r\n\r\n", content_range(range, body.len())).as_bytes());
        whole.extend_from_slice(&body[range.clone()]);
    }
    whole.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    set(headers, header::CONTENT_TYPE, format!("multipart/byteranges; boundary={boundary}"));
    headers.remove(header::CONTENT_RANGE);
    headers.insert(header::CONTENT_LENGTH, whole.len().into());
    whole.freeze()
}

/// Writes the fields of a 206 with this one part of so many bytes.
pub fn fields_of_part(headers: &mut HeaderMap, range: &Range<usize>, length: usize) {
    set(headers, header::CONTENT_RANGE, content_range(range, length));
    headers.insert(header::CONTENT_LENGTH, range.len().into());
}

/// Writes the fields of a 416.
pub fn unsatisfiable(headers: &mut HeaderMap, length: usize) {
    headers.remove(header::CONTENT_TYPE);
    headers.remove(header::CONTENT_ENCODING);
    set(headers, header::CONTENT_RANGE, format!("bytes */{length}"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
}

fn content_range(range: &Range<usize>, length: usize) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1))
}

fn set(headers: &mut HeaderMap, name: http::HeaderName, value: String) {
    // Digits and words only: always a field value.
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]

    use http::HeaderName;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn asked(line: &str) -> Parts {
        parse(line.as_bytes(), 10)
    }

    fn some(ranges: &[Range<usize>]) -> Parts {
        Parts::Some(ranges.iter().cloned().collect())
    }

    #[test]
    fn parts_are_found() {
        assert_eq!(asked("bytes=0-1"), some(&[0..2]));
        assert_eq!(asked("BYTES = 2-"), some(&[2..10]));
        assert_eq!(asked("bytes=-3"), some(&[7..10]));
        assert_eq!(asked("bytes=-99"), some(&[0..10]));
        assert_eq!(asked("bytes=5-99999999999999999999999"), some(&[5..10]));
        assert_eq!(asked("bytes=0-1, 4-5"), some(&[0..2, 4..6]));
        assert_eq!(asked("bytes=0-1,,4-5,20-30,-0"), some(&[0..2, 4..6]));
    }

    #[test]
    fn what_does_not_exist_is_refused_and_what_is_malformed_ignored() {
        for none in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99-,100-"] {
            assert_eq!(asked(none), Parts::Unsatisfiable, "{none}");
        }
        for whole in ["bytes", "bytes=", "bytes=a-b", "bytes=2-1", "bytes=-", "items=0-1", "bytes=0-1;2-3", "bytes=1"] {
            assert_eq!(asked(whole), Parts::Whole, "{whole}");
        }
    }

    #[test]
    fn overlaps_and_hosts_of_parts_get_the_whole() {
        assert_eq!(asked("bytes=0-5,3-6"), Parts::Whole);
        assert_eq!(asked("bytes=0-4,5-9"), Parts::Whole);
        assert_eq!(asked("bytes=4-5,0-1"), Parts::Whole);
        let many = vec!["0-0"; MOST_PARTS + 1].join(",");
        assert_eq!(asked(&format!("bytes={many}")), Parts::Whole);
    }

    #[test]
    fn several_parts_have_so_many_bytes_and_one_has_any_number() {
        let asked = |last: usize| parse(format!("bytes=0-0,2-{last}").as_bytes(), 8 << 20);
        let end = MOST_OF_SEVERAL + 1;
        assert_eq!(asked(end - 1), some(&[0..1, 2..end]));
        assert_eq!(asked(end), Parts::Whole);
        assert_eq!(parse(b"bytes=2-", 8 << 20), some(&[2..8 << 20]));
    }

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn if_range_needs_the_same_strong_validator() {
        let (early, late) = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:37 GMT");
        let stored = headers(&[("etag", "\"a\""), ("last-modified", early), ("date", late)]);
        let is_for = |condition: &str, stored: &HeaderMap| is_for(&headers(&[("if-range", condition)]), stored);
        assert!(is_for("\"a\"", &stored) && is_for(early, &stored));
        assert!(!is_for("\"b\"", &stored) && !is_for("W/\"a\"", &stored) && !is_for(late, &stored));
        assert!(!is_for("W/\"a\"", &headers(&[("etag", "W/\"a\"")])));
        assert!(!is_for(early, &headers(&[("last-modified", early), ("date", early)])));
    }

    #[test]
    fn several_parts_make_a_multipart_body() {
        let mut fields = headers(&[("content-type", "text/plain")]);
        let body = partial(&mut fields, &Bytes::from_static(b"0123456789"), &[0..2, 8..10], 0xabc);
        let expected = "\r\n--0000000000000abc\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\
            \r\n--0000000000000abc\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
            \r\n--0000000000000abc--\r\n";
        assert_eq!(body, expected);
        assert_eq!(fields["content-type"], "multipart/byteranges; boundary=0000000000000abc");
        assert_eq!(fields["content-length"], expected.len().to_string());
    }

    proptest! {
        #[test]
        fn parts_lie_within_the_body_and_apart(line in "bytes=[0-9,-]{0,24}", length in 0..50usize) {
            if let Parts::Some(ranges) = parse(line.as_bytes(), length) {
                prop_assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length));
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
            }
        }

        #[test]
        fn several_are_parts_of_bounded_length_or_the_whole(lengths in vec((1..40_000usize, 1..100usize), 2..8)) {
            let (mut specs, mut end, mut total) = (Vec::new(), 0, 0);
            for (length, gap) in lengths {
                let start = end + gap;
                end = start + length;
                total += length;
                specs.push(format!("{start}-{}", end - 1));
            }
            let parts = parse(format!("bytes={}", specs.join(",")).as_bytes(), end);
            prop_assert_eq!(matches!(parts, Parts::Some(_)), total <= MOST_OF_SEVERAL);
        }

        #[test]
        fn anything_is_read_without_panic(line: Vec<u8>, length: usize) {
            parse(&line, length);
        }
    }
}
