//! What goes wrong with things that are kept beside the documents: rules, webhooks, sinks.

use seiketsu_config::values::Id;
use serde_json::Value;

use super::{Author, Once, Remembered, Store, StoreError, WriteError, writing::Writing};

/// Why something was not changed.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no such {0}")]
    Missing(&'static str),
    #[error("there is one with the name {0} already")]
    Exists(Id),
    #[error("it was changed in the meantime: revision {expected} was expected")]
    Changed { expected: u64, revision: u64, current: Value },
    #[error("there are {most} {what} already, and there may be no more{of}", of = of_tenant(.of.as_ref()))]
    Full {
        what: &'static str,
        most: u64,
        /// The tenant that has them; none, if all have them together.
        of: Option<Id>,
    },
    /// It was given for the address that there is, and not for the new one.
    #[error("the {0} that there is was given for another address")]
    OfOther(&'static str),
    /// It is in no state for that.
    #[error("{0}")]
    State(&'static str),
    #[error("the idempotency key was used for another request")]
    KeyUsed,
    /// Not an error: it was done before.
    #[error("the request was carried out before")]
    Repeated(Remembered),
}

fn of_tenant(of: Option<&Id>) -> String {
    of.map_or_else(String::new, |tenant| format!(" of the tenant {tenant}"))
}

impl From<WriteError> for KeepError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Store(error) => Self::Store(error),
            WriteError::KeyUsed => Self::KeyUsed,
            WriteError::Repeated(before) => Self::Repeated(before),
            other => Self::Store(StoreError::corrupt("an answer", &other)),
        }
    }
}

impl From<sea_orm::DbErr> for KeepError {
    fn from(error: sea_orm::DbErr) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// A change in the making, unless it was made before.
    pub(super) async fn keeping(&self, by: &Author, once: Option<&Once>) -> Result<Writing<'_>, KeepError> {
        let writing = self.writing_by(by).await?;
        if let Some(once) = once
            && let Some(before) = writing.repeated(by, once).await?
        {
            return Err(KeepError::Repeated(before));
        }
        Ok(writing)
    }
}

/// Whether it is still what the caller has seen.
pub(super) fn expect(expected: Option<u64>, revision: u64, current: impl FnOnce() -> Value) -> Result<(), KeepError> {
    match expected {
        Some(expected) if expected != revision => Err(KeepError::Changed { expected, revision, current: current() }),
        _ => Ok(()),
    }
}
