//! Attempts to log in and to register, counted in Redis per phone number and per client address.
//!
//! An attempt is counted before it is judged: a thousand guesses at once are a thousand attempts. Keys:
//! `<prefix>:attempts:phone:<digits>` and `<prefix>:attempts:address:<address>`, each on its own in every script.

use std::sync::LazyLock;

use ::redis::{AsyncCommands, Script};
use anyhow::Context;

use super::model::Phone;
use crate::app::App;
use crate::error::{Kind, Result, refuse};

static ATTEMPT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/attempt.lua")));
static UNCOUNT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/uncount.lua")));

/// Counts an attempt from an address; one too many is refused.
pub(super) async fn count_address(app: &App, address: &str) -> Result<()> {
    let key = format!("{}:attempts:address:{address}", app.redis.prefix());
    count(app, &key, app.config.auth.login_attempts_per_address).await
}

/// Counts an attempt on a phone number; one too many is refused.
pub(super) async fn count_phone(app: &App, phone: &Phone) -> Result<()> {
    count(app, &phone_key(app, phone), app.config.auth.login_attempts).await
}

/// Forgets the attempts on a phone number: its owner has come in.
pub(super) async fn forgive_phone(app: &App, phone: &Phone) -> Result<()> {
    let () = app.redis.commands().del(phone_key(app, phone)).await.context("forgetting login attempts")?;
    Ok(())
}

/// Takes back an attempt on a phone number that could not be judged.
pub(super) async fn uncount_phone(app: &App, phone: &Phone) -> Result<()> {
    let mut commands = app.redis.commands();
    let call: Result<(), _> = UNCOUNT.key(phone_key(app, phone)).invoke_async(&mut commands).await;
    Ok(call.context("taking a login attempt back")?)
}

fn phone_key(app: &App, phone: &Phone) -> String {
    format!("{}:attempts:phone:{}", app.redis.prefix(), phone.as_str())
}

async fn count(app: &App, key: &str, limit: u32) -> Result<()> {
    let window_ms = app.config.auth.login_window_s * 1000;
    let mut call = ATTEMPT.key(key);
    call.arg(window_ms);
    let (attempts, left_ms): (u64, u64) =
        call.invoke_async(&mut app.redis.commands()).await.context("counting login attempts")?;
    if attempts > u64::from(limit) {
        return Err(refuse(Kind::TooManyAttempts, "").retry_after(left_ms.div_ceil(1000).max(1)).into());
    }
    Ok(())
}
