//! Making, changing and removing schedules, with what the audit keeps of it.

use anyhow::Context;
use serde_json::{Value, json};

use crate::app::App;
use crate::audit::{self, Act};
use crate::auth::UserId;
use crate::engine::schedule::{self, Definition, Schedule, ScheduleId, Written};
use crate::error::{Kind, Refusal, Result, invalid, refuse, retrying};
use crate::platform::clock::At;
use crate::platform::page::PageQuery;

/// An edit that finds the schedule edited in the meantime looks again, so often.
const EDIT_ATTEMPTS: usize = 5;

/// Schedules, newest first: those of a page, and one more when another page follows.
pub async fn list(app: &App, page: &PageQuery) -> Result<Vec<Schedule>> {
    Ok(schedule::list(&mut *app.db.acquire().await?, page.before(), page.fetch()).await?)
}

/// One schedule, or 404.
pub async fn find(app: &App, id: ScheduleId) -> Result<Schedule> {
    Ok(schedule::find(&mut *app.db.acquire().await?, id).await?.ok_or(Kind::NotFound)?)
}

/// Makes a schedule, unless the id has one.
pub async fn create(app: &App, by: UserId, id: ScheduleId, definition: &Definition, now: At) -> Result<Schedule> {
    retrying(|| create_once(app, by, id, definition, now)).await?;
    find(app, id).await
}

/// Changes a schedule to what `edit` makes of it, whoever else edits it.
pub async fn change(
    app: &App,
    by: UserId,
    id: ScheduleId,
    edit: impl Fn(&Definition) -> Result<Definition>,
) -> Result<Schedule> {
    for _ in 0..EDIT_ATTEMPTS {
        let before = find(app, id).await?;
        let definition = edit(&before.definition)?;
        if definition == before.definition && before.last_error.is_none() {
            // Also the repeat of an edit whose answer was lost.
            return Ok(before);
        }
        let now = app.clock.now();
        if definition.runs_otherwise_than(&before.definition) {
            must_run(&definition, now)?;
        }
        match retrying(|| change_once(app, by, &before, &definition, now)).await? {
            Written::Yes => return find(app, id).await,
            Written::No => {}
            Written::NameTaken => return Err(name_taken(&definition.name).into()),
        }
    }
    Err(refuse(Kind::Unavailable, "others are editing this schedule").retry_after(1).into())
}

/// Removes a schedule, if it is there.
pub async fn delete(app: &App, by: UserId, id: ScheduleId) -> Result<()> {
    retrying(|| async {
        let mut tx = app.db.begin().await?;
        if schedule::delete(&mut tx, id).await? {
            let act = Act { by, action: "schedule.delete", target: &id.to_string() };
            audit::done(&mut tx, act, &json!({}), app.clock.now()).await?;
        }
        Ok(tx.commit().await.context("committing")?)
    })
    .await
}

async fn create_once(app: &App, by: UserId, id: ScheduleId, definition: &Definition, now: At) -> Result<()> {
    let mut tx = app.db.begin().await?;
    // The id counts before the name: a repeat of a request finds its own schedule under both.
    let there = schedule::find(&mut tx, id).await?;
    if there.is_none() {
        must_run(definition, now)?;
        match schedule::create(&mut tx, id, definition, now).await? {
            Written::Yes => {
                let act = Act { by, action: "schedule.create", target: &id.to_string() };
                audit::done(&mut tx, act, &told(definition), now).await?;
            }
            Written::No => {}
            // Two first tries at once: the name may be taken by the other one.
            Written::NameTaken if schedule::find(&mut tx, id).await?.is_some() => {}
            Written::NameTaken => return Err(name_taken(&definition.name).into()),
        }
    }
    Ok(tx.commit().await.context("committing")?)
}

async fn change_once(app: &App, by: UserId, before: &Schedule, new: &Definition, now: At) -> Result<Written> {
    let mut tx = app.db.begin().await?;
    let written = schedule::edit(&mut tx, before, new, now).await?;
    if written == Written::Yes {
        let act = Act { by, action: "schedule.change", target: &before.id.to_string() };
        let details = json!({ "before": told(&before.definition), "after": told(new) });
        audit::done(&mut tx, act, &details, now).await?;
        tx.commit().await.context("committing")?;
    }
    Ok(written)
}

/// A schedule as the audit keeps it: without its arguments.
fn told(definition: &Definition) -> Value {
    json!({
        "name": definition.name,
        "task": definition.task,
        "kind": definition.kind.as_str(),
        "every_s": definition.every_s,
        "crontab": definition.crontab,
        "run_at": definition.run_at,
        "time_zone": definition.time_zone,
        "enabled": definition.enabled,
        "catch_up": definition.catch_up.as_str(),
        "catch_up_max": definition.catch_up_max,
        "overlap": definition.overlap,
    })
}

/// A schedule that is on and would never run is a mistake.
fn must_run(definition: &Definition, now: At) -> Result<()> {
    if definition.enabled && definition.next_run(now).is_none() {
        return Err(invalid(definition.kind.field(), "leaves no run after the present"));
    }
    Ok(())
}

fn name_taken(name: &str) -> Refusal {
    refuse(Kind::ScheduleExists, format!("another schedule is called {name}"))
}
