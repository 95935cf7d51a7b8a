//! Lists come in pages. A cursor is the place where the next page begins; callers pass it back as they got it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Problem;

const MOST: u64 = 1000;
const USUAL: u64 = 100;

/// Which page.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// `next` of the page before.
    pub(super) cursor: Option<String>,
    /// How many at most: 1 to 1000, usually 100.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<u64>,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Where the next page begins; none, if this is the last one.
    pub(super) next: Option<String>,
}

/// How many rows are asked for.
pub(super) fn limit(limit: Option<u64>) -> Result<u64, Problem> {
    match limit {
        None => Ok(USUAL),
        Some(limit @ 1..=MOST) => Ok(limit),
        Some(_) => Err(Problem::bad_request(format!("limit: write 1 to {MOST}"))),
    }
}

/// The place after which the page begins.
pub(super) fn after<T: std::str::FromStr>(cursor: Option<&str>) -> Result<Option<T>, Problem> {
    let read = |cursor: &str| String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?.parse().ok();
    cursor
        .map(|cursor| read(cursor).ok_or_else(|| Problem::bad_request("cursor: send it as `next` of a page gave it")))
        .transpose()
}

/// A place, as callers pass it back.
pub(super) fn cursor(place: &str) -> String {
    URL_SAFE_NO_PAD.encode(place)
}

impl<T> Page<T> {
    /// From rows of which one more was asked for than belong on the page.
    pub(super) fn of<R>(mut rows: Vec<R>, limit: u64, place: impl Fn(&R) -> String, item: impl Fn(R) -> T) -> Self {
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > most;
        rows.truncate(most);
        let next = rows.last().filter(|_| more).map(|last| cursor(&place(last)));
        Self { items: rows.into_iter().map(item).collect(), next }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_cursor_leads_to_the_next_page() {
        let page = Page::of(vec![1, 2, 3], 2, ToString::to_string, |row| row);
        assert_eq!(page.items, [1, 2]);
        assert_eq!(after::<u64>(page.next.as_deref()).unwrap(), Some(2));
        assert!(Page::of(vec![1, 2], 2, ToString::to_string, |row| row).next.is_none());
        assert!(after::<u64>(Some("?")).is_err());
        assert!(after::<u64>(Some(&URL_SAFE_NO_PAD.encode("x"))).is_err());
        assert!(limit(Some(0)).is_err() && limit(Some(1001)).is_err());
    }
}
