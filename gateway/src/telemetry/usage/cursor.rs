//! A place in the log of usage.

use std::{fmt, str::FromStr};

use serde::{Serialize, Serializer};

/// Names a record, and with it everything up to it: `<log>:<sequence>`. Sequence 0 is the place before the first.
///
/// The log's id changes when the node's state is lost, so that no two records ever have the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub log: String,
    pub sequence: u64,
}

/// The text is no cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cursor has the form <log>:<sequence>, as in `next` of an earlier answer")]
pub struct NotACursor;

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.log, self.sequence)
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let (log, sequence) = text.split_once(':').ok_or(NotACursor)?;
        let is_id = !log.is_empty() && log.bytes().all(|b| b.is_ascii_hexdigit());
        let is_number = !sequence.is_empty() && sequence.bytes().all(|b| b.is_ascii_digit());
        let sequence = sequence.parse().ok().filter(|_| is_id && is_number).ok_or(NotACursor)?;
        Ok(Self { log: log.to_owned(), sequence })
    }
}

impl Serialize for Cursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_out_of_its_text() {
        let cursor = Cursor { log: "0199ab".to_owned(), sequence: 42 };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in
            ["", "42", "0199ab:", ":42", "0199ab:-1", "0199ab:+1", "0199ab:4x", "no log:1", "a:18446744073709551616"]
        {
            assert_eq!(text.parse::<Cursor>(), Err(NotACursor), "{text}");
        }
    }
}
