//! What MySQL knows of a submission that Redis has forgotten.
//!
//! Anybody may ask about ids that nobody ever had: everybody who asks while one look is under way is answered by the
//! next one together, so a process has one such statement under way at a time, however many ask.

use std::collections::HashMap;

use super::memory::Memory;
use super::model::{EntryId, Placed};
use super::store;
use crate::app::App;
use crate::error::{Error, Kind, Result};
use crate::orders::{self, OrderId};

/// The order that a submission got. The statement runs in a task of its own: who asks may leave.
pub async fn order_of(app: &App, entry: EntryId) -> Result<Option<Placed>> {
    let asking = app.clone();
    let look = move |entries: Vec<EntryId>| {
        let app = asking.clone();
        async move {
            orders_of(&app, &entries).await.map_err(|error| {
                if let Error::Internal(cause) = &error {
                    tracing::warn!(error = format!("{cause:#}"), "submissions could not be looked up");
                }
                error.kind()
            })
        }
    };
    let found = app.local::<Memory>().lookups.ask(&(), entry, look).await.map_err(anyhow::Error::from)?;
    found.map_err(|kind: Kind| kind.into())
}

/// In the order of `entries`.
async fn orders_of(app: &App, entries: &[EntryId]) -> Result<Vec<Option<Placed>>> {
    let mut conn = app.db.acquire().await?;
    let found = store::find_entries(&mut conn, entries).await?;
    let orders: Vec<OrderId> = found.iter().map(|(.., order, _)| *order).collect();
    let statuses = orders::statuses(&mut conn, &orders).await?;
    let placed = |(id, activity, user, order, returned)| {
        let status = *statuses.get(&order)?;
        Some((id, Placed { activity, user, order, returned, status }))
    };
    let found: HashMap<EntryId, Placed> = found.into_iter().filter_map(placed).collect();
    Ok(entries.iter().map(|entry| found.get(entry).copied()).collect())
}
