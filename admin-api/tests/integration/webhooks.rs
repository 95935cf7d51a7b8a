//! Webhooks: signed, at least once, and to nobody who is not to be reached.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use seiketsu_admin_api::store::{Store, secrets::Place};
use serde_json::{Value, json};

use crate::{
    alerts::alert_of,
    support::{Admin, Client, Database, on_both, settings, tenant, tenant_with_rate, wait_until},
    trust::without_macs,
};

#[derive(Debug, Clone)]
pub struct Received {
    head: String,
    body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        let line = |line: &str| line.to_lowercase().starts_with(&format!("{name}: "));
        let found = self.head.lines().find(|found| line(found)).unwrap_or_else(|| panic!("{name}: {self:?}"));
        found.split_once(": ").unwrap().1.trim()
    }

    /// What was asked for.
    pub fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// Whether one of its signatures is of this secret.
    fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        let content = format!("{}.{}.{}", self.header("webhook-id"), self.header("webhook-timestamp"), self.body);
        self.header("webhook-signature").split(' ').any(|signature| {
            let tag = STANDARD.decode(signature.strip_prefix("v1,").unwrap()).unwrap();
            hmac::verify(&key, content.as_bytes(), &tag).is_ok()
        })
    }
}

/// Takes what is sent to it, and answers as the test says: with a status, or with nothing at all.
pub struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    answer: Arc<Mutex<String>>,
}

impl Receiver {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (received, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new("200 OK".to_owned())));
        let (all, told) = (Arc::clone(&received), Arc::clone(&answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, told) = (Arc::clone(&all), Arc::clone(&told));
                std::thread::spawn(move || take(stream, &all, &told));
            }
        });
        Self { address, received, answer }
    }

    /// From now on; empty: nothing.
    pub fn answers(&self, with: &str) {
        with.clone_into(&mut self.answer.lock().unwrap());
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?a=b", self.address)
    }

    fn comes_to(&self, count: usize) -> Vec<Received> {
        wait_until(&format!("{count} deliveries came"), || self.received().len() >= count);
        self.received()
    }
}

fn take(stream: TcpStream, all: &Mutex<Vec<Received>>, told: &Mutex<String>) {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    all.lock().unwrap().push(Received { head, body: String::from_utf8(body).unwrap() });
    let answer = told.lock().unwrap().clone();
    let mut stream = reader.into_inner();
    if answer.is_empty() {
        // Until the other end goes.
        let _ = stream.read(&mut [0]);
    } else if answer.starts_with("endless") {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    } else {
        let _ = stream.write_all(format!("HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").as_bytes());
    }
}

const LAX: [&str; 3] = ["--outbound-allow-private", "--webhook-pauses", "200ms,200ms"];

fn admin(database: &Database) -> Admin {
    Admin::start(database, tempfile::tempdir().unwrap(), &LAX)
}

/// One that is told what of this kind concerns this tenant.
pub fn hook(name: &str, url: &str, tenant: Option<&str>) -> Value {
    let tenants = tenant.map(|tenant| vec![tenant]);
    json!({ "name": name, "url": url, "kinds": ["revision"], "tenants": tenants })
}

fn deliveries(client: &Client, hook: &Value) -> Vec<Value> {
    let page = client.get(&format!("/webhooks/{}/deliveries?limit=1000", hook["id"].as_str().unwrap())).is(200).json();
    page["items"].as_array().unwrap().clone()
}

fn path(hook: &Value, rest: &str) -> String {
    format!("/webhooks/{}{rest}", hook["id"].as_str().unwrap())
}

on_both! {
    fn nothing_is_told_to_whom_somebody_has_put_into_the_store(database) {
        let (receiver, elsewhere) = (Receiver::start(), Receiver::start());
        let admin = admin(database);
        let owner = admin.client();
        owner.post("/webhooks", &hook("mine", &receiver.url(), None)).is(201);
        database.execute(&format!("UPDATE webhooks SET url = '{}'", elsewhere.url()));
        owner.post("/webhooks", &hook("other", &receiver.url(), None)).is(201);
        owner.post("/tenants", &tenant("acme")).is(201);
        receiver.comes_to(1);
        wait_until("the trail tells", || {
            owner.get("/audit?action=refuse_row").json()["items"][0]["detail"]["row"].to_string().contains("webhooks/")
        });
        assert!(elsewhere.received.lock().unwrap().is_empty());
    }

    fn what_happens_is_delivered_signed_to_whom_it_concerns(database) {
        let receiver = Receiver::start();
        let admin = admin(database);
        let owner = admin.client();
        owner.post("/tenants", &tenant("before")).is(201);
        let made = owner.post("/webhooks", &hook("mine", &receiver.url(), Some("acme"))).is(201).json();
        let secret = made["secret"].as_str().unwrap().to_owned();
        owner.post("/tenants", &tenant("globex")).is(201);
        owner.post("/tenants", &tenant("acme")).is(201);
        let first = receiver.comes_to(1)[0].clone();
        assert!(first.head.starts_with("POST /hook?a=b HTTP/1.1"), "{first:?}");
        let told = first.json();
        assert_eq!((&told["type"], &told["data"]["tenants"]), (&json!("revision"), &json!(["acme"])));
        assert!(first.is_signed_with(&secret) && !first.header("webhook-signature").contains(' '));
        // The secret is sealed, and shown once.
        assert!(!owner.get("/webhooks").text().contains("whsec_"));
        assert!(!owner.get("/audit?limit=1000").text().contains("whsec_"));
        let plain = format!("SELECT COUNT(*) AS number FROM webhooks WHERE secret LIKE '%{}%'", &secret[6..20]);
        assert_eq!(database.number(&plain), 0);

        // While a new one is taken over, both sign.
        let rotated = owner.post(&path(&made, "/rotate-secret"), &json!({ "grace_seconds": 3600 })).is(200).json();
        let newer = rotated["secret"].as_str().unwrap().to_owned();
        let tested = owner.post(&path(&made, "/test"), &json!({})).is(202).json();
        let second = receiver.comes_to(2)[1].clone();
        assert_eq!((second.json()["type"].clone(), second.header("webhook-id")), (json!("webhook.test"), tested["id"].as_str().unwrap()));
        assert!(second.is_signed_with(&secret) && second.is_signed_with(&newer) && secret != newer);
        owner.post(&path(&made, "/rotate-secret"), &json!({ "grace_seconds": 0 })).is(200);
        owner.post("/secrets/rotate", &json!({})).is(200);
        owner.post(&path(&made, "/test"), &json!({})).is(202);
        let third = receiver.comes_to(3)[2].clone();
        assert!(!third.is_signed_with(&secret) && !third.is_signed_with(&newer));
        wait_until("all are delivered", || deliveries(&owner, &made).iter().all(|delivery| delivery["state"] == "delivered"));
        assert_eq!(deliveries(&owner, &made).len(), 3);
    }

    fn what_is_not_taken_is_tried_again_until_it_is_dead_and_can_be_replayed(database) {
        let receiver = Receiver::start();
        let admin = admin(database);
        let owner = admin.client();
        let made = owner.post("/webhooks", &hook("mine", &receiver.url(), None)).is(201).json();
        receiver.answers("500 No");
        owner.post("/tenants", &tenant("acme")).is(201);
        wait_until("it is dead", || deliveries(&owner, &made).iter().any(|delivery| delivery["state"] == "dead"));
        let dead = deliveries(&owner, &made)[0].clone();
        assert_eq!((&dead["attempts"], &dead["last_status"]), (&json!(3), &json!(500)));
        let tried = receiver.received();
        assert_eq!(tried.len(), 3);
        assert!(tried.iter().all(|one| one.header("webhook-id") == dead["id"].as_str().unwrap()));
        assert_eq!(owner.get(&path(&made, "/deliveries?state=dead")).json()["items"].as_array().unwrap().len(), 1);
        // A redirect is none that is followed.
        let elsewhere = Receiver::start();
        receiver.answers(&format!("302 Found\r\nlocation: {}", elsewhere.url()));
        let replay = path(&made, &format!("/deliveries/{}/replay", dead["id"].as_str().unwrap()));
        owner.post(&replay, &json!({})).is(202);
        wait_until("it is dead again", || deliveries(&owner, &made)[0]["last_status"] == 302 && deliveries(&owner, &made)[0]["state"] == "dead");
        assert!(elsewhere.received().is_empty());
        // And an answer without an end is not read to it.
        receiver.answers("endless");
        owner.post(&replay, &json!({})).is(202);
        wait_until("it is delivered", || deliveries(&owner, &made)[0]["state"] == "delivered");
        assert_eq!(receiver.received().last().unwrap().json()["data"]["tenants"], json!(["acme"]));
        owner.post(&path(&made, "/deliveries/x/replay"), &json!({})).is_problem(400, ":bad-request");
    }

    fn what_was_to_be_delivered_outlives_a_process_that_is_killed(database) {
        let receiver = Receiver::start();
        let mut first = admin(database);
        let owner = first.client();
        let made = owner.post("/webhooks", &hook("mine", &receiver.url(), None)).is(201).json();
        // It is killed while it waits for the answer, with more that it has not begun with.
        receiver.answers("");
        owner.post("/tenants", &tenant("acme")).is(201);
        receiver.comes_to(1);
        for rate in 1..5 {
            owner.put("/tenants/acme", &tenant_with_rate("acme", rate)).is(200);
        }
        first.process.0.kill().unwrap();
        first.process.wait();
        receiver.answers("200 OK");
        let second = admin(database);
        let owner = Client { token: Some(first.token.clone()), ..second.client() };
        wait_until("all are delivered", || {
            let all = deliveries(&owner, &made);
            all.len() == 5 && all.iter().all(|delivery| delivery["state"] == "delivered")
        });
        let mut revisions: Vec<u64> =
            receiver.received().iter().map(|one| one.json()["data"]["detail"]["revision"].as_u64().unwrap()).collect();
        revisions.sort_unstable();
        revisions.dedup();
        assert_eq!(revisions, [1, 2, 3, 4, 5]);
    }

    fn a_webhook_that_takes_nothing_any_more_is_disabled_and_that_is_an_alert(database) {
        let receiver = Receiver::start();
        receiver.answers("503 No");
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["--outbound-allow-private", "--webhook-pauses", "100ms,100ms,1s,100ms,100ms,100ms", "--webhook-disable-after", "1s"];
        let admin = Admin::start(database, folder, &arguments);
        let owner = admin.client();
        let body = hook("mine", &receiver.url(), None);
        let made = owner.post("/webhooks", &body).is(201).json();
        owner.post("/tenants", &tenant("acme")).is(201);
        wait_until("it is disabled", || owner.get(&path(&made, "")).json()["enabled"] == false);
        let alert = alert_of(&owner, "webhook-disabled");
        assert!(alert["summary"].as_str().unwrap().contains("mine") && alert["summary"].as_str().unwrap().contains("503"), "{alert}");
        assert_eq!(owner.get("/audit?action=disable_webhook").json()["items"].as_array().unwrap().len(), 1);
        // What waits for it comes when it is enabled again.
        receiver.answers("200 OK");
        owner.put(&path(&made, ""), &body).is(200);
        wait_until("it is delivered", || deliveries(&owner, &made)[0]["state"] == "delivered");
        wait_until("the alert is over", || alert_of(&owner, "webhook-disabled")["state"] == "resolved");
        receiver.answers("410 Gone");
        owner.post(&path(&made, "/test"), &json!({})).is(202);
        wait_until("it is disabled at once", || owner.get(&path(&made, "")).json()["enabled"] == false);
    }

    fn a_receiver_that_does_not_answer_holds_up_nobody_else(database) {
        let (silent, good) = (Receiver::start(), Receiver::start());
        silent.answers("");
        let admin = admin(database);
        let owner = admin.client();
        let slow = owner.post("/webhooks", &hook("slow", &silent.url(), Some("acme"))).is(201).json();
        for rate in 1..300 {
            owner.put("/tenants/acme", &tenant_with_rate("acme", rate)).is(200);
        }
        wait_until("it has hundreds to take", || deliveries(&owner, &slow).len() == 299);
        silent.comes_to(4);
        let begun = std::time::Instant::now();
        owner.post("/webhooks", &hook("good", &good.url(), Some("globex"))).is(201);
        owner.post("/tenants", &tenant("globex")).is(201);
        good.comes_to(1);
        // Less than what the other one has to answer.
        assert!(begun.elapsed() < std::time::Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_eq!(silent.received().len(), 4, "one receiver has a few at a time");
    }

    fn one_whose_secret_cannot_be_opened_is_told_so_and_the_others_are_delivered(database) {
        let receiver = Receiver::start();
        let admin = admin(database);
        let owner = admin.client();
        let damaged = owner.post("/webhooks", &hook("damaged", &receiver.url(), None)).is(201).json();
        let good = owner.post("/webhooks", &hook("good", &receiver.url(), None)).is(201).json();
        database.execute("UPDATE webhooks SET secret = 's1.nonsense' WHERE name = 'damaged'");
        owner.post("/tenants", &tenant("acme")).is(201);
        receiver.comes_to(1);
        wait_until("it is delivered", || deliveries(&owner, &good)[0]["state"] == "delivered");
        wait_until("it is dead", || deliveries(&owner, &damaged)[0]["state"] == "dead");
        let told = deliveries(&owner, &damaged)[0]["last_error"].clone();
        assert!(told.as_str().unwrap().contains("secret cannot be opened"), "{told}");
        assert_eq!(receiver.received().len(), 1);
    }

    fn what_an_earlier_release_has_sealed_is_sealed_for_its_receiver_once(database) {
        let receiver = Receiver::start();
        let folder = tempfile::tempdir().unwrap();
        let (id, secret) = ("00112233-4455-6677-8899-aabbccddeeff", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let sealed = tokio::runtime::Runtime::new().unwrap().block_on(async {
            let store = Store::connect(&settings(database.url())).await.unwrap();
            store.first_tokens(folder.path()).await.unwrap();
            let place = Place { tenant: "", table: "webhooks", column: "secret", row: id, destination: "" };
            store.seal(place, &secret.to_owned().into()).unwrap()
        });
        without_macs(database);
        let key = match database {
            Database::Sqlite(_) => format!("X'{}'", id.replace('-', "")),
            Database::Postgres(_) => format!("'{id}'"),
        };
        let url = receiver.url();
        database.execute(&format!(
            "INSERT INTO webhooks (id, name, url, secret, enabled, revision, created_at) \
             SELECT {key}, 'mine', '{url}', '{sealed}', true, 1, created_at FROM operators; \
             DELETE FROM cursors WHERE name = 'secrets-of-receivers'"
        ));
        let admin = Admin::start(database, folder, &LAX);
        let owner = admin.client();
        let made = json!({ "id": id });
        owner.post(&path(&made, "/test"), &json!({})).is(202);
        let tests = || -> Vec<Received> {
            receiver.received().into_iter().filter(|one| one.json()["type"] == "webhook.test").collect()
        };
        wait_until("it comes", || tests().len() == 1);
        assert!(tests()[0].is_signed_with(secret));
        // Whoever brings it back later brings back nothing.
        database.execute(&format!("UPDATE webhooks SET secret = '{sealed}'"));
        let test = owner.post(&path(&made, "/test"), &json!({})).is(202).json();
        wait_until("it is dead", || {
            deliveries(&owner, &made).iter().any(|delivery| delivery["id"] == test["id"] && delivery["state"] == "dead")
        });
        assert_eq!(tests().len(), 1);
    }

    fn webhooks_are_as_many_as_they_may_be(database) {
        let admin = database.admin();
        let owner = admin.client();
        let url = "https://hooks.example/";
        for number in 0..20 {
            owner.post("/webhooks", &hook(&format!("h{number}"), url, Some("acme"))).is(201);
        }
        let refused = owner.post("/webhooks", &hook("more", url, Some("acme"))).is_problem(409, ":limit-reached");
        assert_eq!(refused["most"], 20);
        let other = owner.post("/webhooks", &hook("other", url, Some("globex"))).is(201).json();
        owner.put(&path(&other, ""), &hook("other", url, Some("acme"))).is_problem(409, ":limit-reached");
        owner.put(&path(&other, ""), &hook("renamed", url, Some("globex"))).is(200);
        let mut none = hook("none", url, None);
        none["tenants"] = json!([]);
        assert_eq!(owner.post("/webhooks", &none).is_problem(422, ":invalid")["errors"][0]["path"], "tenants");
        let id = match database {
            Database::Sqlite(_) => "unhex(printf('%032x', i))",
            Database::Postgres(_) => "CAST(lpad(to_hex(i), 32, '0') AS UUID)",
        };
        database.execute(&format!(
            "WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 979) \
             INSERT INTO webhooks (id, name, url, secret, enabled, revision, created_at) \
             SELECT {id}, 'n' || i, '{url}', '', false, 1, (SELECT MIN(created_at) FROM webhooks) FROM numbers"
        ));
        let refused = owner.post("/webhooks", &hook("beyond", url, None)).is_problem(409, ":limit-reached");
        assert_eq!(refused["most"], 1000);
    }
}

#[test]
fn each_delivery_is_tried_by_one_replica() {
    let database = Database::postgres();
    let receiver = Receiver::start();
    let one = admin(&database);
    let _other = admin(&database);
    let owner = one.client();
    let made = owner.post("/webhooks", &hook("mine", &receiver.url(), None)).is(201).json();
    owner.post("/tenants", &tenant("acme")).is(201);
    for rate in 1..100 {
        owner.put("/tenants/acme", &tenant_with_rate("acme", rate)).is(200);
    }
    wait_until("all are delivered", || {
        let all = deliveries(&owner, &made);
        all.len() == 100 && all.iter().all(|delivery| delivery["state"] == "delivered")
    });
    assert_eq!(receiver.received().len(), 100);
}

#[test]
fn how_a_delivery_went_is_kept_while_a_change_takes_its_time() {
    let database = Database::postgres();
    let receiver = Receiver::start();
    let admin = admin(&database);
    let owner = admin.client();
    let made = owner.post("/webhooks", &hook("mine", &receiver.url(), None)).is(201).json();
    owner.post("/tenants", &tenant("acme")).is(201);
    let is_delivered = |many: usize| {
        let all = deliveries(&owner, &made);
        all.len() == many && all.iter().all(|delivery| delivery["state"] == "delivered")
    };
    wait_until("it is delivered", || is_delivered(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
        let connection = sea_orm::Database::connect(database.url()).await.unwrap();
        let change = connection.begin().await.unwrap();
        // The row that every change needs.
        change.execute_unprepared("UPDATE control SET id = id").await.unwrap();
        database.execute(
            "INSERT INTO webhook_deliveries (id, webhook_id, kind, body, state, attempts, next_at, claimed_until, created_at) \
             SELECT gen_random_uuid(), webhook_id, kind, body, 'pending', 0, 0, 0, created_at FROM webhook_deliveries",
        );
        wait_until("it is kept", || is_delivered(2));
        change.rollback().await.unwrap();
    });
}

#[test]
fn nothing_is_sent_to_addresses_that_only_this_network_has() {
    let database = Database::sqlite();
    let receiver = Receiver::start();
    let admin = database.admin();
    let owner = admin.client();
    let port = receiver.address.port();
    for url in [
        format!("http://hooks.example:{port}/"),
        format!("https://127.0.0.1:{port}/"),
        "https://169.254.169.254/latest".to_owned(),
        format!("https://[::ffff:127.0.0.1]:{port}/"),
        "nonsense".to_owned(),
    ] {
        assert_eq!(
            owner.post("/webhooks", &hook("x", &url, None)).is_problem(422, ":invalid")["errors"][0]["path"],
            "url"
        );
    }
    // A name says nothing before it is looked up.
    let made = owner.post("/webhooks", &hook("x", &format!("https://localhost:{port}/"), None)).is(201).json();
    owner.post(&path(&made, "/test"), &json!({})).is(202);
    wait_until("it was tried", || deliveries(&owner, &made)[0]["attempts"] == 1);
    let error = deliveries(&owner, &made)[0]["last_error"].clone();
    assert!(error.as_str().unwrap().contains("private network"), "{error}");
    assert!(receiver.received().is_empty());
}

#[test]
fn an_operator_of_one_tenant_has_webhooks_for_that_one_alone() {
    let database = Database::sqlite();
    let admin = database.admin();
    let owner = admin.client();
    let globex = admin.operator("gil", "admin", Some(&["globex"]));
    let url = "https://hooks.example/";
    globex.post("/webhooks", &hook("mine", url, None)).is_problem(403, ":forbidden");
    let mine = globex.post("/webhooks", &hook("mine", url, Some("globex"))).is(201).json();
    globex.put(&path(&mine, ""), &hook("mine", url, Some("acme"))).is_problem(403, ":forbidden");
    owner.post("/webhooks", &hook("all", url, None)).is(201);
    let seen = globex.get("/webhooks").is(200).json();
    assert_eq!(seen["items"].as_array().unwrap().len(), 1);
    let etag = owner.get(&path(&mine, "")).is(200).etag().to_owned();
    globex.put_if(&path(&mine, ""), &hook("renamed", url, Some("globex")), Some(&etag)).is(200);
    globex
        .put_if(&path(&mine, ""), &hook("again", url, Some("globex")), Some(&etag))
        .is_problem(412, ":changed-meanwhile");
    globex.delete(&path(&mine, "")).is(204);
}
