//! The ledger of usage, and what is told from it.

use std::{collections::BTreeSet, time::Duration};

use seiketsu_admin_api::store::{
    Author, ChangeSet, Store,
    performance::{MetricFilter, Objectives},
    usage::{Filter, Group, MOST_CALLERS, OTHER, Retention, Step},
};
use seiketsu_config::{
    push::usage::{Counts, Latency, Refused, Statuses, UsagePage, UsageRecord},
    values::Id,
};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::support::{Database, PATIENCE, on_both, tenant, wait_until};

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work)
}

async fn open(database: &Database) -> Store {
    Store::connect(&crate::support::settings(database.url())).await.unwrap()
}

fn by() -> Author {
    Author { id: None, name: "test".to_owned(), address: None, request: "r".to_owned(), action: "test" }
}

fn id(text: &str) -> Id {
    text.parse().unwrap()
}

fn now() -> u64 {
    u64::try_from(OffsetDateTime::now_utc().unix_timestamp()).unwrap()
}

/// `many` requests of a caller, which took three milliseconds each.
fn record(sequence: u64, second: u64, caller: [&str; 3], many: u64) -> UsageRecord {
    let [tenant, route, consumer] = caller.map(str::to_owned);
    let mut counts = Counts { admitted: many, cost: many, ..Counts::default() };
    counts.statuses = Statuses([0, many, 0, 0, 0]);
    counts.latency_ms.0[2] = many;
    UsageRecord { sequence, second, tenant, route, consumer, counts }
}

fn page(log: &str, records: Vec<UsageRecord>) -> UsagePage {
    let next = records.last().map_or(0, |last| last.sequence);
    UsagePage { log: log.to_owned(), missing: None, records, next }
}

fn all(step: Step) -> Filter {
    Filter { tenants: None, route: None, consumer: None, region: None, step, from: 0, to: i64::MAX }
}

/// What all requests add up to, by tenant.
async fn admitted(store: &Store, step: Step) -> Vec<(String, u64)> {
    let points = store.usage(&all(step), Some(Group::Tenant), 1000).await.unwrap().unwrap();
    let mut sums: Vec<(String, u64)> = Vec::new();
    for point in points {
        match sums.last_mut() {
            Some((group, sum)) if *group == point.group => *sum += point.counts.admitted,
            _ => sums.push((point.group, point.counts.admitted)),
        }
    }
    sums
}

fn acme(many: u64) -> Vec<(String, u64)> {
    vec![("acme".to_owned(), many)]
}

const ACME: [&str; 3] = ["acme", "open", "app"];

on_both! {
    fn a_record_counts_once_however_often_and_wherever_it_comes(database) {
        run(async {
            let (one, other) = (open(database).await, open(database).await);
            let (node, region) = (id("n1"), id("eu"));
            let records = |through: u64| page("0a", (1..=through).map(|n| record(n, 1000 + n, ACME, n)).collect());
            // The same page to two replicas at once, and then a longer one that repeats it.
            let (first, second) =
                tokio::join!(one.take_usage(&node, Some(&region), records(10)), other.take_usage(&node, Some(&region), records(10)));
            assert_eq!((first.unwrap().next, second.unwrap().next), (10, 10));
            for step in Step::ALL {
                assert_eq!(admitted(&one, step).await, acme(55));
            }
            assert_eq!(other.take_usage(&node, Some(&region), records(12)).await.unwrap().next, 12);
            assert_eq!(one.take_usage(&node, Some(&region), records(3)).await.unwrap().next, 12, "how far it is");
            for step in Step::ALL {
                assert_eq!(admitted(&other, step).await, acme(78));
            }
            assert!(one.usage_gaps(0, i64::MAX, 10).await.unwrap().is_empty());
            // A node that has lost its state has a new log, which counts beside.
            one.take_usage(&node, Some(&region), page("0b", vec![record(1, 1000, ACME, 100)])).await.unwrap();
            assert_eq!(admitted(&one, Step::Day).await, acme(178));
        });
    }

    fn no_sum_comes_near_the_end_of_numbers(database) {
        run(async {
            let store = open(database).await;
            for log in 0..5 {
                let much = record(1, 1000, ACME, 1 << 53);
                store.take_usage(&id("n1"), None, page(&format!("0{log}"), vec![much])).await.unwrap();
            }
            assert_eq!(admitted(&store, Step::Day).await, acme(1 << 53));
            store.take_usage(&id("n1"), None, page("0a", vec![record(1, 90_000, ACME, 7)])).await.unwrap();
            assert_eq!(admitted(&store, Step::Day).await, acme((1 << 53) + 7));
        });
    }

    fn what_is_missing_is_a_gap_and_stays_one(database) {
        run(async {
            let store = open(database).await;
            let node = id("n1");
            let send = async |records: Vec<(u64, u64)>, next: Option<u64>| {
                let records: Vec<_> = records.into_iter().map(|(n, second)| record(n, second, ACME, 1)).collect();
                let mut page = page("0a", records);
                page.next = next.unwrap_or(page.next);
                store.take_usage(&node, None, page).await.unwrap().next
            };
            assert_eq!(send(vec![(1, 100), (2, 200)], None).await, 2);
            assert_eq!(send(vec![(5, 500), (6, 600), (9, 900)], None).await, 9);
            let gaps = async || {
                let gaps = store.usage_gaps(0, i64::MAX, 10).await.unwrap();
                let told = gaps.into_iter().map(|gap| (gap.node, gap.records, gap.since, gap.until));
                told.collect::<Vec<_>>()
            };
            let expected = vec![("n1".to_owned(), 2, 600, 900), ("n1".to_owned(), 2, 200, 500)];
            assert_eq!(gaps().await, expected);
            // What comes late is not believed: it was said to be missing.
            assert_eq!(send(vec![(3, 300), (4, 400)], None).await, 9);
            assert_eq!((admitted(&store, Step::Day).await, gaps().await), (acme(5), expected));
            // Nothing is left of a log but its end.
            assert_eq!(send(vec![], Some(20)).await, 20);
            assert_eq!((gaps().await.len(), gaps().await[0].1), (3, 11));
        });
    }

    fn a_page_of_many_callers_is_taken_whole_whatever_they_are_called(database) {
        run(async {
            let store = open(database).await;
            let names: Vec<String> = (0..999).map(|n| format!("c'\u{0}\"{n}--\u{1F600}")).collect();
            let records = (1..).zip(&names).map(|(n, name)| record(n, 60, ["acme", "", name], 1)).collect();
            assert_eq!(store.take_usage(&id("n1"), None, page("0a", records)).await.unwrap().next, 999);
            assert_eq!(admitted(&store, Step::Minute).await, acme(999));
            let points = store.usage(&all(Step::Minute), Some(Group::Consumer), 2000).await.unwrap().unwrap();
            assert_eq!(points.len(), 999);
            assert_eq!(store.usage(&all(Step::Minute), Some(Group::Consumer), 998).await.unwrap(), None);
            let mut rows = Vec::new();
            loop {
                let more = store.usage_rows(&all(Step::Hour), rows.last(), 100).await.unwrap();
                if more.is_empty() {
                    break;
                }
                rows.extend(more);
            }
            assert_eq!(rows.len(), 999);
        });
    }

    fn a_tenant_has_so_many_callers_a_day_and_all_others_count_as_one(database) {
        run(async {
            let store = open(database).await;
            let there = MOST_CALLERS - 2;
            let zeros = vec!["0"; 27].join(", ");
            database.execute(&format!(
                "WITH RECURSIVE numbers (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {there}) \
                 INSERT INTO usage_sums SELECT 86400, 0, 'acme', 'all', 'c' || i, 'eu', {zeros} FROM numbers"
            ));
            let take = async |log: &str, records: &[(u64, [&str; 3], u64)]| {
                let records = (1..).zip(records).map(|(n, (second, caller, many))| record(n, *second, *caller, *many));
                store.take_usage(&id("n1"), Some(&id("eu")), page(log, records.collect())).await.unwrap();
            };
            let callers = async |step: Step| {
                let filter = Filter { tenants: Some([id("acme")].into()), to: 86_400, ..all(step) };
                let points = store.usage(&filter, Some(Group::Consumer), 200_000).await.unwrap().unwrap();
                let used = points.into_iter().filter(|point| point.counts.admitted > 0);
                used.map(|point| (point.group, point.counts.admitted)).collect::<Vec<_>>()
            };
            let of = |caller: &'static str| ["acme", "all", caller];
            let records = [(60, of("c5"), 1), (60, of("n1"), 2), (61, of("n2"), 4), (61, of("n3"), 8), (62, of("n4"), 16)];
            take("0a", &records).await;
            let expected = |other, n1| {
                let all = [(OTHER, other), ("c5", 1), ("n1", n1), ("n2", 4)];
                all.map(|(name, many)| (name.to_owned(), many)).to_vec()
            };
            for step in Step::ALL {
                assert_eq!(callers(step).await, expected(24, 2), "{step:?}");
            }
            // Those who are told apart stay so. Neither another tenant nor another day has less room for that.
            let records = [(90, of("n1"), 1), (90, of("n5"), 1), (90, ["globex", "all", "n6"], 7), (86_400, of("n5"), 9)];
            take("0b", &records).await;
            assert_eq!(callers(Step::Day).await, expected(25, 3));
            let told: Vec<(String, u64)> = store.usage_rows(&all(Step::Hour), None, 100).await.unwrap().into_iter()
                .filter(|row| ["n5", "n6"].contains(&&*row.consumer)).map(|row| (row.consumer, row.counts.admitted)).collect();
            assert_eq!(told, [("n6".to_owned(), 7), ("n5".to_owned(), 9)]);
        });
    }

    fn what_was_used_since_a_moment_is_told_whichever_sums_are_kept(database) {
        run(async {
            let store = open(database).await;
            let (day, hour, minute) = (86_400, 3600, 60);
            // A month that begins in the middle of an hour of UTC.
            let since = 20_000 * day + 5 * hour + 30 * minute;
            let at = [
                since - minute, since, since + 29 * minute, since + 30 * minute, since + 3 * hour, 20_001 * day - 1,
                20_001 * day, 20_004 * day + 7,
            ];
            let records = (0..).zip(at).map(|(n, at)| record(n + 1, at, ACME, 1 << n)).collect();
            store.take_usage(&id("n1"), None, page("0a", records)).await.unwrap();
            let asked = |since: u64| i64::try_from(since).unwrap();
            let used = async || {
                let [since, later, end] = [since, since + 30 * minute, 20_005 * day].map(asked);
                store.usage_since(&[("acme", since), ("nobody", since), ("acme", later), ("acme", end)]).await.unwrap()
            };
            assert_eq!(used().await, [254, 0, 248, 0]);
            database.execute(&format!("DELETE FROM usage_sums WHERE step < 86400 AND since >= {}", 20_001 * day));
            assert_eq!(used().await, [254, 0, 248, 0]);
        });
    }

    fn usage_is_forgotten_step_by_step(database) {
        run(async {
            let store = open(database).await;
            let (now, day) = (now(), 24 * 3600);
            let records = [400, 40, 4, 0].iter().zip(1..).map(|(days, n)| record(n, now - days * day, ACME, 1)).collect();
            store.take_usage(&id("n1"), None, page("0a", records)).await.unwrap();
            let days = |days: u64| Duration::from_secs(days * day);
            let retention = Retention { minutes: days(10), hours: days(100), days: days(1000), metrics: days(1) };
            store.forget_usage(&retention).await.unwrap();
            for (step, left) in [(Step::Minute, 2), (Step::Hour, 3), (Step::Day, 4)] {
                assert_eq!(admitted(&store, step).await, acme(left), "{step:?}");
            }
        });
    }

    fn analytics_tell_what_was_counted_to_those_who_may_see_it(database) {
        let admin = database.admin();
        let client = admin.client();
        for name in ["acme", "globex"] {
            client.post("/tenants", &tenant(name)).is(201);
        }
        let at = 1_790_000_040;
        run(async {
            let store = open(database).await;
            let mut slow = record(3, at + 61, ACME, 1);
            slow.counts.latency_ms = Latency::default();
            slow.counts.latency_ms.0[9] = 1;
            slow.counts.failures = 1;
            slow.counts.refused = Refused { limit: 7, auth: 2, other: 1 };
            slow.counts.bytes_out = 99;
            let records = vec![record(1, at, ACME, 99), record(2, at, ["globex", "open", ""], 5), slow];
            store.take_usage(&id("n1"), Some(&id("eu")), page("0a", records)).await.unwrap();
            store.take_usage(&id("n2"), Some(&id("us")), page("0b", vec![record(5, at, ACME, 10)])).await.unwrap();
        });
        let span = "from=2026-09-21T14:00:00Z&to=2026-09-21T15:00:00Z";
        let told = client.get(&format!("/gateway/analytics?tenant=acme&{span}")).is(200).json();
        let totals = &told["totals"];
        assert_eq!((&totals["requests"], &totals["admitted"], &totals["errors"]), (&json!(120), &json!(110), &json!(1)));
        assert_eq!(totals["refused"], json!({ "limit": 7, "auth": 2, "other": 1 }));
        let between = |above: u64, at_most: u64| json!({ "above": above, "at_most": at_most });
        assert_eq!(totals["latency_ms"], json!({ "p50": between(2, 5), "p90": between(2, 5), "p99": between(2, 5) }));
        let series = told["groups"][0]["series"].as_array().unwrap();
        let points: Vec<_> = series.iter().map(|point| (&point["at"], &point["admitted"])).collect();
        assert_eq!(points, [(&json!("2026-09-21T14:14:00Z"), &json!(109)), (&json!("2026-09-21T14:15:00Z"), &json!(1))]);
        assert_eq!(series[1]["latency_ms"]["p50"], between(500, 1000));
        assert_eq!((&told["gaps"][0]["node"], &told["gaps"][0]["records"]), (&json!("n2"), &json!(4)));
        for (query, name, admitted) in [
            ("group=tenant", "globex", 5),
            ("group=region", "us", 10),
            ("group=consumer&tenant=globex", "", 5),
            ("group=route&region=eu&consumer=app", "open", 100),
        ] {
            let told = client.get(&format!("/gateway/analytics?{query}&step=hour&{span}")).is(200).json();
            let group = told["groups"].as_array().unwrap().iter().find(|group| group["name"] == name).unwrap();
            assert_eq!(group["totals"]["admitted"], admitted, "{query}: {told}");
        }
        // Who may see one tenant only sees that one, whatever is asked for.
        let globex = admin.operator("globex-viewer", "viewer", Some(&["globex"]));
        let told = globex.get(&format!("/gateway/analytics?group=tenant&{span}")).is(200).json();
        assert_eq!((told["totals"]["admitted"].clone(), &told["groups"][0]["name"]), (json!(5), &json!("globex")));
        assert_eq!(told["gaps"][0].get("node"), None);
        globex.get(&format!("/gateway/analytics?tenant=acme&{span}")).is_problem(403, ":forbidden");
        for wrong in ["step=week", "group=path", "from=yesterday", "nothing=1", "from=2000-01-01T00:00:00Z", "tenant=%00"] {
            assert_eq!(client.get(&format!("/gateway/analytics?{wrong}")).status, 400, "{wrong}");
        }

        for hostile in ["route=%27%20OR%201%3D1--", "consumer=%24%7Bjndi%3Aldap%7D", "region=%F0%9F%98%80"] {
            let told = client.get(&format!("/gateway/analytics?{hostile}&{span}")).is(200).json();
            assert_eq!(told["totals"]["requests"], 0, "{hostile}");
        }
        client.get("/performance?metric=%27&region=%00").is(400);

        let csv = client.get(&format!("/usage/export?step=hour&{span}")).is(200);
        let lines: Vec<&str> = csv.text().lines().collect();
        assert!(lines[0].starts_with("at,tenant,route,consumer,region,admitted,"), "{csv}");
        assert_eq!(lines[1], "2026-09-21T14:00:00Z,acme,open,app,eu,100,7,2,1,100,0,99,1");
        assert_eq!(lines.len(), 4);
        assert_eq!(client.get("/audit?action=export_usage").json()["items"][0]["outcome"], "done");
        let lines = globex.get(&format!("/usage/export?step=day&format=jsonl&{span}")).is(200);
        let line: Value = serde_json::from_str(lines.text()).unwrap();
        assert_eq!((&line["tenant"], &line["admitted"], &line["at"]), (&json!("globex"), &json!(5), &json!("2026-09-21T00:00:00Z")));
    }

    fn tenants_see_what_they_have_used_beside_their_quotas(database) {
        let admin = database.admin();
        let client = admin.client();
        let with = |name: &str, limits: Value| {
            let mut tenant = tenant(name);
            tenant["policies"]["limits"] = limits;
            client.post("/tenants", &tenant).is(201);
        };
        client.put("/head", &json!({ "defaults": { "limits": { "quotas": { "monthly": 5000 } } } })).is(200);
        with("acme", json!({ "quotas": { "daily": 100 } }));
        // Its day begins at half an hour of UTC.
        with("kolkata", json!({ "quotas": { "daily": 100 }, "calendar": { "time_zone": "Asia/Kolkata" } }));
        with("idle", json!({ "quotas": { "daily": "unlimited", "monthly": "unlimited" } }));
        let used = || client.get("/usage").is(200).json();
        let kolkata = used()["items"][2].clone();
        assert_eq!((&kolkata["tenant"], &kolkata["time_zone"]), (&json!("kolkata"), &json!("Asia/Kolkata")));
        assert!(kolkata["day"]["since"].as_str().unwrap().ends_with("T18:30:00Z"), "{kolkata}");
        let since = OffsetDateTime::parse(
            kolkata["day"]["since"].as_str().unwrap(),
            &time::format_description::well_known::Rfc3339,
        );
        let since = u64::try_from(since.unwrap().unix_timestamp()).unwrap();
        run(async {
            let store = open(database).await;
            let kolkata = ["kolkata", "open", ""];
            let mut given_back = record(2, since, kolkata, 9);
            given_back.counts.given_back = 4;
            let records = vec![record(1, since - 1, kolkata, 1000), given_back, record(3, now(), ACME, 80)];
            store.take_usage(&id("n1"), None, page("0a", records)).await.unwrap();
        });
        let told = used();
        let day = |index: usize| (told["items"][index]["day"]["used"].clone(), told["items"][index]["day"]["quota"].clone());
        assert_eq!((day(0), day(1), day(2)), ((json!(80), json!(100)), (json!(0), Value::Null), (json!(5), json!(100))));
        assert_eq!(told["items"][0]["month"]["quota"], 5000);
        let names = |query: &str| -> Vec<String> {
            let told = client.get(&format!("/usage?{query}")).is(200).json();
            told["items"].as_array().unwrap().iter().map(|of| of["tenant"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names("at_least=80"), ["acme"]);
        assert_eq!((names("tenant=idle"), names("limit=1")), (vec!["idle".to_owned()], vec!["acme".to_owned()]));
        let acme = admin.operator("acme-viewer", "viewer", Some(&["acme"]));
        assert_eq!(acme.get("/usage").json()["items"].as_array().unwrap().len(), 1);
        acme.get("/usage?tenant=idle").is_problem(403, ":forbidden");
    }

    fn performance_is_measured_of_more_tenants_than_are_read_at_once(database) {
        run(async {
            let store = open(database).await;
            let names: Vec<String> = (0..1001).map(|number| format!("t{number:04}")).collect();
            let put = names.iter().map(|name| serde_json::from_value(tenant(name)).unwrap()).collect();
            store.write(&by(), ChangeSet { put, ..ChangeSet::default() }, None).await.unwrap();
            let minute = now() / 60 * 60 - 60;
            for names in names.chunks(500) {
                let records = (1..).zip(names).map(|(number, name)| record(number, minute, [name.as_str(), "open", "app"], 7));
                store.take_usage(&id("n1"), None, page(&names[0], records.collect())).await.unwrap();
            }
            let objectives = Objectives { latency_ms: 100, errors_percent: 1.0, quota_percent: 80.0 };
            // The minute counts as ended a little later than it has.
            let until = tokio::time::Instant::now() + PATIENCE;
            let requests = MetricFilter { metric: Some("requests_per_minute".to_owned()), ..MetricFilter::default() };
            loop {
                store.measure(&objectives).await.unwrap();
                let rows = store.metrics(&requests, None, 2000).await.unwrap();
                let of: BTreeSet<String> = rows.iter().filter(|row| (row.metric_value - 7.0).abs() < 0.001).map(|row| row.tenant.clone()).collect();
                if of.len() == names.len() {
                    return assert_eq!(rows.len(), names.len(), "each once");
                }
                assert!(tokio::time::Instant::now() < until, "{}", of.len());
            }
        });
    }

    fn performance_is_measured_of_what_really_was(database) {
        let admin = database.admin();
        let client = admin.client();
        for name in ["acme", "globex"] {
            let mut tenant = tenant(name);
            tenant["policies"]["limits"] = json!({ "quotas": { "daily": 100 } });
            client.post("/tenants", &tenant).is(201);
        }
        // A minute that has ended, of today in any case.
        let minute = now() / 60 * 60 - 60;
        run(async {
            let store = open(database).await;
            let mut record = record(1, minute, ACME, 95);
            record.counts.failures = 2;
            record.counts.latency_ms.0 = [0, 0, 90, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0];
            store.take_usage(&id("n1"), Some(&id("eu")), page("0a", vec![record])).await.unwrap();
        });
        let of = |query: &str| client.get(&format!("/performance?{query}")).is(200).json()["items"].clone();
        wait_until("the minute is measured", || {
            of("tenant=acme&metric=error_rate").as_array().is_some_and(|rows| !rows.is_empty())
        });
        let row = |metric: &str| {
            let rows = of(&format!("tenant=acme&metric={metric}"));
            let row = rows[0].clone();
            (row["metric_value"].as_f64().unwrap(), row["threshold_value"].as_f64(), row["status"].as_str().unwrap().to_owned(), row["region"].clone())
        };
        assert_eq!(row("requests_per_minute"), (95.0, None, "normal".to_owned(), json!("eu")));
        assert_eq!(row("error_rate"), (2.1053, Some(1.0), "critical".to_owned(), json!("eu")));
        assert_eq!(row("latency_p99_ms"), (500.0, Some(100.0), "critical".to_owned(), json!("eu")));
        // Only if the day has not just changed.
        if minute / 86_400 == now() / 86_400 {
            assert_eq!(row("quota_daily_used"), (95.0, Some(80.0), "warning".to_owned(), Value::Null));
        }
        assert!(of("tenant=globex").as_array().unwrap().is_empty(), "of whom nothing was measured nothing is told");
        assert!(of("status=warning&metric=error_rate").as_array().unwrap().is_empty());
        // Measured again, each takes its own place.
        let objectives = Objectives { latency_ms: 100, errors_percent: 1.0, quota_percent: 80.0 };
        let before = database.number("SELECT COUNT(*) AS number FROM enterprise_performance_metrics WHERE metric_type = 'error_rate'");
        run(async {
            let store = open(database).await;
            let (one, other) = tokio::join!(store.measure(&objectives), store.measure(&objectives));
            one.unwrap();
            other.unwrap();
        });
        let after = database.number("SELECT COUNT(*) AS number FROM enterprise_performance_metrics WHERE metric_type = 'error_rate'");
        assert_eq!((before, after), (1, 1));
        // Page by page, each row once.
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = client.get(&format!("/performance?limit=1{cursor}")).is(200).json();
            seen.extend(page["items"].as_array().unwrap().iter().map(|row| row["id"].to_string()));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let rows = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert!(rows >= 3 && seen.len() == rows, "{seen:?}");
        let kept = client.get("/performance/objectives?tenant=acme").is(200).json()["items"][0].clone();
        let hour = &kept["windows"][0];
        assert_eq!((&hour["window"], &hour["errors"]["bad"], &hour["latency"]["bad"]), (&json!("1h"), &json!(2), &json!(5)));
        assert!((hour["errors"]["burn"].as_f64().unwrap() - 2.105).abs() < 0.01, "{kept}");
        assert!(kept["errors_budget_left"].as_f64().unwrap() < 0.0);
        // Metrics are forgotten when they are old.
        database.execute("UPDATE enterprise_performance_metrics SET recorded_at = '2020-01-01T00:00:00Z'");
        let old = "SELECT COUNT(*) AS number FROM enterprise_performance_metrics WHERE recorded_at < '2021-01-01T00:00:00Z'";
        assert!(database.number(old) >= 3);
        let day = Duration::from_hours(24);
        let retention = Retention { minutes: day, hours: day, days: day, metrics: day };
        run(async { open(database).await.forget_usage(&retention).await.unwrap() });
        assert_eq!(database.number(old), 0);
    }
}

#[test]
fn usage_that_is_written_does_not_hold_changes_up() {
    const PAGES: u64 = 40;
    let database = Database::sqlite();
    run(async {
        let store = open(&database).await;
        let (done, mut is_done) = tokio::sync::watch::channel(false);
        let writer = store.clone();
        let writing = tokio::spawn(async move {
            for n in 0..PAGES {
                let names: Vec<String> = (0..1000).map(|caller| format!("c{caller}")).collect();
                let records = (1..).zip(&names).map(|(at, name)| record(n * 1000 + at, 60, ["acme", "", name], 1));
                writer.take_usage(&id("n1"), None, page("0a", records.collect())).await.unwrap();
            }
            done.send_replace(true);
        });
        let (mut asked, mut changes) = (0, 0);
        while !*is_done.borrow_and_update() {
            asked += 1;
            let tenant = serde_json::from_value(crate::support::tenant_with_rate("acme", asked)).unwrap();
            let put = ChangeSet { put: vec![tenant], ..Default::default() };
            // One that has waited for too long is none.
            changes += u64::from(store.write(&by(), put, None).await.is_ok());
        }
        writing.await.unwrap();
        // Those that waited for whole pages would be one a page at most, however fast the machine is.
        assert!(changes > 2 * PAGES, "{changes} changes of {asked}");
    });
}
