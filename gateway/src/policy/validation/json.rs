//! JSON as it is validated: parsed in one pass, names that stand twice in an object noted.
//!
//! Parsers differ on which of two members with one name counts (RFC 8259 §4). Validating the one while the upstream
//! reads the other would be validating nothing.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, map::Entry};

use super::MAX_VIOLATIONS;

/// The value, of repeated members the last, and JSON pointers (RFC 6901) to members whose names are repeated: each
/// once, and not more than [`MAX_VIOLATIONS`]. Nesting is bounded as it is for any JSON.
pub(super) fn parse(text: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let repeated = RefCell::default();
    let mut parser = serde_json::Deserializer::from_slice(text);
    let value = Place { within: None, step: Step::Root, repeated: &repeated }.deserialize(&mut parser)?;
    parser.end()?;
    Ok((value, repeated.into_inner()))
}

/// Where in the document a value stands. Written down only where there is something to say about it.
#[derive(Clone, Copy)]
struct Place<'p> {
    within: Option<&'p Place<'p>>,
    step: Step<'p>,
    repeated: &'p RefCell<Vec<String>>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Item(usize),
    Member(&'p str),
}

impl<'p> Place<'p> {
    fn inner(&'p self, step: Step<'p>) -> Self {
        Place { within: Some(self), step, repeated: self.repeated }
    }

    fn write(&self, pointer: &mut String) {
        if let Some(within) = self.within {
            within.write(pointer);
        }
        match self.step {
            Step::Root => {}
            Step::Item(index) => {
                // Writing to memory cannot fail.
                let _ = write!(pointer, "/{index}");
            }
            Step::Member(name) => {
                pointer.push('/');
                pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
            }
        }
    }

    fn note(&self) {
        let mut repeated = self.repeated.borrow_mut();
        if repeated.len() == MAX_VIOLATIONS {
            return;
        }
        let mut pointer = String::new();
        self.write(&mut pointer);
        if !repeated.contains(&pointer) {
            repeated.push(pointer);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner(Step::Item(list.len())))? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let place = self.inner(Step::Member(&name));
            let value = members.next_value_seed(place)?;
            match object.entry(name) {
                Entry::Vacant(member) => {
                    member.insert(value);
                }
                Entry::Occupied(mut member) => {
                    self.inner(Step::Member(member.key())).note();
                    member.insert(value);
                }
            }
        }
        Ok(object.into())
    }
}
