//! Finds where in a text the value of a path stands, and what it is.

use granit_parser::{Event, Parser, Span};

use super::yaml::position;
use crate::{
    error::Position,
    path::{ConfigPath, PathStep},
};

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) position: Position,
    /// Its text, if it is a scalar and the whole path leads there.
    pub(super) text: Option<String>,
}

/// The place of each path, or of as much of its beginning as there is. Reads as far as it can; one
/// pass serves all paths.
pub(super) fn locate(text: &str, paths: &[ConfigPath]) -> Vec<Option<Found>> {
    let mut search = Search { paths, found: vec![None; paths.len()], open: Vec::new() };
    for event in Parser::new_from_str(text) {
        let Ok((event, span)) = event else { break };
        match event {
            Event::Scalar(value, ..) => search.scalar(&value, &span),
            Event::Alias(_) => search.node(&span, None),
            Event::SequenceStart(..) => search.open(&span, At::Item(0)),
            Event::MappingStart(..) => search.open(&span, At::Key),
            Event::SequenceEnd | Event::MappingEnd => search.close(),
            _ => {}
        }
    }
    search.found
}

struct Search<'a> {
    paths: &'a [ConfigPath],
    found: Vec<Option<Found>>,
    open: Vec<Collection>,
}

/// A list or map that is being read.
struct Collection {
    at: At,
    /// The paths that lead into it, by number.
    paths: Vec<usize>,
}

enum At {
    Item(usize),
    Key,
    /// The value of this key, if it is a text.
    Value(Option<String>),
}

impl Search<'_> {
    /// The paths that lead to or through the node that begins now, and a note of where it stands.
    fn enter(&mut self, span: &Span, text: Option<&str>) -> Vec<usize> {
        let depth = self.open.len();
        let paths: Vec<usize> = match self.open.last() {
            None => (0..self.paths.len()).collect(),
            Some(collection) => {
                let leads_here = |path: &usize| match (&collection.at, self.paths[*path].steps().get(depth - 1)) {
                    (At::Item(index), Some(PathStep::Index(step))) => index == step,
                    (At::Value(Some(key)), Some(PathStep::Key(step))) => **key == **step,
                    _ => false,
                };
                collection.paths.iter().copied().filter(leads_here).collect()
            }
        };
        let position = position(span.start.line(), span.start.col());
        for path in &paths {
            let whole = self.paths[*path].steps().len() == depth;
            self.found[*path] = Some(Found { position, text: text.filter(|_| whole).map(str::to_owned) });
        }
        paths
    }

    /// A node without nodes in it.
    fn node(&mut self, span: &Span, text: Option<&str>) {
        self.enter(span, text);
        self.step();
    }

    fn scalar(&mut self, value: &str, span: &Span) {
        if let Some(Collection { at: at @ At::Key, .. }) = self.open.last_mut() {
            *at = At::Value(Some(value.to_owned()));
        } else {
            self.node(span, Some(value));
        }
    }

    fn open(&mut self, span: &Span, at: At) {
        let paths = if matches!(self.open.last(), Some(Collection { at: At::Key, .. })) {
            Vec::new()
        } else {
            self.enter(span, None)
        };
        self.open.push(Collection { at, paths });
    }

    fn close(&mut self) {
        self.open.pop();
        self.step();
    }

    /// A node is done; what comes next in the collection around it?
    fn step(&mut self) {
        let Some(collection) = self.open.last_mut() else { return };
        collection.at = match std::mem::replace(&mut collection.at, At::Key) {
            At::Item(index) => At::Item(index + 1),
            At::Key => At::Value(None),
            At::Value(_) => At::Key,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
revision: 1
tenants:
  # the first
  - id: acme
    hosts: [a.example.com, \"b.example.com\"]
  - id: 'globex'
    ? [complex, key]
    : value
    upstreams:
      demo: {endpoints: [{address: 10.0.0.1:80}]}
    x: *nothing
";

    fn path(steps: &[&str]) -> ConfigPath {
        steps
            .iter()
            .map(|step| match step.parse() {
                Ok(index) => PathStep::Index(index),
                Err(_) => PathStep::Key((*step).into()),
            })
            .collect()
    }

    fn found(steps: &[&str]) -> Option<(u32, u32, Option<String>)> {
        let found = locate(TEXT, &[path(steps)]).pop().flatten()?;
        Some((found.position.line, found.position.column, found.text))
    }

    #[test]
    fn a_value_is_found_with_its_text() {
        assert_eq!(found(&["revision"]), Some((1, 11, Some("1".into()))));
        assert_eq!(found(&["tenants", "1", "id"]), Some((6, 9, Some("globex".into()))));
        assert_eq!(found(&["tenants", "0", "hosts", "1"]), Some((5, 28, Some("b.example.com".into()))));
        assert_eq!(
            found(&["tenants", "1", "upstreams", "demo", "endpoints", "0", "address"]),
            Some((10, 36, Some("10.0.0.1:80".into())))
        );
    }

    #[test]
    fn a_value_that_is_not_there_is_placed_where_it_should_be() {
        assert_eq!(found(&["tenants", "0", "routes", "3"]), Some((4, 5, None)));
        assert_eq!(found(&["plans"]), Some((1, 1, None)));
    }

    #[test]
    fn many_paths_are_found_in_one_pass() {
        let paths = [path(&["tenants", "1"]), path(&["revision"]), path(&["tenants", "1", "id"])];
        let lines: Vec<_> = locate(TEXT, &paths).into_iter().map(|found| found.unwrap().position.line).collect();
        assert_eq!(lines, [6, 1, 6]);
    }
}
