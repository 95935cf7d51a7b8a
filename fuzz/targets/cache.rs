//! Heads of requests and responses, as the cache reads them: no panic, and nothing served that must not be.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;
use seiketsu_cache::{
    directives::{RequestDirectives, ResponseDirectives},
    freshness::Exchange,
    invalidation::{Target, invalidated},
    purge::Tags,
    range::{Parts, parts},
    reuse::Reuse,
    storing::{Candidate, Policy, storable},
    targeted::CDN_CACHE_CONTROL,
    time::Timestamp,
    validation::{freshened, is_not_modified},
    vary::{Selection, Wishes},
};

const CAME: u64 = 1_800_000_000;

/// Lines of `name: value`.
fn fields(bytes: &[u8]) -> HeaderMap {
    let lines = bytes.split(|byte| *byte == b'\n');
    let field = |line: &[u8]| {
        let at = line.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&line[..at]).ok()?;
        Some((name, HeaderValue::from_bytes(line[at + 1..].trim_ascii()).ok()?))
    };
    lines.filter_map(field).collect()
}

fuzz_target!(|input: &[u8]| {
    let Some((&[high, low, after], rest)) = input.split_first_chunk() else { return };
    let status = StatusCode::from_u16(200 + u16::from_be_bytes([high, low]) % 400).expect("a status");
    let mut sections = rest.splitn(3, |byte| *byte == 0);
    let mut next = || fields(sections.next().unwrap_or_default());
    let (request, response, update) = (next(), next(), next());
    let wishes = RequestDirectives::of(&request);
    let at = Timestamp::from_unix(CAME);
    let exchange = Exchange { requested: at, answered: at };
    let policy = Policy { targets: vec![CDN_CACHE_CONTROL], ..Policy::default() };
    let candidate = Candidate { status, headers: &response, request: wishes, has_credential: high % 2 == 0, exchange };
    let now = Timestamp::from_unix(CAME + u64::from(after));
    if let Ok(stored) = storable(&candidate, &policy) {
        assert!(!stored.headers.contains_key("set-cookie"));
        assert!(stored.headers.get_all("vary").iter().eq(response.get_all("vary").iter()));
        let said = ResponseDirectives::of(&response);
        if !response.contains_key(&CDN_CACHE_CONTROL) {
            assert!(!said.private.is_whole() && (!said.no_store || said.must_understand));
            assert!(!candidate.has_credential || said.allows_sharing());
        }
        let selection = Selection::of(&stored.vary, &request);
        assert!(selection.matches(&mut Wishes::of(&request)));
        match stored.rules.reuse(&wishes, policy.stale, now) {
            Reuse::Fresh => assert!(stored.rules.is_fresh(now) && !wishes.no_cache),
            Reuse::Stale => assert!(!stored.rules.forbids_stale),
            Reuse::Refresh => assert!(stored.rules.stale_while_revalidate.is_some_and(|window| window > 0)),
            Reuse::Validate => {}
        }
        is_not_modified(&request, status, &stored.headers);
        let length = usize::from(low);
        if let Parts::Some(ranges) = parts(&request, &stored.headers, length) {
            assert!(ranges.iter().all(|range| range.start < range.end && range.end <= length));
        }
        let merged = freshened(&stored.headers, &update);
        assert_eq!(merged.get("content-length"), stored.headers.get("content-length"));
    }
    let target = Target { secure: false, host: b"a.test", path: "/x", query: None };
    for changed in invalidated(&target, status, &response, |path| Some(path.to_owned())) {
        assert_eq!(changed.host(), "a.test");
    }
    assert!(Tags::of(&response).iter().count() <= 256);
});
