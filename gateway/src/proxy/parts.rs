//! Heads as the [`http`] crate has them, to be changed directly.
//!
//! Beside the fields of a head, Pingora keeps a second map with their names as they were written, and
//! each change is one of both. Nothing may depend on that case (RFC 9110 §5.1), HTTP/2 has none, and
//! looking everything up twice is a good part of what a request costs. So it is forgotten the first
//! time a head passes through here: names go on in lower case, as with most proxies.

use std::mem;

use http::{Request, Response, request, response};
use pingora_http::{RequestHeader, ResponseHeader};

/// Changes the head of a request. Its target must be in origin form: Pingora's copies of other forms
/// get lost.
pub(crate) fn change_request<T>(head: &mut RequestHeader, change: impl FnOnce(&mut request::Parts) -> T) -> T {
    let nothing = RequestHeader::from(Request::new(()).into_parts().0);
    let mut parts = mem::replace(head, nothing).into();
    let result = change(&mut parts);
    *head = parts.into();
    result
}

/// Changes the head of a response.
pub(crate) fn change_response<T>(head: &mut ResponseHeader, change: impl FnOnce(&mut response::Parts) -> T) -> T {
    // Mostly none, or the one that belongs to the status.
    let reason = head.get_reason_phrase().filter(|reason| head.status.canonical_reason() != Some(*reason));
    let reason = reason.map(str::to_owned);
    let nothing = ResponseHeader::from(Response::new(()).into_parts().0);
    let mut parts = mem::replace(head, nothing).into();
    let result = change(&mut parts);
    *head = parts.into();
    if reason.is_some() {
        // It came from there.
        let _ = head.set_reason_phrase(reason.as_deref());
    }
    result
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderValue, Method};

    use super::*;

    fn wire(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut wire = Vec::new();
        write(&mut wire);
        String::from_utf8(wire).unwrap()
    }

    #[test]
    fn a_request_keeps_all_but_the_case_of_its_names() {
        let mut head = RequestHeader::build("DELETE", b"/a?b=c", None).unwrap();
        head.append_header("X-One", "1").unwrap();
        head.append_header("X-TWO", "2").unwrap();
        head.append_header("x-Two", "3").unwrap();
        change_request(&mut head, |parts| parts.headers.insert("x-four", HeaderValue::from_static("4")));
        assert_eq!((&head.method, head.raw_path()), (&Method::DELETE, &b"/a?b=c"[..]));
        assert_eq!(wire(|to| head.header_to_h1_wire(to)), "x-one: 1\r\nx-two: 2\r\nx-two: 3\r\nx-four: 4\r\n");
    }

    #[test]
    fn a_response_keeps_its_reason_phrase() {
        for reason in ["OK", "Fine By Me"] {
            let mut head = ResponseHeader::build(200, None).unwrap();
            head.set_reason_phrase(Some(reason)).unwrap();
            head.append_header("ETag", "\"1\"").unwrap();
            change_response(&mut head, |parts| parts.headers.remove("absent"));
            assert_eq!(head.get_reason_phrase(), Some(reason));
            assert_eq!(wire(|to| head.header_to_h1_wire(to)), "etag: \"1\"\r\n");
        }
    }
}
