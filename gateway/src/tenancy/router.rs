//! Which route of a tenant a request takes.
//!
//! Of several routes that match, the one with the more specific path wins: compared segment by segment
//! from the left, a static segment is more specific than a parameter, that than a tail, and the end of
//! a path than a tail that stands for nothing. Then the one with more conditions wins (all methods
//! together count as one condition, so do all versions, and each header and query condition), then the
//! one that stands first. A route whose path matches but whose conditions do not hold is passed over,
//! for a less specific one if there is one.
//!
//! A tail stands for everything below, also for nothing: `/files/{*path}` takes `/files`, `/files/` and
//! `/files/a/b`, so that whatever is decided about a folder holds for the folder itself.
//!
//! The routes form a trie of segments, searched depth first in the order of precedence. It lies in three
//! blocks of memory, nodes that are compared with each other side by side, because with many tenants
//! the cost of a match is the cost of its cache misses. The `matchit` crate, otherwise the natural
//! choice, has one value for each pattern, returns one match without going on to the next when its
//! conditions do not hold, refuses `/{id}` beside `/{*rest}`, and has no tail that stands for nothing.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, VecDeque},
    ops::Range,
};

use http::{HeaderMap, Method};
use seiketsu_config::{
    tenant::{RouteMatch, TextTest},
    values::{Id, PathPattern, PathSegment},
};

/// The compiled routes of one tenant.
#[derive(Debug, Default)]
pub struct Router {
    /// The first is the root; the children of a node lie side by side, static ones sorted, then the
    /// parameter.
    nodes: Box<[Node]>,
    /// The static segments, one after the other.
    labels: Box<str>,
    /// Those of one node lie side by side.
    candidates: Box<[Candidate]>,
}

/// What a route is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct RouteRequest<'a> {
    pub method: &'a Method,
    /// In normal form, as [`super::path::normalise`] returns it.
    pub path: &'a str,
    /// As it was sent, without the `?`.
    pub query: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// The API version that the request asks for, or the default one.
    pub version: Option<&'a str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The route of this index, in the order in which the routes were given.
    Route(usize),
    /// Routes match but for the method; with these one would, sorted. 405 with `Allow` (RFC 9110 §15.5.6).
    MethodNotAllowed(Vec<Method>),
    NotFound,
}

/// A segment in the trie.
#[derive(Debug)]
struct Node {
    label_start: u32,
    label_len: u32,
    first_child: u32,
    static_children: u32,
    first_candidate: u32,
    /// Candidates whose pattern ends here.
    ends: u32,
    /// Candidates whose pattern has a tail from here on; they follow the others.
    tails: u32,
    /// Whether a child for a parameter follows the static ones.
    has_parameter: bool,
}

/// A route whose path matches at some node.
#[derive(Debug)]
struct Candidate {
    route: u32,
    methods: MethodSet,
    conditions: Option<Box<Conditions>>,
}

/// The conditions that few routes have.
#[derive(Debug)]
struct Conditions {
    versions: Box<[Id]>,
    headers: Box<[(http::HeaderName, TextTest)]>,
    query: Box<[(Box<str>, TextTest)]>,
    extension_methods: Box<[Method]>,
}

impl Router {
    /// Compiles the routes of one tenant.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a RouteMatch>) -> Self {
        let mut trie = Trie::default();
        let mut by_precedence: Vec<_> = routes.into_iter().enumerate().collect();
        by_precedence.sort_by_key(|(_, route)| Reverse(condition_count(route)));
        for (index, route) in by_precedence {
            trie.add(route.path.segments(), Candidate::new(index, route));
        }
        trie.flatten()
    }

    /// The route that a request takes. Does not allocate, but for the outcome `MethodNotAllowed` and
    /// query conditions on escaped queries.
    pub fn find(&self, request: &RouteRequest<'_>) -> Outcome {
        let mut found = None;
        self.visit(request.path, &mut |candidate| {
            let holds = candidate.methods.contains(request.method, candidate.extension_methods())
                && candidate.other_conditions_hold(request);
            if holds {
                found = Some(candidate.route);
            }
            holds
        });
        match found {
            Some(route) => Outcome::Route(route as usize),
            None => self.explain(request),
        }
    }

    /// Why nothing was found.
    #[cold]
    fn explain(&self, request: &RouteRequest<'_>) -> Outcome {
        let mut allowed = Vec::new();
        self.visit(request.path, &mut |candidate| {
            if candidate.other_conditions_hold(request) {
                allowed.extend(candidate.methods.iter());
                allowed.extend(candidate.extension_methods().iter().cloned());
            }
            false
        });
        if allowed.is_empty() {
            return Outcome::NotFound;
        }
        allowed.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        allowed.dedup();
        Outcome::MethodNotAllowed(allowed)
    }

    /// Shows the candidates whose path matches, in the order of precedence, until one is taken.
    fn visit(&self, path: &str, take: &mut impl FnMut(&Candidate) -> bool) -> bool {
        match self.nodes.first() {
            Some(root) => self.visit_below(root, path.strip_prefix('/'), take),
            None => false,
        }
    }

    /// `rest` is the path below this node without its first slash, or nothing if the path ends here.
    fn visit_below(&self, node: &Node, rest: Option<&str>, take: &mut impl FnMut(&Candidate) -> bool) -> bool {
        let Some(rest) = rest else {
            return self.candidates(node.ends()).iter().any(&mut *take)
                || self.candidates(node.tails()).iter().any(take);
        };
        let (segment, rest) = split_segment(rest);
        if let Some(child) = self.static_child(node, segment)
            && self.visit_below(child, rest, take)
        {
            return true;
        }
        if node.has_parameter
            && !segment.is_empty()
            && let Some(child) = self.nodes.get((node.first_child + node.static_children) as usize)
            && self.visit_below(child, rest, take)
        {
            return true;
        }
        self.candidates(node.tails()).iter().any(take)
    }

    fn static_child(&self, node: &Node, segment: &str) -> Option<&Node> {
        let first = node.first_child as usize;
        let children = self.nodes.get(first..first + node.static_children as usize)?;
        let found = children.binary_search_by(|child| {
            by_length(self.labels.as_bytes().get(child.label()).unwrap_or_default(), segment.as_bytes())
        });
        found.ok().and_then(|index| children.get(index))
    }

    fn candidates(&self, range: Range<usize>) -> &[Candidate] {
        self.candidates.get(range).unwrap_or_default()
    }
}

/// The names and values of a pattern's parameters in a path that it matches, from left to right; the
/// values as they stand in the path, escapes included. The tail is last.
pub fn parameters<'a>(pattern: &'a PathPattern, path: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let mut rest = path.strip_prefix('/');
    pattern.segments().iter().filter_map(move |segment| {
        let below = rest.unwrap_or_default();
        let (value, next) = split_segment(below);
        rest = rest.and(next);
        match segment {
            PathSegment::Static(_) => None,
            PathSegment::Parameter(name) => Some((&**name, value)),
            PathSegment::Tail(name) => Some((&**name, below)),
        }
    })
}

/// The first segment, and what follows its slash, if there is one.
fn split_segment(path: &str) -> (&str, Option<&str>) {
    match path.bytes().position(|byte| byte == b'/') {
        Some(slash) => (&path[..slash], Some(&path[slash + 1..])),
        None => (path, None),
    }
}

/// An order in which most comparisons need not look at the text.
fn by_length(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

impl Node {
    fn label(&self) -> Range<usize> {
        self.label_start as usize..(self.label_start + self.label_len) as usize
    }

    fn ends(&self) -> Range<usize> {
        self.first_candidate as usize..(self.first_candidate + self.ends) as usize
    }

    fn tails(&self) -> Range<usize> {
        let first = self.first_candidate + self.ends;
        first as usize..(first + self.tails) as usize
    }
}

impl Candidate {
    fn new(index: usize, route: &RouteMatch) -> Self {
        let mut methods = MethodSet::default();
        let mut extension_methods = Vec::new();
        for method in &route.methods {
            match MethodSet::bit(method.get()) {
                Some(bit) => methods.0 |= bit,
                None => extension_methods.push(method.get().clone()),
            }
        }
        if route.methods.is_empty() {
            methods = MethodSet::ANY;
        } else if methods.contains(&Method::GET, &[]) {
            methods.0 |= MethodSet::HEAD;
        }
        let conditions = Conditions {
            versions: route.versions.iter().cloned().collect(),
            headers: route.headers.iter().map(|c| (c.name.get().clone(), c.test.clone())).collect(),
            query: route.query.iter().map(|c| (c.name.as_str().into(), c.test.clone())).collect(),
            extension_methods: extension_methods.into(),
        };
        let conditions = (!conditions.is_empty()).then(|| Box::new(conditions));
        Self { route: to_u32(index), methods, conditions }
    }

    fn extension_methods(&self) -> &[Method] {
        self.conditions.as_ref().map_or(&[], |conditions| &conditions.extension_methods)
    }

    /// All conditions but the one on the method.
    fn other_conditions_hold(&self, request: &RouteRequest<'_>) -> bool {
        self.conditions.as_ref().is_none_or(|conditions| conditions.hold(request))
    }
}

impl Conditions {
    fn is_empty(&self) -> bool {
        self.versions.is_empty()
            && self.headers.is_empty()
            && self.query.is_empty()
            && self.extension_methods.is_empty()
    }

    #[cold]
    fn hold(&self, request: &RouteRequest<'_>) -> bool {
        let version_holds = self.versions.is_empty()
            || request.version.is_some_and(|wanted| self.versions.iter().any(|v| v.as_str() == wanted));
        version_holds
            && self
                .headers
                .iter()
                .all(|(name, test)| holds_for_any(test, request.headers.get_all(name).iter(), |value| value.as_bytes()))
            && self.query.iter().all(|(name, test)| {
                let pairs = url::form_urlencoded::parse(request.query.unwrap_or_default().as_bytes());
                let values = pairs.filter(|(key, _)| *key == **name).map(|(_, value)| value);
                holds_for_any(test, values, |value| value.as_bytes())
            })
    }
}

/// Whether a test holds for one of the values of a name, or for there being none.
fn holds_for_any<V>(test: &TextTest, mut values: impl Iterator<Item = V>, bytes: impl Fn(&V) -> &[u8]) -> bool {
    match test {
        TextTest::Equals(text) => values.any(|value| bytes(&value) == text.as_bytes()),
        TextTest::Prefix(text) => values.any(|value| bytes(&value).starts_with(text.as_bytes())),
        TextTest::Suffix(text) => values.any(|value| bytes(&value).ends_with(text.as_bytes())),
        TextTest::Contains(text) => values.any(|value| contains(bytes(&value), text.as_bytes())),
        TextTest::Present(wanted) => values.next().is_some() == *wanted,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

fn condition_count(route: &RouteMatch) -> usize {
    usize::from(!route.methods.is_empty())
        + usize::from(!route.versions.is_empty())
        + route.headers.len()
        + route.query.len()
}

/// The methods of RFC 9110 §9 and RFC 5789 as bits, those in [`MethodSet::KNOWN`]; others are listed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct MethodSet(u16);

impl MethodSet {
    const KNOWN: [Method; 8] = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::PATCH,
        Method::OPTIONS,
        Method::TRACE,
    ];
    const HEAD: u16 = 1 << 1;
    const ANY: Self = Self(u16::MAX);

    fn bit(method: &Method) -> Option<u16> {
        Self::KNOWN.iter().position(|known| known == method).map(|index| 1 << index)
    }

    fn contains(self, method: &Method, extension_methods: &[Method]) -> bool {
        self == Self::ANY
            || match Self::bit(method) {
                Some(bit) => self.0 & bit != 0,
                None => extension_methods.contains(method),
            }
    }

    fn iter(self) -> impl Iterator<Item = Method> {
        Self::KNOWN.into_iter().enumerate().filter(move |(index, _)| self.0 & (1 << index) != 0).map(|(_, m)| m)
    }
}

/// The routes while the table is built.
#[derive(Default)]
struct Trie<'a> {
    statics: BTreeMap<&'a str, Trie<'a>>,
    parameter: Option<Box<Trie<'a>>>,
    ends: Vec<Candidate>,
    tails: Vec<Candidate>,
}

impl<'a> Trie<'a> {
    fn add(&mut self, segments: &'a [PathSegment], candidate: Candidate) {
        match segments {
            [] => self.ends.push(candidate),
            [PathSegment::Tail(_), ..] => self.tails.push(candidate),
            [PathSegment::Static(label), rest @ ..] => self.statics.entry(label).or_default().add(rest, candidate),
            [PathSegment::Parameter(_), rest @ ..] => self.parameter.get_or_insert_default().add(rest, candidate),
        }
    }

    /// Lays the nodes out level by level, so that siblings are neighbours.
    fn flatten(self) -> Router {
        let mut nodes = Vec::new();
        let mut labels = String::new();
        let mut candidates = Vec::new();
        let mut first_child = 1;
        let mut waiting = VecDeque::from([("", self)]);
        while let Some((label, trie)) = waiting.pop_front() {
            let mut statics: Vec<_> = trie.statics.into_iter().collect();
            statics.sort_by(|(a, _), (b, _)| by_length(a.as_bytes(), b.as_bytes()));
            nodes.push(Node {
                label_start: to_u32(labels.len()),
                label_len: to_u32(label.len()),
                first_child: to_u32(first_child),
                static_children: to_u32(statics.len()),
                first_candidate: to_u32(candidates.len()),
                ends: to_u32(trie.ends.len()),
                tails: to_u32(trie.tails.len()),
                has_parameter: trie.parameter.is_some(),
            });
            labels.push_str(label);
            candidates.extend(trie.ends);
            candidates.extend(trie.tails);
            first_child += statics.len() + usize::from(trie.parameter.is_some());
            waiting.extend(statics);
            waiting.extend(trie.parameter.map(|trie| ("", *trie)));
        }
        Router { nodes: nodes.into(), labels: labels.into(), candidates: candidates.into() }
    }
}

/// Indices are half as long as the machine's, to keep the table dense. No configuration that can be read
/// has more than four thousand million segments.
fn to_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use seiketsu_config::tenant::{HeaderCondition, QueryCondition};

    use super::*;

    fn route(path: &str) -> RouteMatch {
        RouteMatch {
            path: path.parse().unwrap(),
            methods: Vec::new(),
            versions: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
        }
    }

    fn with_methods(path: &str, methods: &[&str]) -> RouteMatch {
        RouteMatch { methods: methods.iter().map(|m| m.parse().unwrap()).collect(), ..route(path) }
    }

    fn with_header(path: &str, name: &str, test: TextTest) -> RouteMatch {
        RouteMatch { headers: vec![HeaderCondition { name: name.parse().unwrap(), test }], ..route(path) }
    }

    fn with_query(path: &str, name: &str, test: TextTest) -> RouteMatch {
        RouteMatch { query: vec![QueryCondition { name: name.to_owned(), test }], ..route(path) }
    }

    fn equals(text: &str) -> TextTest {
        TextTest::Equals(text.to_owned())
    }

    /// A request of which tests set what they are about.
    #[derive(Debug)]
    struct Sent {
        method: Method,
        path: String,
        query: Option<String>,
        headers: HeaderMap,
        version: Option<&'static str>,
    }

    fn get(target: &str) -> Sent {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        Sent { method: Method::GET, path: path.to_owned(), query, headers: HeaderMap::new(), version: None }
    }

    impl Sent {
        fn method(mut self, method: &str) -> Self {
            self.method = method.parse().unwrap();
            self
        }

        fn header(mut self, name: &'static str, value: &str) -> Self {
            self.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
            self
        }

        fn version(mut self, version: &'static str) -> Self {
            self.version = Some(version);
            self
        }

        fn request(&self) -> RouteRequest<'_> {
            RouteRequest {
                method: &self.method,
                path: &self.path,
                query: self.query.as_deref(),
                headers: &self.headers,
                version: self.version,
            }
        }

        fn of(&self, routes: &[RouteMatch]) -> Outcome {
            Router::new(routes).find(&self.request())
        }
    }

    fn paths(patterns: &[&str]) -> Vec<RouteMatch> {
        patterns.iter().map(|pattern| route(pattern)).collect()
    }

    fn allowed(methods: &[&str]) -> Outcome {
        Outcome::MethodNotAllowed(methods.iter().map(|m| m.parse().unwrap()).collect())
    }

    #[test]
    fn static_comes_before_parameter_before_tail_from_the_left() {
        let routes = paths(&[
            "/{*rest}",
            "/v1/{*rest}",
            "/v1/{collection}",
            "/v1/users",
            "/v1/users/{id}",
            "/v1/users/me",
            "/{version}/users/me/keys",
            "/v1/users/{id}/keys",
        ]);
        for (path, index) in [
            ("/", 0),
            ("/other", 0),
            ("/v1", 1),
            ("/v1/", 1),
            ("/v1/orders", 2),
            ("/v1/users", 3),
            ("/v1/users/", 1),
            ("/v1/users/42", 4),
            ("/v1/users/me", 5),
            ("/v1/users/me/keys", 7),
            ("/v2/users/me/keys", 6),
            ("/v1/users/42/keys", 7),
            ("/v1/users/42/keys/1", 1),
        ] {
            assert_eq!(get(path).of(&routes), Outcome::Route(index), "{path}");
        }
    }

    #[test]
    fn a_dead_end_leads_back_to_the_less_specific() {
        let routes = paths(&["/a/b/c", "/a/{x}/d", "/{x}/b/e", "/{*rest}"]);
        for (path, index) in [("/a/b/c", 0), ("/a/b/d", 1), ("/a/b/e", 2), ("/a/b/f", 3)] {
            assert_eq!(get(path).of(&routes), Outcome::Route(index), "{path}");
        }
    }

    #[test]
    fn a_parameter_is_one_segment_that_is_not_empty() {
        let routes = paths(&["/users/{id}"]);
        assert_eq!(get("/users/42").of(&routes), Outcome::Route(0));
        for path in ["/users", "/users/", "/users/42/", "/users/42/x"] {
            assert_eq!(get(path).of(&routes), Outcome::NotFound, "{path}");
        }
    }

    #[test]
    fn a_tail_is_everything_below_and_nothing_too() {
        let routes = paths(&["/files/{*path}"]);
        for path in ["/files", "/files/", "/files/a", "/files/a/b/"] {
            assert_eq!(get(path).of(&routes), Outcome::Route(0), "{path}");
        }
        for path in ["/", "/filesystem", "/file"] {
            assert_eq!(get(path).of(&routes), Outcome::NotFound, "{path}");
        }
        assert_eq!(get("/").of(&paths(&["/{*path}"])), Outcome::Route(0));
        assert_eq!(get("/files").of(&paths(&["/files/{*path}", "/files"])), Outcome::Route(1));
        assert_eq!(get("/files/").of(&paths(&["/files/{*path}", "/files/"])), Outcome::Route(1));
    }

    #[test]
    fn without_routes_nothing_is_found() {
        assert_eq!(get("/").of(&[]), Outcome::NotFound);
        assert_eq!(Router::default().find(&get("/").request()), Outcome::NotFound);
    }

    #[test]
    fn more_conditions_win_and_then_the_first() {
        let routes = [
            route("/a/{x}"),
            route("/a/{y}"),
            with_header("/a/{z}", "x-beta", equals("1")),
            RouteMatch { methods: vec!["GET".parse().unwrap()], ..with_header("/a/{z}", "x-beta", equals("2")) },
            with_header("/a/{z}", "x-beta", TextTest::Present(true)),
        ];
        assert_eq!(get("/a/b").of(&routes), Outcome::Route(0));
        assert_eq!(get("/a/b").header("x-beta", "1").of(&routes), Outcome::Route(2));
        assert_eq!(get("/a/b").header("x-beta", "2").of(&routes), Outcome::Route(3));
        assert_eq!(get("/a/b").header("x-beta", "3").of(&routes), Outcome::Route(4));
    }

    #[test]
    fn a_specific_path_whose_conditions_fail_gives_way_to_a_general_one() {
        let routes = [with_methods("/a/b", &["POST"]), route("/{*rest}")];
        assert_eq!(get("/a/b").of(&routes), Outcome::Route(1));
        assert_eq!(get("/a/b").method("POST").of(&routes), Outcome::Route(0));
    }

    #[test]
    fn another_method_is_answered_with_those_that_would_do() {
        let routes = [
            with_methods("/a/{x}", &["PUT", "PURGE"]),
            with_methods("/a/b", &["GET"]),
            with_methods("/a/{*rest}", &["DELETE", "PUT"]),
            RouteMatch { methods: vec!["PATCH".parse().unwrap()], ..with_header("/a/b", "x-beta", equals("1")) },
        ];
        assert_eq!(get("/a/b").method("POST").of(&routes), allowed(&["DELETE", "GET", "HEAD", "PURGE", "PUT"]));
        assert_eq!(
            get("/a/b").method("POST").header("x-beta", "1").of(&routes),
            allowed(&["DELETE", "GET", "HEAD", "PATCH", "PURGE", "PUT"])
        );
        assert_eq!(get("/a").method("LOCK").of(&routes), allowed(&["DELETE", "PUT"]));
        assert_eq!(get("/b").method("POST").of(&routes), Outcome::NotFound);
        assert_eq!(get("/a/c").method("PURGE").of(&routes), Outcome::Route(0));
    }

    #[test]
    fn head_is_served_by_a_get_route_and_options_by_none_of_its_own() {
        let routes = [with_methods("/a", &["GET"]), with_methods("/b", &["POST"])];
        assert_eq!(get("/a").method("HEAD").of(&routes), Outcome::Route(0));
        assert_eq!(get("/b").method("HEAD").of(&routes), allowed(&["POST"]));
        assert_eq!(get("/a").method("OPTIONS").of(&routes), allowed(&["GET", "HEAD"]));
        assert_eq!(get("/a").method("OPTIONS").of(&[route("/a")]), Outcome::Route(0));
        assert_eq!(get("/a").method("BREW").of(&[route("/a")]), Outcome::Route(0));
    }

    #[test]
    fn a_route_of_some_versions_takes_requests_of_these_only() {
        let versions = |versions: &[&str]| RouteMatch {
            versions: versions.iter().map(|v| v.parse().unwrap()).collect(),
            ..route("/a")
        };
        let routes = [versions(&["v1", "v2"]), versions(&["v3"])];
        assert_eq!(get("/a").version("v2").of(&routes), Outcome::Route(0));
        assert_eq!(get("/a").version("v3").of(&routes), Outcome::Route(1));
        assert_eq!(get("/a").version("v4").of(&routes), Outcome::NotFound);
        assert_eq!(get("/a").of(&routes), Outcome::NotFound);
    }

    #[test]
    fn a_header_condition_holds_for_any_line_of_the_field() {
        for (test, holding, failing) in [
            (equals("b"), "b", "B"),
            (TextTest::Prefix("b".into()), "bc", "cb"),
            (TextTest::Suffix("b".into()), "cb", "bc"),
            (TextTest::Contains("b".into()), "abc", "ac"),
            (TextTest::Contains(String::new()), "x", ""),
        ] {
            let routes = [with_header("/", "x-a", test.clone())];
            assert_eq!(get("/").header("x-a", "-").header("x-a", holding).of(&routes), Outcome::Route(0), "{test:?}");
            assert_eq!(get("/").of(&routes), Outcome::NotFound, "{test:?}");
            if !failing.is_empty() {
                assert_eq!(get("/").header("x-a", failing).of(&routes), Outcome::NotFound, "{test:?}");
            }
        }
        let absent = [with_header("/", "x-a", TextTest::Present(false))];
        assert_eq!(get("/").of(&absent), Outcome::Route(0));
        assert_eq!(get("/").header("x-a", "").of(&absent), Outcome::NotFound);
    }

    #[test]
    fn a_query_condition_reads_names_and_values_decoded() {
        let routes = [with_query("/", "a b", equals("c&d"))];
        for target in ["/?a+b=c%26d", "/?x&a%20b=e&a+b=c%26d", "/?a%20b=c%26d"] {
            assert_eq!(get(target).of(&routes), Outcome::Route(0), "{target}");
        }
        for target in ["/", "/?", "/?a=c&d", "/?a+b=c", "/?A+b=c%26d"] {
            assert_eq!(get(target).of(&routes), Outcome::NotFound, "{target}");
        }
        let present = [with_query("/", "debug", TextTest::Present(true))];
        assert_eq!(get("/?debug").of(&present), Outcome::Route(0));
        assert_eq!(get("/?debugger=1").of(&present), Outcome::NotFound);
    }

    #[test]
    fn parameters_are_read_by_name_in_their_order() {
        let read = |pattern: &str, path: &str| {
            let pattern: PathPattern = pattern.parse().unwrap();
            parameters(&pattern, path).map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(read("/v1/users", "/v1/users"), "");
        assert_eq!(read("/v1/{a}/x/{b}", "/v1/1/x/2%20"), "a=1 b=2%20");
        assert_eq!(read("/v1/{a}/{*rest}", "/v1/1/2/3/"), "a=1 rest=2/3/");
        assert_eq!(read("/v1/{a}/{*rest}", "/v1/1/"), "a=1 rest=");
        assert_eq!(read("/v1/{a}/{*rest}", "/v1/1"), "a=1 rest=");
        assert_eq!(read("/{*rest}", "/"), "rest=");
    }

    #[test]
    fn a_pattern_of_the_greatest_depth_is_matched() {
        let deep = "/a".repeat(512);
        let routes = [route(&deep), route("/a/{x}")];
        assert_eq!(get(&deep).of(&routes), Outcome::Route(0));
        assert_eq!(get(&"/a".repeat(20_000)).of(&routes), Outcome::NotFound);
    }

    /// What the configuration says about precedence, taken at its word: every route is tried, and of
    /// those that match the best is taken.
    mod reference {
        use super::*;

        pub(super) fn find(routes: &[RouteMatch], request: &RouteRequest<'_>) -> Outcome {
            let path_matches = |route: &RouteMatch| path_matches(route.path.segments(), request.path);
            let others_hold = |route: &RouteMatch| {
                (route.versions.is_empty() || route.versions.iter().any(|v| Some(v.as_str()) == request.version))
                    && route.headers.iter().all(|c| match (&c.test, request.headers.get(c.name.get())) {
                        (TextTest::Present(wanted), value) => value.is_some() == *wanted,
                        (TextTest::Equals(text), Some(value)) => value == text.as_str(),
                        (_, _) => false,
                    })
            };
            let method_holds =
                |route: &RouteMatch| route.methods.is_empty() || methods(route).any(|method| method == request.method);
            let nearly: Vec<_> = routes.iter().enumerate().filter(|(_, r)| path_matches(r) && others_hold(r)).collect();
            let best = nearly.iter().filter(|(_, route)| method_holds(route)).min_by_key(|(index, route)| {
                let kinds: Vec<u8> = route.path.segments().iter().map(kind).collect();
                let methods = usize::from(!route.methods.is_empty());
                let versions = usize::from(!route.versions.is_empty());
                (kinds, usize::MAX - methods - versions - route.headers.len(), *index)
            });
            if let Some((index, _)) = best {
                return Outcome::Route(*index);
            }
            let mut allowed: Vec<Method> = nearly.iter().flat_map(|(_, r)| methods(r).cloned()).collect();
            allowed.sort_by_key(ToString::to_string);
            allowed.dedup();
            if allowed.is_empty() { Outcome::NotFound } else { Outcome::MethodNotAllowed(allowed) }
        }

        fn kind(segment: &PathSegment) -> u8 {
            match segment {
                PathSegment::Static(_) => 0,
                PathSegment::Parameter(_) => 1,
                PathSegment::Tail(_) => 2,
            }
        }

        fn methods(route: &RouteMatch) -> impl Iterator<Item = &Method> {
            let has_get = route.methods.iter().any(|method| method.get() == Method::GET);
            route.methods.iter().map(seiketsu_config::values::Method::get).chain(has_get.then_some(&Method::HEAD))
        }

        fn path_matches(pattern: &[PathSegment], path: &str) -> bool {
            let segments: Vec<&str> = path[1..].split('/').collect();
            let fixed = match pattern.last() {
                Some(PathSegment::Tail(_)) if segments.len() >= pattern.len() - 1 => &pattern[..pattern.len() - 1],
                _ if segments.len() == pattern.len() => pattern,
                _ => return false,
            };
            fixed.iter().zip(segments).all(|(pattern, segment)| match pattern {
                PathSegment::Static(text) => **text == *segment,
                PathSegment::Parameter(_) => !segment.is_empty(),
                PathSegment::Tail(_) => false,
            })
        }
    }

    fn any_route() -> impl Strategy<Value = RouteMatch> {
        let segment = prop_oneof![4 => Just("a"), 2 => Just("b"), 1 => Just("bb"), 3 => Just("{}"), 1 => Just("")];
        let path = (prop::collection::vec(segment, 0..4), any::<bool>()).prop_filter_map(
            "an empty segment may only be the last",
            |(segments, tail)| {
                let mut path = String::new();
                for (i, segment) in segments.iter().enumerate() {
                    path.push('/');
                    path += &segment.replace("{}", &format!("{{p{i}}}"));
                }
                if tail || path.is_empty() {
                    path += "/{*rest}";
                }
                path.parse::<PathPattern>().ok()
            },
        );
        let methods = prop::sample::subsequence(vec!["GET", "POST", "PURGE"], 0..3);
        let versions = prop::sample::subsequence(vec!["v1", "v2"], 0..2);
        let header = prop_oneof![
            4 => Just(None),
            1 => Just(Some(equals("1"))),
            1 => any::<bool>().prop_map(|wanted| Some(TextTest::Present(wanted))),
        ];
        (path, methods, versions, header).prop_map(|(path, methods, versions, header)| RouteMatch {
            path,
            methods: methods.iter().map(|m| m.parse().unwrap()).collect(),
            versions: versions.iter().map(|v| v.parse().unwrap()).collect(),
            headers: header.into_iter().map(|test| HeaderCondition { name: "x-a".parse().unwrap(), test }).collect(),
            query: Vec::new(),
        })
    }

    fn any_request() -> impl Strategy<Value = Sent> {
        let method = prop_oneof![Just("GET"), Just("HEAD"), Just("POST"), Just("PUT"), Just("PURGE")];
        let path =
            prop::collection::vec(prop_oneof![5 => Just("a"), 3 => Just("b"), 1 => Just("bb"), 1 => Just("c")], 0..5);
        let version = prop_oneof![Just(None), Just(Some("v1")), Just(Some("v2"))];
        let header = prop_oneof![Just(None), Just(Some("1")), Just(Some("2"))];
        (method, path, any::<bool>(), version, header).prop_map(|(method, path, slash, version, header)| {
            let slash = if slash && !path.is_empty() { "/" } else { "" };
            let sent = Sent { version, ..get(&format!("/{}{slash}", path.join("/"))).method(method) };
            match header {
                Some(value) => sent.header("x-a", value),
                None => sent,
            }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn the_router_chooses_what_the_documented_precedence_says(
            routes in prop::collection::vec(any_route(), 0..10),
            requests in prop::collection::vec(any_request(), 1..8),
        ) {
            let router = Router::new(&routes);
            for sent in &requests {
                let request = sent.request();
                prop_assert_eq!(router.find(&request), reference::find(&routes, &request), "{} {}", sent.method, sent.path);
            }
        }

        /// Putting a pattern's parameters back into it gives the path.
        #[test]
        fn parameters_are_what_the_pattern_left_open(route in any_route(), sent in any_request()) {
            if Router::new([&route]).find(&RouteRequest { method: &Method::GET, ..sent.request() }) == Outcome::Route(0) {
                let mut values = parameters(&route.path, &sent.path).map(|(_, value)| value.to_owned());
                let segments = route.path.segments().iter().map(|segment| match segment {
                    PathSegment::Static(text) => text.to_string(),
                    PathSegment::Parameter(_) | PathSegment::Tail(_) => values.next().unwrap(),
                });
                let path = format!("/{}", segments.collect::<Vec<_>>().join("/"));
                let with_slash = format!("{}/", sent.path);
                prop_assert!(path == sent.path || path == with_slash);
            }
        }
    }
}
