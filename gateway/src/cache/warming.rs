//! Lists of URLs, and how far they are.

/// What is being warmed.
#[derive(Debug, Default)]
pub(crate) struct Warming;
