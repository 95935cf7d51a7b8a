//! What configuration refers to is missing, changes, or is no file; and comes back.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    fixtures::{Issuer, comes_true},
    operations::wait_for_end,
    support::{Gateway, KEY, Origin, pki},
};

/// A folder `conf` of tenants, and one of what they refer to.
struct Files {
    folder: tempfile::TempDir,
    conf: PathBuf,
    others: PathBuf,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (conf, others) = (folder.path().join("conf"), folder.path().join("others"));
        fs::create_dir(&conf).unwrap();
        fs::create_dir(&others).unwrap();
        Self { folder, conf, others }
    }

    fn start(self) -> Gateway {
        Gateway::start_in(self.folder, "conf", "", "")
    }
}

/// A file of tenants: their ids, which are their hosts as well, and what they say beside.
fn file(origin: &Origin, mark: &str, tenants: &[(&str, &str)]) -> String {
    let tenant = |(id, more): &(&str, &str)| {
        format!(
            "- id: {id}\n  hosts: [{id}.test]\n{more}  policies: {{ headers: {{ response: {{ set: {{ x-mark: {mark} }} }} }} }}\n\
             \x20 routes: [{{ id: open, match: {{ path: '/v1/{{*rest}}' }}, upstream: demo }}]\n"
        )
    };
    format!(
        "revision: 1\ndefaults: {{ auth: {{ accept: [anonymous, api_key] }} }}\n\
         upstreams: {{ demo: {{ endpoints: [{{ address: '{}' }}] }} }}\ntenants:\n{}",
        origin.address,
        tenants.iter().map(tenant).collect::<String>()
    )
}

fn with_key(path: &Path) -> String {
    let key = path.display();
    format!("  consumers: [{{ id: app, keys: [{{ prefix: testacme, key: '${{file:{key}}}' }}] }}]\n")
}

/// Ends it and starts it again, with what is done between.
fn restart(mut gateway: Gateway, between: impl FnOnce()) -> Gateway {
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success(), "{}", gateway.log());
    between();
    let process = Gateway::spawn(gateway.folder.path(), &[]);
    let (http, https, operations) = Gateway::wait_until_ready(gateway.folder.path(), process.0.id());
    Gateway { folder: gateway.folder, http, https, operations, process }
}

fn last_reload(gateway: &Gateway) -> Value {
    gateway.readyz().json()["last_reload"].clone()
}

fn status(gateway: &Gateway, id: &str) -> u16 {
    gateway.get(&format!("{id}.test"), "/v1/echo", "").status
}

fn mark(gateway: &Gateway, id: &str) -> Option<String> {
    gateway.get(&format!("{id}.test"), "/v1/echo", "").header("x-mark").map(str::to_owned)
}

#[test]
fn a_start_without_a_file_that_is_referred_to_loses_its_tenants_only_until_it_is_back() {
    let origin = Origin::start("a");
    let files = Files::new();
    let (key, jwks) = (files.others.join("key"), files.others.join("jwks.json"));
    fs::write(&key, KEY).unwrap();
    fs::write(&jwks, Issuer::new("k1").jwks()).unwrap();
    let issuer = format!(
        "  jwt_issuers: [{{ issuer: 'https://login.test', audiences: [api], jwks: {{ file: '{}' }} }}]\n",
        jwks.display()
    );
    fs::write(files.conf.join("main.yaml"), file(&origin, "a", &[("acme", ""), ("keyed", &with_key(&key))])).unwrap();
    fs::write(files.conf.join("five.yaml"), file(&origin, "a", &[("five", &issuer)])).unwrap();
    let away = files.folder.path().join("away");
    let gateway = restart(files.start(), || {
        fs::create_dir(&away).unwrap();
        fs::rename(&key, away.join("key")).unwrap();
        fs::rename(&jwks, away.join("jwks")).unwrap();
    });
    assert_eq!(["acme", "keyed", "five"].map(|id| status(&gateway, id)), [200, 404, 404], "{}", gateway.log());
    let reload = last_reload(&gateway);
    assert_eq!((&reload["lost"], &reload["from_last_known_good"]), (&json!(["five", "keyed"]), &json!(true)));
    let errors = reload["errors"].to_string();
    assert!(errors.contains("others/key") && errors.contains("others/jwks.json"), "{errors}");

    // One of them comes back, then the other; nobody says anything to the node.
    fs::rename(away.join("key"), &key).unwrap();
    assert!(comes_true(|| status(&gateway, "keyed") == 200), "{}", gateway.log());
    assert_eq!(last_reload(&gateway)["lost"], json!(["five"]));
    fs::rename(away.join("jwks"), &jwks).unwrap();
    assert!(comes_true(|| status(&gateway, "five") == 200), "{}", gateway.log());
    assert!(comes_true(|| last_reload(&gateway)["from_last_known_good"] == false));
    let reload = last_reload(&gateway);
    assert_eq!((&reload["lost"], &reload["errors"]), (&json!([]), &json!([])));
    assert_eq!(status(&gateway, "acme"), 200);
}

#[test]
fn what_is_no_regular_file_is_told_and_holds_nothing_up() {
    let origin = Origin::start("a");
    let files = Files::new();
    fs::write(files.conf.join("main.yaml"), file(&origin, "first", &[("acme", "")])).unwrap();
    let conf = files.conf.clone();
    let mut gateway = files.start();
    assert!(Command::new("mkfifo").arg(conf.join("pipe.yaml")).status().unwrap().success());
    let told =
        || last_reload(&gateway)["errors"].to_string().contains("pipe.yaml: cannot read it: it is not a regular");
    assert!(comes_true(told), "{}", gateway.readyz().text());
    assert!(gateway.logs("not a regular file"));
    pki::replace(&conf.join("main.yaml"), &file(&origin, "second", &[("acme", "")]));
    assert!(comes_true(|| mark(&gateway, "acme").as_deref() == Some("second")), "{}", gateway.log());
    gateway.process.signal("-TERM");
    assert!(wait_for_end(&mut gateway.process).success());
}

#[test]
fn keys_and_documents_that_change_are_taken_without_being_asked() {
    let origin = Origin::start("a");
    let files = Files::new();
    let (key, schema) = (files.others.join("key"), files.others.join("schema.json"));
    fs::write(&key, KEY).unwrap();
    fs::write(&schema, json!({ "type": "string" }).to_string()).unwrap();
    let checked = format!(
        "defaults: {{ validation: {{ body_schema: {{ file: '{}' }} }}, auth: {{ accept: [anonymous] }} }}",
        schema.display()
    );
    let plain = file(&origin, "a", &[("checked", "")]);
    let defaults = plain.lines().nth(1).unwrap();
    fs::write(files.conf.join("checked.yaml"), plain.replace(defaults, &checked)).unwrap();
    let keyed = file(&origin, "a", &[("keyed", &with_key(&key))]).replace("anonymous, ", "");
    fs::write(files.conf.join("keyed.yaml"), keyed).unwrap();
    let gateway = files.start();
    let with = |key: &str| gateway.get("keyed.test", "/v1/echo", &format!("X-Api-Key: {key}\r\n")).status;
    let send = |body: &str| {
        let length = body.len();
        let request = format!(
            "POST /v1/echo HTTP/1.1\r\nHost: checked.test\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        gateway.connect().request(&request).status
    };
    let other = KEY.replace("0123", "3210");
    assert_eq!((with(KEY), with(&other)), (200, 401));
    assert_eq!((send("\"a\""), send("1")), (200, 400));
    pki::replace(&key, &other);
    assert!(comes_true(|| with(&other) == 200), "{}", gateway.log());
    assert_eq!(with(KEY), 401);
    // All tenants of the file have it from its defaults.
    pki::replace(&schema, &json!({ "type": "number" }).to_string());
    assert!(comes_true(|| send("1") == 200), "{}", gateway.log());
    assert_eq!(send("\"a\""), 400);
}

#[test]
fn a_start_without_the_folder_of_tenants_serves_what_was_in_force() {
    let origin = Origin::start("a");
    let files = Files::new();
    fs::write(files.conf.join("main.yaml"), file(&origin, "first", &[("acme", "")])).unwrap();
    let (conf, away) = (files.conf.clone(), files.folder.path().join("away"));
    let gateway = restart(files.start(), || fs::rename(&conf, &away).unwrap());
    assert_eq!(mark(&gateway, "acme").as_deref(), Some("first"), "{}", gateway.log());
    let reload = last_reload(&gateway);
    assert_eq!(reload["from_last_known_good"], true);
    assert!(reload["errors"].to_string().contains("is gone"), "{reload}");
    fs::write(away.join("main.yaml"), file(&origin, "second", &[("acme", "")])).unwrap();
    fs::rename(&away, &conf).unwrap();
    assert!(comes_true(|| mark(&gateway, "acme").as_deref() == Some("second")), "{}", gateway.log());
    // Told once it is in force.
    assert!(comes_true(|| last_reload(&gateway)["errors"] == json!([])), "{}", last_reload(&gateway));
}

#[test]
fn asking_for_everything_tells_what_came_of_it_though_it_is_known() {
    let origin = Origin::start("a");
    let files = Files::new();
    fs::write(files.conf.join("main.yaml"), file(&origin, "a", &[("acme", "")])).unwrap();
    let (conf, away) = (files.conf.clone(), files.folder.path().join("away"));
    let gateway = files.start();
    fs::rename(&conf, away).unwrap();
    let told = || gateway.log().matches("configuration refused: the folder").count();
    assert!(comes_true(|| told() == 1), "{}", gateway.log());
    gateway.process.signal("-HUP");
    assert!(comes_true(|| told() == 2), "{}", gateway.log());
}

#[test]
fn a_last_known_good_configuration_that_is_removed_is_kept_anew() {
    let origin = Origin::start("a");
    let files = Files::new();
    let main = files.conf.join("main.yaml");
    fs::write(&main, file(&origin, "first", &[("acme", "")])).unwrap();
    let gateway = files.start();
    let kept = gateway.folder.path().join("state/last-known-good");
    fs::remove_dir_all(&kept).unwrap();
    // Nobody says anything to the node. The end of it waits for what it is writing.
    assert!(comes_true(|| kept.exists()), "{}", gateway.log());
    let gateway = restart(gateway, || fs::write(&main, "revision: [").unwrap());
    assert_eq!(mark(&gateway, "acme").as_deref(), Some("first"), "{}", gateway.log());
}

#[test]
fn what_could_not_be_kept_is_kept_as_soon_as_it_can_be() {
    let origin = Origin::start("a");
    let files = Files::new();
    let main = files.conf.join("main.yaml");
    fs::write(&main, file(&origin, "first", &[("acme", "")])).unwrap();
    let gateway = files.start();
    let outdated = || gateway.metric("seiketsu_config_last_known_good_outdated") as u8;
    assert_eq!((&last_reload(&gateway)["last_known_good_error"], outdated()), (&Value::Null, 0));
    // Nothing can be written there.
    let (kept, away) = (gateway.folder.path().join("state/last-known-good"), gateway.folder.path().join("kept"));
    fs::rename(&kept, &away).unwrap();
    fs::write(&kept, "").unwrap();
    pki::replace(&main, &file(&origin, "second", &[("acme", "")]));
    assert!(comes_true(|| mark(&gateway, "acme").as_deref() == Some("second")), "{}", gateway.log());
    assert!(comes_true(|| last_reload(&gateway)["last_known_good_error"].is_string()), "{}", last_reload(&gateway));
    assert_eq!(outdated(), 1);
    // Now it can, and nobody says anything to the node.
    fs::remove_file(&kept).unwrap();
    fs::rename(&away, &kept).unwrap();
    assert!(comes_true(|| last_reload(&gateway)["last_known_good_error"].is_null()), "{}", gateway.log());
    assert_eq!(outdated(), 0);

    let Gateway { folder, process, .. } = gateway;
    drop(process);
    fs::write(&main, "revision: [").unwrap();
    let process = Gateway::spawn(folder.path(), &[]);
    let (http, https, operations) = Gateway::wait_until_ready(folder.path(), process.0.id());
    let gateway = Gateway { folder, http, https, operations, process };
    assert_eq!(mark(&gateway, "acme").as_deref(), Some("second"), "{}", gateway.log());
}
