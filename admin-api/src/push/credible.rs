//! What a node may say: one that says more is not the gateway that it says it is, or has a fault. What is out of bounds as a
//! whole ends the connection; of usage, records that cannot be true are left out and told back.

use std::collections::HashSet;

use seiketsu_config::push::{
    Carried, Hello,
    usage::{MOST_NAME_BYTES, MOST_OF_RECORD, MOST_USAGE_RECORDS, UsagePage, UsageRecord},
};
use time::{Duration, OffsetDateTime};

use super::session::End;

const MOST_VERSION_BYTES: usize = 64;
const MOST_SCHEMAS: usize = 100;

/// Ids of logs have 32.
const MOST_LOG_BYTES: usize = 64;

/// Why an order was not carried out.
const MOST_ERROR_BYTES: usize = 2000;

/// Clocks differ; and nodes may be away for long, but not for ever.
const AHEAD: Duration = Duration::minutes(10);
pub(super) const BEHIND: Duration = Duration::days(90);

/// The largest number of a record: more than will ever be written, and far from where numbers end.
const MOST_SEQUENCE: u64 = 1 << 53;

pub(super) fn hello(hello: &Hello) -> Result<(), End> {
    let is_version = hello.version.len() <= MOST_VERSION_BYTES && !hello.version.contains(char::is_control);
    let fault = if !is_version {
        "its version is longer than one is"
    } else if hello.schemas.len() > MOST_SCHEMAS {
        "it names more forms of documents than there are"
    } else {
        return Ok(());
    };
    Err(End::Excess(fault.to_owned()))
}

/// As much of it as is kept.
pub(super) fn carried(mut carried: Carried) -> Carried {
    if let Some(error) = &mut carried.error {
        error.truncate(error.floor_char_boundary(MOST_ERROR_BYTES));
    }
    carried
}

/// Whether it is one that a log can have.
pub(super) fn page(page: &UsagePage) -> Result<(), End> {
    let UsagePage { log, missing: _, records, next } = page;
    let ascends = records.is_sorted_by(|one, after| one.sequence < after.sequence);
    let fault = if records.len() > MOST_USAGE_RECORDS {
        "a page of usage has more records than one may have"
    } else if log.is_empty() || log.len() > MOST_LOG_BYTES || !log.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        "a page of usage is of no log"
    } else if !ascends || *next > MOST_SEQUENCE || records.last().is_some_and(|last| last.sequence > *next) {
        "the records of a page of usage have no order"
    } else {
        return Ok(());
    };
    Err(End::Excess(fault.to_owned()))
}

/// Leaves out what cannot be true, and says why. `tenants`: those that there are or were.
pub(super) fn sift(page: &mut UsagePage, tenants: &HashSet<String>, now: OffsetDateTime) -> Option<String> {
    let span = (now - BEHIND).unix_timestamp()..(now + AHEAD).unix_timestamp();
    let mut first = None;
    let before = page.records.len();
    page.records.retain(|record| match fault(record, tenants, &span) {
        None => true,
        Some(fault) => {
            first.get_or_insert((record.sequence, fault));
            false
        }
    });
    let (sequence, fault) = first?;
    let many = before - page.records.len();
    Some(format!("{many} records cannot be true; {sequence} is the first of them: {fault}"))
}

fn fault(record: &UsageRecord, tenants: &HashSet<String>, span: &std::ops::Range<i64>) -> Option<&'static str> {
    let UsageRecord { sequence: _, second, tenant, route, consumer, counts } = record;
    if !tenants.contains(tenant) {
        return Some("there is no such tenant, and was none");
    }
    if route.len() > MOST_NAME_BYTES || consumer.len() > MOST_NAME_BYTES {
        return Some("the name of the route or of the consumer is too long");
    }
    if !i64::try_from(*second).is_ok_and(|second| span.contains(&second)) {
        return Some("it is of a time to come, or of one that is long gone: set the node's clock");
    }
    (counts.most() > MOST_OF_RECORD).then_some("its numbers are larger than one second can hold")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use seiketsu_config::push::usage::Counts;

    use super::*;

    #[test]
    fn usage_that_cannot_be_true_does_not_count_and_the_rest_does() {
        let now = OffsetDateTime::now_utc();
        let second = |ago: Duration| u64::try_from((now - ago).unix_timestamp()).unwrap();
        let record = |sequence| UsageRecord {
            sequence,
            second: second(Duration::SECOND),
            tenant: "acme".to_owned(),
            counts: Counts { admitted: 1, ..Counts::default() },
            ..UsageRecord::default()
        };
        let much = Counts { bytes_out: MOST_OF_RECORD + 1, ..Counts::default() };
        let records = vec![
            record(1),
            UsageRecord { tenant: "nobody".to_owned(), ..record(2) },
            UsageRecord { consumer: "x".repeat(MOST_NAME_BYTES + 1), ..record(3) },
            UsageRecord { route: "x".repeat(MOST_NAME_BYTES + 1), ..record(4) },
            UsageRecord { second: second(-Duration::HOUR), ..record(5) },
            UsageRecord { second: second(Duration::days(91)), ..record(6) },
            UsageRecord { second: u64::MAX, ..record(7) },
            UsageRecord { counts: much, ..record(8) },
            UsageRecord { second: second(Duration::days(89)), ..record(9) },
        ];
        let mut page = UsagePage { log: "0a".to_owned(), missing: None, records, next: 9 };
        let why = sift(&mut page, &["acme".to_owned()].into(), now).unwrap();
        assert!(why.contains("7 records") && why.contains("2 is the first of them: there is no such tenant"), "{why}");
        assert_eq!(page.records.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1, 9]);
        assert_eq!(sift(&mut page, &["acme".to_owned()].into(), now), None);
    }

    #[test]
    fn a_page_that_no_log_has_is_none() {
        let of = |log: &str, sequences: &[u64], next| {
            let record = |sequence: &u64| UsageRecord { sequence: *sequence, ..UsageRecord::default() };
            let records = sequences.iter().map(record).collect();
            page(&UsagePage { log: log.to_owned(), missing: None, records, next }).is_ok()
        };
        assert!(of("0a", &[1, 2, 9], 9) && of("0a", &[], 9) && of("0a", &(1..=1000).collect::<Vec<_>>(), 1000));
        assert!(!of("", &[1], 1) && !of(&"a".repeat(65), &[1], 1) && !of("a\0", &[1], 1));
        assert!(!of("0a", &[1, 1], 1) && !of("0a", &[2, 1], 2) && !of("0a", &[2], 1) && !of("0a", &[], u64::MAX));
        assert!(!of("0a", &(1..=1001).collect::<Vec<_>>(), 1001));
    }
}
