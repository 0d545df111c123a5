//! Accounts, logins and who is asking.
//!
//! * An **access token** is a short-lived JWT that carries the user, the role and the login: checking it costs no MySQL
//!   and no Redis ([`CurrentUser`]). Where MySQL is touched anyhow, it is asked as well whether the account
//!   stands and the login goes on ([`LiveUser`], [`with_current_role`]).
//! * A **refresh token** is 32 random bytes, stored as SHA-256 and used once. The tokens that descend from one login
//!   are a family; using one of them twice ends the family, because the service cannot tell a thief from the owner.
//!   So of two simultaneous uses of the same token the first to lock the user's row gets a new pair, and the second
//!   ends that pair as well: whoever is the owner logs in again. A front end refreshes one at a time.
//! * **Guessing** is slowed down per phone number and client address, and per number, and refused per client address, in
//!   Redis, by failed logins alone; a device that the owner logged in on before ([`device`]) has a count of its own, and
//!   the first attempts of another address do not wait for what was guessed elsewhere ([`redis`]). Without Redis nobody
//!   logs in: that is better than unlimited guessing.

mod address;
mod device;
mod extract;
pub mod http;
mod model;
mod nickname;
mod password;
mod redis;
mod session;
mod staff;
mod store;
mod watch;

use address::ClientAddress;
pub use address::{ClientIp, client_ip};
pub use extract::{CurrentUser, LiveUser, current_role, was_forbidden, with_current_role};
pub use model::{NotAPhone, Phone, Role, User, UserId};
pub use password::password_hashes;
pub use session::close_all as end_logins;
pub use staff::{Changed, create_staff, set_disabled, set_role, staff_accounts};
pub use watch::{operations_token, prepare_counters};

use anyhow::Context;
use uuid::Uuid;

use crate::app::App;
use crate::error::{Error, Kind, Result, invalid, retrying};
use crate::platform::clock::At;
use crate::platform::db;
use crate::platform::spelling::composed;
use crate::platform::validators::words;
use device::DeviceToken;
use model::{Claims, LoginId};
use password::Password;
use redis::Judged;
use session::Session;
use watch::Visitor;

/// Characters of a nickname, at most: the column's width.
pub const MAX_NICKNAME_CHARS: usize = 64;

/// An access token for a user, outside of any login: for tests, benchmarks and tools.
pub fn access_token(app: &App, user: UserId, role: Role) -> Result<String> {
    sign(app, user, role, Uuid::now_v7(), app.clock.now())
}

fn sign(app: &App, user: UserId, role: Role, login: Uuid, now: At) -> Result<String> {
    let claims = Claims::new(user, role, LoginId::from_uuid(login), now, app.config.auth.access_token_s);
    Ok(app.tokens.sign(&claims)?)
}

/// What somebody registers with.
struct Registration {
    phone: Phone,
    password: Password,
    /// Empty: a neutral one.
    nickname: String,
}

/// Makes an account and logs it in.
async fn register(app: &App, registration: Registration) -> Result<(Session, DeviceToken)> {
    let Registration { phone, password, nickname } = registration;
    let hash = password::hash(app, password).await?;
    let now = app.clock.now();
    let device = device::token(app, &phone, None)?;
    let user = User::new(phone, &nickname, Role::User, now);
    let registered = retrying(async || {
        let mut tx = app.db.begin().await?;
        insert(&mut tx, &user, &hash).await?;
        let session = session::open(app, &mut tx, user.clone(), now).await?;
        tx.commit().await.context("committing a registration")?;
        Ok(session)
    });
    let session = match registered.await {
        // A repeat would be told that the number is taken.
        Err(Error::Internal(error)) if db::may_be_done(&error) => match profile(app, user.id).await {
            Ok(user) => open_session(app, user).await?,
            Err(_) => return Err(error.into()),
        },
        registered => registered?,
    };
    Ok((session, device))
}

/// Begins a login.
async fn open_session(app: &App, user: User) -> Result<Session> {
    retrying(async || {
        let mut conn = app.db.acquire().await?;
        session::open(app, &mut conn, user.clone(), app.clock.now()).await
    })
    .await
}

/// Where a login comes from.
struct Caller {
    /// As attempts are counted by it.
    address: ClientAddress,
    /// What its device shows: tokens of former logins.
    devices: Vec<String>,
}

/// Logs a user in. A wrong number and a wrong password are answered alike, and as slowly.
async fn login(
    app: &App,
    visitor: &Visitor,
    from: &Caller,
    phone: &Phone,
    password: Password,
) -> Result<(Session, DeviceToken)> {
    let known = device::known(app, phone, &from.devices)?;
    let attempt = redis::attempt(app, &from.address, known.as_ref(), phone).await?;
    let checked = authenticate(app, phone, password).await;
    let judged = match &checked {
        Ok(_) => Judged::Right,
        Err(error) if error.kind() == Kind::WrongCredentials => Judged::Wrong,
        Err(_) => Judged::Not,
    };
    if let Err(error) = attempt.end(app, judged).await {
        // The count stays too high until its time is over: strict, and no reason to refuse this login.
        tracing::warn!(%error, "a login attempt could not be ended");
    }
    let user = checked?;
    if user.role != Role::User {
        watch::admin_login(app, visitor, user.id, phone).await?;
    }
    let device = device::token(app, phone, known)?;
    Ok((open_session(app, user).await?, device))
}

async fn authenticate(app: &App, phone: &Phone, password: Password) -> Result<User> {
    // The connection goes back to the pool before the hash, which takes far longer than the statement.
    let account = store::find_account(&mut *app.db.acquire().await?, phone).await.context("reading an account")?;
    let (account, hash) = account.map(|account| ((account.user, account.disabled_at), account.password_hash)).unzip();
    match (password::verify(app, password, hash).await?, account) {
        // Only who knows the password hears it.
        (true, Some((_, Some(_)))) => Err(Kind::AccountDisabled.into()),
        (true, Some((user, None))) => Ok(user),
        _ => Err(Kind::WrongCredentials.into()),
    }
}

/// The account of who is asking. It may be gone while the token still holds.
async fn profile(app: &App, user: UserId) -> Result<User> {
    let found = store::find_user(&mut *app.db.acquire().await?, user).await.context("reading a user")?;
    found.ok_or(Kind::TokenInvalid.into())
}

/// Waits until no other transaction that took a turn of this user is open, and holds up those that come after. What it
/// committed is then seen. Taken after the rows of orders and payments that are locked already, before any other. False:
/// the account is gone, and nobody is held up.
///
/// It writes the row, which a lock alone would not. On a cluster that takes writes on every node a lock is known to its own
/// node alone; but of two transactions that wrote the same row one is rolled back, at the latest when it commits, with the
/// error of a deadlock ([`retrying`]).
pub async fn take_turn(conn: &mut db::Conn, user: UserId) -> Result<bool> {
    Ok(store::take_turn(conn, user).await.context("waiting for the user's other requests")?)
}

/// The accounts of these users, in no order. One that is gone is not there.
pub async fn users(conn: &mut db::Conn, ids: &[UserId]) -> Result<Vec<User>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    Ok(store::find_users(conn, ids).await.context("reading users")?)
}

/// Whose phone number it is.
pub async fn user_of(conn: &mut db::Conn, phone: &Phone) -> Result<Option<UserId>> {
    Ok(store::find_phone(conn, phone).await.context("looking for a phone number")?)
}

/// Deletes what is left of old logins, page by page: run from time to time.
pub async fn prune(app: &App) -> anyhow::Result<()> {
    session::prune(app).await
}

/// Makes an account. An empty nickname gets a neutral one; one that is reserved is for this function's callers to give.
pub async fn create_user(app: &App, phone: &str, password: &str, nickname: &str, role: Role) -> Result<UserId> {
    let (user, hash) = new_account(app, phone, password, nickname, role).await?;
    retrying(async || {
        let mut conn = app.db.acquire().await?;
        insert(&mut conn, &user, &hash).await
    })
    .await?;
    Ok(user.id)
}

/// A new account, and the hash of its password.
async fn new_account(app: &App, phone: &str, password: &str, nickname: &str, role: Role) -> Result<(User, String)> {
    let phone: Phone = phone.parse().map_err(|e: model::NotAPhone| invalid("phone", e.to_string()))?;
    let password = Password::from(password.to_owned());
    if let Some(fault) = password.length_fault().or_else(|| password.choice_fault(Some(&phone))) {
        return Err(invalid("password", fault));
    }
    let nickname = composed(nickname);
    if !nickname.is_empty()
        && let Err(error) = words(1, MAX_NICKNAME_CHARS)(&nickname, &())
    {
        return Err(invalid("nickname", error.message()));
    }
    let hash = password::hash(app, password).await?;
    Ok((User::new(phone, &nickname, role, app.clock.now()), hash))
}

/// Whether this password gives entry to an account with this number.
pub async fn has_password(app: &App, phone: &str, password: &str) -> Result<bool> {
    let Ok(phone) = phone.parse::<Phone>() else { return Ok(false) };
    let account = store::find_account(&mut *app.db.acquire().await?, &phone).await.context("reading an account")?;
    match account {
        Some(account) if account.disabled_at.is_none() => {
            password::verify(app, Password::from(password.to_owned()), Some(account.password_hash)).await
        }
        _ => Ok(false),
    }
}

/// Whether there are accounts beside those with these numbers.
pub async fn has_others(app: &App, phones: &[&str]) -> Result<bool> {
    Ok(store::find_other(&mut *app.db.acquire().await?, phones).await.context("looking for accounts")?)
}

/// Inserts a user; the unique key decides between two who register the same number at once.
async fn insert(conn: &mut db::Conn, user: &User, hash: &str) -> Result<()> {
    match store::insert_user(conn, user, hash).await {
        Err(error) if db::violated(&error).as_deref() == Some("uq_users_phone") => Err(Kind::PhoneTaken.into()),
        other => other.context("inserting a user").map_err(Error::from),
    }
}
