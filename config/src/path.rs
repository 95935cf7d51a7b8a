//! Where a value stands in the configuration: `tenants[3].routes[0].match.path`.

use std::fmt;

use serde::{Serialize, Serializer};

/// The way from the root of a document to one of its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigPath(Vec<PathStep>);

/// One step of a [`ConfigPath`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathStep {
    /// Into a map, by its key.
    Key(Box<str>),
    /// Into a list, counted from zero.
    Index(usize),
}

impl ConfigPath {
    pub fn steps(&self) -> &[PathStep] {
        &self.0
    }

    pub(crate) fn join(mut self, step: PathStep) -> Self {
        self.0.push(step);
        self
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.join(PathStep::Key(key.into()))
    }
}

impl FromIterator<PathStep> for ConfigPath {
    fn from_iter<I: IntoIterator<Item = PathStep>>(steps: I) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                PathStep::Index(index) => write!(f, "[{index}]")?,
                PathStep::Key(key) => {
                    if position > 0 {
                        f.write_str(".")?;
                    }
                    if !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
                        f.write_str(key)?;
                    } else {
                        write!(f, "{key:?}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Serialize for ConfigPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A path in the making, on the stack: checking what is well allocates nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct At<'a> {
    parent: Option<&'a At<'a>>,
    step: AtStep<'a>,
}

#[derive(Debug, Clone, Copy)]
enum AtStep<'a> {
    Root,
    Key(&'a str),
    Index(usize),
}

impl At<'static> {
    pub(crate) const ROOT: Self = At { parent: None, step: AtStep::Root };
}

impl<'a> At<'a> {
    pub(crate) fn key<'b>(&'b self, key: &'b str) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), step: AtStep::Key(key) }
    }

    pub(crate) fn index<'b>(&'b self, index: usize) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), step: AtStep::Index(index) }
    }

    pub(crate) fn to_path(self) -> ConfigPath {
        let mut path = self.parent.map(|parent| parent.to_path()).unwrap_or_default();
        match self.step {
            AtStep::Root => {}
            AtStep::Key(key) => path.0.push(PathStep::Key(key.into())),
            AtStep::Index(index) => path.0.push(PathStep::Index(index)),
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_people_write_it() {
        let tenants = At::ROOT.key("tenants");
        let tenant = tenants.index(3);
        let upstreams = tenant.key("upstreams");
        assert_eq!(upstreams.key("eu.west").to_path().to_string(), r#"tenants[3].upstreams."eu.west""#);
        assert_eq!(At::ROOT.to_path().to_string(), "");
    }
}
