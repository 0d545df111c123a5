//! Traces: W3C trace contexts taken in and passed on, and spans sent to an OpenTelemetry collector by OTLP over HTTP.
//!
//! Off unless a collector is named. While it is off nobody asks for a span's context: [`is_on`] is one load of a flag,
//! and nothing here runs. While it is on, spans wait in a bounded queue for a thread of their own; a collector that is
//! slow or away costs spans, never a request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt, TraceFlags, TraceState, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanEvents, SpanExporter,
};
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

/// Spans that wait for their export, at most; more are dropped.
const QUEUE_MAX: usize = 16_384;
/// Spans in one request to the collector.
const BATCH_MAX: usize = 512;
/// A span waits at most this long for company.
const EXPORT_PERIOD: Duration = Duration::from_secs(1);
/// Longest request to the collector.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is left at the stop has this long.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The W3C's header.
const HEADER: &str = "traceparent";
/// Where a collector takes spans, behind its address.
const PATH: &str = "/v1/traces";

static IS_ON: AtomicBool = AtomicBool::new(false);
/// The part of the traces that is recorded of those that begin here, or that a stranger names.
static RATIO: OnceLock<f64> = OnceLock::new();

/// Whether spans are recorded at all.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Where spans go.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The collector, without a trailing slash.
    pub endpoint: String,
    /// The part of all traces that is recorded, from 0 to 1.
    pub sample_ratio: f64,
    /// What this service is called there.
    pub service: String,
}

/// The export; it ends with [`Traces::stop`].
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins it. The tracer makes spans of `tracing`'s.
    pub fn start(settings: &TraceSettings) -> anyhow::Result<(Self, SdkTracer)> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}{PATH}", settings.endpoint))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .context("making the exporter of traces")?;
        let counted = Counted { inner: exporter, fault: Mutex::default(), endpoint: settings.endpoint.clone() };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(EXPORT_PERIOD)
            .build();
        let resource = Resource::builder()
            .with_service_name(settings.service.clone())
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", Uuid::now_v7().to_string()),
            ])
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(counted).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sample_ratio))))
            .with_resource(resource)
            .build();
        let _ = RATIO.set(settings.sample_ratio);
        IS_ON.store(true, Ordering::Relaxed);
        let tracer = provider.tracer("onrush");
        Ok((Self(provider), tracer))
    }

    /// Sends what waits, for a bounded time, and ends.
    pub async fn stop(self) {
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_TIMEOUT)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(error = %error, "the last spans were not sent");
        }
    }
}

/// Counts what the collector took, and says when it takes no more, and again.
#[derive(Debug)]
struct Counted {
    inner: opentelemetry_otlp::SpanExporter,
    /// Why it took none last, while it takes none.
    fault: Mutex<Option<String>>,
    endpoint: String,
}

impl SpanExporter for Counted {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        // Lines of the log became events of their spans. They tell of people, and stay here.
        batch.iter_mut().for_each(|span| span.events = SpanEvents::default());
        let exported = self.inner.export(batch).await;
        let outcome = if exported.is_ok() { "exported" } else { "failed" };
        metrics::counter!("onrush_trace_spans_total", "outcome" => outcome).increment(spans);
        let why = exported.as_ref().err().map(ToString::to_string);
        let before = std::mem::replace(&mut *self.fault.lock().unwrap_or_else(PoisonError::into_inner), why.clone());
        match (before, why) {
            (before, Some(why)) if before.as_ref() != Some(&why) => {
                tracing::warn!(
                    endpoint = self.endpoint,
                    error = why,
                    "the collector takes no spans; they are dropped until it does"
                );
            }
            (Some(_), None) => tracing::info!(endpoint = self.endpoint, "the collector takes spans again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Where in a trace something was asked for: the `traceparent` of the W3C's Trace Context.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TraceParent(String);

impl TraceParent {
    /// Of the span that is entered now; `None` without one, and while traces are off.
    pub fn current() -> Option<Self> {
        if is_on() { Self::of(&Span::current()) } else { None }
    }

    /// Of a span.
    pub fn of(span: &Span) -> Option<Self> {
        let context = span.context();
        let span = context.span();
        let at = span.span_context();
        let text = || format!("00-{}-{}-{:02x}", at.trace_id(), at.span_id(), at.trace_flags().to_u8());
        at.is_valid().then(|| Self(text()))
    }

    /// `None` when the text is none: from outside, or by another program.
    fn span_context(&self) -> Option<SpanContext> {
        let carrier = HashMap::from([(HEADER.to_owned(), self.0.clone())]);
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
        Some(context.span().span_context().clone()).filter(SpanContext::is_valid)
    }
}

/// Makes a request's span a part of the trace that its `traceparent` names. Whether that is recorded is decided here, by the
/// ratio and by chance: a trace's id is the stranger's choice, as its flag is. Only where `parent_decides` the flag counts.
/// `tracestate` is not taken over: it is long, and others' business.
pub fn continue_from(span: &Span, headers: &HeaderMap, parent_decides: bool) {
    let text = headers.get(HEADER).and_then(|value| value.to_str().ok());
    let Some(named) = text.and_then(|text| TraceParent(text.to_owned()).span_context()) else { return };
    let flags = match parent_decides {
        true => named.trace_flags(),
        false if is_chosen() => TraceFlags::SAMPLED,
        false => TraceFlags::default(),
    };
    let here = SpanContext::new(named.trace_id(), named.span_id(), flags, true, TraceState::default());
    // It fails when the span is filtered out.
    let _ = span.set_parent(Context::new().with_remote_span_context(here));
}

/// By chance, in the part of all cases that the ratio says.
fn is_chosen() -> bool {
    let (_, random) = Uuid::now_v7().as_u64_pair();
    // Below the variant's two bits all are random.
    let part = (random << 2) as f64 / 2f64.powi(64);
    RATIO.get().is_some_and(|ratio| part < *ratio)
}

/// Makes a span a child of what was passed on.
pub fn follow(span: &Span, parent: &TraceParent) {
    if let Some(parent) = parent.span_context() {
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Links a span with one of elsewhere, or of another trace.
pub fn link(span: &Span, to: &TraceParent) {
    if let Some(to) = to.span_context() {
        span.add_link(to);
    }
}

/// The headers with which whoever is called continues the trace; none while traces are off.
pub fn headers_of(span: &Span) -> HeaderMap {
    let parent = if is_on() { TraceParent::of(span) } else { None };
    let value = parent.and_then(|TraceParent(text)| HeaderValue::try_from(text).ok());
    value.map(|value| (HeaderName::from_static(HEADER), value)).into_iter().collect()
}

/// The id of a span's trace, for lines in the log.
pub fn trace_id(span: &Span) -> String {
    span.context().span().span_context().trace_id().to_string()
}

/// Says what a span is about, by OpenTelemetry's names.
pub fn note(span: &Span, name: &'static str, value: impl Into<opentelemetry::Value>) {
    span.set_attribute(name, value);
}

/// Says that what a span stands for failed, and why.
pub fn failed(span: &Span, why: impl Into<String>) {
    span.set_status(Status::error(why.into()));
}
