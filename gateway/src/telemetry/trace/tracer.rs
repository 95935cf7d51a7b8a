//! Deciding which requests are traced, and handing their spans to the exporter.

use std::{
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
};

use http::HeaderMap;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchSpanProcessor, SpanData, SpanExporter as Export, SpanProcessor},
};
use prometheus::IntCounter;

use super::{
    client::{ClientError, CollectorClient},
    context::{SAMPLED, TraceContext},
    sampler::Sampler,
    settings::TraceSettings,
    spans::spans_of,
};
use crate::telemetry::access_log::AccessRecord;

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TracerError {
    #[error("traces cannot be exported: {0}; correct the OTEL_EXPORTER_OTLP_* variables")]
    Exporter(#[from] ExporterBuildError),
    #[error("traces cannot be exported: {0}")]
    Client(#[from] ClientError),
    #[error("traces cannot be exported: {0}")]
    Runtime(io::Error),
}

/// The tracer of a node. Dropping it sends what is waiting, for up to five seconds.
pub struct Tracer(Option<Exporting>);

struct Exporting {
    sampler: Sampler,
    /// Batches spans on a thread of its own; where its queue is full, spans are dropped.
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tracer").field(&self.0.as_ref().map(|exporting| exporting.sampler)).finish()
    }
}

impl Tracer {
    /// Passes the trace context of clients on, and records nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// Starts exporting. `node` is the node's name, `failed` counts the spans that the collector did
    /// not take. The collector need not be there.
    pub fn start(settings: &TraceSettings, node: &str, failed: IntCounter) -> Result<Self, TracerError> {
        let client = CollectorClient::new(settings.certificate.as_deref())?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(settings.endpoint.to_string())
            .build()?;
        let exporter = Watched { exporter, failed, failing: AtomicBool::new(false) };
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        processor.set_resource(&resource(node));
        let scope = InstrumentationScope::builder("seiketsu-gateway").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self(Some(Exporting { sampler: settings.sampler, processor, scope })))
    }

    /// Reads the trace context of a request and decides whether it is recorded. A context that is not
    /// valid counts as none; then a trace begins here.
    pub fn begin(&self, headers: &HeaderMap) -> TraceContext {
        let context = TraceContext::read(headers);
        let Some(exporting) = &self.0 else { return context };
        let (context, parent) = match context.trace_id {
            0 => (TraceContext::fresh(), None),
            _ => (context, Some(context.flags & SAMPLED != 0)),
        };
        context.sampled(exporting.sampler.samples(context.trace_id, parent))
    }

    /// Hands the spans of a request to the exporter, if it is recorded. Never waits.
    pub fn record(&self, context: &TraceContext, record: &AccessRecord<'_>) {
        let Some(exporting) = self.0.as_ref().filter(|_| context.is_recorded()) else { return };
        for span in spans_of(context, record, &exporting.scope) {
            exporting.processor.on_end(span);
        }
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.processor.shutdown() {
            tracing::warn!(%error, "the last trace spans could not be sent");
        }
    }
}

/// `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` win over these.
fn resource(node: &str) -> Resource {
    let from_environment = Resource::builder().build();
    let ours = Resource::builder_empty()
        .with_service_name("seiketsu-gateway")
        .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let set = from_environment
        .iter()
        .filter(|(key, value)| key.as_str() != "service.name" || !value.as_str().starts_with("unknown_service"));
    ours.with_attributes(set.map(|(key, value)| KeyValue::new(key.clone(), value.clone()))).build()
}

/// Counts what fails, and says once that it began to and once that it works again.
#[derive(Debug)]
struct Watched {
    exporter: SpanExporter,
    failed: IntCounter,
    failing: AtomicBool,
}

impl Export for Watched {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let result = self.exporter.export(batch).await;
        let failed_before = self.failing.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Err(error) => {
                self.failed.inc_by(spans);
                if !failed_before {
                    tracing::warn!(%error, "the trace collector takes no spans; they are lost until it does");
                }
            }
            Ok(()) if failed_before => tracing::info!("the trace collector takes spans again"),
            Ok(()) => {}
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: std::time::Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        sync::mpsc,
        thread,
    };

    use http::HeaderValue;
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest,
        common::v1::{KeyValue as ProtoKeyValue, any_value::Value},
        trace::v1::Span,
    };
    use prost::Message;

    use super::{super::context::TRACEPARENT, *};
    use crate::telemetry::access_log::tests::example;

    /// A collector that takes one request and answers with `status`.
    fn collector(status: &'static str) -> (String, mpsc::Receiver<(String, Vec<u8>)>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let request = read_request(stream.unwrap(), status);
                if sender.send(request).is_err() {
                    return;
                }
            }
        });
        (endpoint, receiver)
    }

    fn read_request(mut stream: TcpStream, status: &str) -> (String, Vec<u8>) {
        let (mut received, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let read = stream.read(&mut piece).unwrap();
            received.extend_from_slice(&piece[..read]);
            let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
            let head = String::from_utf8(received[..end].to_vec()).unwrap().to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            let body = &received[end + 4..];
            if body.len() == length.parse::<usize>().unwrap() {
                write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").unwrap();
                return (head, body.to_vec());
            }
        }
    }

    fn tracer(endpoint: &str, failed: &IntCounter) -> Tracer {
        let settings = TraceSettings::from_environment(|name| {
            (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| endpoint.to_owned())
        });
        Tracer::start(&settings.unwrap().unwrap(), "gateway-1", failed.clone()).unwrap()
    }

    fn counter() -> IntCounter {
        IntCounter::new("failed", "Spans that failed.").unwrap()
    }

    fn with_parent(traceparent: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(TRACEPARENT, HeaderValue::from_static(traceparent))])
    }

    fn text<'a>(attributes: &'a [ProtoKeyValue], key: &str) -> Option<&'a str> {
        let value = attributes.iter().find(|attribute| attribute.key == key)?.value.as_ref()?;
        match value.value.as_ref()? {
            Value::StringValue(text) => Some(text),
            _ => None,
        }
    }

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_sampled_request_reaches_the_collector_as_two_spans() {
        let (endpoint, requests) = collector("200 OK");
        let failed = counter();
        let tracer = tracer(&endpoint, &failed);
        let context = tracer.begin(&with_parent(PARENT));
        tracer.record(&context, &example());
        drop(tracer);

        let (head, body) = requests.recv().unwrap();
        assert!(head.starts_with("post /v1/traces http/1.1"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let export = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        let resource = export.resource_spans[0].resource.as_ref().unwrap();
        assert_eq!(text(&resource.attributes, "service.name"), Some("seiketsu-gateway"));
        assert_eq!(text(&resource.attributes, "service.instance.id"), Some("gateway-1"));
        let spans: &Vec<Span> = &export.resource_spans[0].scope_spans[0].spans;
        let (server, client) = (&spans[0], &spans[1]);
        assert_eq!(spans.len(), 2);
        assert_eq!(server.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
        assert_eq!(server.parent_span_id, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        assert_eq!(client.parent_span_id, server.span_id);
        assert_eq!(server.name, "GET echo");
        assert_eq!(server.end_time_unix_nano - server.start_time_unix_nano, 12_345_000);
        assert_eq!(client.start_time_unix_nano - server.start_time_unix_nano, 90_000);
        assert_eq!(text(&server.attributes, "url.path"), Some("/v1/echo"));
        assert_eq!(text(&server.attributes, "error.type"), Some("upstream-unavailable"));
        assert_eq!(text(&client.attributes, "server.address"), Some("2001:db8::1"));
        let sent = context.traceparent_for_upstream().unwrap();
        let client_id = u64::from_be_bytes(client.span_id[..].try_into().unwrap());
        assert_eq!(
            sent.to_str().unwrap()[36..52],
            format!("{client_id:016x}"),
            "the upstream's parent is the client span"
        );
        assert_eq!(failed.get(), 0);
    }

    #[test]
    fn spans_that_the_collector_refuses_are_counted() {
        let (endpoint, requests) = collector("400 Bad Request");
        let failed = counter();
        let tracer = tracer(&endpoint, &failed);
        tracer.record(&tracer.begin(&HeaderMap::new()), &example());
        drop(tracer);
        requests.recv().unwrap();
        assert_eq!(failed.get(), 2);
    }

    #[test]
    fn a_client_that_does_not_sample_is_not_recorded() {
        let tracer = tracer("http://127.0.0.1:9", &counter());
        let context = tracer.begin(&with_parent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"));
        assert!(!context.is_recorded());
        assert!(context.trace_id().is_some(), "but the log can name its trace");
    }

    #[test]
    fn a_request_without_a_valid_trace_begins_one() {
        let tracer = tracer("http://127.0.0.1:9", &counter());
        let (one, other) = (tracer.begin(&with_parent("nonsense")), tracer.begin(&HeaderMap::new()));
        assert!(one.is_recorded() && other.is_recorded());
        assert_ne!(one.trace_id(), other.trace_id());
    }

    #[test]
    fn a_tracer_that_is_off_passes_on_and_begins_nothing() {
        let tracer = Tracer::off();
        let passed = tracer.begin(&with_parent(PARENT));
        assert_eq!(passed.traceparent_for_upstream().unwrap(), PARENT);
        assert!(!passed.is_recorded());
        assert_eq!(tracer.begin(&HeaderMap::new()), TraceContext::default());
        tracer.record(&passed, &example());
    }
}
