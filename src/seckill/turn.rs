//! The turn to look after the gates: one process has it for all. It only spares work: two that look after the gates at
//! once are harmless, so a process that lost it in the middle of a pass goes on to the pass's end.

use std::sync::LazyLock;

use anyhow::Context;
use redis::Script;

use crate::app::App;
use crate::error::Result;
use crate::platform::id::Id;

/// Whoever had the turn and died, or whose pass takes longer, holds it up for so long.
const TURN_MS: u64 = 3_000;

static TURN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/turn.lua")));

/// The name by which this process asks.
struct Name(String);

impl Default for Name {
    fn default() -> Self {
        Self(Id::<()>::new().to_string())
    }
}

/// Takes the turn, or keeps it; false when another process has it.
pub async fn take(app: &App) -> Result<bool> {
    ask(app, TURN_MS).await
}

/// Gives the turn back, if it is this process's: another one may fare better.
pub async fn give_back(app: &App) -> Result<()> {
    ask(app, 0).await.map(drop)
}

async fn ask(app: &App, life_ms: u64) -> Result<bool> {
    let key = format!("{}:{{.gates}}:turn", app.redis.prefix());
    let mut call = TURN.key(key);
    call.arg(&app.local::<Name>().0).arg(life_ms).arg(TURN_MS);
    Ok(call.invoke_async(&mut app.redis.commands()).await.context("asking for the turn to look after the gates")?)
}
