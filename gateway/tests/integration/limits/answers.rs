//! What clients are told of limits.

use std::time::Duration;

use super::{answers, limited, noon, remaining, request, still, violated};
use crate::{
    fixtures::{let_pass, tenants, upstream},
    support::{Gateway, Origin, http2::Http2},
};

#[test]
fn a_burst_passes_and_who_comes_after_it_is_told_when_to_come_back() {
    let origin = Origin::start("a");
    let limits = "rate: { requests: 60, per: 1h, burst: 5 }, quotas: { daily: 100, monthly: 1000 }";
    let gateway = Gateway::start(&limited(origin.address, limits, ""));
    let answers = answers(&gateway, "/v1/echo", "", 8);
    for (n, answer) in (1..).zip(&answers[..5]) {
        assert_eq!(answer.status, 200, "request {n}: {answer:?}");
        assert_eq!(
            answer.header("ratelimit-policy"),
            Some(r#""rate";q=5;w=300, "day";q=100, "month";q=1000"#),
            "the burst comes anew in five minutes"
        );
        let left = (remaining(answer, "rate"), remaining(answer, "day"), remaining(answer, "month"));
        assert_eq!(left, (5 - n, 100 - n, 1000 - n));
        assert!(answer.header("ratelimit").unwrap().contains(&format!(r#""rate";r={};t=60, "day""#, 5 - n)));
        assert_eq!(answer.header("retry-after"), None);
    }
    for answer in &answers[5..] {
        assert_eq!(violated(answer), ["rate"]);
        assert_eq!(answer.json()["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
        assert_eq!(answer.json()["instance"].as_str(), answer.header("x-request-id"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        // A token comes after a minute; a tenth of it may be added, so that clients do not return together.
        let retry: u64 = answer.header("retry-after").expect("a time").parse().unwrap();
        assert!((59..=66).contains(&retry), "{retry}");
        let left = (remaining(answer, "rate"), remaining(answer, "day"), remaining(answer, "month"));
        assert_eq!(left, (0, 95, 995), "who is refused takes nothing");
        assert_eq!(answer.header("ratelimit-policy"), answers[0].header("ratelimit-policy"));
    }
    // Days end at midnight, and it is about noon.
    let told = answers[0].header("ratelimit").unwrap();
    let until_midnight: u64 = told.split("\"day\";r=99;t=").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
    assert!((10 * 3600..13 * 3600).contains(&until_midnight), "{told}");
}

#[test]
fn who_comes_back_when_told_is_not_refused() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "rate: { requests: 30, per: 1m, burst: 1 }", ""));
    let mut client = gateway.connect();
    assert_eq!(client.request(&request("/v1/echo", "")).status, 200);
    for _ in 0..2 {
        let refused = client.request(&request("/v1/echo", ""));
        assert_eq!(violated(&refused), ["rate"]);
        let retry: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=3).contains(&retry), "{retry}");
        let_pass(Duration::from_secs(retry));
        assert_eq!(client.request(&request("/v1/echo", "")).status, 200, "not too early");
    }
}

#[test]
fn where_nothing_is_limited_nothing_is_told() {
    let origin = Origin::start("a");
    let gateway = Gateway::start(&limited(origin.address, "rate: unlimited", ""));
    let answer = gateway.get("acme.test", "/v1/echo", "");
    assert_eq!((answer.status, answer.header("ratelimit"), answer.header("ratelimit-policy")), (200, None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_callers_are_told_in_their_own_way() {
    let origin = Origin::start("a");
    let tenant = format!("policies: {{ limits: {{ {}, {} }} }}\n", noon(), still(1));
    let routes = "- { id: echo, match: { path: '/seiketsu.demo.v1.Echo/{method}' }, upstream: demo }\n";
    let gateway = Gateway::start(&tenants(&upstream("demo", &[origin.address], "protocol: http2"), &tenant, routes));
    let client = Http2::plain(&gateway).await;
    let call = || {
        let request = client.request("POST", "acme.test", "/seiketsu.demo.v1.Echo/Unary");
        request.header("content-type", "application/grpc").header("te", "trailers")
    };
    let message = [0, 0, 0, 0, 2, b'h', b'i'];
    let passed = client.send(call(), &message).await.unwrap();
    assert_eq!((passed.status, &passed.trailers.as_ref().unwrap()["grpc-status"]), (200, &"0".parse().unwrap()));
    assert!(passed.header("ratelimit").is_some(), "{passed:?}");
    let refused = client.send(call(), &message).await.unwrap();
    assert_eq!((refused.status, refused.header("content-type")), (200, Some("application/grpc")), "{refused:?}");
    assert!(refused.head_only && refused.body.is_empty() && refused.trailers.is_none(), "trailers only: {refused:?}");
    assert_eq!(refused.header("grpc-status"), Some("8"), "RESOURCE_EXHAUSTED");
    assert!(refused.header("grpc-message").is_some_and(|message| message.contains("Retry-After")), "{refused:?}");
    assert!(refused.header("retry-after").is_some() && refused.header("ratelimit").is_some(), "{refused:?}");
}
