//! Attempts as spans.

use onrush::platform::traces::{TraceSettings, Traces};
use tracing::Instrument;
use tracing_subscriber::prelude::*;

use super::*;
use crate::support::collector::{Collector, attribute};

/// One thread, whose spans alone are recorded: other tests run beside this one.
#[tokio::test]
async fn attempts_are_linked_with_those_before_and_a_batch_with_each_of_its_tasks() {
    let collector = Collector::start().await;
    let settings = TraceSettings { endpoint: collector.url.clone(), sample_ratio: 1.0, service: "engine".to_owned() };
    let (traces, tracer) = Traces::start(&settings).unwrap();
    let spans = tracing_opentelemetry::layer().with_tracer(tracer);
    let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(spans));

    let s = Setup::new().await;
    s.bench.engine.set_paused(&queue(), true).await.unwrap();
    let asks = tracing::info_span!("asks");
    let (retried, other) =
        async { (s.enqueue("fail once").await, s.enqueue("a").await) }.instrument(asks.clone()).await;
    drop(asks);
    s.start_batches();
    s.bench.engine.set_paused(&queue(), false).await.unwrap();
    s.ended(&retried).await;
    s.ended(&other).await;
    assert!(s.loops.stop(Duration::from_secs(20)).await);
    traces.stop().await;

    let asked = collector.named("asks").remove(0);
    let of = |id: &TaskId, attempt: &str| {
        let is = |span: &_| {
            attribute(span, "messaging.message.id").as_deref() == Some(&id.to_string())
                && attribute(span, "task.attempt").as_deref() == Some(attempt)
        };
        let found: Vec<_> = collector.named("task test.work").into_iter().filter(is).collect();
        assert_eq!(found.len(), 1, "attempt {attempt} of {id}");
        found.into_iter().next().unwrap()
    };
    let (first, second, other) = (of(&retried, "1"), of(&retried, "2"), of(&other, "1"));
    for span in [&first, &second, &other] {
        assert_eq!((&span.trace_id, &span.parent_span_id), (&asked.trace_id, &asked.span_id));
    }
    assert_eq!(attribute(&first, "task.outcome").as_deref(), Some("retry"));
    assert_eq!(first.status.clone().unwrap().message, "not yet");
    assert_eq!(second.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [&first.span_id]);
    let batch = collector.named("batch test.work").remove(0);
    let mut linked: Vec<_> = batch.links.iter().map(|link| link.span_id.clone()).collect();
    linked.sort();
    let mut together = vec![first.span_id, other.span_id];
    together.sort();
    assert_eq!(linked, together);
}
