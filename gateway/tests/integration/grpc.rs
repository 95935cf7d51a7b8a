//! gRPC: its four kinds of calls, message by message, and errors in the form its callers understand.

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::join_all;
use h2::{RecvStream, SendStream};

use crate::{
    fixtures::{Stub, comes_true, let_pass, tenants, upstream},
    support::{
        Client, Gateway, KEY, Origin,
        http2::{Answer, Http2, next, patiently, receive},
        two_tenants,
    },
};

const ECHO: &str = "/seiketsu.demo.v1.Echo";

fn routes(policies: &str) -> String {
    format!("- {{ id: echo, match: {{ path: '{ECHO}/{{method}}' }}, upstream: demo, policies: {{ {policies} }} }}\n")
}

fn gateway(origin: &Origin, policies: &str) -> Gateway {
    let upstream = upstream("demo", &[origin.address], "protocol: http2");
    Gateway::start(&tenants(&upstream, "", &routes(policies)))
}

async fn both(gateway: &Gateway) -> [Http2; 2] {
    [Http2::plain(gateway).await, Http2::tls(gateway, "acme.test").await]
}

fn framed(messages: &[&[u8]]) -> Bytes {
    let mut body = BytesMut::new();
    for message in messages {
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).unwrap());
        body.put_slice(message);
    }
    body.freeze()
}

fn request(client: &Http2, target: &str, metadata: &[(&str, &str)]) -> http::request::Builder {
    let request = client.request("POST", "acme.test", target).header("content-type", "application/grpc");
    metadata.iter().fold(request.header("te", "trailers"), |request, (name, value)| request.header(*name, *value))
}

async fn call(client: &Http2, target: &str, metadata: &[(&str, &str)], messages: &[&[u8]]) -> Answer {
    client.send(request(client, target, metadata), &framed(messages)).await.unwrap()
}

/// The status and message of an answer that is nothing else.
fn trailers_only(answer: &Answer) -> (&str, &str) {
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc")), "{answer:?}");
    assert!(answer.head_only && answer.body.is_empty() && answer.trailers.is_none(), "{answer:?}");
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    (answer.header("grpc-status").expect("a status"), answer.header("grpc-message").expect("a message"))
}

async fn open_bidi(client: &Http2) -> (SendStream<Bytes>, RecvStream) {
    let (response, mut send) = client.open(request(client, &format!("{ECHO}/Bidi"), &[]), false).await.unwrap();
    send.send_data(framed(&[b"first"]), false).unwrap();
    let mut body = patiently(response).await.unwrap().into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), framed(&[b"first"]));
    (send, body)
}

async fn close_bidi((mut send, mut body): (SendStream<Bytes>, RecvStream)) {
    send.send_data(framed(&[b"last"]), true).unwrap();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), framed(&[b"last"]));
    assert!(next(&mut body).await.is_none());
    assert_eq!(patiently(body.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_each_kind_pass_with_and_without_tls() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    for client in both(&gateway).await {
        for (method, sent, received) in [
            ("Unary", vec![b"hi".as_slice()], vec![b"hi".as_slice()]),
            ("ServerStream", vec![b"hi"], vec![b"hi", b"hi"]),
            ("ClientStream", vec![b"a", b"", b"bc"], vec![b"abc"]),
            ("Bidi", vec![b"a", b"", b"bc"], vec![b"a", b"", b"bc"]),
        ] {
            let answer = call(&client, &format!("{ECHO}/{method}"), &[("x-repeat", "2")], &sent).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc")));
            assert_eq!(answer.body, framed(&received), "{method}");
            assert_eq!(answer.trailers.as_ref().unwrap()["grpc-status"], "0", "{method}: {answer:?}");
            assert!(answer.header("x-request-id").is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_is_answered_before_the_next_is_sent() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    for client in both(&gateway).await {
        let (mut send, mut body) = open_bidi(&client).await;
        for n in 0..50_u32 {
            let message = framed(&[&n.to_be_bytes()]);
            send.send_data(message.clone(), false).unwrap();
            assert_eq!(next(&mut body).await.unwrap().unwrap(), message);
        }
        close_bidi((send, body)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_be_quiet_for_longer_than_an_answer_may_take() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "timeouts: { per_try: 300ms, total: 600ms }");
    let client = Http2::plain(&gateway).await;
    let stream = open_bidi(&client).await;
    // Also longer than a slow body would be borne with.
    let_pass(std::time::Duration::from_secs(12));
    close_bidi(stream).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_whole() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    let message = vec![7; 2 << 20];
    for client in both(&gateway).await {
        let answer = call(&client, &format!("{ECHO}/Unary"), &[], &[&message]).await;
        assert!(answer.body == framed(&[&message]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_s_own_errors_pass_as_they_are() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    let client = Http2::plain(&gateway).await;
    for status in ["5", "14", "16"] {
        let answer = call(&client, &format!("{ECHO}/Unary"), &[("x-grpc-status", status)], &[b"x"]).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some(status)));
        assert!(answer.body.is_empty());
    }
    let unknown = call(&client, &format!("{ECHO}/Nothing"), &[], &[b"x"]).await;
    assert_eq!(unknown.header("grpc-status"), Some("12"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_told_in_grpc_s_own_way() {
    let origin = Origin::start("a");
    let tenants = two_tenants(&[origin.address], KEY).replace("scopes: [read] } }", "scopes: [write] } }");
    let gateway = Gateway::start(&tenants);
    for client in both(&gateway).await {
        let unauthenticated = call(&client, "/v1/secure/echo", &[], &[b"x"]).await;
        assert_eq!(trailers_only(&unauthenticated).0, "16");
        assert!(unauthenticated.header("www-authenticate").is_some());
        let forbidden = call(&client, "/v1/secure/echo", &[("x-api-key", KEY)], &[b"x"]).await;
        assert_eq!(trailers_only(&forbidden).0, "7");
        let unknown = call(&client, "/nowhere.Service/Method", &[], &[b"x"]).await;
        assert_eq!(trailers_only(&unknown), ("12", "No route of this API matches."));
        // The connection is as good as before.
        assert_eq!(client.get("acme.test", "/v1/echo").await.status, 200);
    }
    // Browsers' gRPC-Web is HTTP to its end, and so are its errors here.
    let client = Http2::plain(&gateway).await;
    let web = client.request("POST", "acme.test", "/nothing").header("content-type", "application/grpc-web+proto");
    assert_eq!(client.send(web, b"x").await.unwrap().problem(), "no-route");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_is_unavailable() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "retries: { attempts: 0 }");
    drop(origin);
    let client = Http2::plain(&gateway).await;
    let answer = call(&client, &format!("{ECHO}/Unary"), &[], &[b"x"]).await;
    assert_eq!(trailers_only(&answer).0, "14");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_does_not_answer_in_time_exceeds_the_deadline() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "timeouts: { per_try: 300ms, total: 600ms }, retries: { attempts: 0 }");
    for client in both(&gateway).await {
        // The first message does not come, so neither does the head of the answer.
        let open = request(&client, &format!("{ECHO}/Unary"), &[]);
        let (response, _send) = client.open(open, false).await.unwrap();
        assert_eq!(trailers_only(&receive(response).await.unwrap()).0, "4");
    }
    assert!(comes_true(|| gateway.access_log().matches("upstream-timeout").count() == 2), "{}", gateway.access_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_speaks_no_http2_is_unavailable() {
    let stub = Stub::start(|_| Vec::new());
    let upstream = upstream("demo", &[stub.address], "protocol: http2");
    let gateway = Gateway::start(&tenants(&upstream, "", &routes("retries: { attempts: 0 }")));
    let client = Http2::plain(&gateway).await;
    let answer = call(&client, &format!("{ECHO}/Unary"), &[], &[b"x"]).await;
    assert_eq!(trailers_only(&answer).0, "14");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_share_few_connections_to_the_upstream() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    let client = Http2::plain(&gateway).await;
    call(&client, &format!("{ECHO}/Unary"), &[], &[b"x"]).await;
    let before = connections(&origin);
    let calls = join_all((0..100).map(|_| open_bidi(&client))).await;
    // The question for it is one too.
    let used = connections(&origin) - before - 1;
    assert!(used <= 10, "{used} connections for 100 calls at once");
    join_all(calls.into_iter().map(close_bidi)).await;
}

fn connections(origin: &Origin) -> u64 {
    let stats = Client::connect(origin.address).request("GET /control/stats HTTP/1.1\r\nHost: x\r\n\r\n");
    stats.json()["connections_accepted"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_given_up_ends_and_costs_no_other() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    let client = Http2::plain(&gateway).await;
    let (mut given_up, body) = open_bidi(&client).await;
    let kept = open_bidi(&client).await;
    let in_flight = |count: &str| {
        let metrics = gateway.metrics();
        metrics.lines().any(|line| line.contains("in_flight{") && line.contains("acme") && line.ends_with(count))
    };
    assert!(comes_true(|| in_flight(" 2")), "{}", gateway.metrics());
    given_up.send_reset(h2::Reason::CANCEL);
    drop(body);
    assert!(comes_true(|| in_flight(" 1")), "{}", gateway.metrics());
    close_bidi(kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_dies_in_the_middle_of_a_call_is_noticed() {
    let origin = Origin::start("a");
    let gateway = gateway(&origin, "");
    let client = Http2::plain(&gateway).await;
    let (_send, mut body) = open_bidi(&client).await;
    drop(origin);
    // Neither a message nor a good end.
    let ended = next(&mut body).await;
    let good = match &ended {
        Some(Err(_)) => false,
        Some(Ok(_)) => true,
        None => {
            patiently(body.trailers()).await.is_ok_and(|trailers| trailers.is_some_and(|t| t["grpc-status"] == "0"))
        }
    };
    assert!(!good, "{ended:?}");
}
