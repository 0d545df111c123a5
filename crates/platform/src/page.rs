//! Cursor pagination: newest first, `?cursor=…&limit=…`, an opaque `next_cursor` until the last page.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::extract::{Faults, Part, Shape, UnreadRequest, checked, parameters};
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
    /// How its parameters are called.
    const FIELDS: [&str; 2] = ["cursor", "limit"];

    /// The id below which the page begins (lists are newest first).
    pub fn before<K>(&self) -> Id<K> {
        self.cursor.map_or(Id::max(), |cursor| Id::from_uuid(cursor.uuid()))
    }

    /// How many items to read: one more than the page holds, to know whether another page follows.
    pub fn fetch(&self) -> u32 {
        self.size() + 1
    }

    fn size(&self) -> u32 {
        size(self.limit)
    }

    /// Makes a page of what [`PageQuery::fetch`] rows became; `id_of` names an item's id.
    pub fn page<T, K>(&self, items: Vec<T>, id_of: impl Fn(&T) -> Id<K>) -> Page<T> {
        Page::cut(items, self.size(), |item| id_of(item).to_string())
    }
}

/// The parameters of the query string of a list: what is asked for, and which page of it. Each is fitted by itself, since a
/// type that is flattened into another forgets what is wrong with its fields.
#[derive(Debug)]
pub struct Paged<T>(pub T, pub PageQuery);

impl<S: Sync, T: Shape<S>> Part<S> for Paged<T> {
    async fn read(asked: &mut UnreadRequest, service: &S, faults: &mut Faults) -> Option<Self> {
        let (page, asked_for) =
            parameters(asked, faults).into_iter().partition(|(name, _)| PageQuery::FIELDS.contains(&name.as_str()));
        let asked_for = checked(Value::Object(asked_for), true, service, faults);
        let page = checked(Value::Object(page), true, service, faults);
        asked_for.zip(page).map(|(asked_for, page)| Self(asked_for, page))
    }
}

/// How many items a page has.
pub fn size(limit: Option<u32>) -> u32 {
    limit.unwrap_or(DEFAULT_LIMIT)
}

/// One page of a list.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// Send it as `cursor` for the next page; null on the last page.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Makes a page of `size` items of a list of which one more was read, where there are so many.
    pub fn cut(mut items: Vec<T>, size: u32, cursor_of: impl Fn(&T) -> String) -> Self {
        let more = items.len() > size as usize;
        items.truncate(size as usize);
        let next_cursor = items.last().filter(|_| more).map(cursor_of);
        Self { items, next_cursor }
    }
}
