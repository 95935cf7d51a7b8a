//! Cuts a tenant file into its head and its tenants, so that they can be read side by side and those
//! that have not changed need not be read at all.
//!
//! Only the plain form is cut: `tenants:` at the left edge, and below it a block list. Each piece must
//! then read as a whole document of its own. Since every piece begins at an indentation that ends
//! whatever the one before it had open, the pieces mean together what the document means; a piece
//! that does not read (a text in quotes that goes on beyond it, an alias) shows that the cut was
//! wrong, and the document is read in one go.

use granit_parser::{Event, Parser};
use memchr::memchr;

/// A file in pieces.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    /// The document with an empty list of tenants.
    pub(super) head: String,
    pub(super) tenants: Vec<Piece<'a>>,
}

/// The text of one tenant, as a list of one item with its indentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    /// Where it begins in the document, in bytes.
    pub(super) start: usize,
    /// The number of its first line in the document.
    pub(super) line: u32,
}

/// Cuts a document, or not if it has not the plain form.
pub(super) fn split(text: &str) -> Option<Pieces<'_>> {
    // A lone carriage return ends a line in YAML; a byte order mark moves columns.
    if memchr(b'\r', text.as_bytes()).is_some() || text.starts_with('\u{feff}') {
        return None;
    }
    let (list_start, list_line) = find_list(text)?;
    let before = &text[..list_start];
    if !stands_alone(before) {
        return None;
    }
    let mut lines = Lines { text, offset: list_start, number: list_line };
    lines.next();
    let (tenants, end) = items(&mut lines)?;
    let after = &text[end.offset..];
    if after.starts_with(['-', '.', '%', ' ']) {
        return None;
    }
    Some(Pieces { head: format!("{before}tenants: []\n{after}"), tenants })
}

/// The offset and number of the line `tenants:`.
fn find_list(text: &str) -> Option<(usize, u32)> {
    Lines::of(text).find(|line| is_list_key(line.text)).map(|line| (line.offset, line.number))
}

/// `tenants:` and nothing behind it but a comment.
fn is_list_key(line: &str) -> bool {
    line.strip_prefix("tenants:").is_some_and(|rest| {
        let value = rest.trim_start_matches(' ');
        value.is_empty() || value.starts_with('#') && value.len() < rest.len()
    })
}

/// Whether a text is complete: nothing in it stays open, and nothing in it works beyond it.
fn stands_alone(text: &str) -> bool {
    let mut documents = 0;
    let well = Parser::new_from_str(text).all(|event| match event {
        Ok((Event::DocumentStart(..), _)) => {
            documents += 1;
            true
        }
        Ok((
            Event::Scalar(_, _, anchor, _) | Event::SequenceStart(_, anchor, _) | Event::MappingStart(_, anchor, _),
            _,
        )) => anchor == 0,
        Ok(_) => true,
        Err(_) => false,
    });
    well && documents <= 1 && !text.lines().any(|line| line.starts_with("..."))
}

/// The items of the list, and the line behind it.
fn items<'a>(lines: &mut Lines<'a>) -> Option<(Vec<Piece<'a>>, Line<'a>)> {
    let document = lines.text;
    let mut pieces = Vec::new();
    let mut indent = None;
    // Where the item that is being read begins.
    let mut open: Option<(usize, u32)> = None;
    let end = loop {
        let Some(line) = lines.next() else {
            break Line { text: "", offset: document.len(), number: lines.number };
        };
        let content = line.text.trim_start_matches(' ');
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        if content.starts_with('\t') {
            return None;
        }
        let depth = line.text.len() - content.len();
        let item = content.strip_prefix("- ").map(|item| item.trim_start_matches(' '));
        let is_item = item.is_some();
        let list = match indent {
            Some(list) => list,
            None if is_item => *indent.insert(depth),
            None => return None,
        };
        if depth == list && (content == "-" || item.is_some_and(|item| item.is_empty() || item.starts_with('#'))) {
            // The item begins on a later line.
            return None;
        }
        if depth == list && is_item {
            if let Some((start, number)) = open.replace((line.offset, line.number)) {
                pieces.push(Piece { text: &document[start..line.offset], start, line: number });
            }
        } else if depth > list {
            // A part of the item.
        } else if depth == 0 {
            break line;
        } else {
            return None;
        }
    };
    let (start, number) = open?;
    pieces.push(Piece { text: &document[start..end.offset], start, line: number });
    Some((pieces, end))
}

/// A line without its end.
#[derive(Debug, Clone, Copy)]
struct Line<'a> {
    text: &'a str,
    offset: usize,
    /// Counted from 1.
    number: u32,
}

/// The lines from an offset on.
struct Lines<'a> {
    text: &'a str,
    offset: usize,
    number: u32,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        Self { text, offset: 0, number: 1 }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = &self.text[self.offset..];
        if rest.is_empty() {
            return None;
        }
        let length = memchr(b'\n', rest.as_bytes());
        let line = Line { text: &rest[..length.unwrap_or(rest.len())], offset: self.offset, number: self.number };
        self.offset += length.map_or(rest.len(), |length| length + 1);
        self.number += 1;
        Some(line)
    }
}
