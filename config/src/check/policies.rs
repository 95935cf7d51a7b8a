//! The policies of one layer.

use ipnet::IpNet;

use super::{
    Findings, Rule, cache,
    forms::{OriginForm, is_media_type, is_path, origin_form, path_parameters},
    limits,
    tenant::{roles, scopes, trusts_client_certificates},
};
use crate::{
    path::At,
    policy::{
        Access, Auth, Compression, Cors, CredentialKind, HeaderChanges, JsonDocument, PathTransform, Policies,
        QueryChanges, RequestLimits, Retries, Timeouts, Transform, Validation,
    },
    tenant::{Route, Tenant},
    values::{HeaderName, PathSegment},
};

/// Whose policies these are.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// Defaults or a plan: inherited by many.
    Shared,
    Tenant(&'a Tenant),
    Route(&'a Tenant, &'a Route),
}

const MOST_RETRIES: u8 = 5;

/// Header fields that describe the message on one connection (RFC 9110 §7.6.1, RFC 9112 §6), or when it was made, or that
/// upstreams believe because the gateway wrote them.
const OWNED: [&str; 14] = [
    "connection",
    "content-length",
    "date",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-gateway-consumer",
    "x-gateway-identity",
    "x-gateway-roles",
    "x-gateway-scopes",
];

pub(super) fn check(at: At<'_>, policies: &Policies, place: Place<'_>, findings: &mut Findings) {
    if let Some(auth) = &policies.auth {
        check_auth(at.key("auth"), auth, place, findings);
    }
    if let Some(cors) = &policies.cors {
        check_cors(at.key("cors"), cors, findings);
    }
    for name in policies.security_headers.keys() {
        written(at.key("security_headers").key(&name.to_string()), name, findings);
    }
    let headers = at.key("headers");
    header_changes(headers.key("request"), &policies.headers.request, findings);
    header_changes(headers.key("response"), &policies.headers.response, findings);
    if let Some(access) = &policies.access {
        check_access(at.key("access"), access, findings);
    }
    if let Some(request) = &policies.request {
        request_limits(at.key("request"), request, findings);
    }
    if let Some(transform) = &policies.transform {
        check_transform(at.key("transform"), transform, place, findings);
    }
    if let Some(validation) = &policies.validation {
        check_validation(at.key("validation"), validation, findings);
    }
    if let Some(compression) = &policies.compression {
        check_compression(at.key("compression"), compression, findings);
    }
    if let Some(timeouts) = &policies.timeouts {
        check_timeouts(at.key("timeouts"), timeouts, findings);
    }
    if let Some(retries) = &policies.retries {
        check_retries(at.key("retries"), retries, findings);
    }
    if let Some(cache) = &policies.cache {
        cache::check(at.key("cache"), cache, place, findings);
    }
    if let Some(limits) = &policies.limits {
        limits::check(at.key("limits"), limits, place, findings);
    }
}

fn check_auth(at: At<'_>, auth: &Auth, place: Place<'_>, findings: &mut Findings) {
    let accepts = |kind| auth.accept.contains(&kind);
    for (index, kind) in auth.accept.iter().enumerate() {
        if auth.accept[..index].contains(kind) {
            let rule = Rule::Duplicate { what: "kind of credential", name: kind_name(*kind).to_owned() };
            findings.add(at.key("accept").index(index), kind_name(*kind), rule);
        }
    }
    scopes(at.key("scopes"), &auth.scopes, findings);
    roles(at.key("roles"), &auth.roles, findings);
    if accepts(CredentialKind::Anonymous) && !(auth.scopes.is_empty() && auth.roles.is_empty()) {
        findings.add_without_value(at.key("accept"), Rule::AnonymousWithRights);
    }
    // What many inherit may name kinds of credential that some of them do not have.
    let (Place::Tenant(tenant) | Place::Route(tenant, _)) = place else { return };
    if accepts(CredentialKind::Jwt) && tenant.jwt_issuers.is_empty() {
        findings.add_without_value(at.key("accept"), Rule::NoJwtIssuer);
    }
    if accepts(CredentialKind::ClientCertificate) && !trusts_client_certificates(tenant) {
        findings.add_without_value(at.key("accept"), Rule::NoClientCa { what: "client certificates are accepted" });
    }
}

fn kind_name(kind: CredentialKind) -> &'static str {
    match kind {
        CredentialKind::Anonymous => "anonymous",
        CredentialKind::ApiKey => "api_key",
        CredentialKind::Jwt => "jwt",
        CredentialKind::ClientCertificate => "client_certificate",
    }
}

fn check_cors(at: At<'_>, cors: &Cors, findings: &mut Findings) {
    if !cors.enabled {
        return;
    }
    let origins = at.key("origins");
    if cors.origins.is_empty() {
        let rule = Rule::Empty { what: "the list of origins", add: "one, or write enabled: false" };
        findings.add_without_value(origins, rule);
    }
    findings.duplicates(origins, "origin", &cors.origins);
    for (index, origin) in cors.origins.iter().enumerate() {
        let at = origins.index(index);
        match origin_form(origin) {
            OriginForm::Exact | OriginForm::Pattern => {}
            OriginForm::Any => {
                if cors.credentials {
                    findings.add(at, origin, Rule::CorsAnyWithCredentials);
                }
                if cors.origins.len() > 1 {
                    findings.add(at, origin, Rule::CorsAnyAmongOthers);
                }
            }
            OriginForm::TooWide => findings.add(at, origin, Rule::CorsTooWide),
            OriginForm::Malformed => findings.add(
                at,
                origin,
                Rule::BadForm {
                    what: "an origin as browsers send it",
                    form: "https://app.example.com, https://*.example.com or *, in lower case, without path, slash at the end or default port",
                },
            ),
        }
    }
    findings.duplicates(at.key("methods"), "method", &cors.methods);
    let lists = [("request_headers", &cors.request_headers), ("expose_headers", &cors.expose_headers)];
    for (key, headers) in lists {
        let at = at.key(key);
        findings.duplicates(at, "header", headers);
        for (index, header) in headers.iter().enumerate().filter(|(_, header)| header.get().as_str() == "*") {
            findings.add(at.index(index), header, Rule::CorsAnyHeader);
        }
    }
}

fn header_changes(at: At<'_>, changes: &HeaderChanges, findings: &mut Findings) {
    let remove = at.key("remove");
    findings.duplicates(remove, "header", &changes.remove);
    for (index, name) in changes.remove.iter().enumerate() {
        owned(remove.index(index), name, findings);
    }
    for (key, map) in [("set", &changes.set), ("add", &changes.add)] {
        for name in map.keys() {
            written(at.key(key).key(&name.to_string()), name, findings);
        }
    }
    let rename = at.key("rename");
    for (index, (from, to)) in changes.rename.iter().enumerate() {
        let text = from.to_string();
        let at = rename.key(&text);
        owned(at, from, findings);
        written(at, to, findings);
        if from == to {
            findings.add(at, to, Rule::RenameToItself { header: to.clone() });
        } else if changes.rename.values().take(index).any(|before| before == to) {
            findings.add(at, to, Rule::RenameClash { to: to.clone() });
        }
    }
}

fn owned(at: At<'_>, name: &HeaderName, findings: &mut Findings) {
    if OWNED.contains(&name.get().as_str()) {
        findings.add_without_value(at, Rule::OwnedHeader { header: name.clone() });
    }
}

/// A field that is written. Upstreams that do not tell `_` from `-` would take one for the other.
fn written(at: At<'_>, name: &HeaderName, findings: &mut Findings) {
    if OWNED.contains(&&*name.get().as_str().replace('_', "-")) {
        findings.add_without_value(at, Rule::OwnedHeader { header: name.clone() });
    }
}

fn check_access(at: At<'_>, access: &Access, findings: &mut Findings) {
    networks(at.key("allow"), &access.allow, findings);
    networks(at.key("deny"), &access.deny, findings);
    for (index, allowed) in access.allow.iter().enumerate() {
        if let Some(by) = access.deny.iter().find(|denied| denied.contains(allowed)) {
            findings.add(at.key("allow").index(index), allowed, Rule::AllowedAndDenied { by: by.to_string() });
        }
    }
}

/// Address ranges: `10.0.0.7/8` is a slip, it means the same as `10.0.0.0/8`.
pub(super) fn networks(at: At<'_>, networks: &[IpNet], findings: &mut Findings) {
    findings.duplicates(at, "address range", networks);
    for (index, network) in networks.iter().enumerate().filter(|(_, network)| network.trunc() != **network) {
        findings.add(at.index(index), network, Rule::HostBits { meant: network.trunc().to_string() });
    }
}

fn request_limits(at: At<'_>, limits: &RequestLimits, findings: &mut Findings) {
    findings.duplicates(at.key("methods"), "method", &limits.methods);
    findings.duplicates(at.key("required_headers"), "header", &limits.required_headers);
    let sizes = [
        ("max_headers", "the size of the headers", limits.max_headers),
        ("max_target", "the length of path and query", limits.max_target),
    ];
    for (key, what, size) in sizes {
        if size.get() == 0 {
            findings.add(at.key(key), size, Rule::Zero { what, least: "at least 1KiB" });
        }
    }
}

fn check_transform(at: At<'_>, transform: &Transform, place: Place<'_>, findings: &mut Findings) {
    if let Some(path) = &transform.path {
        path_transform(at.key("path"), path, place, findings);
    }
    if let Some(query) = &transform.query {
        query_changes(at.key("query"), query, findings);
    }
    for (key, program) in [("request_body", &transform.request_body), ("response_body", &transform.response_body)] {
        if program.as_ref().is_some_and(|program| program.trim().is_empty()) {
            let rule = Rule::Empty { what: "the jq program", add: "one, or leave the key out; . changes nothing" };
            findings.add_without_value(at.key(key), rule);
        }
    }
}

const PATH_FORM: Rule = Rule::BadForm {
    what: "a path",
    form: "one that begins with / and has no query, spaces or fragment; parameters as {name}",
};

fn path_transform(at: At<'_>, transform: &PathTransform, place: Place<'_>, findings: &mut Findings) {
    match transform {
        PathTransform::StripPrefix(prefix) => {
            let at = at.key("strip_prefix");
            if !is_path(prefix) || prefix == "/" {
                findings.add(at, prefix, PATH_FORM);
            } else if let Place::Route(_, route) = place
                && !may_begin_with(route.r#match.path.segments(), prefix)
            {
                findings.add(at, prefix, Rule::StripNeverApplies { prefix: prefix.clone() });
            }
        }
        PathTransform::AddPrefix(prefix) => {
            if !is_path(prefix) || prefix == "/" {
                findings.add(at.key("add_prefix"), prefix, PATH_FORM);
            }
        }
        PathTransform::Replace(path) => replacement(at.key("replace"), path, place, findings),
    }
}

fn replacement(at: At<'_>, path: &str, place: Place<'_>, findings: &mut Findings) {
    let Some(parameters) = path_parameters(path).filter(|_| is_path(path)) else {
        findings.add(at, path, PATH_FORM);
        return;
    };
    let Place::Route(_, route) = place else {
        if !parameters.is_empty() {
            findings.add(at, path, Rule::ParameterOutsideRoute);
        }
        return;
    };
    let known: Vec<&str> = route
        .r#match
        .path
        .segments()
        .iter()
        .filter_map(|segment| match segment {
            PathSegment::Parameter(name) | PathSegment::Tail(name) => Some(&**name),
            PathSegment::Static(_) => None,
        })
        .collect();
    for name in parameters.into_iter().filter(|name| !known.contains(name)) {
        let known = known.iter().map(|name| (*name).to_owned()).collect();
        findings.add(at, path, Rule::UnknownParameter { name: name.to_owned(), known });
    }
}

/// Whether a path that matches these segments may begin with the prefix, in whole segments.
fn may_begin_with(segments: &[PathSegment], prefix: &str) -> bool {
    let mut segments = segments.iter();
    for wanted in prefix.trim_end_matches('/').split('/').skip(1) {
        match segments.next() {
            Some(PathSegment::Static(text)) if **text == *wanted => {}
            Some(PathSegment::Parameter(_)) if !wanted.is_empty() => {}
            Some(PathSegment::Tail(_)) => return true,
            _ => return false,
        }
    }
    true
}

fn query_changes(at: At<'_>, changes: &QueryChanges, findings: &mut Findings) {
    let keys = [
        ("rename", changes.rename.iter().find(|(from, to)| from.is_empty() || to.is_empty()).map(|(from, _)| from)),
        ("set", changes.set.keys().find(|name| name.is_empty())),
        ("add", changes.add.keys().find(|name| name.is_empty())),
        ("remove", changes.remove.iter().find(|name| name.is_empty())),
    ];
    for (key, _) in keys.into_iter().filter(|(_, empty)| empty.is_some()) {
        let rule = Rule::Empty { what: "the name of a query parameter", add: "its name" };
        findings.add_without_value(at.key(key), rule);
    }
    findings.duplicates(at.key("remove"), "query parameter", &changes.remove);
}

fn check_validation(at: At<'_>, validation: &Validation, findings: &mut Findings) {
    if validation.body_schema.is_none() && validation.openapi.is_none() {
        findings.add_without_value(at, Rule::NoDocument);
    }
    let body_schema = at.key("body_schema");
    let openapi = at.key("openapi");
    for (at, document) in [(body_schema, &validation.body_schema), (openapi, &validation.openapi)] {
        if let Some(JsonDocument::File(path)) = document
            && path.as_os_str().is_empty()
        {
            findings.add_without_value(at.key("file"), Rule::Empty { what: "the path", add: "the path of a document" });
        }
    }
    if let Some(JsonDocument::Inline(document)) = &validation.body_schema
        && !document.is_object()
        && !document.is_boolean()
    {
        let rule = Rule::BadForm { what: "a JSON Schema", form: "an object, as in {type: object}" };
        findings.add_without_value(body_schema.key("inline"), rule);
    }
    if let Some(JsonDocument::Inline(document)) = &validation.openapi
        && !document
            .get("openapi")
            .and_then(serde_json::Value::as_str)
            .is_some_and(|version| version.starts_with("3.1."))
    {
        findings.add_without_value(openapi.key("inline"), Rule::OpenApiVersion);
    }
}

fn check_compression(at: At<'_>, compression: &Compression, findings: &mut Findings) {
    if !compression.enabled {
        return;
    }
    if compression.encodings.is_empty() {
        let rule = Rule::Empty { what: "the list of encodings", add: "gzip, br or zstd, or write enabled: false" };
        findings.add_without_value(at.key("encodings"), rule);
    }
    for (index, encoding) in compression.encodings.iter().enumerate() {
        if compression.encodings[..index].contains(encoding) {
            let name = format!("{encoding:?}").to_lowercase();
            findings.add(
                at.key("encodings").index(index),
                &name,
                Rule::Duplicate { what: "encoding", name: name.clone() },
            );
        }
    }
    let at = at.key("media_types");
    findings.duplicates(at, "media type", &compression.media_types);
    for (index, media_type) in compression.media_types.iter().enumerate().filter(|(_, text)| !is_media_type(text)) {
        let rule = Rule::BadForm { what: "a media type", form: "application/json or text/*, without parameters" };
        findings.add(at.index(index), media_type, rule);
    }
}

fn check_timeouts(at: At<'_>, timeouts: &Timeouts, findings: &mut Findings) {
    let spans = [
        ("connect", "the time for a connection", timeouts.connect),
        ("per_try", "the time for one attempt", timeouts.per_try),
        ("total", "the time for all attempts", timeouts.total),
        ("idle", "the time between two pieces of a body", timeouts.idle),
    ];
    for (key, what, span) in spans {
        if span.get().is_zero() {
            findings.add(at.key(key), span, Rule::Zero { what, least: "at least 100ms" });
        }
    }
    // Who writes a short `total` alone need not repeat it: only what was written is compared.
    let defaults = Timeouts::default();
    let parts = [("connect", timeouts.connect, defaults.connect), ("per_try", timeouts.per_try, defaults.per_try)];
    for (low, span, default) in parts {
        if span > timeouts.total && span != default {
            let rule = Rule::Reversed {
                low,
                low_value: span.to_string(),
                high: "total",
                high_value: timeouts.total.to_string(),
            };
            findings.add(at.key(low), span, rule);
        }
    }
}

fn check_retries(at: At<'_>, retries: &Retries, findings: &mut Findings) {
    if retries.attempts > MOST_RETRIES {
        let rule = Rule::TooMuch { what: "the number of retries", most: "5" };
        findings.add(at.key("attempts"), retries.attempts, rule);
    }
    if retries.attempts > 0 && retries.on.is_empty() {
        let rule = Rule::Never { what: "the retry", needs: "on: [connect_failure, reset], or attempts: 0" };
        findings.add_without_value(at.key("on"), rule);
    }
}
