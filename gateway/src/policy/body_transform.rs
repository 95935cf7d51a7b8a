//! JSON bodies transformed by jq programs.
//!
//! A program comes from a tenant and runs next to other tenants' traffic, and the interpreter (jaq)
//! has no bounds of its own: `def f: f; f` never ends, `"a" * 1e12` takes all memory, `def f: 1 + f;
//! f` overflows the stack and so ends the process, `halt` ends it at once, and `env` reads the
//! gateway's environment. So a program is never run as written:
//!
//! - It is compiled against a library without `env`, `input`, `halt`, `debug`, `stderr`, local time
//!   and modules. They do not exist for it.
//! - While compiling, checkpoints are woven into it and into the library (`instrument`): at the
//!   start of every definition, in every loop, after every stream, wherever a value is made. At each,
//!   deadline, stack, and the bytes made so far are checked, and values that got too large or too deep
//!   end the run. What a program does between two checkpoints is bounded by its length and by the
//!   size of the values that passed the last (`budget`).
//! - It runs on a blocking thread, a few runs at a time ([`BodyTransform::run`]), so that no program
//!   holds up the workers that move traffic, and programs take turns, so that none shuts out another.
//!   Only where the proxy cannot wait, it runs on the worker, with a fraction of the time
//!   ([`BodyTransform::run_here`]).
//!
//! Whatever a program does, its run ends within its deadline and one bounded step, and costs its own
//! tenant an error.

mod budget;
mod instrument;
mod output;
mod program;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
    thread::available_parallelism,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{AcquireError, Semaphore};

pub use self::program::BodyTransformError;
use self::program::Program;
use super::Refusal;
use crate::respond::problem::ProblemKind;

/// How long one run may take on a blocking thread.
pub const DEADLINE: Duration = Duration::from_millis(250);
/// How long one run may take on a worker, where it holds up other requests.
pub const DEADLINE_HERE: Duration = Duration::from_millis(20);
/// Stack that a thread must have on which programs run. Evaluation stays far below (the tests make do
/// with a quarter), and what is not touched costs address space only.
pub const STACK_BYTES: usize = 16 << 20;
/// How long a run waits for its turn before it is refused.
pub const MAX_WAIT: Duration = Duration::from_secs(1);

/// Runs that may go on at once in this process, whose cores they share.
static TURNS: LazyLock<Arc<Semaphore>> =
    LazyLock::new(|| Arc::new(Semaphore::new(available_parallelism().map_or(1, std::num::NonZero::get))));

/// A jq program, compiled, with checkpoints in it.
#[derive(Debug, Clone)]
pub struct BodyTransform {
    program: Arc<Program>,
    turns: Arc<Semaphore>,
}

impl BodyTransform {
    /// Takes some milliseconds: not for an async worker.
    pub fn compile(program: &str) -> Result<Self, BodyTransformError> {
        let at_once = available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Ok(Self { program: Arc::new(Program::compile(program)?), turns: Arc::new(Semaphore::new(at_once)) })
    }

    /// Transforms a whole body. Never blocks the worker it is called on. At most as many runs go on at
    /// once as there are cores, and half as many of one program. If the caller goes away, a run that
    /// has begun goes on to its end, and keeps its turn until then.
    pub async fn run(&self, body: Bytes) -> Result<Bytes, TransformFailure> {
        // First among the runs of the same program, then among all: programs take turns, however
        // many runs of one are waiting.
        let turns = async {
            let own = Arc::clone(&self.turns).acquire_owned().await?;
            Ok::<_, AcquireError>((own, Arc::clone(&TURNS).acquire_owned().await?))
        };
        let Ok(Ok(turns)) = tokio::time::timeout(MAX_WAIT, turns).await else {
            return Err(TransformFailure::Overloaded);
        };
        let program = Arc::clone(&self.program);
        let run = tokio::task::spawn_blocking(move || {
            let _turns = turns;
            program.run(DEADLINE, &body)
        });
        run.await.unwrap_or(Err(TransformFailure::Stopped))
    }

    /// Transforms a whole body on this very thread, within [`DEADLINE_HERE`]. For hooks that cannot
    /// wait, on threads with [`STACK_BYTES`].
    pub fn run_here(&self, body: &[u8]) -> Result<Bytes, TransformFailure> {
        // A bug of the interpreter must not end whatever else the caller is in the middle of.
        catch_unwind(AssertUnwindSafe(|| self.program.run(DEADLINE_HERE, body)))
            .unwrap_or(Err(TransformFailure::Stopped))
    }
}

/// Why a body could not be transformed. What it says is for the log; clients get
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
    #[error("the program took too long")]
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
    /// What the client is told. A failure on a response is the gateway's or the upstream's, not the client's.
    pub fn refusal(&self, body: Body) -> Refusal {
        match (self, body) {
            (Self::Overloaded, _) => {
                Refusal::new(ProblemKind::Overloaded, "Too many bodies are being transformed; try again.")
            }
            (Self::NotJson { line, column }, Body::OfRequest) => Refusal::new(
                ProblemKind::ValidationFailed,
                format!("The body must be JSON; see line {line}, column {column}."),
            ),
            (_, Body::OfRequest) => Refusal::new(
                ProblemKind::ValidationFailed,
                "The body is not of a form that can be translated for this API.",
            ),
            (_, Body::OfResponse) => Refusal::new(
                ProblemKind::UpstreamError,
                "The answer of the service behind this API could not be translated.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn compiled(program: &str) -> BodyTransform {
        BodyTransform::compile(program).unwrap()
    }

    #[tokio::test]
    async fn a_body_is_transformed_off_the_worker() {
        let out = compiled("{sum: map(.n) | add}").run(Bytes::from_static(br#"[{"n":1},{"n":2}]"#)).await;
        assert_eq!(out.unwrap(), r#"{"sum":3}"#);
    }

    #[tokio::test]
    async fn the_worker_goes_on_while_a_program_runs_away() {
        let endless = compiled("def f: f; f");
        let run = tokio::spawn({
            let endless = endless.clone();
            async move { endless.run(Bytes::from_static(b"1")).await }
        });
        let mut turns = 0_u32;
        while !run.is_finished() {
            turns += 1;
            tokio::task::yield_now().await;
        }
        assert_eq!(run.await.unwrap(), Err(TransformFailure::TooLong));
        assert!(turns > 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_for_a_turn_is_refused_and_only_of_the_same_program() {
        let (busy, other) = (compiled("."), compiled("."));
        let all = u32::try_from(busy.turns.available_permits()).unwrap();
        let _held = Arc::clone(&busy.turns).acquire_many_owned(all).await.unwrap();
        assert_eq!(busy.run(Bytes::from_static(b"1")).await, Err(TransformFailure::Overloaded));
        assert_eq!(other.run(Bytes::from_static(b"1")).await.unwrap(), "1");
        assert_eq!(TransformFailure::Overloaded.refusal(Body::OfRequest).status(), 503);
    }

    #[test]
    fn on_a_worker_a_program_gets_little_time() {
        assert_eq!(compiled(".+1").run_here(b"1").unwrap(), "2");
        assert_eq!(compiled("def f: f; f").run_here(b"1"), Err(TransformFailure::TooLong));
    }

    #[test]
    fn clients_are_told_whose_fault_it_is_and_nothing_of_the_program() {
        let failure = TransformFailure::Program { message: "cannot index secret".to_owned() };
        let on_request = failure.refusal(Body::OfRequest);
        let on_response = failure.refusal(Body::OfResponse);
        assert_eq!((on_request.status().as_u16(), on_response.status().as_u16()), (400, 502));
        assert!(!on_request.detail.contains("secret") && !on_response.detail.contains("secret"));
    }
}
