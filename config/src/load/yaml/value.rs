//! From the tree to values: the deserializer of serde, and its errors.

use std::fmt;

use serde::{
    de::{self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor},
    forward_to_deserialize_any,
};

use super::{
    Refusal,
    number::{Plain, resolve},
    tree::{Entry, Kind, Node},
};
use crate::{
    error::{Cause, Position},
    path::PathStep,
};

/// What a node means.
pub(in crate::load) fn value<T: DeserializeOwned>(root: &Node<'_>) -> Result<T, Box<Refusal>> {
    T::deserialize(Value(root)).map_err(|error| {
        let Fault { cause, position, mut steps } = *error.0;
        steps.reverse();
        let position = position.or(Some(root.position));
        Box::new(Refusal { cause, path: steps.into_iter().collect(), position })
    })
}

/// A fault, and the way to it as far as it has come up the tree.
#[derive(Debug)]
struct Error(Box<Fault>);

#[derive(Debug)]
struct Fault {
    cause: Cause,
    position: Option<Position>,
    /// From the innermost outward.
    steps: Vec<PathStep>,
}

impl Error {
    fn new(cause: Cause) -> Self {
        Self(Box::new(Fault { cause, position: None, steps: Vec::new() }))
    }

    /// Where it stands, unless that is known already.
    fn at(mut self, position: Position) -> Self {
        self.0.position.get_or_insert(position);
        self
    }

    fn under(mut self, step: PathStep) -> Self {
        self.0.steps.push(step);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.cause.fmt(f)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Cause::Value { message: message.to_string() })
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Cause::WrongType { found: found(unexpected), expected: in_plain_words(&expected.to_string()) })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let found = format!("a list of {length}");
        Self::new(Cause::WrongType { found, expected: in_plain_words(&expected.to_string()) })
    }

    fn unknown_variant(name: &str, known: &'static [&'static str]) -> Self {
        Self::new(Cause::UnknownChoice { name: name.to_owned(), known: known.to_vec() })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(Cause::UnknownKey { key: key.to_owned(), known: known.to_vec() })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Cause::MissingKey { key: key.to_owned() })
    }

    fn duplicate_field(key: &'static str) -> Self {
        Self::new(Cause::DuplicateKey { key: key.to_owned() })
    }
}

/// What was found, without the text itself: it may be a secret.
fn found(unexpected: Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Bool(_) => "a truth value",
        Unexpected::Unsigned(number) => return format!("the number {number}"),
        Unexpected::Signed(number) => return format!("the number {number}"),
        Unexpected::Float(number) => return format!("the number {number}"),
        Unexpected::Unit | Unexpected::Option => "nothing",
        Unexpected::Seq => "a list",
        Unexpected::Map => "a map",
        Unexpected::Enum | Unexpected::UnitVariant => "a word alone",
        Unexpected::NewtypeVariant | Unexpected::TupleVariant | Unexpected::StructVariant => "a word with a value",
        Unexpected::Other(BEYOND) => BEYOND,
        _ => "a text",
    }
    .to_owned()
}

/// What is written like a number, and is none that can be used.
const BEYOND: &str = "a number beyond all bounds";

/// What serde's own visitors expect, in the words of those who write configuration.
fn in_plain_words(expected: &str) -> String {
    match expected {
        "a boolean" => "true or false",
        "a string" | "a borrowed string" | "path string" => "a text",
        "a sequence" => "a list, as in [a, b]",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number",
        "a map" => "a map, as in {key: value}",
        "any valid JSON value" => "a number that can be used, or a text in quotes",
        _ if expected.starts_with("struct ") => "a map, as in {key: value}",
        _ if expected.starts_with("enum ") => "one of its choices",
        _ => expected,
    }
    .to_owned()
}

/// A node as serde reads it.
#[derive(Clone, Copy)]
struct Value<'a, 't>(&'a Node<'t>);

impl<'a> Value<'a, '_> {
    fn plain(self) -> Option<Plain<'a>> {
        match &self.0.kind {
            Kind::Scalar { text, plain: true } => Some(resolve(text)),
            Kind::Scalar { text, plain: false } => Some(Plain::Text(text)),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    fn wrong_type<V: Visitor<'a>>(self, visitor: &V) -> Error {
        let unexpected = match self.plain() {
            Some(Plain::Null) => Unexpected::Unit,
            Some(Plain::Bool(value)) => Unexpected::Bool(value),
            Some(Plain::Unsigned(value)) => Unexpected::Unsigned(value),
            Some(Plain::Signed(value)) => Unexpected::Signed(value),
            Some(Plain::Float(value)) => Unexpected::Float(value),
            Some(Plain::Unbounded) => Unexpected::Other(BEYOND),
            Some(Plain::Text(_)) => Unexpected::Str(""),
            None if matches!(self.0.kind, Kind::List(_)) => Unexpected::Seq,
            None => Unexpected::Map,
        };
        de::Error::invalid_type(unexpected, visitor)
    }

    /// Any fault of this node that has no place of its own stands here.
    fn here<T>(self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| error.at(self.0.position))
    }
}

macro_rules! deserialize_numbers {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
            self.here(match self.plain() {
                Some(Plain::Unsigned(number)) => visitor.visit_u64(number),
                Some(Plain::Signed(number)) => visitor.visit_i64(number),
                Some(Plain::Float(number)) => visitor.visit_f64(number),
                _ => Err(self.wrong_type(&visitor)),
            })
        })*
    };
}

impl<'a> de::Deserializer<'a> for Value<'a, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.kind {
            Kind::List(_) => self.deserialize_seq(visitor),
            Kind::Map(_) => self.deserialize_map(visitor),
            Kind::Scalar { text, plain } => self.here(match if *plain { resolve(text) } else { Plain::Text(text) } {
                Plain::Null => visitor.visit_unit(),
                Plain::Bool(value) => visitor.visit_bool(value),
                Plain::Unsigned(number) => visitor.visit_u64(number),
                Plain::Signed(number) => visitor.visit_i64(number),
                Plain::Float(number) => visitor.visit_f64(number),
                Plain::Unbounded => Err(self.wrong_type(&visitor)),
                Plain::Text(text) => visitor.visit_borrowed_str(text),
            }),
        }
    }

    deserialize_numbers! {
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_f32 deserialize_f64
    }

    fn deserialize_bool<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.here(match self.plain() {
            Some(Plain::Bool(value)) => visitor.visit_bool(value),
            _ => Err(self.wrong_type(&visitor)),
        })
    }

    /// A scalar of any look is a text where a text is wanted: `default: 2` names the version "2".
    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.here(match &self.0.kind {
            Kind::Scalar { text, .. } if self.plain() != Some(Plain::Null) => visitor.visit_borrowed_str(text),
            _ => Err(self.wrong_type(&visitor)),
        })
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.plain() {
            Some(Plain::Null) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.here(match &self.0.kind {
            Kind::List(items) => visitor.visit_seq(Items { items, next: 0 }),
            _ => Err(self.wrong_type(&visitor)),
        })
    }

    fn deserialize_tuple<V: Visitor<'a>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        match &self.0.kind {
            Kind::List(items) if items.len() != length => {
                self.here(Err(de::Error::invalid_length(items.len(), &visitor)))
            }
            _ => self.deserialize_seq(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        self.here(match &self.0.kind {
            Kind::Map(entries) => visitor.visit_map(Entries { entries, next: 0 }),
            _ => Err(self.wrong_type(&visitor)),
        })
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        choices: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.here(match &self.0.kind {
            Kind::Scalar { text, .. } if self.plain() != Some(Plain::Null) => {
                visitor.visit_enum(Choice { name: text, position: self.0.position, value: None })
            }
            Kind::Map(entries) => match entries.as_slice() {
                [entry] => visitor.visit_enum(Choice {
                    name: &entry.key,
                    position: entry.key_position,
                    value: Some(Value(&entry.value)),
                }),
                _ => Err(Error::new(Cause::WrongType {
                    found: format!("a map of {} keys", entries.len()),
                    expected: format!("exactly one of {}", choices.join(", ")),
                })),
            },
            _ => Err(self.wrong_type(&visitor)),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { <V: Visitor<'a>> i128 u128 char bytes byte_buf unit unit_struct tuple_struct }
}

struct Items<'a, 't> {
    items: &'a [Node<'t>],
    next: usize,
}

impl<'a> de::SeqAccess<'a> for Items<'a, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(Value(item)).map(Some).map_err(|error| error.at(item.position).under(PathStep::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Entries<'a, 't> {
    entries: &'a [Entry<'t>],
    next: usize,
}

impl<'a> de::MapAccess<'a> for Entries<'a, '_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        seed.deserialize(Key(entry)).map(Some).map_err(|error| in_entry(error, entry, entry.key_position))
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.entries.get(self.next) else {
            return Err(Error::new(Cause::Syntax { message: "a value without a key".to_owned() }));
        };
        self.next += 1;
        seed.deserialize(Value(&entry.value)).map_err(|error| in_entry(error, entry, entry.value.position))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len() - self.next)
    }
}

#[cold]
fn in_entry(error: Error, entry: &Entry<'_>, position: Position) -> Error {
    error.at(position).under(PathStep::Key((*entry.key).into()))
}

/// The key of an entry, which is always a text.
struct Key<'a, 't>(&'a Entry<'t>);

impl<'a> de::Deserializer<'a> for Key<'a, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(&self.0.key)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_enum(Choice { name: &self.0.key, position: self.0.key_position, value: None })
    }

    forward_to_deserialize_any! { <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// One choice of an enum: a word alone, or a word with a value.
struct Choice<'a, 't> {
    name: &'a str,
    position: Position,
    value: Option<Value<'a, 't>>,
}

impl<'a> de::EnumAccess<'a> for Choice<'a, '_> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let name: de::value::BorrowedStrDeserializer<'a, Error> = de::value::BorrowedStrDeserializer::new(self.name);
        let variant = seed.deserialize(name.into_deserializer()).map_err(|error| error.at(self.position))?;
        Ok((variant, self))
    }
}

impl Choice<'_, '_> {
    fn within<T>(&self, value: Value<'_, '_>, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| error.at(value.0.position).under(PathStep::Key(self.name.into())))
    }

    fn without_value<T>(&self) -> Result<T, Error> {
        let expected = format!("{}: and a value", self.name);
        Err(Error::new(Cause::WrongType { found: "a word alone".to_owned(), expected }))
    }
}

impl<'a> de::VariantAccess<'a> for Choice<'a, '_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.value {
            None => Ok(()),
            Some(value) if value.plain() == Some(Plain::Null) => Ok(()),
            Some(value) => {
                let cause = Cause::WrongType {
                    found: "a word with a value".to_owned(),
                    expected: format!("the word {} alone", self.name),
                };
                self.within(value, Err(Error::new(cause)))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Error> {
        match self.value {
            Some(value) => self.within(value, seed.deserialize(value)),
            None => self.without_value(),
        }
    }

    fn tuple_variant<V: Visitor<'a>>(self, length: usize, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Some(value) => self.within(value, de::Deserializer::deserialize_tuple(value, length, visitor)),
            None => self.without_value(),
        }
    }

    fn struct_variant<V: Visitor<'a>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Some(value) => self.within(value, de::Deserializer::deserialize_map(value, visitor)),
            None => self.without_value(),
        }
    }
}
