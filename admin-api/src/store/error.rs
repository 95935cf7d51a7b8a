//! What can go wrong with the store, and with what is written into it.

use std::{error::Error, fmt, io, path::PathBuf, time::Duration};

use sea_orm::{DbErr, RuntimeErr};
use seiketsu_config::{check::Problem, values::Id};
use uuid::Uuid;

/// Why the store gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store cannot be reached: {0}")]
    Unreachable(#[source] DbErr),
    #[error("the store did not answer within {0:?}")]
    Slow(Duration),
    #[error("the store refused a statement: {0}")]
    Statement(#[source] DbErr),
    /// A row, or a file of the store.
    #[error("what stands in the store cannot be read: {0}")]
    Damaged(#[source] DbErr),
    #[error("{what} in the store cannot be read: {why}")]
    Corrupt { what: String, why: String },
    #[error("the store has {store} schema steps and this release knows {known}: start a newer release")]
    Newer { store: usize, known: usize },
    #[error("{url} is no store: write sqlite:PATH or postgres://USER@HOST/DATABASE")]
    Url { url: String },
    #[error("cannot write {path}: {source}; see that the folder exists and belongs to this user")]
    File { path: PathBuf, source: io::Error },
    #[error("the key from {from}, which the data keys of the store are wrapped with, cannot be read: {why}")]
    Key { from: String, why: String },
    #[error(
        "the data keys of the store do not open with the key that was given: give the one that they were wrapped with, \
         which is the same for all replicas (--key-file or SEIKETSU_ADMIN_KEY; the first replica has made \
         `sealing-key` in its state folder if it was given none). To replace it: seiketsu-admin --key-file NEW \
         rewrap-keys --previous-key-file OLD"
    )]
    WrongKey,
    #[error("{column} of {table} {row} was not sealed for this place, or was altered")]
    Sealed { table: &'static str, column: &'static str, row: String },
    #[error("it is sealed with the key {0}, which another replica has made a moment ago, or which is missing")]
    UnknownKey(Uuid),
    #[error("the token or the rights of the caller were changed before it was their turn")]
    Revoked,
    #[error("the system gives no random numbers")]
    NoRandomness,
}

impl StoreError {
    /// Whether the same request may well succeed later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Slow(_) | Self::UnknownKey(_))
    }

    /// Whether what stands in the store is not what was written.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::Corrupt { .. } | Self::Sealed { .. })
    }

    pub(crate) fn corrupt(what: impl Into<String>, why: &impl fmt::Display) -> Self {
        Self::Corrupt { what: what.into(), why: why.to_string() }
    }
}

impl From<DbErr> for StoreError {
    fn from(error: DbErr) -> Self {
        match &error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Self::Unreachable(error),
            DbErr::Exec(RuntimeErr::SqlxError(inner)) | DbErr::Query(RuntimeErr::SqlxError(inner)) => {
                if is_passing(inner) {
                    Self::Unreachable(error)
                } else if is_damage(inner) {
                    Self::Damaged(error)
                } else {
                    Self::Statement(error)
                }
            }
            DbErr::Type(_) | DbErr::Json(_) => Self::Damaged(error),
            _ => Self::Statement(error),
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::from(DbErr::Conn(RuntimeErr::SqlxError(error.into())))
    }
}

/// Whether an error tells of the connection or the server, and not of the statement.
fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // PostgreSQL, appendix A: connection exceptions, resources, the operator's intervention, a lock that was not
            // to be had, a transaction that gave way to another.
            ["08", "53", "57", "58"].iter().any(|class| code.len() == 5 && code.starts_with(class))
                || matches!(&*code, "55P03" | "40001" | "40P01" | "25P03")
                // The low byte of SQLite's extended codes: busy, locked, I/O, full, cannot be opened.
                || code.parse().is_ok_and(|code: u32| code < 10_000 && matches!(code & 0xff, 5 | 6 | 10 | 13 | 14))
        }),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        _ => false,
    }
}

/// Whether an error tells of what stands in the store.
fn is_damage(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => true,
        // PostgreSQL, appendix A: data and indexes that are corrupted. SQLite: corrupt, and no database.
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            matches!(&*code, "XX001" | "XX002")
                || code.parse().is_ok_and(|code: u32| code < 10_000 && matches!(code & 0xff, 11 | 26))
        }),
        _ => false,
    }
}

/// What is wrong with a document that was to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// None: the head.
    pub tenant: Option<Id>,
    /// From the root of the document.
    pub path: String,
    pub detail: String,
    pub fix: Option<String>,
}

impl Invalid {
    pub(crate) fn new(tenant: Option<&Id>, problem: &Problem) -> Self {
        let detail = match &problem.value {
            Some(value) => format!("{value:?}: {}", problem.rule),
            None => problem.rule.to_string(),
        };
        Self { tenant: tenant.cloned(), path: problem.path.to_string(), detail, fix: Some(problem.rule.fix()) }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tenant {
            Some(tenant) => write!(f, "tenant {tenant}, {}: {}", self.path, self.detail),
            None => write!(f, "{}: {}", self.path, self.detail),
        }
    }
}

impl Error for Invalid {}
