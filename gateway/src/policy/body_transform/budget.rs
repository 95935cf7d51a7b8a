//! What one run of a program may use, and the checkpoints that hold it to that.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use jaq_core::{Cv, Exn, Lut, Native, ValXs, box_iter::box_once, data::HasLut, native};
use jaq_json::{Num, Val};

use super::TransformFailure;
use crate::policy::stack;

/// What a run may use at most, and of that what it may use for each millisecond that it has: what
/// takes long must fit into the time, since it cannot be stopped midway.
const LIMITS: Limits = Limits { made_bytes: 256 << 20, value_bytes: 32 << 20, search: 1 << 30, regex: 1 << 28 };
const PER_MILLISECOND: Limits = Limits { made_bytes: 2 << 20, value_bytes: 512 << 10, search: 4 << 20, regex: 1 << 20 };
/// Levels of arrays and objects within each other.
const MAX_DEPTH: u32 = 128;
/// Bits of one integer.
const MAX_INTEGER_BITS: u64 = 4096;
/// Stack that evaluation may take up to a checkpoint. What is taken between two checkpoints, and what
/// dropping everything takes, must fit into the rest of [`super::STACK_BYTES`].
const MAX_STACK_BYTES: usize = 512 << 10;
/// What an element of an array or object takes, roughly.
const ELEMENT_BYTES: u64 = 16;
/// Items of an array that another array is searched for.
const MAX_INDEX_ITEMS: usize = 64;
/// The clock is read at every so manieth checkpoint.
const STEPS_PER_CLOCK: u32 = 64;
/// Values made are looked through at every so manieth; in between, only their top level is counted.
/// Each may double a value at most, so this bounds how far one grows unseen.
const VALUES_PER_WALK: u32 = 8;

/// Names of the checkpoints. No program can write or shadow them: they are not identifiers.
pub(super) const STEP: &str = "!step";
pub(super) const MADE: &str = "!made";
pub(super) const WALK: &str = "!walk";
/// Before an index: the whole of it, and that it is no long array, which would be searched for.
pub(super) const INDEX: &str = "!index";
/// Before a search for the argument in the input.
pub(super) const SEARCH: &str = "!search";
/// Before a search for a regular expression with flags.
pub(super) const REGEX: &str = "!regex";
/// Multiplication, which repeats strings.
pub(super) const MULTIPLY: &str = "!multiply";
/// An array of objects as one object, later ones first.
pub(super) const MERGE: &str = "!merge";

#[derive(Debug)]
struct Limits {
    /// Bytes that all values made in a run take together.
    made_bytes: u64,
    /// Bytes that one value takes, its parts included, however often they are shared.
    value_bytes: u64,
    /// Comparisons that one search takes at worst.
    search: u64,
    /// Steps that one search for a regular expression takes at worst.
    regex: u64,
}

impl Limits {
    fn within(time: Duration) -> Self {
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let scaled = |per_millisecond: u64, most: u64| per_millisecond.saturating_mul(milliseconds).min(most);
        Self {
            made_bytes: scaled(PER_MILLISECOND.made_bytes, LIMITS.made_bytes),
            value_bytes: scaled(PER_MILLISECOND.value_bytes, LIMITS.value_bytes),
            search: scaled(PER_MILLISECOND.search, LIMITS.search),
            regex: scaled(PER_MILLISECOND.regex, LIMITS.regex),
        }
    }
}

/// The use of resources in one run.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    deadline: Instant,
    stack_base: usize,
    steps: Cell<u32>,
    values: Cell<u32>,
    made: Cell<u64>,
    spent: Cell<Option<Spent>>,
}

/// What a run used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spent {
    Time,
    Memory,
    Depth,
}

impl From<Spent> for TransformFailure {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Time => Self::TooLong,
            Spent::Memory => Self::TooLarge,
            Spent::Depth => Self::TooDeep,
        }
    }
}

impl Budget {
    pub(super) fn new(time: Duration) -> Self {
        Self {
            limits: Limits::within(time),
            deadline: Instant::now() + time,
            stack_base: stack::position(),
            steps: Cell::new(0),
            values: Cell::new(0),
            made: Cell::new(0),
            spent: Cell::new(None),
        }
    }

    pub(super) fn spent(&self) -> Option<Spent> {
        self.spent.get()
    }

    /// Time and stack. Once something is used up, every further step fails too.
    fn step(&self) -> Result<(), Spent> {
        if let Some(spent) = self.spent.get() {
            return Err(spent);
        }
        if self.stack_base.abs_diff(stack::position()) > MAX_STACK_BYTES {
            return self.spend(Spent::Depth);
        }
        let steps = self.steps.get().wrapping_add(1);
        self.steps.set(steps);
        if steps.is_multiple_of(STEPS_PER_CLOCK) && Instant::now() >= self.deadline {
            return self.spend(Spent::Time);
        }
        Ok(())
    }

    /// A value was made.
    fn made(&self, value: &Val) -> Result<(), Spent> {
        self.step()?;
        let bytes = own_bytes(value);
        if bytes > self.limits.value_bytes {
            return self.spend(Spent::Memory);
        }
        self.made.set(self.made.get() + bytes);
        if self.made.get() > self.limits.made_bytes {
            return self.spend(Spent::Memory);
        }
        let values = self.values.get().wrapping_add(1);
        self.values.set(values);
        if values.is_multiple_of(VALUES_PER_WALK) { self.walk(value) } else { Ok(()) }
    }

    /// The whole of a value: before anything that goes through all of it.
    pub(super) fn walk(&self, value: &Val) -> Result<(), Spent> {
        self.step()?;
        self.size(value).map(|_| ())
    }

    /// Before a string is repeated.
    fn repeat(&self, left: &Val, right: &Val) -> Result<(), Spent> {
        let ((Val::TStr(text) | Val::BStr(text), number) | (number, Val::TStr(text) | Val::BStr(text))) = (left, right)
        else {
            return Ok(());
        };
        let times = match number {
            Val::Num(Num::Int(times)) => u64::try_from(*times).unwrap_or(0),
            // Larger than any machine integer, or refused by the multiplication itself.
            Val::Num(_) => u64::MAX,
            _ => 0,
        };
        if (text.len() as u64).saturating_mul(times) > self.limits.value_bytes {
            return self.spend(Spent::Memory);
        }
        Ok(())
    }

    fn index(&self, value: &Val) -> Result<(), Spent> {
        match value {
            Val::Arr(items) if items.len() > MAX_INDEX_ITEMS => self.spend(Spent::Memory),
            value => self.walk(value),
        }
    }

    fn search(&self, input: &Val, wanted: &Val) -> Result<(), Spent> {
        let (input, wanted) = (self.size(input)?, self.size(wanted)?);
        if input.saturating_mul(wanted) > self.limits.search { self.spend(Spent::Time) } else { Ok(()) }
    }

    /// One match takes as many steps as expression and text are long, multiplied. With `g`, each
    /// place of the text may begin another match that is given up only at the text's end.
    fn regex(&self, text: &Val, expression: &Val, flags: &Val) -> Result<(), Spent> {
        self.step()?;
        let (Val::TStr(text), Val::TStr(expression), Val::TStr(flags)) = (text, expression, flags) else {
            return Ok(());
        };
        let length = text.len() as u64 + 1;
        let rounds = if flags.contains(&b'g') { length } else { 1 };
        let work = regex_size(expression).saturating_mul(length).saturating_mul(rounds);
        if work > self.limits.regex { self.spend(Spent::Time) } else { Ok(()) }
    }

    fn size(&self, value: &Val) -> Result<u64, Spent> {
        let mut room = self.limits.value_bytes;
        match fits(value, MAX_DEPTH, &mut room) {
            Ok(()) => Ok(self.limits.value_bytes - room),
            Err(spent) => self.spend(spent).map(|()| 0),
        }
    }

    fn spend(&self, spent: Spent) -> Result<(), Spent> {
        self.spent.set(Some(spent));
        Err(spent)
    }
}

/// What the top level of a value takes; what it holds was counted when that was made.
fn own_bytes(value: &Val) -> u64 {
    match value {
        Val::Num(Num::BigInt(integer)) if integer.bits() > MAX_INTEGER_BITS => u64::MAX,
        Val::Null | Val::Bool(_) | Val::Num(_) => 0,
        Val::BStr(text) | Val::TStr(text) => text.len() as u64,
        Val::Arr(items) => items.len() as u64 * ELEMENT_BYTES,
        Val::Obj(entries) => entries.len() as u64 * 4 * ELEMENT_BYTES,
    }
}

fn fits(value: &Val, depth: u32, room: &mut u64) -> Result<(), Spent> {
    *room = room.checked_sub(own_bytes(value).saturating_add(1)).ok_or(Spent::Memory)?;
    match value {
        Val::Arr(items) => {
            let depth = depth.checked_sub(1).ok_or(Spent::Depth)?;
            items.iter().try_for_each(|item| fits(item, depth, room))
        }
        Val::Obj(entries) => {
            let depth = depth.checked_sub(1).ok_or(Spent::Depth)?;
            entries.iter().try_for_each(|(key, item)| {
                fits(key, depth, room)?;
                fits(item, depth, room)
            })
        }
        _ => Ok(()),
    }
}

/// How many states a regular expression has, at most: repetitions with a count multiply what they
/// repeat. Not exact, and never less than there are by more than a small factor.
fn regex_size(expression: &[u8]) -> u64 {
    // What each open group holds so far, and the last thing in it, which a repetition repeats.
    let mut groups: Vec<(u64, u64)> = vec![(1, 0)];
    let mut bytes = expression.iter().copied();
    while let Some(byte) = bytes.next() {
        let (before, last) = groups.pop().unwrap_or((1, 0));
        let sum = before.saturating_add(last);
        match byte {
            b'(' => groups.extend([(sum, 0), (1, 1)]),
            b')' => {
                let (outer, _) = groups.pop().unwrap_or((1, 0));
                groups.push((outer, sum));
            }
            b'{' => {
                let count: Vec<u8> = bytes.by_ref().take_while(|b| *b != b'}').collect();
                let largest =
                    count.split(|b| *b == b',').filter_map(|n| std::str::from_utf8(n).ok()?.trim().parse().ok()).max();
                groups.push((before, last.saturating_mul(largest.unwrap_or(1_u64).max(1))));
            }
            b'\\' => {
                bytes.next();
                groups.push((sum, 2));
            }
            _ => groups.push((sum, 1)),
        }
    }
    groups.iter().fold(0, |sum, (before, last)| sum.saturating_add(*before).saturating_add(*last))
}

/// The kind of data that programs run on.
#[derive(Debug)]
pub(super) struct Data;

impl jaq_core::DataT for Data {
    type V<'a> = Val;
    type Data<'a> = Run<'a>;
}

/// What native functions can reach.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) lut: &'a Lut<Data>,
    pub(super) budget: &'a Budget,
}

impl<'a> HasLut<'a, Data> for Run<'a> {
    fn lut(&self) -> &'a Lut<Data> {
        self.lut
    }
}

/// Ends the run: `try` and `//` do not catch this. The reason is in the budget.
fn over<'a, T>(_: Spent) -> jaq_core::ValX<'a, T, Val> {
    Err(Exn::halt(0))
}

/// A checkpoint gives its input on, also as a path (`path(…)`) and as the target of an update (`|=`).
macro_rules! checkpoint {
    ($name:expr, $check:ident) => {
        (
            $name,
            native::v(0),
            Native::<Data>::new(|cv| match cv.0.data().budget.check(Check::$check, &cv.1) {
                Ok(()) => box_once(Ok(cv.1)),
                Err(spent) => box_once(over(spent)),
            })
            .with_paths(|cv| match cv.0.data().budget.check(Check::$check, &cv.1.0) {
                Ok(()) => box_once(Ok(cv.1)),
                Err(spent) => box_once(over(spent)),
            })
            .with_update(|cv, update| match cv.0.data().budget.check(Check::$check, &cv.1) {
                Ok(()) => update(cv.1),
                Err(spent) => box_once(over(spent)),
            }),
        )
    };
}

#[derive(Clone, Copy)]
enum Check {
    Step,
    Made,
    Walk,
    Index,
}

impl Budget {
    fn check(&self, check: Check, value: &Val) -> Result<(), Spent> {
        match check {
            Check::Step => self.step(),
            Check::Made => self.made(value),
            Check::Walk => self.walk(value),
            Check::Index => self.index(value),
        }
    }
}

/// The checkpoints, and the library's functions that need one within.
pub(super) fn functions() -> [native::Fun<Data>; 9] {
    [
        checkpoint!(STEP, Step),
        checkpoint!(MADE, Made),
        checkpoint!(WALK, Walk),
        checkpoint!(INDEX, Index),
        (SEARCH, native::v(1), Native::new(|cv| search(cv))),
        (REGEX, native::v(2), Native::new(|cv| regex(cv))),
        (MULTIPLY, native::v(2), Native::new(|cv| multiply(cv))),
        (MERGE, native::v(0), Native::new(|cv| merge(cv))),
        ("fromjson", native::v(0), Native::new(|cv| from_json(cv))),
    ]
}

fn search(mut cv: Cv<'_, Data>) -> ValXs<'_, Val> {
    let wanted = cv.0.pop_var();
    match cv.0.data().budget.search(&cv.1, &wanted) {
        Ok(()) => box_once(Ok(cv.1)),
        Err(spent) => box_once(over(spent)),
    }
}

fn regex(mut cv: Cv<'_, Data>) -> ValXs<'_, Val> {
    let (flags, expression) = (cv.0.pop_var(), cv.0.pop_var());
    match cv.0.data().budget.regex(&cv.1, &expression, &flags) {
        Ok(()) => box_once(Ok(cv.1)),
        Err(spent) => box_once(over(spent)),
    }
}

fn multiply(mut cv: Cv<'_, Data>) -> ValXs<'_, Val> {
    let (right, left) = (cv.0.pop_var(), cv.0.pop_var());
    match cv.0.data().budget.repeat(&left, &right) {
        Ok(()) => native::bome(left * right),
        Err(spent) => box_once(over(spent)),
    }
}

#[allow(clippy::needless_pass_by_value)] // As the interpreter calls it.
fn merge(cv: Cv<'_, Data>) -> ValXs<'_, Val> {
    let mut merged = jaq_json::Map::default();
    if let Val::Arr(objects) = &cv.1 {
        for object in objects.iter() {
            if let Val::Obj(entries) = object {
                merged.extend(entries.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
        }
    }
    box_once(Ok(Val::obj(merged)))
}

#[allow(clippy::needless_pass_by_value)] // As the interpreter calls it.
/// Strict JSON with a bound on depth; the interpreter's own has neither.
fn from_json(cv: Cv<'_, Data>) -> ValXs<'_, Val> {
    let parsed = match &cv.1 {
        Val::TStr(text) | Val::BStr(text) => serde_json::from_slice(text).map_err(|_| "cannot be parsed as JSON"),
        _ => Err("fromjson needs a string"),
    };
    native::bome(parsed.map_err(jaq_core::Error::str))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counted_repetitions_multiply() {
        assert!(regex_size(b"((a{100}){100}){100}") >= 1_000_000);
        assert!(regex_size(br"(\d{4,1000}x){1000}") >= 1_000_000);
        assert!(regex_size(br"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}$") < 100);
        assert!(regex_size(b"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}") < 200);
        assert!(regex_size(b"") >= 1);
    }

    proptest! {
        #[test]
        fn a_size_is_never_less_than_the_number_of_plain_characters(text in "[a-z]{0,50}") {
            prop_assert!(regex_size(text.as_bytes()) >= text.len() as u64);
        }

        #[test]
        fn any_bytes_have_a_size(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(regex_size(&bytes) >= 1);
        }
    }
}
