//! Text as MySQL gives it.
//!
//! Our text columns compare byte by byte (`utf8mb4_bin`, `ascii_bin`), and the server marks such a column as binary in
//! what it says of a result. sqlx 0.8 takes the mark for `VARBINARY` and refuses to read it into a `String` (sqlx #3387;
//! 0.9 asks the collation instead, but leaves TCP_NODELAY off, #4335). So a field of a row that is text names one of
//! these types: `#[sqlx(try_from = "Text")]`, or `#[sqlx(try_from = "OptionalText")]` where it may be NULL.

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
