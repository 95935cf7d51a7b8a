//! What operators rely on: reloads, bad files, draining, replacing the binary.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::support::{self, Gateway, KEY, Origin, Process, two_tenants, wait_for};

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
    assert!(gateway.log().contains("rutes"));
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
        || support::Client::connect(gateway.operations).request("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").text();
    wait_for(&|| metrics().contains("in_flight{tenant=\"acme\"} 1").then_some(())).unwrap();
    gateway.process.signal("-TERM");
    assert!(idle.is_closed());
    assert_eq!(busy.receive().unwrap().status, 200);
    let ended = wait_for_end(&mut gateway.process);
    assert!(ended.success(), "{}", gateway.log());
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
                let mut client = support::Client::connect(address);
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.request(REQUEST);
                    assert_eq!(answer.status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                    if answer.header("connection") == Some("close") {
                        client = support::Client::connect(address);
                    }
                }
            });
        }
        let folder = gateway.folder.path().to_owned();
        let next = Gateway::spawn(&folder, &["--upgrade"]);
        wait_for(&|| folder.join("state/upgrade.sock").exists().then_some(())).unwrap();
        gateway.process.signal("-QUIT");
        let (http, ..) = Gateway::wait_until_ready(&folder, next.0.id());
        assert_eq!(http, address);
        assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
        let before = served.load(Ordering::Relaxed);
        wait_for(&|| (served.load(Ordering::Relaxed) > before + 100).then_some(())).unwrap();
        stop.store(true, Ordering::Relaxed);
        // The clients end first.
        next
    });
}

fn wait_for_end(process: &mut Process) -> std::process::ExitStatus {
    let process = std::cell::RefCell::new(process);
    wait_for(&|| process.borrow_mut().0.try_wait().unwrap()).expect("the process ends")
}
