//! JSON bodies transformed by jq programs.
//!
//! A program comes from a tenant and runs next to other tenants' traffic, and the interpreter (jaq)
//! has no bounds of its own: `def f: f; f` never ends, `"a" * 1e12` takes all memory, `def f: 1 + f;
//! f` overflows the stack and so ends the process, `halt` ends it at once, and `env` reads the
//! gateway's environment. So a program is never run as written:
//!
//! - It is compiled against a library without `env`, `input`, `halt`, `debug`, `stderr`, local time
//!   and modules. They do not exist for it.
//! - While compiling, checkpoints are woven into it and into the library ([`instrument`]): at the
//!   start of every definition, in every loop, after every stream, wherever a value is made. At each,
//!   deadline, stack, and the bytes made so far are checked, and values that got too large or too deep
//!   end the run. What a program does between two checkpoints is bounded by its length and by the
//!   size of the values that passed the last ([`budget`]).
//! - It runs on a blocking thread, a few at a time ([`Transformer`]), so that no program holds up the
//!   workers that move traffic.
//!
//! Whatever a program does, its run ends within [`DEADLINE`] and one bounded step, and costs its own
//! tenant an error.

mod budget;
mod instrument;
mod output;
mod program;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::Semaphore;

pub use self::program::{BodyTransform, ProgramError};
use super::{ProblemKind, Refusal};

/// How long one run may take.
pub const DEADLINE: Duration = Duration::from_millis(250);
/// How long a run waits for its turn before it is refused.
pub const MAX_WAIT: Duration = Duration::from_secs(1);

/// Why a body could not be transformed. What it says is for the log of the tenant; clients get
/// [`TransformFailure::refusal`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransformFailure {
    #[error("the body is not JSON (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("the program ended with an error: {message}")]
    Program { message: String },
    #[error(
        "the program gave no output: it must give exactly one; use `// null` or if-then-else where nothing may match"
    )]
    NoOutput,
    #[error("the program gave more than one output: it must give exactly one; write [ … ] around it to make a list")]
    SeveralOutputs,
    #[error("the program's output is not JSON: {0}")]
    InvalidOutput(&'static str),
    #[error("the program took longer than {} ms", DEADLINE.as_millis())]
    TooLong,
    #[error("the program made too much data")]
    TooLarge,
    #[error("the program went too deep: its recursion does not end, or its values are nested too far")]
    TooDeep,
    #[error("the program stopped unexpectedly")]
    Stopped,
    #[error("too many bodies are being transformed at once")]
    Overloaded,
}

/// Whose body it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    OfRequest,
    OfResponse,
}

impl TransformFailure {
    /// What the client is told. A failure on a response is the gateway's or upstream's, not the client's.
    pub fn refusal(&self, body: Body) -> Refusal {
        match (self, body) {
            (Self::Overloaded, _) => {
                Refusal::new(ProblemKind::TransformOverloaded, "Too many bodies are being transformed; try again.")
            }
            (Self::NotJson { line, column }, Body::OfRequest) => Refusal::new(
                ProblemKind::BodyUntransformable,
                format!("The body must be JSON; see line {line}, column {column}."),
            ),
            (_, Body::OfRequest) => Refusal::new(
                ProblemKind::BodyUntransformable,
                "The body is not of a form that can be translated for this API.",
            ),
            (_, Body::OfResponse) => Refusal::new(
                ProblemKind::UpstreamBodyUntransformable,
                "The answer of the service behind this API could not be translated.",
            ),
        }
    }
}

/// Runs programs on blocking threads, a bounded number at a time.
#[derive(Debug, Clone)]
pub struct Transformer {
    turns: Arc<Semaphore>,
}

impl Transformer {
    /// `at_once`: how many programs run at the same time; at least one does. Half of the cores leaves
    /// room for traffic.
    pub fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once.max(1))) }
    }

    /// Transforms a whole body. Never blocks the worker it is called on. If the caller goes away, a
    /// run that has begun goes on to its end, and keeps its turn until then.
    pub async fn run(&self, transform: Arc<BodyTransform>, body: Bytes) -> Result<Bytes, TransformFailure> {
        let turn = tokio::time::timeout(MAX_WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        let Ok(Ok(turn)) = turn else { return Err(TransformFailure::Overloaded) };
        let run = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            transform.run(&body)
        });
        run.await.unwrap_or(Err(TransformFailure::Stopped))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn compiled(program: &str) -> Arc<BodyTransform> {
        Arc::new(BodyTransform::compile(program).unwrap())
    }

    #[tokio::test]
    async fn a_body_is_transformed_off_the_worker() {
        let transformer = Transformer::new(2);
        let out = transformer.run(compiled("{sum: map(.n) | add}"), Bytes::from_static(br#"[{"n":1},{"n":2}]"#)).await;
        assert_eq!(out.unwrap(), r#"{"sum":3}"#);
    }

    #[tokio::test]
    async fn the_worker_goes_on_while_a_program_runs_away() {
        let transformer = Transformer::new(1);
        let endless = tokio::spawn({
            let transformer = transformer.clone();
            async move { transformer.run(compiled("def f: f; f"), Bytes::from_static(b"1")).await }
        });
        let mut turns = 0_u32;
        while !endless.is_finished() {
            turns += 1;
            tokio::task::yield_now().await;
        }
        assert_eq!(endless.await.unwrap(), Err(TransformFailure::TooLong));
        assert!(turns > 1);
        let after = transformer.run(compiled("."), Bytes::from_static(b"1")).await;
        assert_eq!(after.unwrap(), "1");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_for_a_turn_is_refused() {
        let transformer = Transformer::new(1);
        let _held = Arc::clone(&transformer.turns).acquire_owned().await.unwrap();
        let outcome = transformer.run(compiled("."), Bytes::from_static(b"1")).await;
        assert_eq!(outcome, Err(TransformFailure::Overloaded));
        assert_eq!(TransformFailure::Overloaded.refusal(Body::OfRequest).status(), 503);
    }

    #[test]
    fn clients_are_told_whose_fault_it_is_and_nothing_of_the_program() {
        let failure = TransformFailure::Program { message: "cannot index secret".to_owned() };
        let on_request = failure.refusal(Body::OfRequest);
        let on_response = failure.refusal(Body::OfResponse);
        assert_eq!((on_request.status().as_u16(), on_response.status().as_u16()), (422, 502));
        assert!(!on_request.detail.contains("secret") && !on_response.detail.contains("secret"));
    }
}
