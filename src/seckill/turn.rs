//! The turn to look after the gates: one process has it for all. It only spares work: two that look after the gates at
//! once are harmless, so a process that lost it in the middle of a pass goes on to the pass's end.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use redis::Script;

use crate::app::App;
use crate::error::Result;
use crate::platform::id::Id;

/// Whoever had the turn and died holds it up for so long: longer than a pass may wait for one answer of Redis.
const TURN_MS: u64 = 5_000;
/// A pass that goes on renews it this often.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

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
    ask(app, TURN_MS, false).await
}

/// The turn during a pass, which may take longer than the turn lasts.
pub struct Renewal<'a> {
    app: &'a App,
    renewed: Mutex<Instant>,
}

impl<'a> Renewal<'a> {
    /// Of the turn that was taken now.
    pub fn of(app: &'a App) -> Self {
        Self { app, renewed: Mutex::new(Instant::now()) }
    }

    /// The pass goes on. One that hangs renews nothing.
    pub fn step(&self) {
        let mut renewed = self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.elapsed() < RENEWED_EVERY {
            return;
        }
        *renewed = Instant::now();
        let app = self.app.clone();
        // Beside the pass. One that comes late renews nothing that is not this process's any more.
        tokio::spawn(async move {
            if let Err(error) = ask(&app, TURN_MS, true).await {
                tracing::debug!(%error, "the turn to look after the gates was not renewed");
            }
        });
    }
}

/// Gives the turn back, if it is this process's: another one may fare better.
pub async fn give_back(app: &App) -> Result<()> {
    ask(app, 0, true).await.map(drop)
}

async fn ask(app: &App, life_ms: u64, only_ours: bool) -> Result<bool> {
    let key = format!("{}:{{.gates}}:turn", app.redis.prefix());
    let mut call = TURN.key(key);
    call.arg(&app.local::<Name>().0).arg(life_ms).arg(TURN_MS).arg(u8::from(only_ours));
    Ok(call.invoke_async(&mut app.redis.commands()).await.context("asking for the turn to look after the gates")?)
}
