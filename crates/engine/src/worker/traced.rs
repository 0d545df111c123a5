//! Attempts as spans: each in the trace in which its task was enqueued, linked with the attempt before it. Nothing while
//! traces are off.

use std::sync::Arc;

use tracing::Span;

use super::super::outcome::Outcome;
use super::super::registry::Delivery;
use onrush_platform::traces::{self, TraceParent};

/// Attempts that one call of a handler makes.
pub(super) struct Attempts {
    each: Vec<Span>,
    /// What the handler runs in: the only attempt's span, or one of the batch's own that is linked with each.
    handler: Span,
    /// Errors may cite the arguments, and nobody is to read those.
    is_secret: bool,
}

impl Attempts {
    /// They begin now.
    pub(super) fn begin(batch: &[Arc<Delivery>], is_secret: bool) -> Self {
        if !traces::is_on() {
            return Self { each: Vec::new(), handler: Span::none(), is_secret };
        }
        let each: Vec<Span> = batch.iter().map(|delivery| attempt(delivery)).collect();
        let handler = match (&each[..], batch.first()) {
            ([only], _) => only.clone(),
            (all, Some(first)) => together(first, all),
            (_, None) => Span::none(),
        };
        Self { each, handler, is_secret }
    }

    /// What the handler runs in.
    pub(super) fn handler(&self) -> Span {
        self.handler.clone()
    }

    /// They end with what the handler says of each; without a word it panicked.
    pub(super) fn end(self, outcomes: Option<&[Outcome]>) {
        for (at, span) in self.each.iter().enumerate() {
            let (outcome, why) = match outcomes.and_then(|outcomes| outcomes.get(at)) {
                Some(Outcome::Success(_) | Outcome::SuccessWith { .. } | Outcome::SuccessThen { .. }) => {
                    ("success", None)
                }
                // The task was done; that it came to nothing is its result.
                Some(Outcome::Failure { .. }) => ("failure", None),
                Some(Outcome::Again(_)) => ("again", None),
                Some(Outcome::Retry(error)) => ("retry", Some(format!("{error:#}"))),
                Some(Outcome::Fatal(error)) => ("dead", Some(format!("{error:#}"))),
                None => ("panicked", Some("the handler gave no answer".to_owned())),
            };
            traces::note(span, "task.outcome", outcome);
            if let Some(why) = why {
                traces::failed(span, if self.is_secret { "failed".to_owned() } else { why });
            }
        }
    }
}

fn attempt(delivery: &Delivery) -> Span {
    let envelope = &delivery.envelope;
    let name = format!("task {}", envelope.name);
    // A span of its own trace's, and not of whoever runs it.
    let span = tracing::info_span!(parent: None, "task", otel.name = name, otel.kind = "consumer", task.id = %delivery.id, task.name = envelope.name);
    if let Some(parent) = &envelope.trace {
        traces::follow(&span, parent);
    }
    if let Some(before) = &envelope.tried {
        traces::link(&span, before);
    }
    traces::note(&span, "messaging.system", "onrush");
    traces::note(&span, "messaging.destination.name", delivery.id.queue.as_str().to_owned());
    traces::note(&span, "messaging.message.id", delivery.id.to_string());
    traces::note(&span, "task.attempt", i64::from(envelope.attempt));
    traces::note(&span, "task.delivery", i64::from(delivery.delivery));
    if let Some(here) = TraceParent::of(&span) {
        delivery.control.set_trace(here);
    }
    span
}

/// The span of a handler that was given many at once.
fn together(first: &Delivery, all: &[Span]) -> Span {
    let name = format!("batch {}", first.envelope.name);
    let span = tracing::info_span!(parent: None, "batch", otel.name = name, otel.kind = "consumer", task.name = first.envelope.name);
    traces::note(&span, "messaging.system", "onrush");
    traces::note(&span, "messaging.destination.name", first.id.queue.as_str().to_owned());
    traces::note(&span, "messaging.batch.message_count", i64::try_from(all.len()).unwrap_or(i64::MAX));
    for attempt in all.iter().filter_map(TraceParent::of) {
        traces::link(&span, &attempt);
    }
    span
}
