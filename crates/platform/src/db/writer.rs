//! The server that takes writes, and which connections still lead to it.
//!
//! When another server becomes the writer, connections to the old one may stay open and answer reads for as long as they
//! live. So each connection that was opened before some server said that it takes no writes is closed when it is given
//! back, or is to be taken out again, and made anew by the address: that leads to the writer, at once or after some more of
//! the same.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Db;
use crate::clock::At;

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// When a server last said so, in microseconds after the beginning; 0: never.
static LEFT_US: AtomicU64 = AtomicU64::new(0);

fn now_us() -> u64 {
    u64::try_from(BEGAN.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A server has said that it takes no writes.
pub(super) fn left() {
    LEFT_US.fetch_max(now_us().max(1), Ordering::Relaxed);
}

/// Whether a connection of this age may be used again.
pub(super) fn may_be_at_it(age: Duration) -> bool {
    was_opened_since(LEFT_US.load(Ordering::Relaxed), now_us(), age)
}

fn was_opened_since(left_us: u64, now_us: u64, age: Duration) -> bool {
    left_us == 0 || u64::try_from(age.as_micros()).unwrap_or(u64::MAX) < now_us.saturating_sub(left_us)
}

/// The server's time, in UTC.
pub async fn server_time(db: &Db) -> sqlx::Result<At> {
    sqlx::query_scalar("SELECT UTC_TIMESTAMP(3)").fetch_one(&mut *db.acquire_to_look().await?).await
}

/// Refuses a server that takes no writes, such as a replica.
pub async fn writable(db: &Db) -> sqlx::Result<()> {
    // MariaDB says it in words from 12 on.
    let is_on = "SELECT CAST(@@global.read_only AS CHAR) NOT IN ('0', 'OFF') \
                 OR CAST(@@global.innodb_read_only AS CHAR) NOT IN ('0', 'OFF')";
    let is_on: i64 = sqlx::query_scalar(is_on).fetch_one(&mut *db.acquire_to_look().await?).await?;
    if is_on == 0 {
        return Ok(());
    }
    left();
    let why = "the server takes no writes: it is read-only";
    Err(std::io::Error::new(std::io::ErrorKind::ReadOnlyFilesystem, why).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_connected_before_the_writer_left_is_not_used_again() {
        let is_used = |left_us, age_us| was_opened_since(left_us, 10_000, Duration::from_micros(age_us));
        assert!(is_used(0, 9_999), "none has left");
        assert!(is_used(4_000, 5_999) && !is_used(4_000, 6_000) && !is_used(4_000, 9_000));
        assert!(!is_used(10_000, 0));
    }
}
