//! `GET /usage?after=…&limit=…&wait=…`: what callers have used, second by second.
//!
//! | parameter | |
//! |---|---|
//! | `after` | `next` of the answer before. Absent: after what was taken over |
//! | `limit` | records at most, up to 10000; 1000 if absent |
//! | `wait` | seconds to wait for a record if there is none, up to 60; 0 if absent |
//!
//! The answer has `log`, `records`, `next`, and `missing` where records should come first that are no longer there,
//! with the first and last of their numbers. A record is named by `log` and its `sequence`; numbers of one log only
//! grow. Whoever stores records by that name and asks with `next` as it was stored has each of them once.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use http::StatusCode;
use serde::Serialize;
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::{Answer, OperationsState, respond};
use crate::{
    respond::problem::ProblemKind,
    telemetry::usage::{Cursor, Page, TakeoverError},
};

const LIMIT: usize = 1000;
const MOST_LIMIT: usize = 10_000;
const MOST_WAIT: u64 = 60;

struct Parameters {
    after: Option<Cursor>,
    limit: usize,
    wait: Duration,
}

#[derive(Serialize)]
struct Body<'a> {
    log: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Missing>,
    records: Vec<&'a RawValue>,
    next: &'a Cursor,
}

/// Sequence numbers, both of them among the missing.
#[derive(Serialize)]
struct Missing {
    from: u64,
    through: u64,
}

pub(super) async fn get(state: &OperationsState, query: Option<&str>) -> Answer {
    let Parameters { after, limit, wait } = match parameters(query.unwrap_or_default()) {
        Ok(parameters) => parameters,
        Err(detail) => return respond::problem(ProblemKind::BadRequest, detail),
    };
    let page = match read(state, after, limit).await {
        Ok(page) if page.records == 0 && page.missing.is_none() && !wait.is_zero() => {
            state.usage.wait(&page.next, wait).await;
            read(state, Some(page.next), limit).await
        }
        page => page,
    };
    match page {
        Ok(page) => answer(&page),
        Err(error) => refused(&error),
    }
}

async fn read(state: &OperationsState, after: Option<Cursor>, limit: usize) -> Result<Page, TakeoverError> {
    let usage = state.usage.clone();
    let read = tokio::task::spawn_blocking(move || usage.read(after.as_ref(), limit));
    read.await.unwrap_or_else(|error| Err(TakeoverError::Io(error.into())))
}

fn answer(page: &Page) -> Answer {
    let lines = page.lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let Ok(records) = lines.map(serde_json::from_slice).collect::<Result<Vec<&RawValue>, _>>() else {
        return respond::problem(ProblemKind::Internal, "A record in the log is not JSON: the log was changed.");
    };
    let missing = page.missing.map(|(from, through)| Missing { from, through });
    respond::json(StatusCode::OK, &Body { log: &page.next.log, missing, records, next: &page.next })
}

fn parameters(query: &str) -> Result<Parameters, String> {
    let mut parameters = Parameters { after: None, limit: LIMIT, wait: Duration::ZERO };
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "after" => parameters.after = Some(value.parse().map_err(|error| format!("`after`: {error}."))?),
            "limit" => parameters.limit = number("limit", &value, &(1..=MOST_LIMIT))?,
            "wait" => parameters.wait = Duration::from_secs(number("wait", &value, &(0..=MOST_WAIT))?),
            _ => return Err("The parameters are `after`, `limit` and `wait`.".to_owned()),
        }
    }
    Ok(parameters)
}

fn number<N: FromStr + PartialOrd + Display>(name: &str, text: &str, bounds: &RangeInclusive<N>) -> Result<N, String> {
    let number = text.parse().ok().filter(|number| bounds.contains(number));
    number.ok_or_else(|| format!("`{name}` is a whole number between {} and {}.", bounds.start(), bounds.end()))
}

pub(super) fn refused(error: &TakeoverError) -> Answer {
    let kind = match error {
        TakeoverError::Off => ProblemKind::NoRoute,
        TakeoverError::OtherLog(_) | TakeoverError::Beyond { .. } => ProblemKind::BadRequest,
        TakeoverError::Io(_) => ProblemKind::Internal,
    };
    respond::problem(kind, error.to_string())
}
