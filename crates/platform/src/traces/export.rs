//! Spans on their way to a collector.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanEvents, SpanExporter,
};
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
        super::record(settings.sample_ratio);
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
