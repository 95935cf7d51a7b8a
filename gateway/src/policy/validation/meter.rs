//! JSON as a validator sees it: each look at it is counted, so that no schema looks for ever.
//!
//! How often a validator looks at a value depends on how the parts of its schema refer to each other, and on what it
//! remembers of them: nothing but counting bounds that for every schema. A validator cannot be told to stop, so that the
//! look that is one too many unwinds it.

use std::{
    borrow::Cow,
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    slice,
};

use jsonschema::{
    JsonType,
    json::{Array, Json, Node, NodeIdentity, Object, cmp, unique},
};
use serde_json::{Map, Number, Value, map};

use crate::policy::stack;

/// Stack that a validator may take up to a look. What it takes between two, and what dropping takes, must fit into the
/// rest of [`STACK_BYTES`](crate::policy::body_transform::STACK_BYTES).
const MAX_STACK_BYTES: usize = 4 << 20;
/// Bytes of a text that cost as much as one look.
const BYTES_PER_LOOK: usize = 16;

thread_local! {
    static METER: Meter = const {
        Meter { looks: Cell::new(0), each: Cell::new(0), errors: Cell::new(0), stack_base: Cell::new(0) }
    };
}

/// What is left of an [`Allowance`].
struct Meter {
    looks: Cell<u64>,
    each: Cell<u64>,
    errors: Cell<u64>,
    stack_base: Cell<usize>,
}

/// What one run of a validator may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    pub(super) looks: u64,
    /// What each counts for besides: as much as may be done between two.
    pub(super) each: u64,
    /// Errors that are made, and so copies of what is looked at.
    pub(super) errors: u64,
}

/// Thrown by the look that is one too many.
struct Exceeded;

/// Runs a validator of [`Metered`] values; `None` if it would take more than this.
pub(super) fn within<T>(allowance: Allowance, run: impl FnOnce() -> T) -> Option<T> {
    METER.with(|meter| {
        meter.looks.set(allowance.looks);
        meter.each.set(allowance.each);
        meter.errors.set(allowance.errors);
        meter.stack_base.set(stack::position());
    });
    // Nothing that `run` changes outlives it, but the meter, which is set anew.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(done) => Some(done),
        Err(thrown) if thrown.is::<Exceeded>() => None,
        Err(thrown) => resume_unwind(thrown),
    }
}

fn look(times: usize) {
    METER.with(|meter| {
        let cost = meter.each.get().saturating_add(times as u64);
        let left = meter.looks.get().checked_sub(cost);
        let stack_bytes = meter.stack_base.get().abs_diff(stack::position());
        meter.looks.set(left.filter(|_| stack_bytes <= MAX_STACK_BYTES).unwrap_or_else(|| exceed()));
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
        self.0.next().map(|(name, member)| (name.as_str(), Seen(member)))
    }
}

pub(super) struct Items<'a>(&'a [Value]);

pub(super) struct ItemsIter<'a>(slice::Iter<'a, Value>);

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
        look(1 + self.0.iter().map(looks_of).sum::<usize>());
        unique::is_unique(self.0)
    }
}

impl<'a> Iterator for ItemsIter<'a> {
    type Item = Seen<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(Seen)
    }
}
