//! Ids: UUIDv7 made in the process (time-ordered, no coordination between copies), `BINARY(16)` in MySQL, 32
//! lowercase hex digits everywhere else, which fits every payment gateway's merchant-order field.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::mysql::{MySql, MySqlTypeInfo, MySqlValueRef};
use uuid::Uuid;

use super::clock::At;

/// The id of a `K`. `K` is only a name that keeps the id of one kind of thing from being taken for another's.
pub struct Id<K>(Uuid, PhantomData<fn() -> K>);

/// The text is not an id.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be an id of 32 hex digits in lower case, such as 019aa23b8f007cc3a1d2c0ffee000001")]
pub struct NotAnId;

impl<K> Id<K> {
    /// A new id, greater than all that this process made before.
    pub fn new() -> Self {
        Self::from_uuid(Uuid::now_v7())
    }

    /// The same 128 bits as an id of `K`.
    pub const fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid, PhantomData)
    }

    /// The 128 bits.
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The smallest id that can be made at `at`.
    pub fn first_of(at: At) -> Self {
        let ms = u128::try_from(at.ms()).unwrap_or(0);
        Self::from_uuid(Uuid::from_u128(ms << 80))
    }

    /// The smallest id: below every one that was ever made.
    pub const fn min() -> Self {
        Self::from_uuid(Uuid::nil())
    }

    /// The largest id: above every one that will ever be made.
    pub const fn max() -> Self {
        Self::from_uuid(Uuid::max())
    }
}

impl<K> Default for Id<K> {
    fn default() -> Self {
        Self::new()
    }
}
impl<K> Clone for Id<K> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<K> Copy for Id<K> {}
impl<K> PartialEq for Id<K> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<K> Eq for Id<K> {}
impl<K> PartialOrd for Id<K> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Id<K> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}
impl<K> Hash for Id<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<K> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_simple())
    }
}
impl<K> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_simple())
    }
}

impl<K> FromStr for Id<K> {
    type Err = NotAnId;
    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let canonical = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !canonical {
            return Err(NotAnId);
        }
        Uuid::try_parse(text).map(Self::from_uuid).map_err(|_| NotAnId)
    }
}

impl<K> Serialize for Id<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_simple().encode_lower(&mut [0; 32]))
    }
}
impl<'de, K> Deserialize<'de> for Id<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl<K> utoipa::PartialSchema for Id<K> {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .pattern(Some("^[0-9a-f]{32}$"))
            .into()
    }
}
#[cfg(feature = "openapi")]
impl<K> utoipa::ToSchema for Id<K> {
    fn name() -> std::borrow::Cow<'static, str> {
        "Id".into()
    }
}

impl<K> sqlx::Type<MySql> for Id<K> {
    fn type_info() -> MySqlTypeInfo {
        <Uuid as sqlx::Type<MySql>>::type_info()
    }
    fn compatible(ty: &MySqlTypeInfo) -> bool {
        <Uuid as sqlx::Type<MySql>>::compatible(ty)
    }
}
impl<K> sqlx::Encode<'_, MySql> for Id<K> {
    fn encode_by_ref(&self, buf: &mut Vec<u8>) -> Result<IsNull, BoxDynError> {
        <Uuid as sqlx::Encode<'_, MySql>>::encode_by_ref(&self.0, buf)
    }
}
impl<'r, K> sqlx::Decode<'r, MySql> for Id<K> {
    fn decode(value: MySqlValueRef<'r>) -> Result<Self, BoxDynError> {
        <Uuid as sqlx::Decode<'r, MySql>>::decode(value).map(Self::from_uuid)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_canonical_text_is_an_id() {
        let id = Id::<()>::new();
        assert_eq!(id.to_string().parse::<Id<()>>().unwrap(), id);
        for bad in [
            "",
            "0",
            "01936f3c-7a3b-7000-8000-000000000001",
            "01936F3C7A3B70008000000000000001",
            "é1936f3c7a3b7000800000000000001",
        ] {
            assert!(bad.parse::<Id<()>>().is_err(), "{bad}");
        }
    }

    #[test]
    fn later_ids_sort_after_earlier_ones() {
        let ids: Vec<Id<()>> = (0..1000).map(|_| Id::new()).collect();
        assert!(ids.is_sorted());
    }

    proptest! {
        /// Cursors of pages are ids as well.
        #[test]
        fn what_is_read_as_an_id_is_its_only_text(text in "[0-9a-fA-F]{32}|[0-9a-f{}-]{0,40}|[0-9a-f]{31,33}|\\PC{0,40}") {
            if let Ok(id) = text.parse::<Id<()>>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
