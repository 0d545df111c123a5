//! Types and pure rules of accounts and tokens.

use crate::platform::text_enum;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::text::Text;

/// The id of a [`User`].
pub type UserId = Id<User>;

/// An account.
#[derive(Debug, Clone, Serialize, sqlx::FromRow, utoipa::ToSchema)]
pub struct User {
    /// Its id.
    pub id: UserId,
    /// The phone number it logs in with.
    #[schema(value_type = String, pattern = "^1[3-9][0-9]{9}$")]
    #[sqlx(try_from = "Text")]
    pub phone: Phone,
    /// What others see.
    #[sqlx(try_from = "Text")]
    pub nickname: String,
    /// What it may do.
    pub role: Role,
    /// When it was registered.
    pub created_at: At,
}

impl User {
    /// A new account. An empty nickname gets a neutral one.
    pub(super) fn new(phone: Phone, nickname: &str, role: Role, now: At) -> Self {
        let id = UserId::new();
        let nickname = if nickname.is_empty() { default_nickname(id) } else { nickname.to_owned() };
        Self { id, phone, nickname, role, created_at: now }
    }
}

/// An account with what proves its owner.
#[derive(sqlx::FromRow)]
pub(super) struct Account {
    #[sqlx(flatten)]
    pub user: User,
    /// argon2id, as a PHC string.
    #[sqlx(try_from = "Text")]
    pub password_hash: String,
    /// When it was disabled, if it is.
    pub disabled_at: Option<At>,
}

/// 学员 and the end of the id: tells users apart and tells nobody their phone number.
fn default_nickname(id: UserId) -> String {
    let id = id.to_string();
    format!("学员{}", id.get(26..).unwrap_or_default())
}

/// What a user may do.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Role {
    /// Buys and learns.
    User,
    /// Sees everything and changes nothing.
    Auditor,
    /// Helps buyers: their orders, refunds and logins.
    Support,
    /// Money: refunds, payments that do not fit, statements.
    Finance,
    /// Runs the sales and the machinery: catalogue, coupons, activities, queues, schedules.
    Operator,
    /// May do everything.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::User, Self::Auditor, Self::Support, Self::Finance, Self::Operator, Self::Admin];
}

text_enum!(Role);

/// A mobile number of mainland China: 1, then 3..9, then nine digits. The database's word is taken as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Phone(String);

impl From<Text> for Phone {
    fn from(Text(text): Text) -> Self {
        Self(text)
    }
}

/// The text is not a [`Phone`].
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be a mobile number of mainland China, such as 13800000001")]
pub struct NotAPhone;

impl Phone {
    /// Its 11 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What others may see of it: 138****0001.
    pub fn masked(&self) -> String {
        let ends = self.0.get(..3).zip(self.0.get(7..)).filter(|_| self.0.len() == 11);
        ends.map_or_else(|| "****".to_owned(), |(head, tail)| format!("{head}****{tail}"))
    }
}

impl<'de> Deserialize<'de> for Phone {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl std::str::FromStr for Phone {
    type Err = NotAPhone;
    fn from_str(text: &str) -> Result<Self, NotAPhone> {
        match text.as_bytes() {
            [b'1', b'3'..=b'9', rest @ ..] if rest.len() == 9 && rest.iter().all(u8::is_ascii_digit) => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(NotAPhone),
        }
    }
}

/// What an access token says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Claims {
    iss: Onrush,
    /// For whom it is; a token of the version before does not say so.
    aud: Option<Onrush>,
    /// Who.
    pub sub: UserId,
    /// What they may do.
    pub role: Role,
    /// The login (the family of refresh tokens) it was made in.
    pub sid: LoginId,
    /// When it was made, in seconds since 1970.
    iat: i64,
    /// Not before, in seconds since 1970; a token of the version before does not say so.
    nbf: Option<i64>,
    /// From when on it is refused, in seconds since 1970.
    exp: i64,
}

/// A login: the family of refresh tokens that descend from it.
#[derive(Debug, Clone, Copy)]
pub struct Login;
/// Names a [`Login`].
pub type LoginId = Id<Login>;

/// Who makes access tokens, and for whom: the service, for itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Onrush {
    #[serde(rename = "onrush")]
    Onrush,
}

/// The clock of the process that made a token may be ahead of ours by so much. How far it may be behind is no question:
/// a token ends when it says, by the clock of whoever is asked.
const LEEWAY_S: i64 = 60;

/// For so long after its start a process takes tokens of the version before, which say less: in a rolling upgrade
/// processes of that version go on making them.
const UPGRADE: Duration = Duration::from_secs(24 * 3600);

impl Claims {
    pub(super) fn new(sub: UserId, role: Role, login: LoginId, now: At, life_s: u64) -> Self {
        let iat = now.ms().div_euclid(1000);
        let exp = iat.saturating_add(i64::try_from(life_s).unwrap_or(i64::MAX));
        Self { iss: Onrush::Onrush, aud: Some(Onrush::Onrush), sub, role, sid: login, iat, nbf: Some(iat), exp }
    }

    pub(super) fn expires_at(&self) -> At {
        At::from_ms(self.exp.saturating_mul(1000))
    }

    pub(super) fn is_expired(&self, now: At) -> bool {
        now.ms().div_euclid(1000) >= self.exp
    }

    /// Whether it says all that a token of ours says, and is of now or before. `is_typed`: its header says what it is.
    pub(super) fn is_sound(&self, is_typed: bool, started: At, now: At) -> bool {
        let says_all = is_typed && self.aud.is_some() && self.nbf.is_some();
        let from = self.nbf.unwrap_or(self.iat).max(self.iat);
        (says_all || (!is_typed && now <= started.plus(UPGRADE)))
            && from <= now.ms().div_euclid(1000).saturating_add(LEEWAY_S)
    }
}

/// How an account and a login of it stand.
#[derive(sqlx::FromRow)]
pub(super) struct Standing {
    /// What the account may do now.
    pub role: Role,
    /// How many refresh tokens of the login are revoked: none while it goes on.
    pub revoked: i64,
    /// When the account was disabled, if it is.
    pub disabled_at: Option<At>,
}

impl Standing {
    /// Whether the account is open and the login is not over.
    pub fn goes_on(&self) -> bool {
        self.revoked == 0 && self.disabled_at.is_none()
    }
}

/// A refresh token as the client holds it: 64 hex digits of 32 random bytes. It does not print itself.
#[derive(Clone)]
pub(super) struct RefreshToken(String);

impl RefreshToken {
    /// A new one.
    pub(super) fn random() -> anyhow::Result<Self> {
        let mut bytes = [0; 32];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
        Ok(Self(hex::encode(bytes)))
    }

    /// What a client sent; any text may be looked for.
    pub(super) fn from_client(text: String) -> Self {
        Self(text)
    }

    /// What the database keeps. The token has 256 random bits: a plain hash cannot be searched.
    pub(super) fn hash(&self) -> Vec<u8> {
        digest(&SHA256, self.0.as_bytes()).as_ref().to_vec()
    }

    /// For the client.
    pub(super) fn reveal(self) -> String {
        self.0
    }
}

/// A refresh token to keep.
pub(super) struct NewToken {
    pub user: UserId,
    /// The login it belongs to.
    pub family: Uuid,
    pub hash: Vec<u8>,
    pub created_at: At,
    pub expires_at: At,
}

/// A refresh token as it is kept.
#[derive(sqlx::FromRow)]
pub(super) struct Token {
    pub user_id: UserId,
    pub family_id: Uuid,
    pub used_at: Option<At>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mobile_number_of_mainland_china_is_a_phone() {
        assert_eq!("13812345678".parse::<Phone>().unwrap().as_str(), "13812345678");
        for bad in ["", "1", "12812345678", "1381234567", "138123456789", "23812345678", "1381234567x", "１3812345678"]
        {
            assert!(bad.parse::<Phone>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_refused_from_the_second_of_its_expiry_on() {
        let now = At::from_ms(1_000_000_500);
        let claims = Claims::new(UserId::new(), Role::User, LoginId::new(), now, 60);
        assert!(!claims.is_expired(At::from_ms(1_000_059_999)));
        assert!(claims.is_expired(At::from_ms(1_000_060_000)));
    }

    #[test]
    fn a_token_of_another_issuer_or_without_an_end_has_no_claims() {
        let claims = Claims::new(UserId::new(), Role::User, LoginId::new(), At::from_ms(0), 60);
        let good = serde_json::to_value(&claims).unwrap();
        assert!(serde_json::from_value::<Claims>(good.clone()).is_ok());
        for claim in ["iss", "aud"] {
            let mut foreign = good.clone();
            foreign[claim] = "another".into();
            assert!(serde_json::from_value::<Claims>(foreign).is_err(), "{claim}");
        }
        for claim in ["iss", "sub", "role", "sid", "iat", "exp"] {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(claim);
            assert!(serde_json::from_value::<Claims>(without).is_err(), "{claim}");
        }
    }

    #[test]
    fn a_token_of_the_version_before_is_taken_for_a_day_and_one_that_says_half_never() {
        let (started, now) = (At::from_ms(1_000_000_000), At::from_ms(1_000_050_000));
        let day_later = started.plus(UPGRADE + Duration::from_millis(1));
        let token = Claims::new(UserId::new(), Role::User, LoginId::new(), now, 60);
        assert!(token.is_sound(true, started, now) && token.is_sound(true, started, day_later));
        let old = Claims { aud: None, nbf: None, ..token.clone() };
        assert!(old.is_sound(false, started, now) && !old.is_sound(false, started, day_later));
        assert!(!old.is_sound(true, started, now), "typed, and without what such a token says");
        assert!(!Claims { aud: None, ..token.clone() }.is_sound(true, started, now));
        assert!(!Claims { nbf: None, ..token }.is_sound(true, started, now));
    }

    #[test]
    fn a_token_of_the_time_to_come_is_refused_but_for_clocks_that_differ() {
        let now = At::from_ms(1_000_000_000);
        let made = |ahead_s: u64| {
            let at = now.plus(Duration::from_secs(ahead_s));
            Claims::new(UserId::new(), Role::User, LoginId::new(), at, 600)
        };
        assert!(made(60).is_sound(true, now, now) && !made(61).is_sound(true, now, now));
        let later = Claims { nbf: Some(1_000_061), ..made(0) };
        assert!(!later.is_sound(true, now, now), "not before counts");
        assert!(later.is_sound(true, now, now.plus(Duration::from_secs(1))));
    }

    #[test]
    fn refresh_tokens_are_64_hex_digits_and_differ() {
        let (a, b) = (RefreshToken::random().unwrap().reveal(), RefreshToken::random().unwrap().reveal());
        assert_eq!(a.len(), 64);
        assert!(a.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase()));
        assert_ne!(a, b);
    }
}
