//! Traces: W3C trace contexts taken in and passed on, and spans sent to an OpenTelemetry collector by OTLP over HTTP.
//!
//! Off unless a collector is named. While it is off nobody asks for a span's context: [`is_on`] is one load of a flag,
//! and nothing here runs. While it is on, spans wait in a bounded queue for a thread of their own; a collector that is
//! slow or away costs spans, never a request.

#[cfg(feature = "telemetry")]
mod export;

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::{SpanContext, Status, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

#[cfg(feature = "telemetry")]
pub use export::{TraceSettings, Traces};

/// The W3C's header.
const HEADER: &str = "traceparent";

static IS_ON: AtomicBool = AtomicBool::new(false);
/// The part of the traces that is recorded of those that begin here, or that a stranger names.
static RATIO: OnceLock<f64> = OnceLock::new();

/// From now on spans are recorded, of this part of the traces.
#[cfg(feature = "telemetry")]
fn record(ratio: f64) {
    let _ = RATIO.set(ratio);
    IS_ON.store(true, Ordering::Relaxed);
}

/// Whether spans are recorded at all.
pub fn is_on() -> bool {
    IS_ON.load(Ordering::Relaxed)
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
