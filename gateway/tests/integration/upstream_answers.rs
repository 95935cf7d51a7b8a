//! What upstreams send, rightly or wrongly, and what clients get to see of it.

use std::{
    io::{BufReader, Write},
    net::{SocketAddr, TcpListener},
    sync::mpsc,
};

use crate::{
    fixtures::{Stub, ok, read_request, with_policies},
    support::{
        Client, Origin, Response,
        http2::{Http2, next, patiently},
    },
};

/// On a connection of the client's own choice: what it asks twice is asked of the same worker, and so over
/// the same connections to the upstream.
fn get(client: &mut Client, path: &str) -> Response {
    client.request(&format!("GET {path} HTTP/1.1\r\nHost: acme.test\r\n\r\n"))
}

/// An upstream that sends the same to everyone who asks, and then closes, or holds the connection and says
/// nothing more.
fn sends(bytes: &str, holds: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let bytes = bytes.to_owned();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let reading = stream.try_clone().unwrap();
            if read_request(0, &mut BufReader::new(&reading)).is_some() {
                let _ = stream.write_all(bytes.as_bytes());
            }
            if holds {
                held.push(stream);
            }
        }
    });
    address
}

const POISON: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Poison: yes\r\n\r\npoison";

#[test]
fn what_an_upstream_sends_beyond_its_answer_reaches_nobody() {
    for (method, answer, status, body) in [
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirst", 200, "first"),
        ("GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n", 200, "first"),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        ("GET", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", 304, ""),
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, ""),
    ] {
        // Not `Stub`, which knows that HEAD has no body.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections) = mpsc::channel();
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let (mut stream, seen) = (stream.unwrap(), seen.clone());
                std::thread::spawn(move || {
                    let reading = stream.try_clone().unwrap();
                    let mut reader = BufReader::new(&reading);
                    while let Some(request) = read_request(connection, &mut reader) {
                        let first = request.target() == "/v1/first";
                        let bytes = if first { format!("{answer}{POISON}").into_bytes() } else { ok("", b"second") };
                        seen.send(connection).unwrap();
                        if stream.write_all(&bytes).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let gateway = with_policies(address, "");
        let mut client = gateway.connect();
        client.send(format!("{method} /v1/first HTTP/1.1\r\nHost: acme.test\r\n\r\n").as_bytes());
        let first = if method == "HEAD" { client.receive_head() } else { client.receive().unwrap() };
        assert_eq!((first.status, first.text().as_str()), (status, body), "{method} {answer:?}");
        let second = get(&mut client, "/v1/second");
        assert_eq!(second.text(), "second", "{method} {answer:?}");
        assert_eq!(second.header("x-poison"), None);
        let (one, other) = (connections.recv().unwrap(), connections.recv().unwrap());
        assert_ne!(one, other, "a connection with unread bytes was used again: {method} {answer:?}");
    }
}

#[test]
fn where_a_body_ends_is_said_once_or_not_at_all() {
    for (head, status, lengths, codings) in [
        ("200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 200, vec!["5"], vec![]),
        ("200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", 200, vec!["5"], vec![]),
        ("200 OK\r\nContent-Length: 5,5 , 5\r\n\r\nhello", 200, vec!["5"], vec![]),
        ("200 OK\r\nContent-Length: 5, 05\r\n\r\nhello", 200, vec!["5"], vec![]),
        ("200 OK\r\nContent-Length: 005\r\nContent-Length: 5\r\n\r\nhello", 200, vec!["5"], vec![]),
        ("200 OK\r\nContent-Length: 05\r\n\r\nhello", 200, vec!["5"], vec![]),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            vec![],
            vec!["chunked"],
        ),
        ("200 OK\r\nTransfer-Encoding: Chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, vec![], vec!["chunked"]),
        (
            "200 OK\r\nSet-Cookie: a\r\nSet-Cookie: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            200,
            vec![],
            vec!["chunked"],
        ),
        ("204 No Content\r\nContent-Length: 5\r\n\r\n", 204, vec![], vec![]),
        ("204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", 204, vec![], vec![]),
        ("200 OK\r\nSet-Cookie: a\r\nSet-Cookie: a\r\nContent-Length: 5\r\n\r\nhello", 200, vec!["5"], vec![]),
    ] {
        let gateway = with_policies(sends(&format!("HTTP/1.1 {head}"), false), "");
        let mut client = gateway.connect();
        client.send(b"GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        let answer = if status == 204 { client.receive_head() } else { client.receive().unwrap() };
        assert_eq!(answer.status, status, "{head}");
        assert_eq!((answer.all("content-length"), answer.all("transfer-encoding")), (lengths, codings), "{head}");
        assert_eq!(answer.text(), if status == 204 { "" } else { "hello" });
        assert_eq!(answer.all("set-cookie").len(), head.matches("Set-Cookie").count());
    }
}

#[test]
fn the_version_of_an_answer_is_that_of_the_gateway() {
    for framed in
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", "\r\nhello"]
    {
        let gateway = with_policies(sends(&format!("HTTP/1.0 200 OK\r\n{framed}"), false), "");
        for version in ["1.0", "1.1"] {
            let request = format!("GET /v1/x HTTP/{version}\r\nHost: acme.test\r\nConnection: close\r\n\r\n");
            let answer = String::from_utf8(gateway.raw(&request)).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("hello"), "{framed} {version}: {answer}");
        }
    }
}

#[test]
fn what_an_upstream_sends_while_nobody_asks_reaches_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (go, gone) = mpsc::channel::<()>();
    let (sent, poisoned) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut first, _) = listener.accept().unwrap();
        let reading = first.try_clone().unwrap();
        read_request(0, &mut BufReader::new(&reading)).unwrap();
        first.write_all(&ok("", b"first")).unwrap();
        gone.recv().unwrap();
        first.write_all(POISON.as_bytes()).unwrap();
        sent.send(()).unwrap();
        let (mut second, _) = listener.accept().unwrap();
        let reading = second.try_clone().unwrap();
        read_request(1, &mut BufReader::new(&reading)).unwrap();
        second.write_all(&ok("", b"second")).unwrap();
        // Held open to the end of the test.
        let _ = gone.recv();
        drop(first);
    });
    let gateway = with_policies(address, "");
    let mut client = gateway.connect();
    assert_eq!(get(&mut client, "/v1/first").text(), "first");
    go.send(()).unwrap();
    poisoned.recv().unwrap();
    let second = get(&mut client, "/v1/second");
    assert_eq!((second.status, second.text().as_str()), (200, "second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_cannot_be_understood_are_a_502() {
    let many: String = (0..400).map(|n| format!("X-{n}: 1\r\n")).collect();
    let long = format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n\r\n", "x".repeat(2 << 20));
    for answer in [
        "garbage\r\n\r\n".to_owned(),
        "HTTP/1.1 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 20 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 099 OK\r\n\r\n".to_owned(),
        "HTTP/2.0 200 OK\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\n: nameless\r\nContent-Length: 0\r\n\r\n".to_owned(),
        // Nobody asked for another protocol.
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        long,
    ] {
        let case = &answer[..answer.len().min(100)];
        let bytes = answer.clone().into_bytes();
        let stub = Stub::start(move |_| bytes.clone());
        let gateway = with_policies(stub.address, "");
        let mut client = gateway.connect();
        client.send(b"POST /v1/x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 0\r\n\r\n");
        let plain = client.receive().unwrap_or_else(|| panic!("no answer: {case:?}"));
        assert_eq!((plain.status, plain.problem().as_str()), (502, "upstream-error"), "{case:?}");
        assert!(!plain.text().contains("127.0.0.1"), "{plain:?}");
        let client = Http2::plain(&gateway).await;
        let answer = client.send(client.request("POST", "acme.test", "/v1/x"), b"").await;
        let answer = answer.unwrap_or_else(|error| panic!("{error}: {case:?}"));
        assert_eq!((answer.status, answer.problem().as_str()), (502, "upstream-error"), "{case:?}");
        let mut connections: Vec<usize> = stub.seen().iter().map(|seen| seen.connection).collect();
        let asked = connections.len();
        connections.dedup();
        assert_eq!(connections.len(), asked, "a connection out of step was used again: {case:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_breaks_off_is_not_whole_in_http2_either() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nnonsense\r\n",
    ] {
        let address = sends(answer, false);
        let gateway = with_policies(address, "retries: { attempts: 0 }");
        for client in [Http2::plain(&gateway).await, Http2::tls(&gateway, "acme.test").await] {
            let (response, _) = client.open(client.request("GET", "acme.test", "/v1/x"), true).await.unwrap();
            match patiently(response).await {
                // It broke before anything was passed on: also an answer, and a whole one.
                Ok(response) if response.status() == 502 => {}
                Err(error) => assert!(error.is_reset(), "{error}"),
                Ok(response) => {
                    let mut body = response.into_body();
                    let mut ended = None;
                    while let Some(piece) = next(&mut body).await {
                        if let Err(error) = piece {
                            ended = Some(error);
                            break;
                        }
                    }
                    assert!(ended.is_some_and(|error| error.is_reset()), "taken for whole: {answer:?}");
                }
            }
            // The other streams of the connection do not suffer.
            assert_eq!(client.get("acme.test", "/nothing").await.status, 404);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_for_the_next_hop_only_end_at_the_gateway() {
    let stub = Stub::answering(
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nProxy-Connection: keep-alive\r\n\
         Upgrade: h2c\r\nX-Kept: 1\r\n",
        "hello",
    );
    let gateway = with_policies(stub.address, "");
    let plain = gateway.get("acme.test", "/v1/x", "");
    let h2 = Http2::plain(&gateway).await.get("acme.test", "/v1/x").await.plain();
    for (version, answer) in [("HTTP/1.1", &plain), ("HTTP/2", &h2)] {
        for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
            assert_eq!(answer.header(name), None, "{version} {name}");
        }
        assert_eq!((answer.header("x-kept"), answer.text().as_str()), (Some("1"), "hello"), "{version}");
    }
    assert_eq!(plain.all("connection"), ["keep-alive"], "the gateway's own");
    assert_eq!(h2.header("connection"), None);

    let fields = "Connection: X-Hop, close\r\nX-Hop: 1\r\nKeep-Alive: timeout=1\r\nProxy-Connection: keep-alive\r\n\
                  TE: trailers, deflate\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nX-Kept: 1\r\n";
    assert_eq!(gateway.get("acme.test", "/v1/y", fields).status, 200);
    let seen = stub.seen().pop().unwrap();
    for name in ["x-hop", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings"] {
        assert_eq!(seen.header(name), None, "{name}: {}", seen.head);
    }
    assert_eq!(seen.header("x-kept"), Some("1"));
}

#[test]
fn a_client_cannot_have_the_gateway_s_own_fields_taken_away() {
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "auth: { accept: [anonymous], forward_headers: true }");
    let honest = gateway.get("acme.test", "/v1/echo", "");
    assert!(honest.echoed("x-gateway-identity").is_some());
    for name in ["X-Gateway-Identity", "X-Request-Id", "X-Forwarded-For", "Host"] {
        let answer = gateway.get("acme.test", "/v1/echo", &format!("Connection: {name}\r\n"));
        if answer.status == 200 {
            assert!(answer.echoed(&name.to_ascii_lowercase()).is_some(), "{name}");
            assert!(answer.echoed("x-gateway-identity").is_some());
        } else {
            assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folded_fields_of_an_answer_arrive_on_one_line() {
    let stub = Stub::answering("X-Folded: a\r\n b\r\n\tc\r\nX-Spaced : d\r\n", "hello");
    let gateway = with_policies(stub.address, "");
    let plain = gateway.get("acme.test", "/v1/x", "");
    let h2 = Http2::plain(&gateway).await.get("acme.test", "/v1/x").await.plain();
    for answer in [plain, h2] {
        let words: Vec<&str> = answer.header("x-folded").unwrap().split_whitespace().collect();
        assert_eq!((words, answer.header("x-spaced")), (vec!["a", "b", "c"], Some("d")), "{}", answer.head);
    }
}

/// The answers until the one that is final, and that one.
fn until_final(client: &mut Client) -> (usize, Response) {
    for interim in 0.. {
        let answer = client.receive().unwrap_or_else(|| panic!("no answer after {interim} interim ones"));
        if answer.status >= 200 {
            return (interim, answer);
        }
    }
    unreachable!("a range without end")
}

const HINT: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";

#[test]
fn a_failure_after_a_hint_is_still_told() {
    for (address, method, status, problem) in [
        (sends(HINT, false), "GET", 502, "upstream-error"),
        (sends(HINT, false), "POST", 502, "upstream-error"),
        (sends(&format!("{HINT}nonsense\r\n\r\n"), false), "POST", 502, "upstream-error"),
        (sends(HINT, true), "GET", 504, "upstream-timeout"),
        (sends(HINT, true), "POST", 504, "upstream-timeout"),
    ] {
        let gateway = with_policies(address, "timeouts: { per_try: 300ms, total: 900ms }");
        let mut client = gateway.connect();
        client.send(format!("{method} /v1/x HTTP/1.1\r\nHost: acme.test\r\nContent-Length: 0\r\n\r\n").as_bytes());
        let (interim, answer) = until_final(&mut client);
        assert!(interim > 0, "the hint arrives");
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{method}");
        assert!(answer.header("x-request-id").is_some());
    }
}

#[test]
fn an_attempt_that_broke_after_a_hint_is_repeated_if_that_is_safe() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (connection, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let reading = stream.try_clone().unwrap();
            read_request(connection, &mut BufReader::new(&reading));
            let rest = if connection == 0 { Vec::new() } else { ok("", b"hello") };
            let _ = stream.write_all(&[HINT.as_bytes(), &rest].concat());
        }
    });
    let gateway = with_policies(address, "");
    let mut client = gateway.connect();
    client.send(b"GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    let (_, answer) = until_final(&mut client);
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
}

#[test]
fn hints_without_end_do_not_put_the_answer_off_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let reading = stream.try_clone().unwrap();
                read_request(0, &mut BufReader::new(&reading));
                while stream.write_all(HINT.as_bytes()).is_ok() {}
            });
        }
    });
    let gateway = with_policies(address, "timeouts: { per_try: 300ms, total: 300ms }, retries: { attempts: 0 }");
    let mut client = gateway.connect();
    client.send(b"GET /v1/x HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    let (_, answer) = until_final(&mut client);
    assert_eq!(answer.status, 504);
}

#[test]
fn an_offer_of_http2_is_not_taken_and_costs_nothing() {
    // What curl --http2 sends first without TLS.
    let origin = Origin::start("a");
    let gateway = with_policies(origin.address, "");
    let mut client = gateway.connect();
    let offer = "GET /v1/echo?n=1 HTTP/1.1\r\nHost: acme.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
                 Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    assert_eq!(client.request(offer).json()["query"].as_str(), Some("n=1"));
    assert_eq!(get(&mut client, "/v1/echo?n=2").json()["query"].as_str(), Some("n=2"));
}
