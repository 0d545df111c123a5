//! Which tasks are asked for, and what may be wrong with that.

use serde::Deserialize;

use crate::app::App;
use crate::engine::inspect::{ListPosition, TaskFilter};
use crate::engine::{QueueName, Registry, State};
use crate::jobs;
use crate::platform::clock::At;
use crate::platform::extract::{Faults, FieldFault, Shape};
use crate::platform::spelling::nfc_option;
use crate::platform::validators::{in_our_time, words};

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
    #[garde(skip)]
    #[param(value_type = State, required = false)]
    state: Option<State>,
    /// Of this name.
    #[garde(inner(custom(words(1, 100))))]
    #[serde(default, deserialize_with = "nfc_option")]
    #[param(min_length = 1, max_length = 100)]
    name: Option<String>,
    /// Not before this instant: of its end, for a task that has ended; else of its enqueueing. RFC 3339.
    #[garde(inner(custom(in_our_time)))]
    #[param(value_type = Option<String>, max_length = 40, format = DateTime)]
    since: Option<At>,
    /// Not after this instant, likewise.
    #[garde(inner(custom(in_our_time)))]
    #[param(value_type = Option<String>, max_length = 40, format = DateTime)]
    until: Option<At>,
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
    pub filter: TaskFilter,
    /// Where the page before ended.
    pub from: Option<(QueueName, ListPosition)>,
    pub limit: usize,
}

/// Where a page ends, for the next one.
pub fn cursor(queue: &QueueName, place: &ListPosition) -> String {
    format!("{place}~{}", super::super::segment(queue))
}

fn read_cursor(text: &str) -> Option<(QueueName, ListPosition)> {
    let (place, queue) = text.split_once('~')?;
    Some((queue_of(queue)?, place.parse().ok()?))
}

fn queue_of(segment: &str) -> Option<QueueName> {
    segment.replace('.', "/").parse().ok()
}

impl Shape<App> for TasksQuery {
    fn together(&self, app: &App, faults: &mut Faults) {
        faults.extend(self.wanted(&jobs::catalog(app)).err().unwrap_or_default());
        if faults.spare(&["since", "until"]) && self.since.zip(self.until).is_some_and(|(since, until)| since > until) {
            faults.add("until", "must not be before since");
        }
    }
}

impl TasksQuery {
    /// What it asks for, or every fault of it.
    pub fn wanted(&self, registry: &Registry<App>) -> Result<Wanted, Vec<FieldFault>> {
        let mut faults = Vec::new();
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
            return Err(faults);
        }
        Ok(Wanted {
            queue,
            filter: TaskFilter { state: self.state, name: self.name.clone(), since: self.since, until: self.until },
            from: from.flatten(),
            limit: self.limit.map_or(DEFAULT_LIMIT, |limit| limit as usize),
        })
    }
}
