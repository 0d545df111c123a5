//! Passwords: argon2id with the crate's recommended cost, off the async threads.
//!
//! One hash takes some 20 ms of a core and 19 MiB. As many run at once as there are cores, up to [`MAX_RUNNING`], a
//! bounded number waits, and one more is told to come back: a crowd that logs in before a sale cannot take the process
//! down.

mod choice;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use argon2::password_hash::Error as HashError;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordHasher, PasswordVerifier};
use tokio::sync::Semaphore;

pub(super) use choice::Password;

use crate::app::App;
use crate::error::{Kind, Result, refuse};

/// Hashes that run at once, at most: with the memory of each, 300 MiB.
const MAX_RUNNING: usize = 16;
/// Hashes that wait for each that runs: about half a second of work.
const WAITING_PER_RUNNING: usize = 24;

/// The hash of a password nobody has, with the cost of a new hash: verified for an unknown phone number, so that the
/// answer takes as long as for a known one.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5LWhhcy10aGlz$dGhpcy1pcy10aGUtaGFzaC1vZi1uby1wYXNzd29yZC4";

/// The hashing places of this process.
struct Places {
    /// Everybody inside: running or waiting.
    room: Semaphore,
    /// The running ones.
    running: Semaphore,
    /// Those that have run.
    run: AtomicU64,
}

impl Default for Places {
    fn default() -> Self {
        let running = std::thread::available_parallelism().map_or(1, NonZero::get).min(MAX_RUNNING);
        Self {
            room: Semaphore::new(running * (1 + WAITING_PER_RUNNING)),
            running: Semaphore::new(running),
            run: AtomicU64::new(0),
        }
    }
}

/// The hash of a new password.
pub(super) async fn hash(app: &App, password: Password) -> Result<String> {
    let password = password.into_composed();
    let hashed = run(app, move || Argon2::default().hash_password(password.as_bytes())).await?;
    let hash: PasswordHash = hashed.map_err(|error| anyhow::anyhow!("hashing a password: {error}"))?;
    Ok(hash.to_string())
}

/// Whether `password` is the one of `hash`; without a hash it is not, and takes as long to say so. Versions that hashed
/// what was typed left accounts that only that spelling opens, so it is tried as well where it is another.
pub(super) async fn verify(app: &App, password: Password, hash: Option<String>) -> Result<bool> {
    let (composed, typed) = password.into_spellings();
    if verify_spelling(app, composed, hash.clone()).await? {
        return Ok(true);
    }
    match typed {
        Some(typed) => verify_spelling(app, typed, hash).await,
        None => Ok(false),
    }
}

async fn verify_spelling(app: &App, password: String, hash: Option<String>) -> Result<bool> {
    let known = hash.is_some();
    let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
    let verified = run(app, move || Argon2::default().verify_password(password.as_bytes(), hash.as_str())).await?;
    match verified {
        Ok(()) => Ok(known),
        Err(HashError::PasswordInvalid) => Ok(false),
        Err(error) => Err(anyhow::anyhow!("verifying a password: {error}").into()),
    }
}

async fn run<T: Send + 'static>(app: &App, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let places = app.local::<Places>();
    let overloaded = || refuse(Kind::Overloaded, "too many logins at once").retry_after(1);
    let _inside = places.room.try_acquire().map_err(|_| overloaded())?;
    let _running = places.running.acquire().await.map_err(|_| overloaded())?;
    places.run.fetch_add(1, Ordering::Relaxed);
    Ok(tokio::task::spawn_blocking(work).await.context("running a password hash")?)
}

/// How many hashes this process has run: each costs as much as a thousand other requests.
pub fn password_hashes(app: &App) -> u64 {
    app.local::<Places>().run.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobodys_hash_costs_as_much_as_a_new_one_and_verifies_nothing() {
        let fresh: PasswordHash = Argon2::default().hash_password(b"a password").unwrap();
        let nobody = PasswordHash::new(NOBODY).unwrap();
        assert_eq!(nobody.algorithm, fresh.algorithm);
        assert_eq!(nobody.version, fresh.version);
        assert_eq!(nobody.params, fresh.params);
        assert_eq!(nobody.hash.unwrap().len(), fresh.hash.unwrap().len());
        assert_eq!(Argon2::default().verify_password(b"a password", NOBODY), Err(HashError::PasswordInvalid));
    }
}
