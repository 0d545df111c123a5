//! Traces: W3C trace contexts taken in and passed on, and spans sent to an OpenTelemetry collector by OTLP over HTTP.
//!
//! Off unless a collector is named. While it is off nobody asks for a span's context: [`is_on`] is one load of a flag,
//! and nothing here runs. While it is on, spans wait in a bounded queue for a thread of their own; a collector that is
//! slow or away costs spans, never a request.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::http::HeaderMap;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceContextExt, TraceFlags, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SdkTracer, SdkTracerProvider, ShouldSample,
    SpanData, SpanExporter,
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
/// Where a collector takes spans, behind its address.
const PATH: &str = "/v1/traces";

static IS_ON: AtomicBool = AtomicBool::new(false);
/// Which of the traces that begin here, or that a stranger names, are recorded.
static RATIO: OnceLock<Sampler> = OnceLock::new();

/// Whether spans are recorded at all.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
}

/// Where spans go.
#[derive(Debug, Clone)]
pub struct Settings {
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
    pub fn start(settings: &Settings) -> anyhow::Result<(Self, SdkTracer)> {
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_endpoint(format!("{}{PATH}", settings.endpoint))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .context("making the exporter of traces")?;
        let counted = Counted { inner: exporter, failed: AtomicBool::new(false), endpoint: settings.endpoint.clone() };
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
        let ratio = Sampler::TraceIdRatioBased(settings.sample_ratio);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(BatchSpanProcessor::builder(counted).with_batch_config(batches).build())
            .with_sampler(Sampler::ParentBased(Box::new(ratio.clone())))
            .with_resource(resource)
            .build();
        let _ = RATIO.set(ratio);
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
    failed: AtomicBool,
    endpoint: String,
}

impl SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let exported = self.inner.export(batch).await;
        let outcome = if exported.is_ok() { "exported" } else { "failed" };
        metrics::counter!("onrush_trace_spans_total", "outcome" => outcome).increment(spans);
        let failed_before = self.failed.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !failed_before => {
                tracing::warn!(endpoint = self.endpoint, error = %error, "the collector takes no spans; they are dropped until it does");
            }
            Ok(()) if failed_before => tracing::info!(endpoint = self.endpoint, "the collector takes spans again"),
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

    fn context(&self) -> Context {
        // Text that is none gives a context without a span, which begins a trace.
        let carrier = HashMap::from([("traceparent".to_owned(), self.0.clone())]);
        TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
    }
}

/// Makes a request's span a part of the trace that its headers name. Whether that is recorded a proxy of ours has decided
/// (`is_ours`); a stranger's word does not switch it on: there the ratio decides, by the trace's id.
pub fn continue_from(span: &Span, headers: &HeaderMap, is_ours: bool) {
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
    let named = context.span().span_context().clone();
    if !named.is_valid() {
        return;
    }
    let context = if is_ours { context } else { context.with_remote_span_context(decided_here(&named)) };
    // It fails when the span is filtered out.
    let _ = span.set_parent(context);
}

fn decided_here(named: &SpanContext) -> SpanContext {
    let sampled = RATIO.get().is_some_and(|ratio| {
        let result = ratio.should_sample(None, named.trace_id(), "", &SpanKind::Server, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    });
    let flags = if sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    SpanContext::new(named.trace_id(), named.span_id(), flags, true, named.trace_state().clone())
}

/// Makes a span a child of what was passed on.
pub fn follow(span: &Span, parent: &TraceParent) {
    let _ = span.set_parent(parent.context());
}

/// Links a span with one of elsewhere, or of another trace.
pub fn link(span: &Span, to: &TraceParent) {
    let to = to.context().span().span_context().clone();
    if to.is_valid() {
        span.add_link(to);
    }
}

/// The headers with which whoever is called continues the trace; none while traces are off.
pub fn headers_of(span: &Span) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if is_on() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(&mut headers));
    }
    headers
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
