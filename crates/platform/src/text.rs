//! Text as MySQL gives it.
//!
//! Our text columns compare byte by byte (`utf8mb4_bin`, `ascii_bin`), and the server marks such a column as binary in
//! what it says of a result. sqlx 0.8 takes the mark for `VARBINARY` and refuses to read it into a `String` (sqlx #3387;
//! 0.9 asks the collation instead, but leaves TCP_NODELAY off, #4335). So a field of a row that is text names one of
//! these types: `#[sqlx(try_from = "Text")]`, or `#[sqlx(try_from = "OptionalText")]` where it may be NULL.

/// Gives an enum of words its place in rows. It derives strum's `EnumString` and `IntoStaticStr`, which say how each is
/// written; here it becomes `as_str()`, a value to bind and a field of a row.
#[macro_export]
macro_rules! text_enum {
    ($name:ident) => {
        impl $name {
            /// As rows, requests and answers have it.
            pub fn as_str(self) -> &'static str {
                self.into()
            }
        }

        impl sqlx::Type<sqlx::MySql> for $name {
            fn type_info() -> sqlx::mysql::MySqlTypeInfo {
                <$crate::text::Text as sqlx::Type<sqlx::MySql>>::type_info()
            }
            fn compatible(ty: &sqlx::mysql::MySqlTypeInfo) -> bool {
                <$crate::text::Text as sqlx::Type<sqlx::MySql>>::compatible(ty)
            }
        }

        impl<'r> sqlx::Decode<'r, sqlx::MySql> for $name {
            fn decode(value: sqlx::mysql::MySqlValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
                let $crate::text::Text(text) = sqlx::Decode::<'r, sqlx::MySql>::decode(value)?;
                text.parse().map_err(|_| format!("{text:?} is no {}", stringify!($name)).into())
            }
        }

        impl<'q> sqlx::Encode<'q, sqlx::MySql> for $name {
            fn encode_by_ref(&self, buffer: &mut Vec<u8>) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
                <&str as sqlx::Encode<'q, sqlx::MySql>>::encode_by_ref(&self.as_str(), buffer)
            }
        }
    };
}

use sqlx::MySql;
use sqlx::error::BoxDynError;
use sqlx::mysql::{MySqlTypeInfo, MySqlValueRef};

/// The text of a column that is not NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text(pub String);

/// The text of a column that may be NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalText(pub Option<String>);

impl From<Text> for String {
    fn from(Text(text): Text) -> Self {
        text
    }
}

impl From<OptionalText> for Option<String> {
    fn from(OptionalText(text): OptionalText) -> Self {
        text
    }
}

impl sqlx::Type<MySql> for Text {
    fn type_info() -> MySqlTypeInfo {
        <str as sqlx::Type<MySql>>::type_info()
    }
    fn compatible(ty: &MySqlTypeInfo) -> bool {
        <str as sqlx::Type<MySql>>::compatible(ty) || <[u8] as sqlx::Type<MySql>>::compatible(ty)
    }
}

impl<'r> sqlx::Decode<'r, MySql> for Text {
    fn decode(value: MySqlValueRef<'r>) -> Result<Self, BoxDynError> {
        <String as sqlx::Decode<'r, MySql>>::decode(value).map(Self)
    }
}

impl sqlx::Type<MySql> for OptionalText {
    fn type_info() -> MySqlTypeInfo {
        <Text as sqlx::Type<MySql>>::type_info()
    }
    fn compatible(ty: &MySqlTypeInfo) -> bool {
        <Text as sqlx::Type<MySql>>::compatible(ty)
    }
}

impl<'r> sqlx::Decode<'r, MySql> for OptionalText {
    fn decode(value: MySqlValueRef<'r>) -> Result<Self, BoxDynError> {
        <Option<Text> as sqlx::Decode<'r, MySql>>::decode(value).map(|text| Self(text.map(String::from)))
    }
}
