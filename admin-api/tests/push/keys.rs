//! Keys that `gatewayctl` makes, at a real gateway.

use serde_json::{Value, json};

use crate::{
    admin::{Admin, eventually},
    gateway::{Gateway, Origin, served},
};

fn told(output: &std::process::Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_opens_the_gateway_from_when_it_is_made_until_it_is_replaced_or_revoked() {
    let origin = Origin::start("a");
    let admin = Admin::start().await;
    let mut document = served("acme", origin.address);
    document["policies"] = json!({ "auth": { "accept": ["api_key"] } });
    admin.put(&document, "").await.revision();
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(&admin, &folder.path().join("one")).await;
    let status = async |key: &str| gateway.get("acme.test", "/v1/echo", &format!("x-api-key: {key}\r\n")).await.status;
    let ctl = |arguments: &[&str]| told(&admin.ctl(arguments));

    ctl(&["consumers", "create", "acme", "app", "--scope", "read"]);
    let old = ctl(&["keys", "create", "acme", "app", "--wait=20s"]);
    assert_eq!(status(&old).await, 200);
    assert_eq!(status(&format!("{old}x")).await, 401);

    let id = |key: &str| format!("acme.{}", key.split('_').nth(1).unwrap());
    let new = ctl(&["keys", "rotate", &id(&old), "--grace", "10s", "--wait=20s"]);
    assert_eq!((status(&old).await, status(&new).await), (200, 200), "both are accepted");
    assert!(eventually(async || status(&old).await == 401).await, "the old one ends with its grace");
    assert_eq!(status(&new).await, 200);

    let listed: Value = serde_json::from_str(&ctl(&["keys", "list", "--tenant", "acme", "--output", "json"])).unwrap();
    let states: Vec<_> =
        listed.as_array().unwrap().iter().map(|key| (key["id"].clone(), key["state"].clone())).collect();
    assert!(states.contains(&(json!(id(&old)), json!("expired"))), "{states:?}");
    assert!(states.contains(&(json!(id(&new)), json!("active"))), "{states:?}");

    assert!(ctl(&["keys", "revoke", &id(&new), "--wait=20s"]).contains("applied by one"));
    assert_eq!(status(&new).await, 401);
    let again = admin.ctl(&["keys", "revoke", &id(&new)]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");

    for (list, part) in [("consumers", "read"), ("routes", "/{*rest}"), ("services", &origin.address.to_string())] {
        let listed = ctl(&[list, "list", "--tenant", "acme"]);
        assert!(listed.contains("acme") && listed.contains(part), "{list}: {listed}");
        assert!(ctl(&[list, "list", "--output", "json"]).starts_with('['), "{list}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_shown_also_if_not_all_nodes_have_it_yet() {
    let admin = Admin::start().await;
    admin.put(&crate::admin::tenant("acme", 1), "").await.revision();
    told(&admin.ctl(&["consumers", "create", "acme", "app"]));
    let refuses = Some(("acme".to_owned(), "no such file".to_owned()));
    let manner = crate::node::Manner { refuses, ..crate::node::Manner::default() };
    let _bad = crate::node::Running::start_with(&admin, &crate::node::hello("bad"), manner).await;
    let made = admin.ctl(&["keys", "create", "acme", "app", "--wait=1s"]);
    assert_eq!(made.status.code(), Some(3), "{made:?}");
    let key = String::from_utf8(made.stdout).unwrap();
    assert!(key.starts_with("sk_") && String::from_utf8(made.stderr).unwrap().contains("node bad"), "{key}");
}
