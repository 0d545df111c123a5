//! Handlers of `/auth` and `/me`. Shapes that hold a password or a token do not print themselves.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::address::ClientAddress;
use super::device::{self, DeviceToken};
use super::model::{Phone, RefreshToken, User};
use super::nickname::is_reserved;
use super::password::Password;
use super::session::Session;
use super::watch::{self, Visitor};
use super::{Caller, CurrentUser, Registration, session};
use crate::app::App;
use crate::error::Result;
use crate::platform::extract::{Faults, Input, Json, Shape};
use crate::platform::spelling::nfc_option;
use crate::platform::validators::words;

/// A new account.
#[derive(Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "phone": "13800000002", "password": "a long password", "nickname": "小明" }))]
pub struct RegisterRequest {
    /// A mobile number of mainland China.
    #[garde(skip)]
    #[schema(value_type = String, pattern = "^1[3-9][0-9]{9}$", example = "13800000001")]
    phone: Phone,
    /// At least 8 characters, at most 256 bytes; none of the commonest passwords, nor the phone number. However a
    /// keyboard composes its characters, it is the same password (NFC).
    #[garde(custom(is_password))]
    #[schema(value_type = String, min_length = 8, max_length = 256, example = "a long password")]
    password: Password,
    /// What others see; without it a neutral one. Not one that looks like the shop's own.
    #[garde(inner(custom(words(1, super::MAX_NICKNAME_CHARS)), custom(is_free)))]
    #[serde(default, deserialize_with = "nfc_option")]
    #[schema(min_length = 1, max_length = 64, pattern = r"\S")]
    nickname: Option<String>,
}

/// A login.
#[derive(Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "phone": "13800000001", "password": "onrush-demo" }))]
pub struct LoginRequest {
    /// The number the account was registered with.
    #[garde(skip)]
    #[schema(value_type = String, pattern = "^1[3-9][0-9]{9}$", example = "13800000001")]
    phone: Phone,
    /// Its password.
    #[garde(custom(is_password))]
    #[schema(value_type = String, min_length = 8, max_length = 256, example = "a long password")]
    password: Password,
    /// What the last login on this device was given, where there was one and no cookie brings it: strangers who guess
    /// passwords of this number cannot make this device wait. One that is not valid any more counts as none.
    #[garde(inner(custom(is_device_token)))]
    #[schema(pattern = r"^[0-9a-f]{32}\.[0-9]{1,12}\.[0-9a-f]{64}$")]
    device_token: Option<String>,
}

/// A refresh token.
#[derive(Deserialize, garde::Validate, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    /// As the last login or refresh gave it.
    #[garde(custom(is_refresh_token))]
    #[schema(pattern = "^[0-9a-f]{64}$", example = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef")]
    refresh_token: String,
}

impl Shape<App> for RegisterRequest {
    fn together(&self, _: &App, faults: &mut Faults) {
        if faults.spare(&["password"]) {
            let phone = Some(&self.phone).filter(|_| faults.spare(&["phone"]));
            if let Some(fault) = self.password.choice_fault(phone) {
                faults.add("password", fault);
            }
        }
    }
}
impl Shape<App> for LoginRequest {}
impl Shape<App> for RefreshRequest {}

fn is_password(password: &Password, (): &()) -> garde::Result {
    password.length_fault().map_or(Ok(()), |fault| Err(garde::Error::new(fault)))
}

fn is_free(nickname: &str, (): &()) -> garde::Result {
    if is_reserved(nickname) { Err(garde::Error::new("is reserved for the shop")) } else { Ok(()) }
}

fn is_refresh_token(text: &str, (): &()) -> garde::Result {
    let good = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if good { Ok(()) } else { Err(garde::Error::new("must be the 64 hex digits of a refresh token")) }
}

fn is_device_token(text: &str, (): &()) -> garde::Result {
    let good = DeviceToken::is_shaped(text);
    if good { Ok(()) } else { Err(garde::Error::new("must be as a login gave it")) }
}

/// How an access token is sent (RFC 6750).
#[derive(Debug, Clone, Copy, Serialize, utoipa::ToSchema)]
pub enum TokenType {
    /// `Authorization: Bearer <access_token>`.
    Bearer,
}

/// A login's tokens.
#[derive(Serialize, utoipa::ToSchema)]
pub struct SessionResponse {
    /// Who is logged in.
    user: User,
    /// Send it as `Authorization: Bearer <access_token>`.
    access_token: String,
    /// How it is sent.
    token_type: TokenType,
    /// Life of the access token, in seconds.
    expires_in_s: u64,
    /// Exchange it at `/auth/refresh`, once, for the next pair.
    refresh_token: String,
    /// Life of the refresh token, in seconds.
    refresh_expires_in_s: u64,
}

/// A login's tokens, and what this device shows at the next login of this number.
#[derive(Serialize, utoipa::ToSchema)]
pub struct LoginResponse {
    #[serde(flatten)]
    session: SessionResponse,
    /// Keep it on this device, also after a logout, and send it with the next login: the same as the cookie
    /// `onrush_device`, for clients without cookies. It proves nothing but that this device was here.
    device_token: String,
    #[serde(skip)]
    cookie: Option<HeaderValue>,
}

impl LoginResponse {
    fn new(app: &App, session: Session, device: &DeviceToken) -> Self {
        let device_token = device.as_str().to_owned();
        Self { session: SessionResponse::new(app, session), device_token, cookie: device.cookie(app) }
    }
}

impl IntoResponse for LoginResponse {
    fn into_response(mut self) -> Response {
        let cookie = self.cookie.take();
        let mut response = ([(header::CACHE_CONTROL, "no-store")], axum::Json(self)).into_response();
        if let Some(cookie) = cookie {
            response.headers_mut().insert(header::SET_COOKIE, cookie);
        }
        response
    }
}

impl SessionResponse {
    fn new(app: &App, session: Session) -> Self {
        let auth = &app.config.auth;
        Self {
            user: session.user,
            access_token: session.access_token,
            token_type: TokenType::Bearer,
            expires_in_s: auth.access_token_s,
            refresh_token: session.refresh_token.reveal(),
            refresh_expires_in_s: auth.refresh_token_s,
        }
    }
}

impl IntoResponse for SessionResponse {
    fn into_response(self) -> Response {
        // Tokens stay out of every cache (RFC 6749, section 5.1).
        ([(header::CACHE_CONTROL, "no-store")], axum::Json(self)).into_response()
    }
}

/// Registers an account and logs it in. Repeated, it answers `phone_taken`: log in instead.
#[utoipa::path(post, path = "/auth/register", operation_id = "register_account", tag = "auth", request_body = RegisterRequest, responses(
    (status = 201, body = LoginResponse, description = "Registered and logged in",
        headers(("Set-Cookie" = String, description = "`onrush_device`: what this device shows at its next login"))),
    (status = 409, description = "`phone_taken`"),
))]
pub async fn register(
    State(app): State<App>,
    Input(Json(body)): Input<Json<RegisterRequest>>,
) -> Result<(StatusCode, LoginResponse)> {
    let registration =
        Registration { phone: body.phone, password: body.password, nickname: body.nickname.unwrap_or_default() };
    let (session, device) = super::register(&app, registration).await?;
    Ok((StatusCode::CREATED, LoginResponse::new(&app, session, &device)))
}

/// Logs in. Each login is a family of refresh tokens of its own; others stay as they are.
///
/// After some failed logins of a number the next ones are slowed down: the answer takes up to three seconds longer, or is
/// 429 with `Retry-After`. The right password is then as good as before. The first logins from another address, and those
/// of a device that shows a token of a former login of this number (the cookie `onrush_device`, or `device_token`), are not
/// slowed down by failures of others.
#[utoipa::path(post, path = "/auth/login", operation_id = "log_in", tag = "auth", request_body = LoginRequest,
    params(("onrush_device" = Option<String>, Cookie, description = "As the last login on this device set it; one that is not valid counts as none")),
    responses(
    (status = 200, body = LoginResponse, description = "Logged in",
        headers(("Set-Cookie" = String, description = "`onrush_device`: what this device shows at its next login"))),
    (status = 401, description = "`wrong_credentials`: the number or the password, never which"),
    (status = 403, description = "`account_disabled`: the password is right, and nobody may log in"),
    (status = 429, description = "`too_many_attempts`: too many failed logins of this number, or from this address. `Retry-After` says when the next one is judged",
        headers(("Retry-After" = u64, description = "Seconds"))),
))]
pub async fn login(
    State(app): State<App>,
    visitor: Visitor,
    address: ClientAddress,
    headers: HeaderMap,
    Input(Json(body)): Input<Json<LoginRequest>>,
) -> Result<LoginResponse> {
    let from = Caller { address, devices: device::shown(&headers, body.device_token) };
    let judged = super::login(&app, &visitor, &from, &body.phone, body.password).await;
    if let Err(error) = &judged {
        watch::attempt(&app, &visitor, &body.phone, error).await;
    }
    let (session, device) = judged?;
    Ok(LoginResponse::new(&app, session, &device))
}

/// Exchanges a refresh token, once, for a new pair. A token that comes twice ends its login, also when both come at
/// once: the service cannot tell a thief from the owner. So a front end refreshes one at a time, over all its tabs.
#[utoipa::path(post, path = "/auth/refresh", operation_id = "refresh_tokens", tag = "auth", request_body = RefreshRequest, responses(
    (status = 200, body = SessionResponse, description = "A new pair; the old refresh token is used up"),
    (status = 401, description = "`refresh_token_invalid`: unknown, expired or revoked; `refresh_token_reused`: used before, and now the login is over"),
))]
pub async fn refresh(
    State(app): State<App>,
    visitor: Visitor,
    Input(Json(body)): Input<Json<RefreshRequest>>,
) -> Result<SessionResponse> {
    let refreshed = session::refresh(&app, &RefreshToken::from_client(body.refresh_token)).await;
    if let Err(error) = &refreshed {
        watch::refresh(&app, &visitor, error);
    }
    Ok(SessionResponse::new(&app, refreshed?))
}

/// Ends the login that a refresh token belongs to. Safe to repeat; an unknown token is fine. The access tokens made in it
/// are refused from then on (`login_over`) by every administrator's route, wherever money moves and where an account
/// reads what is its own; at `/me`, submissions and polls they hold until they expire.
#[utoipa::path(post, path = "/auth/logout", operation_id = "log_out", tag = "auth", request_body = RefreshRequest, responses(
    (status = 204, description = "The login is over"),
))]
pub async fn logout(State(app): State<App>, Input(Json(body)): Input<Json<RefreshRequest>>) -> Result<StatusCode> {
    session::close(&app, &RefreshToken::from_client(body.refresh_token)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who is asking.
#[utoipa::path(get, path = "/me", operation_id = "get_me", tag = "auth", security(("bearer" = [])), responses(
    (status = 200, body = User, description = "The account of the access token"),
))]
pub async fn me(State(app): State<App>, user: CurrentUser) -> Result<axum::Json<User>> {
    Ok(axum::Json(super::profile(&app, user.id).await?))
}
