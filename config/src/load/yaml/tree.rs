//! The tree of a document, built from the parser's events.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, Tag};

use super::{
    Refusal,
    number::{Plain, resolve},
};
use crate::{
    error::{Cause, Position},
    path::{ConfigPath, PathStep},
};

/// Collections within collections. Configuration needs about a dozen levels, schemas in place more.
const MOST_DEPTH: usize = 64;

/// Nodes that aliases may stand for, all together, so that a small text cannot grow without bound.
const MOST_REPLAYED: usize = 100_000;

/// Whether a text may have anchors. A piece of a document may not: what they stand for might be
/// elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::load) enum Anchors {
    Allowed,
    Refused,
}

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(in crate::load) struct Node<'t> {
    pub(super) position: Position,
    pub(super) kind: Kind<'t>,
}

#[derive(Debug, Clone)]
pub(super) enum Kind<'t> {
    /// A plain scalar may be a number, a truth value or nothing; another is text whatever it looks like.
    Scalar {
        text: Cow<'t, str>,
        plain: bool,
    },
    List(Vec<Node<'t>>),
    /// In the order of the document; no key stands twice.
    Map(Vec<Entry<'t>>),
}

#[derive(Debug, Clone)]
pub(super) struct Entry<'t> {
    pub(super) key: Cow<'t, str>,
    /// Whether the key is written without quotes.
    plain: bool,
    pub(super) key_position: Position,
    pub(super) value: Node<'t>,
}

impl<'t> Node<'t> {
    pub(in crate::load) fn position(&self) -> Position {
        self.position
    }

    /// Takes the items of a list out of a map, which is left with an empty one. Nothing if there is no
    /// list at this key.
    pub(in crate::load) fn take_list(&mut self, key: &str) -> Vec<Self> {
        let Kind::Map(entries) = &mut self.kind else { return Vec::new() };
        match entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value.kind) {
            Some(Kind::List(items)) => std::mem::take(items),
            _ => Vec::new(),
        }
    }

    /// The item of a list that has one.
    pub(in crate::load) fn only_item(&self) -> Option<&Self> {
        match &self.kind {
            Kind::List(items) => items.first().filter(|_| items.len() == 1),
            _ => None,
        }
    }

    /// How many nodes it is, and how many levels of collections.
    fn extent(&self) -> (usize, usize) {
        let add = |(nodes, depth): (usize, usize), node: &Node<'t>| {
            let (more, deep) = node.extent();
            (nodes + more, depth.max(deep))
        };
        let (nodes, depth) = match &self.kind {
            Kind::Scalar { .. } => return (1, 0),
            Kind::List(items) => items.iter().fold((0, 0), add),
            Kind::Map(entries) => entries.iter().map(|entry| &entry.value).fold((0, 0), add),
        };
        (nodes + 1, depth + 1)
    }
}

/// Reads a text of one document.
pub(in crate::load) fn parse(text: &str, anchors: Anchors) -> Result<Node<'_>, Box<Refusal>> {
    let options = granit_parser::options! { emit_comments: false };
    let mut builder =
        Builder { anchors, open: Vec::new(), root: None, documents: 0, anchored: HashMap::new(), replayed: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => builder.take(event, &span)?,
            Err(error) => return Err(builder.scan_error(&error)),
        }
    }
    builder.root.take().ok_or_else(|| {
        let cause = Cause::Syntax { message: "there is nothing in it".to_owned() };
        builder.refusal(cause, Position { line: 1, column: 1 })
    })
}

struct Builder<'t> {
    anchors: Anchors,
    open: Vec<Open<'t>>,
    root: Option<Node<'t>>,
    documents: usize,
    anchored: HashMap<usize, Node<'t>>,
    replayed: usize,
}

/// A collection that is being read.
struct Open<'t> {
    position: Position,
    anchor: usize,
    items: Items<'t>,
}

enum Items<'t> {
    List(Vec<Node<'t>>),
    Map {
        entries: Vec<Entry<'t>>,
        /// The keys so far, once there are many.
        seen: HashSet<Cow<'t, str>>,
        /// The key whose value comes next.
        key: Option<(Cow<'t, str>, bool, Position)>,
    },
}

/// Up to here a map's keys are compared one by one.
const FEW_KEYS: usize = 16;

impl<'t> Builder<'t> {
    fn take(&mut self, event: Event<'t>, span: &Span) -> Result<(), Box<Refusal>> {
        let position = position(span.start.line(), span.start.col());
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = self.is_plain(style, tag.as_deref(), position)?;
                self.complete(Node { position, kind: Kind::Scalar { text, plain } }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "seq", position)?;
                self.begin(Open { position, anchor, items: Items::List(Vec::new()) })
            }
            Event::MappingStart(_, anchor, tag) => {
                self.check_tag(tag.as_deref(), "map", position)?;
                let items = Items::Map { entries: Vec::new(), seen: HashSet::new(), key: None };
                self.begin(Open { position, anchor, items })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(Open { position, anchor, items }) = self.open.pop() else { return Ok(()) };
                let kind = match items {
                    Items::List(items) => Kind::List(items),
                    Items::Map { entries, .. } => Kind::Map(self.merge(entries)?),
                };
                self.complete(Node { position, kind }, anchor)
            }
            Event::Alias(anchor) => self.replay(anchor, position),
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    let cause = Cause::Syntax { message: "there is more than one document in it".to_owned() };
                    return Err(self.refusal(cause, position));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn is_plain(&self, style: ScalarStyle, tag: Option<&Tag>, position: Position) -> Result<bool, Box<Refusal>> {
        match tag.map(|tag| (tag.core_suffix(), tag.original())) {
            None => Ok(style == ScalarStyle::Plain),
            Some((Some("str"), _)) => Ok(false),
            Some((Some("int" | "float" | "bool" | "null"), _)) => Ok(true),
            Some((None, tag)) if tag == "!" => Ok(false),
            Some((_, tag)) => Err(self.unknown_tag(&tag, position)),
        }
    }

    fn check_tag(&self, tag: Option<&Tag>, expected: &str, position: Position) -> Result<(), Box<Refusal>> {
        match tag {
            Some(tag) if tag.core_suffix() != Some(expected) => Err(self.unknown_tag(&tag.original(), position)),
            _ => Ok(()),
        }
    }

    fn unknown_tag(&self, tag: &str, position: Position) -> Box<Refusal> {
        self.refusal(Cause::Value { message: format!("the tag {tag} means nothing here: remove it") }, position)
    }

    fn begin(&mut self, open: Open<'t>) -> Result<(), Box<Refusal>> {
        if let Some(Open { items: Items::Map { key: None, .. }, .. }) = self.open.last() {
            return Err(self.no_key("a list or a map", open.position));
        }
        if self.open.len() >= MOST_DEPTH {
            let message = format!("there are more than {MOST_DEPTH} levels");
            return Err(self.refusal(Cause::Excess { message }, open.position));
        }
        self.open.push(open);
        Ok(())
    }

    /// Puts a node where it belongs: into the collection around it, as a key or as a value.
    fn complete(&mut self, node: Node<'t>, anchor: usize) -> Result<(), Box<Refusal>> {
        if anchor != 0 {
            if self.anchors == Anchors::Refused {
                let message = "an anchor in a piece of a document".to_owned();
                return Err(self.refusal(Cause::Excess { message }, node.position));
            }
            self.count(&node, node.position)?;
            self.anchored.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.items) {
            None => self.root = Some(node),
            Some(Items::List(items)) => items.push(node),
            Some(Items::Map { entries, key, .. }) if key.is_some() => {
                if let Some((key, plain, key_position)) = key.take() {
                    entries.push(Entry { key, plain, key_position, value: node });
                }
            }
            Some(Items::Map { .. }) => return self.take_key(node),
        }
        Ok(())
    }

    fn take_key(&mut self, node: Node<'t>) -> Result<(), Box<Refusal>> {
        let (text, plain) = match node.kind {
            Kind::Scalar { text, plain: true } if resolve(&text) == Plain::Null => {
                return Err(self.no_key("nothing", node.position));
            }
            Kind::Scalar { text, plain } => (text, plain),
            Kind::List(_) | Kind::Map(_) => return Err(self.no_key("a list or a map", node.position)),
        };
        let Some(Open { items: Items::Map { entries, seen, key }, .. }) = self.open.last_mut() else { return Ok(()) };
        let stands_twice = if entries.len() < FEW_KEYS {
            entries.iter().any(|entry| entry.key == text)
        } else {
            if seen.is_empty() {
                seen.extend(entries.iter().map(|entry| entry.key.clone()));
            }
            !seen.insert(text.clone())
        };
        *key = Some((text.clone(), plain, node.position));
        if stands_twice {
            return Err(self.refusal(Cause::DuplicateKey { key: text.into_owned() }, node.position));
        }
        Ok(())
    }

    fn no_key(&self, found: &str, position: Position) -> Box<Refusal> {
        let cause = Cause::WrongType { found: found.to_owned(), expected: "a key, as in name: value".to_owned() };
        self.refusal(cause, position)
    }

    fn replay(&mut self, anchor: usize, position: Position) -> Result<(), Box<Refusal>> {
        let Some(node) = self.anchored.get(&anchor) else {
            // The parser knows the anchor, but what it stands for is not complete: it contains itself.
            let message = "a value that contains itself".to_owned();
            return Err(self.refusal(Cause::Excess { message }, position));
        };
        let node = Node { position, kind: node.kind.clone() };
        self.count(&node, position)?;
        self.complete(node, 0)
    }

    /// Counts a copy, which is bounded in sum and in depth.
    fn count(&mut self, node: &Node<'t>, position: Position) -> Result<(), Box<Refusal>> {
        let (nodes, depth) = node.extent();
        self.replayed += nodes;
        if self.replayed > MOST_REPLAYED || self.open.len() + depth > MOST_DEPTH {
            let message = format!("aliases stand for more than {MOST_REPLAYED} values or {MOST_DEPTH} levels");
            return Err(self.refusal(Cause::Excess { message }, position));
        }
        Ok(())
    }

    /// Carries out merge keys: `<<: *base` fills in the entries of another map that are not there yet.
    fn merge(&mut self, mut entries: Vec<Entry<'t>>) -> Result<Vec<Entry<'t>>, Box<Refusal>> {
        let Some(place) = entries.iter().position(|entry| entry.plain && entry.key == "<<") else {
            return Ok(entries);
        };
        let source = entries.remove(place).value;
        let position = source.position;
        let sources = match source.kind {
            Kind::List(items) => items,
            kind => vec![Node { position, kind }],
        };
        for source in sources {
            let Kind::Map(others) = source.kind else {
                let (found, expected) = ("something else".to_owned(), "a map, or a list of maps".to_owned());
                return Err(self.refusal(Cause::WrongType { found, expected }, source.position));
            };
            for other in others {
                if entries.iter().all(|entry| entry.key != other.key) {
                    entries.push(other);
                }
            }
        }
        Ok(entries)
    }

    fn scan_error(&self, error: &ScanError) -> Box<Refusal> {
        let marker = error.marker();
        let cause = Cause::Syntax { message: error.info() };
        self.refusal(cause, position(marker.line(), marker.col()))
    }

    fn refusal(&self, cause: Cause, position: Position) -> Box<Refusal> {
        let path: ConfigPath = self
            .open
            .iter()
            .filter_map(|open| match &open.items {
                Items::List(items) => Some(PathStep::Index(items.len())),
                Items::Map { key, .. } => key.as_ref().map(|(key, ..)| PathStep::Key((**key).into())),
            })
            .collect();
        Box::new(Refusal { cause, path, position: Some(position) })
    }
}

/// The parser counts lines from 1 and columns from 0.
pub(in crate::load) fn position(line: usize, column: usize) -> Position {
    let number = |number| u32::try_from(number).unwrap_or(u32::MAX);
    Position { line: number(line), column: number(column).saturating_add(1) }
}
