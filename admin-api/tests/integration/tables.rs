//! The tables that follow from documents, and the lists that are made of them.

use std::collections::BTreeMap;

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use seiketsu_admin_api::store::{
    Author, ChangeSet, HeadDocument, Place, Seen, Store, WriteError,
    consumers::ConsumerRow,
    keys::{KeyFilter, KeyRow},
    routes::{RouteFilter, RouteRow},
    services::ServiceRow,
};
use serde_json::{Value, json};

use crate::support::{Database, on_both, tenant};

fn by() -> Author {
    Author { id: None, name: "test".to_owned(), address: None, request: "r".to_owned(), action: "test" }
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        put: Vec<Value>,
        remove: Vec<String>,
        head: Option<Value>,
    },
    /// To a revision of this case.
    Rollback(prop::sample::Index),
}

const SERVICES: [&str; 3] = ["a", "b", "c"];
const CONSUMERS: [&str; 2] = ["app", "job"];
const PREFIXES: [&str; 3] = ["AAAAAAAA", "BBBBBBBB", "aaaaaaaa"];

fn name() -> impl Strategy<Value = String> {
    (0..4).prop_map(|number| format!("t{number}"))
}

fn upstreams() -> impl Strategy<Value = Value> {
    let addresses = prop::collection::btree_set(0..4_u16, 1..3);
    let upstream = (addresses, any::<bool>(), 1..3_u16).prop_map(|(ports, http2, weight)| {
        let endpoints =
            ports.iter().map(|port| json!({ "address": format!("127.0.0.1:{}", 9000 + port), "weight": weight }));
        let endpoints: Vec<Value> = endpoints.collect();
        json!({ "endpoints": endpoints, "protocol": if http2 { "http2" } else { "http1" } })
    });
    // The first is always there, for routes.
    prop::collection::vec(upstream, 1..=SERVICES.len()).prop_map(|upstreams| {
        SERVICES
            .iter()
            .zip(upstreams)
            .map(|(name, upstream)| ((*name).to_owned(), upstream))
            .collect::<serde_json::Map<_, _>>()
            .into()
    })
}

fn document() -> impl Strategy<Value = Value> {
    let route = (0..4_u8, any::<bool>());
    let owners = prop::array::uniform3(prop::option::of((0..CONSUMERS.len(), prop::option::of(1..5_u32))));
    (name(), upstreams(), prop::collection::vec(route, 0..4), owners, any::<bool>()).prop_map(
        |(name, upstreams, routes, owners, scoped)| {
            let route = |(number, (path, methods)): (usize, &(u8, bool))| {
                let methods = if *methods { json!(["GET", "HEAD"]) } else { json!([]) };
                json!({
                    "id": format!("r{number}"), "upstream": "a",
                    "match": { "path": format!("/r{number}/v{path}/{{*rest}}"), "methods": methods },
                })
            };
            let consumer = |(at, id): (usize, &&str)| {
                let own = PREFIXES
                    .iter()
                    .zip(&owners)
                    .filter_map(|(prefix, owner)| Some((prefix, owner.filter(|owner| owner.0 == at)?)));
                let keys = own.map(|(prefix, (_, expires))| {
                    let expires = expires.map(|day| format!("2031-01-0{day}T00:00:00.5+02:00"));
                    json!({ "prefix": prefix, "hash": format!("sha256:{}", "ab".repeat(32)), "expires": expires })
                });
                let keys: Vec<Value> = keys.collect();
                json!({ "id": id, "keys": keys, "scopes": if scoped { json!(["read"]) } else { json!([]) } })
            };
            let mut document = tenant(&name);
            document["upstreams"] = upstreams;
            document["routes"] = routes.iter().enumerate().map(route).collect();
            document["consumers"] = CONSUMERS.iter().enumerate().map(consumer).collect();
            document
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let head = prop::option::weighted(0.2, upstreams().prop_map(|upstreams| json!({ "upstreams": upstreams })));
    let write = (prop::collection::vec(document(), 0..3), prop::collection::vec(name(), 0..2), head).prop_map(
        |(put, remove, head)| {
            // Each tenant once.
            let put: BTreeMap<String, Value> = put.into_iter().map(|put| (put["id"].to_string(), put)).collect();
            Step::Write { put: put.into_values().collect(), remove, head }
        },
    );
    prop_oneof![4 => write, 1 => any::<prop::sample::Index>().prop_map(Step::Rollback)]
}

/// What is listed, as text, so that it can be compared with what the documents say.
type Lists = [Vec<String>; 4];

/// In pages, as callers read it.
async fn pages<R, F>(read: impl Fn(Option<Place>) -> F, place: impl Fn(&R) -> Place) -> Vec<R>
where
    F: Future<Output = Vec<R>>,
{
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = read(after.take()).await;
        let Some(last) = page.last() else { return all };
        after = Some(place(last));
        all.extend(page);
    }
}

async fn listed(store: &Store) -> Lists {
    let seen = |after: &Option<Place>| -> Seen<'static> {
        // Lives as long as the test.
        let after: Option<&'static Place> = after.clone().map(|after| &*Box::leak(Box::new(after)));
        Seen { after, most: 3, ..Seen::default() }
    };
    let services = pages(async |after| store.services(seen(&after), None).await.unwrap(), ServiceRow::place).await;
    let routes =
        pages(async |after| store.routes(seen(&after), &RouteFilter::default()).await.unwrap(), RouteRow::place).await;
    let consumers = pages(async |after| store.consumers(seen(&after), None).await.unwrap(), ConsumerRow::place).await;
    let keys = pages(async |after| store.keys(seen(&after), &KeyFilter::default()).await.unwrap(), KeyRow::place).await;
    let name = |row: &ServiceRow| row.tenant.as_ref().map_or(String::new(), ToString::to_string);
    let list = |items: &[String]| items.join(",");
    [
        services
            .iter()
            .map(|row| {
                let endpoints: Vec<String> =
                    row.endpoints.iter().map(|it| format!("{}*{}", it.address, it.weight)).collect();
                format!("{}/{} {} {}", name(row), row.id, row.protocol, list(&endpoints))
            })
            .collect(),
        routes
            .iter()
            .map(|row| {
                let (hosts, methods) = (list(&row.hosts), list(&row.methods));
                format!("{}/{} {hosts} {} {methods} {}", row.tenant, row.id, row.path, row.upstream)
            })
            .collect(),
        consumers.iter().map(|row| format!("{}/{} {} {}", row.tenant, row.id, list(&row.scopes), row.keys)).collect(),
        keys.iter()
            .map(|row| {
                let expires = row.expires_at.map(time::OffsetDateTime::unix_timestamp);
                format!("{}/{} {} {expires:?}", row.tenant, row.prefix, row.consumer)
            })
            .collect(),
    ]
}

fn texts(list: &Value) -> String {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect::<Vec<_>>().join(",")
}

async fn documented(store: &Store) -> Lists {
    let whole = store.whole().await.unwrap();
    let mut lists = Lists::default();
    for stored in whole.head.iter().chain(&whole.put) {
        let name = stored.tenant.as_ref().map_or(String::new(), ToString::to_string);
        let document: Value = serde_json::from_str(&stored.content).unwrap();
        for (id, upstream) in document["upstreams"].as_object().into_iter().flatten() {
            let endpoints: Vec<String> = upstream["endpoints"]
                .as_array()
                .unwrap()
                .iter()
                .map(|it| format!("{}*{}", it["address"].as_str().unwrap(), it["weight"]))
                .collect();
            let protocol = upstream["protocol"].as_str().unwrap();
            lists[0].push(format!("{name}/{id} {protocol} {}", endpoints.join(",")));
        }
        for route in document["routes"].as_array().into_iter().flatten() {
            let [id, upstream] = ["id", "upstream"].map(|key| route[key].as_str().unwrap());
            let (hosts, path) = (texts(&document["hosts"]), route["match"]["path"].as_str().unwrap());
            lists[1].push(format!("{name}/{id} {hosts} {path} {} {upstream}", texts(&route["match"]["methods"])));
        }
        for consumer in document["consumers"].as_array().into_iter().flatten() {
            let id = consumer["id"].as_str().unwrap();
            let keys = consumer["keys"].as_array().map_or(&[][..], Vec::as_slice);
            lists[2].push(format!("{name}/{id} {} {}", texts(&consumer["scopes"]), keys.len()));
            for key in keys {
                let expires = key["expires"].as_str().map(|at| {
                    let format = &time::format_description::well_known::Rfc3339;
                    time::OffsetDateTime::parse(at, format).unwrap().unix_timestamp()
                });
                lists[3].push(format!("{name}/{} {id} {expires:?}", key["prefix"].as_str().unwrap()));
            }
        }
    }
    for list in &mut lists {
        list.sort_unstable();
    }
    lists
}

async fn carry_out(store: &Store, first: u64, step: Step) {
    match step {
        Step::Write { put, remove, head } => {
            let put = put.into_iter().map(|put| serde_json::from_value(put).unwrap()).collect();
            let remove = remove.iter().map(|id| id.parse().unwrap()).collect();
            let head: Option<HeadDocument> = head.map(|head| serde_json::from_value(head).unwrap());
            let change = ChangeSet { put, remove, head, ..ChangeSet::default() };
            match store.write(&by(), change, None).await {
                // What is refused changes nothing.
                Ok(_) | Err(WriteError::Invalid(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        Step::Rollback(to) => {
            let newest = *store.newest().borrow();
            let to = first + to.index(usize::try_from(newest - first).unwrap() + 1) as u64;
            store.rollback(&by(), to, None, None, None).await.unwrap();
        }
    }
}

fn open(database: &Database) -> (tokio::runtime::Runtime, Store) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let store = runtime.block_on(Store::connect(&crate::support::settings(database.url()))).unwrap();
    (runtime, store)
}

on_both! {
    fn whatever_is_written_the_tables_are_what_the_documents_say(database) {
        let (runtime, store) = open(database);
        let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
        let steps = prop::collection::vec(step(), 1..8);
        runner.run(&steps, |steps| {
            runtime.block_on(async {
                let empty = ChangeSet { remove_others: true, head: Some(HeadDocument::default()), ..ChangeSet::default() };
                let first = store.write(&by(), empty, None).await.unwrap().revision;
                for step in steps {
                    carry_out(&store, first, step.clone()).await;
                    let (mut listed, documented) = (listed(&store).await, documented(&store).await);
                    for list in &listed {
                        let mut places: Vec<&str> = list.iter().map(|line| line.split(' ').next().unwrap()).collect();
                        places.sort_by_key(|place| place.split_once('/').unwrap());
                        prop_assert!(list.iter().map(|line| line.split(' ').next().unwrap()).eq(places));
                    }
                    for list in &mut listed {
                        list.sort_unstable();
                    }
                    prop_assert_eq!(listed, documented, "after {:?}", step);
                }
                Ok(())
            })
        })
        .unwrap();
        assert!(*store.newest().borrow() > 50, "most of it was written");
    }

    fn lists_are_narrowed_to_what_is_asked_for(database) {
        let admin = database.admin();
        let client = admin.client();
        let head = json!({ "upstreams": { "shared": { "endpoints": [{ "address": "shared.internal:80" }] } } });
        client.put("/head", &head).is(200);
        let mut acme = tenant("acme");
        acme["routes"] = json!([
            { "id": "users", "match": { "path": "/v1/users/{id}", "methods": ["GET"] }, "upstream": "own" },
            { "id": "orders", "match": { "path": "/v1/orders" }, "upstream": "own",
              "canary": { "upstream": "shared", "weight": 5 }, "policies": { "timeouts": { "total": "7s" } } },
            { "id": "rest", "match": { "path": "/{*rest}" }, "upstream": "shared" },
        ]);
        client.post("/tenants", &acme).is(201);
        client.post("/tenants", &tenant("globex")).is(201);
        let ids = |path: &str| -> Vec<String> {
            let items = client.get(path).is(200).json()["items"].take();
            let id = |item: &Value| format!("{}/{}", item["tenant"].as_str().unwrap_or_default(), item["id"].as_str().unwrap());
            items.as_array().unwrap().iter().map(id).collect()
        };
        assert_eq!(ids("/routes"), ["acme/orders", "acme/rest", "acme/users", "globex/all"]);
        assert_eq!(ids("/routes?upstream=shared"), ["acme/orders", "acme/rest"]);
        assert_eq!(ids("/routes?path=/v1/"), ["acme/orders", "acme/users"]);
        assert_eq!(ids("/routes?path=/v1/%25"), [""; 0], "it is no pattern");
        assert_eq!(ids("/routes?host=globex.example"), ["globex/all"]);
        assert_eq!(ids("/routes?tenant=globex"), ["globex/all"]);
        let shown = client.get("/routes?tenant=acme&limit=1").is(200).json();
        assert_eq!((&shown["items"][0]["timeout_ms"], &shown["items"][0]["hosts"]), (&json!(7000), &json!(["acme.example"])));
        let next = shown["next"].as_str().unwrap();
        assert_eq!(ids(&format!("/routes?tenant=acme&limit=1&cursor={next}")), ["acme/rest"]);
        assert_eq!(ids("/services"), ["/shared", "acme/own", "globex/own"]);
        assert_eq!(ids("/services?address=shared.internal:80"), ["/shared"]);
        // Who may see one tenant sees neither others nor what is for all.
        let globex = admin.operator("globex-viewer", "viewer", Some(&["globex"]));
        let services = globex.get("/services").is(200).json();
        assert_eq!(services["items"].as_array().unwrap().len(), 1);
        globex.get("/services?tenant=acme").is_problem(403, ":forbidden");
    }

    fn a_route_and_a_service_are_changed_by_themselves(database) {
        let admin = database.admin();
        let client = admin.client();
        client.post("/tenants", &tenant("acme")).is(201);
        let service = json!({ "endpoints": [{ "address": "127.0.0.1:9002" }] });
        client.put("/tenants/acme/services/other", &service).is(200);
        let route = json!({ "id": "users", "match": { "path": "/users" }, "upstream": "other" });
        client.put("/tenants/acme/routes/users", &route).is(200);
        let read = client.get("/tenants/acme/routes/users").is(200);
        assert_eq!((read.json()["upstream"].as_str(), read.etag()), (Some("other"), "\"3\""));
        // Somebody else has changed the tenant since.
        client.put("/tenants/acme/services/third", &service).is(200);
        client.put_if("/tenants/acme/routes/users", &route, Some(read.etag())).is_problem(412, ":changed-meanwhile");
        // In its place.
        let mut changed = route.clone();
        changed["upstream"] = json!("third");
        client.put("/tenants/acme/routes/users", &changed).is(200);
        let routes = client.get("/tenants/acme").json()["routes"].clone();
        assert_eq!(routes.as_array().unwrap().iter().map(|route| &route["id"]).collect::<Vec<_>>(), ["all", "users"]);
        assert_eq!(routes[1]["upstream"], "third");
        client.delete("/tenants/acme/services/third").is_problem(422, ":invalid");
        client.delete("/tenants/acme/services/other").is(200);
        client.delete("/tenants/acme/services/other").is_problem(404, ":not-found");
        client.delete("/tenants/acme/routes/users").is(200);
        client.get("/tenants/acme/routes/users").is_problem(404, ":not-found");
        client.delete("/tenants/acme/routes/users").is_problem(404, ":not-found");
        client.put("/tenants/acme/routes/other", &route).is_problem(422, ":invalid");
        client.put("/tenants/nobody/routes/users", &route).is_problem(404, ":not-found");
        let trail = client.get("/audit?action=delete_route").json();
        assert_eq!(trail["items"][1]["detail"]["route"], "users", "{trail}");
    }
}
