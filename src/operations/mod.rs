//! The engine's console over HTTP: queues, workers, tasks, dead letters, schedules.

pub mod dead_letters;
pub mod queues;
pub mod schedules;
pub mod tasks;
pub mod workers;

use serde::{Deserialize, Serialize};

use crate::app::App;
use crate::engine::QueueName;
use crate::error::{Kind, Result};
use crate::jobs;
use crate::platform::extract::Shape;
use crate::platform::page::{self, Page};

/// Which page of a list that is not ordered by ids.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageAfter {
    /// `next_cursor` of the page before; absent for the first page.
    #[garde(inner(custom(is_name)))]
    #[param(pattern = "^[0-9A-Za-z._-]{1,200}$")]
    cursor: Option<String>,
    /// Items of a page, 1..100.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
}

fn is_name(text: &str, (): &()) -> garde::Result {
    let good = (1..=200).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if good { Ok(()) } else { Err(garde::Error::new("must be the `next_cursor` of the page before")) }
}

impl<S> Shape<S> for PageAfter {}

impl PageAfter {
    fn size(&self) -> usize {
        page::size(self.limit) as usize
    }

    fn cursor(&self) -> &str {
        self.cursor.as_deref().unwrap_or("")
    }

    /// Makes a page of items of which one more than its size was read, where there are so many.
    fn page<T: Serialize>(&self, items: Vec<T>, cursor_of: impl Fn(&T) -> String) -> Page<T> {
        Page::cut(items, page::size(self.limit), cursor_of)
    }
}

/// A queue as it stands in a path: with `.` for the `/` before its partition.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Segment(QueueName);

impl TryFrom<String> for Segment {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let queue = text.replace('.', "/").parse().map(Self);
        queue.map_err(|_| "must be a queue's id, such as grant")
    }
}

/// The queue of a path segment; 404 when nobody here knows it.
async fn queue_at(app: &App, Segment(queue): Segment) -> Result<QueueName> {
    let known = jobs::catalog(app).knows(&queue);
    // A partition is there when something of it is; a queue without partitions is, also while it is empty.
    let there = known && (queue.partition_name().is_none() || app.engine.queue_exists(&queue).await?);
    if there { Ok(queue) } else { Err(Kind::NotFound.into()) }
}

/// A queue as a path segment.
fn segment(queue: &QueueName) -> String {
    queue.as_str().replace('/', ".")
}
