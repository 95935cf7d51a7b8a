//! A span of time that is asked about, and the steps that it is told in.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::Problem;
use crate::store::usage::Step;

/// Steps in a span.
const MOST_STEPS: i64 = 10_000;

/// 9999-12-31T00:00:00Z: the last day that has a next one.
const LAST: i64 = 253_402_214_400;

/// From the beginning of one step to that of another, as Unix times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: i64,
    pub(super) to: i64,
}

/// Reads a moment of a query.
pub(super) fn moment(name: &str, text: Option<&str>) -> Result<Option<OffsetDateTime>, Problem> {
    let read = |text: &str| {
        // A plus sign that nobody has escaped is a space by now.
        OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339)
            .ok()
            .filter(|moment| (0..=LAST).contains(&moment.unix_timestamp()))
            .ok_or_else(|| Problem::bad_request(format!("{name}: write a moment as in 2026-05-31T14:00:00Z")))
    };
    text.map(read).transpose()
}

/// The span that is asked for: whole steps. What is absent is now, and an hour, a day or a month before it.
pub(super) fn span(from: Option<&str>, to: Option<&str>, step: Step, now: OffsetDateTime) -> Result<Span, Problem> {
    let usual = match step {
        Step::Minute => 3600,
        Step::Hour => 24 * 3600,
        Step::Day => 30 * 24 * 3600,
    };
    let to = moment("to", to)?.unwrap_or(now).unix_timestamp();
    let from = moment("from", from)?.map_or(to - usual, OffsetDateTime::unix_timestamp);
    if from >= to {
        return Err(Problem::bad_request("from: it must be before `to`"));
    }
    // The step that an end lies in belongs to it.
    let (from, to) = (step.start(from), step.start(to - 1) + step.seconds());
    if (to - from) / step.seconds() > MOST_STEPS {
        return Err(Problem::bad_request(format!(
            "from: more than {MOST_STEPS} steps; take a longer step, or ask for less"
        )));
    }
    Ok(Span { from, to })
}

/// A Unix time in RFC 3339.
pub(super) fn text(second: i64) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    moment.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_span_is_of_whole_steps_and_not_too_many() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        let of = |from, to, step| span(from, to, step, now).map(|span| (text(span.from), text(span.to))).ok();
        let minute = of(Some("2026-05-31T14:00:59Z"), Some("2026-05-31T16:02:00+02:00"), Step::Minute).unwrap();
        assert_eq!(minute, ("2026-05-31T14:00:00Z".to_owned(), "2026-05-31T14:02:00Z".to_owned()));
        let day = of(None, None, Step::Day).unwrap();
        assert_eq!(day, ("1969-12-13T00:00:00Z".to_owned(), "1970-01-13T00:00:00Z".to_owned()));
        assert_eq!(of(None, None, Step::Hour).map(|_| ()), Some(()));
        assert_eq!(of(Some("2026-05-31T14:00:59Z"), Some("2026-05-31T14:00:59Z"), Step::Day), None);
        assert_eq!(of(Some("1990-05-31T14:00:59Z"), Some("2026-05-31T14:00:59Z"), Step::Hour), None);
        for wrong in ["", "now", "2026-05-31", "1900-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00"] {
            assert!(moment("from", Some(wrong)).is_err(), "{wrong}");
        }
        assert!(moment("from", Some("2026-05-31T16:02:00 02:00")).is_ok());
    }
}
