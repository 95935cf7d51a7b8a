//! Sends the audit trail to where others look at it: by syslog over TLS (RFC 5424, RFC 5425), or as OCSF events by HTTP.
//!
//! The trail in the store is the spool: a sink has a cursor, which is moved on when entries were taken, so that none is
//! lost, whatever ends, and some may come twice. Syslog has no answers. So each batch is a TLS session of its own, which
//! ends with the receiver's `close_notify` (RFC 5425, section 4.4): it comes after everything was read.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, header};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::rustls;
use url::Url;
use uuid::Uuid;

use crate::{
    outbound::{self, Outbound, OutboundError, Reach},
    store::{
        Store, StoreError,
        audit::AuditRow,
        siem::{Credentials, SiemSink},
    },
};

/// The scheme of addresses of syslog over TLS, and its port (RFC 5425, section 4.1).
pub(crate) const SYSLOGS: &str = "syslogs";
const SYSLOG_PORT: u16 = 6514;

/// To take a batch.
const BATCH_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the head of the chain is sent, also where there is nothing new: then a cut end shows there too.
const HEAD_INTERVAL: Duration = Duration::from_mins(10);

/// After a failure; doubled up to the longest.
const PAUSE: Duration = Duration::from_secs(1);
const MOST_PAUSE: Duration = Duration::from_mins(1);

/// Facility 13, "log audit"; severities informational and warning (RFC 5424, section 6.2.1).
const DONE: u8 = 13 * 8 + 6;
const REFUSED: u8 = 13 * 8 + 4;

#[derive(Debug, thiserror::Error)]
enum SinkError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("what was sent was not taken: {0}")]
    Taken(std::io::Error),
    #[error("nothing was taken for {} s", BATCH_TIMEOUT.as_secs())]
    Slow,
    #[error("it answered {status}: {body}")]
    Answer { status: u16, body: String },
    #[error("its address cannot be sent to: {0}")]
    Address(&'static str),
    #[error("{0}")]
    Pem(String),
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// What is wrong with an address or the certificates of a sink, with its place.
pub(crate) fn fault(
    outbound: &Outbound,
    url: &Url,
    ca: Option<&str>,
    identity: Option<(&str, &str)>,
) -> Option<(&'static str, String)> {
    if let Some(fault) = url_fault(outbound, url) {
        return Some(("url", fault.to_owned()));
    }
    if let Some(Err(error)) = ca.map(certificates) {
        return Some(("ca", error.to_string()));
    }
    let read = config(rustls::RootCertStore::empty().into(), None, Some(identity?));
    read.err().map(|error| ("certificate", error.to_string()))
}

fn url_fault(outbound: &Outbound, url: &Url) -> Option<&'static str> {
    let is_syslog = url.scheme() == SYSLOGS && url.host_str().is_some_and(|host| !host.is_empty());
    let is_http = url.scheme() == "https" || (url.scheme() == "http" && outbound.fault(url).is_none());
    let is_so = (is_syslog || is_http) && url.username().is_empty() && url.password().is_none();
    (!is_so).then_some("it is neither syslogs://host:port nor https://host/path")
}

/// What the leader sends.
#[derive(Debug, Default)]
pub(crate) struct Exporter {
    sinks: HashMap<Uuid, State>,
}

#[derive(Debug, Default)]
struct State {
    running: Option<JoinHandle<bool>>,
    head_at: Option<Instant>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Drop for State {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }
}

impl Exporter {
    /// Another replica leads.
    pub(crate) fn stop(&mut self) {
        self.sinks.clear();
    }

    /// Begins with every sink that is not at work.
    pub(crate) async fn round(&mut self, store: &Store, outbound: &Outbound) -> Result<(), StoreError> {
        let sinks = store.siem_sinks().await?;
        self.sinks.retain(|id, _| sinks.iter().any(|sink| sink.id == *id && sink.enabled));
        for sink in sinks.into_iter().filter(|sink| sink.enabled) {
            let state = self.sinks.entry(sink.id).or_default();
            state.look().await;
            if state.running.is_some() || state.not_before.is_some_and(|not_before| not_before > Instant::now()) {
                continue;
            }
            let head = state.head_at.is_none_or(|at| at.elapsed() >= HEAD_INTERVAL);
            state.running = Some(tokio::spawn(run(store.clone(), outbound.clone(), sink, head)));
            if head {
                state.head_at = Some(Instant::now());
            }
        }
        Ok(())
    }
}

impl State {
    async fn look(&mut self) {
        if !self.running.as_ref().is_some_and(JoinHandle::is_finished) {
            return;
        }
        let Some(running) = self.running.take() else { return };
        if running.await.unwrap_or(false) {
            (self.failures, self.not_before) = (0, None);
        } else {
            let pause = PAUSE.saturating_mul(1 << self.failures.min(10)).min(MOST_PAUSE);
            self.failures += 1;
            self.not_before = Some(Instant::now() + pause);
            self.head_at = None;
        }
    }
}

/// Whether everything was taken.
async fn run(store: Store, outbound: Outbound, sink: SiemSink, head: bool) -> bool {
    let Err(error) = export(&store, &outbound, &sink, head).await else { return true };
    tracing::warn!(sink = %sink.name, %error, "the audit trail cannot be sent; trying again");
    if let Err(error) = store.sink_failed(&sink, &error.to_string()).await {
        tracing::debug!(%error, "cannot keep that a sink failed");
    }
    false
}

async fn export(store: &Store, outbound: &Outbound, sink: &SiemSink, head: bool) -> Result<(), SinkError> {
    let mut delivered = sink.delivered;
    let mut rows = store.audit_after(delivered).await?;
    if rows.is_empty() && !head {
        return Ok(());
    }
    // What is allowed may have changed since it was made, and the row too.
    if let Some(fault) = url_fault(outbound, &sink.url) {
        return Err(SinkError::Address(fault));
    }
    let credentials = store.sink_credentials(sink).await?;
    let identity = sink.certificate.as_deref().zip(credentials.private_key.as_ref().map(ExposeSecret::expose_secret));
    let outbound = outbound.with(config(outbound.roots(), sink.ca.as_deref(), identity)?);
    while let Some(last) = rows.last().map(|row| row.number) {
        send(sink, &credentials, &outbound, &Batch::of(&rows)).await?;
        store.sink_took(sink.id, last).await?;
        delivered = last;
        rows = store.audit_after(delivered).await?;
    }
    if head {
        let (number, hash) = store.audit_head().await?;
        send(sink, &credentials, &outbound, &Batch::head(number, &hash)).await?;
        store.sink_took(sink.id, delivered).await?;
    }
    Ok(())
}

/// The same for both kinds of sinks.
struct Batch {
    syslog: Vec<u8>,
    ocsf: Value,
}

impl Batch {
    fn of(rows: &[AuditRow]) -> Self {
        let mut syslog = Vec::new();
        for row in rows {
            let message = serde_json::to_string(row).unwrap_or_default();
            frame(&mut syslog, if row.outcome == "refused" { REFUSED } else { DONE }, &row.at, &row.action, &message);
        }
        Self { syslog, ocsf: rows.iter().map(ocsf).collect() }
    }

    fn head(number: u64, hash: &str) -> Self {
        let now = OffsetDateTime::now_utc();
        let at = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
        let told = json!({ "audit_head": { "number": number, "hash": hash } });
        let mut syslog = Vec::new();
        frame(&mut syslog, DONE, &at, "audit_head", &told.to_string());
        let mut event = event(99, 1, now.unix_timestamp() * 1000, "audit_head");
        event["unmapped"] = told;
        Self { syslog, ocsf: json!([event]) }
    }
}

async fn send(sink: &SiemSink, credentials: &Credentials, outbound: &Outbound, batch: &Batch) -> Result<(), SinkError> {
    if sink.url.scheme() == SYSLOGS {
        return timeout(BATCH_TIMEOUT, syslog(sink, outbound, &batch.syslog)).await.map_err(|_| SinkError::Slow)?;
    }
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(token) = &credentials.token {
        let value = HeaderValue::try_from(format!("Bearer {}", token.expose_secret()));
        let mut value = value.map_err(|_| SinkError::Pem("the token has characters that no header has".to_owned()))?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    let body = batch.ocsf.to_string().into();
    let answer = outbound.post(&sink.url, Reach::Private, headers, body, BATCH_TIMEOUT).await?;
    if answer.status.is_success() {
        return Ok(());
    }
    let body = answer.body.chars().filter(|character| !character.is_control()).take(200).collect();
    Err(SinkError::Answer { status: answer.status.as_u16(), body })
}

async fn syslog(sink: &SiemSink, outbound: &Outbound, messages: &[u8]) -> Result<(), SinkError> {
    let host = sink.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let stream = outbound.connect(host, sink.url.port().unwrap_or(SYSLOG_PORT), Reach::Private).await?;
    let mut stream = outbound.secure(host, stream).await?;
    stream.write_all(messages).await.map_err(SinkError::Taken)?;
    // Sends close_notify; the receiver's own ends what is read, and its absence is an error.
    stream.shutdown().await.map_err(SinkError::Taken)?;
    let mut rest = [0; 256];
    while stream.read(&mut rest).await.map_err(SinkError::Taken)? > 0 {}
    Ok(())
}

/// One message of RFC 5424, behind its length in octets (RFC 5425, section 4.3).
fn frame(to: &mut Vec<u8>, priority: u8, at: &str, id: &str, message: &str) {
    // MSGID: 1 to 32 visible characters of ASCII.
    let id: String = id.chars().filter(char::is_ascii_graphic).take(32).collect();
    let id = if id.is_empty() { "-" } else { &id };
    let message = format!("<{priority}>1 {at} - seiketsu-admin - {id} - {message}");
    to.extend_from_slice(format!("{} ", message.len()).as_bytes());
    to.extend_from_slice(message.as_bytes());
}

/// An entry as an event of the class API Activity (OCSF 1.3.0, class 6003).
fn ocsf(row: &AuditRow) -> Value {
    let activity = match row.action.split('_').next().unwrap_or_default() {
        "create" | "open" => 1,
        "get" | "list" | "export" | "verify" | "diff" | "follow" => 2,
        "put" | "configure" | "import" | "rollback" | "rotate" | "acknowledge" | "resolve" | "disable" => 3,
        "delete" => 4,
        _ => 99,
    };
    let at = OffsetDateTime::parse(&row.at, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let millis = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default();
    let mut event = event(activity, if row.outcome == "done" { 1 } else { 2 }, millis, &row.action);
    event["severity_id"] = if row.outcome == "done" { 1 } else { 2 }.into();
    event["metadata"]["uid"] = row.hash.clone().into();
    event["metadata"]["sequence"] = row.number.into();
    event["metadata"]["original_time"] = row.at.clone().into();
    event["actor"] = json!({ "user": { "name": row.actor, "uid": row.actor_id } });
    event["src_endpoint"] =
        row.address.as_ref().map_or_else(|| json!({ "name": "control plane" }), |ip| json!({ "ip": ip }));
    event["api"]["request"] = json!({ "uid": row.request });
    if let Some(tenant) = &row.tenant {
        event["metadata"]["tenant_uid"] = tenant.clone().into();
    }
    event["unmapped"] = json!({ "hash": row.hash, "revision": row.revision, "detail": row.detail });
    event
}

fn event(activity: u32, status: u32, millis: i64, operation: &str) -> Value {
    json!({
        "category_uid": 6, "category_name": "Application Activity",
        "class_uid": 6003, "class_name": "API Activity",
        "activity_id": activity, "type_uid": 6003 * 100 + activity,
        "time": millis, "severity_id": 1, "status_id": status,
        "metadata": {
            "version": "1.3.0", "log_name": "audit",
            "product": { "name": "Seiketsu Gateway", "vendor_name": "Seiketsu", "version": env!("CARGO_PKG_VERSION") },
        },
        "actor": { "user": { "name": "control plane" } },
        "src_endpoint": { "name": "control plane" },
        "api": { "operation": operation, "service": { "name": "seiketsu-admin" } },
    })
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|error| SinkError::Pem(format!("it is no PEM of certificates: {error}")))?;
    if read.is_empty() { Err(SinkError::Pem("there is no certificate in it".to_owned())) } else { Ok(read) }
}

fn config(
    roots: Arc<rustls::RootCertStore>,
    ca: Option<&str>,
    identity: Option<(&str, &str)>,
) -> Result<Arc<rustls::ClientConfig>, SinkError> {
    let mut roots = roots;
    for certificate in ca.map(certificates).transpose()?.into_iter().flatten() {
        Arc::make_mut(&mut roots).add(certificate)?;
    }
    let builder = outbound::client_config(roots)?;
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|error| SinkError::Pem(format!("the private key is no PEM of one: {error}")))?;
            builder.with_client_auth_cert(certificates(chain)?, key)?
        }
    };
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_as_long_as_they_say_whatever_is_in_them(
            messages in prop::collection::vec((".*", ".*"), 0..10),
        ) {
            let mut bytes = Vec::new();
            for (id, message) in &messages {
                frame(&mut bytes, DONE, "2026-01-01T00:00:00Z", id, message);
            }
            let mut rest = &bytes[..];
            for (_, message) in &messages {
                let space = rest.iter().position(|byte| *byte == b' ').unwrap();
                let length: usize = std::str::from_utf8(&rest[..space]).unwrap().parse().unwrap();
                let text = std::str::from_utf8(&rest[space + 1..space + 1 + length]).unwrap();
                let head: Vec<&str> = text.splitn(8, ' ').collect();
                prop_assert_eq!((head[0], head[3], head[7]), ("<110>1", "seiketsu-admin", message.as_str()));
                prop_assert!((1..=32).contains(&head[5].len()));
                rest = &rest[space + 1 + length..];
            }
            prop_assert!(rest.is_empty());
        }
    }
}
