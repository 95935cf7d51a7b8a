//! What is wrong with a configuration, where, and what to do.

use std::{
    error::Error,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Serialize, Serializer, ser::SerializeStruct};

use crate::{check::Rule, path::ConfigPath};

/// Everything that was found wrong with a configuration; at least one error.
///
/// `Display` is for people. As JSON it is `{"errors": [...], "omitted": 0}`.
#[derive(Debug, Serialize)]
pub struct ConfigErrors {
    errors: Vec<ConfigError>,
    /// How many more there are. A mistake made by a program is made a hundred thousand times.
    omitted: usize,
}

impl ConfigErrors {
    /// Errors beyond this number are counted, not kept.
    pub const MOST: usize = 100;

    pub(crate) fn new(mut errors: Vec<ConfigError>, omitted: usize) -> Self {
        let beyond = errors.len().saturating_sub(Self::MOST);
        errors.truncate(Self::MOST);
        Self { errors, omitted: omitted + beyond }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, ConfigError> {
        self.errors.iter()
    }

    /// How many errors there are beyond those that [`iter`](Self::iter) gives.
    pub fn omitted(&self) -> usize {
        self.omitted
    }
}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self { errors: vec![error], omitted: 0 }
    }
}

impl FromIterator<ConfigError> for ConfigErrors {
    fn from_iter<I: IntoIterator<Item = ConfigError>>(errors: I) -> Self {
        Self::new(errors.into_iter().collect(), 0)
    }
}

impl<'a> IntoIterator for &'a ConfigErrors {
    type Item = &'a ConfigError;
    type IntoIter = std::slice::Iter<'a, ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for ConfigErrors {
    type Item = ConfigError;
    type IntoIter = std::vec::IntoIter<ConfigError>;

    fn into_iter(self) -> Self::IntoIter {
        self.errors.into_iter()
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.errors.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        if self.omitted > 0 {
            write!(f, "\nand {} more", self.omitted)?;
        }
        Ok(())
    }
}

impl Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Debug)]
pub struct ConfigError {
    pub file: PathBuf,
    /// Line and column, both counted from 1; columns are characters.
    pub position: Option<Position>,
    pub path: ConfigPath,
    /// The tenant that the path leads into, where its name is known.
    pub tenant: Option<String>,
    /// The route that the path leads into, where its name is known.
    pub route: Option<String>,
    /// What is written there, if it is one value and cannot be a secret.
    pub value: Option<String>,
    pub cause: Cause,
}

/// A place in a text. Line and column count from 1; columns are characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub line: u32,
    pub column: u32,
}

impl ConfigError {
    pub(crate) fn of_file(file: &Path, cause: Cause) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            path: ConfigPath::default(),
            tenant: None,
            route: None,
            value: None,
            cause,
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.path.steps().is_empty() {
            write!(f, ": {}", self.path)?;
        }
        match (&self.tenant, &self.route) {
            (Some(tenant), Some(route)) => write!(f, " (tenant {tenant}, route {route})")?,
            (Some(tenant), None) => write!(f, " (tenant {tenant})")?,
            _ => {}
        }
        write!(f, ": {}", self.cause)?;
        if let Some(fix) = self.cause.fix() {
            write!(f, "\n    fix: {fix}")?;
        }
        Ok(())
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.cause)
    }
}

impl Serialize for ConfigError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("ConfigError", 10)?;
        fields.serialize_field("file", &self.file.to_string_lossy())?;
        fields.serialize_field("line", &self.position.map(|position| position.line))?;
        fields.serialize_field("column", &self.position.map(|position| position.column))?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("tenant", &self.tenant)?;
        fields.serialize_field("route", &self.route)?;
        fields.serialize_field("code", self.cause.code())?;
        fields.serialize_field("value", &self.value)?;
        fields.serialize_field("message", &self.cause.to_string())?;
        fields.serialize_field("fix", &self.cause.fix())?;
        fields.end()
    }
}

/// The kinds of things that can be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    #[error("cannot read it: {0}")]
    Unreadable(#[source] std::io::Error),
    #[error("it is larger than the {limit} bytes that a file of its kind may have")]
    TooLarge { limit: u64 },
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("it is not YAML: {message}")]
    Syntax { message: String },
    #[error("it asks for too much: {message}")]
    Excess { message: String },
    #[error("the key {key:?} is not known here")]
    UnknownKey { key: String, known: Vec<&'static str> },
    #[error("{name:?} is none of the possible choices")]
    UnknownChoice { name: String, known: Vec<&'static str> },
    #[error("the key {key:?} is missing")]
    MissingKey { key: String },
    #[error("the key {key:?} stands twice")]
    DuplicateKey { key: String },
    #[error("here stands {found}, expected is {expected}")]
    WrongType { found: String, expected: String },
    /// The message of a value type, which names the fix as well.
    #[error("{message}")]
    Value { message: String },
    #[error(transparent)]
    Rule(#[from] Rule),
}

impl Cause {
    /// A stable name of the kind, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::TooLarge { .. } => "too_large",
            Self::NotText => "not_text",
            Self::Syntax { .. } => "syntax",
            Self::Excess { .. } => "excess",
            Self::UnknownKey { .. } => "unknown_key",
            Self::UnknownChoice { .. } => "unknown_choice",
            Self::MissingKey { .. } => "missing_key",
            Self::DuplicateKey { .. } => "duplicate_key",
            Self::WrongType { .. } => "wrong_type",
            Self::Value { .. } => "value",
            Self::Rule(rule) => rule.code(),
        }
    }

    /// What to do. `None` where the message says it already.
    pub fn fix(&self) -> Option<String> {
        Some(match self {
            Self::Unreadable(_) => "see that it exists and that the user of the gateway may read it".to_owned(),
            Self::TooLarge { .. } => "split it: the tenant configuration may be a folder of files".to_owned(),
            Self::NotText => "save it as UTF-8".to_owned(),
            Self::Syntax { .. } => "look at the indentation, quotes and brackets here and on the line above".to_owned(),
            Self::Excess { .. } => "write it out with fewer anchors, aliases and levels".to_owned(),
            Self::UnknownKey { key, known } => suggestion(key, known, "the keys here are"),
            Self::UnknownChoice { name, known } => suggestion(name, known, "write one of"),
            Self::MissingKey { key } => format!("add {key}"),
            Self::DuplicateKey { key } => format!("keep one {key} and remove the other"),
            Self::WrongType { expected, .. } => format!("write {expected}"),
            Self::Value { .. } => return None,
            Self::Rule(rule) => rule.fix(),
        })
    }
}

/// How many of the known words are listed.
const SUGGESTED: usize = 20;

/// "Did you mean", and the list of what is known.
pub(crate) fn suggestion<S: AsRef<str>>(given: &str, known: &[S], list: &str) -> String {
    let mut known_list = known.iter().map(AsRef::as_ref).take(SUGGESTED).collect::<Vec<_>>().join(", ");
    if known.len() > SUGGESTED {
        known_list.push_str(", …");
    }
    match nearest(given, known) {
        Some(nearest) => format!("did you mean {nearest}? {list} {known_list}"),
        None if known.is_empty() => format!("remove {given}"),
        None => format!("{list} {known_list}"),
    }
}

/// The known word that a slip of the hand turns into the given one: at most a third of its letters
/// wrong, missing, doubled or swapped, `-` and `_` and capitals being one.
pub(crate) fn nearest<'a, S: AsRef<str>>(given: &str, known: &'a [S]) -> Option<&'a str> {
    if given.len() > 64 {
        return None;
    }
    let given = given.to_lowercase().replace('-', "_");
    let most = (given.chars().count() / 3).max(1);
    known
        .iter()
        .map(|word| (strsim::osa_distance(&given, word.as_ref()), word.as_ref()))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_hand_is_understood() {
        let known = ["upstream", "canary", "max_body", "id"];
        assert_eq!(nearest("upsteam", &known), Some("upstream"));
        assert_eq!(nearest("Max-Body", &known), Some("max_body"));
        assert_eq!(nearest("di", &known), Some("id"));
        assert_eq!(nearest("tls", &known), None);
        assert_eq!(nearest(&"x".repeat(100_000), &known), None);
    }

    #[test]
    fn a_flood_of_errors_is_counted_not_kept() {
        let error = || ConfigError::of_file(Path::new("tenants.yaml"), Cause::NotText);
        let errors = ConfigErrors::new((0..250).map(|_| error()).collect(), 7);
        assert_eq!((errors.iter().count(), errors.omitted()), (100, 157));
        assert!(errors.to_string().ends_with("and 157 more"));
    }
}
