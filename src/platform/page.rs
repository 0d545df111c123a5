//! Cursor pagination: newest first, `?cursor=…&limit=…`, an opaque `next_cursor` until the last page.

use serde::{Deserialize, Serialize};

use super::extract::Shape;
use super::id::Id;

/// Items of a page when the request does not say.
const DEFAULT_LIMIT: u32 = 20;

/// Which page of a list.
#[derive(Debug, Clone, Deserialize, garde::Validate, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// `next_cursor` of the page before; absent for the first page.
    #[garde(skip)]
    #[param(value_type = Option<String>, pattern = "^[0-9a-f]{32}$")]
    pub cursor: Option<Id<Cursor>>,
    /// Items of a page, 1..100.
    #[garde(range(min = 1, max = 100))]
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<u32>,
}

/// Where a page ends: at the item of this id, whatever kind it is of.
#[derive(Debug)]
pub struct Cursor;

impl<S> Shape<S> for PageQuery {}

impl PageQuery {
    /// The id below which the page begins (lists are newest first).
    pub fn before<K>(&self) -> Id<K> {
        self.cursor.map_or(Id::max(), |cursor| Id::from_uuid(cursor.uuid()))
    }

    /// How many items to read: one more than the page holds, to know whether another page follows.
    pub fn fetch(&self) -> u32 {
        self.size() + 1
    }

    fn size(&self) -> u32 {
        self.limit.unwrap_or(DEFAULT_LIMIT)
    }

    /// Makes a page of what [`PageQuery::fetch`] rows became; `id_of` names an item's id.
    pub fn page<T, K>(&self, mut items: Vec<T>, id_of: impl Fn(&T) -> Id<K>) -> Page<T> {
        let size = self.size() as usize;
        let more = items.len() > size;
        items.truncate(size);
        let next_cursor = if more { items.last().map(|item| id_of(item).to_string()) } else { None };
        Page { items, next_cursor }
    }
}

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// Send it as `cursor` for the next page; null on the last page.
    pub next_cursor: Option<String>,
}
