//! Logs, metrics, and the start of traces.

use std::time::Duration;

use anyhow::Context;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::traces::{self, Traces};

/// Bounds of the duration histograms, in seconds.
const DURATION_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Of requests, by route: few, since there are many routes.
const REQUEST_BUCKETS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];
/// Histograms are folded this often (without it they grow for ever).
pub const UPKEEP_PERIOD: Duration = Duration::from_secs(5);

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One JSON object a line, for machines.
    Json,
}

/// Whether the text is a `tracing` filter.
pub fn is_filter(text: &str) -> bool {
    EnvFilter::try_new(text).is_ok()
}

/// Spans of this target are contexts of lines in the log, and no part of a trace.
pub const LINES_ALONE: &str = "onrush::line";

/// Starts logs, and traces where settings of them are given.
pub fn init(format: LogFormat, filter: &str, traced: Option<&traces::TraceSettings>) -> anyhow::Result<Option<Traces>> {
    let Some(settings) = traced else { return init_logs(format, filter).map(|()| None) };
    let filter = parse(filter)?;
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
        LogFormat::Pretty => tracing_subscriber::fmt::layer()
            .with_ansi(is_terminal())
            .with_writer(std::io::stderr)
            .with_filter(filter)
            .boxed(),
    };
    let (traces, tracer) = Traces::start(settings)?;
    // Not a filter that leaves events out: its verdict on a line that is only asked about (`enabled!`) would stay in the
    // thread and strike the next span.
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(
            Targets::new().with_target("onrush", LevelFilter::INFO).with_target(LINES_ALONE, LevelFilter::OFF),
        );
    tracing_subscriber::registry().with(lines).with(spans).try_init().context("starting logs and traces")?;
    let (endpoint, sample_ratio) = (&settings.endpoint, settings.sample_ratio);
    tracing::info!(endpoint, sample_ratio, "traces are on");
    Ok(Some(traces))
}

fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    EnvFilter::try_new(filter).with_context(|| format!("parsing the log filter {filter:?}"))
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

/// Starts logging to standard error. `filter` is a `tracing` filter such as `info,sqlx=warn`.
pub fn init_logs(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = parse(filter)?;
    // One filter for all: cheaper for each line than one for each layer.
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Pretty => {
            let lines = tracing_subscriber::fmt::layer().with_ansi(is_terminal()).with_writer(std::io::stderr);
            registry.with(lines).try_init()
        }
    }
    .context("starting the logs")
}

/// Installs the metrics recorder of the process and gives what renders `/metrics`.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), DURATION_BUCKETS)
        .and_then(|builder| {
            let requests = Matcher::Full("onrush_http_request_duration_seconds".to_owned());
            builder.set_buckets_for_metric(requests, REQUEST_BUCKETS)
        })
        .context("setting histogram buckets")?
        .install_recorder()
        .context("installing the metrics recorder")
}
