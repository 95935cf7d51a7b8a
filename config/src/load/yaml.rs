//! YAML through `serde-saphyr`: the only place that knows it. Gives values, or what is wrong and where.

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use serde_saphyr::{
    DuplicateKeyPolicy, Error as YamlError, MergeKeyPolicy, Options, alias_limits, budget, options,
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchors {
    Allowed,
    Refused,
}

/// What is wrong with a text.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) cause: Cause,
    pub(super) path: ConfigPath,
    pub(super) position: Option<Position>,
    /// Whether the text was understood as YAML up to here, so that the fault is in what it says. If
    /// not, a piece of a document may have been cut wrongly.
    pub(super) understood: bool,
}

/// Reads one document.
pub(super) fn read<T: DeserializeOwned>(text: &str, anchors: Anchors) -> Result<T, Box<Refusal>> {
    // Keeping the path costs time, so it is only kept when the first reading fails.
    match serde_saphyr::from_str_with_options(text, yaml_options(anchors)) {
        Ok(value) => Ok(value),
        Err(_) => read_slowly(text, anchors),
    }
}

fn read_slowly<T: DeserializeOwned>(text: &str, anchors: Anchors) -> Result<T, Box<Refusal>> {
    let mut path = ConfigPath::default();
    let result =
        serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(anchors), |deserializer| {
            let mut track = serde_path_to_error::Track::new();
            let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
            T::deserialize(tracked).inspect_err(|_| path = steps(&track.path()))
        });
    result.map_err(|error| Box::new(refusal(error, path)))
}

fn yaml_options(anchors: Anchors) -> Options {
    options! {
        budget: budget! {
            max_anchors: if anchors == Anchors::Allowed { 1_000 } else { 0 },
            max_depth: MOST_DEPTH,
            max_documents: 1,
            // The text itself bounds these: whoever reads it has bounded its size.
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
        alias_limits: alias_limits! {
            max_total_replayed_events: MOST_REPLAYED,
            max_replay_stack_depth: 8,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        merge_keys: MergeKeyPolicy::Merge,
        strict_booleans: true,
        emit_comments: false,
        // Errors show no source text: it may hold secrets.
        with_snippet: false,
    }
}

fn steps(path: &serde_path_to_error::Path) -> ConfigPath {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(PathStep::Index(*index)),
            Segment::Map { key } => Some(PathStep::Key(key.as_str().into())),
            Segment::Enum { variant } => Some(PathStep::Key(variant.as_str().into())),
            Segment::Unknown => None,
        })
        .collect()
}

fn refusal(error: YamlError, path: ConfigPath) -> Refusal {
    let position =
        error.location().map(|location| Position { line: location.line(), column: location.column() });
    let error = match error {
        YamlError::AliasError { error, .. } | YamlError::WithSnippet { error, .. } => *error,
        error => error,
    };
    let wrong_type = |expected: &str| Cause::WrongType { found: "something else".to_owned(), expected: expected.to_owned() };
    let (cause, understood) = match error {
        YamlError::SerdeUnknownField { field, expected, .. } => {
            (Cause::UnknownKey { key: field, known: expected }, true)
        }
        YamlError::SerdeUnknownVariant { variant, expected, .. } => {
            (Cause::UnknownChoice { name: variant, known: expected }, true)
        }
        YamlError::SerdeMissingField { field, .. } => (Cause::MissingKey { key: field.to_owned() }, true),
        YamlError::DuplicateMappingKey { key, .. } => {
            (Cause::DuplicateKey { key: key.unwrap_or_else(|| "?".to_owned()) }, true)
        }
        YamlError::SerdeInvalidType { unexpected, expected, .. }
        | YamlError::SerdeInvalidValue { unexpected, expected, .. } => {
            (Cause::WrongType { found: kind_of(&unexpected), expected }, true)
        }
        YamlError::SerdeInvalidLength { len, expected, .. } => {
            (Cause::WrongType { found: format!("a list of {len}"), expected }, true)
        }
        YamlError::Message { msg, .. } => (Cause::Value { message: msg }, true),
        YamlError::InvalidScalar { ty, .. } => (wrong_type(ty), true),
        YamlError::Unexpected { expected, .. } => (wrong_type(expected), true),
        YamlError::InvalidBooleanStrict { .. } => (wrong_type("true or false"), true),
        YamlError::NullIntoString { .. } => {
            (Cause::WrongType { found: "nothing".to_owned(), expected: "a text".to_owned() }, true)
        }
        YamlError::UnknownAnchor { .. } => {
            (Cause::Syntax { message: "an alias stands for an anchor that is not there".to_owned() }, false)
        }
        YamlError::MultipleDocuments { .. } => {
            (Cause::Syntax { message: "there is more than one document in it".to_owned() }, false)
        }
        YamlError::Eof { .. } => (Cause::Syntax { message: "it ends too early".to_owned() }, false),
        error @ (YamlError::Budget { .. }
        | YamlError::AliasReplayLimitExceeded { .. }
        | YamlError::AliasExpansionLimitExceeded { .. }
        | YamlError::AliasReplayStackDepthExceeded { .. }) => (Cause::Excess { message: error.to_string() }, false),
        error => (Cause::Syntax { message: error.to_string() }, false),
    };
    Refusal { cause, path, position, understood }
}

/// What serde found, without the value itself, which may be a secret: the word before the value.
fn kind_of(unexpected: &str) -> String {
    let kind = unexpected.split(['`', '"']).next().unwrap_or_default().trim();
    if kind.is_empty() { "something else".to_owned() } else { kind.to_owned() }
}
