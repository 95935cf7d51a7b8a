//! API versions: which one a request means, and what its answers say about that version's future.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora_http::RequestHeader;
use seiketsu_config::{
    tenant::{self, VersionSource},
    values::Id,
};
use time::OffsetDateTime;

use super::{Refusal, vary};
use crate::respond::problem::ProblemKind;

const DEPRECATION: HeaderName = HeaderName::from_static("deprecation");
const SUNSET: HeaderName = HeaderName::from_static("sunset");

/// Why a list of versions is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersioningError {
    #[error("the default version {0} is not in the list: add it, or choose another default")]
    UnknownDefault(Id),
    #[error("the default version {0} is retired: choose another default, so that requests that name no version work")]
    RetiredDefault(Id),
    #[error("version {0}: `sunset` is before `deprecated`: a version is first deprecated, then ends (RFC 9745 §4)")]
    SunsetBeforeDeprecation(Id),
    #[error("version {0}: `sunset` must be a date from 1970 to 9999, as HTTP can write no other (RFC 8594 §3)")]
    SunsetOutOfRange(Id),
    #[error("version {id}: the link {link} cannot stand in a header: escape what is not ASCII")]
    InvalidLink { id: Id, link: String },
    #[error(
        "the media-type parameter {0:?} cannot name versions: use letters, digits and '-', as in `version`; `q` has a meaning of its own"
    )]
    InvalidParameter(String),
}

/// The API's versions, ready to pick from.
#[derive(Debug, Clone)]
pub struct Versions {
    source: Source,
    default: usize,
    /// Sorted by id.
    list: Box<[Version]>,
}

#[derive(Debug, Clone)]
enum Source {
    PathPrefix,
    Header(HeaderName),
    /// A parameter of the media types in `Accept`.
    MediaType(Box<str>),
}

/// One version, and the headers of its answers.
#[derive(Debug, Clone)]
struct Version {
    id: Id,
    retired: bool,
    headers: Box<[(HeaderName, HeaderValue)]>,
}

impl Version {
    fn compile(id: &Id, config: &tenant::Version) -> Result<Self, VersioningError> {
        let mut headers = Vec::new();
        if let Some(since) = config.deprecated {
            // A structured date (RFC 9651 §3.3.7): always a header value.
            headers.extend(HeaderValue::try_from(format!("@{}", since.unix_timestamp())).map(|v| (DEPRECATION, v)));
        }
        if let Some(sunset) = config.sunset {
            if config.deprecated.is_some_and(|deprecated| sunset < deprecated) {
                return Err(VersioningError::SunsetBeforeDeprecation(id.clone()));
            }
            let date = http_date(sunset).ok_or_else(|| VersioningError::SunsetOutOfRange(id.clone()))?;
            headers.push((SUNSET, date));
        }
        if let Some(link) = &config.link {
            let value = HeaderValue::try_from(format!("<{link}>; rel=\"deprecation\""))
                .ok()
                .filter(|_| !link.as_str().contains(['<', '>']))
                .ok_or_else(|| VersioningError::InvalidLink { id: id.clone(), link: link.to_string() })?;
            headers.push((header::LINK, value));
        }
        Ok(Self { id: id.clone(), retired: config.retired, headers: headers.into() })
    }
}

impl Versions {
    pub fn compile(config: &tenant::Versions) -> Result<Self, VersioningError> {
        let source = match &config.by {
            VersionSource::PathPrefix => Source::PathPrefix,
            VersionSource::Header(name) => Source::Header(name.get().clone()),
            VersionSource::MediaType(parameter) => {
                let is_name = !parameter.is_empty()
                    && parameter.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
                if !is_name || parameter.eq_ignore_ascii_case("q") {
                    return Err(VersioningError::InvalidParameter(parameter.clone()));
                }
                Source::MediaType(parameter.as_str().into())
            }
        };
        let list: Box<[Version]> =
            config.list.iter().map(|(id, version)| Version::compile(id, version)).collect::<Result<_, _>>()?;
        let default = list
            .iter()
            .position(|version| version.id == config.default)
            .ok_or_else(|| VersioningError::UnknownDefault(config.default.clone()))?;
        if list[default].retired {
            return Err(VersioningError::RetiredDefault(config.default.clone()));
        }
        Ok(Self { source, default, list })
    }

    /// The version that a request means, by its place in the list; the default if it names none.
    /// Refused are a version that is not in the list (400, or 406 if `Accept` names it) and one that
    /// is retired (410).
    pub fn pick(&self, request: &RequestHeader) -> Result<usize, Refusal> {
        let version = match &self.source {
            Source::PathPrefix => self.by_path(request.uri.path()),
            Source::Header(name) => self.by_header(&request.headers, name),
            Source::MediaType(parameter) => self.by_accept(&request.headers, parameter),
        };
        let index =
            version.map_err(|kind| self.refusal(kind, "The API has no version of the name that the request gives."))?;
        let version = &self.list[index];
        if version.retired {
            let detail = "This version of the API no longer works; see the Link header if there is one.";
            let mut refusal = self.refusal(ProblemKind::VersionRetired, detail);
            refusal.headers.extend(version.headers.iter().cloned());
            return Err(refusal);
        }
        Ok(index)
    }

    /// The name of the version that [`Self::pick`] gave.
    pub fn id(&self, index: usize) -> Option<&str> {
        self.list.get(index).map(|version| version.id.as_str())
    }

    /// Writes `Deprecation`, `Sunset` and `Link` of the version and the `Vary` of its choice. The
    /// upstream's `Deprecation` and `Sunset` give way; its links stay.
    pub fn apply(&self, index: usize, response: &mut HeaderMap) {
        for (name, value) in self.list.get(index).into_iter().flat_map(|version| &version.headers) {
            if name == header::LINK {
                response.append(name, value.clone());
            } else {
                response.insert(name, value.clone());
            }
        }
        if let Some(name) = self.varies_on() {
            vary::add(response, &[name]);
        }
    }

    fn varies_on(&self) -> Option<&str> {
        match &self.source {
            Source::PathPrefix => None,
            Source::Header(name) => Some(name.as_str()),
            Source::MediaType(_) => Some("Accept"),
        }
    }

    fn refusal(&self, kind: ProblemKind, detail: &'static str) -> Refusal {
        let supported: Vec<&str> = self.list.iter().filter(|v| !v.retired).map(|v| v.id.as_str()).collect();
        let refusal = Refusal::new(kind, detail).with_extension("supported", supported);
        match self.varies_on().and_then(|name| HeaderValue::from_str(name).ok()) {
            Some(name) => refusal.with_header(header::VARY, name),
            None => refusal,
        }
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.list.binary_search_by(|version| version.id.as_str().cmp(id)).ok()
    }

    /// A first segment that is not in the list is a version all the same if it looks like one (`v9`,
    /// `v1.2`); anything else is a path that names no version.
    fn by_path(&self, path: &str) -> Result<usize, ProblemKind> {
        let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match self.find(segment) {
            Some(version) => Ok(version),
            None if looks_like_version(segment) => Err(ProblemKind::UnsupportedVersion),
            None => Ok(self.default),
        }
    }

    fn by_header(&self, headers: &HeaderMap, name: &HeaderName) -> Result<usize, ProblemKind> {
        let mut values = headers.get_all(name).iter();
        let Some(value) = values.next() else { return Ok(self.default) };
        // Two values would let gateway and upstream each take another one.
        let single = if values.next().is_none() { value.to_str().ok() } else { None };
        single.and_then(|id| self.find(id.trim())).ok_or(ProblemKind::UnsupportedVersion)
    }

    /// Of the media ranges that name a version, the one with the highest quality counts, and of equal
    /// ones the first (RFC 9110 §12.5.1).
    fn by_accept(&self, headers: &HeaderMap, parameter: &str) -> Result<usize, ProblemKind> {
        let mut best: Option<(u16, String)> = None;
        for line in headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok()) {
            for range in split_outside_quotes(line, ',') {
                let mut named = None;
                let mut quality = 1000;
                for (name, value) in split_outside_quotes(range, ';').skip(1).filter_map(|p| p.split_once('=')) {
                    let (name, value) = (name.trim(), value.trim());
                    if name.eq_ignore_ascii_case("q") {
                        quality = super::compression::quality(value.as_bytes()).unwrap_or(0);
                    } else if name.eq_ignore_ascii_case(parameter) {
                        named = Some(unquoted(value));
                    }
                }
                if let Some(named) = named
                    && quality > best.as_ref().map_or(0, |(best, _)| *best)
                {
                    best = Some((quality, named));
                }
            }
        }
        match best {
            None => Ok(self.default),
            Some((_, id)) => self.find(&id).ok_or(ProblemKind::NotAcceptable),
        }
    }
}

fn looks_like_version(segment: &str) -> bool {
    segment.strip_prefix(['v', 'V']).is_some_and(|number| {
        number.starts_with(|c: char| c.is_ascii_digit()) && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    })
}

/// RFC 9110 §5.6.7. `None` outside of the years that `IMF-fixdate` can write.
fn http_date(date: OffsetDateTime) -> Option<HeaderValue> {
    let date = date.to_offset(time::UtcOffset::UTC);
    if !(1970..=9999).contains(&date.year()) {
        return None;
    }
    HeaderValue::try_from(httpdate::fmt_http_date(date.into())).ok()
}

/// Splits at a separator that is not within a quoted string (RFC 9110 §5.6.4).
fn split_outside_quotes(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let splits = c == separator && !quoted;
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        splits
    })
}

fn unquoted(value: &str) -> String {
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        None => value.to_owned(),
        Some(inner) => {
            let mut escaped = false;
            let keep = |c: &char| {
                escaped = *c == '\\' && !escaped;
                !escaped
            };
            inner.chars().filter(keep).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compile(by: &serde_json::Value, list: &serde_json::Value) -> Result<Versions, VersioningError> {
        let config = json!({ "by": by, "default": "v2", "list": list });
        Versions::compile(&serde_json::from_value(config).unwrap())
    }

    fn versions(by: &serde_json::Value) -> Versions {
        let list = json!({
            "v0": { "retired": true, "link": "https://docs.example/v0" },
            "v1": { "deprecated": "2025-01-01T00:00:00Z", "sunset": "2026-01-01T01:00:00+01:00", "link": "https://docs.example/v1?a=<b>" },
            "v2": {},
            "v2.1-beta": {},
        });
        compile(by, &list).unwrap()
    }

    fn request(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target.as_bytes(), None).unwrap();
        for (name, value) in fields {
            request.append_header(*name, *value).unwrap();
        }
        request
    }

    fn picked(versions: &Versions, target: &str, fields: &[(&'static str, &str)]) -> Result<String, u16> {
        match versions.pick(&request(target, fields)) {
            Ok(index) => Ok(versions.id(index).unwrap().to_owned()),
            Err(refusal) => Err(refusal.status().as_u16()),
        }
    }

    #[test]
    fn the_path_names_a_version() {
        let versions = versions(&json!("path_prefix"));
        assert_eq!(picked(&versions, "/v1/users", &[]).unwrap(), "v1");
        assert_eq!(picked(&versions, "/v2.1-beta", &[]).unwrap(), "v2.1-beta");
        assert_eq!(picked(&versions, "/users/v1", &[]).unwrap(), "v2");
        assert_eq!(picked(&versions, "/", &[]).unwrap(), "v2");
        assert_eq!(picked(&versions, "/vault", &[]).unwrap(), "v2");
        assert_eq!(picked(&versions, "/v9/users", &[]), Err(400));
        assert_eq!(picked(&versions, "/v1.9/users", &[]), Err(400));
        assert_eq!(picked(&versions, "/v0/users", &[]), Err(410));
    }

    #[test]
    fn a_header_names_a_version() {
        let versions = versions(&json!({ "header": "X-Api-Version" }));
        assert_eq!(picked(&versions, "/", &[]).unwrap(), "v2");
        assert_eq!(picked(&versions, "/", &[("x-api-version", " v1 ")]).unwrap(), "v1");
        assert_eq!(picked(&versions, "/", &[("x-api-version", "v9")]), Err(400));
        assert_eq!(picked(&versions, "/", &[("x-api-version", "")]), Err(400));
        assert_eq!(picked(&versions, "/", &[("x-api-version", "v1"), ("x-api-version", "v2")]), Err(400));
        assert_eq!(picked(&versions, "/", &[("x-api-version", "v0")]), Err(410));
    }

    #[test]
    fn a_media_type_names_a_version() {
        let versions = versions(&json!({ "media_type": "version" }));
        let accept = |accept: &str| picked(&versions, "/", &[("accept", accept)]);
        assert_eq!(picked(&versions, "/", &[]).unwrap(), "v2");
        assert_eq!(accept("application/json").unwrap(), "v2");
        assert_eq!(accept("application/json;version=v1").unwrap(), "v1");
        assert_eq!(accept("application/json; Version=\"v1\"").unwrap(), "v1");
        assert_eq!(
            accept("text/html, application/json;version=v1;q=0.5, application/json;version=v2.1-beta").unwrap(),
            "v2.1-beta"
        );
        assert_eq!(accept("application/json;version=v1;q=0").unwrap(), "v2");
        assert_eq!(accept("text/plain;x=\",version=v9;\";version=v1").unwrap(), "v1");
        assert_eq!(accept("application/json;version=v9"), Err(406));
        assert_eq!(accept("application/json;version=v0"), Err(410));
    }

    #[test]
    fn answers_of_a_deprecated_version_say_so() {
        let versions = versions(&json!({ "header": "X-Api-Version" }));
        let picked = versions.pick(&request("/", &[("x-api-version", "v1")])).unwrap();
        let mut response = HeaderMap::new();
        response.append("sunset", HeaderValue::from_static("never"));
        response.append("link", HeaderValue::from_static("</next>; rel=\"next\""));
        versions.apply(picked, &mut response);
        let all = |name: &str| -> Vec<_> { response.get_all(name).iter().map(|v| v.to_str().unwrap()).collect() };
        assert_eq!(all("deprecation"), ["@1735689600"]);
        assert_eq!(all("sunset"), ["Thu, 01 Jan 2026 00:00:00 GMT"]);
        assert_eq!(all("link"), ["</next>; rel=\"next\"", "<https://docs.example/v1?a=%3Cb%3E>; rel=\"deprecation\""]);
        assert_eq!(all("vary"), ["x-api-version"]);
    }

    #[test]
    fn a_retired_version_points_to_what_comes_after_it() {
        let versions = versions(&json!("path_prefix"));
        let refusal = versions.pick(&request("/v0", &[])).unwrap_err();
        assert_eq!(refusal.kind, ProblemKind::VersionRetired);
        assert_eq!(refusal.headers[0].1, "<https://docs.example/v0>; rel=\"deprecation\"");
        assert_eq!(refusal.extensions().collect::<Vec<_>>(), [("supported", json!(["v1", "v2", "v2.1-beta"]))]);
    }

    #[test]
    fn refusals_vary_too() {
        let versions = versions(&json!({ "media_type": "version" }));
        let refusal = versions.pick(&request("/", &[("accept", "a/b;version=x")])).unwrap_err();
        assert_eq!(refusal.headers, [(header::VARY, HeaderValue::from_static("Accept"))]);
    }

    #[test]
    fn contradictions_are_refused() {
        let by = json!("path_prefix");
        let error = |list| compile(&by, &list).unwrap_err();
        assert!(matches!(error(json!({ "v1": {} })), VersioningError::UnknownDefault(_)));
        assert!(matches!(error(json!({ "v2": { "retired": true } })), VersioningError::RetiredDefault(_)));
        let backwards = json!({ "v2": { "deprecated": "2026-01-02T00:00:00Z", "sunset": "2026-01-01T00:00:00Z" } });
        assert!(matches!(error(backwards), VersioningError::SunsetBeforeDeprecation(_)));
        assert!(matches!(
            error(json!({ "v2": { "sunset": "1969-12-31T00:00:00Z" } })),
            VersioningError::SunsetOutOfRange(_)
        ));
        for parameter in ["q", "", "a b", "a=b"] {
            let error = compile(&json!({ "media_type": parameter }), &json!({ "v2": {} })).unwrap_err();
            assert_eq!(error, VersioningError::InvalidParameter(parameter.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn any_accept_header_gives_a_listed_version_or_a_refusal(accept in "[a-z0-9,;=\"\\\\ ./*]{0,60}") {
            let versions = versions(&json!({ "media_type": "version" }));
            match versions.pick(&request("/", &[("accept", &accept)])) {
                Ok(index) => prop_assert!(!versions.list[index].retired),
                Err(refusal) => prop_assert!(matches!(refusal.status().as_u16(), 406 | 410)),
            }
        }

        #[test]
        fn quoted_strings_hide_separators(before in "[a-z ]{0,5}", inside in "[a-z,;=]{0,8}", after in "[a-z ]{0,5}") {
            let text = format!("{before}\"{inside}\",{after}");
            let parts: Vec<_> = split_outside_quotes(&text, ',').collect();
            let first = format!("{before}\"{inside}\"");
            prop_assert_eq!(parts, vec![first.as_str(), after.as_str()]);
        }
    }
}
