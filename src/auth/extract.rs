//! Who is asking.
//!
//! [`CurrentUser`] takes the access token's word, without MySQL and Redis. That is enough to queue for a sale. Where MySQL
//! is touched anyhow, [`LiveUser`] asks it whether the account stands and the login goes on; [`with_current_role`] asks that, and which
//! role the account has now. MySQL has the truth of it: a login that ended a moment ago, at whichever
//! process, is over, and Redis is not asked.

use anyhow::Context;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, header};

use super::model::{Claims, LoginId, Role, UserId};
use super::store;
use super::watch::{self, Sight, Visitor};
use crate::app::App;
use crate::error::{Error, Kind};
use crate::platform::clock::At;
use crate::platform::jwt::{TokenFault, Verified};

/// The user of a valid access token; without one the request is refused with 401.
#[derive(Debug, Clone, Copy)]
pub struct CurrentUser {
    /// Who.
    pub id: UserId,
    /// What they may do, as of when the token was made.
    pub role: Role,
    /// From when on what they showed is refused: an answer that goes on for long ends then.
    pub until: At,
    /// The login that the token was made in.
    login: LoginId,
}

impl CurrentUser {
    /// A user by a ticket of theirs, which was given to a request with a valid token and holds until then. It is of no
    /// login that could be over.
    pub fn by_ticket(id: UserId, until: At) -> Self {
        Self { id, role: Role::User, until, login: LoginId::min() }
    }

    /// The user of a request that is not taken apart. What came of it is noted in `extensions`: whoever asks once more,
    /// after whoever counts the user's requests, need not look at the token again.
    pub fn of(app: &App, extensions: &mut Extensions, headers: &HeaderMap) -> Result<Self, Error> {
        if let Some(known) = extensions.get::<Self>() {
            return Ok(*known);
        }
        if extensions.get::<Forged>().is_some() {
            return Err(Kind::TokenInvalid.into());
        }
        let token = bearer(headers).ok_or(Kind::Unauthenticated)?;
        let now = app.clock.now();
        let claims = app.tokens.verify::<Claims>(token).and_then(|Verified { claims, is_typed }| {
            if claims.is_sound(is_typed, app.started, now) { Ok(claims) } else { Err(TokenFault::Forged) }
        });
        match claims {
            Ok(claims) if claims.is_expired(now) => Err(Kind::TokenExpired.into()),
            Ok(claims) => {
                let user = Self { id: claims.sub, role: claims.role, until: claims.expires_at(), login: claims.sid };
                extensions.insert(user);
                Ok(user)
            }
            Err(TokenFault::Expired) => Err(Kind::TokenExpired.into()),
            Err(TokenFault::Malformed) => Err(Kind::TokenInvalid.into()),
            Err(TokenFault::Forged) => {
                watch::see(app, Sight::TokenForged, &Visitor::of(app, extensions, headers), None, None);
                extensions.insert(Forged);
                Err(Kind::TokenInvalid.into())
            }
        }
    }
}

impl FromRequestParts<App> for CurrentUser {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        Self::of(app, &mut parts.extensions, &parts.headers)
    }
}

/// Marks a request whose token is forged, which has been told: whoever reads it once more is only refused.
#[derive(Debug, Clone, Copy)]
struct Forged;

/// The user of a valid access token whose account stands and whose login goes on, by MySQL's word at this moment.
#[derive(Debug, Clone, Copy)]
pub struct LiveUser(pub CurrentUser);

impl FromRequestParts<App> for LiveUser {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Error> {
        let user = CurrentUser::from_request_parts(parts, app).await?;
        let role = role_now(parts, app, &user).await?;
        Ok(Self(CurrentUser { role, ..user }))
    }
}

/// What the user may do now. An account that is gone and a login that is over are refused with 401.
async fn role_now(parts: &mut Parts, app: &App, user: &CurrentUser) -> Result<Role, Error> {
    let mut conn = app.db.acquire().await?;
    let standing = store::find_standing(&mut conn, user.id, user.login).await.context("reading how a login stands")?;
    drop(conn);
    let standing = standing.ok_or(Kind::TokenInvalid)?;
    if !standing.goes_on() {
        watch::see(app, Sight::LoginOver, &Visitor::of(app, &parts.extensions, &parts.headers), Some(user.id), None);
        return Err(Kind::LoginOver.into());
    }
    Ok(standing.role)
}

/// `Authorization: Bearer <token>`; the scheme's name is read in any case (RFC 9110).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Who asks, with the role that they have now: by the access token, and for whoever has a role by MySQL's word at this
/// moment. What the role may do is [`access`](crate::access)'s.
pub async fn with_current_role(parts: &mut Parts, app: &App) -> Result<CurrentUser, Error> {
    let user = CurrentUser::from_request_parts(parts, app).await?;
    // MySQL is asked about those alone who may have a role: others are turned away for nothing.
    let role = if user.role == Role::User { user.role } else { role_now(parts, app, &user).await? };
    Ok(CurrentUser { role, ..user })
}

/// The role that a user has now, by MySQL's word; that of a buyer when the account or the login is over. It is asked in a
/// task of its own, because a poll that is given up drops its handler.
pub async fn current_role(app: &App, user: &CurrentUser) -> Result<Role, Error> {
    let (asked, user) = (app.clone(), *user);
    let asking = app.loops.tracker().spawn(async move {
        let mut conn = asked.db.acquire().await?;
        store::find_standing(&mut conn, user.id, user.login).await
    });
    let standing = asking.await.context("asking how a login stands")?.context("reading how a login stands")?;
    Ok(standing.filter(|standing| standing.goes_on()).map_or(Role::User, |standing| standing.role))
}

/// Notes that somebody was refused what their role may not.
pub async fn was_forbidden(parts: &Parts, app: &App, user: UserId) {
    watch::forbidden(app, &Visitor::of(app, &parts.extensions, &parts.headers), user).await;
}
