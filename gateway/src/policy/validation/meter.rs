//! JSON as a validator sees it: looking at it takes note of the time, so that no schema looks for ever.
//!
//! How often a validator looks at a value depends on how the parts of its schema refer to each other, and on what it
//! remembers of them: nothing but a clock bounds that for every schema. A validator cannot be told to stop, so that the
//! look that is one too many unwinds it.

use std::{
    borrow::Cow,
    cell::Cell,
    collections::HashSet,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    slice,
    time::Duration,
};

use jsonschema::{
    JsonType,
    json::{Array, Json, Node, NodeIdentity, Object, cmp, unique},
};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Number, Value, map};

use crate::policy::stack;

/// Processor time that the runs for a request may take together: they hold up other requests.
const MAX_TIME: Duration = Duration::from_millis(250);
/// Looks between two at the clock. What may be done between two looks is bounded by the schema's
/// [`Complexity`](super::complexity::Complexity), and a pattern's match by its size and that of the text.
const LOOKS_PER_CLOCK: u32 = 256;
/// Stack that a validator may take up to a look. What it takes between two, and what dropping takes, must fit into the
/// rest of [`STACK_BYTES`](crate::policy::body_transform::STACK_BYTES).
const MAX_STACK_BYTES: usize = 4 << 20;
/// Bytes of a text that cost as much as one look.
const BYTES_PER_LOOK: usize = 16;

thread_local! {
    static METER: Meter = const {
        Meter {
            until: Cell::new(None),
            looks: Cell::new(0),
            errors: Cell::new(0),
            stack_base: Cell::new(0),
        }
    };
}

/// What is left of a run.
struct Meter {
    /// By the thread's clock of processor time; none outside of [`timed`].
    until: Cell<Option<Duration>>,
    /// Until the clock is looked at.
    looks: Cell<u32>,
    errors: Cell<u64>,
    stack_base: Cell<usize>,
}

/// Thrown by the look that is one too many.
struct Exceeded;

/// All that `run` does with validators may take [`MAX_TIME`] together, and no more.
pub(super) fn timed<T>(run: impl FnOnce() -> T) -> T {
    METER.with(|meter| {
        meter.until.set(Some(processor_time() + MAX_TIME));
        meter.looks.set(LOOKS_PER_CLOCK);
    });
    let done = run();
    METER.with(|meter| meter.until.set(None));
    done
}

/// Runs a validator of [`Metered`] values, which may make so many errors, and so copies of what it looks at; `None` if it
/// would take more, or longer than is left; outside of [`timed`] it has all the time itself.
pub(super) fn within<T>(errors: u64, run: impl FnOnce() -> T) -> Option<T> {
    if METER.with(|meter| meter.until.get().is_none()) {
        return timed(|| within(errors, run));
    }
    METER.with(|meter| {
        meter.errors.set(errors);
        meter.stack_base.set(stack::position());
    });
    // Nothing that `run` changes outlives it, but the meter, which is set anew.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => Some(done),
        Err(thrown) if thrown.is::<Exceeded>() => None,
        Err(thrown) => resume_unwind(thrown),
    }
}

/// Of this thread. However busy the machine is, the same work takes the same.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

fn look(times: usize) {
    METER.with(|meter| {
        if meter.stack_base.get().abs_diff(stack::position()) > MAX_STACK_BYTES {
            exceed();
        }
        let times = u32::try_from(times).unwrap_or(u32::MAX);
        match meter.looks.get().checked_sub(times) {
            Some(left) => meter.looks.set(left),
            None if meter.until.get().is_none_or(|until| processor_time() > until) => exceed(),
            None => meter.looks.set(LOOKS_PER_CLOCK),
        }
    });
}

fn make_error() {
    METER.with(|meter| meter.errors.set(meter.errors.get().checked_sub(1).unwrap_or_else(|| exceed())));
}

/// Without a message: it is no failure of the gateway.
fn exceed() -> ! {
    resume_unwind(Box::new(Exceeded))
}

/// What comparing a value as a whole may take.
fn looks_of(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 1,
        Value::String(text) => looks_of_text(text),
        Value::Array(items) => 1 + items.iter().map(looks_of).sum::<usize>(),
        Value::Object(members) => {
            1 + members.iter().map(|(name, member)| looks_of_text(name) + looks_of(member)).sum::<usize>()
        }
    }
}

fn looks_of_text(text: &str) -> usize {
    1 + text.len() / BYTES_PER_LOOK
}

/// The representation of what is looked at.
pub(super) enum Metered {}

/// A value that counts how often it is looked at.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a>(pub(super) &'a Value);

impl Json for Metered {
    type Node<'a> = Seen<'a>;
    type PreparedKey = String;
    type StringBuffer = ();

    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>((): &mut (), string: &str, f: impl FnOnce(Seen<'_>) -> T) -> T {
        look(looks_of_text(string));
        f(Seen(&Value::String(string.to_owned())))
    }
}

impl<'a> Node<'a, Metered> for Seen<'a> {
    type Object = Members<'a>;
    type Array = Items<'a>;
    type Number = &'a Number;

    fn as_object(&self) -> Option<Members<'a>> {
        look(1);
        self.0.as_object().map(Members)
    }

    fn as_array(&self) -> Option<Items<'a>> {
        look(1);
        self.0.as_array().map(|items| Items(items))
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        let text = self.0.as_str();
        look(text.map_or(1, looks_of_text));
        text.map(Cow::Borrowed)
    }

    fn as_number(&self) -> Option<&'a Number> {
        look(1);
        self.0.as_number()
    }

    fn as_boolean(&self) -> Option<bool> {
        look(1);
        self.0.as_bool()
    }

    fn is_null(&self) -> bool {
        look(1);
        self.0.is_null()
    }

    fn json_type(&self) -> JsonType {
        look(1);
        match self.0 {
            Value::Null => JsonType::Null,
            Value::Bool(_) => JsonType::Boolean,
            Value::Number(_) => JsonType::Number,
            Value::String(_) => JsonType::String,
            Value::Array(_) => JsonType::Array,
            Value::Object(_) => JsonType::Object,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        // It ends where they differ.
        look(looks_of(expected));
        cmp::equal(self.0, expected)
    }

    /// Errors are made of it.
    fn to_value(&self) -> Cow<'a, Value> {
        look(1);
        make_error();
        Cow::Borrowed(self.0)
    }

    fn identity(&self) -> Option<NodeIdentity> {
        look(1);
        Some(NodeIdentity::new(std::ptr::from_ref(self.0).addr()))
    }
}

pub(super) struct Members<'a>(&'a Map<String, Value>);

pub(super) struct MembersIter<'a>(map::Iter<'a>);

impl<'a> Object<'a, Metered> for Members<'a> {
    type Node = Seen<'a>;
    type MemberName = &'a str;
    type MembersIter = MembersIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, key: &String) -> Option<Seen<'a>> {
        look(1);
        self.0.get(key).map(Seen)
    }

    fn members(&self) -> MembersIter<'a> {
        look(1 + self.0.len());
        MembersIter(self.0.iter())
    }
}

impl<'a> Iterator for MembersIter<'a> {
    type Item = (&'a str, Seen<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, member) = self.0.next()?;
        look(looks_of_text(name));
        Some((name, Seen(member)))
    }
}

pub(super) struct Items<'a>(&'a [Value]);

pub(super) struct ItemsIter<'a>(slice::Iter<'a, Value>);

/// Above all integers that are told apart from floats.
const MAX_WHOLE: f64 = 18_446_744_073_709_551_616.0;

/// So many are compared with each other.
const FEW_ITEMS: usize = 15;

/// Equal values (JSON Schema Core §4.2.2) as equal texts: numbers by what they are, members by name.
fn write_canonically(value: &Value, text: &mut String) {
    // Writing to memory cannot fail.
    let _ = match value {
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => write!(text, "{number}"),
            (_, Some(number), _) => write!(text, "{number}"),
            (.., Some(number)) if number.fract() == 0.0 && number.abs() < MAX_WHOLE => {
                // All digits, which a float is not written with.
                #[allow(clippy::cast_possible_truncation)]
                let whole = number as i128;
                write!(text, "{whole}")
            }
            (.., Some(number)) => write!(text, "{number:e}"),
            _ => write!(text, "{number}"),
        },
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write_canonically(item, text);
                text.push(',');
            }
            text.write_char(']')
        }
        Value::Object(members) => {
            text.push('{');
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            for (name, member) in members {
                let _ = write!(text, "{}:", Value::String(name.clone()));
                write_canonically(member, text);
                text.push(',');
            }
            text.write_char('}')
        }
        value => write!(text, "{value}"),
    };
}

impl<'a> Array<'a, Metered> for Items<'a> {
    type Node = Seen<'a>;
    type ElementsIter = ItemsIter<'a>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn elements(&self) -> ItemsIter<'a> {
        look(1 + self.0.len());
        ItemsIter(self.0.iter())
    }

    fn is_unique(&self) -> bool {
        if self.0.len() <= FEW_ITEMS {
            look(1 + self.0.iter().map(looks_of).sum::<usize>());
            return unique::is_unique(self.0);
        }
        // The library's hash is the same for very many numbers and arrays, and comparing all with all takes long.
        let mut seen = HashSet::with_capacity(self.0.len());
        self.0.iter().all(|item| {
            look(looks_of(item));
            let mut text = String::new();
            write_canonically(item, &mut text);
            seen.insert(text)
        })
    }
}

impl<'a> Iterator for ItemsIter<'a> {
    type Item = Seen<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(Seen)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn few_values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            Just(json!(0)),
            Just(json!(-0.0)),
            Just(json!(1)),
            Just(json!(1.0)),
            Just(json!(1.5)),
            Just(json!(9_007_199_254_740_993_u64)),
            Just(json!(u64::MAX)),
            Just(json!(9_223_372_036_854_775_808_u64)),
            Just(json!(9_223_372_036_854_776_000_u64)),
            Just(json!(9_223_372_036_854_775_808.0)),
            Just(json!(-9_223_372_036_854_775_808.0)),
            Just(json!(i64::MIN)),
            Just(json!(1e30)),
            Just(json!("1")),
            Just(json!("")),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map("[a\"]", inner, 0..3).prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn equal_values_are_equal_texts(a in few_values(), b in few_values()) {
            let text = |value: &Value| {
                let mut text = String::new();
                write_canonically(value, &mut text);
                text
            };
            prop_assert_eq!(text(&a) == text(&b), cmp::equal(&a, &b), "{} {}", text(&a), text(&b));
        }
    }

    #[test]
    fn what_is_checked_for_one_request_has_one_time() {
        let items = vec![Value::Null; 300];
        let look_for = |rounds: u32| {
            within(0, || {
                for _ in 0..rounds {
                    let _ = Items(&items).elements();
                }
            })
        };
        timed(|| {
            assert_eq!(look_for(1), Some(()));
            assert_eq!(look_for(u32::MAX), None);
            assert_eq!(look_for(2), None);
        });
        assert_eq!(look_for(2), Some(()));
    }
}
