//! A file of many tenants, first read and then re-read after one of them has changed. The number of
//! tenants comes from `TENANTS` and is small by default; with 100000 and a profiler or `time` this is
//! the measure of loading.
#![allow(clippy::unwrap_used)]

use std::{fmt::Write, path::Path, sync::Arc};

use seiketsu_config::load;

#[test]
fn of_many_tenants_only_the_changed_one_is_read_again() {
    let count = std::env::var("TENANTS").ok().and_then(|text| text.parse().ok()).unwrap_or(600);
    let origin = Path::new("tenants.yaml");
    let text = document(count);
    let first = load::tenants_with(None, &text, origin).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(first.tenants().len(), count);

    let text = text.replacen("t300.example.com", "changed.example.com", 1);
    let second = load::tenants_with(Some(&first), &text, origin).unwrap();
    let changed: Vec<_> = (0..count).filter(|i| !Arc::ptr_eq(&first.tenants()[*i], &second.tenants()[*i])).collect();
    assert_eq!(changed, [300]);
    assert!(Arc::ptr_eq(first.head(), second.head()));
}

/// About 500 bytes for each tenant.
fn document(tenants: usize) -> String {
    let mut text = "\
revision: 1
plans:
  basic:
    auth: {accept: [api_key, anonymous]}
upstreams:
  shared:
    endpoints: [{address: 10.0.0.1:8080}]
tenants:
"
    .to_owned();
    for number in 0..tenants {
        let hash = format!("{number:064x}");
        write!(
            text,
            "  - id: t{number}
    hosts: [t{number}.example.com]
    plan: basic
    consumers:
      - id: app
        keys:
          - prefix: prefix{number:08}
            hash: sha256:{hash}
    routes:
      - id: users
        match: {{path: /v1/users}}
        upstream: shared
      - id: user
        match:
          path: /v1/users/{{id}}
          methods: [GET, PUT]
        upstream: shared
      - id: calls
        match: {{path: /v1/calls}}
        upstream: shared
        policies:
          timeouts: {{total: 5s}}
      - id: files
        match: {{path: '/files/{{*rest}}'}}
        upstream: shared
      - id: all
        match:
          path: /{{*rest}}
        upstream: shared
"
        )
        .unwrap();
    }
    text
}
