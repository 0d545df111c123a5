//! Traces.

use serde::Deserialize;

use crate::platform::traces::TraceSettings;

/// `ONRUSH_TRACES__*`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TracesConfig {
    /// The OpenTelemetry collector that spans are sent to, by OTLP over HTTP, without `/v1/traces`; empty: traces are off.
    pub endpoint: String,
    /// The part of the traces that begin here which is recorded, from 0 to 1.
    pub sample_ratio: f64,
    /// Whether the caller's `traceparent` decides whether a trace is recorded, in place of the ratio.
    pub parent_decides: bool,
    /// What this service is called in traces.
    pub service_name: String,
}

impl TracesConfig {
    /// As the exporter takes them; `None` while traces are off.
    pub fn settings(&self) -> Option<TraceSettings> {
        (!self.endpoint.is_empty()).then(|| TraceSettings {
            endpoint: self.endpoint.clone(),
            sample_ratio: self.sample_ratio,
            service: self.service_name.clone(),
        })
    }
}
