//! Compiles programs and runs them.

use std::{fmt::Write, time::Duration};

use bytes::Bytes;
use jaq_core::{
    Compiler, Ctx, Filter, Vars,
    load::{
        Arena, File, Lexer, Loader, Parser,
        lex::Token,
        parse::{BinaryOp, Def, Term},
    },
    native,
};
use jaq_json::Val;

use super::{
    TransformFailure,
    budget::{Budget, Data, MERGE, Run, functions},
    instrument::{Instrument, MAX_NESTING},
    output::to_json,
};

/// Bytes of a program's text.
const MAX_PROGRAM_BYTES: usize = 16 << 10;
/// Bytes of an error message that are kept.
const MAX_MESSAGE_BYTES: usize = 200;
/// The parser takes stack for each level of a program's text, and that has up to one per two bytes.
const COMPILER_STACK_BYTES: usize = 64 << 20;
/// The name under which the program stands beside the library.
const PROGRAM: &str = "__program";
/// Functions that would reach beyond the body: environment, process, log, clock zone files, and
/// modules; and `fromjson`, whose parser has no bound on depth, with a replacement.
const LEFT_OUT: [&str; 7] = ["env", "halt", "debug_empty", "stderr_empty", "localtime", "strflocaltime", "fromjson"];
/// Definitions of the library that rest on those.
const DEFINITIONS_LEFT_OUT: [&str; 4] = ["halt", "halt_error", "debug", "stderr"];

/// Why a program is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyTransformError {
    #[error("the jq program is longer than {MAX_PROGRAM_BYTES} bytes: shorten it")]
    TooLong,
    #[error("the jq program is nested more than {MAX_NESTING} levels deep: give its parts names with `def`")]
    TooNested,
    #[error("the jq program is wrong at line {line}, column {column}: expected {expected}, found {found:?}")]
    Syntax { line: usize, column: usize, expected: String, found: String },
    #[error(
        "the jq program is wrong at line {line}, column {column}: {name:?} is not a {kind} that programs may use; check its spelling and the number of its arguments (files, modules, environment, `input`, `debug` and `halt` are not available)"
    )]
    Undefined { line: usize, column: usize, name: String, kind: &'static str },
    #[error("the jq program could not be compiled: no thread could be started for it")]
    NoThread,
}

/// A compiled program.
pub(super) struct Program {
    filter: Filter<Data>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").finish_non_exhaustive()
    }
}

impl Program {
    /// On a thread of its own: it takes some milliseconds and much stack.
    pub(super) fn compile(program: &str) -> Result<Self, BodyTransformError> {
        if program.len() > MAX_PROGRAM_BYTES {
            return Err(BodyTransformError::TooLong);
        }
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(COMPILER_STACK_BYTES);
            let compiling =
                thread.spawn_scoped(scope, || compile(program)).map_err(|_| BodyTransformError::NoThread)?;
            compiling.join().unwrap_or(Err(BodyTransformError::TooNested))
        })
        .map(|filter| Self { filter })
    }

    /// On a thread with [`super::STACK_BYTES`].
    pub(super) fn run(&self, time: Duration, body: &[u8]) -> Result<Bytes, TransformFailure> {
        let input: Val = serde_json::from_slice(body)
            .map_err(|error| TransformFailure::NotJson { line: error.line(), column: error.column() })?;
        let budget = Budget::new(time);
        let ctx = Ctx::<Data>::new(Run { lut: &self.filter.lut, budget: &budget }, Vars::new([]));
        let mut outputs = self.filter.id.run((ctx, input));
        let first = outputs.next();
        let second = if matches!(first, Some(Ok(_))) { outputs.next() } else { None };
        // Looked at first: a program can drop the exception, not what the budget remembers.
        if let Some(spent) = budget.spent() {
            return Err(spent.into());
        }
        let value = match (first, second) {
            (None, _) => return Err(TransformFailure::NoOutput),
            (Some(Err(exception)), _) | (Some(Ok(_)), Some(Err(exception))) => {
                return Err(match exception.get_err() {
                    Ok(error) => TransformFailure::Program { message: start_of(&error) },
                    Err(_) => TransformFailure::Stopped,
                });
            }
            (Some(Ok(_)), Some(Ok(_))) => return Err(TransformFailure::SeveralOutputs),
            (Some(Ok(value)), None) => value,
        };
        budget.walk(&value)?;
        to_json(&value).map(Bytes::from)
    }
}

fn compile(program: &str) -> Result<Filter<Data>, BodyTransformError> {
    let main = parse(program)?;
    let natives: Vec<native::Fun<Data>> = jaq_core::funs()
        .chain(jaq_std::funs())
        .chain(jaq_json::funs())
        .filter(|(name, ..)| !LEFT_OUT.contains(name))
        .collect();
    let names: Vec<&'static str> = natives.iter().map(|(name, ..)| *name).chain(["fromjson"]).collect();
    let instrument = Instrument { natives: &names };
    let library = jaq_core::defs().chain(jaq_std::defs()).chain(jaq_json::defs());
    let library = library
        .filter(|def| !DEFINITIONS_LEFT_OUT.contains(&def.name))
        .map(|def| if def.name == "from_entries" { from_entries() } else { def });
    let mut definitions: Vec<Def<&str>> = library.collect();
    definitions.push(Def { name: PROGRAM, args: Vec::new(), body: main });
    let definitions: Vec<Def<&str>> = definitions
        .into_iter()
        .map(|def| instrument.definition(def, 0))
        .collect::<Result<_, _>>()
        .map_err(|_| BodyTransformError::TooNested)?;
    let arena = Arena::default();
    let entry = File { code: PROGRAM, path: () };
    // The entry point is a constant and has no imports, so only the compiler can find errors.
    let modules = Loader::new(definitions).load(&arena, entry).map_err(|_| syntax_error(program, "", "a program"))?;
    Compiler::default().with_funs(natives.into_iter().chain(functions())).compile(modules).map_err(|files| match files
        .iter()
        .flat_map(|(_, errors)| errors)
        .next()
    {
        Some((name, kind)) => {
            let (line, column) = position(program, name);
            BodyTransformError::Undefined { line, column, name: (*name).to_owned(), kind: kind.as_str() }
        }
        None => syntax_error(program, "", "a program"),
    })
}

fn parse(program: &str) -> Result<Term<&str>, BodyTransformError> {
    let tokens = Lexer::new(program).lex().map_err(|errors| {
        let (expected, found) = errors.first().map_or(("a token", ""), |(expected, found)| (expected.as_str(), *found));
        syntax_error(program, found, expected)
    })?;
    Parser::new(&tokens).parse(Parser::term).map_err(|errors| {
        let (expected, found) = errors
            .first()
            .map_or(("a term", ""), |(expected, found)| (expected.as_str(), Token::opt_as_str(*found, program)));
        syntax_error(program, found, expected)
    })
}

/// `reduce` with `+`, as the library has it, copies the object for each entry.
fn from_entries() -> Def<&'static str> {
    let entries = jaq_core::load::parse("[.[] | {(.key): .value}]", |parser| parser.term()).unwrap_or_default();
    let merge = Term::Call(MERGE, Vec::new());
    let body = Term::BinOp(Box::new(entries), BinaryOp::Pipe(None), Box::new(merge));
    Def { name: "from_entries", args: Vec::new(), body }
}

fn syntax_error(program: &str, found: &str, expected: &str) -> BodyTransformError {
    let (line, column) = position(program, found);
    let found = if found.is_empty() { "the end" } else { found };
    BodyTransformError::Syntax { line, column, expected: expected.to_owned(), found: found.chars().take(20).collect() }
}

/// Line and column, from 1, of a part of the text; those of the end if it is none.
fn position(text: &str, part: &str) -> (usize, usize) {
    let at = (part.as_ptr().addr()).checked_sub(text.as_ptr().addr()).filter(|at| text.is_char_boundary(*at));
    let before = &text[..at.unwrap_or(text.len())];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// The start of an error's text; values in it may be of any size, so writing stops there.
fn start_of(error: &impl std::fmt::Display) -> String {
    struct Start(String);
    impl Write for Start {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            let room = MAX_MESSAGE_BYTES - self.0.len();
            match text.char_indices().find(|(at, c)| at + c.len_utf8() > room) {
                None => {
                    self.0.push_str(text);
                    Ok(())
                }
                Some((at, _)) => {
                    self.0.push_str(&text[..at]);
                    Err(std::fmt::Error)
                }
            }
        }
    }
    let mut start = Start(String::new());
    // An error only says that there was more.
    let _ = write!(start, "{error}");
    start.0
}

#[cfg(test)]
mod tests {
    // Tests hand over what `json!` makes.
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Tests run on busy machines: the deadline of those that must succeed is generous.
    const SHORT: Duration = Duration::from_secs(2);

    fn run(program: &str, input: &serde_json::Value) -> Result<serde_json::Value, TransformFailure> {
        let transform = Program::compile(program).unwrap();
        let out = transform.run(SHORT, input.to_string().as_bytes())?;
        Ok(serde_json::from_slice(&out).unwrap())
    }

    /// Runs a program that would not end, or not soon, and sees that it is stopped near its deadline.
    /// The bound is wide, since tests share their machine. The stack is a quarter of what threads
    /// have that programs run on: if it overflows, the test process ends.
    fn cut_off(program: &str, input: &[u8]) -> Result<Bytes, TransformFailure> {
        let transform = Program::compile(program).unwrap();
        let start = std::time::Instant::now();
        let outcome = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(super::super::STACK_BYTES / 4);
            let run = thread.spawn_scoped(scope, || transform.run(Duration::from_millis(50), input));
            run.unwrap().join().unwrap()
        });
        assert!(start.elapsed() < Duration::from_secs(5), "{program} ran for {:?}", start.elapsed());
        outcome
    }

    fn ok(program: &str, input: serde_json::Value) -> serde_json::Value {
        run(program, &input).unwrap_or_else(|failure| panic!("{program}: {failure}"))
    }

    #[test]
    fn programs_do_what_jq_does() {
        assert_eq!(
            ok(".", json!({ "b": 1, "a": [null, true, "x", 1.5, -3] })),
            json!({ "b": 1, "a": [null, true, "x", 1.5, -3] })
        );
        assert_eq!(
            ok(
                "{name: .user.name, ids: [.items[].id]}",
                json!({ "user": { "name": "a" }, "items": [{ "id": 1 }, { "id": 2 }] })
            ),
            json!({ "name": "a", "ids": [1, 2] })
        );
        assert_eq!(ok("del(.secret) | .a |= . + 1", json!({ "secret": 1, "a": 1 })), json!({ "a": 2 }));
        assert_eq!(ok("map(select(.n > 1) | .n) | add", json!([{ "n": 1 }, { "n": 2 }, { "n": 3 }])), json!(5));
        assert_eq!(ok("with_entries(.key |= ascii_upcase)", json!({ "a": 1, "b": 2 })), json!({ "A": 1, "B": 2 }));
        assert_eq!(ok("to_entries | from_entries", json!({ "a": 1, "b": 2 })), json!({ "a": 1, "b": 2 }));
        assert_eq!(ok("[paths]", json!({ "a": [1] })), json!([["a"], ["a", 0]]));
        assert_eq!(ok("\"\\(.a)-\\(.b)\" | ascii_upcase", json!({ "a": "x", "b": 1 })), json!("X-1"));
        assert_eq!(ok("[limit(3; repeat(1))]", json!(null)), json!([1, 1, 1]));
        assert_eq!(ok("reduce range(10) as $i (0; . + $i)", json!(null)), json!(45));
        assert_eq!(
            ok("[foreach .[] as [$a, {b: $b}] (0; . + $a; [., $b])]", json!([[1, { "b": 2 }], [3, { "b": 4 }]])),
            json!([[1, 2], [4, 4]])
        );
        assert_eq!(ok(". as {$a, b: [$c]} | [$a, $c]", json!({ "a": 1, "b": [2] })), json!([1, 2]));
        assert_eq!(ok("try error(\"x\") catch .", json!(null)), json!("x"));
        assert_eq!(ok("[.[] | tonumber?]", json!(["1", "x", "2.5"])), json!([1, 2.5]));
        assert_eq!(ok("sub(\"(?<x>b+)\"; \"[\\(.x)]\")", json!("abbc")), json!("a[bb]c"));
        assert_eq!(ok("walk(if type == \"number\" then . * 2 end)", json!([1, [2]])), json!([2, [4]]));
        assert_eq!(ok(".a *= 3 | .s *= 2", json!({ "a": 2, "s": "x" })), json!({ "a": 6, "s": "xx" }));
        assert_eq!(ok("group_by(.k) | map(length)", json!([{ "k": 1 }, { "k": 2 }, { "k": 1 }])), json!([2, 1]));
        assert_eq!(
            ok("label $out | first(.[] | if . > 1 then ., break $out else empty end)", json!([1, 2, 3])),
            json!(2)
        );
        assert_eq!(ok("def f($x; g): $x + g; f(1; .)", json!(2)), json!(3));
        assert_eq!(ok("setpath([\"a\", \"b\"]; 1) | getpath([\"a\", \"b\"])", json!({ "a": {} })), json!(1));
        assert_eq!(ok(".. |= (numbers |= . + 1)", json!([1, [2]])), json!([2, [3]]));
        assert_eq!(ok(".a // \"none\"", json!({})), json!("none"));
        assert_eq!(ok("@base64", json!("hi")), json!("aGk="));
        assert_eq!(ok("fromjson", json!("{\"a\":[1]}")), json!({ "a": [1] }));
        assert_eq!(
            ok("[test(\"^\\\\d{4}-\\\\d{2}$\"), (split(\"-\") | length), ascii_downcase]", json!("2026-01")),
            json!([true, 2, "2026-01"])
        );
        assert_eq!(
            ok("[contains([2]), inside([1, 2, 3]), index(2), (\"abc\" | contains(\"b\", \"x\"))]", json!([1, 2])),
            json!([true, true, 1, true, false])
        );
        assert_eq!(
            ok("[match(\"(?<k>[a-z])(?<n>[0-9])\"; \"g\") | .captures[].string]", json!("a1 b2")),
            json!(["a", "1", "b", "2"])
        );
    }

    #[test]
    fn large_integers_keep_their_digits() {
        let transform = Program::compile(".").unwrap();
        assert_eq!(
            transform.run(SHORT, b"[9007199254740993,18446744073709551615]").unwrap(),
            "[9007199254740993,18446744073709551615]"
        );
    }

    #[test]
    fn long_loops_run_in_constant_stack() {
        assert_eq!(ok("last(range(100000))", json!(null)), json!(99999));
        assert_eq!(ok("0 | until(. >= 20000; . + 1)", json!(null)), json!(20000));
        assert_eq!(ok("[limit(20000; repeat(1))] | length", json!(null)), json!(20000));
        assert_eq!(ok("def f: if . >= 20000 then . else . + 1 | f end; 0 | f", json!(null)), json!(20000));
        assert_eq!(ok("[recurse(if . < 5000 then . + 1 else empty end)] | length", json!(0)), json!(5001));
    }

    #[test]
    fn exactly_one_output_is_required() {
        assert_eq!(run("empty", &json!(1)), Err(TransformFailure::NoOutput));
        assert_eq!(run("., .", &json!(1)), Err(TransformFailure::SeveralOutputs));
        assert!(matches!(run("., error(1)", &json!(1)), Err(TransformFailure::Program { .. })));
        let TransformFailure::Program { message } = run("error(.)", &json!("x".repeat(5000))).unwrap_err() else {
            panic!()
        };
        assert!(message.len() <= MAX_MESSAGE_BYTES);
    }

    #[test]
    fn what_json_cannot_say_is_refused() {
        assert!(matches!(run("{(1|tostring): 1} | tobytes", &json!(1)), Err(TransformFailure::Program { .. })));
        assert!(matches!(run("\"a\" | tobytes", &json!(1)), Err(TransformFailure::InvalidOutput(_))));
        assert_eq!(ok("[nan, infinite, -infinite]", json!(1)), json!([null, f64::MAX, f64::MIN]));
    }

    #[test]
    fn a_body_must_be_strict_json_of_bounded_depth() {
        let transform = Program::compile(".").unwrap();
        let deep = "[".repeat(200_000);
        for body in ["", "{", "NaN", "# comment\n1", "{1: 2}", "1 2", "b\"x\"", deep.as_str()] {
            assert!(
                matches!(transform.run(SHORT, body.as_bytes()), Err(TransformFailure::NotJson { .. })),
                "{body:.20}"
            );
        }
        assert!(matches!(transform.run(SHORT, b"\"\xff\""), Err(TransformFailure::NotJson { .. })));
    }

    #[test]
    fn errors_name_the_place() {
        let error = |program: &str| Program::compile(program).unwrap_err();
        assert!(matches!(error(".a |\n  foo(1)"), BodyTransformError::Undefined { line: 2, column: 3, .. }));
        assert!(matches!(error("$x"), BodyTransformError::Undefined { line: 1, column: 1, kind: "variable", .. }));
        assert!(matches!(error(".a\n| }"), BodyTransformError::Syntax { line: 2, .. }));
        assert!(matches!(error("{a: "), BodyTransformError::Syntax { line: 1, .. }));
        assert!(matches!(error(""), BodyTransformError::Syntax { .. }));
        assert!(matches!(error("if . then 1"), BodyTransformError::Syntax { .. }));
        assert_eq!(error(&"1".repeat(20_000)), BodyTransformError::TooLong);
    }

    #[test]
    fn nothing_outside_of_the_body_can_be_reached() {
        for program in [
            "env",
            "$ENV",
            "input",
            "inputs",
            "halt",
            "halt(0)",
            "halt_error",
            "debug",
            "debug(.)",
            "stderr",
            "input_filename",
            "localtime",
            "strflocaltime(\"%Z\")",
            "$__prog_args",
            "import \"a\" as a; .",
            "include \"a\"; .",
            "get_search_list",
            "input_line_number",
            "def f: halt(1); f",
        ] {
            assert!(Program::compile(program).is_err(), "{program}");
        }
    }

    #[test]
    fn the_checkpoints_cannot_be_named_or_shadowed() {
        for program in ["!step", "def !step: .; .", "`!step`", "\"a\" | !made"] {
            assert!(Program::compile(program).is_err(), "{program}");
        }
    }

    #[test]
    fn text_that_is_nested_without_end_is_refused_and_does_not_overflow_the_stack() {
        let times = |text: &str, times: usize| text.repeat(times);
        for program in [
            times("[", 8000),
            format!("{}1{}", times("[", 5000), times("]", 5000)),
            format!("{}1", times("-", 16_000)),
            format!("{}1", times("1|", 8000)),
            format!("{}1", times("try ", 4000)),
            format!("{}1", times("def f:1;", 2000)),
            format!("{}1{}", times("\"\\(", 2500), times(")\"", 2500)),
            format!("{}1{}", times("{a:", 3000), times("}", 3000)),
            format!("{}1", times(". as $x|", 2000)),
            format!("{}1{}", times("if 1 then ", 1000), times(" end", 1000)),
            format!(".{}1{}", times("[.", 4000), times("]", 4000)),
            format!("{}1", times("1,", 8000)),
            format!("{}1", times("1+", 8000)),
        ] {
            // Either is fine; what counts is that the process is still there.
            if let Ok(transform) = Program::compile(&program) {
                let _ = transform.run(Duration::from_millis(100), b"1");
            }
        }
    }

    #[test]
    fn every_way_to_run_on_is_cut_off() {
        let mut got_through = Vec::new();
        for program in [
            "def f: f; f",
            "def f: try f catch f; f",
            "def f: f?; f // f",
            "repeat(.) | empty",
            "[repeat(.)]",
            "last(repeat(.))",
            "until(false; .)",
            "[while(true; .)]",
            "last(recurse(.))",
            "reduce repeat(1) as $x (0; .)",
            "[foreach repeat(1) as $x (0; .; empty)]",
            "first(range(infinite) | select(. < 0))",
            "last(range(0; 1; 0))",
            "isempty(repeat(1) | empty)",
            "[limit(infinite; repeat(1) | empty)]",
            "last(skip(infinite; repeat(1)))",
            "[.[] as $a | .[] as $b | .[] as $c | .[] as $d | .[] as $e | .[] as $f | .[] as $g | empty]",
            "last((.[] < .[]) < (.[] < .[]) < ((.[] < .[]) < (.[] < .[])))",
            "isempty(.[] and .[] and .[] and .[] and .[] and .[] and .[] | empty)",
            "last(.[[.[] as $a | .[] as $b | .[] as $c | .[] as $d | .[] as $e | .[] as $f | 1][]])",
            "[if .[] then (if .[] then (if .[] then (if .[] then (if .[] then (if .[] then empty else 1 end) else 1 end) else 1 end) else 1 end) else 1 end) else 1 end]",
            "first(path(repeat(.)) | select(false))",
            "(repeat(.)) |= .",
            "[.[] | (.[]?, 1) as $x | range(1000000) as $y | range(1000000) as $z | empty]",
            "[{a: .[], b: .[], c: .[], d: .[], e: .[], f: .[], g: .[]}] | length",
            "[\"\\(.[])\\(.[])\\(.[])\\(.[])\\(.[])\\(.[])\"] | length",
            "[.[] + .[] + .[] + .[] + .[] + .[]] | length",
            "try repeat(.) catch repeat(.) | empty",
            "label $x | repeat(.) | empty",
            "[range(100000000)] | sort",
        ] {
            let outcome = cut_off(program, b"[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20]");
            if !matches!(
                outcome,
                Err(TransformFailure::TooLong | TransformFailure::TooLarge | TransformFailure::TooDeep)
            ) {
                got_through.push(format!("{program:.60}: {:?}", outcome.map(|output| output.len())));
            }
        }
        assert!(got_through.is_empty(), "{got_through:#?}");
    }

    #[test]
    fn endless_recursion_is_cut_off_before_the_stack_ends() {
        let mut got_through = Vec::new();
        for program in [
            "def f: 1 + f; f",
            "def f: [f]; f",
            "def f: {a: f}; f",
            "def f: f | .; f",
            "def f: try (1 + f) catch .; f",
            "def f: f, f; [f]",
            "def f: \"\\(f)\"; f",
            "def f: if f then 1 else 2 end; f",
            "def f: reduce f as $x (0; .); f",
            "def f: reduce 1 as $x (0; f); f",
            "def f: .[f]; f",
            "def f: f as $x | 1; f",
            "def f: first(f); f",
            "def f: .[0] |= ([.] | f); [1] | f",
            "def f(g): f(g | g); f(.)",
            "def f: label $x | f | .; f",
            "def f: -f; f",
            "def f: f and f; f",
            "def f: f // f; f | f",
            "def f: f as [$x] | 1; f",
            "def f: . as {a: $x} | f | $x; {} | f",
            "def f: [., .] | sort_by(f); f",
            "def f: [., .] | group_by(f); f",
            "def f: [limit(3; f)]; f",
            "def f: foreach f as $x (0; f; f); f",
            "def f: def g: f | g; [g]; f",
            "def f: .[f]?; f",
            "def f: @base64 \"\\(f)\"; f",
            "def f($x): f($x | f(.)); f(.)",
            "def f: (.[] |= ([.] | f)) | f; [1] | f",
            "def f: .. |= (f | .); f",
            "def f: del(.[f]); f",
            "def f: walk(f); f",
            "def f: f as $x | f as $y | $x; f",
            &format!("def f: {}f{}; f", "[".repeat(90), "]".repeat(90)),
            &format!("def f: {}f{}; f", "{a:".repeat(90), "}".repeat(90)),
            &format!("def f: {}f; f", "1+".repeat(90)),
            &format!("def f: {}f{}; f", "\"\\(".repeat(90), ")\"".repeat(90)),
            &format!("def f: {}f{}; f", "first(".repeat(90), ")".repeat(90)),
            &format!("def f: {}f; f", "try ".repeat(90)),
            &format!("def f: {}f|.; f", ".|".repeat(90)),
            &format!("def f: {}f{}; f", "if ".repeat(90), " then 1 end".repeat(90)),
            &format!("def f: {}f{}; f", "reduce ".repeat(60), " as $x (1; 2)".repeat(60)),
            &format!("def f: {}f{}; f", "[[.] | map(".repeat(45), ")]".repeat(45)),
        ] {
            let outcome = cut_off(program, b"[1,2]");
            if !matches!(
                outcome,
                Err(TransformFailure::TooLong | TransformFailure::TooLarge | TransformFailure::TooDeep)
            ) {
                got_through.push(format!("{program:.60}: {:?}", outcome.map(|output| output.len())));
            }
        }
        assert!(got_through.is_empty(), "{got_through:#?}");
    }

    #[test]
    fn memory_is_bounded() {
        let mut got_through = Vec::new();
        for program in [
            "\"a\" * 1000000000000",
            "1000000000000 * \"a\"",
            "\"a\" * 1e300",
            "\"a\" * 100000000000000000000000000",
            ".[0] |= (\"a\" | . *= 1000000000)",
            "reduce range(60) as $i (\"a\"; . + .)",
            "reduce range(60) as $i (\"a\"; \"\\(.)\\(.)\")",
            "reduce range(60) as $i ([1]; . + .)",
            "reduce range(60) as $i (1; [., .])",
            "reduce range(60) as $i (1; [., .]) | tojson",
            "reduce range(60) as $i (1; [., .]) | tostring",
            "(reduce range(60) as $i (1; [., .])) == 1",
            "reduce range(60) as $i (1; [., .]) | error",
            "reduce range(60) as $i ({}; {a: ., b: .}) | [..] | length",
            "reduce range(200) as $i (3; . * .)",
            "[range(1000)] | [combinations(1000)] | length",
            "[limit(1000; repeat(\"x\" * 10000000))]",
            "def f($x): f(\"x\" * 10000000); f(1)",
            "[range(100000000)]",
            "\"a\" * 10000000 | explode",
            "\"a\" * 1000000 | gsub(\"\"; \"b\" * 1000)",
            "[.[] |= (\"a\" * 30000000)]",
            "(\"a\" * 1000000) as $a | $a | [match(\"a*b|a\"; \"g\")] | length",
            "\"a\" * 100000 | test(\"((a{100}){100}){100}b\")",
            "(\"a\" * 1000000) | indices(\"a\" * 500000)",
            "[limit(100000; repeat(1))] | indices([limit(50000; repeat(1))])",
            "[limit(100000; repeat(1))] | .[[limit(50000; repeat(1))]]",
            "[limit(30000; repeat([1, 2]))] as $x | $x | contains($x)",
        ] {
            let outcome = cut_off(program, b"[1,2]");
            if !matches!(
                outcome,
                Err(TransformFailure::TooLong | TransformFailure::TooLarge | TransformFailure::TooDeep)
            ) {
                got_through.push(format!("{program:.60}: {:?}", outcome.map(|output| output.len())));
            }
        }
        assert!(got_through.is_empty(), "{got_through:#?}");
    }

    #[test]
    fn values_cannot_be_nested_without_end() {
        for program in [
            "reduce range(1000000) as $i (0; [.])",
            "reduce range(1000000) as $i (0; {a: .})",
            "setpath([range(100000) | 0]; 1)",
            "setpath([range(100000) | \"a\"]; 1)",
            "\"[\" * 100000 | fromjson",
            "until(false; [.])",
            "def f: [.] | f; f",
        ] {
            let outcome = cut_off(program, b"null");
            assert!(outcome.is_err(), "{program}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_compiles_or_is_refused(program in "[a-c.$|,()\\[\\]{}:\"\\\\ ;+*/=0-9?-]{0,40}") {
            if let Ok(transform) = Program::compile(&program) {
                let _ = transform.run(Duration::from_millis(20), b"{\"a\":[1,\"x\"]}");
            }
        }

        #[test]
        fn identity_gives_back_the_same_json(items in proptest::collection::vec((".*", any::<i64>(), any::<bool>()), 0..8)) {
            let input = json!(items.iter().map(|(text, number, flag)| json!({ "t": text, "n": number, "f": flag })).collect::<Vec<_>>());
            prop_assert_eq!(run(".", &input).unwrap(), input);
        }
    }
}
