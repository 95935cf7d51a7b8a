//! The routes of a tenant: what they match, where they go, and whether one hides another.

use std::collections::{HashMap, HashSet};

use super::{
    Findings, Rule,
    forms::{is_cookie_value, is_token},
    policies::{self, Place},
};
use crate::{
    path::At,
    tenant::{Canary, Route, RouteMatch, Tenant, TenantHead, TextTest, VersionSource},
    values::{Id, PathSegment},
};

pub(super) fn check_all(at: At<'_>, tenant: &Tenant, head: &TenantHead, findings: &mut Findings) {
    // Routes with the same path stand together here, parameters being the same whatever their name.
    let mut by_path: HashMap<Vec<Shape<'_>>, Vec<usize>> = HashMap::with_capacity(tenant.routes.len());
    let mut ids: HashSet<&Id> = HashSet::with_capacity(tenant.routes.len());
    for (index, route) in tenant.routes.iter().enumerate() {
        let at = at.index(index);
        if !ids.insert(&route.id) {
            findings.add(at.key("id"), &route.id, Rule::Duplicate { what: "route", name: route.id.to_string() });
        }
        let earlier = by_path.entry(shape(route)).or_default();
        if let Some(first) = earlier.iter().map(|i| &tenant.routes[*i]).find(|first| covers(first, route)) {
            findings.add_without_value(at.key("match"), Rule::Shadowed { by: first.id.clone() });
        }
        earlier.push(index);
        check(at, route, tenant, head, findings);
    }
}

/// A segment of a path as the matcher sees it.
#[derive(PartialEq, Eq, Hash)]
enum Shape<'a> {
    Static(&'a str),
    Parameter,
    Tail,
}

fn shape(route: &Route) -> Vec<Shape<'_>> {
    let segments = route.r#match.path.segments().iter();
    segments
        .map(|segment| match segment {
            PathSegment::Static(text) => Shape::Static(text),
            PathSegment::Parameter(_) => Shape::Parameter,
            PathSegment::Tail(_) => Shape::Tail,
        })
        .collect()
}

/// Whether `first`, which has the same path, takes every request that `later` matches although it is
/// not less specific: the same conditions, and the same methods and versions or more of them.
fn covers(first: &Route, later: &Route) -> bool {
    fn same<T: PartialEq>(a: &[T], b: &[T]) -> bool {
        a.len() == b.len() && a.iter().all(|item| b.contains(item))
    }
    // No methods means any, and a route that lists some is the more specific one.
    fn at_least<T: PartialEq>(first: &[T], later: &[T]) -> bool {
        first.is_empty() == later.is_empty() && later.iter().all(|item| first.contains(item))
    }
    let (first, later) = (&first.r#match, &later.r#match);
    same(&first.headers, &later.headers)
        && same(&first.query, &later.query)
        && at_least(&first.methods, &later.methods)
        && at_least(&first.versions, &later.versions)
}

fn check(at: At<'_>, route: &Route, tenant: &Tenant, head: &TenantHead, findings: &mut Findings) {
    conditions(at.key("match"), &route.r#match, findings);
    versions(at.key("match"), &route.r#match, tenant, findings);
    upstream(at.key("upstream"), &route.upstream, tenant, head, findings);
    if let Some(canary) = &route.canary {
        let at = at.key("canary");
        upstream(at.key("upstream"), &canary.upstream, tenant, head, findings);
        if canary.upstream == route.upstream {
            let rule = Rule::ToItself { what: "the canary", upstream: route.upstream.clone() };
            findings.add(at.key("upstream"), &canary.upstream, rule);
        }
        check_canary(at, canary, findings);
    }
    if let Some(mirror) = &route.mirror {
        let at = at.key("mirror");
        upstream(at.key("upstream"), &mirror.upstream, tenant, head, findings);
        if mirror.upstream == route.upstream {
            let rule = Rule::ToItself { what: "the mirror", upstream: route.upstream.clone() };
            findings.add(at.key("upstream"), &mirror.upstream, rule);
        }
        if mirror.share.get() == 0.0 {
            let rule = Rule::Never { what: "the mirror", needs: "a share above 0" };
            findings.add(at.key("share"), mirror.share.get(), rule);
        }
    }
    policies::check(at.key("policies"), &route.policies, Place::Route(tenant, route), findings);
}

fn upstream(at: At<'_>, id: &Id, tenant: &Tenant, head: &TenantHead, findings: &mut Findings) {
    if !tenant.upstreams.contains_key(id) && !head.upstreams.contains_key(id) {
        let known = tenant.upstreams.keys().chain(head.upstreams.keys()).map(Id::to_string).collect();
        findings.add(at, id, Rule::UnknownReference { what: "upstream", name: id.clone(), known });
    }
}

fn conditions(at: At<'_>, matched: &RouteMatch, findings: &mut Findings) {
    findings.duplicates(at.key("methods"), "method", &matched.methods);
    findings.duplicates(at.key("versions"), "version", &matched.versions);
    let headers = at.key("headers");
    for (index, condition) in matched.headers.iter().enumerate() {
        text_test(headers.index(index), &condition.test, findings);
        if matched.headers[..index].contains(condition) {
            let rule = Rule::Duplicate { what: "condition on", name: condition.name.to_string() };
            findings.add(headers.index(index).key("name"), &condition.name, rule);
        }
    }
    let query = at.key("query");
    for (index, condition) in matched.query.iter().enumerate() {
        text_test(query.index(index), &condition.test, findings);
        if condition.name.is_empty() {
            let rule = Rule::Empty { what: "the name", add: "the name of a query parameter" };
            findings.add_without_value(query.index(index).key("name"), rule);
        }
        if matched.query[..index].contains(condition) {
            let rule = Rule::Duplicate { what: "condition on", name: condition.name.clone() };
            findings.add(query.index(index).key("name"), &condition.name, rule);
        }
    }
}

fn text_test(at: At<'_>, test: &TextTest, findings: &mut Findings) {
    let (name, text) = match test {
        TextTest::Prefix(text) => ("prefix", text),
        TextTest::Suffix(text) => ("suffix", text),
        TextTest::Contains(text) => ("contains", text),
        TextTest::Equals(_) | TextTest::Present(_) => return,
    };
    if text.is_empty() {
        findings.add_without_value(at.key(name), Rule::AlwaysTrue { test: name });
    }
}

fn versions(at: At<'_>, matched: &RouteMatch, tenant: &Tenant, findings: &mut Findings) {
    let list = tenant.versions.as_ref().map(|versions| &versions.list);
    for (index, version) in matched.versions.iter().enumerate() {
        if !list.is_some_and(|list| list.contains_key(version)) {
            let known = list.into_iter().flat_map(|list| list.keys()).map(Id::to_string).collect();
            let rule = Rule::UnknownReference { what: "version", name: version.clone(), known };
            findings.add(at.key("versions").index(index), version, rule);
        }
    }
    let Some(versions) = tenant.versions.as_ref().filter(|versions| versions.by == VersionSource::PathPrefix) else {
        return;
    };
    let Some(PathSegment::Static(first)) = matched.path.segments().first() else { return };
    match versions.list.get_key_value(&**first) {
        Some((version, _)) if !matched.versions.is_empty() && !matched.versions.contains(version) => {
            findings.add(at.key("versions"), "", Rule::PathVersionExcluded { version: version.clone() });
        }
        // A path without a version is one of the default version, but v3 among v1 and v2 is a slip.
        None if looks_like_version(first) => {
            let known = versions.list.keys().map(Id::to_string).collect();
            let rule = Rule::PathVersionUnknown { segment: first.to_string(), known };
            findings.add(at.key("path"), &matched.path, rule);
        }
        _ => {}
    }
}

fn looks_like_version(segment: &str) -> bool {
    segment.strip_prefix(['v', 'V']).is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

fn check_canary(at: At<'_>, canary: &Canary, findings: &mut Findings) {
    if canary.weight.get() == 0.0 && canary.header.is_none() && canary.cookie.is_none() {
        let rule = Rule::Never { what: "the canary", needs: "a weight above 0, a header or a cookie" };
        findings.add_without_value(at, rule);
    }
    let names = [
        ("cookie", canary.cookie.as_ref().map(|cookie| &cookie.name)),
        ("sticky_cookie", canary.sticky_cookie.as_ref()),
    ];
    for (key, name) in names {
        if let Some(name) = name
            && !is_token(name)
        {
            findings.add(
                at.key(key),
                name,
                Rule::BadForm { what: "the name of a cookie", form: "letters, digits, - and _" },
            );
        }
    }
    if let Some(cookie) = &canary.cookie
        && !is_cookie_value(&cookie.value)
    {
        let rule = Rule::BadForm {
            what: "the value of a cookie",
            form: "visible ASCII without spaces, quotes, commas, ; and \\",
        };
        findings.add_without_value(at.key("cookie").key("value"), rule);
    }
}
