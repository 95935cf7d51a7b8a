//! The storage as Pingora's cache wants it. Which tenant, key and request it is about comes with the key.

use std::{
    any::Any,
    ops::Range,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use pingora_cache::{
    CacheKey, CacheMeta, HitHandler, MissHandler, Storage,
    storage::{HandleHit, HandleMiss, MissFinishType, PurgeOutcome, PurgeTarget, PurgeType},
    trace::SpanHandle,
};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use seiketsu_cache::{
    purge::Sequence,
    storage::{Fill, Lookup, NotFilled},
    stored::{PASS_SECONDS, Parts, Stored},
    storing::Storable,
    time::Timestamp,
    vary::Selection,
};
use tokio::task::yield_now;

use super::request::Asked;

/// Long enough for anything that may be served stale: whether it may is decided before.
const AS_LONG_AS_NEEDED: u32 = 10 * 365 * 24 * 60 * 60;

/// Stored bodies that may have to be compressed are handed on in pieces of so many bytes: a piece takes some 20 ms, and
/// all that the worker serves waits for it.
pub(crate) const PIECE: usize = 64 * 1024;

/// Stateless: everything is in the key.
#[derive(Debug)]
pub(crate) struct Adapter;

/// What is to be stored of a response, once its body is there.
#[derive(Debug)]
pub(crate) struct Storing {
    pub(crate) status: StatusCode,
    pub(crate) storable: Storable,
    pub(crate) since: Sequence,
}

/// What a 304 has made of a stored response.
#[derive(Debug)]
pub(crate) struct Renewal {
    pub(crate) old: Arc<Stored>,
    pub(crate) new: Arc<Stored>,
}

fn asked(key: &CacheKey) -> Result<&Arc<Asked>> {
    let missing = || Error::explain(ErrorType::InternalError, "the key of a request without a look-up");
    key.extensions.get::<Arc<Asked>>().ok_or_else(missing)
}

/// What Pingora knows of a stored response.
fn meta(stored: &Arc<Stored>, asked: &Asked) -> Result<CacheMeta> {
    let now = SystemTime::now();
    let at = Timestamp::from(now);
    let left = stored.rules.remaining(at);
    let fresh_until = match u64::try_from(left) {
        Ok(left) if left > 0 && !stored.rules.no_cache => now + Duration::from_secs(left),
        _ => now - Duration::from_secs(1),
    };
    let on_error = if stored.rules.serves_on_error(&asked.directives, asked.stale, at) { AS_LONG_AS_NEEDED } else { 0 };
    let created = now - Duration::from_secs(stored.rules.age(at));
    let mut meta = CacheMeta::new(fresh_until, created, 0, on_error, head(stored)?);
    meta.extensions_mut().insert(stored.clone());
    Ok(meta)
}

/// The head of a stored response.
pub(crate) fn head(stored: &Stored) -> Result<ResponseHeader> {
    let mut head = ResponseHeader::build(stored.status, Some(stored.headers.len() + 4))?;
    for (name, value) in &stored.headers {
        head.append_header(name, value)?;
    }
    Ok(head)
}

#[async_trait]
impl Storage for Adapter {
    async fn lookup(&'static self, key: &CacheKey, _: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        let asked = asked(key)?;
        match asked.partition.find(&asked.key, &asked.headers, SystemTime::now().into()) {
            Lookup::Found(stored) => Ok(Some((meta(&stored, asked)?, Box::new(Hit::new(stored))))),
            Lookup::OtherVariants | Lookup::Nothing | Lookup::Passes => Ok(None),
        }
    }

    async fn get_miss_handler(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<MissHandler> {
        let asked = asked(key)?.clone();
        let missing = || Error::explain(ErrorType::InternalError, "a response is stored that nobody has looked at");
        let storing = meta.extensions().get::<Arc<Storing>>().ok_or_else(missing)?.clone();
        let announced = meta.headers().get(header::CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse().ok());
        let fill = Fill::new(asked.partition.clone(), asked.max_object, announced);
        let fill = fill.map_err(|reason| not_filled(&asked, reason))?;
        Ok(Box::new(Miss { asked, storing, fill, announced }))
    }

    async fn update_meta(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<bool> {
        let asked = asked(key)?;
        let Some(renewal) = meta.extensions().get::<Arc<Renewal>>() else { return Ok(false) };
        let is_kept = asked.partition.renew(&asked.key, &asked.resource, &renewal.old, &renewal.new);
        asked.kept.store(is_kept, Relaxed);
        Ok(is_kept)
    }

    /// Purges do not come this way.
    async fn purge(&'static self, _: PurgeTarget<'_>, _: PurgeType, _: &SpanHandle) -> Result<PurgeOutcome> {
        Ok(PurgeOutcome::NotFound)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// A stored body that is being read.
struct Hit {
    stored: Arc<Stored>,
    left: Range<usize>,
}

impl Hit {
    fn new(stored: Arc<Stored>) -> Self {
        let left = 0..stored.body.len();
        Self { stored, left }
    }
}

#[async_trait]
impl HandleHit for Hit {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        if self.left.is_empty() {
            return Ok(None);
        }
        if self.left.start > 0 {
            yield_now().await;
        }
        let end = self.left.end.min(self.left.start + PIECE);
        let piece = self.stored.body.slice(self.left.start..end);
        self.left.start = end;
        Ok(Some(piece))
    }

    async fn finish(self: Box<Self>, _: &'static (dyn Storage + Sync), _: &CacheKey, _: &SpanHandle) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let length = self.stored.body.len();
        let end = end.unwrap_or(length).min(length);
        if start > end {
            return Error::e_explain(ErrorType::InternalError, "a part of a stored response that it does not have");
        }
        self.left = start..end;
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// A response whose body is coming.
struct Miss {
    asked: Arc<Asked>,
    storing: Arc<Storing>,
    fill: Fill,
    announced: Option<usize>,
}

#[async_trait]
impl HandleMiss for Miss {
    async fn write_body(&mut self, data: Bytes, _: bool) -> Result<()> {
        self.fill.push(&data).map_err(|reason| not_filled(&self.asked, reason))
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let Self { asked, storing, fill, announced } = *self;
        // Incomplete responses are not stored (RFC 9111 §3.3).
        if announced.is_some_and(|length| length != fill.len()) {
            return Error::e_explain(ErrorType::InternalError, "the response is shorter than it says");
        }
        let size = fill.len();
        let mut headers = storing.storable.headers.clone();
        if storing.status != StatusCode::NO_CONTENT {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
        }
        let stored = Stored::new(Parts {
            status: storing.status,
            headers,
            body: fill.finish(),
            rules: storing.storable.rules.clone(),
            selection: Selection::of(&storing.storable.vary, &asked.headers),
            since: storing.since,
        });
        asked.filled.store(true, Relaxed);
        // Where there is no room for it, it was served all the same, and nobody is to wait for another try.
        if asked.partition.store(&asked.key, &asked.resource, stored) {
            asked.kept.store(true, Relaxed);
        } else {
            leave_out(&asked);
        }
        Ok(MissFinishType::Created(size))
    }
}

/// What is not storable is not waited for, until then.
pub(crate) fn pass_until() -> Timestamp {
    Timestamp::from(SystemTime::now() + Duration::from_secs(PASS_SECONDS))
}

/// What the origin has now is not stored, and what it had before is no longer what it has.
fn leave_out(asked: &Asked) {
    asked.partition.pass(&asked.key, pass_until());
    asked.partition.forget(&asked.key, &asked.resource, &asked.headers);
}

/// Who else waits for what is too large is not to find that out one after the other. What is only crowded out may be
/// stored the next time.
fn not_filled(asked: &Asked, reason: NotFilled) -> Box<Error> {
    if reason == NotFilled::TooLarge {
        leave_out(asked);
    }
    Error::because(ErrorType::InternalError, "storing a response", reason)
}
