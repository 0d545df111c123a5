//! `Idempotency-Key`: the first answer to a request is kept, byte for byte, with the effect it reports.
//!
//! A feature function calls [`begin`] first in its transaction and [`keep`] last, so the answer is stored if and only
//! if the effect is. A refusal rolls both back: it is not stored, and the key may be used again.
//!
//! Simultaneous firsts run once by the table's primary key. They queue on the user's row before they come to it,
//! because waiting on the key itself ends in a deadlock of all who wait when the first of them is rolled back.

use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::digest;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{self, UserId};
use crate::error::{Kind, Result, refuse};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};
use crate::platform::extract::{FaultClass, Faults, Part, UnreadRequest};

/// The header's name.
pub const HEADER: &str = "Idempotency-Key";
/// A key has at most this many characters.
const MAX_KEY: usize = 128;
/// An answer is kept for this long.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Answers that one statement removes.
const PRUNE_PAGE: u32 = 1000;

/// The request's `Idempotency-Key`: 1..128 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// A key, if the text is one.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let good = (1..=MAX_KEY).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
        std::str::from_utf8(text).ok().filter(|_| good).map(|text| Self(text.to_owned()))
    }
}

impl<S: Sync> Part<S> for Key {
    async fn read(asked: &mut UnreadRequest, _: &S, faults: &mut Faults) -> Option<Self> {
        let mut values = asked.head.headers.get_all(HEADER).iter();
        let Some(value) = values.next() else {
            faults.because(FaultClass::KeyMissing, HEADER, "is required: a new key for each new intent");
            return None;
        };
        let key = Key::parse(value.as_bytes()).filter(|_| values.next().is_none());
        if key.is_none() {
            faults.because(FaultClass::KeyInvalid, HEADER, "must be one header of 1 to 128 visible ASCII characters");
        }
        key
    }
}

/// What a request asks for, so that a key's second use can be told from its repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// The fingerprint of `body` sent to `operation` (such as `POST /orders`).
pub fn fingerprint(operation: &str, body: &impl Serialize) -> Result<Fingerprint> {
    let body = serde_json::to_vec(body).context("writing a request for its fingerprint")?;
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(operation.as_bytes());
    context.update(&[0]);
    context.update(&body);
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    Ok(Fingerprint(hash))
}

/// An answer as it is sent and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    status: u16,
    body: Vec<u8>,
}

impl StoredAnswer {
    /// An answer with a JSON body.
    pub fn json(status: StatusCode, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).context("writing an answer")?;
        Ok(Self { status: status.as_u16(), body })
    }
}

impl IntoResponse for StoredAnswer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Takes the key for this transaction. `Some`: the request was answered before, with this; do nothing more.
/// `None`: it is the first; end with [`keep`] and commit. It takes the user's turn ([`auth::take_turn`]): a user whose
/// account is gone is refused.
pub async fn begin(
    conn: &mut Conn,
    user: Uuid,
    key: &Key,
    fingerprint: Fingerprint,
    now: At,
) -> Result<Option<StoredAnswer>> {
    if !auth::take_turn(conn, UserId::from_uuid(user)).await? {
        return Err(Kind::TokenInvalid.into());
    }
    if insert(conn, user, key, fingerprint, now).await? {
        return Ok(None);
    }
    let (known, status, body) =
        find(conn, user, key).await?.context("an idempotency key vanished while it was read")?;
    if known != fingerprint.0 {
        return Err(refuse(Kind::IdempotencyKeyReused, "use a new Idempotency-Key for a new request").into());
    }
    let status = u16::try_from(status).context("reading the status of a kept answer")?;
    Ok(Some(StoredAnswer { status, body }))
}

/// Keeps the answer under the key that [`begin`] took.
pub async fn keep(conn: &mut Conn, user: Uuid, key: &Key, answer: &StoredAnswer) -> Result<()> {
    let kept = sqlx::query("UPDATE idempotency_keys SET status = ?, response = ? WHERE user_id = ? AND idem_key = ?")
        .bind(i16::try_from(answer.status).context("writing a status")?)
        .bind(&answer.body)
        .bind(user)
        .bind(&key.0)
        .execute(conn)
        .await
        .context("keeping an answer")?;
    match kept.rows_affected() {
        1 => Ok(()),
        n => Err(anyhow::anyhow!("kept an answer under {n} keys").into()),
    }
}

/// Forgets answers older than a week.
pub async fn prune(app: &App) -> anyhow::Result<()> {
    let before = app.clock.now().minus(KEPT);
    db::by_pages(&app.loops, PRUNE_PAGE, || async {
        let delete = "DELETE FROM idempotency_keys WHERE created_at < ? ORDER BY created_at LIMIT ?";
        let gone = sqlx::query(delete).bind(before).bind(PRUNE_PAGE).execute(&app.db).await;
        Ok(gone.context("forgetting old answers")?.rows_affected())
    })
    .await
}

async fn insert(conn: &mut Conn, user: Uuid, key: &Key, fingerprint: Fingerprint, now: At) -> Result<bool> {
    let inserted = sqlx::query(
        "INSERT INTO idempotency_keys (user_id, idem_key, request_hash, status, response, created_at)
         VALUES (?, ?, ?, 0, '', ?)",
    )
    .bind(user)
    .bind(&key.0)
    .bind(&fingerprint.0[..])
    .bind(now)
    .execute(conn)
    .await;
    match inserted {
        Ok(_) => Ok(true),
        // Both servers call every primary key so, whatever name it was given.
        Err(error) if db::violated(&error).as_deref() == Some("PRIMARY") => Ok(false),
        Err(error) => Err(anyhow::Error::from(error).context("taking an idempotency key").into()),
    }
}

async fn find(conn: &mut Conn, user: Uuid, key: &Key) -> Result<Option<(Vec<u8>, i16, Vec<u8>)>> {
    let found = sqlx::query_as(
        "SELECT request_hash, status, response FROM idempotency_keys WHERE user_id = ? AND idem_key = ?",
    )
    .bind(user)
    .bind(&key.0)
    .fetch_optional(conn)
    .await
    .context("reading a kept answer")?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_1_to_128_visible_ascii_characters() {
        assert!(Key::parse(b"a").is_some() && Key::parse(&[b'~'; 128]).is_some());
        for bad in [&b""[..], b"a b", b"a\tb", &[b'a'; 129], "é".as_bytes(), b"\x7f"] {
            assert!(Key::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn a_fingerprint_depends_on_the_operation_and_the_body() {
        let print = |operation: &str, body: &str| fingerprint(operation, &body).unwrap();
        assert_eq!(print("POST /a", "x"), print("POST /a", "x"));
        assert_ne!(print("POST /a", "x"), print("POST /b", "x"));
        assert_ne!(print("POST /a", "x"), print("POST /a", "y"));
    }
}
