//! Usage: taken over from nodes' logs into sums of minutes, hours and days, and read from there.

mod answered;
mod callers;
mod ledger;
mod quotas;
mod sums;

use std::time::Duration;

pub(super) use self::{
    answered::of_tenants,
    callers::Callers,
    sums::{all, counts_of, sums},
};
pub use self::{
    answered::{Answered, InUse},
    callers::{MOST_CALLERS, OTHER},
    quotas::{PeriodUse, QuotaUse},
    sums::{Filter, Gap, Group, Point, Row, Step},
};

/// How long sums are kept, by the step that they are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    pub minutes: Duration,
    pub hours: Duration,
    pub days: Duration,
    /// Of `enterprise_performance_metrics`.
    pub metrics: Duration,
}
