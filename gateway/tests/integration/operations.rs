//! What operators rely on: reloads, bad files, draining, replacing the binary.

use std::{
    fs,
    io::{BufReader, Write},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use tokio_tungstenite::tungstenite::{Error, Message};

use crate::{
    fixtures::{let_pass, with_policies},
    support::{self, Client, Gateway, KEY, Origin, Process, tls::connect_tls, two_tenants, wait_for},
    websocket::{assert_echo, open_socket},
};

const REQUEST: &str = "GET /v1/echo HTTP/1.1\r\nHost: acme.test\r\n\r\n";

#[test]
fn a_change_is_live_and_a_broken_file_changes_nothing() {
    let origin = Origin::start("eu-west");
    let tenants = two_tenants(&[origin.address], KEY);
    let gateway = Gateway::start(&tenants);
    gateway.write_tenants(&tenants.replace("revision: 1", "revision: 2").replace("globex.test", "globex2.test"));
    assert!(wait_for(&|| (gateway.get("globex2.test", "/v1/echo", "").status == 200).then_some(())).is_some());
    assert_eq!(gateway.get("globex.test", "/v1/echo", "").status, 404);

    gateway.write_tenants("revision: 3\ntenants:\n- id: acme\n  hosts: [acme.test]\n  rutes: []\n");
    let reported = wait_for(&|| {
        let ready = gateway.readyz();
        (ready.status == 200 && ready.text().contains("rutes")).then_some(ready)
    });
    assert!(reported.is_some(), "{}", gateway.readyz().text());
    assert_eq!(gateway.get("globex2.test", "/v1/echo", "").status, 200);
    assert!(gateway.logs("rutes"), "{}", gateway.log());
}

/// A gateway whose tenants are the files of the folder `conf`, beginning with `a.yaml`.
fn with_folder_of_tenants(tenants: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("conf")).unwrap();
    fs::write(folder.path().join("conf/a.yaml"), tenants).unwrap();
    let node = "listeners: { http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '127.0.0.1:0' }\n\
                tls: { development_certificate: true }\ntenants: conf\nstate_dir: state\n\
                egress: { allow_loopback: true }\n";
    fs::write(folder.path().join("node.yaml"), node).unwrap();
    let process = Gateway::spawn(folder.path(), &[]);
    let (http, https, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
    Gateway { folder, http, https, operations, process }
}

#[test]
fn a_folder_that_is_gone_takes_no_tenant_with_it() {
    let origin = Origin::start("eu-west");
    let tenants = two_tenants(&[origin.address], KEY);
    let gateway = with_folder_of_tenants(&tenants);
    let (conf, away) = (gateway.folder.path().join("conf"), gateway.folder.path().join("away"));
    let errors = || gateway.readyz().json()["last_reload"]["errors"].to_string();
    fs::rename(&conf, &away).unwrap();
    assert!(wait_for(&|| (errors() != "[]").then_some(())).is_some(), "{}", errors());
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    fs::create_dir(&conf).unwrap();
    assert!(wait_for(&|| errors().contains("no *.yaml file").then_some(())).is_some(), "{}", errors());
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    // And back: what it says now is in force.
    let next = tenants.replace("revision: 1", "revision: 2").replace("globex.test", "globex2.test");
    fs::write(conf.join("a.yaml"), next).unwrap();
    let live = wait_for(&|| (gateway.get("globex2.test", "/v1/echo", "").status == 200).then_some(()));
    assert!(live.is_some(), "{}", errors());
    assert!(wait_for(&|| (errors() == "[]").then_some(())).is_some(), "{}", errors());
}

#[test]
fn a_file_that_is_renamed_and_broken_at_once_takes_no_tenant_with_it() {
    let origin = Origin::start("eu-west");
    let tenants = two_tenants(&[origin.address], KEY);
    let gateway = with_folder_of_tenants(&tenants);
    let conf = gateway.folder.path().join("conf");
    fs::write(conf.join("b.txt"), "revision: [broken").unwrap();
    let errors = || gateway.readyz().json()["last_reload"]["errors"].to_string();
    fs::rename(conf.join("b.txt"), conf.join("b.yaml")).unwrap();
    fs::rename(conf.join("a.yaml"), conf.join("a.txt")).unwrap();
    assert!(wait_for(&|| errors().contains("b.yaml").then_some(())).is_some(), "{}", errors());
    // The next look at the folder finds the same.
    gateway.process.signal("-HUP");
    let looked = || gateway.log().matches("b.yaml").count() > 1;
    assert!(wait_for(&|| looked().then_some(())).is_some(), "{}", gateway.log());
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    // Once everything can be read, what is gone is gone.
    fs::remove_file(conf.join("b.yaml")).unwrap();
    let others = [("id: acme", "id: acme2"), ("acme.test", "acme2.test"), ("globex", "globex2")];
    let others = others.iter().fold(tenants.clone(), |text, (from, to)| text.replace(from, to));
    fs::write(conf.join("c.yaml"), others.replace("testglobex2", "testglobex")).unwrap();
    let gone = wait_for(&|| (gateway.get("acme.test", "/v1/echo", "").status == 404).then_some(()));
    assert!(gone.is_some(), "{}", errors());
    assert_eq!(gateway.get("acme2.test", "/v1/echo", "").status, 200);
}

#[test]
fn reloads_under_load_fail_no_request() {
    let origin = Origin::start("eu-west");
    let tenants = two_tenants(&[origin.address], KEY);
    let gateway = Gateway::start(&tenants);
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = gateway.connect();
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.request(REQUEST);
                    assert_eq!(answer.status, 200);
                    // Each revision sets both or none: a mixture would show here.
                    assert_eq!(answer.header("x-one"), answer.header("x-two"));
                    served.fetch_add(1, Ordering::Relaxed);
                    // A slow run comes to as many requests as one connection may have.
                    if answer.header("connection") == Some("close") {
                        client = gateway.connect();
                    }
                }
            });
        }
        for revision in 2..202 {
            let before = served.load(Ordering::Relaxed);
            if revision % 10 == 0 {
                gateway.write_tenants("revision: [broken");
            } else {
                let headers = format!(
                    "  policies:\n    headers: {{ response: {{ set: {{ x-one: '{revision}', x-two: '{revision}' }} }} }}\n    cors"
                );
                let next = tenants.replace("revision: 1", &format!("revision: {revision}"));
                gateway.write_tenants(&next.replace("  policies:\n    cors", &headers));
            }
            wait_for(&|| (served.load(Ordering::Relaxed) > before + 20).then_some(())).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let last = wait_for(&|| {
        let answer = gateway.get("acme.test", "/v1/echo", "");
        (answer.header("x-one") == Some("201")).then_some(())
    });
    assert!(last.is_some(), "{}", gateway.readyz().text());
}

#[test]
fn term_ends_an_idle_node_at_once_and_a_busy_one_after_its_requests() {
    let origin = Origin::start("eu-west");
    let mut gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let mut idle = gateway.connect();
    let mut busy = gateway.connect();
    busy.send(b"GET /v1/delay/1000 HTTP/1.1\r\nHost: acme.test\r\n\r\n");
    // The origin has it once the gateway counts it as in flight.
    let metrics =
        || Client::connect(gateway.operations).request("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").text();
    wait_for(&|| metrics().contains("in_flight{tenant=\"acme\"} 1").then_some(())).unwrap();
    gateway.process.signal("-TERM");
    assert!(idle.is_closed());
    assert_eq!(busy.receive().unwrap().status, 200);
    let ended = wait_for_end(&mut gateway.process);
    assert!(ended.success(), "{}", gateway.log());
}

#[test]
fn a_signal_that_comes_twice_at_once_cuts_nothing_and_a_later_one_does() {
    let origin = Origin::start("eu-west");
    for patient in [true, false] {
        let mut gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
        let mut busy = gateway.connect();
        busy.send(b"GET /v1/delay/2000 HTTP/1.1\r\nHost: acme.test\r\n\r\n");
        let in_flight = || gateway.metrics().contains("in_flight{tenant=\"acme\"} 1");
        wait_for(&|| in_flight().then_some(())).unwrap();
        // To a process group, and by whoever started it: Ctrl-C in a terminal does both.
        gateway.process.signal("-INT");
        gateway.process.signal("-TERM");
        if patient {
            assert_eq!(busy.receive().expect("an answer").status, 200);
        } else {
            let draining = || gateway.log().contains("draining");
            wait_for(&|| draining().then_some(())).unwrap();
            let_pass(Duration::from_millis(300));
            gateway.process.signal("-TERM");
            assert!(busy.receive().is_none());
        }
        assert_eq!(wait_for_end(&mut gateway.process).success(), patient, "{}", gateway.log());
    }
}

#[test]
fn a_handover_that_hangs_keeps_the_node_from_nothing() {
    let origin = Origin::start("eu-west");
    let mut gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    // It takes the sockets and never says that it serves.
    let hangs = std::os::unix::net::UnixListener::bind(gateway.folder.path().join("state/upgrade.sock")).unwrap();
    gateway.process.signal("-QUIT");
    let (connection, _) = hangs.accept().unwrap();
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    drop(connection);
}

#[test]
fn probes_are_answered_when_clients_have_taken_all_descriptors() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let pid = gateway.process.0.id().to_string();
    let limited = Command::new("prlimit").args(["--pid", &pid, "--nofile=100:100"]).status().unwrap();
    assert!(limited.success());
    let clients: Vec<Client> = (0..150).map(|_| gateway.connect()).collect();
    assert!(wait_for(&|| gateway.log().contains("raise the limit of open files").then_some(())).is_some());
    for _ in 0..10 {
        let answered = || probe(gateway.operations, "/livez").is_some_and(|answer| answer.status == 200);
        assert!(wait_for(&|| answered().then_some(())).is_some(), "{}", gateway.log());
    }
    drop(clients);
    assert!(wait_for(&|| (gateway.get("acme.test", "/v1/echo", "").status == 200).then_some(())).is_some());
}

#[test]
fn quit_hands_the_sockets_over_without_a_failed_request() {
    let origin = Origin::start("eu-west");
    let mut gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = gateway.http;
    let _next = std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = Client::connect(address);
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.request(REQUEST);
                    assert_eq!(answer.status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                    if answer.header("connection") == Some("close") {
                        client = Client::connect(address);
                    }
                }
            });
        }
        let next = hand_over(&gateway);
        assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
        let before = served.load(Ordering::Relaxed);
        wait_for(&|| (served.load(Ordering::Relaxed) > before + 100).then_some(())).unwrap();
        stop.store(true, Ordering::Relaxed);
        // The clients end first.
        next
    });
}

#[test]
fn term_ends_a_node_whose_clients_are_idle_at_once() {
    let origin = Origin::start("eu-west");
    let mut gateway = with_policies(origin.address, "");
    let mut clients: Vec<Client> = (0..10).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        // Of a chunked request, of an ordinary one, and of a refused one.
        let chunked = "POST /v1/echo HTTP/1.1\r\nHost: acme.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert_eq!(client.request(chunked).status, 200);
        assert_eq!(client.request(REQUEST).status, 200);
        assert_eq!(client.request("GET /nothing HTTP/1.1\r\nHost: acme.test\r\n\r\n").status, 404);
    }
    let mut silent = connect_tls(gateway.https);
    silent.flush().unwrap();
    let began = Instant::now();
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(clients.iter_mut().all(Client::is_closed));
}

#[test]
fn term_lets_a_websocket_talk_to_its_end() {
    let origin = Origin::start("eu-west");
    let mut gateway = with_policies(origin.address, "");
    let mut socket = open_socket(&gateway);
    assert_echo(&mut socket, Message::text("before"));
    gateway.process.signal("-TERM");
    assert!(wait_for(&|| std::net::TcpStream::connect(gateway.http).is_err().then_some(())).is_some());
    for _ in 0..5 {
        assert_echo(&mut socket, Message::text("while draining"));
    }
    assert!(gateway.process.0.try_wait().unwrap().is_none(), "it waits for the socket");
    socket.close(None).unwrap();
    assert!(matches!(socket.read(), Ok(Message::Close(_))));
    assert!(matches!(socket.read(), Err(Error::ConnectionClosed)));
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
}

#[test]
fn a_websocket_is_cut_when_its_time_to_drain_is_over() {
    let origin = Origin::start("eu-west");
    let tenants = two_tenants(&[origin.address], KEY);
    let mut gateway = Gateway::start_with(&tenants, "drain: { timeout: 500ms }\n");
    let mut socket = open_socket(&gateway);
    assert_echo(&mut socket, Message::text("before"));
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    assert!(socket.read().is_err());
}

#[test]
fn quit_keeps_websockets_on_the_old_process_while_the_new_one_serves() {
    let origin = Origin::start("eu-west");
    let mut gateway = with_policies(origin.address, "");
    let mut old = open_socket(&gateway);
    assert_echo(&mut old, Message::text("before"));
    let next = hand_over(&gateway);
    // The old process has stopped accepting once every new connection is served by the new one.
    for _ in 0..20 {
        assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
        assert_echo(&mut old, Message::binary(vec![1; 100_000]));
    }
    let mut new = open_socket(&gateway);
    assert_echo(&mut new, Message::text("after"));
    assert!(gateway.process.0.try_wait().unwrap().is_none(), "the old process waits for its socket");
    old.close(None).unwrap();
    while old.read().is_ok() {}
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    assert_echo(&mut new, Message::text("the old one has gone"));
    drop(next);
}

#[test]
fn quit_under_load_loses_nothing_over_tls() {
    let origin = Origin::start("eu-west");
    let mut gateway = with_policies(origin.address, "");
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let address = gateway.https;
    let _next = std::thread::scope(|scope| {
        for per_connection in [1, 3, 1000] {
            let (stop, served) = (&stop, &served);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let mut stream = BufReader::new(connect_tls(address));
                    for _ in 0..per_connection {
                        stream.get_mut().write_all(REQUEST.as_bytes()).unwrap();
                        let answer = support::receive(&mut stream).expect("an answer");
                        assert_eq!(answer.status, 200);
                        served.fetch_add(1, Ordering::Relaxed);
                        if answer.header("connection") == Some("close") || stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                }
            });
        }
        let more = |by| {
            let before = served.load(Ordering::Relaxed);
            wait_for(&|| (served.load(Ordering::Relaxed) > before + by).then_some(())).expect("requests are served");
        };
        more(50);
        let next = hand_over(&gateway);
        assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
        more(100);
        stop.store(true, Ordering::Relaxed);
        // The clients end first.
        next
    });
}

/// Starts a second process and has the first hand its sockets over.
pub(crate) fn hand_over(gateway: &Gateway) -> Process {
    let next = offer(gateway);
    let (http, https, _) = Gateway::wait_until_ready(gateway.folder.path(), next.0.id());
    assert_eq!((http, https), (gateway.http, gateway.https));
    next
}

/// The same, up to the moment when the second process has to begin.
fn offer(gateway: &Gateway) -> Process {
    let folder = gateway.folder.path();
    let next = Gateway::spawn(folder, &["--upgrade"]);
    wait_for(&|| folder.join("state/upgrade.sock").exists().then_some(())).unwrap();
    gateway.process.signal("-QUIT");
    next
}

#[test]
fn a_new_process_listens_where_its_file_says() {
    let origin = Origin::start("eu-west");
    let mut gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let folder = gateway.folder.path().to_owned();
    let node = fs::read_to_string(folder.join("node.yaml")).unwrap();
    let listen = |listeners: &str| {
        let changed = node.replace("http: ['127.0.0.1:0'], https: ['127.0.0.1:0']", listeners);
        fs::write(folder.join("node.yaml"), changed).unwrap();
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    listen(&format!("http: ['127.0.0.1:0', '{address}']"));
    assert!(!wait_for_end(&mut offer(&gateway)).success());
    assert!(gateway.logs(&format!("cannot listen on {address}")), "{}", gateway.log());
    assert!(gateway.logs("the sockets were not handed over"), "{}", gateway.log());
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200, "the former process goes on");

    listen("http: ['127.0.0.1:0', '127.0.0.2:0'], https: ['127.0.0.2:0']");
    let next = offer(&gateway);
    let (http, https, _) = Gateway::wait_until_ready(&folder, next.0.id());
    assert!(http == gateway.http && https.ip() != gateway.https.ip(), "{http} {https}");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    let addresses = fs::read_to_string(folder.join("state/addresses.json")).unwrap();
    let addresses: serde_json::Value = serde_json::from_str(&addresses).unwrap();
    for address in [&addresses["http"][0], &addresses["http"][1]] {
        let answer = Client::connect(address.as_str().unwrap().parse().unwrap()).request(REQUEST);
        assert_eq!(answer.status, 200, "{address}");
    }
    let mut client = BufReader::new(connect_tls(https));
    client.get_mut().write_all(REQUEST.as_bytes()).unwrap();
    assert_eq!(support::receive(&mut client).unwrap().status, 200);
    assert!(std::net::TcpStream::connect(gateway.https).is_err(), "nobody has a listener there any more");
}

/// A folder for a node with addresses of its own that takes two seconds to load: so long it waits for a name server
/// that says nothing.
fn node_that_is_loading(origin: &Origin, silent: &std::net::UdpSocket) -> (tempfile::TempDir, std::net::SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    // Among the addresses of the loopback network nobody else has chosen the same.
    let number = std::process::id().to_le_bytes();
    let operations = std::net::SocketAddr::from(([127, number[0] | 1, number[1] | 1, 9], 19_090));
    let server = silent.local_addr().unwrap();
    let node = format!(
        "listeners: {{ http: ['127.0.0.1:0'], https: ['127.0.0.1:0'], operations: '{operations}' }}\n\
         tls: {{ development_certificate: true }}\ntenants: tenants.yaml\nstate_dir: state\n\
         dns: {{ servers: ['{server}'] }}\negress: {{ allow_loopback: true }}\n"
    );
    fs::write(folder.path().join("node.yaml"), node).unwrap();
    let slow = "upstreams:\n  slow: { endpoints: [{ address: 'slow.test:80' }] }\n";
    let tenants = two_tenants(&[origin.address], KEY).replace("upstreams:\n", slow);
    fs::write(folder.path().join("tenants.yaml"), tenants).unwrap();
    (folder, operations)
}

fn probe(operations: std::net::SocketAddr, target: &str) -> Option<support::Response> {
    let mut stream = BufReader::new(std::net::TcpStream::connect(operations).ok()?);
    write!(stream.get_mut(), "GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").ok()?;
    support::receive(&mut stream)
}

#[test]
fn a_node_that_is_still_loading_is_live_and_says_why_it_is_not_ready() {
    let origin = Origin::start("eu-west");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (folder, operations) = node_that_is_loading(&origin, &silent);
    let process = Gateway::spawn(folder.path(), &[]);
    let live = wait_for(&|| probe(operations, "/livez")).expect("probes are answered");
    assert_eq!(live.status, 200);
    let waiting = probe(operations, "/readyz").unwrap();
    assert_eq!(waiting.status, 503);
    assert_eq!(waiting.json()["checks"]["configuration_loaded"], false);
    assert!(waiting.json()["reason"].as_str().unwrap().contains("no configuration"), "{}", waiting.text());
    // Signals that are meant for a node that serves do no harm to one that does not yet.
    process.signal("-HUP");
    process.signal("-QUIT");
    assert_eq!(probe(operations, "/livez").unwrap().status, 200);
    let (http, _, _) = Gateway::wait_until_ready(folder.path(), process.0.id());
    let ready = probe(operations, "/readyz").unwrap();
    assert_eq!((ready.status, ready.json().get("reason")), (200, None), "{}", ready.text());
    assert_eq!(Client::connect(http).request(REQUEST).status, 200);
}

#[test]
fn term_ends_a_node_that_is_still_loading() {
    let origin = Origin::start("eu-west");
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (folder, operations) = node_that_is_loading(&origin, &silent);
    let mut process = Gateway::spawn(folder.path(), &[]);
    wait_for(&|| probe(operations, "/livez")).expect("probes are answered");
    process.signal("-TERM");
    assert!(wait_for_end(&mut process).success());
}

#[test]
fn a_second_node_on_the_same_ports_is_refused_and_the_first_serves_on() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let second = Command::new(support::binary("seiketsu-gateway"))
        .args(["--config", gateway.folder.path().join("node.yaml").to_str().unwrap()])
        .args(["--http", &gateway.http.to_string()])
        .args(["--state-dir", gateway.folder.path().join("second").to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success(), "{said}");
    assert!(said.contains(&format!("cannot listen on {}", gateway.http)), "{said}");
    assert_eq!(gateway.get("acme.test", "/v1/echo", "").status, 200);
}

#[test]
fn after_a_handover_only_the_new_process_answers_probes() {
    let origin = Origin::start("eu-west");
    let gateway = with_policies(origin.address, "");
    let node = fs::read_to_string(gateway.folder.path().join("node.yaml")).unwrap();
    // The same address for both, as in practice.
    let next_node = node.replace("operations: '127.0.0.1:0'", &format!("operations: '{}'", gateway.operations));
    fs::write(gateway.folder.path().join("node.yaml"), next_node).unwrap();
    let mut old = open_socket(&gateway);
    let _next = hand_over(&gateway);
    assert_echo(&mut old, Message::text("the old process still has work to do"));
    wait_for(&|| gateway.log().contains("draining").then_some(())).unwrap();
    let ready = || probe(gateway.operations, "/readyz").is_some_and(|answer| answer.status == 200);
    assert!(wait_for(&|| (0..30).all(|_| ready()).then_some(())).is_some(), "some find a node that drains");
    for _ in 0..30 {
        assert_eq!(probe(gateway.operations, "/readyz").unwrap().status, 200);
    }
}

pub(crate) fn wait_for_end(process: &mut Process) -> std::process::ExitStatus {
    let process = std::cell::RefCell::new(process);
    wait_for(&|| process.borrow_mut().0.try_wait().unwrap()).expect("the process ends")
}

/// A pipe to nobody: who reads the log may stop reading.
#[test]
fn a_reader_of_the_log_that_stops_holds_nothing_up() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let folder = tempfile::tempdir().unwrap();
    for file in ["tenants.yaml", "node.yaml"] {
        fs::copy(gateway.folder.path().join(file), folder.path().join(file)).unwrap();
    }
    let child = Command::new(support::binary("seiketsu-gateway"))
        .args(["--log", "trace", "--config"])
        .arg(folder.path().join("node.yaml"))
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut process = Process(child);
    let (http, _, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
    let mut client = Client::connect(http);
    // Some lines each: far more than a pipe holds.
    for _ in 0..3000 {
        assert_eq!(client.request(REQUEST).status, 200);
    }
    assert_eq!(Client::connect(operations).request("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 200);
    process.signal("-TERM");
    assert!(wait_for_end(&mut process).success());
}

#[test]
fn pages_of_other_sites_get_no_further_than_a_refusal() {
    let origin = Origin::start("eu-west");
    let gateway = Gateway::start(&two_tenants(&[origin.address], KEY));
    let address = gateway.operations;
    let ask = |request: &str, fields: &str| {
        let body = r#"{ "tenant": "acme", "all": true }"#;
        let length = body.len();
        Client::connect(address)
            .request(&format!("{request} HTTP/1.1\r\n{fields}Content-Length: {length}\r\n\r\n{body}"))
    };
    for (request, fields) in [
        ("POST /cache/purge", "Host: localhost\r\nOrigin: https://evil.example\r\nContent-Type: text/plain\r\n"),
        ("POST /cache/purge", "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n"),
        ("GET /config?tenant=acme", "Host: evil.example\r\n"),
        ("GET /usage", "Host: evil.example:9090\r\n"),
    ] {
        let refused = ask(request, fields);
        assert_eq!((refused.status, refused.problem().as_str()), (403, "forbidden"), "{request} {fields}");
    }
    assert!(!gateway.log().contains("purged"), "{}", gateway.log());
    let by_address = format!("Host: {address}\r\nSec-Fetch-Site: none\r\n");
    assert_eq!(ask("GET /config?tenant=acme", &by_address).status, 200);
    assert_eq!(ask("GET /config?tenant=acme", "Host: localhost:9090\r\n").status, 200);
}

#[test]
fn a_silent_connection_before_its_handshake_does_not_hold_up_the_end() {
    let origin = Origin::start("eu-west");
    let mut gateway =
        Gateway::start_with(&two_tenants(&[origin.address], KEY), "protection: { handshake_timeout: 1m }\n");
    let _silent = Client::connect(gateway.https);
    // Whoever comes later is accepted later.
    drop(connect_tls(gateway.https));
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
}
