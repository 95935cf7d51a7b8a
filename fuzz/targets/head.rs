//! The head of a request: what passes is the same in pieces, and means the same to a second parser.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seiketsu_gateway::server::head::{HeadLimits, HeadScanner};

const LIMITS: HeadLimits = HeadLimits { bytes: 16 << 10, fields: 100 };

fuzz_target!(|bytes: &[u8]| {
    let whole = HeadScanner::new(LIMITS).scan(bytes);
    let mut scanner = HeadScanner::new(LIMITS);
    let mut in_pieces = Ok(None);
    for end in 1..=bytes.len() {
        in_pieces = scanner.scan(&bytes[..end]);
        if !matches!(in_pieces, Ok(None)) {
            break;
        }
    }
    assert_eq!(in_pieces, whole);
    if let Ok(Some(head)) = whole {
        let mut fields = [httparse::EMPTY_HEADER; 100];
        let mut request = httparse::Request::new(&mut fields);
        let parsed = request.parse(&bytes[head.start..]).expect("a second parser takes it too");
        assert_eq!(parsed, httparse::Status::Complete(head.end - head.start));
    }
});
