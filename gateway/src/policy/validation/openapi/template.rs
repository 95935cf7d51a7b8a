//! Path templates of `OpenAPI` (§4.8.2): `/users/{id}`, `/files/{name}.{extension}`.

use std::cmp::Ordering;

/// A path template, split into segments.
#[derive(Debug, Clone)]
pub(super) struct Template {
    segments: Box<[Segment]>,
    names: Box<[Box<str>]>,
}

#[derive(Debug, Clone)]
struct Segment {
    /// What stands before the first parameter; the whole segment if it has none.
    literal: Box<str>,
    /// After each parameter, the text up to the next one or the end.
    after_parameters: Box<[Box<str>]>,
}

impl Template {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let path = text.strip_prefix('/').ok_or("it must begin with '/'")?;
        let mut names: Vec<Box<str>> = Vec::new();
        let mut segments = Vec::new();
        for part in path.split('/') {
            let mut pieces = part.split('{');
            let literal = pieces.next().unwrap_or_default();
            let mut after_parameters: Vec<Box<str>> = Vec::new();
            for piece in pieces {
                let (name, after) = piece.split_once('}').ok_or("a '{' has no '}'")?;
                if name.is_empty() || names.iter().any(|have| **have == *name) {
                    return Err("its parameters need names, and each its own");
                }
                if after_parameters.last().is_some_and(|between| between.is_empty()) {
                    return Err("two parameters follow each other without a character between them");
                }
                names.push(name.into());
                after_parameters.push(after.into());
            }
            if literal.contains('}') || after_parameters.iter().any(|text| text.contains('}')) {
                return Err("a '}' has no '{'");
            }
            segments.push(Segment { literal: literal.into(), after_parameters: after_parameters.into() });
        }
        Ok(Self { segments: segments.into(), names: names.into() })
    }

    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Where the value of this parameter stands in what [`Self::matches`] gives.
    pub(super) fn index_of(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|have| **have == *name)
    }

    /// The values of the parameters, in order; none of them empty.
    pub(super) fn matches<'p>(&self, segments: &[&'p str]) -> Option<Vec<&'p str>> {
        if segments.len() != self.segments.len() {
            return None;
        }
        let mut values = Vec::with_capacity(self.names.len());
        for (pattern, text) in self.segments.iter().zip(segments) {
            let mut rest = text.strip_prefix(&*pattern.literal)?;
            for (i, after) in pattern.after_parameters.iter().enumerate() {
                let is_last = i + 1 == pattern.after_parameters.len();
                let value = if is_last {
                    let value = rest.strip_suffix(&**after)?;
                    rest = "";
                    value
                } else {
                    // A value has at least one character, so the text is looked for after that.
                    let first = rest.chars().next()?.len_utf8();
                    let (value, behind) = rest.split_at(first + rest[first..].find(&**after)?);
                    rest = &behind[after.len()..];
                    value
                };
                if value.is_empty() {
                    return None;
                }
                values.push(value);
            }
            if !rest.is_empty() {
                return None;
            }
        }
        Some(values)
    }

    /// Of two templates that may match the same path, the more specific is less: at the first segment
    /// that differs, text before text with parameters before a parameter alone.
    pub(super) fn cmp_specific(&self, other: &Self) -> Ordering {
        let rank = |segment: &Segment| match (&*segment.literal, &*segment.after_parameters) {
            (_, []) => 0,
            ("", [after]) if after.is_empty() => 2,
            _ => 1,
        };
        self.segments.iter().map(rank).cmp(other.segments.iter().map(rank))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn matches<'p>(template: &str, path: &'p str) -> Option<Vec<&'p str>> {
        Template::parse(template).unwrap().matches(&path[1..].split('/').collect::<Vec<_>>())
    }

    #[test]
    fn parameters_take_what_the_text_around_them_leaves() {
        assert_eq!(matches("/a/{x}", "/a/b").unwrap(), ["b"]);
        assert_eq!(matches("/a/{x}.{y}", "/a/b.c").unwrap(), ["b", "c"]);
        assert_eq!(matches("/a/{x}.{y}", "/a/b.c.d").unwrap(), ["b", "c.d"]);
        assert_eq!(matches("/v{x}-{y}z", "/v..-.z").unwrap(), ["..", "."]);
        assert_eq!(matches("/", "/").unwrap(), Vec::<&str>::new());
        assert_eq!(matches("/é{x}ü{y}", "/éäüö").unwrap(), ["ä", "ö"]);
        for (template, path) in [
            ("/a/{x}", "/a/"),
            ("/a/{x}", "/a"),
            ("/a/{x}", "/a/b/c"),
            ("/a/{x}.{y}", "/a/.c"),
            ("/a/{x}.{y}", "/a/b."),
            ("/a", "/ab"),
        ] {
            assert_eq!(matches(template, path), None, "{template} {path}");
        }
    }

    #[test]
    fn wrong_templates_are_refused() {
        for wrong in ["a", "/{", "/}", "/{}", "/{a}/{a}", "/{a}{b}", "/a}b{c}", "/{a}b}"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_filled_template_matches(x in "[a-z.]{1,5}", y in "[a-z-]{1,5}") {
            let path = format!("/a/{x}-{y}/b");
            prop_assert_eq!(matches("/a/{x}-{y}/b", &path).unwrap(), vec![x.as_str(), y.as_str()]);
        }

        #[test]
        fn nothing_makes_it_panic(template in "[/{}a.é]{0,12}", path in "/[/a.é]{0,12}") {
            if let Ok(template) = Template::parse(&template) {
                template.matches(&path[1..].split('/').collect::<Vec<_>>());
            }
        }
    }
}
