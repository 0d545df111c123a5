//! Which tasks are asked for, and what may be wrong with that.

use serde::Deserialize;
use serde_json::Value;

use crate::app::App;
use crate::engine::operate::{Filter, Place};
use crate::engine::{QueueName, Registry};
use crate::error::{Kind, Result, refuse};
use crate::platform::clock::At;
use crate::platform::extract::FieldFault;

/// Items of a page when the request does not say.
const DEFAULT_LIMIT: usize = 20;

/// Which tasks.
#[derive(Debug, Clone, Default, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TasksQuery {
    /// Of this queue alone; a partition as `seckill.<activity>`.
    #[garde(inner(length(min = 1, max = 100)))]
    #[param(min_length = 1, max_length = 100)]
    queue: Option<String>,
    /// In this state.
    #[garde(inner(pattern("^(PENDING|STARTED|RETRY|SUCCESS|FAILURE|REVOKED)$")))]
    #[param(pattern = "^(PENDING|STARTED|RETRY|SUCCESS|FAILURE|REVOKED)$")]
    state: Option<String>,
    /// Of this name.
    #[garde(inner(length(chars, min = 1, max = 100)))]
    #[param(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// Not before this instant: of its end, for a task that has ended; else of its enqueueing. RFC 3339.
    #[garde(inner(length(max = 40)))]
    #[param(max_length = 40, format = DateTime)]
    since: Option<String>,
    /// Not after this instant, likewise.
    #[garde(inner(length(max = 40)))]
    #[param(max_length = 40, format = DateTime)]
    until: Option<String>,
    /// `next_cursor` of the page before; absent for the first page.
    #[garde(inner(length(max = 250)))]
    #[param(max_length = 250)]
    cursor: Option<String>,
    /// Items of a page, 1..100.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

/// What is asked for.
pub struct Wanted {
    pub queue: Option<QueueName>,
    pub filter: Filter,
    /// Where the page before ended.
    pub from: Option<(QueueName, Place)>,
    pub limit: usize,
}

/// Where a page ends, for the next one.
pub fn cursor(queue: &QueueName, place: &Place) -> String {
    format!("{place}~{}", super::super::segment(queue))
}

fn read_cursor(text: &str) -> Option<(QueueName, Place)> {
    let (place, queue) = text.split_once('~')?;
    Some((queue_of(queue)?, place.parse().ok()?))
}

fn queue_of(segment: &str) -> Option<QueueName> {
    segment.replace('.', "/").parse().ok()
}

fn instant(text: &str) -> Option<At> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    let year = instant.to_zoned(jiff::tz::TimeZone::UTC).year();
    Some(instant.into()).filter(|_| (2000..=2100).contains(&year))
}

impl TasksQuery {
    /// What it asks for, or every fault of it.
    pub fn parse(self, registry: &Registry<App>) -> Result<Wanted> {
        let mut faults = Vec::new();
        let mut read = |field: &str, text: &Option<String>| {
            let at = text.as_deref().map(instant);
            if at == Some(None) {
                let message = "must be an instant such as 2026-11-11T00:00:00Z, between the years 2000 and 2100";
                faults.push(FieldFault::new(field, message));
            }
            at.flatten()
        };
        let (since, until) = (read("since", &self.since), read("until", &self.until));
        let queue = self.queue.as_deref().map(|text| queue_of(text).filter(|queue| registry.knows(queue)));
        if queue == Some(None) {
            faults.push(FieldFault::new("queue", "is not a queue"));
        }
        let queue = queue.flatten();
        let from = self.cursor.as_deref().map(read_cursor);
        let fits = match &from {
            None => true,
            Some(None) => false,
            Some(Some((at, _))) => registry.knows(at) && queue.as_ref().is_none_or(|queue| queue == at),
        };
        if !fits {
            faults.push(FieldFault::new("cursor", "is not the `next_cursor` of such a list"));
        }
        if !faults.is_empty() {
            let mut refusal = refuse(Kind::Invalid, "");
            refusal.errors = faults;
            return Err(refusal.into());
        }
        let state = self.state.and_then(|state| serde_json::from_value(Value::String(state)).ok());
        Ok(Wanted {
            queue,
            filter: Filter { state, name: self.name, since, until },
            from: from.flatten(),
            limit: self.limit.map_or(DEFAULT_LIMIT, |limit| limit as usize),
        })
    }
}
