//! YAML (1.2, core schema): text becomes a tree of nodes that know where they stand, and the tree
//! becomes values.
//!
//! The scanner is `granit-parser`. The tree stands between it and serde so that an error has its exact
//! place and path at no cost to what is well, and so that all types are compiled against one small
//! deserializer.

mod number;
mod tree;
mod value;

pub(super) use self::{
    tree::{Anchors, Node, parse, position},
    value::value,
};
use crate::{
    error::{Cause, Position},
    path::ConfigPath,
};

/// What is wrong with a text.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) cause: Cause,
    pub(super) path: ConfigPath,
    pub(super) position: Option<Position>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn read(text: &str) -> Result<Value, Box<Refusal>> {
        value(&parse(text, Anchors::Allowed)?)
    }

    #[test]
    fn plain_scalars_have_the_types_of_the_core_schema() {
        for (text, value) in [
            ("~", json!(null)),
            ("null", json!(null)),
            ("true", json!(true)),
            ("FALSE", json!(false)),
            ("yes", json!("yes")),
            ("12", json!(12)),
            ("-12", json!(-12)),
            ("+12", json!(12)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("1_000", json!("1_000")),
            ("1.2.3", json!("1.2.3")),
            ("12:30", json!("12:30")),
            ("2027-01-01", json!("2027-01-01")),
            ("infinity", json!("infinity")),
            ("nan", json!("nan")),
            ("'12'", json!("12")),
            ("\"true\"", json!("true")),
            ("!!str 12", json!("12")),
            ("!!int '12'", json!(12)),
            ("|\n  12", json!("12\n")),
        ] {
            assert_eq!(read(text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn merge_keys_fill_in_what_is_not_there() {
        let text = "base: &b {x: 1, y: 2}\none: {<<: *b, x: 3}\ntwo: {<<: [{z: 9}, *b], y: 4}\n";
        let value = read(text).unwrap();
        assert_eq!(value["one"], json!({ "x": 3, "y": 2 }));
        assert_eq!(value["two"], json!({ "x": 1, "y": 4, "z": 9 }));
        assert_eq!(read("{<<: 1}").unwrap_err().cause.code(), "wrong_type");
        assert_eq!(read("{'<<': 1}").unwrap(), json!({ "<<": 1 }));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_at_its_place() {
        for (text, code, line, column, path) in [
            ("a: 1\nb: 2\na: 3\n", "duplicate_key", 3, 1, "a"),
            ("x:\n  - {a: 1, 'a': 2}\n", "duplicate_key", 2, 12, "x[0].a"),
            ("a: !secret 1\n", "value", 1, 12, "a"),
            ("[a]: 1\n", "wrong_type", 1, 1, ""),
            (": 1\n", "wrong_type", 1, 1, ""),
            ("a: [1, 2\nb: 3\n", "syntax", 2, 2, "a[1]"),
            ("a: 1\n---\nb: 2\n", "syntax", 2, 1, ""),
            ("a: *b\n", "syntax", 1, 4, "a"),
            ("", "syntax", 1, 1, ""),
            ("# nothing\n", "syntax", 1, 1, ""),
            ("a: .nan\n", "wrong_type", 1, 4, "a"),
        ] {
            let refusal = read(text).unwrap_err();
            let position = refusal.position.unwrap();
            assert_eq!(
                (refusal.cause.code(), position.line, position.column, refusal.path.to_string().as_str()),
                (code, line, column, path),
                "{text:?}: {refusal:?}"
            );
        }
    }

    #[test]
    fn a_piece_has_no_anchors() {
        assert!(parse("a: &x 1\n", Anchors::Refused).is_err());
        assert!(parse("a: \"&x\"\n", Anchors::Refused).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The reader that the rest of the world uses understands the same.
        #[test]
        fn other_readers_agree(text in r#"(([ab]: |- |  |\n|[\[\]{}:,#'"|>&*~x1.-]|true|null|12|\n  ){1,30})"#) {
            let options = serde_saphyr::options! { strict_booleans: true };
            if let (Ok(ours), Ok(theirs)) = (read(&text), serde_saphyr::from_str_with_options::<Value>(&text, options)) {
                prop_assert_eq!(ours, theirs, "{:?}", text);
            }
        }

        #[test]
        fn json_is_read_as_what_it_is(text in r#"[a-z \\"\n:#'{}\[\],é☃]{0,12}"#, number in any::<i64>(), float in -1e9..1e9_f64) {
            let value = json!({ "a": [text, { text.as_str(): number }, float, null, true] });
            prop_assert_eq!(read(&value.to_string()).unwrap(), value);
        }
    }
}
