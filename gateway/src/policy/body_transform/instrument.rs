//! Weaves checkpoints into programs.
//!
//! The rules, of which each closes a way to run on unseen:
//! - a definition's body begins with a step, so recursion passes one; so does every few levels of
//!   nesting, so that little stack is taken between two of them;
//! - whatever is evaluated once per output of something else has a step after that something, so that
//!   products of streams pass one for each combination;
//! - whatever makes a value is followed by a count of it, and whatever goes through the whole of a
//!   value (comparison, sorting, text) is preceded by a look at its whole size;
//! - calls of the program's own definitions are left as they are, so that tail calls stay tail calls.

use jaq_core::{
    load::{
        lex::StrPart,
        parse::{BinaryOp, Def, Pattern, Term},
    },
    ops::Math,
    path::{Part, Path},
};

use super::budget::{INDEX, MADE, MULTIPLY, REGEX, SEARCH, STEP, WALK};

/// How far terms may be nested in a program's text.
pub(super) const MAX_NESTING: usize = 200;

/// Evaluation goes down this many levels of a program's text before it passes a step, where the stack
/// is looked at; a level takes some ten kilobytes where the compiler does not optimise much.
const NESTING_PER_STEP: usize = 4;

/// Functions that go through the whole of their input.
const DEEP: [&str; 10] = [
    "tojson",
    "tobytes",
    "sort",
    "sort_by",
    "group_by",
    "min_by_or_empty",
    "max_by_or_empty",
    "bsearch",
    "has",
    "error_empty",
];

/// Functions that search their input for their argument.
const SEARCHING: [&str; 2] = ["contains", "indices"];
/// Functions that search for a regular expression, given with its flags.
const MATCHING: [&str; 3] = ["matches", "split_matches", "split_"];

/// A program's text is nested too far.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooNested;

/// `natives` are the names of functions that are not definitions.
pub(super) struct Instrument<'n> {
    pub(super) natives: &'n [&'static str],
}

impl Instrument<'_> {
    pub(super) fn definition<'s>(&self, def: Def<&'s str>, nesting: usize) -> Result<Def<&'s str>, TooNested> {
        Ok(Def { name: def.name, args: def.args, body: after_step(self.term(def.body, nesting + 1)?) })
    }

    pub(super) fn term<'s>(&self, term: Term<&'s str>, nesting: usize) -> Result<Term<&'s str>, TooNested> {
        if nesting > MAX_NESTING {
            return Err(TooNested);
        }
        let is_leaf = matches!(
            term,
            Term::Id | Term::Recurse | Term::Num(_) | Term::Var(_) | Term::Break(_) | Term::Arr(None) | Term::Str(..)
        );
        let term = self.woven(term, nesting)?;
        Ok(if nesting.is_multiple_of(NESTING_PER_STEP) && !is_leaf { after_step(term) } else { term })
    }

    #[allow(clippy::too_many_lines)] // One arm for each kind of term, to be read against the rules.
    fn woven<'s>(&self, term: Term<&'s str>, nesting: usize) -> Result<Term<&'s str>, TooNested> {
        let plain = |term: Term<&'s str>| self.term(term, nesting + 1);
        let boxed = |term: Box<Term<&'s str>>| Ok(Box::new(plain(*term)?));
        let stepped = |term: Term<&'s str>| Ok(then(plain(term)?, STEP));
        let boxed_stepped = |term: Box<Term<&'s str>>| Ok(Box::new(then(plain(*term)?, STEP)));
        let boxed_walked = |term: Box<Term<&'s str>>| Ok(Box::new(then(plain(*term)?, WALK)));
        Ok(match term {
            Term::Id | Term::Num(_) | Term::Var(_) | Term::Break(_) | Term::Arr(None) => term,
            Term::Recurse => then(Term::Recurse, STEP),
            Term::Str(format, parts) => {
                let is_constant = !parts.iter().any(|part| matches!(part, StrPart::Term(_)));
                let parts = parts.into_iter().map(|part| {
                    Ok(match part {
                        StrPart::Term(term) => StrPart::Term(then(plain(term)?, WALK)),
                        other => other,
                    })
                });
                let text = Term::Str(format, parts.collect::<Result<_, _>>()?);
                if is_constant { text } else { then(text, MADE) }
            }
            Term::Arr(Some(items)) => then(Term::Arr(Some(boxed_stepped(items)?)), MADE),
            Term::Obj(entries) => {
                let entries =
                    entries.into_iter().map(|(key, value)| Ok((stepped(key)?, value.map(stepped).transpose()?)));
                then(Term::Obj(entries.collect::<Result<_, _>>()?), MADE)
            }
            Term::Neg(term) => then(Term::Neg(boxed_stepped(term)?), STEP),
            Term::BinOp(left, op, right) => match op {
                BinaryOp::Pipe(pattern) => {
                    let pattern = pattern.map(|pattern| self.pattern(pattern, nesting + 1)).transpose()?;
                    Term::BinOp(boxed_stepped(left)?, BinaryOp::Pipe(pattern), boxed(right)?)
                }
                BinaryOp::Comma => Term::BinOp(boxed(left)?, op, boxed(right)?),
                BinaryOp::Alt => Term::BinOp(boxed_stepped(left)?, op, boxed(right)?),
                BinaryOp::Or | BinaryOp::And => {
                    then(Term::BinOp(boxed_stepped(left)?, op, boxed_stepped(right)?), STEP)
                }
                BinaryOp::Cmp(_) => then(Term::BinOp(boxed_walked(left)?, op, boxed_walked(right)?), STEP),
                BinaryOp::Math(Math::Mul) => then(multiplied(*boxed_walked(left)?, *boxed_walked(right)?), MADE),
                BinaryOp::Math(Math::Sub) => then(Term::BinOp(boxed_walked(left)?, op, boxed_walked(right)?), MADE),
                BinaryOp::Math(_) => then(Term::BinOp(boxed_stepped(left)?, op, boxed_stepped(right)?), MADE),
                // `l *= r` is `r as $x | l |= . * $x`.
                BinaryOp::UpdateMath(Math::Mul) => {
                    const FACTOR: &str = "$!factor";
                    let product = then(multiplied(Term::Id, Term::Var(FACTOR)), MADE);
                    let update = Term::BinOp(boxed(left)?, BinaryOp::Update, Box::new(product));
                    let pattern = BinaryOp::Pipe(Some(Pattern::Var(FACTOR)));
                    then(Term::BinOp(boxed_walked(right)?, pattern, Box::new(then(update, MADE))), STEP)
                }
                BinaryOp::Assign | BinaryOp::Update | BinaryOp::UpdateAlt | BinaryOp::UpdateMath(_) => {
                    then(Term::BinOp(boxed(left)?, op, boxed_stepped(right)?), MADE)
                }
            },
            Term::Label(name, term) => Term::Label(name, boxed(term)?),
            Term::Fold(name, source, pattern, args) => {
                let pattern = self.pattern(pattern, nesting + 1)?;
                let args = args.into_iter().map(|arg| Ok(after_step(plain(arg)?))).collect::<Result<_, _>>()?;
                then(Term::Fold(name, boxed_stepped(source)?, pattern, args), STEP)
            }
            Term::TryCatch(body, catch) => Term::TryCatch(boxed(body)?, catch.map(boxed).transpose()?),
            Term::IfThenElse(branches, otherwise) => {
                let branches =
                    branches.into_iter().map(|(condition, branch)| Ok((stepped(condition)?, plain(branch)?)));
                Term::IfThenElse(branches.collect::<Result<_, _>>()?, otherwise.map(boxed).transpose()?)
            }
            Term::Def(defs, body) => {
                let defs = defs.into_iter().map(|def| self.definition(def, nesting + 1)).collect::<Result<_, _>>()?;
                Term::Def(defs, boxed(body)?)
            }
            Term::Call(name, args) => {
                let args: Vec<Term<&str>> = args.into_iter().map(plain).collect::<Result<_, _>>()?;
                if (SEARCHING.contains(&name) && args.len() == 1) || (MATCHING.contains(&name) && args.len() == 2) {
                    return Ok(then(searching(name, args), MADE));
                }
                let call = Term::Call(name, args);
                if DEEP.contains(&name) {
                    then(pipe(Term::Call(WALK, Vec::new()), call), MADE)
                } else if self.natives.contains(&name) {
                    then(call, MADE)
                } else {
                    call
                }
            }
            Term::Path(term, Path(parts)) => {
                let parts = parts.into_iter().map(|(part, opt)| {
                    let part = match part {
                        Part::Index(index) => Part::Index(then(plain(index)?, INDEX)),
                        Part::Range(from, to) => {
                            Part::Range(from.map(stepped).transpose()?, to.map(stepped).transpose()?)
                        }
                    };
                    Ok((part, opt))
                });
                let path = Path(parts.collect::<Result<_, _>>()?);
                then(Term::Path(boxed(term)?, path), STEP)
            }
        })
    }

    fn pattern<'s>(&self, pattern: Pattern<&'s str>, nesting: usize) -> Result<Pattern<&'s str>, TooNested> {
        if nesting > MAX_NESTING {
            return Err(TooNested);
        }
        let inner = |pattern| self.pattern(pattern, nesting + 1);
        Ok(match pattern {
            Pattern::Var(_) => pattern,
            Pattern::Arr(patterns) => Pattern::Arr(patterns.into_iter().map(inner).collect::<Result<_, _>>()?),
            Pattern::Obj(entries) => {
                let entries = entries.into_iter().map(|(key, pattern)| {
                    // Keys that bind themselves (`{$x}`) must stay variables.
                    let key = match key {
                        Term::Var(_) => key,
                        key => then(self.term(key, nesting + 1)?, STEP),
                    };
                    Ok((key, inner(pattern)?))
                });
                Pattern::Obj(entries.collect::<Result<_, _>>()?)
            }
        })
    }
}

fn pipe<'s>(left: Term<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    Term::BinOp(Box::new(left), BinaryOp::Pipe(None), Box::new(right))
}

/// A term, and a checkpoint after each of its outputs. Constants need none.
fn then<'s>(term: Term<&'s str>, checkpoint: &'static str) -> Term<&'s str> {
    match &term {
        Term::Num(_) | Term::Break(_) | Term::Arr(None) => term,
        Term::Str(_, parts) if !parts.iter().any(|part| matches!(part, StrPart::Term(_))) => term,
        Term::Id | Term::Var(_) if checkpoint == STEP => term,
        _ => pipe(term, Term::Call(checkpoint, Vec::new())),
    }
}

fn after_step(body: Term<&str>) -> Term<&str> {
    pipe(Term::Call(STEP, Vec::new()), body)
}

/// `f(a; b)` as `a as $a | b as $b | check($a; $b) | f($a; $b)`: arguments are evaluated once.
fn searching<'s>(name: &'s str, args: Vec<Term<&'s str>>) -> Term<&'s str> {
    const NAMES: [&str; 2] = ["$!first", "$!second"];
    let check = if args.len() == 1 { SEARCH } else { REGEX };
    let names = &NAMES[..args.len()];
    let values = || names.iter().map(|name| Term::Var(*name)).collect();
    let call = pipe(Term::Call(check, values()), Term::Call(name, values()));
    args.into_iter().zip(names).rev().fold(call, |rest, (arg, name)| {
        let bind = BinaryOp::Pipe(Some(Pattern::Var(*name)));
        Term::BinOp(Box::new(then(arg, STEP)), bind, Box::new(rest))
    })
}

fn multiplied<'s>(left: Term<&'s str>, right: Term<&'s str>) -> Term<&'s str> {
    Term::Call(MULTIPLY, vec![left, right])
}
